"""solojax.tasks.free_solo: losses recomputed in NumPy, and what must not matter."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from helpers import plain_losses
from helpers import plain_weak_losses as plain
from helpers.outputs import dynamic_outputs, kernels_of, mask_features_of
from helpers.plain_layers import sigmoid
from helpers.plain_targets import assign
from helpers.tiny import CANVAS, GRID, NUM_CLASSES, quick_jit, random_batch, take_rows

from solojax.errors import InputError
from solojax.tasks.free_solo import FreeSOLO
from solojax.tasks.instance_segmentation import InstanceSegmentation
from solojax.train.state import TrainState
from solojax.train.step import make_train_step

WIDTH, ROWS, STEPS_DONE = 6, 4, 249
TERMS = ("max_projection", "mean_projection", "pairwise", "semantic", "category")


def make_batch():
    """Images of few colours, the second row without objects, the fourth unreadable."""
    rng = np.random.default_rng(5)
    batch = random_batch(1)
    colors = rng.integers(0, 256, (ROWS, 4, 6, 3)).repeat(16, axis=1).repeat(16, axis=2)
    image = np.clip(colors + rng.integers(-5, 6, colors.shape), 0, 255).astype(np.uint8)
    for row, (height, width) in enumerate(batch.image_size):
        image[row, height:], image[row, :, width:] = 0, 0
    instances = batch.instances
    instances.valid[1] = False
    embeddings = rng.normal(size=(*instances.valid.shape, WIDTH)).astype(np.float32)
    return batch.replace(
        image=image,
        valid=np.array([True, True, True, False]),
        instances=instances.replace(
            embeddings=embeddings, mask_valid=np.ones_like(instances.valid)
        ),
    )


def make_outputs(seed=0):
    rng = np.random.default_rng(seed)
    size = (CANVAS[0] // 4, CANVAS[1] // 4)
    outputs = dynamic_outputs(
        rng.normal(-2, 1, (ROWS, GRID.num_cells, NUM_CLASSES)).astype(np.float32),
        rng.normal(size=(ROWS, GRID.num_cells, 5)).astype(np.float32),
        rng.normal(size=(ROWS, *size, 5)).astype(np.float32),
    )
    embeddings = rng.normal(size=(ROWS, GRID.num_cells, WIDTH)).astype(np.float32)
    return outputs.replace(embeddings=embeddings)


BATCH, OUTPUTS = make_batch(), make_outputs()


def make_task(**options):
    return FreeSOLO(None, GRID, NUM_CLASSES, **{"max_positives": 64} | options)


def make_terms(**options):
    task = make_task(**options)

    def terms(outputs, batch, step):
        weights, state = task.row_weights(batch), SimpleNamespace(step=step)
        return task.loss_terms(outputs, task.targets(batch), batch, weights, state)

    return terms


@functools.cache
def compiled(**options):
    return quick_jit(make_terms(**options))


def terms_of(batch=BATCH, outputs=OUTPUTS, step=STEPS_DONE, **options):
    found = compiled(**options)(outputs, batch, step)
    return {name.removeprefix("loss/"): float(value) for name, value in found.items()}


@functools.cache
def similarity_of(row):
    image_size, original_size = BATCH.image_size[row], BATCH.original_size[row]
    return plain.image_similarities(BATCH.image[row], image_size, original_size)


def level_of(cell):
    return sum(cell >= start for start in GRID.level_offsets[1:])


def plain_terms(rows=range(ROWS), keep=lambda row, n: True):
    """All terms of the given rows together, with the default weights, one pair at a time."""
    levels = [[] for _ in GRID.num_grids]
    semantic, focal = [], 0.0
    instances = BATCH.instances
    for row in rows:
        valid = instances.valid[row] & BATCH.valid[row]
        arrays = (x[row] for x in (instances.boxes, instances.labels, instances.centers))
        category, owner, pairs = assign(*arrays, valid, GRID, CANVAS, NUM_CLASSES)
        features = mask_features_of(OUTPUTS)[row].astype(np.float64)
        for cell, n in pairs:
            if not keep(row, n):
                continue
            logits = features @ kernels_of(OUTPUTS)[row, cell]
            coarse = np.unpackbits(instances.masks[row, n], axis=-1).astype(bool)
            levels[level_of(cell)].append(
                (
                    plain.projection(sigmoid(logits), coarse, np.max),
                    plain.projection(sigmoid(logits), coarse, np.mean),
                    *plain.pairwise(logits, similarity_of(row), coarse),
                    plain_losses.dice(sigmoid(logits), coarse),
                )
            )
        for cell in np.flatnonzero(owner >= 0):
            wanted = instances.embeddings[row, owner[cell]]
            semantic.append(plain.one_minus_cosine(OUTPUTS.embeddings[row, cell], wanted))
        if BATCH.valid[row]:
            for cell, k in np.ndindex(OUTPUTS.category_logits.shape[1:]):
                logit = float(OUTPUTS.category_logits[row, cell, k])
                focal += plain_losses.focal(logit, category[cell] == k)
    used = [np.array(level) for level in levels if level]
    maxima, means, sums, counts, dice = np.mean([level.mean(axis=0) for level in used], axis=0)
    del sums, counts
    pairwise = np.mean([level[:, 2].sum() / max(level[:, 3].sum(), 1) for level in used])
    return {
        "max_projection": maxima,
        "mean_projection": 0.1 * means,
        "pairwise": pairwise * (STEPS_DONE + 1) / 1000,
        "semantic": 4 * np.mean(semantic),
        "category": focal / (len(semantic) + 1),
        "mask": dice,
    }, [len(level) for level in levels]


def assert_close(found, wanted, names=TERMS):
    assert set(found) == set(names)
    for name in names:
        np.testing.assert_allclose(found[name], wanted[name], rtol=2e-5, err_msg=name)


def test_terms_are_those_of_a_numpy_recomputation():
    wanted, pairs = plain_terms()
    # So that a mean of means is another mean, and that over the levels in use another still.
    assert 0 in pairs and len(set(pairs)) == 3
    assert_close(terms_of(), wanted)


def test_full_masks_are_compared_by_the_same_average():
    wanted, _ = plain_terms()
    found = terms_of(
        mask_weight=3.0, max_projection_weight=0.0, mean_projection_weight=0.0,
        pairwise_weight=0.0, semantic_weight=0.0, category_weight=2.0,
    )  # fmt: skip
    scaled = {"mask": 3 * wanted["mask"], "category": 2 * wanted["category"]}
    assert_close(found, scaled, names=("mask", "category"))


def test_groups_of_images_are_averaged_on_their_own():
    """The second group has one readable row."""
    parts = [plain_terms(rows)[0] for rows in ((0, 1), (2, 3))]
    wanted = {name: (parts[0][name] + parts[1][name]) / 2 for name in TERMS}
    assert_close(terms_of(loss_group_images=2), wanted)


def test_objects_without_supervising_masks_train_category_and_embedding_alone():
    mask_valid = np.ones_like(BATCH.instances.valid)
    mask_valid[0, 0] = False
    batch = BATCH.replace(instances=BATCH.instances.replace(mask_valid=mask_valid))
    assert_close(terms_of(batch), plain_terms(keep=lambda row, n: (row, n) != (0, 0))[0])


def test_the_affinity_grows_over_the_first_steps():
    grown = 4 * terms_of()["pairwise"]
    for step, share in ((0, 0.001), (499, 0.5), (999, 1), (1000, 1), (50_000, 1)):
        np.testing.assert_allclose(terms_of(step=step)["pairwise"], share * grown, rtol=1e-5)


def names_of(**options):
    """Which losses are computed; nothing is."""
    return set(jax.eval_shape(make_terms(**options), OUTPUTS, BATCH, STEPS_DONE))


def test_the_published_training_has_no_semantic_loss():
    """And needs no embeddings."""
    bare = BATCH.replace(instances=BATCH.instances.replace(embeddings=None))
    found = terms_of(bare, OUTPUTS.replace(embeddings=None), semantics="release")
    wanted = terms_of()
    assert wanted.pop("semantic") > 0
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6)
    assert not make_task(semantics="release").learns_embeddings
    assert not make_task(semantic_weight=0.0).learns_embeddings


def test_losses_without_weight_are_not_computed():
    assert names_of() == {f"loss/{name}" for name in TERMS}
    found = names_of(pairwise_weight=0.0, mean_projection_weight=0.0, semantic_weight=0.0)
    assert found == {"loss/max_projection", "loss/category"}


def test_rows_add_up():
    """Terms of parts of a batch, with the weights of the whole, as gradients are accumulated."""
    task = make_task()
    weights = quick_jit(task.row_weights)(BATCH)

    def terms(outputs, batch, weights):
        state = SimpleNamespace(step=STEPS_DONE)
        return task.loss_terms(outputs, task.targets(batch), batch, weights, state)

    total = dict.fromkeys(TERMS, 0.0)
    run = quick_jit(terms)
    for rows in ([0, 2], [1, 3]):
        parts = jax.tree.map(lambda x, rows=rows: np.asarray(x)[rows], (OUTPUTS, BATCH, weights))
        for name, value in run(*parts).items():
            total[name.removeprefix("loss/")] += float(value)
    assert_close(total, terms_of())


def test_a_batch_without_objects():
    empty = BATCH.replace(
        instances=BATCH.instances.replace(valid=np.zeros_like(BATCH.instances.valid))
    )
    found = terms_of(empty)
    assert found.pop("category") > 0
    assert set(found.values()) == {0.0}

    gradient = quick_jit(jax.grad(lambda x: sum(make_terms()(x, empty, 0).values())))(OUTPUTS)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    assert not np.asarray(gradient.embeddings).any()


@pytest.mark.parametrize(
    ("batch", "outputs", "said"),
    [
        (BATCH, OUTPUTS.replace(embeddings=None), "a head that predicts embeddings"),
        (
            BATCH.replace(instances=BATCH.instances.replace(embeddings=None)),
            OUTPUTS,
            "labels with embeddings",
        ),
        (BATCH, OUTPUTS.replace(embeddings=OUTPUTS.embeddings[..., :3]), "have 6 numbers"),
    ],
)
def test_missing_embeddings(batch, outputs, said):
    with pytest.raises(InputError, match=said):
        terms_of(batch, outputs)


def test_other_bad_input():
    with pytest.raises(InputError, match="semantics 'published' is unknown"):
        make_task(semantics="published")
    coarse = dynamic_outputs(
        OUTPUTS.category_logits, kernels_of(OUTPUTS), mask_features_of(OUTPUTS)[:, ::2, ::2]
    )
    with pytest.raises(InputError, match="1/4 of the canvas"):
        terms_of(outputs=coarse, semantic_weight=0.0)


def test_a_step_learns_from_what_augment_makes():
    """All at once, before weights are taken and micro-batches cut."""
    seen = []

    def augment(batch):
        seen.append(batch.valid.shape[0])
        return take_rows_on_device(batch, [0, 0, 1, 1, 2, 2, 3, 3])

    task = make_task(augment=augment)
    assert task.prepare(BATCH).valid.shape == (8,)
    assert make_task().prepare(BATCH) is BATCH
    weights, rows = [], []

    class Spy(FreeSOLO):
        def row_weights(self, batch):
            weights.append(batch.valid.shape[0])
            return {"row": batch.valid * 1.0}

        def loss_fn(self, params, state, batch, rng, weights):
            rows.append(batch.valid.shape[0])
            loss = params["a"] * weights["row"].sum()
            return loss, ({"batch_stats": state.batch_stats}, {"loss": loss})

    spy = Spy(None, GRID, NUM_CLASSES, augment=augment)
    optimizer = optax.sgd(0.1)
    state = TrainState(
        step=np.int32(0), params={"a": np.float32(1)}, opt_state=optimizer.init({"a": 1.0}),
        batch_stats={}, ema_params=None, extra={},
    )  # fmt: skip
    seen.clear()
    _, metrics = jax.jit(make_train_step(spy, optimizer, accumulate_steps=2))(state, BATCH)
    assert metrics["loss"] == 6  # the fourth row is not valid
    assert seen == [4] and weights == [8] and set(rows) == {4}


def take_rows_on_device(batch, rows):
    return jax.tree.map(lambda x: x[np.array(rows)], batch)


def test_it_is_the_segmentation_task_otherwise():
    task = make_task()
    assert isinstance(task, InstanceSegmentation)
    shapes = jax.eval_shape(task.row_weights, take_rows(BATCH, [0]))
    levels = (1, GRID.num_levels)
    assert {name: x.shape for name, x in shapes.items()} == {
        "mask": levels, "pairwise": levels, "category": (1,), "semantic": (1,),
    }  # fmt: skip

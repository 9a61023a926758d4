"""FreeSOLO's configs: the published numbers, the ablations of Table 6.7, and what is refused."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from solojax.builders.free_solo import embedding_width
from solojax.builders.segmentation import build_optimizer, build_task
from solojax.config import (
    from_json,
    load_config,
    milestone_steps,
    scaled_learning_rate,
    to_json,
)
from solojax.data.loader import stack_examples
from solojax.data.transforms import empty_example
from solojax.errors import InputError
from solojax.train.state import create_state
from solojax.train.step import make_train_step

FILE = "configs/freesolo.py"
WEIGHTS = {
    "": (1.0, 0.1, 1.0, 0.0),
    "no_mean": (1.0, 0.0, 1.0, 0.0),
    "no_max": (0.0, 0.1, 1.0, 0.0),
    "no_pairwise": (1.0, 0.1, 0.0, 0.0),
    "full": (0.0, 0.0, 0.0, 3.0),
    "supervised": (0.0, 0.0, 0.0, 3.0),
}


def test_the_published_run():
    config = load_config(FILE)
    assert (config.train.total_steps, config.train.batch_size) == (30_000, 16)
    assert scaled_learning_rate(config) == 0.001
    optimizer = config.optimizer
    assert (optimizer.schedule, optimizer.warmup_steps, optimizer.warmup_factor) == (
        "constant", 1000, 0.01,
    )  # fmt: skip
    assert (min(config.data.short_sides), max(config.data.short_sides)) == (640, 800)
    assert config.model.backbone.depth == 50
    assert load_config(f"{FILE}:r101").model.backbone.depth == 101
    assert config.model.backbone.norm == "frozen_batch_norm"
    loss, rules = config.loss, config.self_training
    assert (loss.semantic_weight, loss.color_threshold, loss.ignored_bottom_rows) == (4, 0.3, 10)
    assert (rules.rounds, rules.score_threshold, rules.max_labels, rules.max_width) == (
        1, 0.3, 20, 0.95,
    )  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_the_mask_losses(name):
    config = load_config(f"{FILE}:{name}")
    loss = config.loss
    found = (loss.max_projection_weight, loss.mean_projection_weight, loss.pairwise_weight,
             loss.mask_weight)  # fmt: skip
    assert found == WEIGHTS[name]
    assert from_json(to_json(config)).to_dict() == config.to_dict()


def test_the_other_ablations():
    def of(name):
        return load_config(f"{FILE}:tiny,{name}")

    assert [of(name).self_training.rounds for name in ("no_self", "self", "self2")] == [0, 1, 2]
    scales = [of(name).free_mask.scales for name in ("usual", "pyramid", "scale1", "scale025")]
    assert scales == [(1.0, 0.5, 0.25), (1.0, 0.5, 0.25), (1.0,), (0.25,)]
    scales = [of(f"many,{name}").free_mask.scales for name in ("usual", "pyramid", "scale1")]
    assert scales == [(0.25,), (1.0, 0.5, 0.25), (1.0,)]
    assert [embedding_width(of(name)) for name in ("semantic", "no_semantic")] == [128, None]
    released = load_config(FILE, ["--config.loss.semantics=release"])
    assert embedding_width(released) is None
    assert embedding_width(load_config("configs/solov2.py")) is None


def test_full_supervision_trains_as_solov2_does():
    config, published = load_config(f"{FILE}:supervised"), load_config("configs/solov2.py:r50,3x")
    assert config.optimizer.to_dict() == published.optimizer.to_dict()
    assert (config.train.epochs, config.train.total_steps) == (36, None)
    assert config.model.backbone == published.model.backbone
    assert config.model.num_classes == 1 and not config.strong.enabled
    tiny = load_config(f"{FILE}:tiny,supervised")
    assert (tiny.train.total_steps, tiny.optimizer.name) == (250, "adamw")


@pytest.mark.parametrize("name", ["tiny", "tiny,many"])
def test_tiny_has_room_for_what_it_finds_and_pastes(name):
    config = load_config(f"{FILE}:{name}")
    assert config.data.max_instances == 2 * config.free_mask.max_masks
    assert config.self_training.max_labels == config.free_mask.max_masks
    many = name.endswith("many")
    assert config.free_mask.components == many and (config.free_mask.min_center is None) == many
    pretraining = load_config("configs/densecl.py:tiny" + (",close" if many else "")).model
    for key in ("depth", "width", "stride_in_1x1", "norm"):
        assert config.model.backbone[key] == pretraining.backbone[key]


def test_many_weighs_means_unless_there_are_none():
    weights = {
        name: load_config(f"{FILE}:tiny,many,{name}").loss.mean_projection_weight
        for name in ("weak", "no_mean", "full")
    }
    assert weights == {"weak": 1.0, "no_mean": 0.0, "full": 0.0}


@pytest.mark.parametrize(
    "name",
    [
        "freesolo.py:many",
        "freesolo.py:r101,many",
        "freesolo.py:tiny,many,supervised",
        "densecl.py:coco,close",
    ],
)
def test_variants_for_tiny_are_for_tiny_alone(name):
    with pytest.raises(InputError, match="write tiny,(many|close)"):
        load_config(f"configs/{name}")


def test_fine_tuning_schedules():
    """Thesis 6.3.1."""
    schedules = {"images5": (20_000, (12_000, 18_000)), "masks10": (90_000, (60_000, 80_000))}
    for part, expected in schedules.items():
        config = load_config(f"{FILE}:finetune_{part}")
        steps = config.train.total_steps
        assert (steps, milestone_steps(config, steps)) == expected
        assert scaled_learning_rate(config) == 0.01
        assert config.data.train_annotations == f"annotations/instances_train2017_{part}.json"
    assert load_config(f"{FILE}:finetune_tiny").train.total_steps == 150


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.batch_size=15", "in pairs, give an even one"),
        ("free_mask.scales=1.0,2.0", "give numbers up to 1"),
        ("evaluation.class_agnostic=false", "must be true"),
        ("model.num_classes=2", "there is one class"),
        ("data.format=records", "data.format"),
        ("model.head.kind=solo", "model.head.kind"),
        ("strong.blur_sigma=2.0,1.0", "must not be above"),
        ("self_training.max_width=1.5", "from 0 to 1"),
        ("loss.semantics=theses", "did you mean thesis"),
    ],
)
def test_what_makes_no_sense_is_refused(override, message):
    with pytest.raises(InputError, match=message):
        load_config(f"{FILE}:tiny", [f"--config.{override}"])


def test_two_starts_are_refused():
    paths = ["--config.model.checkpoint=a", "--config.model.backbone.checkpoint=b"]
    with pytest.raises(InputError, match="it has a backbone"):
        load_config("configs/solov2.py", paths)


@functools.cache
def shapes_of_step(spec):
    config = load_config(spec)
    task = build_task(config, 1)
    optimizer, schedule = build_optimizer(config, 1000)
    row = empty_example((160, 256), config.data.max_instances, (), embedding_width(config))
    batch = stack_examples([row] * 2)
    key = jax.random.key(0)
    state = jax.eval_shape(lambda key: create_state(task, optimizer, key, batch), key)
    return state, *jax.eval_shape(make_train_step(task, optimizer, schedule=schedule), state, batch)


@pytest.mark.parametrize(
    "spec", [f"{FILE}:tiny", f"{FILE}:tiny,many", f"{FILE}:tiny,full,no_semantic"]
)
def test_the_whole_training_step_has_the_right_shapes(spec):
    before, after, metrics = shapes_of_step(spec)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)
    assert all((value.shape, value.dtype) == ((), np.float32) for value in metrics.values())
    full = "full" in spec
    assert ("loss/semantic" in metrics) is not full
    assert ("embedding_pred" in before.params["head"]) is not full
    names = {name for name in metrics if name.startswith("loss/")} - {"loss/semantic"}
    weak = {"loss/max_projection", "loss/mean_projection", "loss/pairwise"}
    assert names == ({"loss/mask"} if full else weak) | {"loss/category"}
    assert before.params["head"]["category_pred"]["kernel"].shape[-1] == 1

"""A stage goes on with the training that has begun in its folder, and with no other."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from helpers.photos import write_photos

from solojax.builders.segmentation import build_task
from solojax.config import load_config, to_json
from solojax.config.schema import flatten, known_keys
from solojax.data import label_file
from solojax.errors import InputError
from solojax.free_solo import chain, stage_checks
from solojax.free_solo.free_masks import load_photos
from solojax.free_solo.pseudo_labels import LabelSummary
from solojax.free_solo.stage_checks import check_settings, check_start, starting_weights
from solojax.free_solo.stages import Stages
from solojax.inference.segmenter import variable_shapes
from solojax.train.checkpoints import Checkpointer

SOLO, DENSE = "configs/freesolo.py:tiny", "configs/densecl.py:tiny"
NETWORK = [
    "model.backbone.width=16", "model.neck.channels=32", "model.head.channels=32",
    "model.mask_features.out_channels=32",
]  # fmt: skip


def config_of(spec, *overrides):
    return load_config(spec, [f"--config.{override}" for override in overrides])


def save(folder, config, step=3, state=None, **metadata):
    """A checkpoint of the config, as training leaves it; returns the folder."""
    with Checkpointer(folder / "checkpoints") as checkpointer:
        state = {"params": {"a": np.zeros(2, np.float32)}} if state is None else state
        checkpointer.save(step, state, {"config": to_json(config), **metadata})
    return folder


@pytest.mark.parametrize(
    ("spec", "override", "shown"),
    [
        (SOLO, "seed=1", "seed 1 (was 0)"),
        (SOLO, "loss.pairwise_weight=0.5", "loss.pairwise_weight 0.5 (was 1.0)"),
        (SOLO, "optimizer.learning_rate=0.1", "optimizer.learning_rate 0.1 (was 0.001)"),
        (SOLO, "strong.paste=false", "strong.paste False (was True)"),
        (SOLO, "data.short_sides=96,", "data.short_sides (96,) (was (320,))"),
        (SOLO, "model.max_positives=9", "model.max_positives 9 (was 192)"),
        (SOLO, "train.ema_decay=0.9", "train.ema_decay 0.9 (was None)"),
        (SOLO, "train.accumulate_steps=2", "train.accumulate_steps 2 (was 1)"),  # batch_norm
        (SOLO, "train.total_steps=249", "train.total_steps 249 (was 250)"),
        (DENSE, "contrast.temperature=0.1", "contrast.temperature 0.1 (was 0.2)"),
    ],
)
def test_settings_that_decide_are_refused_with_both_values(tmp_path, spec, override, shown):
    folder = save(tmp_path / "round0", config_of(spec))
    check_settings(folder, config_of(spec))
    with pytest.raises(InputError) as caught:
        check_settings(folder, config_of(spec, override))
    line = str(caught.value)
    assert line.startswith(f"{folder}: ") and f", {shown}: give the former settings" in line
    assert "another --workdir, or remove this folder" in line and "\n" not in line


def test_another_variant_names_some_keys_and_counts_the_others(tmp_path):
    folder = save(tmp_path / "backbone", config_of(DENSE))
    with pytest.raises(
        InputError, match=r"of now, .*norm_group_images 8 \(was 32\).* and 4 more: "
    ):
        check_settings(folder, config_of(f"{DENSE},close"))


OTHER_VALUES = {bool: lambda x: not x, int: lambda x: (x or 0) + 1, float: lambda x: (x or 0) + 1,
                str: lambda x: f"{x}x", tuple: lambda x: (*x, 5)}  # fmt: skip


@pytest.mark.parametrize("spec", [SOLO, DENSE])
def test_what_changes_no_training_may_be_changed_and_nothing_else(tmp_path, spec):
    """Every key, each to another value of its kind; a new key decides until it is said not to."""
    config = load_config(spec)
    folder, decide = save(tmp_path, config), set()
    for key, kind in known_keys(config.task).items():
        changed = load_config(spec)
        group, _, name = key.rpartition(".")
        target = changed[group] if group else changed
        target[name] = OTHER_VALUES[kind.kind](flatten(config)[key])
        try:
            check_settings(folder, changed)
        except InputError:
            decide.add(key)
    free = known_keys(config.task).keys() - decide
    loading = {f"data.{name}" for name in ("root", "format", "train_annotations", "train_images",
               "train_split", "threads", "workers", "prefetch")}  # fmt: skip
    pace = {f"train.{name}" for name in ("total_steps", "epochs", "log_every", "eval_every",
            "eval_every_epochs", "checkpoint_every", "keep_checkpoints", "best_metric", "remat",
            "shard_optimizer")}  # fmt: skip
    own = {"contrast.shard_queues"}
    if spec == SOLO:
        own = {key for key in free if key.startswith(("evaluation.", "free_mask.", "self_"))}
        own |= {f"data.val_{name}" for name in ("annotations", "images", "split")}
        own |= {"model.checkpoint"}
        assert len(own) > 30
    assert free == loading | pace | own | {"model.backbone.checkpoint"}


def test_a_run_may_become_longer_in_its_own_measure(tmp_path):
    steps = save(tmp_path / "a", config_of(SOLO, "train.total_steps=250", "train.epochs=3"))
    check_settings(steps, config_of(SOLO, "train.total_steps=300", "train.epochs=2"))
    epochs = save(tmp_path / "b", config_of(SOLO, "train.total_steps=none", "train.epochs=3"))
    check_settings(epochs, config_of(SOLO, "train.total_steps=none", "train.epochs=4"))
    for folder, total, count in ((epochs, "none", 2), (epochs, 9, 3), (steps, "none", 9)):
        with pytest.raises(InputError, match="train.(epochs|total_steps) "):
            check_settings(
                folder, config_of(SOLO, f"train.total_steps={total}", f"train.epochs={count}")
            )


def test_what_others_were_made_of_does_not_become_longer(tmp_path):
    """It would train, and what was made of it would be refused after that."""
    folder, longer = save(tmp_path / "round0", config_of(SOLO)), "train.total_steps=300"
    check_settings(folder, config_of(SOLO, longer), [tmp_path / "labels1.json"])
    (tmp_path / "labels1.json").write_text("")
    with pytest.raises(InputError, match=r"train.total_steps 300 \(was 250\): give the former"):
        check_settings(folder, config_of(SOLO, longer), [tmp_path / "labels1.json"])
    check_settings(folder, config_of(SOLO), [tmp_path / "labels1.json"])


def test_micro_batches_are_free_where_no_norm_looks_across_images(tmp_path):
    norm = "model.backbone.norm=frozen_batch_norm"
    check_settings(save(tmp_path, config_of(SOLO, norm)),
                   config_of(SOLO, norm, "train.accumulate_steps=2"))  # fmt: skip


def test_the_newest_checkpoint_that_can_be_read_decides(tmp_path):
    check_settings(tmp_path / "absent", config_of(SOLO))
    folder = save(tmp_path / "w", config_of(SOLO, "seed=1"))
    (folder / "config.json").write_text(to_json(config_of(SOLO, "seed=3")))  # of no checkpoint
    save(folder, config_of(SOLO, "seed=2"), step=4)
    check_settings(folder, config_of(SOLO, "seed=2"))
    (folder / "checkpoints" / "4" / "metadata" / "metadata").write_text("{")
    check_settings(folder, config_of(SOLO, "seed=1"))
    (folder / "checkpoints" / "3" / "metadata" / "metadata").write_text("{")
    check_settings(folder, config_of(SOLO))  # it starts anew


def test_every_process_refuses_what_the_first_one_has_found(tmp_path, monkeypatch):
    """Another host may not see the folder yet."""
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(stage_checks, "gather_json", lambda own: [f"found; not {own}", own])
    with pytest.raises(InputError, match="^found; not None$"):
        check_settings(tmp_path, config_of(SOLO))
    with pytest.raises(InputError, match="^found; not None$"):
        check_start(tmp_path, config_of(SOLO), "")


def test_a_checkpoint_that_does_not_tell_is_refused(tmp_path):
    with Checkpointer(tmp_path / "checkpoints") as checkpointer:
        checkpointer.save(1, {"params": {"a": np.zeros(2)}}, {})
    with pytest.raises(InputError, match="does not say what it was trained with"):
        check_settings(tmp_path, config_of(SOLO))


def save_network(folder, value):
    """A run of the small segmenter, each of its weights this number."""
    config = config_of(SOLO, *NETWORK)
    shapes = variable_shapes(build_task(config, 1))
    state = jax.tree.map(lambda x: np.full(x.shape, value, x.dtype), dict(shapes))
    return save(folder, config, state=state)


@pytest.mark.parametrize("key", ["model.checkpoint", "model.backbone.checkpoint"])
def test_the_weights_that_a_training_starts_from_are_told_apart(tmp_path, key):
    """By their values: where they are is nothing."""
    found = [
        starting_weights(config_of(SOLO, *NETWORK, f"{key}={save_network(tmp_path / name, value)}"))
        for name, value in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert found[0] == found[1] != found[2]
    assert starting_weights(config_of(SOLO)) == ""


def test_pretraining_starts_from_weights_as_well(tmp_path):
    small = ["model.backbone.width=16", "model.backbone.norm_group_images=4"]
    for name, value in (("a", 1), ("c", 2)):
        save_network(tmp_path / name, value)
    one, other = (
        starting_weights(config_of(DENSE, *small, f"model.backbone.checkpoint={tmp_path / name}"))
        for name in ("a", "c")
    )
    assert one and one != other


def test_other_weights_to_start_from_are_refused(tmp_path):
    before, now = (config_of(SOLO, f"model.backbone.checkpoint={name}.pth") for name in "ab")
    folder = save(tmp_path / "told", before, start="f" * 16)
    check_start(folder, now, "f" * 16)  # moved
    with pytest.raises(InputError, match="of a.pth, than those of b.pth .* remove this folder"):
        check_start(folder, now, "e" * 16)
    folder = save(tmp_path / "untold", before)
    check_start(folder, before, "e" * 16)
    with pytest.raises(InputError, match="other weights, of a.pth"):
        check_start(folder, now, "e" * 16)
    check_start(tmp_path / "absent", now, "e" * 16)


@pytest.fixture
def run_chain(tmp_path, monkeypatch):
    """A function that runs a chain whose trainings only leave a checkpoint; what they trained."""
    folder, trained = write_photos(tmp_path / "photos"), []
    dataset, _ = load_photos(folder)

    def train(config, workdir, metadata):
        trained.append(workdir.name)
        if not (workdir / "checkpoints").exists():
            save(workdir, config, **metadata)

    nothing = LabelSummary(0, 0, 0)
    monkeypatch.setattr(chain, "run_training", train)
    monkeypatch.setattr(
        chain, "starting_weights", lambda config: config.model.backbone.checkpoint[-1:]
    )
    monkeypatch.setattr(chain, "_check_masks", lambda *_: None)
    monkeypatch.setattr(chain, "_find_masks", lambda *_: (nothing, dataset, ()))
    monkeypatch.setattr(chain, "_label", lambda *_: nothing)
    monkeypatch.setattr(chain, "_predict", lambda *_: nothing)

    def run(*overrides, pretraining=DENSE, backbone=None, masks=None):
        trained.clear()
        config = config_of(SOLO, *overrides)
        stages = Stages(tmp_path / "w", config.self_training.rounds, masks)
        first = load_config(pretraining) if backbone is None else None
        chain.run_free_solo(config, dataset, stages, backbone=backbone, pretraining=first)

    return run, trained


def test_a_chain_goes_on_only_with_the_settings_it_began_with(tmp_path, run_chain):
    run, trained = run_chain
    run()
    assert trained == ["backbone", "round0", "round1"]
    run("data.threads=3", "evaluation.sigma=1.0", "train.total_steps=400")
    assert trained == ["backbone", "round0", "round1"]
    with pytest.raises(InputError, match=r"w/backbone: .*train.batch_size 16 \(was 64\)"):
        run(pretraining=f"{DENSE},close")
    with pytest.raises(InputError, match=r"w/round0: .*loss.mask_weight 1.0 \(was 0.0\)"):
        run("loss.mask_weight=1.0")
    assert not trained
    (tmp_path / "w" / "round0").rename(tmp_path / "away")
    with pytest.raises(InputError, match=r"w/round1: .*loss.mask_weight 1.0"):
        run("loss.mask_weight=1.0")  # said before round 0 is trained in vain
    assert not trained


def test_rounds_that_start_from_different_backbones_are_refused(tmp_path, run_chain):
    run, trained = run_chain
    folder, masks = tmp_path / "photos", tmp_path / "masks.json"
    dataset, _ = load_photos(folder)
    info = label_file.LabelInfo("f" * 16, {}, "elsewhere")
    images = label_file.image_entries(dataset.images)
    label_file.write(masks, images=images, annotations=[], info=info)
    run("self_training.rounds=0", backbone="one/a", masks=masks)
    run(backbone="moved/a", masks=masks)
    assert trained == ["round0", "round1"]
    with pytest.raises(InputError, match="w/round0: its training started from other weights"):
        run(backbone="one/b", masks=masks)
    assert not trained

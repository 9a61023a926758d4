"""DenseCL as a run: images in a folder, training, resuming, and its backbone in a segmenter."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest
from helpers.photos import write_noise
from helpers.small_densecl import use_small_backbone

from solojax.cli.main import main
from solojax.config import base_config, load_config
from solojax.errors import InputError
from solojax.inference.segmenter import load
from solojax.runs.contrast import contrast_run, doubts
from solojax.runs.pretrained import start_from_backbone
from solojax.runs.training import run_training
from solojax.train.checkpoints import load_variables
from solojax.train.metric_writer import read_metrics
from solojax.train.sharding import make_mesh

OVERRIDES = (
    "--config.views.size=(32,32)",
    "--config.model.backbone.norm_group_images=2",
    "--config.model.hidden_channels=8",
    "--config.model.embedding=8",
    "--config.model.grid=(2,2)",
    "--config.contrast.queue_length=8",
    "--config.train.batch_size=4",
    "--config.train.total_steps=2",
    "--config.train.log_every=1",
    "--config.train.checkpoint_every=1",
    "--config.data.threads=1",
)


def small_config(root, *more):
    return load_config("configs/densecl.py:tiny", [*OVERRIDES, f"--config.data.root={root}", *more])


@pytest.fixture(scope="module", autouse=True)
def small_backbone():
    """Two convolutions in the place of the ResNet, which takes most of a minute to compile."""
    with pytest.MonkeyPatch.context() as patch:
        use_small_backbone(patch)
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_noise(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    state = run_training(small_config(photos), workdir)
    return workdir, state


def test_both_losses_are_logged(finished):
    workdir, _ = finished
    _, lines = read_metrics(workdir)
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        mean = (line["loss/global"] + line["loss/dense"]) / 2
        assert line["loss"] == pytest.approx(mean, rel=1e-6)


def test_a_run_that_was_stopped_ends_with_the_same_bits(finished, photos, tmp_path):
    workdir, state = finished
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    again = run_training(small_config(photos), tmp_path)
    for ours, wanted in zip(
        jax.tree.leaves((again.params, again.extra)),
        jax.tree.leaves((state.params, state.extra)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, wanted)
    # With its seconds: the first step is the stopped run's.
    assert read_metrics(tmp_path)[1][0] == read_metrics(workdir)[1][0]


def test_other_images_are_refused(finished, photos, tmp_path):
    workdir, _ = finished
    for index in range(5):
        (tmp_path / f"{index}.png").write_bytes((photos / "0.png").read_bytes())
    with pytest.raises(InputError, match="its images are not those"):
        run_training(small_config(tmp_path, "--config.train.total_steps=3"), workdir)


def test_images_none_of_which_can_be_read_are_refused(photos, tmp_path):
    for index in range(40):
        (tmp_path / f"{index:02}.png").write_bytes(b"")
    with pytest.raises(InputError, match="none of 32 images tried.*00.png: the image"):
        run_training(small_config(tmp_path), tmp_path / "run")
    shutil.copy(photos / "0.png", tmp_path / "39.png")
    contrast_run(small_config(tmp_path), make_mesh())


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            ["train.batch_size=32"],
            ["contrast.shuffle does nothing", "batch of 32", "half of train"],
        ),
        (["model.backbone.norm_group_images=0"], ["contrast.shuffle does nothing", "batch of 64"]),
        (["model.grid=(3,4)"], ["grid of 3x4 out of a 3x3 map", "no larger than 3x3"]),
        (["contrast.dense_weight=1.0"], ["dense_weight=1 ", "contrast.dense_warmup_steps"]),
    ],
)
def test_what_is_hardly_meant_is_told_with_what_to_do(changes, parts):
    words = [f"--config.{change}" for change in changes]
    (line,) = doubts(load_config("configs/densecl.py:tiny", words))
    assert all(part in line for part in parts) and "\n" not in line, line


@pytest.mark.parametrize(
    ("variants", "changes"),
    [
        ("imagenet", []),
        ("imagenet", ["model.grid=(7,7)"]),
        ("tiny", ["train.batch_size=32", "contrast.shuffle=False"]),
        ("tiny", ["train.batch_size=32", "model.backbone.norm=group_norm"]),
        ("tiny", ["contrast.dense_weight=1.0", "contrast.dense_warmup_steps=10"]),
        ("tiny", ["contrast.dense_weight=1.0", "model.backbone.checkpoint=r18.pth"]),
        ("tiny,moco", ["model.grid=(9,9)"]),
    ],
)
def test_what_may_be_meant_is_left_alone(variants, changes):
    words = [f"--config.{change}" for change in changes]
    assert doubts(load_config(f"configs/densecl.py:{variants}", words)) == ()


def test_a_run_warns_once_and_then_does_as_it_is_told(photos, caplog):
    config = small_config(photos, "--config.train.batch_size=2", "--config.model.grid=(1,1)")
    run = contrast_run(config, make_mesh(jax.devices()[:1]))
    assert run.task.shuffle is None
    (record,) = (each for each in caplog.records if each.levelname == "WARNING")
    assert record.getMessage().startswith("warning: contrast.shuffle does nothing")


def test_what_segments_says_that_it_is_no_segmenter(finished, capsys):
    workdir, _ = finished
    with pytest.raises(InputError, match="densecl run.*--config.model.backbone.checkpoint="):
        load(workdir)
    assert main(["demo", "--workdir", "unused", "--config", "configs/densecl.py:tiny"]) == 2
    assert "is for densecl, and this verb for instance segmentation" in capsys.readouterr().err


def segmenter_config(workdir, **backbone):
    config = base_config()
    config.model.backbone.update({"depth": 18, "width": 8, "norm": "batch_norm"} | backbone)
    config.model.backbone.checkpoint = str(workdir)
    return config


def test_a_segmenter_starts_from_its_backbone(finished):
    workdir, _ = finished
    trained = load_variables(workdir)
    head = {"kernel": np.ones(2)}
    blank = [
        {"backbone": jax.tree.map(np.zeros_like, tree["backbone"]), "head": head}
        for tree in (trained.params, trained.batch_stats)
    ]
    params, stats = start_from_backbone(*blank, segmenter_config(workdir))
    assert params["head"] is head
    jax.tree.map(
        np.testing.assert_array_equal,
        (params["backbone"], stats["backbone"]),
        (trained.params["backbone"], trained.batch_stats["backbone"]),
    )


def test_a_backbone_that_does_not_fit_is_refused(finished):
    workdir, _ = finished
    trained = load_variables(workdir)
    config = segmenter_config(workdir)
    config.model.pixel_std = (1.0, 1.0, 1.0)
    with pytest.raises(InputError, match="model.pixel_std"):
        start_from_backbone(trained.params, trained.batch_stats, config)
    wider = dict(
        trained.params, backbone=dict(trained.params["backbone"], layer9_0={"x": np.ones(2)})
    )
    with pytest.raises(InputError, match="1 leaves differ.*layer9_0/x"):
        start_from_backbone(wider, trained.batch_stats, segmenter_config(workdir))

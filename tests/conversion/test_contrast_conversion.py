"""A checkpoint of contrastive pre-training as files of other systems, and as a backbone here."""

from __future__ import annotations

import pickle

import jax
import numpy as np
import pytest
from helpers import foreign_states as foreign
from helpers.tiny_run import call, refusal

from solojax.config import base_config, load_config, to_json
from solojax.costs.workloads import training_parts
from solojax.errors import InputError
from solojax.interop.files import read_state
from solojax.interop.load import open_checkpoint
from solojax.interop.trees import flatten
from solojax.runs.pretrained import start_from_backbone
from solojax.train.checkpoints import Checkpointer, load_variables

# The sizes of `foreign_states`: 4 channels in the first stage, 16 hidden, 24 keys in a queue.
CHANGES = (
    "--config.model.backbone.width=4",
    "--config.model.backbone.norm_group_images=4",
    "--config.model.hidden_channels=16",
    "--config.contrast.queue_length=24",
    "--config.train.batch_size=8",
)


def write_run(folder, *changes):
    """A checkpoint of noise, as a run of R18 would have left it at step 3."""
    config = load_config("configs/densecl.py:tiny", [*CHANGES, *changes])
    shapes = training_parts(config, 8, (64, 64)).abstract_state()
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(x.dtype), shapes)
    with Checkpointer(folder / "checkpoints", asynchronous=False) as checkpointer:
        checkpointer.save(3, state, {"config": to_json(config)}, wait=True)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


def convert(run, path, layout, *words):
    return call("convert", "--checkpoint", run, "--output", path, "--layout", layout, *words)


def assert_same(ours, theirs):
    ours, theirs = flatten(ours), flatten(theirs)
    assert ours.keys() == theirs.keys() and ours
    for path, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[path], err_msg="/".join(path))


@pytest.mark.parametrize(
    "layout, suffix, shapes",
    [
        ("torchvision", "pth", foreign.resnet()),
        ("torchvision", "safetensors", foreign.resnet()),
        ("openmmlab-backbone", "pth", foreign.prefixed("backbone.", foreign.resnet())),
        ("detectron2", "pkl", foreign.detectron2_resnet()),
        ("moco", "pth", foreign.prefixed("module.", foreign.moco(2))),
        ("densecl", "pth", foreign.densecl()),
        ("mmselfsup", "pth", foreign.mmselfsup()),
    ],
)
def test_every_layout_has_the_names_and_shapes_of_its_system(run, tmp_path, layout, suffix, shapes):
    path = tmp_path / f"file.{suffix}"
    outcome = convert(run, path, layout)
    assert outcome.code == 0 and "R18, densecl, step 3" in outcome.out, outcome
    if suffix == "pkl":
        written = pickle.loads(path.read_bytes())["model"]
        np.testing.assert_allclose(written.pop("pixel_mean").ravel(), [123.675, 116.28, 103.53])
        np.testing.assert_allclose(written.pop("pixel_std").ravel(), [58.395, 57.12, 57.375])
    else:
        written = read_state(path).arrays
    # What PyTorch counts for itself, and what the published code keeps twice.
    expected = {
        name: shape
        for name, shape in foreign.without_counters(shapes).items()
        if name != "encoder_k.steps" and not (layout == "densecl" and name.startswith("backbone."))
    }
    prefix = "" if "module.conv1.weight" not in written else "module."
    found = {prefix + name: tuple(np.shape(array)) for name, array in written.items()}
    if layout == "moco":  # `read_state` takes the prefix of DataParallel off
        expected = {name.removeprefix("module."): shape for name, shape in expected.items()}
    assert found == expected
    backbone = open_checkpoint(path).variables
    trained = load_variables(run)
    assert_same(backbone["params"]["backbone"], trained.params["backbone"])
    assert_same(backbone["batch_stats"]["backbone"], trained.batch_stats["backbone"])


def test_the_whole_of_it_comes_back_out_of_the_published_layout(run, tmp_path):
    assert convert(run, tmp_path / "full.pth", "densecl").code == 0
    found, trained = open_checkpoint(tmp_path / "full.pth"), load_variables(run, extra=True)
    assert_same(
        found.variables,
        {"params": trained.params, "batch_stats": trained.batch_stats, **trained.extra},
    )


def test_moco_keeps_the_global_half(run, tmp_path):
    assert convert(run, tmp_path / "moco.pth", "moco").code == 0
    found, trained = open_checkpoint(tmp_path / "moco.pth"), load_variables(run, extra=True)
    for collection, ours in (("params", trained.params), ("key_params", trained.extra)):
        neck = (ours if collection == "params" else ours["key_params"])["neck"]
        half = {name: leaf for name, leaf in neck.items() if name.startswith("global")}
        assert_same(found.variables[collection]["neck"], half)
    queues = trained.extra["queues"]
    assert_same(found.variables["queues"], {"global": queues["global"]})


@pytest.mark.parametrize("layout, suffix", [("torchvision", "pth"), ("detectron2", "pkl")])
def test_the_file_and_the_run_start_a_segmenter_alike(run, tmp_path, layout, suffix):
    path = tmp_path / f"backbone.{suffix}"
    assert convert(run, path, layout).code == 0
    trained, config = load_variables(run), base_config()
    config.model.backbone.update({"depth": 18, "width": 4})
    blank = jax.tree.map(
        np.zeros_like,
        [{"backbone": tree["backbone"]} for tree in (trained.params, trained.batch_stats)],
    )
    started = []
    for source in (run, path):
        config.model.backbone.checkpoint = str(source)
        started.append(start_from_backbone(*blank, config))
    for ours, theirs in zip(*started, strict=True):
        assert_same(ours, theirs)
    assert_same(started[0][0]["backbone"], trained.params["backbone"])


def test_another_normalisation_goes_with_the_file_and_is_held_against_the_config(tmp_path):
    run = write_run(tmp_path / "run", "--config.model.pixel_std=(1.0,1.0,1.0)")
    path = tmp_path / "backbone.pth"
    assert convert(run, path, "torchvision").code == 0
    assert np.ravel(read_state(path).arrays["pixel_std"]).tolist() == [1, 1, 1]
    trained, config = load_variables(run), base_config()
    config.model.backbone.update({"depth": 18, "width": 4})
    for source in (run, path):
        config.model.backbone.checkpoint = str(source)
        with pytest.raises(InputError, match="model.pixel_std"):
            start_from_backbone(trained.params, trained.batch_stats, config)


def test_what_does_not_make_sense(run, tmp_path):
    words = ("convert", "--checkpoint", run)
    refusal(call(*words, "--output", tmp_path / "a.pth"), "--layout", "torchvision")
    refusal(call(*words, "--output", tmp_path / "folder"), "a backbone alone makes no model")
    refusal(convert(run, tmp_path / "a.pth", "torchvision", "--step", "4"), "'4'", "[3]")
    refusal(
        convert(run, tmp_path / "a.pth", "torchvision", "--config.model.pixel_std=(1.0,1.0,1.0)"),
        "leave --config and its changes out",
    )
    refusal(convert(run, tmp_path / "a.pth", "mmdet-v1-solov2"), "mmdet")
    assert not (tmp_path / "a.pth").exists()

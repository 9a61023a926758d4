"""`solojax convert`: PyTorch's files in and out, recorded outputs, and bad input."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import foreign_states as foreign
from helpers.golden import load_arrays, seeded_state
from helpers.tiny_run import call, refusal

from solojax.inference import load
from solojax.interop.layouts import layout_named
from solojax.interop.load import open_checkpoint
from solojax.interop.torch_zip_writer import write_torch_zip
from solojax.interop.trees import flatten

HEAD = {"c": 32, "convs": 2, "classes": 3}
BODY = {"depth": 18, "width": 8}


@pytest.fixture
def network(tmp_path):
    """A small SOLOv2 in mmdet's layout, with the names of its classes."""
    path = tmp_path / "solov2.pth"
    state = foreign.fill(foreign.openmmlab("solov2", head=HEAD, **BODY))
    write_torch_zip(path, {"state_dict": state, "meta": {"CLASSES": ("cat", "dog", "cow")}})
    return path


@pytest.fixture
def backbone(tmp_path):
    path = tmp_path / "r18.pth"
    write_torch_zip(path, foreign.fill(foreign.resnet(**BODY)))
    return path


def assert_same(ours, theirs):
    ours, theirs = flatten(ours), flatten(theirs)
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        np.testing.assert_array_equal(np.asarray(leaf), theirs[path], err_msg="/".join(path))


def test_a_file_becomes_a_checkpoint_and_the_checkpoint_a_file(network, tmp_path):
    found = open_checkpoint(network)
    outcome = call("convert", "--checkpoint", network, "--output", tmp_path / "run")
    assert outcome.code == 0, outcome
    assert "SOLOv2 of mmdet v1, R18, 3 classes" in outcome.out
    model = load(tmp_path / "run")
    assert_same(model.variables, found.variables)
    assert model.names == {1: "cat", 2: "dog", 3: "cow"}
    assert model.config.model.head.channels == 32 and model.config.evaluation.short_side == 448

    for layout in ("adelaidet", "mmdet-solov2", "torchvision"):
        path = tmp_path / "new" / f"{layout}.pth"
        words = ("--checkpoint", tmp_path / "run", "--output", path, "--layout", layout)
        outcome = call("convert", *words)
        assert outcome.code == 0, outcome
        again = open_checkpoint(path)
        assert again.layout is layout_named(layout)
        if layout != "torchvision":
            assert_same(again.variables, found.variables)
        assert_same(again.variables["params"]["backbone"], found.variables["params"]["backbone"])


def test_a_backbone_in_another_layout(backbone, tmp_path):
    path = tmp_path / "r18.pkl"
    outcome = call("convert", "--checkpoint", backbone, "--output", path, "--layout", "detectron2")
    assert outcome.code == 0, outcome
    assert_same(open_checkpoint(path).variables, open_checkpoint(backbone).variables)


def test_the_published_outputs(tmp_path):
    """AdelaiDet's recorded heads, through the file, the layout, the config and the network."""
    path, outputs = tmp_path / "adelaidet.pth", tmp_path / "outputs.npz"
    write_torch_zip(path, {"model": seeded_state("solov2_adet/small_state_shapes.json")})
    inputs = load_arrays("solov2_adet/small_inputs.npz")
    images = [inputs["image0_rgb_hwc"], inputs["image1_rgb_hwc"]]
    canvas = np.zeros((2, 192, 256, 3), np.uint8)
    for row, image in zip(canvas, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    heads = load_arrays("solov2_adet/small_heads.npz")
    stages = {"mask_features": heads["mask_feat"]}
    for level in range(5):
        stages[f"category_l{level}"] = heads[f"cate_pred_L{level}"]
        stages[f"kernels_l{level}"] = heads[f"kernel_pred_L{level}"]
    sizes = [image.shape[:2] for image in images]
    np.savez(outputs, image=canvas, image_size=sizes, layout="NCHW", **stages)
    outcome = call("convert", "--checkpoint", path, "--verify", outputs)
    assert outcome.code == 0, outcome
    assert "11 of 11 stages within 0.0001" in outcome.out and "FAIL" not in outcome.out
    np.savez(outputs, image=canvas, layout="NCHW", **stages)  # the padding's zeros as pixels
    outcome = call("convert", "--checkpoint", path, "--verify", outputs)
    assert outcome.code == 1 and "FAIL" in outcome.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give --output DIR or FILE, --verify OUTPUTS.npz"),
        (("--layout", "adelaidet", "--verify", "x.npz"), "--layout is that of an output file"),
        (("--output", "out.pth", "--layout", "mmdet"), "did you mean"),
        (("--output", "out", "--layout", "adelaidet"), "give a name that ends in .pth"),
        (("--output", "out", "--step", "3"), "--step chooses in a workdir"),
        (("--output", "out", "--stem", "caffe"), "unknown stem 'caffe': use one of"),
        (("--output", "out", "--config.model.backbone.depth=50"), "--config.model.backbone.depth"),
        (("--output", "out", "--config.model.pixel_std=1,1,1"), "pixel_std=58.395,57.12,57.375"),
        (("--verify", "absent.npz"), "is no readable .npz"),
    ],
)
def test_bad_words(network, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    refusal(call("convert", "--checkpoint", network, *words), said)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.pth").exists()


def test_a_backbone_makes_no_model(backbone, tmp_path):
    outcome = call("convert", "--checkpoint", backbone, "--output", tmp_path / "run")
    refusal(outcome, "a backbone alone", "--config.model.backbone.checkpoint=")
    outcome = call("convert", "--checkpoint", backbone, "--verify", tmp_path / "a.npz")
    refusal(outcome, "a backbone alone")


def test_a_layout_without_a_place(network, tmp_path):
    path = tmp_path / "a.pth"
    words = ("--checkpoint", network, "--output", path, "--layout", "mmdet-v1-solo")
    refusal(call("convert", *words), "has no place for params/head/kernel")
    assert not path.exists()


def test_another_format_is_not_made_a_folder(network, tmp_path):
    outcome = call("convert", "--checkpoint", network, "--output", tmp_path / "model.onnx")
    refusal(outcome, ".onnx files cannot be written", ".pth")
    assert not (tmp_path / "model.onnx").exists()


def test_settings_that_a_file_cannot_hold_are_named(network, tmp_path, caplog):
    words = ["--checkpoint", network, "--config.model.grid.num_grids=20,18,12,8,6"]
    outcome = call("convert", *words, "--output", tmp_path / "other.pth")
    assert outcome.code == 0, outcome
    said = [m for m in caplog.messages if "does not tell these settings" in m]
    assert len(said) == 1 and "model.grid.num_grids=(20, 18, 12, 8, 6)" in said[0]
    caplog.clear()
    call("convert", "--checkpoint", network, "--output", tmp_path / "same.pth")
    assert not any("does not tell" in message for message in caplog.messages)

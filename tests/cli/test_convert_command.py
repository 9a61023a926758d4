"""`solojax convert`: PyTorch's files in and out, and bad input.

Recorded outputs are in interop/test_published_files.py.
"""

from __future__ import annotations

import sys

import cv2
import ml_dtypes
import numpy as np
import pytest
from helpers import foreign_states as foreign
from helpers import pickles as p
from helpers.golden import GOLDEN
from helpers.tiny_run import call, refusal

from solojax.inference.segmenter import load
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


def test_what_the_network_has_no_use_for_stays_in_the_file(tmp_path, caplog):
    """FreeSOLO's embeddings, unless the other layout has no place for them."""
    path, same, other = (tmp_path / f"{name}.pth" for name in ("freesolo", "same", "other"))
    shapes = foreign.adelaidet(c=32, classes=2, embedding=True, **BODY)
    write_torch_zip(path, {"model": foreign.fill(shapes)})
    for target, words in ((same, ()), (other, ("--layout", "adelaidet"))):
        outcome = call("convert", "--checkpoint", path, "--output", target, *words)
        assert outcome.code == 0, outcome
    assert_same(open_checkpoint(same).variables, open_checkpoint(path).variables)
    assert "embedding_pred" not in open_checkpoint(other).variables["params"]["head"]
    said = [line for line in caplog.messages if "not read by this network" in line]
    assert len(said) == 2 and "ins_head.emb_pred.weight" in said[0]


def test_a_backbone_in_another_layout(backbone, tmp_path):
    path = tmp_path / "r18.pkl"
    outcome = call("convert", "--checkpoint", backbone, "--output", path, "--layout", "detectron2")
    assert outcome.code == 0, outcome
    assert_same(open_checkpoint(path).variables, open_checkpoint(backbone).variables)


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


# Files that are whole but unusual: read, and said what was done.

VARIANTS = {"float16": np.float16, "float64": np.float64, "bfloat16": ml_dtypes.bfloat16}


def solov2_state(dtype=np.float32):
    return foreign.fill(foreign.openmmlab("solov2", head=HEAD, **BODY), dtype)


def converted(path, tmp_path):
    """The variables of a file after `solojax convert` has read it and written another."""
    target = tmp_path / "converted.safetensors"
    outcome = call("convert", "--checkpoint", path, "--output", target)
    assert outcome.code == 0, outcome
    return open_checkpoint(target).variables


@pytest.mark.parametrize("name", VARIANTS)
def test_other_precisions(tmp_path, caplog, name):
    state = solov2_state(VARIANTS[name])
    path = tmp_path / "other.pth"
    write_torch_zip(path, {"state_dict": state})
    found = converted(path, tmp_path)
    kernel = found["params"]["head"]["kernel_pred"]["kernel"]
    expected = state["bbox_head.solo_kernel.weight"].astype(np.float32).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, expected)
    assert sum(f"tensors of {name} became float32" in line for line in caplog.messages) == 1


def test_the_prefix_of_data_parallel(network, tmp_path, caplog):
    path = tmp_path / "parallel.pth"
    state = {f"module.{name}": tensor for name, tensor in solov2_state().items()}
    write_torch_zip(path, {"state_dict": state})
    assert_same(converted(path, tmp_path), open_checkpoint(network).variables)
    assert sum("the prefix 'module.' of DataParallel" in line for line in caplog.messages) == 1


def test_copies_of_a_moving_average(network, tmp_path, caplog):
    """The weights themselves count, whether copies lie between them or in a dict of their own."""
    state = solov2_state()
    copies = {"ema_" + name.replace(".", "_"): np.ones_like(x) for name, x in state.items()}
    path = tmp_path / "averaged.pth"
    write_torch_zip(path, {"state_dict": state | copies, "ema_state_dict": copies})
    assert_same(converted(path, tmp_path), open_checkpoint(network).variables)
    said = [line for line in caplog.messages if "moving average" in line]
    assert len(said) == 2 and any(f"{len(copies)} tensors called ema_" in line for line in said)


# Files that are refused, in one line each, by whatever reads them.


def touching(path) -> bytes:
    """A pickle that would make a file."""
    return p.call(p.name("os", "system"), p.text(f"touch {path}"))


def cut_short(path):
    state = solov2_state()
    write_torch_zip(path, {"state_dict": state})
    path.write_bytes(path.read_bytes()[:-2000])


def with_quantised_tensors(path):
    state = solov2_state()
    state["bbox_head.solo_cate.weight"] = np.zeros((3, 32, 3, 3), np.int8)
    write_torch_zip(path, {"state_dict": state})


def with_tensors_missing(path):
    state = solov2_state()
    del state["bbox_head.solo_kernel.bias"], state["bbox_head.solo_cate.bias"]
    write_torch_zip(path, {"state_dict": state})


def with_another_width(path):
    head = HEAD | {"c": 64}
    other = foreign.fill(foreign.openmmlab("solov2", head=head, **BODY))
    state = solov2_state()
    state["bbox_head.solo_kernel.weight"] = other["bbox_head.solo_kernel.weight"]
    write_torch_zip(path, {"state_dict": state})


def of_another_system(path):
    names = ("backbone.body.conv1.weight", "rpn.head.conv.weight", "roi_heads.box_head.fc6.weight")
    write_torch_zip(path, {"model": {name: np.zeros((2, 2), np.float32) for name in names}})


def of_a_backbone(path):
    write_torch_zip(path, {"state_dict": foreign.fill(foreign.resnet(**BODY))})


BROKEN = {
    "nothing": (lambda path: path.write_bytes(b""), "it is empty"),
    "a page that says no": (
        lambda path: path.write_text("<!DOCTYPE html><html>403 Forbidden</html>"),
        "no format of weights that is known",
    ),
    "cut short": (cut_short, "fetch or save the file again"),
    "a pickle that runs code": (
        lambda path: path.write_bytes(p.pickle_of(touching(path.with_name("touched")))),
        "os.system, which weights do not need (nothing of it was run)",
    ),
    "an archive that runs code": (
        lambda path: p.write_zip(path, p.mapping(state_dict=touching(path.with_name("touched")))),
        "os.system, which weights do not need (nothing of it was run)",
    ),
    "a whole module": (
        lambda path: path.write_bytes((GOLDEN / "foreign_files/torch_module.pth").read_bytes()),
        "it holds a whole module",
    ),
    "the format from before 1.6": (
        lambda path: path.write_bytes((GOLDEN / "foreign_files/torch_legacy.pth").read_bytes()),
        'pip install "solojax[parity]"',
    ),
    "quantised": (with_quantised_tensors, "not floating point: bbox_head.solo_cate.weight (int8)"),
    "missing": (
        with_tensors_missing,
        "missing: bbox_head.solo_cate.bias, bbox_head.solo_kernel.bias",
    ),
    "misshapen": (with_another_width, "bbox_head.solo_kernel"),
    "another system": (of_another_system, "are of no layout that is known; known are"),
    "a backbone alone": (of_a_backbone, "--config.model.backbone.checkpoint="),
}


@pytest.mark.parametrize("verb", ["convert", "predict"])
@pytest.mark.parametrize("kind", BROKEN)
def test_files_that_are_refused(tmp_path, monkeypatch, kind, verb):
    monkeypatch.setitem(sys.modules, "torch", None)
    make, said = BROKEN[kind]
    path = tmp_path / "file.pth"
    make(path)
    words = ["--output", tmp_path / "out"]
    if verb == "predict":
        cv2.imwrite(str(tmp_path / "image.png"), np.zeros((32, 32, 3), np.uint8))
        words += ["--images", tmp_path / "image.png"]
    outcome = call(verb, "--checkpoint", path, *words)
    refusal(outcome, str(path), said)
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "touched").exists()
    assert not any((tmp_path / "out").rglob("*"))


@pytest.mark.parametrize(
    "key, value, fix",
    [
        ("model.head.kind", "solo", "--config.model.head.kind=solov2"),
        ("model.num_classes", 80, "--config.model.num_classes=3"),
        ("model.backbone.deformable", "v2", "--config.model.backbone.deformable=none"),
        ("model.backbone.stride_in_1x1", True, "stride_in_1x1=False"),
    ],
)
def test_a_checkpoint_of_another_variant(network, tmp_path, key, value, fix):
    words = ["--checkpoint", network, "--output", tmp_path / "out", f"--config.{key}={value}"]
    line = refusal(call("convert", *words), "does not fit the config", key)
    assert fix in line

"""Files for other systems: read back bit for bit, and by PyTorch where it is installed."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
from helpers import foreign_states as foreign

from solojax.config import base_config
from solojax.config.schema import flatten as flatten_config
from solojax.errors import InputError
from solojax.interop.export import export_checkpoint, foreign_state, stem_of_settings
from solojax.interop.layouts import BY_NAME, layout_named
from solojax.interop.load import open_checkpoint, with_stem
from solojax.interop.safetensors_file import write_safetensors
from solojax.interop.stems import MSRA, TORCHVISION
from solojax.interop.trees import flatten

FORMATS = (".pth", ".pkl", ".safetensors")
SMALL = {"depth": 18, "width": 2}


def opened(tmp_path, shapes, name="origin.safetensors"):
    path = tmp_path / name
    write_safetensors(path, foreign.fill(shapes))
    found = open_checkpoint(path)
    return found if found.stem else with_stem(found, TORCHVISION)


def globals_of(pickled):
    """The names that reading a pickle imports."""
    found = set()

    class Reader(pickle.Unpickler):
        def find_class(self, module, name):
            found.add(f"{module}.{name}")
            return super().find_class(module, name)

    Reader(io.BytesIO(pickled)).load()
    return found


def assert_same(ours, theirs):
    ours, theirs = flatten(ours), flatten(theirs)
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        assert leaf.dtype == theirs[path].dtype
        np.testing.assert_array_equal(leaf, theirs[path], err_msg="/".join(path))


@pytest.mark.parametrize("name", BY_NAME)
def test_import_export_import(tmp_path, name):
    """Of every layout, through files, stems included."""
    shapes = next(shapes for key, shapes in foreign.STATES.items() if key[0] == name)
    found = opened(tmp_path, shapes)
    path = tmp_path / "again.pth"
    export_checkpoint(path, found.variables, found.layout, stem=found.stem)
    again = open_checkpoint(path)
    assert again.layout is found.layout
    assert_same(again.variables, found.variables)
    assert again.architecture == found.architecture
    assert again.stem.bgr == found.stem.bgr


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("source", "target"),
    [
        (foreign.openmmlab("solov2"), "adelaidet"),
        (foreign.adelaidet(), "mmdet-v1-solov2"),
        (foreign.adelaidet(depth=50), "mmdet-v1-solov2"),
        (foreign.openmmlab("solov2"), "mmdet-solov2"),
        (foreign.openmmlab("decoupled", foreign.V3), "mmdet-v1-decoupled-solo"),
    ],
)
def test_networks_from_one_layout_to_another(tmp_path, source, target, suffix):
    """What the layout does not tell of the stem goes along in the file."""
    found = opened(tmp_path, source)
    path = tmp_path / f"other{suffix}"
    export_checkpoint(path, found.variables, layout_named(target), stem=found.stem)
    again = open_checkpoint(path)
    assert again.layout.name == target
    assert_same(again.variables, found.variables)
    assert again.architecture == found.architecture


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("stem", [TORCHVISION, MSRA])
@pytest.mark.parametrize("target", ["torchvision", "moco", "detectron2", "openmmlab-backbone"])
def test_backbones_of_whole_networks(tmp_path, target, stem, suffix):
    source = foreign.openmmlab("solo", depth=50, width=2)
    found = with_stem(opened(tmp_path, source), stem)
    path = tmp_path / f"backbone{suffix}"
    export_checkpoint(path, found.variables, layout_named(target), stem=stem)
    again = open_checkpoint(path)
    assert again.is_backbone and again.layout.name == target
    for collection in ("params", "batch_stats"):
        assert_same(
            {"backbone": again.variables[collection]["backbone"]},
            {"backbone": found.variables[collection]["backbone"]},
        )
    assert again.architecture["model.backbone.stride_in_1x1"] == stem.stride_in_1x1
    assert again.architecture["model.pixel_std"] == stem.pixel_std


@pytest.mark.parametrize("source", [foreign.densecl(), foreign.mmselfsup(), foreign.moco(2)])
def test_backbones_of_pretraining(tmp_path, source):
    """What DenseCL releases: the query encoder's backbone, under torchvision's names."""
    found = opened(tmp_path, source)
    assert "key_params" in found.variables
    path = tmp_path / "backbone.pth"
    export_checkpoint(path, found.variables, layout_named("torchvision"), stem=found.stem)
    again = open_checkpoint(path)
    assert again.is_backbone and again.layout.name == "torchvision"
    for collection, leaves in again.variables.items():
        assert_same(leaves, {"backbone": found.variables[collection]["backbone"]})


def test_names_and_values_in_torchvisions_layout():
    """Against the state that the variables came from."""
    shapes = foreign.resnet(depth=50, width=2)
    state = foreign.fill(shapes)
    from solojax.interop.layout import import_state

    variables = import_state(layout_named("torchvision"), state)
    written = foreign_state(variables, layout_named("torchvision"))
    assert set(written) == set(foreign.without_counters(shapes))
    for name, array in written.items():
        np.testing.assert_array_equal(array, state[name])
    moco = foreign_state(variables, layout_named("moco"))
    assert set(moco) == {f"module.encoder_q.{name}" for name in written}
    detectron2 = foreign_state(variables, layout_named("detectron2"))
    assert set(detectron2) == {"pixel_mean", "pixel_std", *foreign.detectron2_resnet(depth=50)}
    assert detectron2["pixel_mean"].ravel().tolist() == pytest.approx(TORCHVISION.pixel_mean)
    msra = foreign_state(variables, layout_named("caffe2"), MSRA)
    np.testing.assert_array_equal(msra["conv1_w"], state["conv1.weight"][:, ::-1])


def test_detectron2s_pickles_are_plain(tmp_path):
    found = opened(tmp_path, foreign.resnet(**SMALL))
    path = tmp_path / "R-18.pkl"
    export_checkpoint(path, found.variables, layout_named("detectron2"), stem=found.stem)
    content = pickle.loads(path.read_bytes())
    assert globals_of(path.read_bytes()) == {
        "numpy.core.multiarray._reconstruct",  # the place that NumPy 1 has too
        "numpy.ndarray",
        "numpy.dtype",
    }
    assert content["matching_heuristics"] is True and "stem.conv1.weight" in content["model"]


def test_class_names_go_along(tmp_path):
    found = opened(tmp_path, foreign.openmmlab("solo", head={"classes": 2}, **SMALL))
    path = tmp_path / "net.pth"
    export_checkpoint(path, found.variables, found.layout, class_names=["cat", "dog"])
    assert open_checkpoint(path).categories == ((1, "cat"), (2, "dog"))


def test_the_same_variables_give_the_same_bytes(tmp_path):
    found = opened(tmp_path, foreign.resnet(**SMALL))
    for suffix in FORMATS:
        paths = [tmp_path / f"{n}{suffix}" for n in (1, 2)]
        for path in paths:
            export_checkpoint(path, found.variables, found.layout)
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_layouts_without_a_place_and_suffixes_without_a_format(tmp_path):
    found = opened(tmp_path, foreign.openmmlab("solo", **SMALL))
    with pytest.raises(InputError, match="AdelaiDet's SOLOv2 has no place for params/head/mask"):
        export_checkpoint(tmp_path / "a.pth", found.variables, layout_named("adelaidet"))
    with pytest.raises(InputError, match="ends in .pth"):
        export_checkpoint(tmp_path / "a.bin", found.variables, found.layout)
    assert not (tmp_path / "a.pth").exists()


def test_the_stem_of_a_config():
    stem = stem_of_settings(flatten_config(base_config()))
    assert stem.pixel_mean == TORCHVISION.pixel_mean and stem.pixel_std == TORCHVISION.pixel_std
    assert not stem.stride_in_1x1 and not stem.bgr


def test_pytorch_reads_what_is_written(tmp_path):
    torch = pytest.importorskip("torch")
    found = opened(tmp_path, foreign.openmmlab("solov2", **SMALL))
    path = tmp_path / "net.pth"
    state = export_checkpoint(path, found.variables, found.layout, class_names=["a"] * 80)
    loaded = torch.load(path, weights_only=True)
    assert loaded["meta"]["CLASSES"] == ("a",) * 80
    assert loaded["state_dict"].keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(loaded["state_dict"][name].numpy(), array)

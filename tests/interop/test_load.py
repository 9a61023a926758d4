"""Whole files: what they are, which config they want, and what is wrong where they do not fit."""

from __future__ import annotations

import re

import numpy as np
import pytest
from helpers import foreign_states as foreign

from solojax.config import base_config
from solojax.config.schema import flatten as flatten_config
from solojax.errors import InputError
from solojax.interop.fitting import check_settings
from solojax.interop.layouts import layout_named
from solojax.interop.load import fit, import_backbone, open_checkpoint, require_whole
from solojax.interop.safetensors_file import write_safetensors
from solojax.interop.trees import flatten, unflatten

IMAGENET = {
    "model.pixel_mean": (123.675, 116.28, 103.53),
    "model.pixel_std": (58.395, 57.12, 57.375),
}
BGR_MEAN = np.array([103.53, 116.28, 123.675], np.float32)


def write(tmp_path, shapes, dtype=np.float32, drop=(), **tensors):
    """A file with tensors of these names, some dropped, some put in or replaced."""
    state = {name: a for name, a in foreign.fill(shapes, dtype).items() if name not in drop}
    state |= {name.replace("__", "."): np.asarray(value) for name, value in tensors.items()}
    path = tmp_path / "file.safetensors"
    write_safetensors(path, state)
    return path, state


def settings(**changes):
    """The values of a config, `model__head__kind` for model.head.kind."""
    values = flatten_config(base_config())
    return values | {key.replace("__", "."): value for key, value in changes.items()}


def refusal(function, *args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def shapes_of(variables):
    class Shape:
        def __init__(self, shape):
            self.shape = shape

    return unflatten({path: Shape(leaf.shape) for path, leaf in flatten(variables).items()})


@pytest.mark.parametrize("kind", foreign.KINDS)
@pytest.mark.parametrize("names", [foreign.V1, foreign.V3], ids=["v1", "v3"])
def test_networks_of_openmmlab(tmp_path, kind, names):
    head = {"convs": 3, "classes": 7, "grids": (10, 9, 6, 4, 3), "offsets": 18}
    path, _ = write(tmp_path, foreign.openmmlab(kind, names, head, depth=50, offsets=27))
    found = open_checkpoint(path)
    wanted = {
        "model.head.kind": kind,
        "model.head.num_convs": 3,
        "model.head.channels": 8,
        "model.head.num_coordinate_convs": 1,
        "model.head.deformable": "v1",
        "model.num_classes": 7,
        "model.neck.channels": 8,
        "model.backbone.depth": 50,
        "model.backbone.width": 4,
        "model.backbone.deformable": "v2",
        "model.backbone.deformable_stages": (2, 3, 4),
        "model.backbone.groups": 1,
        "model.backbone.base_width": 64,
        "model.backbone.stride_in_1x1": False,
    } | IMAGENET
    if kind == "solov2":
        wanted |= {
            "model.mask_features.kind": "unified",
            "model.mask_features.kernel_size": 1,
            "model.mask_features.deformable": "none",
            "model.mask_features.channels": 8,
            "model.mask_features.out_channels": 8,
            "model.mask_features.coordinates": True,
        }
    else:
        wanted["model.grid.num_grids"] = (10, 9, 6, 4, 3)
    assert found.architecture == wanted
    assert found.published["data.pad_before_shrinking"]
    assert found.categories == tuple((i, f"class {i}") for i in range(1, 8))
    assert not found.is_backbone


@pytest.mark.parametrize("depth", foreign.BLOCKS)
def test_depths(tmp_path, depth):
    path, _ = write(tmp_path, foreign.resnet(depth=depth, width=2))
    found = open_checkpoint(path)
    assert found.architecture["model.backbone.depth"] == depth
    assert found.is_backbone and found.categories == ()


def test_resnext(tmp_path):
    path, _ = write(tmp_path, foreign.resnet(depth=50, width=4, group_width=2))
    architecture = open_checkpoint(path).architecture
    assert architecture["model.backbone.groups"] == 4
    assert architecture["model.backbone.base_width"] == 32  # two channels of a stem's four


def test_deformable_networks_as_published(tmp_path):
    """SOLOv2-R101-DCN: every convolution of the towers and of the mask features, the 1x1 too."""
    shapes = foreign.openmmlab("solov2", depth=50, offsets=27)
    for name, shape in dict(shapes).items():
        if re.match(r"(bbox|mask_feat)_head\..*\.conv\.weight", name):
            channels = 3 * shape[2] * shape[3]
            stem = name.removesuffix("weight") + "conv_offset"
            shapes |= foreign.layer(stem, channels, *shape[1:])
    architecture = open_checkpoint(write(tmp_path, shapes)[0]).architecture
    assert architecture["model.backbone.deformable"] == "v2"
    assert architecture["model.head.deformable"] == "v2"
    assert architecture["model.head.deformable_convs"] == 2
    assert architecture["model.mask_features.deformable"] == "v2"
    assert architecture["model.mask_features.deformable_pred"] is True


def test_unknown_offsets_are_refused(tmp_path):
    path, _ = write(tmp_path, foreign.resnet(depth=50, offsets=72))
    assert "have [72] offset channels; 18 (v1) or 27" in refusal(open_checkpoint, path)


def test_unknown_backbones_are_refused(tmp_path):
    state = foreign.resnet(depth=34, width=2)
    fewer = {name: s for name, s in state.items() if not name.startswith("layer3.5.")}
    path, _ = write(tmp_path, fewer)
    assert "(3, 4, 5, 3) blocks" in refusal(open_checkpoint, path)


@pytest.mark.parametrize(
    ("name", "shapes", "ranges", "sides"),
    [
        ("448", foreign.openmmlab("solov2", head={"convs": 2}), (1, 56), (448, 768)),
        ("512", foreign.openmmlab("solov2", head={"convs": 3}), (1, 64), (512, 852)),
        ("decoupled", foreign.openmmlab("decoupled_light"), (1, 64), (512, 852)),
    ],
)
def test_the_light_models_bring_their_ranges_and_sizes(tmp_path, name, shapes, ranges, sides):
    published = open_checkpoint(write(tmp_path, shapes)[0]).published
    assert published["model.grid.scale_ranges"][0] == ranges
    assert (published["evaluation.short_side"], published["evaluation.long_side"]) == sides


def test_the_full_models_keep_the_sizes_of_the_config(tmp_path):
    path, _ = write(tmp_path, foreign.openmmlab("solov2", head={"convs": 4}))
    found = open_checkpoint(path)
    assert found.published == {
        "model.semantics": "release",
        "model.grid.num_grids": (40, 36, 24, 16, 12),
        "data.pad_before_shrinking": True,
    }
    assert len(found.categories) == 80
    assert found.categories[0] == (1, "person") and found.categories[-1] == (90, "toothbrush")
    assert dict(found.categories)[13] == "stop sign"  # COCO has no 12


def test_stems_that_read_bgr_are_turned_round(tmp_path):
    path, state = write(tmp_path, foreign.STATES["adelaidet", "plain"])
    found = open_checkpoint(path)
    kernel = found.variables["params"]["backbone"]["conv1"]["kernel"]
    wanted = state["backbone.bottom_up.stem.conv1.weight"].transpose(2, 3, 1, 0)[:, :, ::-1]
    np.testing.assert_array_equal(kernel, wanted)
    assert found.architecture["model.pixel_std"] == (1, 1, 1)
    assert found.architecture["model.pixel_mean"] == IMAGENET["model.pixel_mean"]
    assert found.architecture["model.backbone.stride_in_1x1"] is True


def test_blocks_of_two_convolutions_have_one_place_for_the_stride(tmp_path):
    path, _ = write(tmp_path, foreign.adelaidet(depth=18))
    assert open_checkpoint(path).architecture["model.backbone.stride_in_1x1"] is False


def test_the_file_itself_may_say_what_its_stem_expects(tmp_path):
    shapes = foreign.STATES["adelaidet", "plain"]
    rgb = {"pixel_mean": BGR_MEAN[::-1].reshape(3, 1, 1)}
    path, state = write(
        tmp_path, shapes, **rgb, pixel_std=np.array([58.395, 57.12, 57.375], np.float32)
    )
    found = open_checkpoint(path)
    assert found.architecture["model.backbone.stride_in_1x1"] is False
    assert found.architecture["model.pixel_std"] == IMAGENET["model.pixel_std"]
    kernel = found.variables["params"]["backbone"]["conv1"]["kernel"]
    weight = state["backbone.bottom_up.stem.conv1.weight"]
    np.testing.assert_array_equal(kernel, weight.transpose(2, 3, 1, 0))
    path, _ = write(tmp_path, shapes, pixel_mean=BGR_MEAN, pixel_std=np.ones(3, np.float32))
    assert open_checkpoint(path).stem.bgr
    path, _ = write(tmp_path, shapes, pixel_mean=np.zeros(4), pixel_std=np.ones(4))
    assert "which has 3" in refusal(open_checkpoint, path)
    assert not open_checkpoint(write(tmp_path, shapes)[0], stem="torchvision").stem.bgr
    assert "unknown stem 'caffe'" in refusal(open_checkpoint, path, stem="caffe")


def test_freesolo(tmp_path):
    path, _ = write(tmp_path, foreign.STATES["freesolo", "plain"])
    found = open_checkpoint(path)
    assert found.categories == ((1, "object"), (2, "unused 1"))
    assert found.architecture["model.pixel_std"] == IMAGENET["model.pixel_std"]
    without = {p: x for p, x in flatten(found.variables).items() if "embedding_pred" not in p}
    expected = shapes_of(unflatten(without))
    variables = fit(found, expected)
    assert set(flatten(variables)) == set(without)
    variables = fit(found, shapes_of(found.variables))
    assert "embedding_pred" in variables["params"]["head"]


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_other_floating_point_types_become_float32(tmp_path, dtype):
    import ml_dtypes

    kind = {"bfloat16": ml_dtypes.bfloat16}.get(dtype, dtype)
    path, state = write(tmp_path, foreign.resnet(), dtype=kind)
    found = open_checkpoint(path)
    leaves = flatten(found.variables)
    assert {leaf.dtype for leaf in leaves.values()} == {np.dtype(np.float32)}
    assert f"tensors of {dtype} became float32" in found.notes[-1]
    np.testing.assert_array_equal(
        leaves["params", "backbone", "bn1", "scale"], state["bn1.weight"].astype(np.float32)
    )


def test_quantised_tensors_are_refused(tmp_path):
    path, _ = write(tmp_path, foreign.resnet(), conv1__weight=np.zeros((4, 3, 7, 7), np.int8))
    assert "not floating point: conv1.weight (int8)" in refusal(open_checkpoint, path)


def fitting(**changes):
    small = {
        "model__backbone__depth": 50, "model__backbone__width": 4, "model__neck__channels": 8,
        "model__head__channels": 8, "model__head__num_convs": 2,
        "model__mask_features__channels": 8, "model__mask_features__out_channels": 8,
    }  # fmt: skip
    return settings(**small | changes)


def solov2(tmp_path, **options):
    return write(tmp_path, foreign.openmmlab("solov2", depth=50), **options)[0]


def test_a_checkpoint_that_fits(tmp_path):
    path = solov2(tmp_path)
    found = open_checkpoint(path)
    require_whole(found)
    check_settings(found.architecture, fitting(model__num_classes=80), where=found.title)
    variables = fit(found, shapes_of(found.variables))
    assert set(variables) == {"params", "batch_stats"}
    assert found.layout is layout_named("mmdet-v1-solov2")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model.backbone.depth", 101, "model.backbone.depth is 101 there and 50 in the file"),
        ("model.num_classes", 3, "--config.model.num_classes=80"),
        ("model.head.kind", "solo", "--config.model.head.kind=solov2"),
        ("model.backbone.stride_in_1x1", True, "--config.model.backbone.stride_in_1x1=False"),
        ("model.pixel_std", (1, 1, 1), "--config.model.pixel_std=58.395,57.12,57.375"),
        (
            "model.pixel_mean",
            (103.53, 116.28, 123.675),
            "in the order RGB: stems that read BGR are turned round",
        ),
    ],
)
def test_another_config_is_refused_with_the_fix(tmp_path, key, value, said):
    found = open_checkpoint(solov2(tmp_path))
    settings = fitting() | {key: value}
    message = refusal(check_settings, found.architecture, settings, where=found.title)
    assert said in message and "file.safetensors (SOLOv2 of mmdet v1, R50, 80 classes)" in message


def test_missing_unexpected_and_misshapen_tensors_are_named(tmp_path):
    expected = shapes_of(open_checkpoint(solov2(tmp_path)).variables)
    drop = ("bbox_head.solo_cate.bias",)
    wrong = {"bbox_head__solo_kernel__bias": np.zeros(3, np.float32)}
    path = solov2(tmp_path, drop=drop, **wrong)
    assert "missing: bbox_head.solo_cate.bias; misshapen (in our order of axes): " in (
        message := refusal(fit, open_checkpoint(path), expected)
    )
    assert "bbox_head.solo_kernel.bias ((3,), not (8,))" in message
    path = solov2(tmp_path, stranger=np.zeros(1, np.float32))
    assert "unexpected: stranger" in refusal(open_checkpoint, path)


def test_a_backbone_alone_cannot_predict(tmp_path):
    path, _ = write(tmp_path, foreign.resnet())
    message = refusal(require_whole, open_checkpoint(path))
    assert "it has no head" in message and "--config.model.backbone.checkpoint=" in message


R50 = {"model__backbone__width": 4}
MSRA = R50 | {"model__pixel_std": (1, 1, 1), "model__backbone__stride_in_1x1": True}


@pytest.mark.parametrize(
    ("shapes", "change"),
    [
        (foreign.resnet(depth=50) | foreign.layer("fc", 10, 32), R50),
        (foreign.detectron2_resnet(depth=50), R50),
        (foreign.detectron2_resnet(depth=50), MSRA),
        (foreign.caffe2_resnet(), MSRA),
        (foreign.prefixed("backbone.", foreign.resnet(depth=50)), R50),
        (foreign.openmmlab("solo", depth=50), R50),
        (foreign.STATES["adelaidet", "plain"], MSRA),
        (foreign.STATES["freesolo", "plain"], R50),
        (foreign.moco(2), R50 | {"model__backbone__depth": 18}),
        (foreign.moco(1), R50 | {"model__backbone__depth": 18}),
        (foreign.densecl(), R50 | {"model__backbone__depth": 18}),
        (foreign.mmselfsup(), R50 | {"model__backbone__depth": 18}),
    ],
)
def test_backbones_out_of_everything(tmp_path, shapes, change):
    """The query encoder's, without neck, head, key encoder and queues."""
    path, state = write(tmp_path, shapes)
    wanted = settings(**change)
    variables, _ = import_backbone(path, wanted)
    variables, found = import_backbone(path, wanted, shapes_of(variables))
    assert set(variables) == {"params", "batch_stats"}
    assert {name.split("_")[0] for name in variables["params"]} == {
        "conv1", "bn1", "layer1", "layer2", "layer3", "layer4",
    }  # fmt: skip
    [stem] = [
        array for name, array in state.items()
        if array.shape == (4, 3, 7, 7)
        and not name.startswith(("encoder_k", "backbone." if shapes == foreign.densecl() else "-"))
    ]  # fmt: skip
    flipped = change is MSRA
    kernel = variables["params"]["conv1"]["kernel"]
    np.testing.assert_array_equal(
        kernel[:, :, ::-1] if flipped else kernel, stem.transpose(2, 3, 1, 0)
    )
    assert found.architecture["model.backbone.depth"] == wanted["model.backbone.depth"]


def test_a_backbone_that_does_not_fit_is_refused(tmp_path):
    path, _ = write(tmp_path, foreign.caffe2_resnet())
    message = refusal(import_backbone, path, settings(**R50))
    for flag in ("pixel_std=1.0,1.0,1.0", "backbone.stride_in_1x1=True"):
        assert f"--config.model.{flag}" in message
    path, _ = write(tmp_path, foreign.resnet(depth=34))
    message = refusal(import_backbone, path, settings(**R50))
    assert "--config.model.backbone.depth=34" in message
    message = refusal(import_backbone, path, settings(model__backbone__norm="group_norm"))
    assert "BatchNorm" in message


def test_plain_weights_start_a_deformable_backbone(tmp_path):
    plain, _ = write(tmp_path, foreign.resnet(depth=50))
    deformable = tmp_path / "deformable.safetensors"
    write_safetensors(deformable, foreign.fill(foreign.resnet(depth=50, offsets=27)))
    config = settings(**R50, model__backbone__deformable="v2")
    full, _ = import_backbone(deformable, config)
    assert any("offset" in path for path in flatten(full))
    variables, _ = import_backbone(plain, config, shapes_of(full))
    assert not any("offset" in path for path in flatten(variables))
    message = refusal(import_backbone, deformable, config, shapes_of(variables))
    assert "unexpected: layer2.0.conv2.conv_offset.bias" in message
    message = refusal(import_backbone, deformable, settings(**R50))
    assert "--config.model.backbone.deformable=v2" in message

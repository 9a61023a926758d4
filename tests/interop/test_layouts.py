"""Every layout: found out from the names, and through import, export and import bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import foreign_states as foreign
from helpers.golden import load_json

from solojax.errors import InputError
from solojax.interop.layout import export_state, import_state
from solojax.interop.layouts import BY_NAME, LAYOUTS, find_layout, layout_named
from solojax.interop.trees import flatten

each_state = pytest.mark.parametrize(
    ("name", "shapes"),
    [pytest.param(key[0], shapes, id=" ".join(key)) for key, shapes in foreign.STATES.items()],
)


def carried(layout, names):
    """The tensors that a layout does not pass over."""
    return {name for name in names if not layout.is_ignored(name)}


@each_state
def test_the_layout_is_found(name, shapes):
    assert find_layout(shapes, "file.pth").name == name


def test_every_layout_is_tried():
    assert {key[0] for key in foreign.STATES} == {layout.name for layout in LAYOUTS}
    assert len(BY_NAME) == len(LAYOUTS)


@each_state
def test_import_and_export_and_import(name, shapes):
    state, layout = foreign.fill(shapes), layout_named(name)
    variables = import_state(layout, state)
    assert len(flatten(variables)) == len(carried(layout, state))
    exported = export_state(layout, variables)
    again = flatten(import_state(layout, exported))
    for path, leaf in flatten(variables).items():
        assert again[path].dtype == leaf.dtype
        np.testing.assert_array_equal(again[path], leaf)
    if not any(key.endswith(("_s", "_riv")) for key in state):  # an old spelling is not written
        assert exported.keys() == carried(layout, state)
        for key, array in exported.items():
            assert array.dtype == state[key].dtype
            np.testing.assert_array_equal(array, state[key], err_msg=key)


@pytest.mark.parametrize(
    ("recorded", "ours"),
    [
        ("freesolo", lambda: foreign.adelaidet(c=64, convs=4, classes=2, embedding=True, width=64)),
        ("densecl_r18", foreign.densecl),
    ],
)
def test_names_are_those_of_the_systems(recorded, ours):
    names = load_json("foreign_files/names_and_shapes.json")[recorded]
    assert set(ours()) == set(names)


@pytest.mark.parametrize(
    ("head", "kind", "convs"),
    [
        ("SOLOHead", "solo", 3),
        ("DecoupledSOLOHead", "decoupled", 3),
        ("DecoupledSOLOLightHead", "decoupled_light", 2),
        ("SOLOv2Head", "solov2", 2),
    ],
)
def test_heads_of_mmdet_v1_are_the_recorded_ones(head, kind, convs):
    recorded = load_json(f"solo_mmdet/{head}_state_shapes.json")["tensors"]
    shapes = {name: tuple(entry["shape"]) for name, entry in recorded.items()}
    width = {"c": 32, "convs": convs, "classes": 5, "grids": (20, 18, 12, 8, 6)}
    ours = foreign.openmmlab_head(kind, foreign.V1, **width)
    if kind == "solov2":
        ours |= foreign.layer("bbox_head.solo_kernel", 64, 32, 3, 3)
        ours |= foreign.mask_features("mask_feat_head.", "conv_pred.0", 32, 32, 64)
    assert ours == shapes
    assert find_layout(shapes, "x").name == f"mmdet-v1-{foreign.KINDS[kind]}"


def places(name, *sources):
    """Where a layout puts foreign tensors."""
    layout = layout_named(name)
    return ["/".join(layout.from_foreign(source)[0]) for source in sources]


def test_where_tensors_land():
    """Worked examples of what could be mistaken."""
    assert places(
        "mmdet-v1-decoupled-solo",
        "bbox_head.ins_convs_x.6.conv.weight",
        "bbox_head.dsolo_ins_list_y.4.bias",
        "bbox_head.dsolo_cate.weight",
        "backbone.layer3.22.conv2.conv_offset.bias",
        "backbone.layer3.22.conv2_offset.weight",
        "neck.fpn_convs.3.conv.bias",
    ) == [
        "params/head/x_tower_6/conv/kernel",
        "params/head/y_pred_4/bias",
        "params/head/category_pred/kernel",
        "params/backbone/layer3_22/conv2/offset/bias",
        "params/backbone/layer3_22/conv2/offset/kernel",
        "params/neck/output_3/bias",
    ]
    assert places("mmdet-v1-decoupled-solo-light", "bbox_head.ins_convs.3.gn.weight") == [
        "params/head/mask_tower_3/norm/scale"
    ]
    assert places(
        "mmdet-solov2",
        "mask_head.kernel_convs.3.conv.conv_offset.weight",
        "mask_head.mask_feature_head.convs_all_levels.3.conv2.gn.bias",
        "mask_head.mask_feature_head.conv_pred.conv.weight",
    ) == [
        "params/head/kernel_tower_3/conv/offset/kernel",
        "params/mask_features/level3_conv2/norm/bias",
        "params/mask_features/pred/conv/kernel",
    ]
    assert places("caffe2", "res_conv1_bn_rm", "res4_22_branch2b_bn_gamma", "res2_0_branch1_w") == [
        "batch_stats/backbone/bn1/mean",
        "params/backbone/layer3_22/bn2/scale",
        "params/backbone/layer1_0/downsample_conv/kernel",
    ]
    assert places(
        "densecl", "encoder_k.0.bn1.running_var", "encoder_q.1.mlp2.2.bias", "queue2", "queue_ptr"
    ) == [
        "key_batch_stats/backbone/bn1/var",
        "params/neck/dense_1/bias",
        "queues/dense/vectors",
        "queues/global/position",
    ]
    assert places("moco", "encoder_q.fc.2.weight", "encoder_k.fc.weight") == [
        "params/neck/global_1/kernel",
        "key_params/neck/linear/kernel",
    ]


def test_linear_layers_and_queues_change_their_axes():
    state = foreign.fill(foreign.densecl())
    variables = import_state(layout_named("densecl"), state)
    kernel = variables["params"]["neck"]["global_0"]["kernel"]
    np.testing.assert_array_equal(kernel, state["encoder_q.1.mlp.0.weight"].T)
    np.testing.assert_array_equal(variables["queues"]["dense"]["vectors"], state["queue2"].T)
    position = variables["queues"]["dense"]["position"]
    assert np.issubdtype(position.dtype, np.integer)
    assert position.shape == () and position == state["queue2_ptr"][0]


def test_files_of_no_layout_and_of_two():
    with pytest.raises(InputError, match="x.pth: its tensors \\(a, b\\).*known are.*torchvision"):
        find_layout({"a": 1, "b": 1}, "x.pth")
    both = foreign.openmmlab_head("solov2", foreign.V1) | foreign.openmmlab_head(
        "solov2", foreign.V3
    )
    with pytest.raises(InputError, match="of SOLOv2 of mmdet v1 and SOLOv2 of mmdetection 2 and 3"):
        find_layout(both, "x.pth")


def test_a_layout_called_by_a_wrong_name():
    with pytest.raises(InputError, match="did you mean 'mmdet-v1-solov2'"):
        layout_named("mmdet-v1-solo2")

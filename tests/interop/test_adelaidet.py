from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from helpers import small_solov2 as small
from helpers.golden import load_json, seeded_state

from solojax.errors import InputError
from solojax.interop.adelaidet import ADELAIDET
from solojax.interop.layout import export_state, import_state
from solojax.interop.stems import flip_stem_channels
from solojax.models.fpn import FPN
from solojax.models.mask_feature_head import MaskFeatureHead
from solojax.models.resnet import ResNet
from solojax.models.segmenter import Segmenter
from solojax.models.solov2_head import SOLOv2Head

STEM = "backbone.bottom_up.stem.conv1.weight"


@functools.cache
def small_state():
    return seeded_state("solov2_adet/small_state_shapes.json")


@functools.cache
def expected():
    return small.expected_shapes()


def altered(without=(), **tensors):
    state = {name: array for name, array in small_state().items() if name not in without}
    return state | {name.replace("__", "."): array for name, array in tensors.items()}


def message_of(state, shapes=None):
    with pytest.raises(InputError) as caught:
        import_state(ADELAIDET, state, shapes)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_tensor_lands_where_the_model_wants_it():
    variables = import_state(ADELAIDET, small_state(), expected())
    ours = traverse_util.flatten_dict(variables)
    wanted = traverse_util.flatten_dict(expected())
    assert {path: leaf.shape for path, leaf in ours.items()} == {
        path: leaf.shape for path, leaf in wanted.items()
    }
    assert sum(leaf.size for leaf in ours.values()) == sum(a.size for a in small_state().values())


def test_convolutions_change_their_axes():
    weight = small_state()["ins_head.kernel_tower.3.weight"]
    head = import_state(ADELAIDET, small_state())["params"]["head"]
    kernel = head["kernel_tower_1"]["conv"]["kernel"]
    for o, i, y, x in np.ndindex(3, 5, 3, 3):
        assert kernel[y, x, i, o] == weight[o, i, y, x]
    assert kernel.flags.c_contiguous


def test_batch_norm_goes_to_two_collections():
    source = "backbone.bottom_up.res4.0.shortcut.norm."
    variables = import_state(ADELAIDET, small_state())
    params, stats = (
        variables[name]["backbone"]["layer3_0"]["downsample_bn"]
        for name in ("params", "batch_stats")
    )
    np.testing.assert_array_equal(params["scale"], small_state()[source + "weight"])
    np.testing.assert_array_equal(params["bias"], small_state()[source + "bias"])
    np.testing.assert_array_equal(stats["mean"], small_state()[source + "running_mean"])
    np.testing.assert_array_equal(stats["var"], small_state()[source + "running_var"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept(dtype):
    state = seeded_state("solov2_adet/small_state_shapes.json", dtype)
    variables = import_state(ADELAIDET, state, expected())
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(dtype)}


def test_export_undoes_import():
    state = export_state(ADELAIDET, import_state(ADELAIDET, small_state()))
    assert state.keys() == small_state().keys()
    for name, array in small_state().items():
        np.testing.assert_array_equal(state[name], array, err_msg=name)


def test_names_and_shapes_of_the_published_r50():
    model = Segmenter(
        ResNet(50, norm="frozen_batch_norm", stride_in_1x1=True),
        FPN(256),
        SOLOv2Head(80, small.GRID.num_grids),
        MaskFeatureHead(),
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    ours = {}
    for path, leaf in traverse_util.flatten_dict(shapes).items():
        name, tensor = ADELAIDET.to_foreign(path)
        assert ADELAIDET.from_foreign(name) == (path, tensor)
        ours[name] = tensor.foreign_shape(leaf.shape)
    recorded = load_json("solov2_adet/full_state_shapes.json")["tensors"]
    assert ours == {name: tuple(spec["shape"]) for name, spec in recorded.items()}


def test_tensors_without_a_meaning_here_are_passed_over():
    state = altered(
        pixel_mean=np.zeros((3, 1, 1), np.float32),
        pixel_std=np.ones((3, 1, 1), np.float32),
        backbone__bottom_up__stem__conv1__norm__num_batches_tracked=np.array(7),
    )
    assert jax.tree.all(
        jax.tree.map(
            np.array_equal, import_state(ADELAIDET, state), import_state(ADELAIDET, small_state())
        )
    )


def test_missing_tensors_are_named():
    gone = ("ins_head.cate_pred.bias", "backbone.bottom_up.res5.1.conv2.norm.running_var")
    message = message_of(altered(without=gone), expected())
    assert "missing: " + ", ".join(sorted(gone)) in message
    assert "unexpected" not in message and "misshapen" not in message


def test_a_module_that_lacks_a_tensor_is_named_without_a_model():
    gone = "backbone.bottom_up.res5.1.conv2.norm.running_var"
    assert f"missing: {gone};" in message_of(altered(without=[gone]))


def test_unexpected_tensors_are_named():
    extra = np.zeros(1, np.float32)
    message = message_of(altered(ins_head__emb_pred__weight=extra, elsewhere=extra))
    assert "unexpected: elsewhere, ins_head.emb_pred.weight;" in message


def test_a_deeper_network_than_the_models_is_unexpected():
    block = "backbone.bottom_up.res2.2.conv1"
    state = altered(**{f"{block}.weight".replace(".", "__"): np.zeros((64, 64, 3, 3), np.float32)})
    assert f"unexpected: {block}.weight;" in message_of(state, expected())


def test_misshapen_tensors_are_named_with_both_shapes():
    state = small_state() | {STEM: np.zeros((64, 4, 7, 7), np.float32)}
    message = message_of(state, expected())
    assert f"misshapen: {STEM} ((64, 4, 7, 7), not (64, 3, 7, 7));" in message
    state = small_state() | {STEM: np.zeros((64, 3), np.float32)}
    assert f"misshapen: {STEM}" in message_of(state, expected())
    assert f"misshapen: {STEM}" in message_of(state)


def test_integer_weights_are_named():
    state = small_state() | {STEM: np.zeros((64, 3, 7, 7), np.int64)}
    assert f"not floating point: {STEM} (int64);" in message_of(state, expected())


def test_a_long_list_is_cut_and_counted():
    message = message_of({STEM: small_state()[STEM]}, expected())
    assert f"and {len(small_state()) - 1 - 20} more" in message


def test_export_names_leaves_without_a_place():
    variables = {"params": {"head": {"embedding_pred": {"kernel": np.zeros((3, 3, 4, 4))}}}}
    with pytest.raises(InputError, match="params/head/embedding_pred/kernel"):
        export_state(ADELAIDET, variables)


def test_flipping_the_stem_is_reading_the_other_channel_order():
    variables = small.variables()
    flipped = flip_stem_channels(variables)
    image = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    backbone = {name: tree["backbone"] for name, tree in variables.items()}
    turned = {name: tree["backbone"] for name, tree in flipped.items()}
    run = jax.jit(small.build_model().backbone.apply)
    for bgr, rgb in zip(run(backbone, image[..., ::-1]), run(turned, image), strict=True):
        np.testing.assert_allclose(bgr, rgb, rtol=1e-4, atol=1e-5)
    again = flip_stem_channels(flipped)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, variables))

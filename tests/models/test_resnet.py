"""solojax.models.resnet against a float64 recomputation and torchvision's parameter counts."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import plain_network
from helpers.tiny import assert_same_bits, quick_jit, random_variables

from solojax.errors import InputError
from solojax.models.resnet import BLOCKS_PER_STAGE, ResidualBlock, ResNet, is_frozen

IMAGE = np.random.default_rng(0).normal(size=(2, 64, 32, 3))


@pytest.fixture
def three_blocks(monkeypatch):
    """Less than half of ResNet-18, which compiles in less than half the time."""
    monkeypatch.setitem(BLOCKS_PER_STAGE, 18, (1, 1, 1))


@functools.cache
def shapes_of(model):
    image = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    return jax.eval_shape(model.init_with_output, jax.random.key(0), image)


@pytest.mark.parametrize(
    ("depth", "options", "count"),
    # torchvision's totals without the classifier (513,000 or 2,049,000 of them).
    [
        (18, {}, 11_176_512),
        (34, {}, 21_284_672),
        (50, {}, 23_508_032),
        (101, {}, 42_500_160),
        (152, {}, 58_143_808),
        (50, {"groups": 32, "base_width": 4}, 22_979_904),
        (101, {"groups": 64, "base_width": 4}, 81_406_272),
    ],
)
def test_feature_shapes_and_parameter_counts(depth, options, count):
    features, variables = shapes_of(ResNet(depth, **options))
    channels = (64, 128, 256, 512) if depth < 50 else (256, 512, 1024, 2048)
    assert [f.shape for f in features] == [
        (2, 64 // stride, 96 // stride, c)
        for stride, c in zip((4, 8, 16, 32), channels, strict=True)
    ]
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count


def test_resnet18_layer_by_layer_in_float64():
    with jax.enable_x64(True):
        model = ResNet(18, width=8, norm="frozen_batch_norm")
        variables = random_variables(model, IMAGE, dtype=np.float64)
        features = quick_jit(model.apply)(variables, IMAGE)
        expected = plain_network.resnet18(variables, IMAGE)
        for ours, plain in zip(features, expected, strict=True):
            assert ours.dtype == jnp.float64
            np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-11 * np.abs(plain).max())


@pytest.mark.parametrize(("stride_in_1x1", "strides"), [(False, (1, 2, 1)), (True, (2, 1, 1))])
def test_the_bottleneck_strides_where_it_is_told(stride_in_1x1, strides):
    x = np.random.default_rng(1).normal(size=(2, 6, 8, 12)).astype(np.float32)
    block = ResidualBlock(8, stride=2, bottleneck=True, stride_in_1x1=stride_in_1x1)
    variables = random_variables(block, x, False, None)
    out = quick_jit(block.apply, static_argnums=2)(variables, x, False, None)
    expected = plain_network.residual_block(variables, x, strides)
    assert out.shape == (2, 3, 4, 32)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5 * expected.max())


def test_the_shortcut_is_the_input_itself_where_shapes_agree():
    x = np.abs(np.random.default_rng(1).normal(size=(1, 4, 4, 8))).astype(np.float32)
    block = ResidualBlock(8)
    variables = random_variables(block, x, False, None)
    assert set(variables["params"]) == {"conv1", "bn1", "conv2", "bn2"}
    # With the second norm at zero only the shortcut is left.
    variables["params"]["bn2"] = jax.tree.map(np.zeros_like, variables["params"]["bn2"])
    variables["batch_stats"]["bn2"]["mean"][:] = 0
    apply = quick_jit(block.apply, static_argnums=2)
    np.testing.assert_array_equal(apply(variables, x, False, None), x)


@pytest.mark.usefixtures("three_blocks")
def test_frozen_stages_keep_their_statistics_and_the_others_move():
    model = ResNet(18, width=8, norm="batch_norm", frozen_stages=2)
    image = IMAGE.astype(np.float32)
    variables = random_variables(model, image)
    train = quick_jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))
    _, updated = train(variables, image)
    before, after = variables["batch_stats"], updated["batch_stats"]
    assert set(before) == set(after)
    for name in before:
        if name == "bn1" or name.startswith(("layer1", "layer2")):
            assert_same_bits(after[name], before[name])
        else:
            for old, new in zip(*map(jax.tree.leaves, (before[name], after[name])), strict=True):
                assert np.all(old != new), name


@pytest.mark.usefixtures("three_blocks")
def test_rematerialising_changes_neither_outputs_nor_gradients():
    image = IMAGE[:, :32].astype(np.float32)
    results = {}
    for remat in ("none", "whole", "convs"):
        model = ResNet(18, width=4, norm="batch_norm", frozen_stages=-1, remat=remat)
        variables = random_variables(model, image)

        def loss(params, model=model, variables=variables):
            outputs, updated = model.apply(
                {**variables, "params": params}, image, train=True, mutable=["batch_stats"]
            )
            return sum(jnp.sum(jnp.sin(x)) for x in outputs), updated

        gradient = jax.value_and_grad(loss, has_aux=True)
        program = quick_jit(gradient).lower(variables["params"])
        # What is computed again hides behind barriers, or it would be merged with the first time.
        assert ("optimization_barrier" in program.as_text()) == (remat != "none")
        results[remat] = program.compile()(variables["params"])
    for kept, *others in zip(*map(jax.tree.leaves, results.values()), strict=True):
        scale = np.abs(kept).max()
        for again in others:
            np.testing.assert_allclose(again, kept, rtol=0, atol=1e-4 * scale)


def test_which_parameter_groups_are_frozen():
    names = ("conv1", "bn1", "layer1_0", "layer1_1", "layer2_0", "layer3_22", "layer4_2")
    frozen = {stages: [n for n in names if is_frozen(n, stages)] for stages in (-1, 0, 1, 3)}
    assert frozen == {-1: [], 0: list(names[:2]), 1: list(names[:4]), 3: list(names[:6])}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 20}, "depth 20.*18"),
        ({"depth": 18, "deformable": "v1"}, "depth 18 .*deformable; .*50"),
        ({"depth": 34, "groups": 32}, "depth 34 .*groups.*50"),
        ({"depth": 50, "deformable": "v3"}, "'v3'.*none, v1, v2"),
        ({"depth": 50, "deformable": "v1", "deformable_stages": (2, 5)}, "stage.*1 to 4"),
    ],
)
def test_what_no_network_has_is_an_error(options, message):
    with pytest.raises(InputError, match=message):
        shapes_of(ResNet(**options))


def test_groups_and_base_width_are_those_of_the_published_resnext():
    """Width of the 3x3: 4 channels a group in the first stage, twice as many in each next one."""
    _, variables = shapes_of(ResNet(101, groups=64, base_width=4))
    params = variables["params"]
    for stage, channels in enumerate((256, 512, 1024, 2048), start=1):
        block = params[f"layer{stage}_0"]
        assert block["conv1"]["kernel"].shape[-1] == channels
        assert block["conv2"]["kernel"].shape == (3, 3, channels // 64, channels)
        assert block["conv3"]["kernel"].shape[-2:] == (channels, 256 * 2 ** (stage - 1))


def test_a_grouped_bottleneck_convolves_every_group_alone():
    x = np.random.default_rng(1).normal(size=(2, 6, 8, 12)).astype(np.float32)
    block = ResidualBlock(32, stride=2, bottleneck=True, groups=4, base_width=16)
    variables = random_variables(block, x, False, None)
    kernel = variables["params"]["conv2"]["kernel"]
    assert kernel.shape == (3, 3, 8, 32)
    out = quick_jit(block.apply, static_argnums=2)(variables, x, False, None)
    dense = np.zeros((3, 3, 32, 32), np.float32)
    for group in range(4):
        channels = slice(8 * group, 8 * group + 8)
        dense[:, :, channels, channels] = kernel[..., channels]
    variables["params"]["conv2"]["kernel"] = dense
    expected = plain_network.residual_block(variables, x, (1, 2, 1))
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5 * expected.max())


@pytest.mark.parametrize(("deformable", "channels"), [("v1", 18), ("v2", 27)])
def test_the_3x3_of_stages_2_to_4_are_deformable(deformable, channels):
    plain, deformed = (
        shapes_of(ResNet(50, deformable=kind))[1]["params"] for kind in ("none", deformable)
    )
    assert set(plain) == set(deformed)
    for name, block in deformed.items():
        convolutions = {key: block[key] for key in ("conv1", "conv2", "conv3") if key in block}
        has_offset = {key for key, params in convolutions.items() if "offset" in params}
        is_deformable = name.startswith(("layer2", "layer3", "layer4"))
        assert has_offset == ({"conv2"} if is_deformable else set())
        shapes = jax.tree.map(jnp.shape, block)
        if has_offset:
            width = shapes["conv2"]["kernel"][2]
            offset = {"kernel": (3, 3, width, channels), "bias": (channels,)}
            assert shapes["conv2"].pop("offset") == offset
        assert shapes == jax.tree.map(jnp.shape, plain[name])


@pytest.mark.parametrize("options", [{}, {"stride_in_1x1": True}, {"groups": 2}])
def test_a_deformable_bottleneck_at_offset_zero_is_an_ordinary_one(options):
    x = np.random.default_rng(1).normal(size=(2, 6, 8, 12)).astype(np.float32)
    shared = {"stride": 2, "bottleneck": True} | options
    deformed = ResidualBlock(16, deformable="v1", **shared)
    variables = random_variables(deformed, x, False, None)
    offset = variables["params"]["conv2"]["offset"]
    variables["params"]["conv2"]["offset"] = jax.tree.map(np.zeros_like, offset)
    run = {
        block: quick_jit(block.apply, static_argnums=2)(variables, x, False, None)
        for block in (deformed, ResidualBlock(16, **shared))
    }
    out, expected = run.values()
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5 * expected.max())


@pytest.mark.usefixtures("three_blocks")
def test_rows_are_masked_in_every_norm_of_the_network():
    """A masked row moves no statistic anywhere, whatever it holds."""
    model = ResNet(18, width=4, norm="batch_norm", frozen_stages=-1)
    image = IMAGE[:, :32].astype(np.float32)
    variables = random_variables(model, image)

    @quick_jit
    def statistics(image):
        mask = np.array([True, False])
        _, updated = model.apply(
            variables, image, train=True, row_mask=mask, mutable=["batch_stats"]
        )
        return updated

    other = np.stack([image[0], image[1] * 3 + 1])
    assert_same_bits(statistics(image), statistics(other))


@pytest.mark.usefixtures("three_blocks")
def test_groups_reach_every_norm_of_the_network():
    """Two groups of an image each: the maps that either gives alone, statistics in the middle."""
    shared = {"width": 4, "norm": "batch_norm", "frozen_stages": -1}
    whole, grouped = ResNet(18, **shared), ResNet(18, **shared, bn_group_images=1)
    image = IMAGE[:, :32].astype(np.float32)
    variables = random_variables(whole, image)

    def apply(model):
        return quick_jit(lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"]))

    features, updated = apply(grouped)(image)
    alone = [apply(whole)(image[row : row + 1]) for row in range(2)]
    for level, maps in enumerate(features):
        expected = np.concatenate([each[0][level] for each in alone])
        np.testing.assert_allclose(maps, expected, rtol=0, atol=1e-3 * np.abs(expected).max())
    mean = jax.tree.map(lambda a, b: (a + b) / 2, alone[0][1], alone[1][1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), updated, mean)

"""Every ablation of thesis chapters 3 to 5 is a config key that changes what it says."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from helpers.outputs import dynamic_outputs
from helpers.tiny_config import get_config

from solojax.builders.contrast import build_contrast_task
from solojax.builders.network import coarse_factors
from solojax.builders.segmentation import build_task, train_rows
from solojax.config import apply_overrides, load_config, total_steps, validate
from solojax.data.loader import stack_examples
from solojax.data.transforms import empty_example
from solojax.errors import InputError
from solojax.postprocess.detections import detect
from solojax.tasks.mask_losses import CrossEntropyLoss, DiceLoss, FocalLoss

E = np.exp(-2 / 9)  # what the Gaussian kernel makes of an IoU of 1/3


def configured(*overrides):
    config = get_config()
    config.model.head.num_convs = 4
    apply_overrides(config, [f"--config.{override}" for override in overrides])
    validate(config)
    return config


@functools.cache
def network(*overrides):
    """(shapes of the parameters by path, shapes of the outputs) for a batch of 64x96."""
    config = configured(*overrides)
    task = build_task(config, 3)
    batch = stack_examples([empty_example((64, 96), 1, coarse_factors(config))])
    variables = jax.eval_shape(task.init, jax.random.key(0), batch)
    outputs = jax.eval_shape(task.forward, variables, batch)
    params = traverse_util.flatten_dict(variables["params"], sep="/")
    return {path: leaf.shape for path, leaf in params.items()}, outputs


def blocks(params, tower):
    """The input channels of a tower's blocks."""
    path = "{}_{}/conv/kernel"
    return [params[path.format(tower, i)][2] for i in range(4) if path.format(tower, i) in params]


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("kind, added", [("solo", 2), ("decoupled", 1), ("decoupled_light", 2)])
def test_coordconv_layers(kind, added, number):
    """Table 3.3."""
    params, _ = network(f"model.head.kind={kind}", f"model.head.num_coordinate_convs={number}")
    tower = "head/x_tower" if kind == "decoupled" else "head/mask_tower"
    assert blocks(params, tower) == [32 + added * (i < number) for i in range(4)]
    assert blocks(params, "head/category_tower") == [32] * 4


@pytest.mark.parametrize("kernel", [0, 1])
@pytest.mark.parametrize("feature", [False, True])
def test_coordinates_of_kernels_and_features(kernel, feature):
    """Table 4.4."""
    params, _ = network(
        f"model.head.num_coordinate_convs={kernel}", f"model.mask_features.coordinates={feature}"
    )
    assert blocks(params, "head/kernel_tower") == [32 + 2 * kernel, 32, 32, 32]
    assert params["mask_features/level3_conv0/conv/kernel"][2] == 32 + 2 * feature


@pytest.mark.parametrize(
    "name, expected",
    [
        ("dice", DiceLoss(epsilon=0.5)),
        ("focal", FocalLoss(alpha=0.4, gamma=1.5)),
        ("bce", CrossEntropyLoss(positive_weight=3.0)),
    ],
)
def test_mask_losses(name, expected):
    """Table 3.4, with its weights."""
    config = configured(
        f"loss.mask={name}",
        "loss.mask_weight=20",
        "loss.dice_epsilon=0.5",
        "loss.focal_alpha=0.4",
        "loss.focal_gamma=1.5",
        "loss.mask_positive_weight=3",
    )
    task = build_task(config, 3)
    assert task.mask_loss == expected and task.mask_weight == 20


@pytest.mark.parametrize("kind", ["decoupled", "decoupled_light"])
def test_losses_on_logits_are_not_for_products(kind):
    with pytest.raises(InputError, match="'loss.mask' is 'bce'.*dice"):
        configured(f"model.head.kind={kind}", "loss.mask=bce")


@pytest.mark.parametrize(
    "align, middle, corner",
    [("interpolate", 2 / 4, 0), ("adaptive_max_pool", 2, 1), ("region_grid", 2 / 16, 1 / 16)],
)
def test_category_alignment(align, middle, corner):
    """Section 3.3.3: what a cell of 4x4 pixels tells of one bright pixel, which is among its middle
    four in one cell and in a corner, where interpolation does not look, in another."""
    features = np.zeros((1, 16, 16, 32), np.float32)
    features[0, 5, 9], features[0, 0, 0] = 2, 1
    aligned = tower_inputs("category_tower", features, f"model.head.align={align}")[0]
    expected = np.zeros((4, 4))
    expected[1, 2], expected[0, 0] = middle, corner
    for channel in (0, 31):
        np.testing.assert_allclose(aligned[0, :, :, channel], expected, atol=1e-6)


@pytest.mark.parametrize("at, sides", [(0, [4, 4, 4, 4]), (2, [16, 16, 4, 4])])
def test_the_place_of_the_alignment(at, sides):
    features = np.zeros((1, 16, 16, 32), np.float32)
    inputs = tower_inputs("category_tower", features, f"model.head.align_at={at}")
    assert [x.shape[1] for x in inputs] == sides


@pytest.mark.parametrize("depth", [1, 4, 8])
def test_head_depth(depth):
    """Table 3.5."""
    params, _ = network("model.head.kind=solo", f"model.head.num_convs={depth}")
    for tower in ("category", "mask"):
        kernels = [p for p in params if p.startswith(f"head/{tower}_tower") and "conv" in p]
        assert len(kernels) == depth


@pytest.mark.parametrize("size, width", [(1, 32), (1, 64), (3, 32)])
def test_kernel_shape(size, width):
    """Table 4.3."""
    params, outputs = network(
        f"model.mask_features.kernel_size={size}", f"model.mask_features.out_channels={width}"
    )
    (masks,) = outputs.masks
    assert params["head/kernel_pred/kernel"] == (3, 3, 32, size**2 * width)
    assert masks.kernels.shape[-1] == size**2 * width and masks.features.shape[-1] == width


def test_unified_and_separate_mask_features():
    """Table 4.5."""
    _, unified = network()
    assert [masks.features.shape[1:3] for masks in unified.masks] == [(16, 24)]
    params, separate = network(
        "model.mask_features.kind=separate", "model.mask_features.num_convs=3"
    )
    sizes = [masks.features.shape[1:3] for masks in separate.masks]
    assert sizes == [(16, 24), (16, 24), (8, 12), (4, 6), (4, 6)]
    assert blocks(params, "mask_features/tower") == [34, 32, 32]
    cells = sum(masks.kernels.shape[1] for masks in separate.masks)
    assert cells == unified.masks[0].kernels.shape[1]


@pytest.mark.parametrize("kind", ["solo", "solov2"])
def test_a_single_scale(kind):
    """Table 3.2: one grid on a map of stride 8."""
    params, outputs = network(
        f"model.head.kind={kind}",
        "model.mask_features.kind=separate",
        "model.neck.kind=single_scale",
        "model.grid.num_grids=(12,)",
        "model.grid.strides=(8,)",
        "model.grid.scale_ranges=((1,2048),)",
    )
    assert outputs.category_logits.shape == (1, 144, 3)
    assert [masks.features.shape[1:3] for masks in outputs.masks] == [(16, 24)]
    assert {path.split("/")[1] for path in params if path.startswith("neck")} == {
        "lateral_0", "lateral_1", "lateral_2", "output",
    }  # fmt: skip


def test_a_single_scale_has_no_unified_features():
    config = configured("model.neck.kind=single_scale")
    with pytest.raises(InputError, match="separate"):
        build_task(config, 3)


@pytest.mark.parametrize(
    "nms, kernel, scores",
    [
        # The second is decayed by the first. It decays the third as much, which Matrix NMS makes
        # up for, hard NMS does only if the second is still there, and fast NMS in any case.
        ("matrix", "gaussian", [0.9, 0.8 * E, 0.5]),
        ("matrix", "linear", [0.9, 0.8 * 2 / 3, 0.5]),
        ("soft", "gaussian", [0.9, 0.8 * E, 0.5 * E]),
        ("soft", "linear", [0.9, 0.8 * 2 / 3, 0.5 * 2 / 3]),
        ("hard", "gaussian", [0.9, 0.5]),
        ("fast", "gaussian", [0.9]),
    ],
)
def test_suppression(nms, kernel, scores):
    """Table 4.6, on three masks in a row of which neighbours have an IoU of 1/3."""
    found = suppressed(f"evaluation.nms={nms}", f"evaluation.kernel={kernel}")
    np.testing.assert_allclose(found, sorted(scores, reverse=True), rtol=1e-5)


@pytest.mark.parametrize(
    "nms, kernel", [("soft", "linear"), ("hard", "linear"), ("fast", "linear")]
)
def test_the_threshold_of_suppression(nms, kernel):
    words = f"evaluation.nms={nms}", f"evaluation.kernel={kernel}", "evaluation.nms_threshold=0.4"
    np.testing.assert_allclose(suppressed(*words), [0.9, 0.8, 0.5], rtol=1e-5)


def test_the_width_of_the_gaussian():
    found = suppressed("evaluation.sigma=1")
    np.testing.assert_allclose(found, [0.9, 0.8 * np.exp(-1 / 9), 0.5], rtol=1e-5)


def suppressed(*overrides):
    """Scores of three masks of one class, 8 rows each and 4 shared with the next, after NMS."""
    config = configured(
        "evaluation.nms_threshold=0.3",
        "evaluation.score_threshold=0.1",
        "evaluation.update_threshold=0.05",
        *overrides,
    )
    task, rows = build_task(config, 3), np.arange(16)[:, None]
    maps = [(rows >= start) & (rows < start + 8) for start in (0, 4, 8)]
    features = np.stack([np.broadcast_to(each, (16, 24)) for each in maps], axis=-1)
    logits = np.full((1, task.grid.num_cells, 3), -20.0)
    kernels = np.zeros((1, task.grid.num_cells, 3))
    for cell, mask, score in ((0, 0, 0.9), (3, 1, 0.8), (6, 2, 0.5)):
        logits[0, cell, 1] = np.log(score / (1 - score))
        kernels[0, cell, mask] = 1
    outputs = dynamic_outputs(
        category_logits=jnp.asarray(logits, jnp.float32),
        kernels=jnp.asarray(kernels, jnp.float32),
        mask_features=jnp.asarray(features[None] * 40.0 - 20, jnp.float32),
    )
    found = detect(outputs, task.grid, task.detection)
    assert (found.labels[found.valid] == 1).all()
    return found.scores[found.valid]


@pytest.mark.parametrize("sigma, side", [(0.1, 1), (0.2, 3), (0.4, 3)])
def test_the_size_of_the_centre_region(sigma, side):
    """A box of 48 pixels about the middle of a cell of 8; it reaches 2.4, 4.8 or 9.6 to a side.

    Beyond the neighbours, positive cells are cut off.
    """
    config = configured(
        f"model.grid.center_sigma={sigma}",
        "model.grid.scale_ranges=((1,96),(400,500),(400,500),(400,500),(400,500))",
    )
    batch = stack_examples([empty_example((64, 64), 1)])
    batch.instances.boxes[0, 0] = (12, 12, 60, 60)
    batch.instances.centers[0, 0] = (36, 36)
    batch.instances.valid[0, 0] = batch.valid[0] = True
    owner = build_task(config, 3).targets(batch).owner[0, :64].reshape(8, 8)
    expected = np.full((8, 8), -1)
    expected[4 - side // 2 : 5 + side // 2, 4 - side // 2 : 5 + side // 2] = 0
    np.testing.assert_array_equal(owner, expected)


@pytest.mark.parametrize("semantics", ["release", "thesis"])
def test_semantics(semantics):
    """Coordinates of kernels: those of 4x4 cells, or those of 16x16 pixels read in their middle.

    The middle of a cell lies between its second and third pixel.
    """
    features = np.ones((1, 16, 16, 32), np.float32)
    [first, *_] = tower_inputs("kernel_tower", features, f"model.semantics={semantics}")
    pixels = np.linspace(-1, 1, 16).reshape(4, 4)
    axis = {"thesis": np.linspace(-1, 1, 4), "release": pixels[:, 1:3].mean(axis=1)}[semantics]
    np.testing.assert_allclose(first[0, :, :, -2], np.tile(axis, (4, 1)), atol=1e-6)
    np.testing.assert_allclose(first[0, :, :, -1], np.tile(axis, (4, 1)).T, atol=1e-6)
    assert (first[..., :-2] == 1).all()


def tower_inputs(tower, features, *overrides):
    """What the four blocks of a tower of SOLOv2 read, for one level with a grid of 4x4."""
    head = build_task(configured(*overrides), 3).model.head.clone(num_grids=(4,))
    levels, read = [jnp.asarray(features)], {}

    def note(call, args, kwargs, context):
        read["/".join(context.module.path)] = args
        return call(*args, **kwargs)

    variables = head.init(jax.random.key(0), levels, levels)
    with nn.intercept_methods(note):
        head.apply(variables, levels, levels)
    return [read[f"{tower}_{i}"][0] for i in range(4)]


def test_deformable_parts():
    params, _ = network(
        "model.backbone.depth=50",
        "model.backbone.deformable=v2",
        "model.head.deformable=v2",
        "model.head.deformable_convs=2",
        "model.mask_features.deformable=v2",
        "model.mask_features.deformable_pred=True",
    )
    offsets = {path.rpartition("/offset/")[0] for path in params if "/offset/kernel" in path}
    backbone = {path for path in offsets if path.startswith("backbone")}
    assert len(backbone) == 4 + 6 + 3 and all(path.endswith("conv2") for path in backbone)
    towers = {path for path in offsets if path.startswith("head")}
    assert towers == {f"head/{t}_tower_{i}/conv" for t in ("category", "kernel") for i in (2, 3)}
    assert len(offsets - backbone - towers) == 1 + 1 + 2 + 3 + 1
    assert params["mask_features/pred/conv/offset/kernel"] == (1, 1, 32, 3)
    assert np.isin([params[f"{path}/offset/kernel"][-1] for path in backbone], 27).all()


@pytest.mark.parametrize(
    "kind, one", [("solov2", False), ("solo", True), ("decoupled", True), ("decoupled_light", True)]
)
def test_a_shared_cell_has_one_mask_but_in_solov2(kind, one):
    assert build_task(configured(f"model.head.kind={kind}"), 3).one_mask_per_cell is one


def test_what_detection_and_training_rows_are_told():
    config = configured(
        "evaluation.mask_threshold=0.7", "data.pad_before_shrinking=True", "data.min_mask_area=7"
    )
    assert build_task(config, 3).detection.mask_threshold == 0.7
    rows = train_rows(config, None)
    assert (rows.pad_before_shrinking, rows.min_mask_area) == (True, 7)


@pytest.mark.parametrize(
    "overrides, part",
    [
        (["model.head.num_coordinate_convs=2"], "num_coordinate_convs"),
        (["model.head.kind=solo", "model.semantics=thesis"], "model.semantics"),
        (
            ["model.mask_features.kind=separate", "model.mask_features.deformable=v1"],
            "mask_features.deformable",
        ),
        (["model.neck.num_outputs=3"], "model.neck.num_outputs"),
    ],
)
def test_what_a_network_would_ignore_is_refused(overrides, part):
    with pytest.raises(InputError, match=part):
        configured(*overrides)


@pytest.mark.parametrize("strides", ["(8,8,16,32,1)", "(8,8,16,16,16)", "(8,8,16,32,64)"])
def test_strides_that_are_not_the_networks(strides):
    config = configured("model.head.kind=solo", f"model.grid.strides={strides}")
    with pytest.raises(InputError, match=r"model.grid.strides.*\(8, 8, 16, 32, 32\)"):
        build_task(config, 3)


def pre_training(*overrides):
    """The config of DenseCL on COCO, on which the ablations of section 5.3.3 are."""
    return load_config("configs/densecl.py:coco", [f"--config.{each}" for each in overrides])


@pytest.mark.parametrize("weight, warmup", [(0, 0), (0.3, 0), (0.9, 0), (1, 10_000)])
def test_the_weight_of_the_dense_loss(weight, warmup):
    """Table 5.6."""
    words = f"contrast.dense_weight={weight}", f"contrast.dense_warmup_steps={warmup}"
    task = build_contrast_task(pre_training(*words))
    assert (task.dense_weight, task.dense_warmup_steps) == (weight, warmup)
    shares = [task._dense_share(jnp.int32(step)) for step in (0, 9_999, 10_000)]
    assert shares == pytest.approx([0, 0, weight] if warmup else [weight] * 3)


@pytest.mark.parametrize("matching", ["random", "max_sim_embeddings", "max_sim_features"])
def test_matching(matching):
    """Table 5.7."""
    config = pre_training(f"contrast.correspondence={matching}")
    assert build_contrast_task(config).correspondence == matching


@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (9, 9)])
def test_the_grid_of_the_dense_head(grid):
    """Table 5.8: features and dense outputs have the cells that are asked for, queues do not."""
    encoder = build_contrast_task(
        pre_training(f"model.grid={grid}", "model.backbone.depth=18")
    ).encoder
    image, key = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32), jax.random.key(0)
    view, _ = jax.eval_shape(lambda image: encoder.init_with_output(key, image), image)
    cells = grid[0] * grid[1]
    assert view.features.shape == (2, cells, 512)
    assert view.embeddings.grid.shape == (2, cells, 128)
    assert view.embeddings.pooled.shape == (2, 128)


def test_the_schedule_of_pre_training():
    """Table 5.9."""
    steps = [total_steps(pre_training(f"train.epochs={n}"), 462) for n in (200, 400, 800, 1600)]
    assert steps == [200 * 462, 400 * 462, 800 * 462, 1600 * 462]


def test_negatives():
    assert build_contrast_task(pre_training("contrast.negatives=sampled")).negatives == "sampled"

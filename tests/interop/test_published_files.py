"""Files of the published systems and what those computed, through `solojax convert --verify`."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from helpers import foreign_states as foreign
from helpers import small_solo
from helpers.golden import load_arrays, load_json, seeded_state
from helpers.tiny_run import call
from pycocotools import mask as coco_mask

from solojax.conversion.verification import in_float64, network_stages
from solojax.inference.foreign_models import load_foreign
from solojax.interop.torch_zip_writer import write_torch_zip


def whole_file(path, name):
    """A recorded head with a backbone and a neck around it that nobody recorded."""
    shapes = foreign.prefixed("backbone.", foreign.resnet(width=8))
    state = foreign.fill(shapes | foreign.openmmlab_neck(32, (8, 16, 32, 64)))
    state |= seeded_state(f"solo_mmdet/{name}_state_shapes.json")
    write_torch_zip(path, {"meta": {}, "state_dict": state})
    return path


def recorded(arrays, key, stage):
    """An array, or the sample that was kept of it, under the name of a stage."""
    if key in arrays:
        return {stage: arrays[key]}
    return {f"{stage}/{part}": arrays[f"{key}/{part}"] for part in ("shape", "idx", "val")}


def recorded_objects(row, arrays, prefix, label_name, masks):
    return {
        f"image{row}/scores": arrays[f"{prefix}/scores"],
        f"image{row}/classes": arrays[f"{prefix}/{label_name}"],
        f"image{row}/masks": np.stack([coco_mask.decode(mask) for mask in masks]),
    }


def adelaidet_inputs():
    inputs = load_arrays("solov2_adet/small_inputs.npz")
    images = [inputs[f"image{row}_rgb_hwc"] for row in range(2)]
    canvas = np.zeros((2, 192, 256, 3), np.uint8)
    for row, image in zip(canvas, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    sizes = [inputs[f"image{row}_ori_hw"] for row in range(2)]
    return {
        "image": canvas,
        "image_size": [image.shape[:2] for image in images],
        "original_size": sizes,
        "layout": "NCHW",
    }


def test_solov2_of_adelaidet(tmp_path):
    """From the image to the objects."""
    path = tmp_path / "small.pth"
    write_torch_zip(path, {"model": seeded_state("solov2_adet/small_state_shapes.json")})
    features, heads, results = (
        load_arrays(f"solov2_adet/small_{part}.npz") for part in ("features", "heads", "results")
    )
    stages = recorded(heads, "mask_feat", "mask_features")
    for index in range(2, 6):
        stages |= recorded(features, f"res{index}", f"c{index}")
    for index in range(2, 7):
        stages |= recorded(features, f"p{index}", f"p{index}")
    for level in range(5):
        stages |= recorded(heads, f"cate_pred_L{level}", f"category_l{level}")
        stages |= recorded(heads, f"kernel_pred_L{level}", f"kernels_l{level}")
    published = load_json("solov2_adet/small_results.json")["default"]
    for row in range(2):
        masks = published[row]["masks"]
        stages |= recorded_objects(row, results, f"default/img{row}", "classes", masks)
    outputs = tmp_path / "outputs.npz"
    np.savez(outputs, **adelaidet_inputs(), **stages)
    outcome = call("convert", "--checkpoint", path, "--verify", outputs)
    assert outcome.code == 0, outcome
    assert "26 of 26 stages" in outcome.out and "FAIL" not in outcome.out
    names = [line.split("  ")[0] for line in outcome.out.splitlines()[2:-1]]
    assert names[:3] == ["c2", "c3", "c4"] and names[-1] == "image1 masks, 1-IoU"


HEADS = [
    ("DecoupledSOLOLightHead", "float64"),
    *(
        pytest.param(name, precision, marks=pytest.mark.slow)
        for name, precision in (
            ("SOLOHead", "float32"),
            ("SOLOHead_down1", "float64"),
            ("DecoupledSOLOHead", "float32"),
            ("SOLOv2Head", "float32"),
        )
    ),
]


@pytest.mark.parametrize("name, precision", HEADS)
def test_heads_of_mmdet(tmp_path, name, precision):
    """From the recorded pyramid to the objects."""
    arrays, published = (
        load_arrays(f"solo_mmdet/{name}.npz"),
        load_json(f"solo_mmdet/{name}_seg.json"),
    )
    stages = {"mask_features": arrays["train/mask_feat"]} if name == "SOLOv2Head" else {}
    maps = {"ins_pred": "masks", "ins_pred_x": "x", "ins_pred_y": "y", "kernel_pred": "kernels"}
    for level, features in enumerate(small_solo.recorded_features()):
        stages[f"input_p{level + 2}"] = features.transpose(0, 3, 1, 2)
        stages |= recorded(arrays, f"train/cate_pred_L{level}", f"category_l{level}")
        for theirs, ours in maps.items():
            if any(key.startswith(f"train/{theirs}_L{level}") for key in arrays):
                stages |= recorded(arrays, f"train/{theirs}_L{level}", f"{ours}_l{level}")
    for row in range(2):
        masks = published["gaussian"][row]["masks"]
        stages |= recorded_objects(row, arrays, f"seg_gaussian/img{row}", "labels", masks)
    batch = small_solo.training_batch()
    np.savez(
        tmp_path / "outputs.npz",
        image=batch.image,
        image_size=batch.image_size,
        original_size=batch.original_size,
        layout="NCHW",
        precision=precision,
        **stages,
    )
    words = ["--checkpoint", whole_file(tmp_path / "whole.pth", name), "--tolerance", "1e-5"]
    words += [f"--config.model.grid.num_grids={small_solo.GRID.num_grids}"]
    words += [f"--config.model.head.align_at={int(name == 'SOLOHead_down1')}"]
    outcome = call("convert", *words, "--verify", tmp_path / "outputs.npz")
    assert outcome.code == 0, outcome
    count = {"SOLO": 10, "Deco": 15}[name[:4]] + (name == "SOLOv2Head")
    assert f"{count + 6} of {count + 6} stages" in outcome.out


def tiny_state(kind):
    head = {"c": 32, "convs": 1, "classes": 2, "grids": (4, 3, 2, 2, 1)}
    state = foreign.fill(foreign.openmmlab(kind, head=head, width=2))
    return {name: abs(x) if name.endswith("running_var") else x for name, x in state.items()}


@pytest.mark.slow
def test_what_differs_ends_with_1_and_detection_follows_the_config(tmp_path):
    """Every cell has a score of 1/2, so that a threshold of 0.6 leaves nothing, as recorded."""
    path, outputs = tmp_path / "file.pth", tmp_path / "outputs.npz"
    state = tiny_state("decoupled_light")
    for part in ("weight", "bias"):
        state[f"bbox_head.dsolo_cate.{part}"] *= 0
    write_torch_zip(path, {"state_dict": state})
    image, empty = np.zeros((1, 64, 64, 3), np.uint8), np.zeros(0, int)
    arrays = {
        "image0/scores": empty,
        "image0/classes": empty,
        "category_l0": np.zeros((1, 4, 4, 2)),
    }
    np.savez(outputs, image=image, **arrays)
    words = ["--checkpoint", path, "--verify", outputs]
    outcome = call("convert", *words, "--config.evaluation.score_threshold=0.6")
    assert outcome.code == 0 and "3 of 3 stages" in outcome.out
    np.savez(outputs, image=image, **arrays | {"category_l0": np.ones((1, 4, 4, 2))})
    outcome = call("convert", *words, "--config.evaluation.score_threshold=0.4")
    assert outcome.code == 1 and "1 of 3 stages" in outcome.out
    failed = [line.split("  ")[0] for line in outcome.out.splitlines() if line.endswith("FAIL")]
    assert failed == ["category_l0", "image0 objects"]


@pytest.mark.parametrize("kind", ["solo", "decoupled", "decoupled_light", "solov2"])
def test_double_precision_from_the_image_to_the_masks(tmp_path, kind):
    path = tmp_path / "file.pth"
    write_torch_zip(path, {"state_dict": tiny_state(kind)})
    model = load_foreign(path)
    image, size = np.zeros((1, 64, 64, 3), np.uint8), np.array([[64, 64]])
    stages = functools.partial(network_stages, image=image, image_size=size)
    with jax.enable_x64(True):
        task, variables = in_float64(model.task, model.variables)
        shapes, _ = jax.eval_shape(functools.partial(stages, task), variables)
    # Final scores are float32 everywhere.
    single = {name for name, array in shapes.items() if array.dtype != np.float64}
    assert single == {f"scores_l{level}" for level in range(5)}
    shapes, _ = jax.eval_shape(functools.partial(stages, model.task), model.variables)
    assert {array.dtype for array in shapes.values()} == {np.dtype(np.float32)}

"""The exported program in this process: what it returns, what it was lowered for, refusals."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import tiny_run
from helpers.scripts import load_script
from helpers.tiny_config import shrink
from helpers.tiny_run import use_nano_network
from jax import export

from solojax.builders.network import build_model
from solojax.builders.segmentation import build_task
from solojax.config import load_config
from solojax.conversion.exporting import default_canvas, export_predictor, settings_path
from solojax.data.image_io import read_image
from solojax.errors import InputError
from solojax.inference import segmenter
from solojax.postprocess.rescale import to_coco_results

CANVAS = (64, 64)
PLATFORMS = ("cpu", "cuda", "tpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of the nano network, which stays in its place."""
    with pytest.MonkeyPatch.context() as patch:
        use_nano_network(patch)
        yield tiny_run.finished_nano_run(tmp_path_factory)


@pytest.fixture(scope="module")
def model(run):
    return segmenter.load(run.workdir)


def exported(*args, **options) -> export.Exported:
    return export.deserialize(bytearray(export_predictor(*args, **options)))


@pytest.fixture(scope="module")
def any_number(model):
    """A program for any number of images, compiled once for each."""
    call = jax.jit(exported(model, CANVAS, batch="symbolic").call)

    def run(image, size):
        return jax.device_get(call(image, size))

    return run


def batch_of(model, run, numbers):
    """Images (B, 64, 64, 3) and sizes (B, 2) of the tiny data set."""
    batches = [
        model.batch_of(read_image(run.data / "images" / f"image_{number}.png"))
        for number in numbers
    ]
    return (
        np.concatenate([batch.image for batch in batches]),
        np.concatenate([batch.image_size for batch in batches]),
    )


def assert_same(found, expected, rows=slice(None)):
    """Outputs of a program beside Detections: decisions equal, numbers to the last digits."""
    for name, field in (("classes", "labels"), ("valid", "valid"), ("boxes", "boxes"),
                        ("overflow", "overflow")):  # fmt: skip
        np.testing.assert_array_equal(found[name][rows], getattr(expected, field), name)
    np.testing.assert_allclose(found["scores"][rows], expected.scores, rtol=1e-6, atol=0)
    np.testing.assert_allclose(found["masks"][rows], expected.masks, rtol=0, atol=1e-6)


def test_what_the_program_says_of_itself(model):
    program = exported(model, CANVAS)
    assert program.platforms == PLATFORMS and program.nr_devices == 1
    assert [(each.shape, each.dtype) for each in program.in_avals] == [
        ((1, 64, 64, 3), np.uint8), ((1, 2), np.int32),
    ]  # fmt: skip
    shapes = jax.eval_shape(program.call, *program.in_avals)
    assert type(shapes) is dict
    assert {name: (each.shape, each.dtype) for name, each in shapes.items()} == {
        "scores": ((1, 20), np.float32),
        "classes": ((1, 20), np.int32),
        "boxes": ((1, 20, 4), np.float32),
        "masks": ((1, 20, 16, 16), np.float32),
        "valid": ((1, 20), np.bool_),
        "overflow": ((1,), np.int32),
    }
    assert "custom_call" not in program.mlir_module()


def test_a_program_finds_what_the_model_finds(model, run):
    program = jax.jit(exported(model, CANVAS, platforms=["cpu"]).call)
    for number in (0, 7):
        image, size = batch_of(model, run, [number])
        batch = model.batch_of(read_image(run.data / "images" / f"image_{number}.png"))
        expected = jax.device_get(jax.jit(model.task.predict)(model.variables, batch))
        assert expected.valid.sum() > 3
        assert_same(jax.device_get(program(image, size)), expected)


def test_what_lies_beyond_the_size_is_not_seen(model, any_number):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    size = np.array([[40, 64]], np.int32)
    clean = image.copy()
    clean[:, 40:] = 0
    first, second = any_number(image, size), any_number(clean, size)
    whole = any_number(image, np.array([[64, 64]], np.int32))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert not np.array_equal(first["scores"], whole["scores"])


def test_any_number_of_images_and_rows_without_one(model, run, any_number):
    image, size = batch_of(model, run, [0, 3, 7])
    size[1] = 0
    found = any_number(image, size)
    assert not found["valid"][1].any()
    for row in (0, 2):
        alone = any_number(image[row : row + 1], size[row : row + 1])
        assert alone["valid"].sum() > 3
        for name in ("classes", "valid", "boxes", "overflow"):
            np.testing.assert_array_equal(found[name][row], alone[name][0], name)
        np.testing.assert_allclose(found["masks"][row], alone["masks"][0], rtol=0, atol=1e-6)


def network(variant: str, **changes) -> segmenter.Segmenter:
    """A shrunk network of the shipped configs, its weights zeros."""
    config = shrink(load_config(variant))
    for key, value in changes.items():
        config.update_from_flattened_dict({key.replace("__", "."): value})
    with pytest.MonkeyPatch.context() as patch:
        # Not the nano network.
        patch.setattr("solojax.builders.segmentation.build_model", build_model)
        task = build_task(config, 3)
    shapes = segmenter.variable_shapes(task)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    categories = ((1, "a"), (2, "b"), (3, "c"))
    return segmenter.make_segmenter(config, task, variables, categories, step=0)


@pytest.mark.parametrize(
    "variant, changes, groups",
    [
        ("configs/quickstart.py", {"model__mask_features__kernel_size": 3}, {1, 2}),
        ("configs/solo.py:decoupled", {}, {1}),
        (
            "configs/solov2.py",
            {
                "model__backbone__groups": 4,
                "model__backbone__base_width": 32,
                "model__backbone__deformable": "v2",
                "model__dtype": "bfloat16",
            },
            {1, 4},
        ),
    ],
)
def test_what_depends_on_the_platform_is_chosen_when_it_is_known(variant, changes, groups):
    """Grouped and dynamic 3x3 convolutions have a form without groups for CPUs, beside the other.

    The groups are those of the convolution, or the images of the batch.
    """
    program = exported(network(variant, **changes), CANVAS, batch=2)
    assert program.platforms == PLATFORMS
    text = program.mlir_module()
    assert "custom_call" not in text
    assert set(map(int, re.findall(r"feature_group_count = (\d+)", text))) == groups


def test_a_network_that_needs_the_number_of_images():
    model = network("configs/quickstart.py", model__mask_features__kernel_size=3)
    with pytest.raises(InputError, match="batch symbolic: .*kernel_size=3.*give a number"):
        export_predictor(model, CANVAS, batch="symbolic")


@pytest.mark.parametrize(
    "canvas, options, message",
    [
        ((60, 64), {}, "canvas 60x64: .* multiples of 32"),
        ((64, 0), {}, "canvas 64x0: .* multiples of 32"),
        (CANVAS, {"platforms": ["cpu", "gpu"]}, "platform 'gpu' is unknown: .*cuda"),
        (CANVAS, {"platforms": []}, "platforms: the list is empty"),
        (CANVAS, {"batch": 0}, "batch 0: give 1 or more"),
        (CANVAS, {"batch": "many"}, "batch many: .*'symbolic'"),
    ],
)
def test_refusals(model, canvas, options, message):
    with pytest.raises(InputError, match=message):
        export_predictor(model, canvas, **options)


def test_without_flatbuffers(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(InputError, match="flatbuffers is not installed.*pip install flatbuffers"):
        export_predictor(model, CANVAS)


def test_the_default_canvas_holds_wide_images(model):
    assert default_canvas(model) == (64, 64)
    published = network("configs/quickstart.py")
    object.__setattr__(published, "short_side", 800)
    object.__setattr__(published, "long_side", 1333)
    assert default_canvas(published) == (800, 1344)


def test_settings_stand_beside_the_program(tmp_path):
    assert settings_path(tmp_path / "a.b.jaxexport") == tmp_path / "a.b.json"
    assert settings_path(tmp_path / "model.bin") == tmp_path / "model.bin.json"


@pytest.mark.parametrize(
    "original, threshold, width", [((57, 83), 0.5, 0), ((300, 201), 0.5, 3), ((20, 90), 0.4, 3)]
)
def test_the_loader_resizes_masks_as_the_package_does(original, threshold, width):
    """`scripts/run_exported.py` on made-up detections, bit for bit."""
    loader = load_script("run_exported")
    rng = np.random.default_rng(original[0])
    settings = {
        "short_side": 64, "long_side": 90, "batch": 2, "canvas": [96, 96], "mask_stride": 4,
        "mask_threshold": threshold, "categories": [{"id": 7, "name": "a"}, {"id": 3, "name": "b"}],
    }  # fmt: skip
    noise = rng.uniform(0, 1, (2, 5, 24, 24)).astype(np.float32)
    noise[0, 1] = 0.5
    noise[0, 2] *= np.float32(0.3)
    found = {
        "scores": np.linspace(1, 0.1, 10, dtype=np.float32).reshape(2, 5),
        "classes": rng.integers(0, 2, (2, 5)),
        "masks": noise,
        "valid": np.array([[True, True, True, True, False]] * 2),
    }
    if width:
        found["embeddings"] = rng.normal(size=(2, 5, width)).astype(np.float32)
    seen = []

    def program(image, size):
        seen.append((image, size))
        return found

    image = rng.integers(0, 256, (*original, 3), dtype=np.uint8)
    results = loader.detect(image, program, settings)
    ((canvas, sizes),) = seen
    assert canvas.shape == (2, 96, 96, 3) and canvas.dtype == np.uint8
    assert not canvas[1].any() and not sizes[1].any()
    expected = to_coco_results(
        found["scores"][0, :4],
        found["classes"][0, :4],
        noise[0, :4],
        image_size=sizes[0],
        original_size=original,
        image_id=1,
        category_ids=(7, 3),
        mask_threshold=threshold,
        drop_empty=True,
        embeddings=found["embeddings"][0, :4] if width else None,
    )
    assert [{"image_id": 1} | result for result in results] == expected
    kept = np.flatnonzero([True, threshold < 0.5, False, True])
    assert [r["score"] for r in results] == found["scores"][0, kept].tolist()


@pytest.fixture
def listed(tmp_path):
    """Writes a COCO json of (file_name, id) pairs."""

    def write(*images):
        path = tmp_path / "val.json"
        entries = [{"file_name": name, "id": id} for name, id in images]
        path.write_text(json.dumps({"images": entries}))
        return path

    return write


def test_ids_are_those_of_the_whole_file_name(listed, tmp_path, monkeypatch):
    image_ids = load_script("run_exported").image_ids
    annotations = listed(("left/a.jpg", 3), ("right/a.jpg", 4), ("a.jpg", 5), ("./b.jpg", 6))
    names = ("left/a.jpg", "right/a.jpg", "photos/a.jpg", "left/b.jpg")
    paths = [tmp_path / name for name in names]
    assert image_ids(annotations, paths) == dict(zip(paths, (3, 4, 5, 6), strict=True))
    (tmp_path / "right").mkdir()
    monkeypatch.chdir(tmp_path / "right")
    assert image_ids(annotations, [Path("a.jpg")]) == {Path("a.jpg"): 4}


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([("left/a.jpg", 3), ("b.jpg", 4)], "right/a.jpg: no image of "),
        ([("right/a.jpg", 3), ("right/a.jpg", 4)], "two images are 'right/a.jpg'"),
    ],
)
def test_an_image_without_an_id_of_its_own(listed, tmp_path, images, said):
    with pytest.raises(SystemExit) as end:
        load_script("run_exported").image_ids(listed(*images), [tmp_path / "right/a.jpg"])
    assert said in end.value.code and "\n" not in end.value.code


def test_annotations_without_a_file_name(tmp_path):
    path = tmp_path / "val.json"
    path.write_text('{"images": [{"file_name": "a.jpg", "id": 1}, {"id": 2}]}')
    with pytest.raises(SystemExit, match=r"val.json: images\[1\] has no file_name or no id"):
        load_script("run_exported").image_ids(path, [tmp_path / "a.jpg"])

"""The prediction step of a trained model as one file that runs without this project.

The file is what `jax.export` serializes: a StableHLO program with the weights in it, for one canvas
and for several platforms at once. A json file beside it says what whoever calls the program has to
know; `scripts/run_exported.py` is such a caller.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from solojax.builders.free_solo import embedding_width
from solojax.data.canvas import CANVAS_STEP
from solojax.errors import InputError
from solojax.inference.evaluation import write_json
from solojax.inference.segmenter import Segmenter
from solojax.structures import Array, Batch

PLATFORMS = ("cpu", "cuda", "tpu")
SYMBOLIC = "symbolic"
SUFFIX = ".jaxexport"
_KNOWN_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_MASK_STRIDE = 4


def export_predictor(
    segmenter: Segmenter,
    canvas: tuple[int, int],
    platforms: Sequence[str] = PLATFORMS,
    batch: int | str = 1,
) -> bytes:
    """The prediction step, weights included, as the bytes of `jax.export`.

    `jax.export.deserialize(bytearray(data)).call(image, image_size)` runs it:

        image         (B, H, W, 3) uint8 RGB, the resized image in the upper left corner
        image_size    (B, 2) int32, its (height, width); a row of zeros is padding, in which
                      nothing is found

    It returns a dict, everything to Matrix NMS and the choice of the best included:

        scores        (B, M) float32, descending
        classes       (B, M) int32, the position in `segmenter.categories`
        boxes         (B, M, 4) float32 xyxy in canvas pixels, around the mask at 1/4 scale
        masks         (B, M, H/4, W/4) float32 probabilities
        valid         (B, M) bool, False where there are fewer than M = `max_detections`
        overflow      (B,) int32, candidates above the score threshold beyond `max_candidates`
        embeddings    (B, M, E) float32, where the network predicts them: of length 1

    On one machine it finds what `segmenter.predict` finds, where that takes the same canvas. Most
    often all bits are equal; in narrow networks the last digits may differ (1e-7 of a probability),
    because the compiler lays out weights that it knows as suits it.

    Args:
      segmenter: the trained model.
      canvas: (H, W), multiples of 32. A canvas is a program of its own: for images of several
        shapes, export several.
      platforms: names of JAX's platforms that the program is lowered for; none of them need be at
        hand.
      batch: B, or "symbolic" for a program that takes any number of images.

    Raises:
      InputError: a platform is unknown, the canvas or the batch is none, or flatbuffers is missing.
    """
    require_flatbuffers()
    _check_canvas(canvas)
    shapes = _argument_shapes(segmenter, canvas, batch)
    program = export.export(jax.jit(_predictor(segmenter)), platforms=check_platforms(platforms))
    return bytes(program(*shapes).serialize())


def write_export(
    segmenter: Segmenter,
    path: Path,
    canvas: tuple[int, int],
    platforms: Sequence[str] = PLATFORMS,
    batch: int | str = 1,
) -> Path:
    """Writes `export_predictor`'s bytes and, beside them, a json file with the settings.

    Either is whole or, where writing fails, what it was before. The json names the checksum of the
    program that it belongs to.

    Returns:
      The path of the json file, see `settings_path`.

    Raises:
      InputError: as `export_predictor`.
    """
    platforms = check_platforms(platforms)
    data = export_predictor(segmenter, canvas, platforms, batch)
    settings = describe_export(segmenter, canvas, platforms, batch)
    settings["program"] = {"file": path.name, "sha256": hashlib.sha256(data).hexdigest()}
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    write_json(settings, settings_path(path))
    return settings_path(path)


def settings_path(path: Path) -> Path:
    """The json file beside a program: model.json for model.jaxexport, NAME.json for NAME."""
    return path.with_name(path.name.removesuffix(SUFFIX) + ".json")


def describe_export(
    segmenter: Segmenter, canvas: tuple[int, int], platforms: Sequence[str], batch: int | str
) -> dict:
    """What has to be known to feed the program and to read what it returns, as json takes it."""
    height, width = canvas
    found = segmenter.config.evaluation.max_detections
    size = embedding_width(segmenter.config)
    rows = "B" if batch == SYMBOLIC else batch
    quarter = [height // _MASK_STRIDE, width // _MASK_STRIDE]
    return {
        "platforms": list(platforms),
        "batch": batch,
        "canvas": [height, width],
        "canvas_multiple": CANVAS_STEP,
        "short_side": segmenter.short_side,
        "long_side": segmenter.long_side,
        "pixel_order": "RGB",
        "mask_stride": _MASK_STRIDE,
        "mask_threshold": segmenter.config.evaluation.mask_threshold,
        "categories": [{"id": id, "name": name} for id, name in segmenter.categories],
        "inputs": [
            _array("image", "uint8", [rows, height, width, 3]),
            _array("image_size", "int32", [rows, 2]),
        ],
        "outputs": [
            _array("scores", "float32", [rows, found]),
            _array("classes", "int32", [rows, found]),
            _array("boxes", "float32", [rows, found, 4]),
            _array("masks", "float32", [rows, found, *quarter]),
            _array("valid", "bool", [rows, found]),
            _array("overflow", "int32", [rows]),
            *([_array("embeddings", "float32", [rows, found, size])] if size else []),
        ],
        "step": segmenter.step,
        "jax": jax.__version__,
    }


def default_canvas(segmenter: Segmenter) -> tuple[int, int]:
    """The canvas that holds every image that is wider than high."""
    short, long = (
        -(-side // CANVAS_STEP) * CANVAS_STEP
        for side in (segmenter.short_side, segmenter.long_side)
    )
    return min(short, long), long


def check_platforms(platforms: Sequence[str]) -> tuple[str, ...]:
    """The platforms, each once.

    Raises:
      InputError: there are none, or JAX does not know one.
    """
    known = "cpu, cuda (NVIDIA), rocm (AMD), tpu"
    if not platforms:
        raise InputError(f"platforms: the list is empty; give some of {known}")
    unknown = [platform for platform in platforms if platform not in _KNOWN_PLATFORMS]
    if unknown:
        raise InputError(f"platform '{unknown[0]}' is unknown: give some of {known}")
    return tuple(dict.fromkeys(platforms))


def require_flatbuffers() -> None:
    """Raises an InputError unless the package that `jax.export` writes with is there."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise InputError(
            "package flatbuffers is not installed, without which JAX cannot write a program to a "
            "file: run `pip install flatbuffers`"
        )


def _predictor(segmenter: Segmenter) -> Callable[[Array, Array], dict[str, Array]]:
    task, weights = segmenter.task, jax.device_get(segmenter.variables)

    def predict(image: Array, image_size: Array) -> dict[str, Array]:
        # Behind the barrier weights are no constants to the compiler, which would fold what it can
        # into other numbers than those that `Segmenter.predict` computes.
        variables = jax.lax.optimization_barrier(weights)
        rows = image.shape[0]
        zeros = jnp.zeros(rows, jnp.int32)
        batch = Batch(
            image=image,
            image_size=image_size,
            original_size=image_size,
            valid=jnp.all(image_size > 0, axis=1),
            image_index=zeros,
            seed=zeros.astype(jnp.uint32),
            dropped_instances=zeros,
            instances=None,
        )
        found = task.predict(variables, batch)
        embeddings = {} if found.embeddings is None else {"embeddings": found.embeddings}
        return {
            "scores": found.scores,
            "classes": found.labels,
            "boxes": found.boxes,
            "masks": found.masks,
            "valid": found.valid,
            "overflow": found.overflow,
            **embeddings,
        }

    return predict


def _argument_shapes(
    segmenter: Segmenter, canvas: tuple[int, int], batch: int | str
) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    rows = batch
    if batch == SYMBOLIC:
        if segmenter.config.model.mask_features.kernel_size != 1:
            raise InputError(
                "batch symbolic: a network with model.mask_features.kernel_size="
                f"{segmenter.config.model.mask_features.kernel_size} takes images one by one on "
                "CPUs and needs their number: give a number"
            )
        (rows,) = export.symbolic_shape("B")
    elif not isinstance(batch, int) or batch < 1:
        raise InputError(f"batch {batch}: give 1 or more images, or '{SYMBOLIC}' for any number")
    return (
        jax.ShapeDtypeStruct((rows, *canvas, 3), np.uint8),
        jax.ShapeDtypeStruct((rows, 2), np.int32),
    )


def _check_canvas(canvas: tuple[int, int]) -> None:
    if len(canvas) != 2 or any(side <= 0 or side % CANVAS_STEP for side in canvas):
        raise InputError(
            f"canvas {'x'.join(map(str, canvas))}: height and width must be positive multiples of "
            f"{CANVAS_STEP}; round them up"
        )


def _array(name: str, dtype: str, shape: list[int | str]) -> dict:
    return {"name": name, "dtype": dtype, "shape": shape}

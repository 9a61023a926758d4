"""What another system computed, as `solojax convert --verify` takes it: an .npz file."""

from __future__ import annotations

import dataclasses
import os
import re
import zipfile

import numpy as np

from solojax.errors import InputError

_LAYOUTS = ("NHWC", "NCHW")
_PRECISIONS = ("float32", "float64")
_PYRAMID = re.compile(r"input_p(\d+)")
_INSTANCES = re.compile(r"image(\d+)/(\w+)")
_SAMPLE = re.compile(r"(.+)/(shape|idx|val)")


@dataclasses.dataclass(frozen=True)
class Sample:
    """Some numbers of an array that would be too large whole.

    Attributes:
      shape: of the whole array, channels last.
      index: (n,) positions in the flattened array.
      values: (n,) what stands there.
    """

    shape: tuple[int, ...]
    index: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class RecordedInstances:
    """The final objects of one image, in any order.

    Attributes:
      scores: (N,).
      classes: (N,) contiguous, from 0.
      masks: (N, H0, W0) bool at the original size, or None.
    """

    scores: np.ndarray
    classes: np.ndarray
    masks: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Recording:
    """What was recorded of another system.

    Attributes:
      image: (B, H, W, 3) uint8 RGB, zero beyond `image_size`; H and W multiples of 32.
      image_size: (B, 2) valid (height, width).
      original_size: (B, 2) (height, width) to which masks were resized.
      stages: recorded array, or a sample of one, by stage; those of four axes channels last.
      pyramid: P2, P3, ... that the heads read in the place of the network's own; () for its own.
      instances: final objects by row of the batch.
      float64: whether to compute in double precision.
    """

    image: np.ndarray
    image_size: np.ndarray
    original_size: np.ndarray
    stages: dict[str, np.ndarray | Sample]
    pyramid: tuple[np.ndarray, ...] = ()
    instances: dict[int, RecordedInstances] = dataclasses.field(default_factory=dict)
    float64: bool = False


def read_recording(path: str | os.PathLike) -> Recording:
    """Reads the .npz file that `solojax convert --verify` takes.

    image             (B, H, W, 3) uint8 RGB, padded to multiples of 32
    image_size        (B, 2) valid (height, width), unless the images fill it
    original_size     (B, 2) size of recorded masks, unless that is `image_size`
    STAGE             a recorded array by its name, see `network_stages` in
                      `solojax.conversion.verification`
    STAGE/shape, STAGE/idx, STAGE/val
                      a sample in its place: positions in the flattened array, and what is there
    image0/scores, image0/classes, image0/masks
                      final objects of the first image: (N,), (N,) from 0, and (N, H0, W0) of 0 and
                      1, which may be left out; image1/... of the next
    input_p2, ...     the whole pyramid, to be read by the heads in the place of the network's own:
                      what neck and backbone are off does not count then
    layout            "NCHW" where arrays of four axes (but `image`) have channels second
    precision         "float64" to compute in double precision

    Raises:
      InputError: the file is no such file.
    """
    arrays = _read_arrays(path)
    layout = _choice(path, arrays, "layout", _LAYOUTS)
    precision = _choice(path, arrays, "precision", _PRECISIONS)
    image = arrays.pop("image", None)
    if image is None or image.ndim != 4 or image.shape[3] != 3 or image.dtype != np.uint8:
        raise InputError(f"{path}: 'image' is absent or odd; give (B, H, W, 3) uint8 RGB")
    if any(side % 32 for side in image.shape[1:3]):
        raise InputError(
            f"{path}: 'image' is {image.shape[1]}x{image.shape[2]}; pad its sides to multiples of "
            "32, and give 'image_size'"
        )
    image_size = _sizes(path, arrays, "image_size", np.tile(image.shape[1:3], (len(image), 1)))
    original_size = _sizes(path, arrays, "original_size", image_size)
    instances = _take_instances(path, arrays, original_size)
    arrays = _samples(path, arrays, layout)
    if layout == "NCHW":
        arrays = {name: _channels_last(array) for name, array in arrays.items()}
    pyramid = _take_pyramid(path, arrays)
    if not arrays and not instances:
        raise InputError(f"{path}: no stage is recorded in it; add arrays named as our stages")
    return Recording(
        image=image,
        image_size=image_size,
        original_size=original_size,
        stages=arrays,
        pyramid=pyramid,
        instances=instances,
        float64=precision == "float64",
    )


def _read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("a single array")
        with file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: is no readable .npz ({error}); write it by np.savez") from error


def _choice(path, arrays: dict, name: str, choices: tuple[str, str]) -> str:
    """One of two words, the first unless the file says it."""
    value = str(arrays.pop(name, choices[0]))
    if value not in choices:
        raise InputError(f"{path}: '{name}' is '{value}'; give {' or '.join(choices)}")
    return value


def _sizes(path, arrays: dict, name: str, default: np.ndarray) -> np.ndarray:
    size = arrays.pop(name, default)
    if size.shape != default.shape:
        raise InputError(f"{path}: '{name}' is {size.shape}; give (height, width) per image")
    return size.astype(np.int32)


def _channels_last(array: np.ndarray | Sample) -> np.ndarray | Sample:
    if isinstance(array, np.ndarray) and array.ndim == 4:
        return array.transpose(0, 2, 3, 1)
    return array


def _samples(path, arrays: dict, layout: str) -> dict[str, np.ndarray | Sample]:
    """The arrays, those that stand for a sample put together."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for name in [name for name in arrays if "/" in name]:
        match = _SAMPLE.fullmatch(name)
        if match is None:
            raise InputError(
                f"{path}: '{name}' is unknown; a sample has STAGE/shape, STAGE/idx and STAGE/val"
            )
        found.setdefault(match[1], {})[match[2]] = arrays.pop(name)
    for stage, parts in found.items():
        if len(parts) < 3 or parts["idx"].shape != parts["val"].shape or stage in arrays:
            raise InputError(
                f"{path}: the sample of '{stage}' is odd; give {stage}/shape, and as many numbers "
                f"in {stage}/idx as in {stage}/val, in the place of '{stage}' itself"
            )
        shape, index = tuple(int(side) for side in parts["shape"]), parts["idx"].ravel()
        if index.size and not 0 <= index.min() <= index.max() < np.prod(shape):
            raise InputError(f"{path}: '{stage}/idx' leaves an array of {shape}; mend it")
        if layout == "NCHW" and len(shape) == 4:
            b, c, h, w = np.unravel_index(index, shape)
            shape = (shape[0], shape[2], shape[3], shape[1])
            index = np.ravel_multi_index((b, h, w, c), shape)
        arrays[stage] = Sample(shape, index, parts["val"].ravel())
    return arrays


def _take_pyramid(path, arrays: dict) -> tuple[np.ndarray, ...]:
    """The entries input_p2, input_p3, ..., taken out."""
    levels = {int(match[1]): name for name in arrays if (match := _PYRAMID.fullmatch(name))}
    if sorted(levels) != list(range(2, 2 + len(levels))):
        raise InputError(f"{path}: input_p{max(levels)} is there without all from input_p2 on")
    return tuple(arrays.pop(levels[level]) for level in sorted(levels))


def _take_instances(path, arrays: dict, sizes: np.ndarray) -> dict[int, RecordedInstances]:
    """The entries image0/scores, ..., taken out."""
    found: dict[int, dict[str, np.ndarray]] = {}
    for name in list(arrays):
        if match := _INSTANCES.fullmatch(name):
            found.setdefault(int(match[1]), {})[match[2]] = arrays.pop(name)
    instances = {}
    for row, parts in found.items():
        count, size = len(parts.get("scores", ())), tuple(sizes[row]) if row < len(sizes) else None
        wanted = {"scores": (count,), "classes": (count,), "masks": (count, *(size or ()))}
        shapes = {name: array.shape for name, array in parts.items()}
        if size is None or shapes != {name: wanted[name] for name in shapes if name in wanted}:
            raise InputError(
                f"{path}: image{row}/... has {shapes}; give scores (N,), classes (N,) and masks "
                f"(N, height, width) at 'original_size', for image0 to image{len(sizes) - 1}"
            )
        if not {"scores", "classes"} <= parts.keys():
            raise InputError(f"{path}: image{row}/scores and image{row}/classes go together")
        masks = parts.get("masks")
        instances[row] = RecordedInstances(
            parts["scores"], parts["classes"], None if masks is None else masks != 0
        )
    return dict(sorted(instances.items()))

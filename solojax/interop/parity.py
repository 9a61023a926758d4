"""Recorded outputs of another system beside ours, stage by stage."""

from __future__ import annotations

import dataclasses
import os
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np

from solojax.errors import InputError

# What the golden sets allow of features and heads: a part of the recorded array's largest value.
TOLERANCE = 1e-4
_IMAGE, _IMAGE_SIZE, _LAYOUT = "image", "image_size", "layout"


@dataclasses.dataclass(frozen=True)
class Recording:
    """What was recorded of another system.

    Attributes:
      image: (B, H, W, 3) uint8 RGB, zero beyond `image_size`; H and W multiples of 32.
      image_size: (B, 2) valid (height, width).
      stages: recorded array by stage, four-dimensional ones channels-last.
    """

    image: np.ndarray
    image_size: np.ndarray
    stages: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class StageReport:
    """How far one stage is off.

    Attributes:
      stage: its name.
      shape: of both arrays.
      largest: difference of two numbers, absolute.
      mean: difference, absolute.
      cosine: of both arrays as vectors; 1 for two of zeros.
      scale: largest absolute value recorded.
      allowed: difference, the tolerance times the scale.
      passed: whether all numbers are finite and no difference is larger than allowed.
    """

    stage: str
    shape: tuple[int, ...]
    largest: float
    mean: float
    cosine: float
    scale: float
    allowed: float
    passed: bool


def read_recording(path: str | os.PathLike) -> Recording:
    """Reads the .npz file that `solojax convert --verify` takes.

    It holds `image` (B, H, W, 3) uint8 RGB, padded to multiples of 32, `image_size` (B, 2) unless
    the images fill it, and the recorded stages. Where `layout` is "NCHW", stages of four axes have
    their channels second, as PyTorch has them.

    Raises:
      InputError: the file is no such file.
    """
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("a single array")
        with file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: is no readable .npz ({error}); write it by np.savez") from error
    layout = str(arrays.pop(_LAYOUT, "NHWC"))
    image = arrays.pop(_IMAGE, None)
    if image is None or image.ndim != 4 or image.shape[3] != 3 or image.dtype != np.uint8:
        raise InputError(f"{path}: 'image' is absent or odd; give (B, H, W, 3) uint8 RGB")
    if any(side % 32 for side in image.shape[1:3]):
        raise InputError(
            f"{path}: 'image' is {image.shape[1]}x{image.shape[2]}; pad its sides to multiples of "
            "32, and give 'image_size'"
        )
    if layout not in ("NHWC", "NCHW"):
        raise InputError(f"{path}: 'layout' is '{layout}'; give NHWC or NCHW")
    size = arrays.pop(_IMAGE_SIZE, np.tile(image.shape[1:3], (len(image), 1)))
    if size.shape != (len(image), 2):
        raise InputError(f"{path}: 'image_size' is {size.shape}; give (height, width) per image")
    if not arrays:
        raise InputError(f"{path}: no stage is recorded in it; add arrays named as our stages")
    if layout == "NCHW":
        arrays = {k: a.transpose(0, 2, 3, 1) if a.ndim == 4 else a for k, a in arrays.items()}
    return Recording(image, size.astype(np.int32), arrays)


def compare_stages(
    recorded: Mapping[str, np.ndarray],
    ours: Mapping[str, np.ndarray],
    tolerance: float = TOLERANCE,
) -> list[StageReport]:
    """Compares every recorded stage with ours, in the order of ours.

    Args:
      recorded: arrays by stage.
      ours: likewise; may hold more.
      tolerance: allowed difference as a part of the recorded array's largest absolute value.

    Raises:
      InputError: a stage is unknown or of another shape.
    """
    for stage, array in recorded.items():
        if stage not in ours:
            known = ", ".join(ours)
            raise InputError(f"stage '{stage}' is recorded and not known; use one of {known}")
        if array.shape != ours[stage].shape:
            raise InputError(
                f"stage '{stage}' is recorded as {array.shape} and is {ours[stage].shape} here, "
                "channels last; record the same image, or say layout=NCHW in the file"
            )
    return [_compare(s, recorded[s], ours[s], tolerance) for s in ours if s in recorded]


def report_table(reports: Sequence[StageReport]) -> str:
    """The reports as a table of text."""
    head = ("stage", "shape", "largest diff", "mean diff", "cosine", "allowed", "")
    rows = [
        (
            report.stage,
            "x".join(map(str, report.shape)),
            f"{report.largest:.3e}",
            f"{report.mean:.3e}",
            f"{report.cosine:.9f}",
            f"{report.allowed:.3e}",
            "pass" if report.passed else "FAIL",
        )
        for report in reports
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    )


def _compare(stage: str, recorded: np.ndarray, ours: np.ndarray, tolerance: float) -> StageReport:
    a, b = recorded.astype(np.float64).ravel(), ours.astype(np.float64).ravel()
    difference = np.abs(a - b)
    scale = float(np.abs(a).max(initial=0.0))
    largest = float(difference.max(initial=0.0))
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    both_zero = not a.any() and not b.any()
    return StageReport(
        stage=stage,
        shape=recorded.shape,
        largest=largest,
        mean=float(difference.mean()) if a.size else 0.0,
        cosine=1.0 if both_zero else float(a @ b) / norms if norms else 0.0,
        scale=scale,
        allowed=tolerance * scale,
        # A comparison with NaN is false.
        passed=largest <= tolerance * scale,
    )

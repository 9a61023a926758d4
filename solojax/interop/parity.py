"""Recorded outputs of another system beside ours, stage by stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from solojax.errors import InputError
from solojax.interop.recordings import RecordedInstances, Sample

# What the golden sets allow of features and heads: a part of the recorded array's largest value.
TOLERANCE = 1e-4
# What they allow of final objects: scores move when one pixel of a mask flips at 0.5.
SCORE_TOLERANCE = 5e-4
LEAST_IOU = 0.995


@dataclasses.dataclass(frozen=True)
class StageReport:
    """How far one stage is off.

    Attributes:
      stage: its name.
      shape: of both arrays.
      largest: difference of two numbers, absolute.
      mean: difference, absolute.
      cosine: of both arrays as vectors; 1 for two of zeros; None where they are no vectors.
      scale: largest absolute value recorded.
      allowed: difference.
      passed: whether all numbers are finite and no difference is larger than allowed.
    """

    stage: str
    shape: tuple[int, ...]
    largest: float
    mean: float
    cosine: float | None
    scale: float
    allowed: float
    passed: bool


def check_stages(
    recorded: Mapping[str, np.ndarray | Sample], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises an InputError where a recorded stage is unknown, or of another shape than ours."""
    for stage, array in recorded.items():
        if stage not in shapes:
            known = ", ".join(shapes)
            raise InputError(f"stage '{stage}' is recorded and not known; use one of {known}")
        if array.shape != shapes[stage]:
            raise InputError(
                f"stage '{stage}' is recorded as {array.shape} and is {shapes[stage]} here, "
                "channels last; record the same image, or say layout=NCHW in the file"
            )


def compare_stages(
    recorded: Mapping[str, np.ndarray | Sample],
    ours: Mapping[str, np.ndarray],
    tolerance: float = TOLERANCE,
) -> list[StageReport]:
    """Compares every recorded stage with ours, in the order of ours.

    Args:
      recorded: arrays, or samples of them, by stage.
      ours: whole arrays likewise; may hold more.
      tolerance: allowed difference as a part of the recorded array's largest absolute value.

    Raises:
      InputError: a stage is unknown or of another shape.
    """
    check_stages(recorded, {stage: array.shape for stage, array in ours.items()})
    return [_compare_stage(s, recorded[s], ours[s], tolerance) for s in ours if s in recorded]


def compare_instances(
    name: str,
    recorded: RecordedInstances,
    ours: RecordedInstances,
    score_tolerance: float = SCORE_TOLERANCE,
    least_iou: float = LEAST_IOU,
) -> list[StageReport]:
    """Compares the final objects of an image: which there are, their scores, their masks.

    Every recorded object gets a partner of its class, one that is within the tolerances if there
    is one: objects whose scores are closer than the tolerance may come in another order.

    Args:
      name: of the image, with which the names of the reports begin.
      recorded: objects of the other system.
      ours: likewise; masks are compared where both have them.
      score_tolerance: allowed difference of scores, absolute.
      least_iou: of two partners' masks; two empty ones have 1.
    """
    iou = _mask_iou(recorded.masks, ours.masks)
    pairs = _partners(recorded, ours, iou, score_tolerance, least_iou)
    first, second = np.array(pairs, int).reshape(-1, 2).T
    count = len(recorded.scores)
    alone = float(count + len(ours.scores) - 2 * len(pairs))
    scores = recorded.scores[first], ours.scores[second]
    reports = [
        StageReport(
            f"{name} objects", (count,), alone, alone / max(count, 1), None, count, 0.0, not alone
        ),
        _report(f"{name} scores", (len(pairs),), *scores, score_tolerance),
    ]
    if iou is not None:
        lost = 1.0 - iou[first, second]
        none = np.zeros_like(lost)
        report = _report(f"{name} masks, 1-IoU", recorded.masks.shape, none, lost, 1 - least_iou)
        reports.append(dataclasses.replace(report, cosine=None))
    return reports


def report_table(reports: Sequence[StageReport]) -> str:
    """The reports as a table of text."""
    head = ("stage", "shape", "largest diff", "mean diff", "cosine", "allowed", "")
    rows = [
        (
            report.stage,
            "x".join(map(str, report.shape)),
            f"{report.largest:.3e}",
            f"{report.mean:.3e}",
            "-" if report.cosine is None else f"{report.cosine:.9f}",
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


def _compare_stage(
    stage: str, recorded: np.ndarray | Sample, ours: np.ndarray, tolerance: float
) -> StageReport:
    if isinstance(recorded, Sample):
        recorded_values, ours = recorded.values, ours.ravel()[recorded.index]
    else:
        recorded_values = recorded
    scale = float(np.abs(recorded_values.astype(np.float64)).max(initial=0.0))
    return _report(stage, recorded.shape, recorded_values, ours, tolerance * scale)


def _report(
    stage: str, shape: tuple[int, ...], recorded: np.ndarray, ours: np.ndarray, allowed: float
) -> StageReport:
    a, b = recorded.astype(np.float64).ravel(), ours.astype(np.float64).ravel()
    difference = np.abs(a - b)
    largest = float(difference.max(initial=0.0))
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    both_zero = not a.any() and not b.any()
    return StageReport(
        stage=stage,
        shape=shape,
        largest=largest,
        mean=float(difference.mean()) if a.size else 0.0,
        cosine=1.0 if both_zero else float(a @ b) / norms if norms else 0.0,
        scale=float(np.abs(a).max(initial=0.0)),
        allowed=allowed,
        # A comparison with NaN is false.
        passed=largest <= allowed,
    )


def _partners(
    recorded: RecordedInstances,
    ours: RecordedInstances,
    iou: np.ndarray | None,
    score_tolerance: float,
    least_iou: float,
) -> list[tuple[int, int]]:
    """Pairs (recorded, ours) of one class, the best for every recorded object in turn."""
    pairs, left = [], set(range(len(ours.scores)))
    for j, (score, label) in enumerate(zip(recorded.scores, recorded.classes, strict=True)):

        def rank(i, j=j, score=score):
            gap = abs(float(ours.scores[i]) - float(score))
            overlap = 1.0 if iou is None else iou[j, i]
            within = gap <= score_tolerance and overlap >= least_iou
            return (0, gap, -overlap) if within else (1, -overlap, gap)

        same = [i for i in left if ours.classes[i] == label]
        if same:
            best = min(same, key=rank)
            left.remove(best)
            pairs.append((j, best))
    return pairs


def _mask_iou(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
    """(N, M) of (N, H, W) and (M, H, W) bool; None where there are no masks."""
    if first is None or second is None:
        return None
    pixels = first.shape[1] * first.shape[2]
    a, b = (masks.reshape(len(masks), pixels).astype(np.float32) for masks in (first, second))
    shared = a @ b.T
    union = a.sum(axis=1)[:, None] + b.sum(axis=1) - shared
    return np.where(union > 0, shared / np.maximum(union, 1), 1.0)

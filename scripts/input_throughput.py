"""How fast training images are read and prepared, phase by phase, and what padding costs.

    python scripts/input_throughput.py --annotations train.json --images train2017

The rows are those of a training run by COCO's recipe: short side 640 to 800, at most 1333, flips.
Beside this package's row stands a plain loop of OpenCV and pycocotools, written here, which does
the published work: read, resize, flip, masks from the annotations at full size, masks to 1/4, pad.
Ours also looks for truncated files, computes centres of mass and packs the masks' bits.

Rows and phases run on one core (OpenCV's own threads are off) and take turns, and what counts is
processor time, so that other programs matter little. The loader is timed by the clock, from one
delivered batch to another, after its start. Without --images, only the padding is reported.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from pycocotools.coco import COCO

from solojax.data.canvas import Buckets, CanvasPolicy, multiple_of_32
from solojax.data.coco import CocoDataset, ImageRecord, load_coco
from solojax.data.loader import train_batches
from solojax.data.mask_window import MaskWindow, decode_window, shrink_and_pack
from solojax.data.padding_waste import padding_waste
from solojax.data.plan import StepPlan, TrainPlan
from solojax.data.rows import TrainRows
from solojax.data.segmentation import center_of_mass
from solojax.data.transforms import make_example, resized_shape

PHASES = ("decode", "image", "masks", "packing")


@dataclasses.dataclass(frozen=True)
class Row:
    """What one row of a step reads: see `StepPlan`."""

    index: int
    short_side: int
    flip: bool
    canvas: tuple[int, int]
    seed: int


def main(argv: list[str] | None = None) -> None:
    """Measures and prints."""
    args = _parse(argv)
    cv2.setNumThreads(1)
    dataset = load_coco(args.annotations, args.images or os.path.dirname(args.annotations) or ".")
    buckets = Buckets.for_images(args.short_sides, args.long_side)
    plan = make_plan(args, dataset, buckets)
    print_padding(plan, f"buckets, {args.batch} images a step")
    exact = make_plan(args, dataset, multiple_of_32)
    print_padding(exact, f"multiples of 32, {args.batch} images a step")
    if not args.images:
        return
    rows = rows_of(plan, args.rows)
    reader = TrainRows(dataset, args.long_side, args.max_instances)
    seconds = time_rows(reader, rows, PlainLoop(args.annotations, args.images))
    print_rows(seconds, rows, dataset)
    print_loader(plan, reader, args)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", required=True, help="COCO json")
    parser.add_argument("--images", help="folder of its images")
    parser.add_argument("--rows", type=int, default=100, help="rows that are timed one by one")
    parser.add_argument("--batch", type=int, default=16, help="images of a global step")
    parser.add_argument("--batches", type=int, default=8, help="batches that the loader is timed")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2, 8], help="of the loader")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2], help="of the loader")
    parser.add_argument(
        "--short_sides", type=int, nargs="+", default=[640, 672, 704, 736, 768, 800]
    )
    parser.add_argument("--long_side", type=int, default=1333)
    parser.add_argument("--max_instances", type=int, default=100)
    return parser.parse_args(argv)


def make_plan(args: argparse.Namespace, dataset: CocoDataset, policy: CanvasPolicy) -> TrainPlan:
    """Training by the recipe of the flags."""
    return TrainPlan(
        sizes=np.array([(image.height, image.width) for image in dataset.images]),
        batch_size=args.batch,
        seed=0,
        short_sides=tuple(args.short_sides),
        long_side=args.long_side,
        flip_probability=0.5,
        choose_canvas=policy,
        resized_shape=resized_shape,
        group_by_orientation=True,
    )


def rows_of(plan: TrainPlan, count: int) -> list[Row]:
    """The first rows of training."""

    def split(step: StepPlan) -> list[Row]:
        fields = (step.image_indices, step.short_sides, step.flips, step.seeds)
        return [
            Row(index, short_side, flip, step.canvas, seed)
            for index, short_side, flip, seed in zip(*(f.tolist() for f in fields), strict=True)
        ]

    steps = range(-(-count // plan.batch_size))
    return [row for step in steps for row in split(plan.at(step))][:count]


class PlainLoop:
    """What one would write with OpenCV and pycocotools alone."""

    def __init__(self, annotations: str, images: str):
        with contextlib.redirect_stdout(None):
            self._coco, self._images = COCO(annotations), images
        self._entries = self._coco.dataset["images"]

    def __call__(self, row: Row, long_side: int) -> tuple[np.ndarray, np.ndarray]:
        """The padded RGB image (H, W, 3), and the masks (objects, H/4, W/4) uint8."""
        entry = self._entries[row.index]
        image = cv2.imread(
            os.path.join(self._images, entry["file_name"]),
            cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION,
        )
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        height, width = image.shape[:2]
        scale = min(row.short_side / min(height, width), long_side / max(height, width))
        height, width = int(height * scale + 0.5), int(width * scale + 0.5)
        image = cv2.resize(image, (width, height))
        padded = np.zeros((*row.canvas, 3), np.uint8)
        padded[:height, :width] = cv2.flip(image, 1) if row.flip else image

        annotations = self._coco.loadAnns(self._coco.getAnnIds(entry["id"], iscrowd=False))
        masks = np.zeros((len(annotations), row.canvas[0] // 4, row.canvas[1] // 4), np.uint8)
        for annotation, out in zip(annotations, masks, strict=True):
            mask = self._coco.annToMask(annotation)
            mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
            if row.flip:
                mask = cv2.flip(mask, 1)
            small = cv2.resize(mask, (int(width / 4 + 0.5), int(height / 4 + 0.5)))
            out[: small.shape[0], : small.shape[1]] = small
        return padded, masks


def time_rows(reader: TrainRows, rows: Sequence[Row], plain: PlainLoop) -> dict[str, list[float]]:
    """Processor seconds of every phase, of the whole row and of the plain loop, for every row."""
    seconds: dict[str, list[float]] = {}

    def timed(name: str, function: Callable, *args):
        start = time.process_time()
        value = function(*args)
        seconds.setdefault(name, []).append(time.process_time() - start)
        return value

    def whole(row: Row):
        return reader(row.index, row.short_side, row.flip, row.canvas, row.seed)

    for row in rows[:2]:  # the first calls load libraries
        whole(row)
        plain(row, reader.long_side)
    for row in rows:
        image, record = timed("decode", reader.dataset.read, row.index)
        height, width = timed("image", place_image, image, record, row, reader.long_side)
        masks = timed("masks", transform_masks, record, row.flip, height, width)
        timed("packing", shrink_masks, masks, height, width)
        timed("row", whole, row)
        timed("plain", plain, row, reader.long_side)
    return seconds


def place_image(image: np.ndarray, record: ImageRecord, row: Row, long_side: int) -> list[int]:
    """Resizes, flips and pads the image alone; returns (height, width)."""
    example = make_example(
        image,
        dataclasses.replace(record, annotations=()),
        short_side=row.short_side,
        long_side=long_side,
        flip=row.flip,
        canvas=row.canvas,
        max_instances=0,
        min_mask_area=1,
        seed=row.seed,
        image_index=row.index,
    )
    return example["image_size"].tolist()


def transform_masks(record: ImageRecord, flip: bool, height: int, width: int) -> list[MaskWindow]:
    """The masks at the resized image's size, and their centres of mass."""

    def transform(segmentation) -> MaskWindow:
        mask = decode_window(segmentation, record.height, record.width, height, width)
        mask = mask.flipped(width) if flip else mask
        center_of_mass(mask.mask, mask.top, mask.left)
        return mask

    return [transform(each.segmentation) for each in record.annotations if not each.iscrowd]


def shrink_masks(masks: Sequence[MaskWindow], height: int, width: int) -> None:
    """Masks to 1/4 and to bits."""
    sheet = np.zeros((height, width), np.uint8)
    for mask in masks:
        mask.paste(sheet)
        shrink_and_pack(sheet, mask, 4)
        mask.erase(sheet)


def print_padding(plan: TrainPlan, title: str) -> None:
    """Padding in the first epoch, and in its commonest canvases."""
    waste = padding_waste(plan, range(plan.steps_per_epoch))
    print(f"{title}: {waste}")
    for (height, width), (steps, share) in list(waste.canvases.items())[:6]:
        print(f"{height:8} x {width:<5}{steps:7} steps {share:8.1%}")


def print_rows(seconds: dict[str, list[float]], rows: Sequence[Row], dataset: CocoDataset) -> None:
    """A table of phases, and the ratio to the plain loop."""
    objects = statistics.mean(len(dataset.images[row.index].annotations) for row in rows)
    print(f"\none core, {len(rows)} rows of {objects:.1f} objects on average, processor time")
    print(f"{'':24}{'ms a row':>10}{'median':>10}{'rows/s per core':>18}")
    for name in (*PHASES, "row", "plain"):
        title = {"row": "whole row", "plain": "plain loop"}.get(name, f"  {name}")
        mean, median = statistics.mean(seconds[name]), statistics.median(seconds[name])
        print(f"{title:24}{1e3 * mean:10.2f}{1e3 * median:10.2f}{1 / mean:18.1f}")
    ratio = sum(seconds["plain"]) / sum(seconds["row"])
    print(f"whole row against plain loop: {ratio:.2f} times as fast")


def print_loader(plan: TrainPlan, reader: TrainRows, args: argparse.Namespace) -> None:
    """Images a second through the loader, by the clock."""
    print(f"\nloader, {args.batch} images a batch, {os.cpu_count()} cores, by the clock")
    print(f"{'':24}{'images/s':>10}{'per core busy':>18}")
    settings = [{"threads": n} for n in args.threads]
    settings += [{"threads": 1, "workers": n} for n in args.workers]
    for options in settings:
        rate, cores = time_loader(plan, reader, args.batches, **options)
        title = ", ".join(f"{value} {name}" for name, value in options.items())
        per_core = f"{rate / cores:18.1f}" if not options.get("workers") else f"{'':>18}"
        print(f"{title:24}{rate:10.1f}{per_core}")


def time_loader(plan: TrainPlan, reader: TrainRows, count: int, **options) -> tuple[float, float]:
    """(images a second over `count` batches, cores that this process kept busy meanwhile).

    Reading goes on beyond them, so that as much lies ready at the end as did at the beginning.
    """
    warm_up = 3
    batches = train_batches(plan, reader, reader.empty, num_steps=count + warm_up + 8, **options)
    try:
        for _ in range(warm_up):
            next(batches)
        start, start_cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            next(batches)
        seconds = time.perf_counter() - start
        return count * plan.batch_size / seconds, (time.process_time() - start_cpu) / seconds
    finally:
        batches.close()


if __name__ == "__main__":
    main()

"""Free Mask over a data set: on all devices of all processes, in parts, into one label file."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from solojax.builders.segmentation import canvas_policy
from solojax.data import label_file
from solojax.data.coco import CocoDataset, load_coco_images
from solojax.data.image_folder import FileStore, ImageList
from solojax.data.loader import eval_batches
from solojax.data.photo_folder import find_photos, photo_dataset, read_sizes
from solojax.data.plan import EvalPlan
from solojax.data.rows import ImageRows
from solojax.data.transforms import resized_shape
from solojax.errors import InputError
from solojax.features.frozen_backbone import FrozenBackbone
from solojax.free_solo.labelling import Labelled, image_settings, label_images
from solojax.inference.segmenter import predict_batches
from solojax.ops.images import normalize_image
from solojax.postprocess.free_mask_labels import (
    FreeMaskFilters,
    cells_of,
    extent_of,
    free_mask_annotations,
)
from solojax.postprocess.free_masks import (
    FreeMasks,
    FreeMaskSettings,
    count_queries,
    find_free_masks,
    search_bytes,
)
from solojax.structures import Batch, PyTree
from solojax.train.progress import progress_bar
from solojax.train.sharding import batch_sharding, evaluation_mesh, gather_json
from solojax.train.start_checks import check_data

_MOST_BYTES = 12e9  # of memory for the images that are searched at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class FreeMaskRun:
    """How masks are found. All but `batch_size` and `threads` decide which.

    Attributes:
      settings: of the search.
      stage: n of Cn, the backbone's map that is searched, whose cells are 2^n pixels apart: 5, its
        last, in the thesis. Small objects show in earlier ones, by what they look like more than by
        what they are.
      filters: which of the masks found are kept.
      short_side: images are resized to it, unless the long side would pass `long_side`.
      long_side: see `short_side`.
      canvas: "multiple_of_32", the published padding and what each image would have by itself; or
        "buckets", few canvases and thus few programs to compile. Padding is neither query nor key,
        but the backbone's convolutions see it, as they see a border of zeros otherwise: features
        near the right and lower border depend on the canvas.
      semantics: "thesis" or "release", see `extent_of`.
      batch_size: images of a step over all devices; None for one a device.
      threads: that read images, in each process.
    """

    settings: FreeMaskSettings = FreeMaskSettings()
    stage: int = 5
    filters: FreeMaskFilters = FreeMaskFilters()
    short_side: int = 800
    long_side: int = 1333
    canvas: str = "multiple_of_32"
    semantics: str = "thesis"
    batch_size: int | None = None
    threads: int = 8

    def __post_init__(self):
        extent_of((1, 1), self.semantics)
        if self.canvas not in ("multiple_of_32", "buckets"):
            raise InputError(f"canvas {self.canvas!r} is neither 'multiple_of_32' nor 'buckets'")
        if not 2 <= self.stage <= 5:
            raise InputError(f"stage {self.stage}: a backbone has the maps C2 to C5; give 2 to 5")
        if not 1 <= self.short_side <= self.long_side:
            raise InputError(
                f"short side {self.short_side} and long side {self.long_side}: give pixels, the "
                "long side not below the short one"
            )

    @property
    def stride(self) -> int:
        """Pixels of the resized image from one cell to the next."""
        return 2**self.stage

    def described(self) -> dict:
        """What decides the masks."""
        return {
            "method": "free_mask",
            "stage": self.stage,
            **dataclasses.asdict(self.settings),
            **dataclasses.asdict(self.filters),
            "short_side": self.short_side,
            "long_side": self.long_side,
            "canvas": self.canvas,
            "semantics": self.semantics,
        }


def load_photos(
    folder: str | Path, annotations: str | Path | None = None, threads: int = 8
) -> tuple[CocoDataset, tuple[str, ...]]:
    """The images to find masks in, without objects, and the names of those that are no images.

    Where there are several processes, all call it together, and each looks at a part of the files.

    Args:
      folder: the images, at any depth.
      annotations: a COCO json whose images are taken, with their ids; its objects, if it has any,
        are not read. None for all in the folder, numbered from 1.
      threads: that look at files.

    Raises:
      InputError: there is no image, or the json is damaged; or processes find other files.
    """
    if annotations is not None:
        dataset = load_coco_images(annotations, folder)
        check_data(input=dataset)
        return dataset, ()
    names = find_photos(folder)
    check_data(input=ImageList(str(folder), names, None, (), FileStore(str(folder))))
    processes = jax.process_count()
    parts = gather_json(read_sizes(folder, names[jax.process_index() :: processes], threads))
    sizes = [parts[place % processes][place // processes] for place in range(len(names))]
    return photo_dataset(folder, names, [size and tuple(size) for size in sizes])


def label_info(backbone: FrozenBackbone, dataset: CocoDataset, how: FreeMaskRun):
    """What the label file of a run says of itself: a `label_file.LabelInfo`.

    Where there are several processes, all call it together.
    """
    settings = how.described() | backbone.settings | image_settings(dataset)
    return label_file.LabelInfo(
        fingerprint=label_file.fingerprint(backbone.variables, settings),
        settings=settings,
        checkpoint=backbone.title,
        description="object masks found without labels (Free Mask)",
    )


def find_masks(
    backbone: FrozenBackbone,
    dataset: CocoDataset,
    output: Path,
    how: FreeMaskRun,
    broken: Sequence[str] = (),
) -> Labelled | None:
    """Writes the label file of a data set, going on where an earlier run was stopped.

    Where there are several processes, all call it together, with the output on storage that they
    share; any number of devices and processes may go on. With as many images a device in a step,
    the file is the same for any number of devices.

    Args:
      backbone: whose map `how.stage` is searched.
      dataset: the images; their objects are not looked at.
      output: the label file.
      how: settings.
      broken: names of files that are no images, for the summary.

    Returns:
      What was found; None where the file is there already, of the same backbone, settings and
      images.

    Raises:
      InputError: the file is there and was made otherwise, or parts of it were; no image can be
        read; the search would take too much memory; or the processes do not divide the batch.
    """
    if not gather_json(output.exists())[0]:  # what is there needs no search
        check_search_memory(dataset, how)
    info = label_info(backbone, dataset, how)
    found = label_images(dataset, output, info, functools.partial(_masks_of, backbone, how))
    return found and dataclasses.replace(found, unread=(*broken, *found.unread))


def check_search_memory(dataset: CocoDataset, how: FreeMaskRun) -> None:
    """Says before the long work that its search would fill the memory, which ends a run silently.

    Raises:
      InputError: a step takes more than `_MOST_BYTES`; or the processes do not divide the batch.
    """
    batch_size = _batch_size(how)
    height, width = _plan(dataset, batch_size, how).at(0).canvas  # the largest comes first
    cells, scales = (height // how.stride, width // how.stride), how.settings.scales
    shares = jax.process_count()  # the devices of a CPU have one memory
    if jax.default_backend() != "cpu":
        shares = evaluation_mesh(batch_size).size
    images, each = batch_size // shares, search_bytes(cells, scales)
    if images * each > _MOST_BYTES:
        times = f", {images} images at a time" if images > 1 else ""
        raise InputError(
            f"Free Mask on C{how.stage} of {height}x{width} pixels (height x width) has "
            f"{count_queries(cells, scales)} queries, about {each / 1e9:.1f} GB of memory an image"
            f"{times}, more than {_MOST_BYTES / 1e9:.0f} GB: give --scales 0.25 for fewer queries, "
            "a smaller --short_side, a later --stage or a smaller --batch_size (free_mask.scales "
            "and so on in a config)"
        )


def _masks_of(
    backbone: FrozenBackbone, how: FreeMaskRun, dataset: CocoDataset
) -> Iterator[tuple[int, list[dict] | None]]:
    """(position in the data set, annotations) of this process's images; None: cannot be read."""
    processes = jax.process_count()
    batch_size = _batch_size(how)
    mesh = evaluation_mesh(batch_size)
    predict = jax.jit(functools.partial(_search, backbone, how), out_shardings=batch_sharding(mesh))
    batches, count = _batches(dataset, batch_size, how), len(dataset.images)
    with progress_bar(
        count, description="free masks", unit="image", enabled=jax.process_index() == 0
    ) as bar:
        for batch, found in predict_batches(predict, backbone.variables, batches, mesh):
            rows = np.flatnonzero(batch.image_index >= 0)
            for row in rows:
                index = int(batch.image_index[row])
                yield index, _annotations(batch, found, row, dataset.images[index].id, how)
            # The others have as many images, save in the last batch of a canvas.
            bar.update(min(len(rows) * processes, count - bar.n))


def _batch_size(how: FreeMaskRun) -> int:
    processes = jax.process_count()
    batch_size = how.batch_size or jax.device_count()
    if batch_size % processes:
        raise InputError(
            f"a batch of {batch_size} images does not divide over {processes} processes: give "
            f"--batch_size as a multiple of {processes}"
        )
    return batch_size


def _search(
    backbone: FrozenBackbone, how: FreeMaskRun, variables: PyTree, batch: Batch
) -> FreeMasks:
    """Images to masks, on the device."""
    images = normalize_image(batch.image, batch.image_size, backbone.pixel_mean, backbone.pixel_std)
    features = backbone.map_of(variables, images, how.stage)
    return find_free_masks(features, cells_of(batch.image_size, how.stride), how.settings)


def _plan(dataset: CocoDataset, batch_size: int, how: FreeMaskRun) -> EvalPlan:
    return EvalPlan(
        sizes=np.array([(image.height, image.width) for image in dataset.images], np.int32),
        batch_size=batch_size,
        short_side=how.short_side,
        long_side=how.long_side,
        choose_canvas=canvas_policy(how.canvas, (), (how.short_side,), how.long_side),
        resized_shape=resized_shape,
    )


def _batches(dataset: CocoDataset, batch_size: int, how: FreeMaskRun) -> Iterator[Batch]:
    rows = ImageRows(dataset, how.long_side)
    return eval_batches(
        _plan(dataset, batch_size, how),
        rows,
        rows.empty,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=how.threads,
    )


def _annotations(
    batch: Batch, found: FreeMasks, row: int, image_id: int, how: FreeMaskRun
) -> list[dict] | None:
    if not batch.valid[row]:
        return None
    kept = np.flatnonzero(found.valid[row])
    annotations = free_mask_annotations(
        found.scores[row, kept],
        found.masks[row, kept],
        found.embeddings[row, kept],
        image_size=batch.image_size[row],
        original_size=batch.original_size[row],
        filters=how.filters,
        mask_threshold=how.settings.mask_threshold,
        semantics=how.semantics,
        max_masks=how.settings.max_masks,
        stride=how.stride,
    )
    return [
        {"image_id": image_id, **each, "emb": label_file.embedding_as_list(each["emb"])}
        for each in annotations
    ]

"""What backbones match between two views of images: pictures, and how many (thesis 5.3.4)."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from solojax.config import contrastive_config
from solojax.data.image_folder import FileStore, ImageList
from solojax.data.random_bits import philox
from solojax.data.two_views import TwoViewRows
from solojax.errors import BrokenImage, InputError
from solojax.features.frozen_backbone import FrozenBackbone
from solojax.inference.prediction import file_names, picture_names, write_png
from solojax.ops.augment_views import augment_views
from solojax.structures import Array, PyTree
from solojax.targets.correspondence import mutual_nearest
from solojax.train.progress import progress_bar
from solojax.visualize.correspondence import draw_correspondence

_logger = logging.getLogger(__name__)

_ROWS = 8  # images that go through a network together
_PURPOSE = 0x4D415443  # of the random bits. Part of what makes a picture repeatable


@dataclasses.dataclass(frozen=True)
class MatchSettings:
    """What is matched, and what is kept of it.

    Attributes:
      size: (H, W) of the views, multiples of 32.
      blur_sigma: (low, high) of the views' blur, in pixels; see `view_settings`.
      stage: n of the feature map Cn: 5, the backbone's last, is what the thesis and DenseCL's own
        matching read; lower ones are finer, and further from what pre-training has shaped.
      threshold: least similarity of a match that is kept; None for all.
      seed: of the views.
    """

    size: tuple[int, int] = (224, 224)
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    stage: int = 5
    threshold: float | None = 0.9
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class ViewPairs:
    """Two views of some images."""

    paths: tuple[Path, ...]
    pixels: np.ndarray  # (B, 2, H, W, 3) float32 RGB in [0, 255]; more rows than paths are padding


@dataclasses.dataclass(frozen=True)
class ImageMatches:
    """What one backbone matches in one image."""

    cells: np.ndarray  # (M, 2) cells of the first and of the second view, row-major
    similarity: np.ndarray  # (M,) cosines
    grid: tuple[int, int]  # (h, w) cells of a view

    def kept(self, threshold: float | None) -> ImageMatches:
        """Those of at least this similarity."""
        if threshold is None:
            return self
        high = self.similarity >= threshold
        return dataclasses.replace(self, cells=self.cells[high], similarity=self.similarity[high])


def view_settings(backbones: Sequence[FrozenBackbone], size: tuple[int, int] | None) -> dict:
    """`size` and `blur_sigma` of `MatchSettings`: as the first pre-trained backbone has seen views.

    As published where none was pre-trained here. In views of another size the strongest blur is as
    strong as it was for what is seen.

    Args:
      backbones: what is compared.
      size: (H, W) in the place of the backbone's; None for that.
    """
    known = (backbone.views for backbone in backbones if backbone.views is not None)
    views = next(known, contrastive_config().views)
    size = tuple(views.size) if size is None else size
    low, high = views.blur_sigma
    high *= min(size) / min(views.size)
    return {"size": size, "blur_sigma": (min(low, high), high)}


def compare_backbones(
    backbones: Sequence[FrozenBackbone],
    paths: Sequence[Path],
    folder: Path,
    settings: MatchSettings,
    pictures: int,
) -> dict:
    """Counts the mutual nearest matches of every image and draws the first images.

    Two views of an image are cut out, mirrored, recoloured and blurred as in pre-training; all
    backbones see the same, each by its own normalisation. Their feature vectors at every cell are
    matched by `mutual_nearest`. A picture has one row of two views for each backbone.

    Args:
      backbones: what is compared.
      paths: image files.
      folder: an existing one, for the pictures.
      settings: see `MatchSettings`.
      pictures: how many images are drawn.

    Returns:
      A report for json: settings; checkpoints, for each the means over images of `matches` and
      `kept` and the mean `similarity` over all matches; images, each with `matches` and `kept` of
      every checkpoint in that order; `skipped`, files that could not be read.

    Raises:
      InputError: no file at all could be read, or a backbone has no such stage.
    """
    match = [make_matcher(backbone, settings.stage) for backbone in backbones]
    names = picture_names(file_names(paths))
    images, similarities = [], [[] for _ in backbones]
    skipped: list[str] = []
    with progress_bar(len(paths), description="match", unit="image") as bar:
        for pairs in view_pairs(paths, settings, skipped):
            found = [list(each(pairs)) for each in match]
            for row, path in enumerate(pairs.paths):
                every = [one[row] for one in found]
                kept = [matches.kept(settings.threshold) for matches in every]
                if len(images) < pictures:
                    picture = _picture(pairs.pixels[row], backbones, every, kept, settings)
                    write_png(folder / names[path], picture)
                images.append({"image": str(path), "checkpoints": _counts(every, kept)})
                for into, matches in zip(similarities, every, strict=True):
                    into.extend(matches.similarity.tolist())
            bar.update(len(images) + len(skipped) - bar.n)
    if not images:
        raise InputError(
            f"none of the {len(paths)} image files could be read, {paths[0]} the first: "
            "give files that are whole images"
        )
    return {
        "settings": dataclasses.asdict(settings),
        "checkpoints": [
            {"checkpoint": backbone.title, **_means(images, index, similarities[index])}
            for index, backbone in enumerate(backbones)
        ],
        "images": images,
        "skipped": skipped,
    }


def view_pairs(
    paths: Sequence[Path], settings: MatchSettings, skipped: list[str]
) -> Iterator[ViewPairs]:
    """Two augmented views of every image, by the published augmentation and the settings alone.

    Files that cannot be read are named in a warning and added to `skipped`. The views of a file
    depend on its place in the list and on no other file.
    """
    views = contrastive_config().views.to_dict()
    crops = {name: views.pop(name) for name in ("scale", "ratio", "flip_probability")}
    del views["size"]
    views["blur_sigma"] = settings.blur_sigma
    files = ImageList("", tuple(map(str, paths)), None, (), FileStore(""))
    rows = TwoViewRows(files, **crops)
    seeds = (philox(settings.seed, _PURPOSE).random_raw(len(paths)) >> np.uint64(32)).astype(
        np.uint32
    )
    recolor = jax.jit(
        functools.partial(augment_views, **views, pixel_mean=(0.0,) * 3, pixel_std=(1.0,) * 3)
    )
    for start in range(0, len(paths), _ROWS):
        examples, read = [], []
        for index in range(start, min(start + _ROWS, len(paths))):
            try:
                examples.append(rows(index, 0, False, settings.size, int(seeds[index])))
                read.append(paths[index])
            except BrokenImage as error:
                _logger.warning("image left out: %s", error)
                skipped.append(str(paths[index]))
        if not examples:
            continue
        examples += [rows.empty(settings.size)] * (_ROWS - len(examples))
        stacked = (np.stack([example[name] for example in examples]) for name in ("views", "seed"))
        yield ViewPairs(tuple(read), np.asarray(recolor(*stacked)))


def make_matcher(
    backbone: FrozenBackbone, stage: int
) -> Callable[[ViewPairs], Iterator[ImageMatches]]:
    """A function from `ViewPairs` to the `ImageMatches` of its images, one after the other."""

    def maps_of(variables: PyTree, pixels: Array) -> Array:
        return backbone.features(variables, pixels.reshape(-1, *pixels.shape[2:]), stage)

    @jax.jit
    def nearest(variables: PyTree, pixels: Array) -> tuple[Array, Array]:
        maps = maps_of(variables, pixels)
        cells = maps.reshape(pixels.shape[0], 2, -1, maps.shape[-1])
        return mutual_nearest(cells[:, 0], cells[:, 1])

    def match(pairs: ViewPairs) -> Iterator[ImageMatches]:
        grid = jax.eval_shape(maps_of, backbone.variables, pairs.pixels).shape[1:3]
        matches, similarity = map(np.asarray, nearest(backbone.variables, pairs.pixels))
        for row, path in enumerate(pairs.paths):
            if not np.all(np.isfinite(similarity[row])):
                raise InputError(
                    f"{path}: the features of {backbone.title} are not finite numbers; its weights "
                    "or running statistics are broken: give another checkpoint"
                )
            (first,) = np.nonzero(matches[row] >= 0)
            cells = np.stack([first, matches[row, first]], axis=1)
            yield ImageMatches(cells, similarity[row, first], grid)

    return match


def table(report: dict) -> str:
    """The means of a report, a line for every checkpoint."""
    threshold = report["settings"]["threshold"]
    kept = "all kept" if threshold is None else f">= {threshold:g}"
    lines = [f"{'matches':>8} {kept:>8} {'similarity':>10}  checkpoint"]
    for each in report["checkpoints"]:
        lines.append(
            f"{each['matches']:8.2f} {each['kept']:8.2f} {each['similarity']:10.4f}  "
            f"{each['checkpoint']}"
        )
    return "\n".join(lines)


def _counts(every: Sequence[ImageMatches], kept: Sequence[ImageMatches]) -> list[dict[str, int]]:
    return [
        {"matches": len(matches.cells), "kept": len(some.cells)}
        for matches, some in zip(every, kept, strict=True)
    ]


def _means(images: Sequence[dict], index: int, similarity: Sequence[float]) -> dict[str, float]:
    own = [image["checkpoints"][index] for image in images]
    means = {name: float(np.mean([each[name] for each in own])) for name in ("matches", "kept")}
    return means | {"similarity": float(np.mean(similarity))}


def _picture(pixels, backbones, every, kept, settings: MatchSettings) -> np.ndarray:
    views = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    panels = []
    for backbone, matches, some in zip(backbones, every, kept, strict=True):
        shown = f"{len(some.cells)} of {len(matches.cells)} mutual matches"
        if settings.threshold is not None:
            shown += f", those of similarity >= {settings.threshold:g}"
        captions = (backbone.title.encode("ascii", "replace").decode(), shown)
        panels.append(draw_correspondence(views, some.cells.tolist(), some.grid, captions))
    return np.concatenate(panels)

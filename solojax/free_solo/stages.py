"""The stages of FreeSOLO: where each keeps its result, its config, and all of them as commands."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from solojax.config.validation import validate
from solojax.errors import InputError
from solojax.features.frozen_backbone import backbone_settings
from solojax.free_solo.free_masks import FreeMaskRun
from solojax.postprocess.free_mask_labels import FreeMaskFilters
from solojax.postprocess.free_masks import FreeMaskSettings


@dataclasses.dataclass(frozen=True)
class Stages:
    """Where a chain in a work directory keeps what.

    Attributes:
      workdir: of the whole chain.
      rounds: of self-training, after the first training.
      masks: a label file made elsewhere, which takes the place of Free Mask's; None for none.
    """

    workdir: Path
    rounds: int
    masks: Path | None = None

    @property
    def images(self) -> Path:
        """The images, as a COCO json."""
        return self.workdir / "images.json"

    @property
    def backbone(self) -> Path:
        """The work directory of pre-training."""
        return self.workdir / "backbone"

    def labels(self, number: int) -> Path:
        """What round `number` learns from."""
        if number == 0:
            return self.masks or self.workdir / "masks.json"
        return self.workdir / f"labels{number}.json"

    def absolute(self) -> Stages:
        """The same with absolute paths: a relative label file is looked for among the images."""
        masks = self.masks and self.masks.absolute()
        return Stages(self.workdir.absolute(), self.rounds, masks)

    def training(self, number: int) -> Path:
        """The work directory of round `number`."""
        return self.workdir / f"round{number}"

    @property
    def predictions(self) -> Path:
        """What the last round finds."""
        return self.workdir / "predictions.json"

    @property
    def overlays(self) -> Path:
        """A folder of pictures."""
        return self.workdir / "overlays"


def pretraining_config(config: ConfigDict, images: Path, stages: Stages) -> ConfigDict:
    """The config of pre-training, on the images."""
    config = config.copy_and_resolve_references()
    config.data.format = "coco"
    config.data.root, config.data.train_images = str(images), ""
    config.data.train_annotations = str(stages.images)
    validate(config)
    return config


def round_config(
    config: ConfigDict, images: Path, stages: Stages, number: int, backbone: str
) -> ConfigDict:
    """The config of a round's training: always from the same start, on labels of its own."""
    config = config.copy_and_resolve_references()
    config.data.root = str(images)
    config.data.train_images = ""
    config.data.train_annotations = str(stages.labels(number))
    if not config.model.checkpoint:
        config.model.backbone.checkpoint = str(backbone)
    validate(config)
    return config


def check_outside(workdir: Path, images: Path) -> None:
    """Finds out before any work that a chain's own pictures will not be among its images.

    Folders whose name begins with a dot are not looked into.

    Raises:
      InputError: they would be, when the chain is run again.
    """
    place, folder = workdir.resolve(), images.resolve()
    if not place.is_relative_to(folder):
        return
    if any(name.startswith(".") for name in place.relative_to(folder).parts):
        return
    raise InputError(
        f"--workdir {workdir} is in --images {images}, where the pictures that it gets would be "
        "taken for images the next time: give a --workdir outside of the images, or list them by "
        "--annotations"
    )


def check_same_backbone(config: ConfigDict, pretraining: ConfigDict) -> None:
    """Finds out before any work that pre-training makes the backbone that the segmenter wants.

    A segmenter that goes on from `model.checkpoint` takes no backbone, and may have any.

    Raises:
      InputError: with the keys that differ.
    """
    if config.model.checkpoint:
        return
    ours, theirs = backbone_settings(config), backbone_settings(pretraining)
    differing = [
        f"model.{key} {ours[key]!r} and {theirs[key]!r}" for key in ours if ours[key] != theirs[key]
    ]
    if differing:
        raise InputError(
            f"the backbones of --config and --pretraining differ, in {'; '.join(differing)}: give "
            "a --pretraining config of the same backbone, or a --backbone that was trained before"
        )


def free_mask_run(config: ConfigDict) -> FreeMaskRun:
    """How `config.free_mask` says that masks are found."""
    search = config.free_mask
    return FreeMaskRun(
        settings=FreeMaskSettings(
            scales=search.scales,
            mask_threshold=search.mask_threshold,
            max_masks=search.max_masks,
            embedding_size=config.model.embedding,
        ),
        stage=search.stage,
        filters=FreeMaskFilters(
            min_maskness=search.min_maskness,
            min_center=search.min_center,
            max_width=search.max_width,
            components=search.components,
            # Where there are no pieces it is nothing, and `solojax free-mask` refuses it.
            min_piece_area=search.min_piece_area if search.components else 0,
        ),
        short_side=search.short_side,
        long_side=search.long_side,
        canvas=search.canvas,
        semantics=search.semantics,
        threads=config.data.threads,
    )


def recipe(
    config: ConfigDict,
    images: Path,
    stages: Stages,
    *,
    annotations: Path | None = None,
    spec: str,
    overrides: Sequence[str] = (),
    backbone: str | None,
    pretraining: str,
) -> str:
    """The stages as commands of their own, for a person.

    Args:
      config: of the chain.
      images: the folder.
      stages: in the work directory.
      annotations: that list the images, if any.
      spec: the config as it was given.
      overrides: `--config.KEY=VALUE` likewise.
      backbone: that was given, or None.
      pretraining: the config of pre-training, as it was given.
    """
    stages, images = stages.absolute(), images.absolute()
    data = [f"--config.data.root={images}", "--config.data.train_images="]

    def learn(spec: str, folder: Path, labels: Path, *more: str) -> str:
        flags = ["--config", spec, "--workdir", folder, *more, *data]
        return _command("train", *flags, f"--config.data.train_annotations={labels}")

    lines = []
    if backbone is None:
        form = "--config.data.format=coco"
        lines.append(learn(pretraining, stages.backbone, stages.images, form))
    start = backbone or stages.backbone
    search = ["--checkpoint", start, "--images", images, "--output", stages.labels(0)]
    search += _free_mask_flags(config)
    if annotations is not None:
        search += ["--annotations", annotations]
    given = f"masks made elsewhere: {stages.masks}"
    lines.append(given if stages.masks else _command("free-mask", *search))
    more = list(overrides)
    if not config.model.checkpoint:
        more.append(f"--config.model.backbone.checkpoint={start}")
    for number in range(stages.rounds + 1):
        if number:
            lines.append(
                f"what {stages.training(number - 1)} finds, filtered: {stages.labels(number)}"
            )
        lines.append(learn(spec, stages.training(number), stages.labels(number), *more))
    lines.append(f"what {stages.training(stages.rounds)} finds: {stages.predictions}")
    return "\n".join(f"  {number}. {line}" for number, line in enumerate(lines, start=1))


def _command(verb: str, *words: object) -> str:
    return shlex.join(["solojax", verb, *map(str, words)])


# Fields of `FreeMaskRun` itself that are flags.
_SEARCH = ("stage", "short_side", "long_side", "canvas", "semantics")
# Fields whose flags have another name.
_FLAGS = {"embedding_size": "embedding"}


def _free_mask_flags(config: ConfigDict) -> list[str]:
    """What `solojax free-mask` needs to be told of a config."""
    usual, own = FreeMaskRun(), free_mask_run(config)
    names = {
        "settings": ("scales", "mask_threshold", "max_masks", "embedding_size"),
        "filters": tuple(field.name for field in dataclasses.fields(FreeMaskFilters)),
    }
    pairs = [(usual, own, name) for name in _SEARCH]
    pairs += [
        (getattr(usual, part), getattr(own, part), name)
        for part, members in names.items()
        for name in members
    ]
    return [
        word
        for theirs, mine, name in pairs
        if getattr(theirs, name) != getattr(mine, name)
        for word in _as_flag(name, getattr(mine, name))
    ]


def _as_flag(name: str, value: object) -> tuple[str, ...]:
    name = _FLAGS.get(name, name)
    if value is True:
        return (f"--{name}",)
    if value is None:
        return f"--{name}", "off"
    return f"--{name}", ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

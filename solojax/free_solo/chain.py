"""The whole of FreeSOLO: a folder of images in, a segmenter and what it finds out (thesis 6.2).

Each stage leaves its result in the work directory and is skipped where that is there already:

    images.json        the images, as far as their headers tell (those cut off are found out later)
    backbone/          DenseCL on them, unless a backbone is given
    masks.json         Free Mask, unless a label file is given
    round0/            the first training, on masks.json
    labels1.json       what round 0 finds
    round1/            the second training, from the same start, on labels1.json; and so on
    predictions.json   what the last round finds, and overlays/ to look at, of up to 1000 images

Label files carry a fingerprint of the checkpoint, the settings and the images that they were made
of; checkpoints carry their settings, and fingerprints of their labels and of the weights that they
started from. What does not belong together is refused, not mixed. Only a label file that is given
is taken as it is, whatever made it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import jax
from etils import epath
from ml_collections import ConfigDict

from solojax.data import label_file
from solojax.data.coco import CocoDataset
from solojax.errors import ForeignLabels, InputError
from solojax.features.frozen_backbone import load_backbone
from solojax.free_solo.free_masks import check_search_memory, find_masks
from solojax.free_solo.labelling import image_settings
from solojax.free_solo.overlays import FoundSummary, remove_pictures, show_found
from solojax.free_solo.part_files import PartFiles
from solojax.free_solo.pseudo_labels import (
    LabelRule,
    LabelSummary,
    labels_info,
    summarize,
    write_labels,
)
from solojax.free_solo.stage_checks import (
    START,
    check_settings,
    check_start,
    starting_weights,
)
from solojax.free_solo.stages import Stages, free_mask_run, pretraining_config, round_config
from solojax.inference.segmenter import load
from solojax.runs.free_solo import load_label_set
from solojax.runs.training import run_training
from solojax.train.checkpoint_format import list_steps
from solojax.train.checkpoint_loading import FOLDER
from solojax.train.sharding import gather_json

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FreeSoloSummary:
    """What came of a chain.

    Attributes:
      labels: of every round, Free Mask's first.
      predictions: what the last round finds.
      unread: names of the files that are no images, or are cut off.
    """

    labels: tuple[LabelSummary, ...]
    predictions: FoundSummary
    unread: tuple[str, ...]


def run_free_solo(
    config: ConfigDict,
    dataset: CocoDataset,
    stages: Stages,
    *,
    unread: Sequence[str] = (),
    backbone: str | None = None,
    pretraining: ConfigDict | None = None,
) -> FreeSoloSummary:
    """Runs all stages that are not done yet.

    Args:
      config: of task free_solo; its data become the images and their labels.
      dataset: the images, without objects, as `load_photos` has them.
      stages: where everything is kept. A label file made elsewhere is of these images.
      unread: names of files that are no images, likewise.
      backbone: a checkpoint of any kind; None pre-trains one on the images.
      pretraining: the config for that.

    Raises:
      InputError: no image can be read; `stages.masks` do not fit the images or the config;
        Free Mask would fill the memory; nothing was found to learn from; or the work directory
        holds what other images, settings or checkpoints have left. Settings are compared before any
        work.
      Preempted: SIGTERM asked a training to end; its state is saved.
    """
    images = Path(dataset.image_root).absolute()
    dataset = dataclasses.replace(dataset, image_root=str(images))
    stages = stages.absolute()
    for name in unread:
        _logger.warning("image left out, since it cannot be read: %s", images / name)
    if stages.masks is not None:
        _check_masks(config, dataset, stages)
    elif not gather_json(stages.labels(0).exists())[0]:
        check_search_memory(dataset, free_mask_run(config))
    trained = None
    if backbone is None:
        backbone = str(stages.backbone)
        trained = pretraining_config(pretraining, images, stages)
        made_of_it = [stages.training(0) / FOLDER]
        if stages.masks is None:
            made_of_it.append(stages.labels(0))
        check_settings(stages.backbone, trained, made_of_it)
    rounds = _rounds(config, images, stages, backbone)
    for number, (folder, own) in enumerate(rounds.items()):
        check_settings(folder, own, [stages.labels(number + 1)])
    if trained is not None:
        _pretrain(trained, dataset, stages)
    start = starting_weights(rounds[stages.training(0)])  # all rounds have the same
    for folder, own in rounds.items():
        check_start(folder, own, start)

    if stages.masks is None:
        summary, dataset, cut_off = _find_masks(config, backbone, dataset, stages, unread)
    else:
        summary, dataset, cut_off = _given_masks(dataset, stages.labels(0))
    summaries = [summary]
    for number, (folder, own) in enumerate(rounds.items()):
        if number:
            summaries.append(_label(config, dataset, stages, number))
        _say("round %d: training on %s", number, stages.labels(number))
        run_training(own, folder, {START: start})
    predictions = _predict(config, dataset, stages)
    return FreeSoloSummary(tuple(summaries), predictions, (*unread, *cut_off))


def _rounds(
    config: ConfigDict, images: Path, stages: Stages, backbone: str
) -> dict[Path, ConfigDict]:
    """The work directory of every round with its config, in their order."""
    return {
        stages.training(number): round_config(config, images, stages, number, backbone)
        for number in range(stages.rounds + 1)
    }


def _check_masks(config: ConfigDict, dataset: CocoDataset, stages: Stages) -> None:
    """Says before the long work, not after, that labels made elsewhere cannot be learned from."""
    backbone = str(stages.backbone)  # no matter which
    labels, _ = load_label_set(round_config(config, Path(dataset.image_root), stages, 0, backbone))
    known = {image.file_name for image in dataset.images}
    foreign = [image.file_name for image in labels.images if image.file_name not in known]
    if foreign:
        raise InputError(
            f"--masks {stages.masks}: {len(foreign)} of its {len(labels.images)} images with masks "
            f"are not among those of {dataset.image_root}, {foreign[0]} the first: give the labels "
            "of these images, with their names below the folder"
        )


def _pretrain(config: ConfigDict, dataset: CocoDataset, stages: Stages) -> None:
    """Trains the backbone on the images, unless that is done."""
    start = starting_weights(config)
    check_start(stages.backbone, config, start)
    _list_images(dataset, stages)
    _say("backbone: pre-training on %s, without labels", dataset.image_root)
    run_training(config, stages.backbone, {START: start})


def _list_images(dataset: CocoDataset, stages: Stages) -> None:
    """Writes the images as a json without objects, in which pre-training finds them."""
    settings = image_settings(dataset)
    if jax.process_index() == 0:
        if stages.images.exists() and list_steps(epath.Path(stages.backbone / FOLDER)):
            _check_same_files(dataset, stages, settings)
        images = label_file.image_entries(dataset.images)
        info = label_file.LabelInfo(dataset.fingerprint, settings, "", "images without labels")
        label_file.write(stages.images, images=images, annotations=[], info=info)
    gather_json(None)  # nobody reads it before it is there


def _check_same_files(dataset: CocoDataset, stages: Stages, settings: dict[str, str]) -> None:
    """Pre-training compares names alone: other photos under the same names would be taken."""
    info = label_file.read_info(stages.images)
    known = info and info.settings.get("image_files")
    if known not in (None, settings["image_files"]):
        raise InputError(
            f"{dataset.image_root}: its images are not those that {stages.backbone} was trained "
            "on, by the names or the sizes of the files; use the images of that run or another "
            "--workdir"
        )


def _find_masks(
    config: ConfigDict,
    backbone: str,
    dataset: CocoDataset,
    stages: Stages,
    unread: Sequence[str],
) -> tuple[LabelSummary, CocoDataset, tuple[str, ...]]:
    """What was found, the images that could be read to their end, and the names of the others."""
    _say("masks: %s", stages.labels(0))
    how = free_mask_run(config)
    try:
        find_masks(load_backbone(backbone), dataset, stages.labels(0), how, unread)
    except ForeignLabels as error:
        raise InputError(
            f"{error}; to learn from it as it is, give --masks {stages.labels(0)}"
        ) from None
    found = label_file.load_labels(stages.labels(0), dataset.image_root)
    summary = summarize(found)
    _report(stages.labels(0), summary)
    if not summary.objects:
        raise InputError(
            f"{stages.labels(0)}: Free Mask found nothing in {summary.images} images; pre-train "
            "the backbone for longer, or let more masks pass: remove the file and switch filters "
            "off, such as --config.free_mask.max_width=none"
        )
    return summary, *_whole_images(dataset, found)


def _given_masks(
    dataset: CocoDataset, path: Path
) -> tuple[LabelSummary, CocoDataset, tuple[str, ...]]:
    """As `_find_masks`, of a label file that is given; one made elsewhere may list other images."""
    found = label_file.load_labels(path, dataset.image_root)
    summary, info = summarize(found), label_file.read_info(path)
    _report(path, summary)
    if info is not None and info.settings.get("images") == dataset.fingerprint:
        return summary, *_whole_images(dataset, found)
    return summary, dataset, ()


def _whole_images(dataset: CocoDataset, found: CocoDataset) -> tuple[CocoDataset, tuple[str, ...]]:
    """The images that a search of all has listed, and the names of the others: they are cut off."""
    known = {image.id for image in found.images}
    whole = tuple(image for image in dataset.images if image.id in known)
    cut_off = tuple(image.file_name for image in dataset.images if image.id not in known)
    return dataclasses.replace(dataset, images=whole), cut_off


def _label(config: ConfigDict, dataset: CocoDataset, stages: Stages, number: int) -> LabelSummary:
    """The pseudo-labels that round `number` learns from.

    Predicted with the settings that the round before was trained with, not those of `config`: other
    settings for the predictions at the end make no labels stale.
    """
    rules = config.self_training
    rule = LabelRule(rules.score_threshold, rules.max_labels, rules.max_width)
    output, checkpoint = stages.labels(number), stages.training(number - 1)
    _say("labels for round %d: what round %d finds", number, number - 1)
    write_labels(load(checkpoint), dataset, output, rule, str(checkpoint))
    summary = summarize(label_file.load_labels(output, dataset.image_root))
    _report(output, summary)
    if not summary.objects:
        raise InputError(
            f"{output}: round {number - 1} finds nothing with a score from "
            f"{rule.score_threshold:g}; remove the file and train for longer, or give "
            "--config.self_training.score_threshold or --config.self_training.rounds=0"
        )
    return summary


def _predict(config: ConfigDict, dataset: CocoDataset, stages: Stages) -> FoundSummary:
    """What the last round finds, all scores, and pictures of what is likely.

    With `config.evaluation` as it is now, whatever it was in training.
    """

    def with_settings(trained: ConfigDict) -> ConfigDict:
        changed = trained.copy_and_resolve_references()
        changed.evaluation = config.evaluation.copy_and_resolve_references()
        return changed

    checkpoint = stages.training(stages.rounds)
    model = load(checkpoint, config=with_settings)
    _say("predictions: what round %d finds", stages.rounds)
    rule = LabelRule(score_threshold=0.0, max_labels=None, max_width=None)
    wanted = labels_info(model, dataset, rule, str(checkpoint))
    if jax.process_index() == 0:
        _forget_others(stages, wanted)
    write_labels(model, dataset, stages.predictions, rule, str(checkpoint))
    rules = config.self_training
    threshold = rules.picture_threshold
    return show_found(
        dataset,
        stages.predictions,
        stages.overlays,
        rules.score_threshold if threshold is None else threshold,
        draws=jax.process_index() == 0,
    )


def _forget_others(stages: Stages, wanted: label_file.LabelInfo) -> None:
    """Removes predictions made otherwise: nothing is built on them, so they need stop nobody.

    The pictures go first: they would pass for those of the new predictions.
    """
    predictions = stages.predictions
    PartFiles(predictions, wanted.fingerprint).remove_foreign()
    found = label_file.read_info(predictions) if predictions.exists() else None
    if found is not None and found.fingerprint == wanted.fingerprint:
        return
    remove_pictures(stages.overlays)
    if predictions.exists():
        _logger.info("%s is of another model, images or settings: made again", predictions)
        predictions.unlink()


def _report(path: Path, summary: LabelSummary) -> None:
    _logger.info(
        "%s: %d objects in %d images, %d images without any",
        path,
        summary.objects,
        summary.images,
        summary.without_objects,
    )


def _say(text: str, *values: object) -> None:
    _logger.info(text, *values)

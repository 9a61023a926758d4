"""The demonstration: a synthetic data set, a model trained on it, and what it sees."""

from __future__ import annotations

import logging
from pathlib import Path

from ml_collections import ConfigDict

from solojax.builders.segmentation import data_path, load_val_set
from solojax.data.image_io import read_image
from solojax.data.synthetic import write_synthetic_dataset
from solojax.evaluators.threshold_baseline import run_threshold_baseline
from solojax.inference.evaluation import Evaluation, write_json
from solojax.inference.prediction import write_png
from solojax.inference.segmenter import load
from solojax.runs.training import run_training
from solojax.visualize.overlays import overlay_results

_logger = logging.getLogger(__name__)
_SHOWN_SCORE = 0.3


def run_demo(
    config: ConfigDict, workdir: Path, *, num_train: int, num_val: int, num_overlays: int
) -> tuple[dict, float]:
    """Draws data, trains, evaluates on images never seen, writes overlays.

    Args:
      config: what to train; its data set becomes the one that is drawn.
      workdir: takes everything.
      num_train: images to train on.
      num_val: images to evaluate on.
      num_overlays: pictures to draw.

    Returns:
      The evaluate form, and the mask AP of the best thresholding baseline.
    """
    root = workdir / "data"
    config.data.root = str(root)
    for split in ("train", "val"):
        config.data[f"{split}_annotations"], config.data[f"{split}_images"] = f"{split}.json", split
    _logger.info("drawing %d images into %s, unless they are there", num_train + num_val, root)
    write_synthetic_dataset(root, seed=config.seed, num_train=num_train, num_val=num_val)
    run_training(config, workdir)
    model = load(workdir)
    dataset = load_val_set(config)
    evaluation = Evaluation(model.task, config, dataset)
    results = evaluation.predict(model.variables)
    figures = evaluation.score(results)
    write_json(figures, workdir / "evaluation.json")
    _draw(results, dataset, model.names, workdir / "overlays", num_overlays)
    baseline = run_threshold_baseline(
        data_path(config, "val_annotations"), data_path(config, "val_images")
    )
    return figures, max(scores["AP"] for scores in baseline.values())


def _draw(results, dataset, names, folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for image in dataset.images[:count]:
        found = [result for result in results if result["image_id"] == image.id]
        picture = overlay_results(read_image(dataset.image_path(image)), found, names, _SHOWN_SCORE)
        write_png(folder / f"{Path(image.file_name).stem}.png", picture)

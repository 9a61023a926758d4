"""Running a trained model: over a data set, or on single images from Python."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh
from ml_collections import ConfigDict

from solojax.builders.segmentation import build_task, canvas_policy
from solojax.config import from_json
from solojax.config.schema import SEGMENTATION_TASKS
from solojax.data.image_io import read_image
from solojax.data.loader import stack_examples
from solojax.data.transforms import empty_example, make_image_example, resized_shape
from solojax.errors import InputError
from solojax.postprocess.rescale import detections_to_coco_results
from solojax.structures import Batch, Detections, PyTree
from solojax.tasks import Task
from solojax.train.checkpoints import load_variables
from solojax.train.sharding import batch_sharding, local_rows, prefetch, replicate

_logger = logging.getLogger(__name__)


def warn_of_overflow(count: int) -> None:
    """Says how many candidates were left out, if any were."""
    if count:
        _logger.warning(
            "%d candidates found no room among evaluation.max_candidates: raise it", count
        )


def predict_batches(
    predict: Callable[[PyTree, Batch], Detections],
    variables: PyTree,
    batches: Iterable[Batch],
    mesh: Mesh,
) -> Iterator[tuple[Batch, Detections]]:
    """Yields (host batch, its detections on the host), in order, of this process's rows.

    The next batch is dispatched before the results of the one before are fetched, so that devices
    and host work at the same time.

    Args:
      predict: a task's `predict`, jitted by the caller so that it compiles once for all calls.
        With several processes its outputs must be spread as the rows are.
      variables: of the network, the same on all processes.
      batches: this process's host batches; every process has as many.
      mesh: spreads the rows of a batch.
    """
    variables = replicate(variables, mesh)
    pending = None
    for host_batch, batch in prefetch(batches, mesh):
        detections = predict(variables, batch)
        if pending is not None:
            yield pending[0], local_rows(pending[1])
        pending = host_batch, detections
    if pending is not None:
        yield pending[0], local_rows(pending[1])


def coco_results(
    predictions: Iterable[tuple[Batch, Detections]],
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    mask_threshold: float,
    *,
    drop_empty: bool = False,
) -> Iterator[dict]:
    """COCO results, masks as RLE at the size of the image file.

    Args:
      predictions: from `predict_batches`.
      image_ids: the id of every image of the data set, by `Batch.image_index`.
      category_ids: the id of every contiguous label.
      mask_threshold: probability above which a pixel is foreground.
      drop_empty: leave out the masks without a pixel, see `to_coco_results`.
    """
    for batch, detections in predictions:
        yield from detections_to_coco_results(
            detections,
            image_size=batch.image_size,
            original_size=batch.original_size,
            image_valid=batch.valid,
            image_ids=[image_ids[index] for index in batch.image_index],
            category_ids=category_ids,
            mask_threshold=mask_threshold,
            drop_empty=drop_empty,
        )


def jit_predict(task: Task, mesh: Mesh) -> jax.stages.Wrapped:
    """A task's `predict`, jitted so that every device keeps its own rows of the results."""
    return jax.jit(task.predict, out_shardings=batch_sharding(mesh))


@dataclasses.dataclass(frozen=True)
class Segmenter:
    """A trained model that takes images, made by `load`.

    Attributes:
      task: the network and its inference settings.
      variables: its weights.
      categories: (id, name) of every contiguous label, as in the training data.
      short_side: images are resized to it, unless the long side would pass `long_side`.
      long_side: see `short_side`.
      canvas: policy that pads the resized image.
      config: what the model was made from.
      step: the training step of the weights.
    """

    task: Task
    variables: PyTree
    categories: tuple[tuple[int, str], ...]
    short_side: int
    long_side: int
    canvas: Callable
    config: ConfigDict
    step: int
    _predict: object = dataclasses.field(repr=False, default=None)

    def __post_init__(self):
        object.__setattr__(self, "_predict", jax.jit(self.task.predict))

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The id of every contiguous label."""
        return tuple(id for id, _ in self.categories)

    @property
    def names(self) -> dict[int, str]:
        """Category id to name."""
        return dict(self.categories)

    def predict(self, image: str | Path | np.ndarray, image_id: int = 0) -> list[dict]:
        """Finds the objects of one image.

        Candidates beyond `evaluation.max_candidates` are left out, which the log says. So are
        masks that have no pixel at the image's size, which `solojax evaluate` counts as errors.

        Args:
          image: a file, or (H, W, 3) uint8 RGB.
          image_id: copied into the results.

        Returns:
          COCO results, score-descending: image_id, category_id (the data set's own), score, bbox
          (x, y, width, height), segmentation (RLE at the image's size) and, of a network that
          predicts embeddings, emb (its numbers).

        Raises:
          InputError: the file cannot be read, or the array is no RGB image.
        """
        batch = self.batch_of(image if isinstance(image, np.ndarray) else read_image(image))
        detections = jax.device_get(self._predict(self.variables, batch))
        warn_of_overflow(int(detections.overflow.sum()))
        threshold = self.config.evaluation.mask_threshold
        predictions = [(batch, detections)]
        return list(
            coco_results(predictions, [image_id], self.category_ids, threshold, drop_empty=True)
        )

    def batch_of(self, image: np.ndarray) -> Batch:
        """The batch of one image (H, W, 3) uint8 RGB, resized and padded as the model wants it.

        Raises:
          InputError: the array is no RGB image.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InputError(
                f"image: shape {image.shape} of {image.dtype} is no RGB image; give (H, W, 3) uint8"
            )
        size = resized_shape(*image.shape[:2], self.short_side, self.long_side)
        example = make_image_example(
            image,
            short_side=self.short_side,
            long_side=self.long_side,
            canvas=self.canvas([size]),
            max_instances=0,
            image_index=0,
        )
        return stack_examples([example])


def load(
    checkpoint: str | Path,
    *,
    step: int | str | None = None,
    config: Callable[[ConfigDict], ConfigDict] | None = None,
) -> Segmenter:
    """Loads a trained model.

    Args:
      checkpoint: a work directory, its `checkpoints` folder, or one checkpoint in it; or a PyTorch
        file of a published system (see `solojax.inference.foreign_models`).
      step: a step, "best", or None for the newest.
      config: changes the config that the checkpoint carries, for other inference settings.

    Raises:
      InputError: there is no such checkpoint, it does not say what it was trained for, or the
        config describes another network.
    """
    if os.path.isfile(checkpoint):
        from solojax.inference.foreign_models import load_foreign  # which imports this module

        if step is not None:
            raise InputError(f"{checkpoint} is a file, which has no step {step}: leave it out")
        return load_foreign(checkpoint, config=config)
    loaded = load_variables(checkpoint, step=step)
    kept, categories = read_metadata(loaded.metadata, loaded.path)
    config = kept if config is None else config(kept)
    variables = {"params": loaded.best_params, "batch_stats": loaded.batch_stats}
    if config.model.num_classes not in (None, len(categories)):
        raise InputError(
            f"config key 'model.num_classes' is {config.model.num_classes}: checkpoint "
            f"{loaded.path} has {len(categories)} classes; leave the key out"
        )
    task = build_task(config, len(categories))
    check_same_network(task, variables, loaded.path)
    return make_segmenter(config, task, variables, categories, loaded.step)


def make_segmenter(
    config: ConfigDict,
    task: Task,
    variables: PyTree,
    categories: tuple[tuple[int, str], ...],
    step: int,
) -> Segmenter:
    """A model of its parts; the image sizes are those of `config.evaluation`."""
    evaluation = config.evaluation
    return Segmenter(
        task=task,
        variables=variables,
        categories=categories,
        short_side=evaluation.short_side,
        long_side=evaluation.long_side,
        canvas=canvas_policy(
            evaluation.canvas,
            config.data.buckets,
            (evaluation.short_side,),
            evaluation.long_side,
        ),
        config=config,
        step=step,
    )


def variable_shapes(task: Task) -> PyTree:
    """Shapes and dtypes of a network's variables; nothing is computed."""
    batch = stack_examples([empty_example((64, 64), 0)])
    return jax.eval_shape(task.init, jax.random.key(0), batch)


def check_same_network(task: Task, variables: PyTree, path: str) -> None:
    """Raises an InputError that names the leaves by which a checkpoint and a network differ."""
    wanted = _leaf_shapes(variable_shapes(task))
    found = _leaf_shapes(variables)
    differing = [
        f"{leaf} {found.get(leaf, 'is not')} in it and {wanted.get(leaf, 'not')} here"
        for leaf in sorted(wanted.keys() | found.keys())
        if wanted.get(leaf) != found.get(leaf)
    ]
    if differing:
        shown = "; ".join(differing[:3]) + ("; ..." if len(differing) > 3 else "")
        raise InputError(
            f"checkpoint {path} is of another architecture than the config: {len(differing)} "
            f"leaves differ ({shown}); use the config that it was trained with"
        )


def _leaf_shapes(variables: PyTree) -> dict[str, tuple[int, ...]]:
    flat = traverse_util.flatten_dict(variables, sep="/")
    return {path: tuple(value.shape) for path, value in flat.items()}


def read_metadata(metadata: dict, path: str):
    """The config and the (id, name) categories that a checkpoint carries."""
    try:
        config = from_json(metadata["config"])
        if config.task not in SEGMENTATION_TASKS:
            raise InputError(
                f"it is of a {config.task} run and finds no objects; train a segmenter from it by "
                f"--config.model.backbone.checkpoint={path}"
            )
        return config, tuple((c["id"], c["name"]) for c in metadata["categories"])
    except (KeyError, TypeError) as error:
        raise InputError(
            f"checkpoint {path}: its metadata does not name a config and classes ({error}); use "
            "one that `solojax train` wrote"
        ) from error
    except InputError as error:
        raise InputError(f"checkpoint {path}: {error}") from error

"""The backbone of any checkpoint, for looking at its features: a run's, a file's, or a random one.

Everything but the backbone is left where it is: projection heads, queues and key encoders of
pre-training, and the necks and heads of segmenters.
"""

from __future__ import annotations

import dataclasses
import logging
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from solojax.builders.contrast import build_contrast_task, example_views
from solojax.builders.network import build_backbone
from solojax.config import base_config, checkpoint_config
from solojax.config.schema import flatten, known_keys, set_value
from solojax.errors import InputError
from solojax.interop.load import import_backbone, open_checkpoint, with_stem
from solojax.interop.stems import TORCHVISION
from solojax.ops.images import normalize_pixels
from solojax.structures import Array, PyTree
from solojax.train.checkpoints import load_variables

_logger = logging.getLogger(__name__)

RANDOM = "random"  # in the place of a checkpoint's path
_COARSEST = 5


@dataclasses.dataclass(frozen=True)
class FrozenBackbone:
    """A backbone with its weights, which do not change any more.

    Attributes:
      title: the checkpoint in a few words.
      network: images to feature maps.
      variables: params and batch_stats of the network.
      pixel_mean: per channel, RGB, on pixels in [0, 255].
      pixel_std: likewise.
      config: what describes the network, in `model.backbone`; of pre-training also `views`.
    """

    title: str
    network: nn.Module
    variables: PyTree
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    config: ConfigDict

    @property
    def views(self) -> ConfigDict | None:
        """Of the config: the views that it was pre-trained on; None where that is not known."""
        return self.config.get("views")

    @property
    def settings(self) -> dict[str, object]:
        """What decides the features beside the weights."""
        own = {"pixel_mean": self.pixel_mean, "pixel_std": self.pixel_std}
        return backbone_settings(self.config) | own

    def features(self, variables: PyTree, pixels: Array, stage: int = _COARSEST) -> Array:
        """The feature map C2, C3, C4 or C5 of images, by running statistics; pure, to be jitted.

        Args:
          variables: the attribute, as an argument so that it is no constant of the program.
          pixels: (B, H, W, 3) RGB in [0, 255]; H and W multiples of 32.
          stage: n of Cn, whose cells are 2^n pixels apart.

        Returns:
          (B, H / 2^n, W / 2^n, C).

        Raises:
          InputError: there is no such map.
        """
        return self.map_of(
            variables, normalize_pixels(pixels, self.pixel_mean, self.pixel_std), stage
        )

    def map_of(self, variables: PyTree, images: Array, stage: int = _COARSEST) -> Array:
        """As `features`, of images that are normalised already, padding included."""
        maps = self.network.apply(variables, images, train=False)
        from_the_end = stage - _COARSEST - 1
        if not -len(maps) <= from_the_end <= -1:
            raise InputError(
                f"the backbone of {self.title} has no C{stage}; give a stage from "
                f"{_COARSEST + 1 - len(maps)} to {_COARSEST}"
            )
        return maps[from_the_end]


def backbone_settings(config: ConfigDict) -> dict[str, object]:
    """All that weights have to agree on; how they train may be another matter."""
    model, backbone = config.model, config.model.backbone.to_dict()
    for name in ("checkpoint", "frozen_stages", "train_norm_affine", "norm_group_images"):
        backbone.pop(name, None)
    if backbone["deformable"] == "none":
        del backbone["deformable_stages"]
    # Both kinds of batch norm have the same variables.
    backbone["norm"] = backbone["norm"].removeprefix("frozen_")
    values = {f"backbone.{name}": value for name, value in backbone.items()}
    return values | {name: model[name] for name in ("pixel_mean", "pixel_std")}


def load_backbone(checkpoint: str | os.PathLike, step: int | str | None = None) -> FrozenBackbone:
    """The backbone of a work directory of any task, a checkpoint in one, or a PyTorch file.

    Of a run that keeps a moving average of its parameters it is the average. Step 0 of a
    contrastive run, which no run saves, is made again from its seed.

    Args:
      checkpoint: its path.
      step: a step, "best", or None for the newest.

    Raises:
      InputError: it cannot be read, or does not say what network it is of.
    """
    path = os.path.expanduser(checkpoint)
    if os.path.isfile(path):
        if step is not None:
            raise InputError(f"{path} is a file, which has no step {step}: leave it out")
        return _from_file(path)
    first = load_variables(path, step=None if step == 0 else step)
    config = checkpoint_config(first.metadata, first.path)
    if step == 0 and first.step != 0:
        return _initial(config, str(checkpoint))
    variables = {
        "params": first.best_params.get("backbone"),
        "batch_stats": first.batch_stats.get("backbone", {}),
    }
    if variables["params"] is None:
        raise InputError(f"checkpoint {first.path} holds no backbone; give one that does")
    return _frozen(f"{checkpoint} at step {first.step}", config, variables)


def random_backbone(like: FrozenBackbone, seed: int) -> FrozenBackbone:
    """An untrained backbone of the same network, its running statistics 0 and 1."""
    variables = jax.jit(like.network.init)(jax.random.key(seed), _smallest_image())
    return dataclasses.replace(
        like, title=f"random weights, seed {seed}", variables={"batch_stats": {}, **variables}
    )


def untrained_backbone(config: ConfigDict, seed: int) -> FrozenBackbone:
    """The backbone of a config of any task with random weights, see `random_backbone`."""
    return random_backbone(_frozen("", config, {}), seed)


def _from_file(path: str) -> FrozenBackbone:
    found = open_checkpoint(path)
    if found.stem is None:
        _logger.warning("%s does not tell its stem's convention: taken for torchvision's", path)
        found = with_stem(found, TORCHVISION)
    config = base_config()
    for key, value in found.architecture.items():
        if key.startswith(("model.backbone.", "model.pixel_")) and key in known_keys():
            set_value(config, key, value)
    shapes = jax.eval_shape(_network(config).init, jax.random.key(0), _smallest_image())
    variables, _ = import_backbone(path, flatten(config), {"batch_stats": {}, **shapes})
    return _frozen(path, config, variables)


def _initial(config: ConfigDict, path: str) -> FrozenBackbone:
    """The backbone that a run began with."""
    if config.model.backbone.checkpoint:
        raise InputError(
            f"{path}: the run began with {config.model.backbone.checkpoint}; give that in place "
            "of step 0"
        )
    if config.task != "densecl":
        raise InputError(
            f"{path}: step 0 can be made again for contrastive runs alone; give the checkpoint "
            f"'{RANDOM}' for an untrained network"
        )
    task, batch = build_contrast_task(config), example_views(config)

    def create(key: Array) -> PyTree:
        variables = task.init(key, batch)
        return {name: variables[name].get("backbone", {}) for name in ("params", "batch_stats")}

    variables = jax.jit(create)(jax.random.key(config.seed))
    return _frozen(f"{path} at step 0", config, variables)


def _frozen(title: str, config: ConfigDict, variables: PyTree) -> FrozenBackbone:
    model = config.model
    return FrozenBackbone(
        title, _network(config), variables, model.pixel_mean, model.pixel_std, config
    )


def _network(config: ConfigDict) -> nn.Module:
    return build_backbone(config.model.backbone, "none", jnp.dtype("float32"))


def _smallest_image() -> Array:
    return jnp.zeros((1, 64, 64, 3), jnp.float32)

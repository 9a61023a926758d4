"""What of a block's activations the backward pass computes again instead of reading it."""

from __future__ import annotations

import flax.linen as nn
import jax

from solojax.errors import InputError

# "none" keeps everything. "whole" keeps a block's input and runs the block a second time. "convs"
# keeps the results of its convolutions and matrix products too, so that only what is cheap (norms,
# ReLUs, resizes) runs twice.
REMATS = ("none", "whole", "convs")


def rematerialised(module: type[nn.Module], remat: str, **options) -> type[nn.Module]:
    """The module class, whose calls keep for the backward pass what `remat` says.

    Parameters, their names and the results are those of the class itself.

    Args:
      module: a class of blocks.
      remat: one of `REMATS`.
      options: of `flax.linen.remat`.

    Raises:
      InputError: on another `remat`.
    """
    if remat not in REMATS:
        raise InputError(f"remat {remat!r} is unknown; use one of {', '.join(REMATS)}")
    if remat == "none":
        return module
    kept = jax.checkpoint_policies.dots_saveable if remat == "convs" else None
    return nn.remat(module, policy=kept, **options)

"""Binary masks packed eight pixels a byte, the form in which they travel to the device."""

from __future__ import annotations

import numpy as np


def pack_masks(masks: np.ndarray) -> np.ndarray:
    """Packs binary masks along the width.

    Args:
      masks: (..., W) bool or uint8 in {0, 1}.

    Returns:
      (..., ceil(W / 8)) uint8; the leftmost pixel sits in the highest bit, missing pixels of the
      last byte are 0.
    """
    return np.packbits(masks, axis=-1)


def unpack_masks(packed: np.ndarray, width: int) -> np.ndarray:
    """Undoes `pack_masks`: (..., ceil(width / 8)) uint8 to (..., width) uint8 in {0, 1}."""
    if packed.shape[-1] != -(-width // 8):
        raise ValueError(f"{packed.shape[-1]} bytes a row do not hold exactly {width} pixels")
    return np.unpackbits(packed, axis=-1, count=width)

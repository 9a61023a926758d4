"""Files of torch.save before PyTorch 1.6, which PyTorch itself has to read."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from solojax.errors import InputError
from solojax.interop.lazy_arrays import BrokenFile, LazyArray, Storage, contiguous_strides
from solojax.interop.unpickling import Refused

# The first pickle of such a file is this number.
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def read_legacy(path: Path) -> Any:
    """What the file describes, tensors as LazyArray; needs PyTorch, which reads weights only.

    Raises:
      InputError: PyTorch is not installed.
      Refused: PyTorch finds more than weights in it.
      BrokenFile: the file is damaged.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"checkpoint {path}: it is in PyTorch's format from before version 1.6, which takes "
            'PyTorch to read: pip install "solojax[parity]"'
        ) from error
    try:
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise Refused(f"more than weights ({str(error).splitlines()[0]})") from error
    except (RuntimeError, EOFError, ValueError, AssertionError) as error:
        raise BrokenFile(f"PyTorch cannot read it ({str(error).splitlines()[0]})") from error
    return _without_torch(tree, torch.Tensor, depth=3)


def _without_torch(value: Any, tensor: type, depth: int) -> Any:
    """The outer containers with their tensors as LazyArray."""
    if isinstance(value, tensor):
        return _lazy(value.detach())
    if isinstance(value, dict) and depth:
        return {key: _without_torch(entry, tensor, depth - 1) for key, entry in value.items()}
    return value


def _lazy(value: Any) -> LazyArray:
    import ml_dtypes
    import torch

    value = value.contiguous()
    if value.dtype == torch.bfloat16:
        array = value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    else:
        array = value.numpy()
    storage = Storage(id(array), array.nbytes, array.tobytes)
    return LazyArray(storage, array.dtype, array.shape, 0, contiguous_strides(array.shape))

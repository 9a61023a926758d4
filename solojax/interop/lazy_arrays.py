"""Arrays that a file describes, checked against the bytes it holds before any memory is taken."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable

import ml_dtypes
import numpy as np

MAX_AXES = 16
MAX_SIZE = 2**48  # of one axis: numbers beyond it need not be multiplied to be refused


class BrokenFile(Exception):
    """What a file says does not hold together; the message is half a sentence."""


def numpy_dtype(name: str, byteorder: str = "<") -> np.dtype:
    """The dtype called `name`, such as "float32" or "bfloat16", in a byte order "<" or ">"."""
    if name == "bfloat16":
        # Its two bytes are swapped by hand on reading: it has no big-endian form.
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name).newbyteorder(byteorder)


@dataclasses.dataclass(frozen=True)
class Storage:
    """Raw bytes that tensors look into.

    Attributes:
      key: two storages of one file are the same if their keys are.
      nbytes: how many there are.
      read: gives them.
    """

    key: Hashable
    nbytes: int
    read: Callable[[], bytes]


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """A view into a storage. `offset` and `strides` count elements, as PyTorch's do."""

    storage: Storage
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]
    byteorder: str = "<"

    @property
    def nbytes(self) -> int:
        """Of the array, were it contiguous."""
        return math.prod(self.shape) * self.dtype.itemsize

    def check(self) -> None:
        """Raises BrokenFile unless the view lies inside its storage and is no larger than it."""
        numbers = (*self.shape, *self.strides, self.offset)
        if len(self.shape) != len(self.strides) or len(self.shape) > MAX_AXES:
            raise BrokenFile(f"a tensor has {len(self.shape)} axes and {len(self.strides)} strides")
        if any(type(number) is not int or not 0 <= number <= MAX_SIZE for number in numbers):
            raise BrokenFile("a tensor has sizes or strides that no tensor has")
        count = math.prod(self.shape)
        last = self.offset + sum(
            (size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True)
        )
        available = self.storage.nbytes // self.dtype.itemsize
        if count and (count > available or last >= available):
            raise BrokenFile(
                f"a tensor of shape {self.shape} asks for {max(count, last + 1)} numbers "
                f"of a storage that holds {available}"
            )

    def read(self, cache: dict[Hashable, bytes]) -> np.ndarray:
        """The array, which may look into a storage of `cache`; raises BrokenFile, see `check`."""
        self.check()
        if math.prod(self.shape) == 0:
            return np.zeros(self.shape, self.dtype)
        if self.storage.key not in cache:
            cache[self.storage.key] = self.storage.read()
        raw = cache[self.storage.key]
        if len(raw) != self.storage.nbytes:
            raise BrokenFile(f"a storage holds {len(raw)} bytes instead of {self.storage.nbytes}")
        if self.byteorder == ">" and self.dtype == ml_dtypes.bfloat16:
            raw = np.frombuffer(raw, np.uint16).byteswap().tobytes()
        itemsize = self.dtype.itemsize
        array = np.ndarray(
            self.shape,
            self.dtype,
            buffer=raw,
            offset=self.offset * itemsize,
            strides=tuple(stride * itemsize for stride in self.strides),
        )
        return array.astype(self.dtype.newbyteorder("="), copy=False)


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a row-major array."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))

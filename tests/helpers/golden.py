"""The recorded values in tests/golden: where they are, and how their conventions are read."""

from __future__ import annotations

import functools
import json
import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[1] / "golden"


@functools.cache
def load_arrays(name: str) -> dict[str, np.ndarray]:
    """All arrays of tests/golden/`name`, an .npz file."""
    with np.load(GOLDEN / name) as file:
        return {key: file[key] for key in file.files}


def load_json(name: str):
    """The content of tests/golden/`name`, a .json file."""
    return json.loads((GOLDEN / name).read_text())


def unpack_bits(arrays: dict[str, np.ndarray], packed: str, shape: str) -> np.ndarray:
    """Masks of the shape recorded beside their bits, as bool."""
    shape = tuple(arrays[shape])
    return np.unpackbits(arrays[packed], axis=-1, count=shape[-1]).astype(bool).reshape(shape)


def sampled(arrays: dict[str, np.ndarray], key: str, full: np.ndarray):
    """What was recorded of an array, beside the same of ours: (recorded, ours).

    Args:
      arrays: the recorded ones: `key` whole, or `key`/shape, /idx and /val, a subsample.
      key: of the array.
      full: ours, whole, in the layout of the recording.
    """
    if key in arrays:
        return arrays[key], full
    assert full.shape == tuple(arrays[f"{key}/shape"])
    return arrays[f"{key}/val"], full.reshape(-1)[arrays[f"{key}/idx"]]


def seeded_state(name: str, dtype=np.float32) -> dict[str, np.ndarray]:
    """The checkpoint of a recording, as a state dict of float32 values in `dtype`; integers stay.

    Every tensor has a generator of its own, seeded by the checksum of its name, so that weights
    need not be stored. The recorded sums are checked.

    Args:
      name: of the .json file with names, shapes, kinds and sums.
      dtype: of the result.
    """
    state = {}
    for tensor_name, spec in load_json(name)["tensors"].items():
        value = _seeded_tensor(spec.get("alias_of", tensor_name), spec)
        total = float(np.sum(value, dtype=np.float64))
        assert abs(total - spec["sum"]) <= 1e-6 * max(1.0, abs(spec["sum"])), tensor_name
        state[tensor_name] = value if value.dtype == np.int64 else value.astype(dtype)
    return state


def _seeded_tensor(seed_name: str, spec: dict) -> np.ndarray:
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(seed_name.encode())))
    shape = tuple(spec["shape"])
    if spec["kind"] == "zeros_i64":
        return np.full(shape, int(spec["extra_shift"]), np.int64)
    draw = {
        "conv": lambda: generator.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:])),
        "norm_weight": lambda: 1.0 + 0.1 * generator.standard_normal(shape),
        "bias": lambda: 0.1 * generator.standard_normal(shape),
        "running_mean": lambda: 0.1 * generator.standard_normal(shape),
        "running_var": lambda: 1.0 + 0.2 * generator.random(shape),
        "queue": lambda: _unit_columns(generator.standard_normal(shape)),
        "zeros": lambda: np.zeros(shape),
    }[spec["kind"]]
    return (draw() * spec["extra_scale"] + spec["extra_shift"]).astype(np.float32)


def _unit_columns(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).sum(0, keepdims=True))

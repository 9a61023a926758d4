from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.golden import GOLDEN

from solojax.interop.lazy_arrays import BrokenFile
from solojax.interop.safetensors_file import read_safetensors, write_safetensors

RECORDED = GOLDEN / "foreign_files" / "numbers.safetensors"


def read(path):
    return {name: array.read({}) for name, array in read_safetensors(path)[0].items()}


def test_what_the_safetensors_library_wrote():
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4) * 0.5 - 3
    found = read(RECORDED)
    assert len(found) == 14
    np.testing.assert_array_equal(found["transposed"], base.transpose(2, 0, 1))
    np.testing.assert_array_equal(found["float16"], base.astype(np.float16))
    np.testing.assert_array_equal(found["bfloat16"].astype(np.float32), base)
    np.testing.assert_array_equal(found["float64"], (base / np.float32(3)).astype(np.float64))
    assert found["int64"] == 7 and found["int64"].dtype == np.int64
    assert found["empty"].shape == (0, 3)
    assert read_safetensors(RECORDED)[1] == {"format": "pt"}


def test_writing_undoes_reading(tmp_path):
    arrays = read(RECORDED)
    path = tmp_path / "again.safetensors"
    write_safetensors(path, arrays, {"format": "pt"})
    again = read(path)
    assert again.keys() == arrays.keys()
    for name, array in arrays.items():
        assert again[name].dtype == array.dtype
        np.testing.assert_array_equal(again[name], array, err_msg=name)
    assert (int.from_bytes(path.read_bytes()[:8], "little") + 8) % 8 == 0


def entry(**changes):
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(data_offsets=[0, 16], shape=[4])},  # beyond the end
        {"a": entry(data_offsets=[8, 0])},
        {"a": entry(data_offsets=[-8, 0])},
        {"a": entry(data_offsets=[0, 4])},  # bytes and shape disagree
        {"a": entry(shape=[2**40])},
        {"a": entry(shape=[-2])},
        {"a": entry(shape=[2, 0.5])},
        {"a": entry(dtype="F8_E4M3")},
        {"a": [1, 2]},
        {"a": {"dtype": "F32"}},
        {"a": entry(), "b": entry(), **{f"c{i}": entry() for i in range(99)}},  # overlapping
        [],
    ],
)
def test_bad_headers(tmp_path, header):
    path = tmp_path / "bad.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(BrokenFile):
        read(path)


@pytest.mark.parametrize(
    "text", [b"{", b'{"a": 1, "a": 2}', b'{"a":' + b"[" * 100_000, b"{\xff}", b'{"__metadata__":1}']
)
def test_headers_that_are_no_json(tmp_path, text):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(BrokenFile):
        read(path)


def test_a_header_longer_than_the_file(tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes((10**7).to_bytes(8, "little") + b"{}")
    with pytest.raises(BrokenFile, match="longer than the file"):
        read(path)

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from solojax.interop.lazy_arrays import LazyArray
from solojax.interop.torch_zip import read_torch_zip
from solojax.interop.torch_zip_writer import write_torch_zip

ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "transposed": np.arange(6, dtype=np.float64).reshape(2, 3).T,
    "big": np.arange(3, dtype=">f4"),
    "half": np.arange(3, dtype=np.float16),
    "brain": np.arange(3).astype(ml_dtypes.bfloat16),
    "number": np.array(2**40),
    "bool": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
}
OTHERS = {
    "text": "naïve", "none": None, "yes": True, "no": False, "numbers": (0, -1, 2**70, 1.5),
    "list": [1, ["two"]], "nothing": {}, "empty tuple": (),
}  # fmt: skip


def test_reading_undoes_writing(tmp_path):
    path = tmp_path / "a.pth"
    write_torch_zip(path, {"state_dict": ARRAYS} | OTHERS)
    tree = read_torch_zip(path)
    assert {key: tree[key] for key in OTHERS} == OTHERS
    for name, array in ARRAYS.items():
        read = tree["state_dict"][name]
        assert isinstance(read, LazyArray)
        np.testing.assert_array_equal(read.read({}), array, err_msg=name)


def test_pytorch_reads_it(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    write_torch_zip(path, {"state_dict": ARRAYS} | OTHERS)
    tree = torch.load(path, weights_only=True)
    assert {key: tree[key] for key in OTHERS} == OTHERS
    for name, array in ARRAYS.items():
        tensor = tree["state_dict"][name]
        assert tensor.shape == array.shape and tensor.is_contiguous()
        np.testing.assert_array_equal(
            tensor.double().numpy(), array.astype(np.float64), err_msg=name
        )
    mapped = torch.load(path, weights_only=True, mmap=True)
    assert mapped["state_dict"]["matrix"].tolist() == ARRAYS["matrix"].tolist()


@pytest.mark.parametrize("value", [{1, 2}, object(), np.zeros(2, np.complex64)])
def test_what_cannot_be_written(tmp_path, value):
    with pytest.raises(TypeError):
        write_torch_zip(tmp_path / "a.pth", {"a": value})

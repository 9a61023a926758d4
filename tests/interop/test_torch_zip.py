"""torch.save's zip archives, without PyTorch."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from helpers import pickles as p
from helpers.golden import GOLDEN

from solojax.interop.lazy_arrays import BrokenFile, LazyArray
from solojax.interop.torch_zip import read_torch_zip

RECORDED = GOLDEN / "foreign_files" / "torch_2_13.pth"


def read(path) -> dict[str, np.ndarray]:
    tree = read_torch_zip(path)["state_dict"]
    return {key: value.read({}) for key, value in tree.items()}


def test_every_sort_of_tensor_that_pytorch_wrote():
    """The file is PyTorch's; the values are what was saved there."""
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4) * 0.5 - 3
    shared = np.arange(10, dtype=np.float32)
    wanted = {
        "float32": base,
        "float64": (base / np.float32(3)).astype(np.float64),
        "float16": base.astype(np.float16),
        "bfloat16": base,  # all of it fits into bfloat16
        "int64": np.array(7),
        "int32": np.arange(5, dtype=np.int32),
        "uint8": np.arange(5, dtype=np.uint8),
        "bool": np.array([True, False, True]),
        "transposed": base.transpose(2, 0, 1),
        "channels_last": np.arange(48, dtype=np.float32).reshape(2, 3, 4, 2),
        "slice_of_shared": shared[3:9:2],
        "rest_of_shared": shared[6:],
        "empty": np.zeros((0, 3), np.float32),
        "parameter": base + 1,
    }
    found = read(RECORDED)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key].shape == value.shape, key
        np.testing.assert_array_equal(found[key].astype(value.dtype), value, err_msg=key)
        assert key == "bfloat16" or found[key].dtype == value.dtype, key
    assert found["bfloat16"].dtype.name == "bfloat16"


def test_tensors_of_one_storage_read_it_once():
    tree = read_torch_zip(RECORDED)["state_dict"]
    cache = {}
    first = tree["slice_of_shared"].read(cache)
    second = tree["rest_of_shared"].read(cache)
    assert len(cache) == 1
    assert first[-1] == 7 and second[1] == 7


def test_big_endian_archives(tmp_path):
    body = p.mapping(state_dict=p.mapping(
        a=p.tensor("0", (2,), (1,), count=2),
        b=p.tensor("1", (2,), (1,), count=2, kind=("torch", "BFloat16Storage")),
    ))  # fmt: skip
    storages = {"0": np.array([1, 2], ">f4"), "1": b"\x3f\x80\x40\x00"}
    found = read(p.write_zip(tmp_path / "b.pth", body, storages, byteorder=b"big"))
    assert found["a"].tolist() == [1, 2]
    assert found["b"].astype(np.float32).tolist() == [1, 2]


def test_untyped_storages_and_other_ways_to_build_a_tensor(tmp_path):
    plain = p.tensor("0", (2,), (1,), count=2)
    untyped = p.call(
        p.name("torch._utils", "_rebuild_tensor_v3"),
        p.storage("0", 8, ("torch.storage", "UntypedStorage")),
        p.number(0), p.numbers(2), p.numbers(1), b"\x89", b"N", p.name("torch", "float32"), b"N",
    )  # fmt: skip
    parameter = p.call(p.name("torch._utils", "_rebuild_parameter"), plain, b"\x88", b"}")
    arguments = plain[: -len(b"R")].removeprefix(p.name("torch._utils", "_rebuild_tensor_v2"))
    wrapped = p.call(
        p.name("torch._tensor", "_rebuild_from_type_v2"),
        p.name("torch._utils", "_rebuild_tensor_v2"),
        p.name("torch.nn.parameter", "Parameter"), arguments, b"}",
    )  # fmt: skip
    body = p.mapping(state_dict=p.mapping(u=untyped, p=parameter, w=wrapped))
    found = read(p.write_zip(tmp_path / "a.pth", body, {"0": np.array([3, 4], np.float32)}))
    assert {key: value.tolist() for key, value in found.items()} == dict.fromkeys("upw", [3, 4])


@pytest.mark.parametrize(
    "tensor",
    [
        p.tensor("0", (3,), (1,), count=2),
        p.tensor("0", (2,), (2,), count=2),
        p.tensor("0", (1,), (1,), count=2, offset=2),
        p.tensor("0", (2**40, 2**40), (0, 0), count=2),  # an expanded number: 4 TB and more
        p.tensor("0", (2**30,), (0,), count=2),
        p.tensor("0", (2**4000,), (1,), count=2),
        p.tensor("0", (0, 2**60), (1, 1), count=2),
        p.tensor("0", (2,), (-1,), count=2, offset=1),
        p.tensor("0", (2,), (1,), count=2, offset=-1),
        p.tensor("0", (2,), (1, 1), count=2),
        p.tensor("0", (1,) * 40, (1,) * 40, count=2),
        p.tensor("0", (2,), (1,), count=2**40),  # a storage that claims more than its entry
        p.tensor("1", (2,), (1,), count=2),  # no such storage
        p.tensor("0", (2,), (1,), count=2, kind=("torch.storage", "UntypedStorage")),
    ],
)
def test_tensors_that_the_storage_cannot_hold(tmp_path, tensor):
    body = p.mapping(state_dict=p.mapping(a=tensor))
    path = p.write_zip(tmp_path / "a.pth", body, {"0": np.zeros(2, np.float32)})
    with pytest.raises(BrokenFile):
        read(path)


def test_storages_are_read_when_asked_for(tmp_path):
    """An optimizer's momentum is in the file and never read."""
    body = p.mapping(state_dict=p.mapping(a=p.tensor("0", (2,), (1,), count=2)))
    path = p.write_zip(tmp_path / "a.pth", body, {"0": np.zeros(2, np.float32)})
    tree = read_torch_zip(path)
    path.unlink()
    assert isinstance(tree["state_dict"]["a"], LazyArray)


def test_archives_that_are_no_checkpoints(tmp_path):
    def written(**entries):
        path = tmp_path / "other.pth"
        with zipfile.ZipFile(path, "w", compression=entries.pop("compression", 0)) as archive:
            for name, content in entries.items():
                archive.writestr(name.replace("__", "/"), content)
        return path

    for problem, entries in {
        "without a data.pkl": {"a__readme": b"x"},
        "TorchScript": {"a__data.pkl": b"x", "a__code__m.py": b"x"},
        "compressed": {"a__data.pkl": bytes(1000), "compression": zipfile.ZIP_DEFLATED},
    }.items():
        with pytest.raises(BrokenFile, match=problem):
            read_torch_zip(written(**entries))


def test_entries_that_overlap_are_refused(tmp_path):
    """The directory lists one entry of 100 kB a hundred times: 10 MB in a file of 100 kB."""
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", p.pickle_of(b"}"))
        archive.writestr("a/data/0", bytes(100_000))
        entry = archive.getinfo("a/data/0")
        archive.filelist += [entry] * 100
        names = iter(range(1, 1000))
        for position in range(2, len(archive.filelist)):
            copy = zipfile.ZipInfo(f"a/data/{next(names)}")
            for field in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(copy, field, getattr(entry, field))
            archive.filelist[position] = copy
    with pytest.raises(BrokenFile, match="claims to hold more"):
        read_torch_zip(path)

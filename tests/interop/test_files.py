"""Checkpoint files as state dicts: every format, and one clear line for every bad file."""

from __future__ import annotations

import io
import os
import pickle
import random
import sys

import numpy as np
import pytest
from helpers import pickles as p
from helpers.golden import GOLDEN

from solojax.errors import InputError
from solojax.interop.files import read_state

FILES = GOLDEN / "foreign_files"
READABLE = (
    "torch_2_13.pth", "numbers.safetensors",
    "arrays_protocol2.pkl", "arrays_protocol4.pkl", "arrays_protocol5.pkl",
)  # fmt: skip


def refusal(path) -> str:
    with pytest.raises(InputError) as caught:
        read_state(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def tensors(**entries):
    """A dict of tensors over one storage of two numbers, whatever their names."""
    return p.mapping(**{name: p.tensor("0", (2,), (1,), count=2) for name in entries})


def write(path, body):
    return p.write_zip(path, body, {"0": np.array([1, 2], np.float32)})


def test_pytorch_zip():
    file = read_state(FILES / "torch_2_13.pth")
    assert file.outer == "state_dict" and len(file.arrays) == 14
    assert file.meta == {"epoch": 12, "classes": ("cat", "dog")}


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_detectron2_pickles(protocol):
    """Written by Python 3; Python 2's byte strings are in test_unpickling."""
    file = read_state(FILES / f"arrays_protocol{protocol}.pkl")
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4) * 0.5 - 3
    assert file.outer == "model" and file.meta == {"author": "MSRA"}
    np.testing.assert_array_equal(file.arrays["float32"], base)
    np.testing.assert_array_equal(file.arrays["float16"], base.astype(np.float16))
    np.testing.assert_array_equal(file.arrays["fortran"], base[0])
    np.testing.assert_array_equal(file.arrays["bool"], [True, False, True])
    assert file.arrays["int64"] == 7
    assert file.arrays["empty"].shape == (0, 3)


def test_the_format_shows_in_the_content(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes((FILES / "numbers.safetensors").read_bytes())
    assert len(read_state(path).arrays) == 14


def test_files_from_before_pytorch_1_6_need_pytorch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert 'pip install "solojax[parity]"' in refusal(FILES / "torch_legacy.pth")


def test_files_from_before_pytorch_1_6_with_pytorch():
    pytest.importorskip("torch")
    old = read_state(FILES / "torch_legacy.pth").arrays
    new = read_state(FILES / "torch_2_13.pth").arrays
    assert old.keys() == new.keys()
    for name, array in new.items():
        assert old[name].dtype == array.dtype
        np.testing.assert_array_equal(old[name], array, err_msg=name)


@pytest.mark.parametrize("outer", ["state_dict", "model", "model_state", "blobs"])
def test_where_a_state_dict_may_lie(tmp_path, outer):
    body = p.mapping(**{outer: tensors(a=1), "optimizer": tensors(b=1), "epoch": p.number(3)})
    file = read_state(write(tmp_path / "a.pth", body))
    assert file.outer == outer and file.meta == {"epoch": 3}
    assert {name: array.tolist() for name, array in file.arrays.items()} == {"a": [1, 2]}


def test_a_bare_state_dict(tmp_path):
    file = read_state(write(tmp_path / "a.pth", tensors(a=1, b=1)))
    assert file.outer == "" and set(file.arrays) == {"a", "b"}


def test_prefixes_of_data_parallel_come_off(tmp_path):
    body = p.mapping(state_dict=tensors(**{"module.module.a": 1, "module.module.b.module.c": 1}))
    file = read_state(write(tmp_path / "a.pth", body))
    assert set(file.arrays) == {"a", "b.module.c"}
    assert "'module.'" in file.notes[0]


def test_a_prefix_that_not_all_have_stays(tmp_path):
    body = p.mapping(state_dict=tensors(**{"module.a": 1, "b": 1}))
    assert set(read_state(write(tmp_path / "a.pth", body)).arrays) == {"module.a", "b"}


def test_copies_of_a_moving_average_are_ignored_and_named(tmp_path):
    state = tensors(**{"backbone.a": 1, "ema_backbone_a": 1})
    body = p.mapping(state_dict=state, ema_state_dict=tensors(a=1))
    file = read_state(write(tmp_path / "a.pth", body))
    assert set(file.arrays) == {"backbone.a"}
    assert any("ema_state_dict" in note for note in file.notes)
    assert any("1 tensors called ema_..." in note for note in file.notes)


def test_the_training_log_of_mmengine_is_passed_over(tmp_path):
    buffer = p.name("mmengine.logging.history_buffer", "HistoryBuffer")
    method = p.call(p.name("builtins", "getattr"), buffer, p.text("mean"))
    log = buffer + b")\x81" + p.mapping(_statistics=p.mapping(mean=method)) + b"b"
    meta = p.mapping(dataset_meta=p.mapping(classes=p.group(p.text("cat"), p.text("dog"))))
    body = p.mapping(message_hub=p.mapping(loss=log), meta=meta, state_dict=tensors(a=1))
    file = read_state(write(tmp_path / "a.pth", body))
    assert set(file.arrays) == {"a"} and file.meta == {"classes": ("cat", "dog")}


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_pickle_is_refused_and_does_not_run(tmp_path, protocol):
    touched = tmp_path / "touched"
    path = tmp_path / "hostile.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": Touch(touched)}}, protocol))
    message = refusal(path)
    assert "system" in message and "nothing of it was run" in message and "state_dict" in message
    assert not touched.exists()


def test_a_hostile_pickle_in_an_archive_is_refused_and_does_not_run(tmp_path):
    touched = tmp_path / "touched"
    attack = p.call(p.name("os", "system"), p.text(f"touch {touched}"))
    body = p.mapping(state_dict=tensors(a=1), optimizer=attack)
    assert "os.system" in refusal(write(tmp_path / "a.pth", body))
    # After the end of the pickle, and in the place of a storage, it is not even looked at.
    path = p.write_zip(
        tmp_path / "b.pth",
        p.mapping(state_dict=tensors(a=1)) + b"." + attack,
        {"0": np.array([1, 2], np.float32), "1": p.pickle_of(attack)},
    )
    assert set(read_state(path).arrays) == {"a"}
    assert not touched.exists()


def test_whole_modules_are_named():
    message = refusal(FILES / "torch_module.pth")
    assert "whole module (torch.nn.modules.container.Sequential)" in message
    assert "state_dict()" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"just some words", "no format of weights"),
        (b"\x89PNG\r\n\x1a\n", "no format of weights"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (pickle.dumps([1, 2]), "holds a list, not a dict"),
        (pickle.dumps({"epoch": 3, "log": "x"}), "its entries are epoch, log"),
        (pickle.dumps({}), "its entries are none"),
        (pickle.dumps({"model": {3: 4}}), "no state dict"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path, content, said):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    assert said in refusal(path)


def test_archives_of_numpy_are_no_checkpoints(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.zeros(2))
    assert "without a data.pkl" in refusal(path)


def test_absent_files_and_folders(tmp_path):
    assert "No such file" in refusal(tmp_path / "absent.pth")
    assert "directory" in refusal(tmp_path).lower()


def test_tensors_that_share_one_storage_cannot_fill_the_memory(tmp_path):
    """A thousand views of one storage would each be copied into the network."""
    many = {f"t{i}": p.tensor("0", (50_000,), (1,), count=50_000) for i in range(1000)}
    path = p.write_zip(
        tmp_path / "a.pth", p.mapping(state_dict=p.mapping(**many)), {"0": bytes(200_000)}
    )
    assert "many times larger than the file" in refusal(path)


@pytest.mark.parametrize("name", READABLE)
def test_files_cut_short(tmp_path, name):
    whole = (FILES / name).read_bytes()
    path = tmp_path / name
    for length in {1, 8, 9, 16, *range(0, len(whole) - 1, max(1, len(whole) // 60))}:
        path.write_bytes(whole[:length])
        refusal(path)


@pytest.mark.parametrize("name", READABLE)
def test_damaged_files_are_read_or_refused_and_nothing_else(tmp_path, name):
    """Bytes changed at random, in ranges where the structure lies."""
    whole, path = (FILES / name).read_bytes(), tmp_path / name
    draw = random.Random(name)
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(draw.choice((1, 1, 3))):
            damaged[draw.randrange(len(damaged))] = draw.choice((0, 0x2E, 0x52, 0x62, 0xFF))
        path.write_bytes(damaged)
        try:
            read_state(path)
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)


def test_damaged_pickles_inside_archives(tmp_path):
    """As above, with the checksums of the archive made right again."""
    import zipfile

    with zipfile.ZipFile(FILES / "torch_2_13.pth") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    [pickled] = [name for name in entries if name.endswith("data.pkl")]
    draw, path = random.Random(0), tmp_path / "a.pth"
    for _ in range(300):
        damaged = bytearray(entries[pickled])
        damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in (entries | {pickled: bytes(damaged)}).items():
                archive.writestr(name, content)
        path.write_bytes(buffer.getvalue())
        try:
            read_state(path)
        except InputError as error:
            assert str(path) in str(error)

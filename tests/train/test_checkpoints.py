"""Checkpoints: bit-exact round trips, and what is left after kills, damage and full disks."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from solojax.errors import InputError
from solojax.train import checkpoints
from solojax.train.checkpoints import Checkpointer, load_variables

Momentum = namedtuple("Momentum", ["count", "trace"])


@struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt_state: tuple
    batch_stats: dict
    ema_params: dict | None
    extra: dict


def make_state(step: int, width: int = 6, ema: bool = False) -> State:
    rng = np.random.default_rng(step)
    kernel = jnp.asarray(rng.normal(size=(5, width)), jnp.float32)
    params = {"stem": {"kernel": kernel}, "head": {"bias": jnp.full((3,), step, jnp.bfloat16)}}
    return State(
        step=jnp.int32(step),
        params=params,
        opt_state=(Momentum(jnp.int32(step), jax.tree.map(jnp.zeros_like, params)), (), None),
        batch_stats={},
        ema_params=jax.tree.map(lambda leaf: leaf + 1, params) if ema else None,
        extra={"queue": jnp.asarray(rng.integers(0, 2**32, (300,), np.uint32))},
    )


def assert_identical(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for got, want in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.asarray(got).dtype == np.asarray(want).dtype
        assert np.asarray(got).shape == np.asarray(want).shape
        assert np.asarray(got).tobytes() == np.asarray(want).tobytes()


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@functools.partial(jax.jit, donate_argnums=0)
def add_one(state):
    return jax.tree.map(lambda leaf: leaf + jnp.ones((), leaf.dtype), state)


def test_round_trip_is_bit_exact_for_every_dtype_and_container(tmp_path):
    # Payloads of NaN, the sign of zero and denormals must survive too.
    patterns = np.array([0x7FC00001, 0xFF800000, 0x80000000, 0x00000001, 0x7F7FFFFF], np.uint32)
    state = {
        "float32": jnp.asarray(patterns.view(np.float32)),
        "bfloat16": jnp.asarray(np.arange(2**16, dtype=np.uint16)).view(jnp.bfloat16),
        "float16": jnp.arange(5, dtype=jnp.float16),
        "int32": jnp.array([-(2**31), 2**31 - 1], jnp.int32),
        "int8": jnp.array([-128, 127], jnp.int8),
        "uint8": jnp.arange(256, dtype=jnp.uint8),
        "key": jax.random.key_data(jax.random.key(7)),
        "bool": jnp.array([[True, False]]),
        "scalar": jnp.float32(0.1),
        "host": np.array([1.5, np.nan]),
        "host_scalar": np.float32(0.1),
        "python": [3, 0.1, True],
        "empty": jnp.zeros((0, 4), jnp.bfloat16),
        "nothing": None,
        "containers": ({}, [], (), {"inner": {}}, Momentum(None, ())),
        "labels": {"lr_0.1": jnp.zeros(2)},
        "numbered": {0: jnp.ones(2), 1: jnp.zeros(2)},
    }
    with Checkpointer(tmp_path / "c") as checkpointer:
        checkpointer.save(5, state, {"config": {"lr": 0.01, "names": ["a", None]}})
        restored, metadata, step = checkpointer.restore(state)
    assert step == 5
    assert metadata == {"config": {"lr": 0.01, "names": ["a", None]}}
    assert_identical(restored, state)
    for name, leaf in state.items():
        if isinstance(leaf, jax.Array | np.ndarray | np.generic):
            assert type(restored[name]) is type(leaf)
    assert [type(value) for value in restored["python"]] == [int, float, bool]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_train_state_survives_a_new_process_and_donation(tmp_path, asynchronous):
    states = {}
    with Checkpointer(tmp_path, asynchronous=asynchronous) as checkpointer:
        state = make_state(0, ema=True)
        for step in (1, 2, 3):
            state = add_one(state)
            states[step] = jax.tree.map(np.array, state)
            checkpointer.save(step, state, {"at": step})
            state = add_one(state)  # takes the buffers while they may still be written
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.latest_step() == 3
        for step in (1, 2, 3):
            restored, metadata, at = checkpointer.restore(make_state(9, ema=True), step)
            assert (at, metadata) == (step, {"at": step})
            assert_identical(restored, states[step])
        newest, _, at = checkpointer.restore(make_state(9, ema=True))
        assert at == 3
        # A restored state can be donated in its turn.
        assert_identical(add_one(newest), add_one(jax.tree.map(jnp.asarray, states[3])))


def test_host_arrays_may_change_after_save(tmp_path):
    state = {"queue": np.zeros(200_000)}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state, {})
        state["queue"][:] = 7
        restored, _, _ = checkpointer.restore(state)
    assert not restored["queue"].any()


def test_restored_arrays_have_the_templates_shardings(tmp_path):
    devices = np.array(jax.devices())
    if len(devices) < 4:
        pytest.skip("needs four devices")
    four, two = Mesh(devices[:4], ("data",)), Mesh(devices[2:4], ("data",))
    rows, everywhere = PartitionSpec("data"), PartitionSpec()
    value = np.arange(32, dtype=np.float32).reshape(8, 4)
    state = {
        "sharded": jax.device_put(value, NamedSharding(four, rows)),
        "replicated": jax.device_put(value + 1, NamedSharding(four, everywhere)),
    }
    wanted = {
        "sharded": NamedSharding(two, everywhere),
        "replicated": NamedSharding(two, rows),
    }
    template = {
        name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)
        for name, sharding in wanted.items()
    }
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state, {}, wait=True)
        same, _, _ = checkpointer.restore(state)
        other, _, _ = checkpointer.restore(template)
    for name in state:
        assert same[name].sharding == state[name].sharding
        assert other[name].sharding == wanted[name]
        assert [shard.index for shard in other[name].addressable_shards] == [
            wanted[name].devices_indices_map(value.shape)[shard.device]
            for shard in other[name].addressable_shards
        ]
    assert_identical(same, state)
    assert_identical(other, state)


def test_nothing_to_restore(tmp_path):
    with Checkpointer(tmp_path / "new" / "folder") as checkpointer:
        assert checkpointer.restore(make_state(0)) is None
        assert checkpointer.latest_step() is None


def saved_steps(directory: Path) -> list[int]:
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


@pytest.mark.parametrize(
    ("mode", "scores", "expected"),
    [
        ("max", [0.1, 0.5, 0.3, 0.2, 0.4], [2, 4, 5]),
        ("min", [0.1, 0.5, 0.3, 0.2, 0.4], [1, 4, 5]),
        ("max", [0.5, 0.5, 0.1, 0.1, 0.1], [2, 4, 5]),  # of equals the later one
        ("max", [0.2, float("nan"), float("inf"), None, 0.1], [1, 4, 5]),
        ("max", [None] * 5, [4, 5]),
    ],
)
def test_keeps_the_newest_and_the_best(tmp_path, mode, scores, expected):
    for step, score in enumerate(scores, 1):  # a new process each time: it remembers on disk
        with Checkpointer(tmp_path, keep=2, best_metric="mask/AP", best_mode=mode) as checkpointer:
            metrics = None if score is None else {"mask/AP": score, "box/AP": -score}
            checkpointer.save(step, make_state(step), {}, metrics)
    assert saved_steps(tmp_path) == expected
    if expected != [4, 5]:
        assert load_variables(tmp_path, step="best").step == expected[0]
    else:
        with pytest.raises(InputError, match="has metrics"):
            load_variables(tmp_path, step="best")


def test_metrics_without_the_tracked_one(tmp_path):
    with Checkpointer(tmp_path, keep=1, best_metric="mask/AP") as checkpointer:
        with pytest.raises(
            InputError, match="'mask/AP' is none .* figures loss, mask/AP50; .* 2 is"
        ):
            checkpointer.save(2, make_state(2), {}, {"mask/AP50": 0.5, "loss": 1.0})
    assert saved_steps(tmp_path) == [2]


def test_a_step_that_is_saved_whole_is_left_alone(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(4, make_state(4), {"first": True})
        checkpointer.save(4, make_state(5), {"first": False})
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(4, make_state(5), {"first": False})
        restored, metadata, _ = checkpointer.restore(make_state(0))
    assert metadata == {"first": True}
    assert_identical(restored, make_state(4))


def test_a_step_that_is_there_but_broken_is_saved_again(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(4, make_state(4), {})
    shutil.rmtree(tmp_path / "4" / "state" / "d")
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(4, make_state(4), {"again": True})
        restored, metadata, _ = checkpointer.restore(make_state(0))
    assert metadata == {"again": True}
    assert_identical(restored, make_state(4))
    assert (tmp_path / "broken" / "4").is_dir()


def test_a_step_behind_the_newest_is_an_error(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(4, make_state(4), {})
        with pytest.raises(InputError) as error:
            checkpointer.save(3, make_state(3), {})
    assert "3" in one_line(error) and "4" in one_line(error)
    assert saved_steps(tmp_path) == [4]


def damage_cases() -> dict:
    def half(path: Path):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return {"deleted": Path.unlink, "emptied": lambda path: path.write_bytes(b""), "halved": half}


@pytest.mark.parametrize("kind", damage_cases())
def test_any_damaged_file_costs_at_most_that_checkpoint(tmp_path, kind, caplog):
    """Each file of the newest checkpoint in turn: never a wrong number, never an end of the run."""
    whole = tmp_path / "whole"
    with Checkpointer(whole, best_metric="score") as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, make_state(step), {"at": step}, {"score": step})
    files = [path.relative_to(whole) for path in (whole / "2").rglob("*") if path.is_file()]
    outcomes = set()
    for number, file in enumerate(files):
        directory = tmp_path / str(number)
        shutil.copytree(whole, directory)
        damage_cases()[kind](directory / file)
        caplog.clear()
        with Checkpointer(directory, best_metric="score") as checkpointer:
            restored, metadata, step = checkpointer.restore(make_state(0))
            assert metadata == {"at": step}
            assert_identical(restored, make_state(step))
            if step == 1:
                assert not (directory / "2").exists()
                assert (directory / "broken" / "2").is_dir()
                assert "2 to 2 are lost" in caplog.text
            checkpointer.save(step + 1, make_state(step + 1), {})  # the run goes on
            assert checkpointer.restore(make_state(0))[2] == step + 1
        outcomes.add((str(file.parent.name), step))
    # The arrays, their index and the record cannot be done without.
    assert {("d", 1), ("metadata", 1), ("state", 1)} <= outcomes


def test_a_whole_folder_lost(tmp_path, caplog):
    with Checkpointer(tmp_path, keep=5) as checkpointer:
        for step in (10, 20, 30):
            checkpointer.save(step, make_state(step), {})
    shutil.rmtree(tmp_path / "30" / "state")
    shutil.rmtree(tmp_path / "20" / "metadata")
    (tmp_path / "broken" / "30").mkdir(parents=True)  # from an earlier accident
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.restore(make_state(0))[2] == 10
    assert "11 to 30 are lost" in caplog.text
    assert {path.name for path in (tmp_path / "broken").iterdir()} == {"20", "30", "30-1"}


def test_no_whole_checkpoint_left(tmp_path, caplog):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, make_state(1), {})
    shutil.rmtree(tmp_path / "1" / "state")
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.restore(make_state(0)) is None
        assert "starting anew" in caplog.text
        checkpointer.save(1, make_state(1), {})
    assert saved_steps(tmp_path) == [1]


def test_a_named_step_is_never_replaced_by_another(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, make_state(step), {})
    shutil.rmtree(tmp_path / "2" / "state")
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(InputError, match="is broken"):
            checkpointer.restore(make_state(0), step=2)
        with pytest.raises(InputError, match="no checkpoint of step 3"):
            checkpointer.restore(make_state(0), step=3)
    assert saved_steps(tmp_path) == [1, 2]


def test_a_checkpoint_of_another_model_is_named_and_left_alone(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, make_state(1), {})
        missing = make_state(0).replace(extra={"queue": make_state(0).extra["queue"], "more": 1.0})
        unexpected = make_state(0).replace(extra={})
        other_type = make_state(0).replace(step=jnp.float32(0))
        cases = {
            "extra/more is not in it": missing,
            "extra/queue is only in it": unexpected,
            "params/stem/kernel is float32[5,6] in it and float32[5,7] here": make_state(0, 7),
            "step is int32[] in it and float32[] here": other_type,
            "ema_params/head/bias is not in it": make_state(0, ema=True),
        }
        for phrase, template in cases.items():
            with pytest.raises(InputError) as error:
                checkpointer.restore(template)
            assert phrase in one_line(error)
            assert str(tmp_path / "1") in one_line(error)
        many = make_state(0).replace(params={str(i): jnp.ones(1) for i in range(40)})
        with pytest.raises(InputError) as error:
            checkpointer.restore(many)
        assert one_line(error).count("is not in it") == 5 and "and 37 more" in one_line(error)
        assert checkpointer.restore(make_state(0))[2] == 1
    assert not (tmp_path / "broken").exists()


def test_a_template_that_cannot_be_placed_is_not_blamed_on_the_file(tmp_path):
    devices = np.array(jax.devices())
    if len(devices) < 2:
        pytest.skip("needs two devices")
    uneven = NamedSharding(Mesh(devices[:2], ("data",)), PartitionSpec("data"))
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"odd": jnp.ones(5)}, {})
        with pytest.raises(ValueError, match="evenly divide"):
            checkpointer.restore({"odd": jax.ShapeDtypeStruct((5,), jnp.float32, sharding=uneven)})
    assert saved_steps(tmp_path) == [1]


def test_leftovers_of_killed_saves_are_removed_at_start(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, make_state(1), {})
    for name in ("2.orbax-checkpoint-tmp", "1.orbax-checkpoint-tmp-removed"):
        (tmp_path / name / "state").mkdir(parents=True)
        (tmp_path / name / "state" / "file").write_text("half")
    (tmp_path / "notes").mkdir()  # not ours
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.latest_step() == 1
        assert {path.name for path in tmp_path.iterdir()} == {"1", "notes"}


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on file sizes")
@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_full_disk_is_one_line_and_spares_earlier_checkpoints(tmp_path, asynchronous, capfd):
    """A limit on file sizes makes the storage refuse the arrays, as a full disk does."""
    large = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(400, 500)), jnp.float32)}
    small = {"w": jnp.zeros((400, 500))}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpointer(tmp_path, keep=1, asynchronous=asynchronous) as checkpointer:
        checkpointer.save(1, small, {}, wait=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
        try:
            with pytest.raises(InputError) as error:
                checkpointer.save(2, large, {})
                checkpointer.save(3, small, {})  # the background's error comes to light here
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "checkpoint 2 could not be saved" in one_line(error)
        assert str(tmp_path) in one_line(error)
        assert saved_steps(tmp_path) == [1]
        assert [path.name for path in tmp_path.iterdir()] == ["1"]  # room is given back
        assert checkpointer.restore(small)[2] == 1
        checkpointer.save(2, large, {})  # and it can be tried again
        restored, _, step = checkpointer.restore(large)
    assert step == 2
    assert_identical(restored, large)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on file sizes")
def test_a_failed_save_in_the_background_is_found_without_another_save(tmp_path):
    large = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(400, 500)), jnp.float32)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.check()  # nothing was saved, nothing failed
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
        try:
            with pytest.raises(InputError, match="checkpoint 2 could not be saved"):
                checkpointer.save(2, large, {})
                deadline = time.monotonic() + 30
                while time.monotonic() < deadline:
                    checkpointer.check()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        checkpointer.save(3, large, {}, wait=True)
        checkpointer.check()
        assert saved_steps(tmp_path) == [3]


def test_all_processes_go_by_the_list_of_process_0(tmp_path, monkeypatch):
    """Shared storage may show another host a list that is some seconds old."""
    state = make_state(0)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state, {}, wait=True)
        checkpointer.save(2, state, {}, wait=True)
        told = []
        monkeypatch.setattr(
            checkpoints, "gather_json", lambda seen: told.append(seen) or [[1], [2]]
        )
        assert checkpointer.latest_step() == 1
        assert checkpointer.restore(state)[2] == 1
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        assert checkpointer.latest_step() == 1
    assert told == [[1, 2], [1, 2], []]


def test_an_error_of_the_run_is_not_hidden_by_one_of_the_save(tmp_path, caplog):
    def fail(self):
        raise InputError("the save failed too")

    with pytest.raises(RuntimeError, match="of the run"):
        with Checkpointer(tmp_path) as checkpointer:
            checkpointer.close = functools.partial(fail, checkpointer)
            raise RuntimeError("of the run")
    assert "the save failed too" in caplog.text


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for directory in (tmp_path / "file", tmp_path / "file" / "checkpoints"):
        with pytest.raises(InputError) as error:
            Checkpointer(directory)
        assert str(directory) in one_line(error)


def test_bad_arguments(tmp_path):
    with pytest.raises(InputError, match="at least 1"):
        Checkpointer(tmp_path, keep=0)
    with pytest.raises(InputError, match="'max' or 'min'"):
        Checkpointer(tmp_path, best_mode="highest")
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(TypeError, match="key_data"):
            checkpointer.save(1, {"key": jax.random.key(0)}, {})
        twice = {"a.b": {"c": jnp.ones(1)}, "a": {"b.c": jnp.zeros(1)}}
        with pytest.raises(ValueError, match="stored as a.b.c"):
            checkpointer.save(1, twice, {})
        with pytest.raises(TypeError, match="JSON"):
            checkpointer.save(1, {"w": jnp.ones(1)}, {"path": Path()})
        assert checkpointer.restore({"w": jnp.ones(1)}) is None


def test_load_variables_needs_no_template(tmp_path):
    directory = tmp_path / "checkpoints"
    with Checkpointer(directory, best_metric="mask/AP") as checkpointer:
        for step, score in ((1, 0.4), (2, 0.3)):
            checkpointer.save(
                step, make_state(step, ema=step == 1), {"at": step}, {"mask/AP": score}
            )
    before = sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    for path in (tmp_path, directory, directory / "2", str(tmp_path)):
        loaded = load_variables(path)
        assert (loaded.step, loaded.metadata, loaded.ema_params) == (2, {"at": 2}, None)
        assert loaded.batch_stats == {}
        assert loaded.path == str(directory / "2")
        assert_identical(loaded.params, make_state(2).params)
        assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(loaded.params))
    for step in (1, "1", "best"):
        loaded = load_variables(tmp_path, step=step)
        assert loaded.step == 1
        assert_identical(loaded.ema_params, make_state(1, ema=True).ema_params)
    assert load_variables(directory / "1", step=1).step == 1
    after = sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    assert after == before


def test_load_variables_says_what_is_wrong_with_a_path(tmp_path):
    directory = tmp_path / "run" / "checkpoints"
    with Checkpointer(directory) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, make_state(step), {})
    (tmp_path / "weights.pth").write_text("")
    (tmp_path / "empty").mkdir()
    (directory / "3.orbax-checkpoint-tmp").mkdir()
    cases = {
        tmp_path / "absent": "does not exist",
        tmp_path / "weights.pth": "is a file",
        tmp_path / "empty": "no checkpoint in",
        directory / "3.orbax-checkpoint-tmp": "unfinished save",
    }
    for path, phrase in cases.items():
        with pytest.raises(InputError) as error:
            load_variables(path)
        assert phrase in one_line(error) and str(path) in one_line(error)
    for step in (7, "newest"):
        with pytest.raises(InputError, match=f"no checkpoint '{step}'"):
            load_variables(tmp_path / "run", step=step)
    with pytest.raises(InputError, match="is one checkpoint"):
        load_variables(directory / "1", step=2)
    shutil.rmtree(directory / "2" / "state")
    with pytest.raises(InputError) as error:  # a number for a paper is of the checkpoint asked for
        load_variables(tmp_path / "run")
    assert "is broken" in one_line(error) and "[1, 2]" in one_line(error)
    record = directory / "1" / "metadata" / "metadata"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"format": 99}))
    with pytest.raises(InputError, match="format 99"):
        load_variables(directory / "1")


SAVE_FOREVER = """
import functools, sys
import jax, jax.numpy as jnp, numpy as np
from solojax.train.checkpoints import Checkpointer

def fresh():
    rng = np.random.default_rng(0)
    # Random bits do not compress: a save takes long enough to be hit.
    leaves = [jnp.asarray(rng.integers(0, 2**30, (256, 512)), jnp.int32) for _ in range(8)]
    return {"step": jnp.int32(0), "params": leaves[:4], "opt_state": {"trace": leaves[4:]}}

@functools.partial(jax.jit, donate_argnums=0)
def add_one(state):
    return jax.tree.map(lambda leaf: leaf + 1, state)

if __name__ == "__main__":
    with Checkpointer(sys.argv[1], keep=2, best_metric="score") as checkpointer:
        restored = checkpointer.restore(fresh())
        state = restored[0] if restored else fresh()
        print("ready", flush=True)
        while True:
            state = add_one(state)
            step = int(state["step"])
            checkpointer.save(step, state, {"at": step}, {"score": step % 7})
            print(step, flush=True)
"""


def kill_while_saving(directory: Path, saves: int, delay: float) -> bool:
    """Runs the script above, kills it some time after so many saves; whether one was cut off."""
    process = subprocess.Popen(
        [sys.executable, "-c", SAVE_FOREVER, str(directory)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "ready\n"
        for _ in range(saves):
            assert process.stdout.readline()
        time.sleep(delay)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    return any("orbax-checkpoint-tmp" in path.name for path in directory.iterdir())


def check_restored(directory: Path) -> int:
    """Restores in this process; every leaf must be that of the step it claims to be."""
    script = {"__name__": "script"}
    exec(SAVE_FOREVER, script)
    with Checkpointer(directory, keep=2, best_metric="score") as checkpointer:
        assert not any("tmp" in path.name for path in directory.iterdir())
        restored = checkpointer.restore(script["fresh"]())
    assert not (directory / "broken").exists()  # a kill leaves nothing broken behind
    if restored is None:
        return 0
    state, metadata, step = restored
    assert metadata == {"at": step}
    expected = jax.tree.map(lambda leaf: leaf + step, script["fresh"]())
    assert_identical(state, expected)
    return step


def test_a_killed_run_leaves_a_whole_checkpoint(tmp_path):
    kill_while_saving(tmp_path, saves=4, delay=0.02)
    assert check_restored(tmp_path) >= 3  # each save waits for the one before


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    rng = random.Random(0)
    cut_off, last = 0, 0
    for _ in range(12):
        saves = rng.randrange(5)
        cut_off += kill_while_saving(tmp_path, saves, delay=rng.uniform(0.0, 0.15))
        step = check_restored(tmp_path)
        assert step >= last + max(0, saves - 1)
        last = step
    assert cut_off  # else the moments were not what this test is about


TWO_PROCESSES = """
import logging, shutil, sys
import jax
jax.distributed.initialize(sys.argv[2], num_processes=2, process_id=int(sys.argv[3]))
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jax.experimental import multihost_utils
from solojax.errors import InputError
from solojax.train.checkpoints import Checkpointer, load_variables

assert jax.process_count() == 2
mesh = Mesh(np.array(jax.devices()), ("data",))
value = np.arange(48, dtype=np.float32).reshape(8, 6)

def put(array, spec):
    sharding = NamedSharding(mesh, spec)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

def make(step):
    return {"params": {"w": put(value + step, P()), "rows": put(value - step, P("data"))}}

def check(state, step):
    for name, sign in (("w", 1), ("rows", -1)):
        for shard in state["params"][name].addressable_shards:
            np.testing.assert_array_equal(shard.data, (value + sign * step)[shard.index])

with Checkpointer(sys.argv[1], keep=2, best_metric="score") as checkpointer:
    assert checkpointer.restore(make(0)) is None
    for step in (1, 2, 3):
        checkpointer.save(step, make(step), {"at": step}, {"score": -step})
    state, metadata, step = checkpointer.restore(make(0))
    assert (metadata, step) == ({"at": 3}, 3)
    check(state, 3)
multihost_utils.sync_global_devices("saved")
if jax.process_index() == 0:
    shutil.rmtree(sys.argv[1] + "/3/state/d")
multihost_utils.sync_global_devices("damaged")
with Checkpointer(sys.argv[1], keep=2, best_metric="score") as checkpointer:
    state, _, step = checkpointer.restore(make(0))
    assert step == 2
    check(state, 2)
    checkpointer.save(3, make(3), {})
    assert load_variables(sys.argv[1], step=1).step == 1
    try:
        checkpointer.restore({"params": {}, "other": make(0)["params"]["w"]})
    except InputError as error:
        assert "other is not in it" in str(error)
    else:
        raise AssertionError("no error")
    check(checkpointer.restore(make(0))[0], 3)
print("done", flush=True)
"""


@pytest.mark.slow
def test_two_processes_share_a_directory(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(tmp_path), address, str(index)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [output.splitlines()[-1:] for output in outputs] == [["done"], ["done"]]
    assert saved_steps(tmp_path) == [1, 2, 3]
    assert (tmp_path / "broken" / "3").is_dir()


@pytest.fixture(autouse=True)
def _warnings_are_caught(caplog):
    caplog.set_level(logging.WARNING)


def shapes_of(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def with_queue(state, **queue):
    return dataclasses.replace(state, extra={"key": jnp.ones(2), "queue": queue})


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        ({"vectors": jnp.ones((8, 2)), "position": jnp.int32(5)}, "float32[8,2] in it and float"),
        ({"vectors": jnp.ones((4, 2))}, "extra/queue/position is not in it"),
        ({}, "extra/queue/position is not in it"),
        ({"other": jnp.ones(1), "vectors": jnp.ones((4, 2)), "position": jnp.int32(5)}, "only in"),
    ],
)
def test_a_branch_that_may_begin_anew_does_so_as_a_whole(tmp_path, caplog, kept, reason):
    saved = with_queue(make_state(3), **kept)
    wanted = shapes_of(with_queue(saved, vectors=jnp.ones((4, 2)), position=jnp.int32(0)))
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(3, saved, {})
        restored, _, _ = checkpointer.restore(wanted, renewable="extra/queue")
        with pytest.raises(InputError, match="another model"):
            checkpointer.restore(wanted)
        with pytest.raises(InputError, match="another model"):
            checkpointer.restore(wanted, renewable="extra/key")
    assert restored.extra["queue"] == wanted.extra["queue"]
    assert_identical(restored.extra["key"], saved.extra["key"])
    assert_identical(restored.params, saved.params)
    (record,) = [each for each in caplog.records if "begins anew" in each.getMessage()]
    line = record.getMessage()
    assert "extra/queue begins anew" in line and reason in line and "\n" not in line


def test_a_branch_that_fits_is_restored(tmp_path, caplog):
    saved = with_queue(make_state(3), vectors=jnp.ones((4, 2)), position=jnp.int32(5))
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(3, saved, {})
        restored, _, _ = checkpointer.restore(shapes_of(saved), renewable="extra/queue")
    assert_identical(restored, saved)
    assert not any("begins anew" in record.getMessage() for record in caplog.records)

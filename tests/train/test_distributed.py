"""Several processes that start, fail, die and end together: real ones that do next to nothing.

Silence is noticed after 10 seconds here; every test waits at most four minutes and never hangs.
"""

from __future__ import annotations

import signal
import socket
import time

import pytest
from helpers.processes import HEARTBEAT, Processes
from helpers.tiny_run import NANO_CONFIG, edit_json, write_data
from jax.errors import JaxRuntimeError

from solojax.errors import InputError
from solojax.train import distributed, process_watch
from solojax.train.cluster import Cluster, detect_cluster, local_device_ids
from solojax.train.process_watch import LOST


def test_all_end_well_although_one_is_slow(tmp_path):
    with Processes(
        "joined_process", ["finish"], count=2, folder=tmp_path, own={0: ["--value=slow"]}
    ) as two:
        two.wait()
        assert [two[0].code, two[1].code] == [0, 0], two[0].text + two[1].text
        assert two[0].last_line == two[1].last_line == "done"


def test_a_worker_that_dies_is_named_by_all_others(tmp_path):
    """Also by one that was in a collective with it, which fails at once and says something else."""
    with Processes("joined_process", ["native_wait"], count=3, folder=tmp_path) as three:
        three.wait_for("joined")
        three.send(signal.SIGKILL, 2)
        seconds = three.wait()
        assert [three[i].code for i in range(3)] == [LOST, LOST, -signal.SIGKILL]
        for index in (0, 1):
            expected = f"solojax (process {index}): process 2 is lost: it ended without a word"
            assert three[index].last_line.startswith(expected), three[index].text
            assert "Traceback" not in three[index].text
        assert seconds <= HEARTBEAT + 1.0


def test_a_worker_that_hangs_is_named_by_one_that_waits_for_it_in_a_collective(tmp_path):
    """Its connections stay open: without the watch the other would wait for ever."""
    with Processes("joined_process", ["native_wait"], count=2, folder=tmp_path) as two:
        two.wait_for("joined")
        two.send(signal.SIGSTOP, 0)
        assert two.wait(1) <= HEARTBEAT + 1.0
        assert two[1].code == LOST
        assert "process 0 (at " in two[1].last_line and "is lost" in two[1].last_line


def test_a_coordinator_that_dies_is_named_by_all_others(tmp_path):
    with Processes("joined_process", ["sleep"], count=3, folder=tmp_path) as three:
        three.wait_for("joined")
        three.send(signal.SIGKILL, 0)
        assert three.wait() <= HEARTBEAT + 1.0
        assert [three[i].code for i in range(3)] == [-signal.SIGKILL, LOST, LOST]
        for index in (1, 2):
            where = f"process 0 (at {three.address}) is lost"
            assert where in three[index].last_line, three[index].text


@pytest.mark.parametrize("culprit", [0, 1])
def test_an_error_of_one_process_ends_all_with_its_line_and_code(tmp_path, culprit):
    with Processes(
        "joined_process", ["fail"], count=2, folder=tmp_path, own={culprit: ["--value=input"]}
    ) as two:
        assert two.wait() < 200
        other = 1 - culprit
        assert [two[0].code, two[1].code] == [2, 2]
        line = "photo.jpg is broken; mend it"
        assert two[culprit].last_line == f"solojax (process {culprit}): {line}"
        expected = f"solojax (process {other}): process {culprit} stopped: {line}"
        assert two[other].last_line == expected


@pytest.mark.slow
def test_an_error_that_the_loss_of_another_process_caused_names_that_process(tmp_path):
    own = {1: ["--value=consequence"]}
    with Processes("joined_process", ["fail"], count=3, folder=tmp_path, own=own) as three:
        three.wait_for("joined")
        three.send(signal.SIGKILL, 2)
        three.wait()
        assert [three[0].code, three[1].code] == [LOST, LOST]
        assert "process 2 is lost" in three[1].last_line and "checkpoint" not in three[1].text


def test_a_bug_in_one_process_shows_its_traceback_there_and_its_line_elsewhere(tmp_path):
    with Processes(
        "joined_process", ["fail"], count=2, folder=tmp_path, own={1: ["--value=bug"]}
    ) as two:
        two.wait()
        assert [two[0].code, two[1].code] == [1, 1]
        assert "Traceback" in two[1].text and two[1].last_line == "KeyError: 'a mistake'"
        assert "Traceback" not in two[0].text
        assert two[0].last_line.endswith("process 1 stopped: KeyError: 'a mistake'")


def test_processes_that_differ_all_say_so(tmp_path):
    own = {0: ["--value=0.10.2"], 1: ["--value=0.10.1"]}
    with Processes("joined_process", ["compare"], count=2, folder=tmp_path, own=own) as two:
        two.wait()
        assert [two[0].code, two[1].code] == [2, 2]
        for index in (0, 1):
            assert two[index].text.splitlines() == [
                f"solojax (process {index}): process 1 has jax 0.10.1, process 0 has 0.10.2: "
                "install the same everywhere"
            ]


def test_the_first_difference_by_hand():
    same = {"python": "3.12", "jax": "1"}
    assert distributed.first_difference([same, same, dict(same)]) is None
    assert distributed.first_difference([same]) is None
    told = [same, same, {"python": "3.12", "jax": "2"}]
    assert distributed.first_difference(told) == "process 2 has jax 2, process 0 has 1"
    told = [same, {"python": "3.12", "jax": "1", "x": "5"}]
    assert distributed.first_difference(told) == "process 1 has x 5, process 0 has nothing"
    told = [same, {"jax": "1"}, {"python": "3.11", "jax": "7"}]
    assert distributed.first_difference(told) == "process 1 has python nothing, process 0 has 3.12"


@pytest.mark.parametrize(
    ("process_id", "problem"),
    [(1, "the coordinator {} does not answer"), (0, "not all of the 2 processes have come to {}")],
)
def test_processes_that_never_come(tmp_path, process_id, problem):
    """Each waits alone for as long as it was told to; the other ones are never started."""
    own = {0: [f"--process_id={process_id}", "--num_processes=2", "--initialization_timeout=3"]}
    with Processes("joined_process", ["sleep"], count=1, folder=tmp_path, own=own) as one:
        assert one.wait() < 200
        assert one[0].code == 2
        (line,) = one[0].text.splitlines()
        assert line.startswith(f"solojax (process {process_id}): after 3 s, ")
        assert problem.format(one.address) in line


def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen at port {port} .*--coordinator"):
            distributed.start(Cluster(f"127.0.0.1:{port}", 0, 2))
    assert distributed.process_id() is None and distributed.name_suffix() == ""


def test_a_single_process_has_nothing_to_compare_or_to_end(monkeypatch):
    distributed.require_same({"jax": "1"}, "nothing")
    distributed.finish()
    distributed.stop("a line", 2)
    distributed.stop_alike(2)
    distributed.stop_because(ValueError("x"))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (JaxRuntimeError("UNKNOWN: anything"), True),
        (JaxRuntimeError("RESOURCE_EXHAUSTED: 5 GB"), False),
        (ValueError("[external/gloo/pair.cc:538] Read error: Connection reset by peer"), True),
        (InputError("photo.jpg is broken"), False),
        (OSError(28, "No space left on device"), False),
    ],
)
def test_errors_that_the_loss_of_a_process_may_cause(error, expected):
    assert distributed._is_of_connection(error) == expected


def test_silence_counts_the_time_of_the_one_who_listens(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    silence = process_watch._Silence(period=1.0)

    def later(seconds: float, count) -> float:
        now[0] += seconds
        return silence.after(count)

    assert later(1.0, "a") == 0.0
    assert [later(1.0, "a"), later(1.0, "a")] == [1.0, 2.0]
    assert later(1.0, "b") == 0.0
    # Held up for a minute itself: two periods' worth, and nothing where the other went on.
    assert later(60.0, "b") == 2.0
    assert later(60.0, "c") == 0.0


# What started the processes.


def clear_environment(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID",
                 "SLURM_LOCALID", "SLURM_STEP_NUM_NODES", "OMPI_MCA_orte_hnp_uri",
                 "JAX_COORDINATOR_PORT", "TPU_WORKER_HOSTNAMES"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)


SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[007-010],other3",
    "SLURM_NTASKS": "5",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_NODES": "5",
}


def test_slurm_says_who_is_who(monkeypatch):
    clear_environment(monkeypatch)
    assert detect_cluster(1) is None
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    # The port: the job's number modulo 4096, above 61439.
    assert detect_cluster(1) == Cluster("node007:61441", 3, 5)
    monkeypatch.setenv("JAX_COORDINATOR_PORT", "1234")
    assert detect_cluster(1) == Cluster("node007:1234", 3, 5)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert detect_cluster(1) is None
    monkeypatch.setenv("SLURM_NTASKS", "many")
    with pytest.raises(InputError, match="Slurm.*give --coordinator"):
        detect_cluster(1)


def test_a_process_has_all_devices_of_its_host_unless_it_shares_them():
    assert local_device_ids({}) is None
    assert local_device_ids(SLURM) is None
    shared = SLURM | {"SLURM_STEP_NUM_NODES": "1", "SLURM_LOCALID": "3"}
    assert local_device_ids(shared) == [3]
    assert local_device_ids(shared | {"JAX_LOCAL_DEVICE_IDS": "0,1"}) is None
    mpi = {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
    assert local_device_ids(mpi) == [1]
    assert local_device_ids(mpi | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}) is None


# The command itself. It ends before anything is compiled.


def train_words(data, workdir, **overrides) -> list[str]:
    flags = {"data__root": data, "train__eval_every": 0, **overrides}
    words = [f"--config.{name.replace('__', '.')}={value}" for name, value in flags.items()]
    return [
        "train",
        "--config",
        NANO_CONFIG,
        "--workdir",
        workdir,
        "--heartbeat_timeout=10",
        *words,
    ]


CASES = {
    "another jax version": (
        {"environment": {1: {"JAX_VERSION_OF_TEST": "0.9.9"}}},
        {},
        "process 1 has jax 0.9.9, process 0 has ",
        True,
    ),
    "another config": (
        {"own": {1: ["--config.optimizer.learning_rate=0.5"]}},
        {},
        "process 1 has config optimizer.learning_rate 0.5, process 0 has 0.01: start every",
        True,
    ),
    "another number of devices": (
        {"environment": {1: {"JAX_NUM_CPU_DEVICES": "2"}}},
        {},
        "process 1 has local device count 2, process 0 has 1",
        True,
    ),
    "a broken config on one host": (
        {"own": {1: ["--config.train.batch_sise=4"]}},
        {},
        "unknown config key 'train.batch_sise'",
        False,
    ),
    "a mesh that does not divide the batch": (
        {},
        {"train__batch_size": 5},
        "train.batch_size 5 does not divide over 2 devices",
        False,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_start_is_named_by_both_processes(tmp_path, case):
    differences, overrides, part, alike = CASES[case]
    data = write_data(tmp_path / "data")
    words = train_words(data, tmp_path / "run", **overrides)
    with Processes("nano_process", words, count=2, folder=tmp_path, **differences) as two:
        two.wait()
        assert [two[0].code, two[1].code] == [2, 2], two[0].text + two[1].text
        lines = [two[0].last_line, two[1].last_line]
        assert all(part in line for line in lines), lines
        assert not any("Traceback" in process.text for process in (two[0], two[1]))
        if alike:
            texts = [line.partition("): ")[2] for line in lines]
            assert texts[0] == texts[1]
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_a_workdir_that_is_not_shared(tmp_path):
    data = write_data(tmp_path / "data")
    words = train_words(data, tmp_path / "run")
    own = {1: ["--workdir", tmp_path / "other"]}
    with Processes("nano_process", words, count=2, folder=tmp_path, own=own) as two:
        two.wait()
        assert [two[0].code, two[1].code] == [2, 2], two[0].text + two[1].text
        for process in (two[0], two[1]):
            assert "--workdir must be on storage that all processes share" in process.last_line


def test_data_that_differs_on_one_host(tmp_path):
    data, other = write_data(tmp_path / "data"), write_data(tmp_path / "other")
    edit_json(other / "train.json", lambda document: document["annotations"][0].update(area=7))
    words = train_words(data, tmp_path / "run")
    environment = {1: {"DATA_ROOT_OF_TEST": str(other)}}
    with Processes("nano_process", words, count=2, folder=tmp_path, environment=environment) as two:
        two.wait()
        assert [two[0].code, two[1].code] == [2, 2], two[0].text + two[1].text
        for process in (two[0], two[1]):
            assert "process 1 has training data " in process.last_line
            assert "copy the same data set to all hosts" in process.last_line

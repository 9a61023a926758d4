"""The launchers: what they would run, and what they do where gcloud and Slurm are played."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.scripts import load_script

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
# Words that a shell would split, expand or swallow if they were not quoted.
WORDS = ["train", "--config", "my configs/a.py:r101,3x", "--workdir", "/mnt/b/it's $HOME; *",
         "--config.data.short_sides=(64,)", ""]  # fmt: skip
DIRECTORY = "two words/$(solo)"

load_script("launching")
pod, slurm = load_script("run_tpu_pod"), load_script("run_slurm")


def call(module, capsys, *words):
    """(exit code, standard output, standard error) of a launcher."""
    try:
        code = module.main([str(word) for word in words])
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


def write_program(folder: Path, name: str, text: str) -> None:
    """Puts an executable of this text on the folder."""
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def pid_file(programs):
    """The file in which a host keeps the number of its run, here that of a user of our own."""
    user = f"test-{os.getpid()}"
    write_program(programs, "id", f"#!/bin/bash\necho {user}\n")
    path = Path(f"/tmp/solojax-{user}.pid")
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """An empty folder that the PATH begins with."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def arguments_printer(target: Path) -> str:
    """A program that writes its folder and its words to a file, one a line."""
    return f'#!/bin/bash\npwd >{target}\nprintf "%s\\n" "$@" >>{target}\n'


def codes_player(folder: Path, *codes: int) -> str:
    """A program that ends with one of these codes after the other."""
    count = folder / "count"
    count.write_text("")
    return (
        f"#!/bin/bash\nnumber=$(wc -c <{count})\nprintf x >>{count}\n"
        f"codes=({' '.join(map(str, codes))})\nexit ${{codes[$number]}}\n"
    )


def is_valid_bash(text: str) -> bool:
    return subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


POD_FLAGS = ("--name", "my slice", "--zone", "us-west4-a")


def test_the_pod_launcher_prints_what_it_would_run(capsys):
    code, out, _ = call(
        pod, capsys, *POD_FLAGS, "--project", "p", "--directory", DIRECTORY, "--dry-run",
        "--python", "/my venv/python", "--", *WORDS,
    )  # fmt: skip
    assert code == 0
    assert is_valid_bash(out.split("\n", 3)[1])
    *_, command = out.splitlines()
    remote = out.splitlines()[1]
    assert shlex.split(command) == [
        "gcloud", "compute", "tpus", "tpu-vm", "ssh", "my slice", "--zone=us-west4-a",
        "--project=p", "--worker=all", f"--command={remote}",
    ]  # fmt: skip
    words = shlex.split(remote)
    assert words[:5] == ["cd", DIRECTORY, "||", "exit", "2;"]
    assert words[words.index("exec") :] == ["exec", "/my venv/python", "-m", "solojax", *WORDS]


def test_every_host_starts_in_the_folder_with_the_words_as_given(programs, pid_file, tmp_path):
    """gcloud hands the text to the login shell of every host."""
    seen = tmp_path / "seen"
    home = tmp_path / "home"
    (home / DIRECTORY).mkdir(parents=True)
    write_program(programs, "python3", arguments_printer(seen))
    remote = pod.remote_command(DIRECTORY, "python3", WORDS)
    assert subprocess.run(["bash", "-c", remote], cwd=home).returncode == 0
    assert seen.read_text() == "\n".join([str(home / DIRECTORY), "-m", "solojax", *WORDS, ""])
    assert int(pid_file.read_text()) > 0
    elsewhere = subprocess.run(["bash", "-c", remote], cwd=tmp_path, stderr=subprocess.DEVNULL)
    assert elsewhere.returncode == 2


@pytest.mark.parametrize(("word", "ends"), [("solojax", True), ("another", False)])
def test_what_an_earlier_start_left_running_is_ended_first(pid_file, word, ends):
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", word])
    pid_file.write_text(f"{left.pid}\n")
    try:
        stopping = subprocess.Popen(["bash", "-c", pod.remote_command("anywhere", "python3", [])])
        deadline = time.monotonic() + 30
        while stopping.poll() is None and time.monotonic() < deadline:
            left.poll()  # a process is not gone before its parent, this one, has taken note
            time.sleep(0.02)
        assert stopping.returncode == 0
        assert (left.poll() is not None) == ends
    finally:
        left.kill()
        left.wait()


def cloud_player(folder: Path, codes: tuple[int, ...], states: tuple[str, ...] = ()) -> str:
    """A gcloud whose starts end with these codes, and which describes the slice by these states.

    "" is a slice that is not there; after the last state it is READY.
    """
    asked = folder / "asked"
    asked.write_text("")
    return codes_player(folder, *codes).replace(
        "#!/bin/bash\n",
        f'#!/bin/bash\nif [ "$4" = describe ]; then\nnumber=$(wc -c <{asked})\n'
        f"printf x >>{asked}\nstates=({' '.join(map(repr, states))})\n"
        'state="${states[$number]-READY}"; echo "$state"\n[ -n "$state" ]; exit\nfi\n',
    )


def start_pod(programs, tmp_path, capsys, codes, states=()):
    """(exit code, standard error, number of starts, number of looks at the slice)."""
    write_program(programs, "gcloud", cloud_player(tmp_path, codes, states))
    flags = (*POD_FLAGS, "--max-failures", 2, "--wait", 0)
    code, _, err = call(pod, capsys, *flags, "--", "train")
    return code, err, len((tmp_path / "count").read_text()), len((tmp_path / "asked").read_text())


@pytest.mark.parametrize(
    ("codes", "result", "starts"),
    [
        ([0], 0, 1),
        ([143, 143, 143, 0], 0, 4),
        ([1, 143, 137, 0], 0, 4),
        ([1, 1, 143, 137], 137, 4),
        ([2], 2, 1),
        ([143, 2, 0], 0, 3),
        ([2, 0], 2, 1),
        ([255, 255, 255, 0], 255, 3),  # never reached: ssh may have no key
        ([255, 2, 0], 2, 2),
        ([1, 255, 255, 255, 255, 1, 0], 0, 7),
    ],
)
def test_the_pod_launcher_starts_again(programs, tmp_path, capsys, codes, result, starts):
    code, err, started, _ = start_pod(programs, tmp_path, capsys, codes)
    assert (code, started) == (result, starts)
    assert err.count("pre-empted") == codes.count(143)
    assert ("giving up after 3 failures" in err) == (result in (137, 255))


@pytest.mark.parametrize(
    ("codes", "states", "said"),
    [
        # Pre-empted, taken away, made again.
        ((143, 0), ("PREEMPTED", "PREEMPTED", "", "", "CREATING"), ("PREEMPTED", "gone")),
        # The hosts vanish under the connection, more often than failures are allowed.
        (
            (1, 255, 255, 255, 255, 0),
            ("READY", "READY", *["DELETING", ""] * 4),
            ("DELETING", "gone"),
        ),
        # Started before the slice is there.
        ((1, 1, 1, 1, 0), ("CREATING", "READY") * 4, ("CREATING",)),
    ],
)
def test_the_pod_launcher_waits_for_the_slice(programs, tmp_path, capsys, codes, states, said):
    code, err, started, asked = start_pod(programs, tmp_path, capsys, codes, states)
    assert code == 0 and started == len(codes)
    assert asked >= len(states)
    assert all("the slice" in err and state in err for state in said)
    assert err.count("waiting for the slice, which is PREEMPTED") <= 1
    assert "giving up" not in err


def test_a_slice_that_was_never_there_is_given_up(programs, tmp_path, capsys):
    code, err, started, _ = start_pod(programs, tmp_path, capsys, (1,) * 9, ("",) * 9)
    assert (code, started) == (1, 3) and "giving up after 3 failures" in err


def test_failures_before_a_start_that_lasted_do_not_count(programs, tmp_path):
    program = tmp_path / "run"
    codes = codes_player(tmp_path, 1, 1, 1, 1, 1, 1)
    write_program(tmp_path, "run", codes.replace("exit", '[ "$number" != 1 ] || sleep 0.5\nexit'))
    code = pod.run_until_done([str(program)], lambda: "READY", max_failures=2, wait=0, lasting=0.4)
    assert code == 1
    # The second starts the count anew, and is the first that counts.
    assert (tmp_path / "count").read_text() == "x" * 4


def test_the_pod_launcher_ends_a_run(programs, tmp_path, capsys):
    seen = tmp_path / "seen"
    write_program(programs, "gcloud", arguments_printer(seen))
    code, *_ = call(pod, capsys, *POD_FLAGS, "--stop")
    assert code == 0
    *_, remote = seen.read_text().splitlines()
    assert remote.startswith("--command=file=") and "kill -TERM" in remote
    assert "exec" not in remote


SLURM_FLAGS = ("--nodes", 2, "--gpus-per-node", 4, "--cpus-per-node", 12)


def test_the_slurm_launcher_prints_what_it_would_submit(capsys):
    code, out, _ = call(
        slurm, capsys, *SLURM_FLAGS, "--time", "24:00:00", "--partition", "gpu",
        "--sbatch=--comment=two words", "--directory", DIRECTORY, "--dry-run", "--", *WORDS,
    )  # fmt: skip
    assert code == 0 and is_valid_bash(out)
    command, script = out.split("\n", 1)
    assert shlex.split(command) == [
        "sbatch", "--job-name=solojax", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=12",
        "--gpus-per-node=4", "--time=24:00:00", "--partition=gpu", "--signal=TERM@120",
        "--requeue", "--open-mode=append", "--comment=two words", "<<EOF",
    ]  # fmt: skip
    assert f"squeue {' '.join(SQUEUE_WORDS)}".replace("77", '"$SLURM_JOB_ID"') in script
    lines = script.splitlines()
    assert lines[:3] == ["#!/bin/bash", "set -euo pipefail", f"cd {shlex.quote(DIRECTORY)}"]
    (srun,) = (line for line in lines if line.strip().startswith("srun"))
    assert shlex.split(srun) == [
        "srun", "--cpus-per-task=12", "--kill-on-bad-exit=0", "--wait=0", "python3", "-m",
        "solojax", *WORDS, "||", "code=$?",
    ]  # fmt: skip


def test_the_printed_submission_is_the_real_one(programs, tmp_path, capsys):
    seen, stdin = tmp_path / "seen", tmp_path / "stdin"
    write_program(programs, "sbatch", f"{arguments_printer(seen)}cat >{stdin}\n")
    assert call(slurm, capsys, *SLURM_FLAGS, "--", *WORDS)[0] == 0
    submitted = seen.read_text(), stdin.read_text()
    _, printed, _ = call(slurm, capsys, *SLURM_FLAGS, "--dry-run", "--", *WORDS)
    assert subprocess.run(["bash", "-c", printed]).returncode == 0
    assert (seen.read_text(), stdin.read_text()) == submitted


SQUEUE_WORDS = ("--noheader", "--states=all", "--jobs=77", "--format=%T")


def run_job(programs, tmp_path, srun, state="echo RUNNING", **environment):
    """Runs the batch script with these programs in the place of srun and squeue."""
    write_program(programs, "srun", srun)
    asked = " ".join(SQUEUE_WORDS)
    write_program(programs, "squeue", f'#!/bin/bash\n[ "$*" = {shlex.quote(asked)} ] && {state}\n')
    write_program(programs, "scontrol", arguments_printer(tmp_path / "requeued"))
    args = argparse.Namespace(
        directory=str(tmp_path), python="python3", max_failures=2, wait=0, cpus_per_node=1
    )
    return subprocess.run(
        ["bash"],
        input=slurm.batch_script(args, ["train"]),
        text=True,
        capture_output=True,
        env={**os.environ, "SLURM_JOB_ID": "77", **environment},
    )


@pytest.mark.parametrize(
    ("codes", "result", "starts", "queues_again"),
    [
        ([0], 0, 1, False),
        ([143], 0, 1, True),
        ([1, 137, 143], 0, 3, True),
        ([1, 137, 139], 139, 3, False),
        ([1, 0], 0, 2, False),
        ([1, 2, 0], 0, 3, False),
        ([2, 0], 2, 1, False),
    ],
)
def test_the_job_starts_or_queues_again(programs, tmp_path, codes, result, starts, queues_again):
    job = run_job(programs, tmp_path, codes_player(tmp_path, *codes))
    assert job.returncode == result, job.stderr
    assert (tmp_path / "count").read_text() == "x" * starts
    requeued = tmp_path / "requeued"
    assert requeued.exists() == queues_again
    if queues_again:
        assert requeued.read_text().splitlines()[1:] == ["requeue", "77"]


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PREEMPTED", "REQUEUED"])
@pytest.mark.parametrize("code", [143, 137])
def test_a_job_that_is_being_ended_neither_starts_nor_queues_again(programs, tmp_path, state, code):
    """`scancel` sends the same SIGTERM as a warning does."""
    job = run_job(programs, tmp_path, codes_player(tmp_path, code, 0), f"echo {state}")
    assert job.returncode == code, job.stderr
    assert f"being ended ({state})" in job.stdout
    assert (tmp_path / "count").read_text() == "x"
    assert not (tmp_path / "requeued").exists()


def test_a_job_whose_state_slurm_does_not_tell_queues_again(programs, tmp_path):
    job = run_job(programs, tmp_path, codes_player(tmp_path, 143), "exit 1")
    assert job.returncode == 0 and (tmp_path / "requeued").exists()


def test_a_job_that_was_queued_again_is_not_at_its_first_start(programs, tmp_path):
    srun = codes_player(tmp_path, 2, 0)
    assert run_job(programs, tmp_path, srun, SLURM_RESTART_COUNT="1").returncode == 0
    assert (tmp_path / "count").read_text() == "xx"


def test_the_job_outlives_the_signal_that_its_processes_save_on(programs, tmp_path):
    """The shell gets it too where a whole job is pre-empted."""
    job = run_job(programs, tmp_path, "#!/bin/bash\nkill -TERM $PPID\nsleep 0.2\nexit 143\n")
    assert job.returncode == 0
    assert (tmp_path / "requeued").exists()


@pytest.mark.parametrize(
    ("module", "flags", "program"),
    [(pod, POD_FLAGS, "gcloud"), (slurm, SLURM_FLAGS, "sbatch")],
)
def test_a_program_that_is_missing_is_named_in_one_line(
    module, flags, program, monkeypatch, capsys
):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    code, out, err = call(module, capsys, *flags, "--", "train")
    assert code == 2 and out == ""
    assert len(err.splitlines()) == 1 and f"there is no {program} on the PATH: " in err


@pytest.mark.parametrize(
    ("module", "flags", "message"),
    [
        (pod, POD_FLAGS, "give the command behind --"),
        (pod, (*POD_FLAGS, "--stop", "--", "train"), "--stop takes no command"),
        (pod, ("--zone", "z", "--", "train"), "--name"),
        (pod, (*POD_FLAGS, "--wait", "soon", "--", "train"), "'soon' is not a whole number"),
        (slurm, SLURM_FLAGS, "give the command behind --"),
        (slurm, ("--nodes", 0, "--", "train"), "count from 1 on"),
    ],
)
def test_bad_flags(module, flags, message, capsys):
    code, out, err = call(module, capsys, *flags)
    assert code == 2 and out == ""
    assert message in err

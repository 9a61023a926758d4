"""What must be the same in every process of a run, compared before it costs anything."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import platform
import shutil
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import solojax
from solojax.errors import InputError
from solojax.train import distributed
from solojax.train.shared_files import wait_for_files

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# Of accelerators; they bring the compiler. Absent where there are none.
_PLUGINS = (
    "jax-cuda12-plugin",
    "jax-cuda12-pjrt",
    "jax-cuda13-plugin",
    "jax-cuda13-pjrt",
    "libtpu",
)
_COPY = "copy the same data set to all hosts"


def check_start(values: Mapping[str, Any], kind: str = "config") -> None:
    """Compares programs, what they were started with, and numbers of devices, in this order.

    Args:
      values: by their names; of a config every value by its dotted path.
      kind: what they are, for the message.

    Raises:
      Disagreement: on every process, if one differs from process 0.
    """
    if distributed.process_id() is None:
        return
    distributed.require_same(program_facts(), "install the same everywhere")
    check_values(values, kind)
    import jax  # asks for the devices only when the versions are known to fit

    facts = {
        "backend": jax.default_backend(),
        "local device count": jax.local_device_count(),
    }
    distributed.require_same(facts, "give every process the same devices")


def check_values(values: Mapping[str, Any], kind: str = "config") -> None:
    """Compares what the processes were started with; arguments and errors as `check_start`."""
    facts = {f"{kind} {name}": repr(value) for name, value in values.items()}
    distributed.require_same(facts, "start every process with the same command and files")


def check_workdir(workdir: Path) -> None:
    """Finds out whether checkpoints can be written, and whether all processes will see them.

    Raises:
      InputError: the storage does not rename folders.
      Disagreement: on every process, if one has a folder of its own.
    """
    process = distributed.process_id()
    if process in (None, 0):
        _check_renames(workdir)
    if process is None:
        return
    path = workdir / ".started"
    if process == 0:
        path.write_text(str(time.time_ns()))
    distributed.require_same({}, "")  # all wait here until it is written
    facts = {f"in --workdir a {path.name} of": _read_shared(path)}
    try:
        distributed.require_same(facts, "--workdir must be on storage that all processes share")
    finally:
        if process == 0:
            path.unlink()


def _check_renames(workdir: Path) -> None:
    """Renames a folder that is not empty, as every save of a checkpoint does."""
    old, new = workdir / ".rename-test", workdir / ".rename-test-renamed"
    try:
        for path in (old, new):  # of a start that was killed
            shutil.rmtree(path, ignore_errors=True)
        old.mkdir()
        (old / "file").write_bytes(b"")
        try:
            old.rename(new)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
                raise
            raise InputError(
                f"--workdir {workdir}: the storage does not rename folders "
                f"({error.strerror or error}), which checkpoints need: give a folder of a file "
                "system, or of a bucket with a hierarchical namespace"
            ) from error
    finally:
        for path in (old, new):
            shutil.rmtree(path, ignore_errors=True)


def _read_shared(path: Path) -> str:
    return "nothing" if wait_for_files([path]) else path.read_text()


def check_data(**datasets) -> None:
    """Compares the data sets that the processes have read, and the files of their images.

    Args:
      datasets: {role: data set}; its `counts`, `fingerprint` and `file_states()` are compared.

    Raises:
      Disagreement: on every process, if one differs from process 0.
    """
    if distributed.process_id() is None:
        return
    facts = {}
    for role, data in datasets.items():
        facts |= {f"number of {role} {what}": count for what, count in data.counts.items()}
        facts[f"{role} data"] = data.fingerprint
    distributed.require_same(facts, _COPY)
    for role, data in datasets.items():
        _check_files(role, data.file_states())


def _check_files(role: str, states: Mapping[str, str]) -> None:
    """Digests first: the states of all files are exchanged where there is a difference to name."""
    process, text = distributed.process_id(), json.dumps(states)
    digests = distributed.exchange(hashlib.sha256(text.encode()).hexdigest())
    if len(set(digests)) == 1:
        return
    expected = json.loads(distributed.exchange(text if process == 0 else "")[0])
    problems = distributed.exchange(differing_files(role, process, states, expected))
    raise distributed.Disagreement(f"{next(filter(None, problems))}: {_COPY}")


def differing_files(
    role: str, process: int, states: Mapping[str, str], expected: Mapping[str, str]
) -> str:
    """How the files of a process differ from those of process 0, in words; "" if they do not.

    Args:
      role: of the data set.
      process: its number.
      states: {name: what tells its contents from others} of this process.
      expected: likewise of process 0, of the same files.
    """
    names = [name for name in expected if states[name] != expected[name]]
    if not names:
        return ""
    first = names[0]
    return (
        f"{len(names)} of {len(expected)} files of the {role} data are missing in process "
        f"{process} or unlike those of process 0 (the first is {first}: {states[first]}, in "
        f"process 0 {expected[first]})"
    )


def program_facts() -> dict[str, str]:
    """{name: version} of Python, of what the numbers come from, and of this project's source."""
    versions = {name: metadata.version(name) for name in _PACKAGES}
    for name in _PLUGINS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    source = _source_digest(Path(solojax.__file__).parent)
    return {"python": platform.python_version(), **versions, "solojax source": source}


def _source_digest(folder: Path) -> str:
    """Of the package's files: two clones of one version may be at different commits."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]

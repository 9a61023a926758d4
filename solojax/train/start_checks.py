"""What must be the same in every process of a run, compared before it costs anything."""

from __future__ import annotations

import hashlib
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


def check_start(config: Mapping[str, Any]) -> None:
    """Compares programs, configs and numbers of devices, in this order.

    Args:
      config: every value by its dotted path.

    Raises:
      Disagreement: on every process, if one differs from process 0.
    """
    if distributed.process_id() is None:
        return
    distributed.require_same(program_facts(), "install the same everywhere")
    facts = {f"config {key}": repr(value) for key, value in config.items()}
    distributed.require_same(facts, "start every process with the same command and files")
    import jax  # asks for the devices only when the versions are known to fit

    facts = {
        "backend": jax.default_backend(),
        "local device count": jax.local_device_count(),
    }
    distributed.require_same(facts, "give every process the same devices")


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
    """Compares the data sets that the processes have read.

    Args:
      datasets: {role: data set}; its `fingerprint` is compared.

    Raises:
      Disagreement: on every process, if one differs from process 0.
    """
    if distributed.process_id() is None:
        return
    facts = {f"{role} data": data.fingerprint for role, data in datasets.items()}
    distributed.require_same(facts, "copy the same data set to all hosts")


def program_facts() -> dict[str, str]:
    """{name: version} of Python, of what the numbers come from, and of this project's source."""
    versions = {name: metadata.version(name) for name in _PACKAGES}
    source = _source_digest(Path(solojax.__file__).parent)
    return {"python": platform.python_version(), **versions, "solojax source": source}


def _source_digest(folder: Path) -> str:
    """Of the package's files: two clones of one version may be at different commits."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]

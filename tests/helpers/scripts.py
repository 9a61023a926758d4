"""The programs in `scripts/`: as modules, and as a person runs them."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

_FOLDER = Path(__file__).resolve().parents[2] / "scripts"


def load_script(name: str) -> ModuleType:
    """Imports `scripts/NAME.py`, which may import its neighbours."""
    if str(_FOLDER) not in sys.path:
        sys.path.append(str(_FOLDER))
    return importlib.import_module(name)


def run_script(name: str, *words) -> subprocess.CompletedProcess:
    """Runs `scripts/NAME.py` in a process of its own, which imports what this one does."""
    return subprocess.run(
        [sys.executable, _FOLDER / f"{name}.py", *map(str, words)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )

"""Which part of solojax imports which: one table, held against every import statement."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

import solojax

ROOT = Path(solojax.__file__).parent

_BASE = {"errors", "structures"}
_JOINED = {"models", "targets", "losses", "postprocess"}  # by tasks alone
_BESIDE = {"config", "data", "evaluators", "interop", "visualize"}
_LIBRARY = _BASE | {"ops", "tasks", "train"} | _JOINED | _BESIDE

# What each package or module of the top may import, beside itself.
ALLOWED = {
    "errors": set(),
    "structures": {"errors"},
    "ops": _BASE,
    **{package: _BASE | {"ops"} for package in _JOINED},
    "tasks": _BASE | {"ops"} | _JOINED,
    "train": _BASE | {"tasks"},
    "coco_entries": set(),
    "data": _BASE | {"ops", "coco_entries"},
    "evaluators": _BASE | {"ops", "coco_entries"},
    "config": {"errors"},
    "interop": {"errors"},
    "visualize": {"errors"},
    "builders": _LIBRARY,
    "inference": _LIBRARY | {"builders"},
    "runs": _LIBRARY | {"builders", "inference"},
    "features": _LIBRARY | {"builders", "inference"},
    "conversion": _LIBRARY | {"builders", "inference"},
    "costs": _LIBRARY | {"builders"},
    "free_solo": _LIBRARY | {"builders", "inference", "features", "runs"},
    "aot": _LIBRARY | {"inference", "costs"},
    "cli": _LIBRARY
    | {"builders", "inference", "runs", "features", "conversion", "costs", "free_solo", "aot"},
    "__init__": {"inference"},
    "__main__": {"cli"},
}

# No flags are read there: parsers of values are borrowed, and a flag of grain's is marked as given.
_ABSL = {"config/loading.py", "data/loader.py"}


def _name(path: Path) -> str:
    """The row of the table that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _sources() -> list[Path]:
    """All files of the package; a wheel carries the shipped configs beside them."""
    return [path for path in sorted(ROOT.rglob("*.py")) if _name(path) != "_configs"]


@functools.cache
def _imports(path: Path) -> frozenset[str]:
    """Full names of what a file imports, in functions and for type checking too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the whole name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def test_every_part_has_a_row():
    assert {_name(path) for path in _sources()} == ALLOWED.keys()


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_imports_point_one_way(name):
    allowed = ALLOWED[name] | {name}
    wrong = [
        f"{path.relative_to(ROOT)} imports {imported}"
        for path in _sources()
        if _name(path) == name
        for imported in _imports(path)
        if imported.startswith("solojax.") and imported.split(".")[1] not in allowed
    ]
    assert not wrong


def test_the_table_has_no_cycle():
    done = set()
    while left := ALLOWED.keys() - done:
        ready = {name for name in left if ALLOWED[name] <= done}
        assert ready, f"each of {sorted(left)} waits for another"
        done |= ready


def test_the_loop_knows_tasks_by_their_protocol_alone():
    of_tasks = {
        imported
        for path in (ROOT / "train").glob("*.py")
        for imported in _imports(path)
        if imported.startswith("solojax.tasks")
    }
    assert of_tasks == {"solojax.tasks.Task"}


def test_configs_and_flags_stay_above_what_takes_plain_arguments():
    def users(library):
        return {
            path.relative_to(ROOT).as_posix()
            for path in _sources()
            if any(f"{imported}.".startswith(f"{library}.") for imported in _imports(path))
        }

    plain = _LIBRARY - {"config"}
    assert not {file for file in users("ml_collections") if file.split("/")[0] in plain}
    assert users("absl") == _ABSL
    assert {file.split("/")[0] for file in users("argparse")} == {"cli"}

"""Where config files are: where the person says, or among the shipped ones."""

from __future__ import annotations

from pathlib import Path

from solojax.config.names import nearest_name
from solojax.errors import InputError

_PACKAGE = Path(__file__).resolve().parents[1]


def _shipped_folder() -> Path:
    """A wheel carries the configs inside the package; a clone has them beside it."""
    packed = _PACKAGE / "_configs"
    return packed if packed.is_dir() else _PACKAGE.parent / "configs"


def shipped_configs() -> dict[str, Path]:
    """Returns the configs that come with the package: name (`configs/solov2.py`) to file."""
    return {f"configs/{path.name}": path for path in sorted(_shipped_folder().glob("*.py"))}


def find_config(name: str) -> Path:
    """Finds a config file: `name` as a path or, failing that, as the name of a shipped config.

    Raises:
      InputError: there is no such file.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = shipped_configs()
    if name in shipped:
        return shipped[name]
    if not shipped:
        raise InputError(f"no config file '{name}': give the path of a Python file")
    raise InputError(
        f"no config file '{name}': did you mean {nearest_name(name, shipped)}? "
        f"Shipped configs are {', '.join(shipped)}"
    )

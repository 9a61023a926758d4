"""What the launchers of a TPU pod slice and of Slurm share."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys

BAD_INPUT = 2  # solojax's exit code for input that another start would not mend
PREEMPTED = 143  # its exit code after SIGTERM or a notice of pre-emption, all being saved


def make_parser(description: str, directory: str) -> argparse.ArgumentParser:
    """A parser with the flags of every launcher; the command goes behind `--`.

    Args:
      description: what the launcher does, for `--help`.
      directory: where the clone of this repository is by default.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [flags] -- train --config FILE.py --workdir DIR ...",
    )
    parser.add_argument(
        "--directory",
        default=directory,
        help="the clone of this repository, where every host starts (default: %(default)s)",
    )
    parser.add_argument(
        "--python",
        default="python3",
        help="interpreter with solojax's dependencies on every host, such as "
        "/home/me/venv/bin/python (default: %(default)s)",
    )
    parser.add_argument(
        "--max-failures",
        type=_count,
        default=5,
        metavar="N",
        help="failures after which to give up; pre-emptions do not count (default: %(default)s)",
    )
    parser.add_argument(
        "--wait",
        type=_count,
        default=60,
        metavar="SECONDS",
        help="pause before starting again (default: %(default)s)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would run, and run nothing"
    )
    return parser


def parse(
    parser: argparse.ArgumentParser, argv: list[str] | None
) -> tuple[argparse.Namespace, list[str]]:
    """The launcher's flags, and the words behind `--`: what every host runs."""
    words = list(sys.argv[1:] if argv is None else argv)
    at = words.index("--") if "--" in words else len(words)
    return parser.parse_args(words[:at]), words[at + 1 :]


def solojax_command(python: str, words: list[str]) -> str:
    """`python -m solojax ...` for a shell, every word quoted."""
    return shlex.join([python, "-m", "solojax", *words])


def require_program(parser: argparse.ArgumentParser, name: str, hint: str) -> None:
    """Ends with one line and exit code 2 where a program is not on the PATH."""
    if shutil.which(name) is None:
        fail(parser, f"there is no {name} on the PATH: {hint}")


def fail(parser: argparse.ArgumentParser, message: str) -> None:
    """Ends with one line and exit code 2."""
    print(f"{parser.prog}: {message}", file=sys.stderr)
    raise SystemExit(BAD_INPUT)


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0 on")
    return int(text)

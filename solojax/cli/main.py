"""`solojax <verb>`: finds the verb, reads its flags, and turns bad input into one line.

A verb is a module `solojax/cli/<verb>.py` (a hyphen in the verb is an underscore there) with

    HELP          the text of `solojax <verb> --help`, examples included
    add_flags(parser)   adds the verb's flags, many of them from solojax.cli.flags
    run(args) -> int    does the work, returns the exit code (0; 1 for a failure it reports itself)

and one line in `VERBS`. Modules are imported when their verb is called: they import JAX and the
like inside `run`, so that `--help` and mistyped flags answer at once.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import logging
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata

from solojax.config.names import nearest_name
from solojax.config.schema import TASKS, known_keys
from solojax.errors import InputError
from solojax.train import distributed

VERBS = {
    "demo": "see it all work in minutes: make images, train, evaluate, draw the results",
    "train": "train a model, or go on with a run that was stopped",
    "evaluate": "mask and box average precision of a checkpoint or of a results file",
    "free-solo": "from a folder of images to a segmenter of its objects, without a label",
    "predict": "find the objects in images, write COCO results and overlays",
    "free-mask": "object masks from a folder of images, without any label",
    "probe": "kNN and linear SVMs on a backbone's features: what it knows of classes",
    "visualize": "draw what a network does inside: masks of all cells, matches between views",
    "benchmark": "time the phases of inference and a training step",
    "info": "parameters, operations and memory of a config's network",
    "convert": "checkpoints of PyTorch in and out, and a proof that the numbers agree",
    "prepare": "write a data set as sharded records, for training at scale",
    "aot": "compile for a TPU slice without a TPU: memory, operations, collectives",
    "export": "write the prediction step as one file that runs without this project",
}

_BAD_INPUT = 2
_LONGEST = 4000  # characters of a message
_INTERRUPTED = 130
_ADVICE = {
    errno.ENOSPC: "free some space or give another folder",
    errno.EDQUOT: "free some space or give another folder",
    errno.EACCES: "change its permissions or give another path",
    errno.EPERM: "change its permissions or give another path",
    errno.EROFS: "give a path that can be written to",
    errno.EEXIST: "a file is in the way of a folder: give another path",
    errno.ENOTDIR: "a file is in the way of a folder: give another path",
    errno.EISDIR: "this is a folder: give the path of a file",
    errno.ENAMETOOLONG: "give a shorter path",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (without the program's name) and returns the exit code.

    Codes: 0 done, 2 bad input (one line on stderr says what), 130 interrupted from the keyboard,
    otherwise what the verb returns. With `--debug` an error's traceback comes before its line.

    One of several processes does not return from an error: the others end with it, see
    `solojax.train.distributed`; code 3 says that another one was lost.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(argv)
    except (Exception, KeyboardInterrupt) as error:
        distributed.wait_for_cause(error)
        line, code = _explain(error)
        if line is None:
            distributed.stop_because(error)
            raise
        _report(line, argv)
        if isinstance(error, distributed.Disagreement):
            distributed.stop_alike(code)
        distributed.stop(line, code)
        return code


def _explain(error: BaseException) -> tuple[str | None, int]:
    """The line for a person and the exit code; no line for what is a fault of the program."""
    if isinstance(error, InputError):
        return _one_line(str(error)), _BAD_INPUT
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", _INTERRUPTED
    if isinstance(error, OSError) and error.errno in _ADVICE:
        where = error.filename if error.filename is not None else "a file"
        line = f"{where}: {error.strerror or error}: {_ADVICE[error.errno]}"
        return _one_line(line), _BAD_INPUT
    return None, 1


def _report(line: str, argv: list[str]) -> None:
    if "--debug" in argv:
        traceback.print_exc()
    verb = next(iter(_without_debug(argv)), None)
    name = f"solojax {verb}" if verb in VERBS else "solojax"
    print(f"{name}{distributed.name_suffix()}: {line}", file=sys.stderr)


def _one_line(message: str) -> str:
    """A message fit for a terminal: names out of broken files may hold anything."""
    words = " ".join(message.split())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."


def _run(argv: list[str]) -> int:
    words = _without_debug(argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if words else _BAD_INPUT
    if words[0] == "--version":
        print(f"solojax {_version()}")
        return 0
    verb = words[0]
    if verb.startswith("-"):
        raise InputError(
            f"unknown flag '{verb}' before the verb: did you mean "
            f"'{nearest_name(verb, ('--help', '--version', '--debug'))}'? "
            f"A verb comes first, one of {', '.join(VERBS)}"
        )
    if verb not in VERBS:
        raise InputError(
            f"unknown verb '{verb}': did you mean '{nearest_name(verb, VERBS)}'? "
            f"Known are {', '.join(VERBS)}"
        )
    module = importlib.import_module(f"solojax.cli.{verb.replace('-', '_')}")
    args = _parse(_parser(verb, module), words[1:])
    args.debug = "--debug" in argv
    _show_log()
    return module.run(args)


class _AboveBars(logging.Handler):
    """Writes to stderr, above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


def _show_log() -> None:
    """What the project says goes to stderr; of the libraries, warnings alone."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_AboveBars()])
    logging.getLogger("solojax").setLevel(logging.INFO)


def _without_debug(argv: list[str]) -> list[str]:
    """`--debug` may stand anywhere, also before the verb."""
    return [word for word in argv if word != "--debug"]


def _version() -> str:
    try:
        return metadata.version("solojax")
    except metadata.PackageNotFoundError:
        return "(run from a folder, not installed)"


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {summary}" for verb, summary in VERBS.items())
    return (
        "usage: solojax VERB [flags]\n\n"
        "Instance segmentation by locations (SOLO, SOLOv2) in JAX.\n\n"
        f"{verbs}\n\n"
        "`solojax VERB --help` explains a verb's flags, with examples. `--debug`, with any verb,\n"
        "shows the traceback of an error; `solojax --version` tells the version."
    )


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are an InputError."""

    def error(self, message: str):
        raise InputError(f"{message} (see `{self.prog} --help`)")

    @property
    def flag_names(self) -> list[str]:
        """Every flag as it is written, dashes included."""
        return [name for action in self._actions for name in action.option_strings]


def _parser(verb: str, module) -> _Parser:
    parser = _Parser(
        prog=f"solojax {verb}",
        description=module.HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_flags(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _parse(parser: _Parser, words: list[str]) -> argparse.Namespace:
    """Reads the flags. `args.overrides` holds `--config.key=value` for verbs that take --config."""
    overrides = []
    if "--config" in parser.flag_names:
        words, overrides = _split_overrides(words)
    _check_flags(parser, words)
    args = parser.parse_args(words)
    args.overrides = overrides
    return args


def _split_overrides(words: list[str]) -> tuple[list[str], list[str]]:
    """Separates `--config.key=value` and `--config.key value` from the other flags."""
    others, overrides = [], []
    remaining = iter(words)
    for word in remaining:
        if not word.startswith("--config."):
            others.append(word)
        elif "=" in word:
            overrides.append(word)
        else:
            value = next(remaining, None)
            if value is None or value.startswith("--"):
                raise InputError(f"{word} has no value: write {word}=VALUE")
            overrides.append(f"{word}={value}")
    return others, overrides


def _check_flags(parser: _Parser, words: list[str]) -> None:
    """Complains about an unknown flag before argparse would about a required one it stands for."""
    known = parser.flag_names
    for word in words:
        name = word.partition("=")[0]
        if word == "--":
            return
        if not name.startswith("-") or name in known or _is_value(word):
            continue
        if "--config" in known:
            known += [f"--config.{path}" for task in TASKS for path in known_keys(task)]
        raise InputError(f"unknown flag '{name}': did you mean '{nearest_name(name, known)}'?")


def _is_value(word: str) -> bool:
    """Whether a word that starts with a dash is a dash alone or a negative number."""
    try:
        float(word)
    except ValueError:
        return word == "-"
    return True

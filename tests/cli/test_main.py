from __future__ import annotations

import errno
import subprocess
import sys
import types

import pytest

from solojax.cli import main as main_module
from solojax.cli.flags import add_config_flag, add_workdir_flag, read_config
from solojax.cli.main import VERBS, main
from solojax.errors import InputError


@pytest.fixture
def verb(monkeypatch):
    """A verb `fake-verb`: `verb.work(args)` is its work, `verb.args` what it was called with."""
    module = types.ModuleType("solojax.cli.fake_verb")
    module.HELP = "Does nothing.\n\nExample:\n    solojax fake-verb --workdir /tmp/x"
    module.work = lambda args: 0

    def add_flags(parser):
        add_config_flag(parser)
        add_workdir_flag(parser)
        parser.add_argument("--shift", type=float, default=0.0)

    def run(args):
        module.args = args
        return module.work(args)

    module.add_flags, module.run = add_flags, run
    monkeypatch.setitem(sys.modules, "solojax.cli.fake_verb", module)
    monkeypatch.setitem(main_module.VERBS, "fake-verb", "for the tests")
    return module


GOOD = ["fake-verb", "--config", "configs/quickstart.py", "--workdir", "w"]


def only_line(capsys) -> str:
    """What went to stderr, which must be one line, with nothing on stdout."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.endswith("\n")
    return captured.err


def test_a_verb_gets_its_flags_and_its_code_is_returned(verb):
    verb.work = lambda args: 7
    overrides = ["--config.seed=3", "--config.train.total_steps", "4", "--config.data.root=a=b"]
    assert main([*GOOD, *overrides, "--shift", "-1.5"]) == 7
    assert verb.args.config == "configs/quickstart.py"
    assert str(verb.args.workdir) == "w" and verb.args.shift == -1.5 and not verb.args.debug
    config = read_config(verb.args)
    assert (config.seed, config.train.total_steps, config.data.root) == (3, 4, "a=b")


@pytest.mark.parametrize(
    "words, parts",
    [
        (["trian"], ["'trian'", "'train'", "predict"]),
        (["--workdir", "x"], ["'--workdir'"]),
        ([*GOOD, "--workdri=x"], ["'--workdri'", "'--workdir'"]),
        (["fake-verb", "--config", "c.py", "--wrokdir", "x"], ["'--wrokdir'", "'--workdir'"]),
        ([*GOOD, "--work", "x"], ["'--work'", "'--workdir'"]),
        ([*GOOD, "-w"], ["'-w'"]),
        ([*GOOD, "--lr=0.1"], ["'--lr'", "'--config.optimizer.learning_rate'"]),
        ([*GOOD, "--epochs", "3"], ["'--config.train.epochs'"]),
        ([*GOOD, "--config.seed"], ["--config.seed", "no value"]),
        ([*GOOD, "--config.seed", "--shift=1"], ["--config.seed", "no value"]),
        ([*GOOD, "--shift=far"], ["--shift", "'far'", "fake-verb --help"]),
        ([*GOOD, "stray"], ["stray"]),
        (["fake-verb", "--workdir", "w"], ["--config", "required"]),
    ],
)
def test_bad_command_lines_exit_2_with_one_line(verb, capsys, words, parts):
    assert main(words) == 2
    line = only_line(capsys)
    assert all(part in line for part in parts), line


def test_bad_config_key_exits_2_with_one_line(verb, capsys):
    verb.work = lambda args: read_config(args)
    assert main([*GOOD, "--config.optimizer.lr=1"]) == 2
    assert "did you mean 'optimizer.learning_rate'" in only_line(capsys)


def test_input_error_is_one_line_with_the_verb(verb, capsys):
    def work(args):
        raise InputError("a.json entry 3:\n  no bbox")

    verb.work = work
    assert main(GOOD) == 2
    assert only_line(capsys) == "solojax fake-verb: a.json entry 3: no bbox\n"


def test_what_a_broken_file_says_does_no_harm_to_a_terminal(verb, capsys):
    def work(args):
        raise InputError("the name \x1b[2J\x07 of " + 10_000 * "a")

    verb.work = work
    assert main(GOOD) == 2
    line = only_line(capsys)
    assert line.startswith("solojax fake-verb: the name \\x1b[2J\\x07 of aaa")
    assert line.rstrip("\n").isprintable() and len(line) < 5000


@pytest.mark.parametrize("words", [[*GOOD, "--debug"], ["--debug", *GOOD]])
def test_debug_shows_the_traceback_too(verb, capsys, words):
    def work(args):
        assert args.debug
        raise InputError("broken")

    verb.work = work
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error and "in work" in error
    assert error.endswith("solojax fake-verb: broken\n")


def test_interruption_exits_130(verb, capsys):
    def work(args):
        raise KeyboardInterrupt

    verb.work = work
    assert main(GOOD) == 130
    assert only_line(capsys) == "solojax fake-verb: interrupted\n"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_disk_trouble_names_the_file(verb, capsys, code):
    def work(args):
        raise OSError(code, "no luck", "/somewhere/metrics.jsonl")

    verb.work = work
    assert main(GOOD) == 2
    line = only_line(capsys)
    assert "/somewhere/metrics.jsonl" in line and "no luck" in line


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), ValueError("a bug")])
def test_other_errors_are_not_hidden(verb, error):
    def work(args):
        raise error

    verb.work = work
    with pytest.raises(type(error)):
        main(GOOD)


def test_help_of_a_verb_has_its_examples_and_shared_flags(verb, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["fake-verb", "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert "    solojax fake-verb --workdir /tmp/x" in text
    assert all(flag in text for flag in ("--config", "--workdir", "--shift", "--debug"))


def test_overview_lists_every_verb(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {verb} " in text for verb in VERBS)
    assert main([]) == 2


def test_help_and_mistakes_answer_without_importing_jax():
    """Run in a process of its own: here other tests have imported JAX already."""
    code = (
        "import sys; from solojax.cli.main import main; codes = main(['--help']), main(['trian']);"
        "print(codes, 'jax' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.endswith("(0, 2) False\n"), result
    assert result.stderr.count("\n") == 1

"""Starts solojax on every host of a TPU pod slice, and again after a pre-emption or a failure.

    python scripts/run_tpu_pod.py --name my-slice --zone us-west4-a -- \\
        train --config configs/solov2.py --workdir /mnt/shared/solov2

Runs on your own machine; needs the Google Cloud CLI, and this repository with its dependencies on
every host (`gcloud compute tpus tpu-vm scp` or `git clone` with `--worker=all`). The work directory
has to be one that all hosts see, under the same path: a file server, or a bucket with a
hierarchical namespace (others do not rename folders in one go, which checkpoints need) that every
host has mounted with Cloud Storage FUSE; gs://... is no path. The hosts find each other by
themselves.

After exit code 143 (pre-empted, all saved) it starts again as often as it takes, after any other
failure --max-failures times, counted anew after a start that lasted half an hour, and not at all
where the first start finds bad input (2). A slice that was taken away has to be made again under
the same name and set up as before, which queued resources with a startup script can do: the
launcher waits until it is READY, and no lost connection (ssh's 255) to a slice that was reached
once counts as a failure. Each start goes on from the newest checkpoint, and first ends what a lost
connection has left running on a host.

To stop a run interrupt the launcher (Ctrl-C), which would start it again, and give --stop.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Callable

from launching import (
    BAD_INPUT,
    PREEMPTED,
    fail,
    make_parser,
    parse,
    require_program,
    solojax_command,
)

# In a folder of the host's own, unlike the home directory. The name is looked up in case the number
# has passed to another program since; `tail --pid` ends with the process.
_STOP_EARLIER = (
    "file=/tmp/solojax-$(id -u).pid; pid=$(cat $file 2>/dev/null); "
    'if [ -n "$pid" ] && grep -qs solojax /proc/$pid/cmdline; then kill -TERM $pid; '
    "timeout 120 tail --pid=$pid -f /dev/null || kill -KILL $pid; fi"
)
_START = "echo $$ >$file && exec"
_LOST = 255  # ssh's exit code for a connection that broke or was never made
_UNKNOWN = "gone, or gcloud does not answer"
_READY = "READY"
_LASTING = 1800.0  # seconds of a start after which earlier failures are no part of what comes next


def main(argv: list[str] | None = None) -> int:
    """Runs the command until it is done; returns its exit code."""
    parser = make_parser(__doc__, directory="solojax")
    parser.add_argument("--name", required=True, help="of the TPU slice")
    parser.add_argument("--zone", required=True, help="of the slice, such as us-west4-a")
    parser.add_argument("--project", help="that it belongs to; gcloud's own by default")
    parser.add_argument(
        "--stop",
        action="store_true",
        help="end the run on every host, which saves a checkpoint, and start nothing",
    )
    args, words = parse(parser, argv)
    if bool(words) == args.stop:
        parser.error(
            "--stop takes no command" if words else "give the command behind --, as in the example"
        )
    remote = remote_command(args.directory, args.python, words)
    command = gcloud_command(args, remote)
    if args.dry_run:
        print(f"every host would run:\n{remote}\nby:\n{shlex.join(command)}")
        return 0
    require_program(
        parser, "gcloud", "install the Google Cloud CLI, https://cloud.google.com/sdk/docs/install"
    )
    try:
        if args.stop:
            return subprocess.run(command).returncode
        return run_until_done(
            command,
            lambda: slice_state(state_command(args)),
            max_failures=args.max_failures,
            wait=args.wait,
        )
    except KeyboardInterrupt:
        fail(parser, "interrupted; the hosts may go on: end their run by --stop")


def remote_command(directory: str, python: str, words: list[str]) -> str:
    """One line for the shell of every host: ends an earlier run and, given words, starts one.

    The shell's process becomes Python's, so that its number is the run's.
    """
    if not words:
        return _STOP_EARLIER
    # Another start would not find the folder either.
    enter = f"cd {shlex.quote(directory)} || exit {BAD_INPUT}"
    return f"{enter}; {_STOP_EARLIER}; {_START} {solojax_command(python, words)}"


def gcloud_command(args: argparse.Namespace, remote: str) -> list[str]:
    """The words that run a command on every host at once."""
    return [*_gcloud(args, "ssh"), "--worker=all", f"--command={remote}"]


def state_command(args: argparse.Namespace) -> list[str]:
    """The words that print the slice's state."""
    return [*_gcloud(args, "describe"), "--format=value(state)"]


def _gcloud(args: argparse.Namespace, verb: str) -> list[str]:
    project = [f"--project={args.project}"] if args.project else []
    return [
        "gcloud", "compute", "tpus", "tpu-vm", verb, args.name, f"--zone={args.zone}", *project,
    ]  # fmt: skip


def slice_state(command: list[str]) -> str:
    """READY, CREATING, PREEMPTED, ...; "" where there is no such slice, or no answer."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def run_until_done(
    command: list[str],
    find_state: Callable[[], str],
    *,
    max_failures: int,
    wait: float,
    lasting: float = _LASTING,
) -> int:
    """Runs a command again after a pre-emption or a failure.

    Args:
      command: what runs on all hosts.
      find_state: see `slice_state`.
      max_failures: after which to give up.
      wait: seconds before each start but the first, and between two looks at the slice.
      lasting: seconds of a start after which the count of failures begins anew.

    Returns:
      The last exit code.
    """
    failures, reached = 0, False
    while True:
        began = time.monotonic()
        code = subprocess.run(command).returncode
        # Input that was good once is not what is bad later: a host may have come too late.
        if code == 0 or (code == BAD_INPUT and not reached):
            return code
        if time.monotonic() - began >= lasting:
            failures, reached = 0, True
        state = find_state()
        # Before, nothing tells a slice that is away from a name or a key that is wrong.
        reached = reached or code == PREEMPTED or (state == _READY and code != _LOST)
        if code == PREEMPTED:
            _say(f"pre-empted; starting again in {wait} s")
        elif state != _READY and (state or reached):
            _say(f"exit code {code}, for the slice is {state or _UNKNOWN}")
        elif code == _LOST and reached:
            _say(f"the connection was lost; starting again in {wait} s")
        else:
            failures += 1
            if failures > max_failures:
                _say(f"exit code {code}; giving up after {failures} failures")
                return code
            _say(f"exit code {code}, failure {failures}; starting again in {wait} s")
        time.sleep(wait)
        if state or reached:
            _wait_until_ready(find_state, wait)


def _wait_until_ready(find_state: Callable[[], str], wait: float) -> None:
    """Waits for as long as it takes; says so once for every state."""
    said = None
    while (state := find_state()) != _READY:
        if state != said:
            _say(f"waiting for the slice, which is {state or _UNKNOWN}")
            said = state
        time.sleep(wait)


def _say(message: str) -> None:
    print(f"run_tpu_pod: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

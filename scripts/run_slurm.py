"""Submits a Slurm job that runs solojax on one task a node, and again where it was interrupted.

    python scripts/run_slurm.py --nodes 2 --gpus-per-node 8 --time 24:00:00 -- \\
        train --config configs/solov2.py --workdir /shared/runs/solov2

Needs this repository with its dependencies, and the work directory, on storage that all nodes see.
The processes find each other through Slurm's variables.

Two minutes before the time limit (--sbatch=--signal=TERM@600 makes it ten), and at the beginning of
the grace time of a job that is pre-empted, Slurm sends SIGTERM: every process saves and ends with
exit code 143, and the job queues again to go on from there. When a node fails, or a pre-empted job
is ended without grace, Slurm queues it again itself where the cluster allows that. After the loss
of a process, which the others notice within --heartbeat_timeout of `solojax train`, and any other
failure, all start again in the same job, --max-failures times; not where the first start finds bad
input (exit code 2).

`scancel JOBID` stops the run for good: its processes get SIGTERM too, and KillWait seconds (30
unless the cluster says otherwise) to save, after which the checkpoint before is the newest.

sbatch hands on your environment; on GPUs a run goes on to the same bits only if that has
XLA_FLAGS=--xla_gpu_deterministic_ops=true.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from launching import (
    BAD_INPUT,
    PREEMPTED,
    make_parser,
    parse,
    require_program,
    solojax_command,
)

_SCRIPT = """\
#!/bin/bash
set -euo pipefail
cd {directory}
# The shell has to outlive the signal upon which the processes save.
trap : TERM
failures=0
starts=${{SLURM_RESTART_COUNT:-0}}
while true; do
  code=0
  # A process that is lost is named by the others: Slurm must not kill them before.
  {srun} {command} || code=$?
  # Input that was good once is not what is bad later: a host may have come too late.
  if [ "$code" -eq 0 ] || {{ [ "$code" -eq {bad_input} ] && [ "$starts" -eq 0 ]; }}; then
    exit "$code"
  fi
  # A warning leaves the job running; one that Slurm or scancel is ending must not queue again.
  state=$(squeue --noheader --states=all --jobs="$SLURM_JOB_ID" --format=%T || true)
  case "$state" in
    COMPLETING|CANCELLED|TIMEOUT|PREEMPTED|NODE_FAIL|DEADLINE|REQUEUED|PENDING)
      echo "run_slurm: exit code $code; the job is being ended ($state)"
      exit "$code" ;;
  esac
  if [ "$code" -eq {preempted} ]; then
    echo "run_slurm: told to end, all is saved; the job queues again"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
  fi
  starts=$((starts + 1))
  failures=$((failures + 1))
  if [ "$failures" -gt {max_failures} ]; then
    echo "run_slurm: exit code $code; giving up after $failures failures"
    exit "$code"
  fi
  echo "run_slurm: exit code $code, failure $failures; starting again in {wait} s"
  sleep {wait}
done
"""


def main(argv: list[str] | None = None) -> int:
    """Submits the job; returns sbatch's exit code."""
    parser = make_parser(__doc__, directory=str(Path(__file__).resolve().parents[1]))
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--gpus-per-node", type=int, default=0, metavar="N", help="0: CPUs alone")
    parser.add_argument(
        "--cpus-per-node",
        type=int,
        default=16,
        metavar="N",
        help="for reading and augmenting images (default: %(default)s)",
    )
    parser.add_argument("--time", help="limit of one turn of the job, as 24:00:00")
    parser.add_argument("--partition", help="of the cluster")
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="any other option of sbatch, as --sbatch=--account=vision; may be repeated",
    )
    args, words = parse(parser, argv)
    if not words:
        parser.error("give the command behind --, as in the example")
    if args.nodes < 1 or args.cpus_per_node < 1 or args.gpus_per_node < 0:
        parser.error("--nodes and --cpus-per-node count from 1 on, --gpus-per-node from 0 on")
    command, script = sbatch_command(args), batch_script(args, words)
    if args.dry_run:
        print(f"{shlex.join(command)} <<'EOF'\n{script}EOF")
        return 0
    require_program(parser, "sbatch", "run this on a login node of the cluster")
    return subprocess.run(command, input=script, text=True).returncode


def sbatch_command(args: argparse.Namespace) -> list[str]:
    """The words that submit the script, which comes on standard input."""
    return [
        "sbatch", "--job-name=solojax", f"--nodes={args.nodes}", "--ntasks-per-node=1",
        f"--cpus-per-task={args.cpus_per_node}",
        *([f"--gpus-per-node={args.gpus_per_node}"] if args.gpus_per_node else []),
        *([f"--time={args.time}"] if args.time else []),
        *([f"--partition={args.partition}"] if args.partition else []),
        "--signal=TERM@120", "--requeue", "--open-mode=append", *args.sbatch,
    ]  # fmt: skip


def batch_script(args: argparse.Namespace, words: list[str]) -> str:
    """The job: starts all processes, and decides by their exit code how to go on."""
    # srun does not take over the CPUs of a task from the job since Slurm 22.05.
    srun = f"srun --cpus-per-task={args.cpus_per_node} --kill-on-bad-exit=0 --wait=0"
    return _SCRIPT.format(
        directory=shlex.quote(args.directory),
        srun=srun,
        command=solojax_command(args.python, words),
        bad_input=BAD_INPUT,
        preempted=PREEMPTED,
        max_failures=args.max_failures,
        wait=args.wait,
    )


if __name__ == "__main__":
    sys.exit(main())

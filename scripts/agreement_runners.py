"""Who computes what `device_agreement.py` compares: this process, or several of their own.

As a program it is one of those: python agreement_runners.py JOB.json --coordinator ... (which
`ProcessRunner` starts).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from agreement_lab import CHAOS_STEPS, FLOAT64_STEPS, Lab, Layout
from flax import serialization
from process_group import start_group

from solojax.config import load_config
from solojax.errors import InputError
from solojax.train.state import TrainState

JOBS = ((1, "float32"), (FLOAT64_STEPS, "float64"), (CHAOS_STEPS, "float32"))


class LocalRunner:
    """The first devices of this process."""

    def __init__(self, lab: Lab, devices: int):
        self._lab, self.layout = lab, Layout(1, devices)

    def run(self, name: str, state: TrainState, steps: int, dtype: str = "float32"):
        """As `Lab.run`; `name` says which of the reference states it is."""
        with jax.enable_x64(dtype == "float64"):
            return self._lab.run(state, self.layout.size, steps, dtype)

    def results(self, name: str, state: TrainState) -> bytes:
        """As `Lab.results`."""
        return self._lab.results(state, self.layout.size)


class ProcessRunner:
    """Processes of their own, which compute all once, from the reference states.

    Args:
      lab: of this process.
      layout: how many processes, with how many devices each.
      states: the reference states by name; the last is evaluated.
      config_flags: (spec, overrides) of the config.
      folder: takes states, outcomes and what the processes say.

    Raises:
      InputError: they did not succeed.
    """

    def __init__(
        self,
        lab: Lab,
        layout: Layout,
        states: Mapping[str, TrainState],
        config_flags: tuple[str, Sequence[str]],
        folder: Path,
    ):
        self.layout, self._folder, self._template = layout, folder, lab.fresh()
        folder.mkdir(parents=True, exist_ok=True)
        for name, state in states.items():
            (folder / f"{name}.state").write_bytes(serialization.to_bytes(state))
        job = {"config": config_flags[0], "overrides": list(config_flags[1])}
        path = folder / "job.json"
        path.write_text(json.dumps({**job, "states": list(states)}))
        log = folder / "processes.log"
        code = start_group(
            [sys.executable, __file__, str(path)],
            count=layout.processes,
            devices=layout.size,
            log=log,
        ).wait()
        if code:
            raise InputError(f"{layout} processes ended with code {code}; see {log}")

    def run(self, name: str, state: TrainState, steps: int, dtype: str = "float32"):
        """What they found from the state of that name."""
        template = jax.tree.map(lambda x: x, self._template)
        data = (self._folder / _outcome(name, steps, dtype)).read_bytes()
        found = serialization.msgpack_restore(data)
        return serialization.from_state_dict(template, found["state"]), found["metrics"]

    def results(self, name: str, state: TrainState) -> bytes:
        """The results file that they wrote."""
        return (self._folder / "results.json").read_bytes()


def _outcome(name: str, steps: int, dtype: str) -> str:
    return f"{name}_{steps}_{dtype}.outcome"


def main(argv: list[str] | None = None) -> int:
    from solojax.cli.flags import add_distributed_flags, start_distributed
    from solojax.train import distributed

    parser = argparse.ArgumentParser()
    parser.add_argument("job", type=Path)
    add_distributed_flags(parser)
    args = parser.parse_args(argv)
    start_distributed(args)
    try:
        _work(args.job)
    except Exception as error:
        distributed.stop_because(error)
        raise
    distributed.finish()
    return 0


def _work(path: Path) -> None:
    job = json.loads(path.read_text())
    folder, lab = path.parent, Lab(load_config(job["config"], job["overrides"]))
    template, devices, first = lab.fresh(), jax.device_count(), jax.process_index() == 0
    for name in job["states"]:
        state = serialization.from_bytes(template, (folder / f"{name}.state").read_bytes())
        for steps, dtype in JOBS:
            with jax.enable_x64(dtype == "float64"):
                found, metrics = lab.run(state, devices, steps, dtype)
            if first:
                outcome = {"state": serialization.to_state_dict(found), "metrics": dict(metrics)}
                data = serialization.msgpack_serialize(outcome)
                (folder / _outcome(name, steps, dtype)).write_bytes(data)
    if lab.evaluates:
        results = lab.results(state, devices)
        if first:
            (folder / "results.json").write_bytes(results)


if __name__ == "__main__":
    sys.exit(main())

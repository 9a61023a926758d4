"""One of several processes that evaluate together: a program for `test_many_hosts_evaluation`.

    python host_process.py HOST:PORT PROCESS COUNT DATA OUTPUT

Writes to OUTPUT what the processes gathered, results and figures, and a checkpoint.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from helpers.tiny import random_variables
from helpers.tiny_config import get_config
from helpers.tiny_run import use_nano_network
from jax.sharding import Mesh
from ml_collections import ConfigDict

from solojax.builders.segmentation import build_task
from solojax.data.loader import stack_examples
from solojax.data.transforms import empty_example
from solojax.inference.evaluation import Evaluation, write_json
from solojax.structures import PyTree
from solojax.tasks import Task
from solojax.train.checkpoints import Checkpointer
from solojax.train.sharding import gather_json, make_mesh, replicate, state_sharding
from solojax.train.state import TrainState


def main(coordinator: str, process: str, count: str, data: str, output: str) -> None:
    """Runs everything that needs several processes."""
    jax.distributed.initialize(coordinator, int(count), int(process))
    output = Path(output)
    gathered = gather_json(message(int(process)), bytes_at_once=1000)
    (output / f"gathered_{process}.json").write_text(json.dumps(gathered))
    with pytest.MonkeyPatch.context() as patch:
        use_nano_network(patch)
        figures = evaluate(nano_config(data, batch_size=4), output / "results.json")
    (output / f"figures_{process}.json").write_text(json.dumps(figures))
    round_trip(output)


def message(process: int) -> dict:
    """What a process tells the others: of another length on each, none of them round."""
    return {"process": process, "text": "é" * (1 + 2345 * process), "number": 0.1 + process}


def nano_config(data: str | Path, batch_size: int) -> ConfigDict:
    """The config of all evaluations."""
    config = get_config("nano")
    config.data.root = str(data)
    config.evaluation.batch_size = batch_size
    return config


def network_of(config: ConfigDict) -> tuple[Task, PyTree]:
    """The task and its variables, random and always the same."""
    task = build_task(config, 5)
    return task, random_variables(task, stack_examples([empty_example((64, 64), 0)]))


def evaluate(config: ConfigDict, output: Path) -> dict:
    """Writes the results; returns the figures, scored twice, the second time from the state."""
    task, variables = network_of(config)
    evaluation = Evaluation(task, config)
    results = evaluation.predict(variables)
    write_json(results, output)
    figures = evaluation.score(results)
    # As the training loop has them: on all devices, which may be more than evaluate.
    assert evaluation.run(replicate(variables, make_mesh()))["mask/AP"] == figures["mask"]["AP"]
    return figures


def host_state() -> TrainState:
    """A training state in host memory; some of its arrays four devices divide and some they do not.

    Every number occurs once.
    """
    params = {
        "kernel": np.arange(3 * 8 * 16, dtype=np.float32).reshape(3, 8, 16),
        "bias": np.arange(1000, 1007, dtype=np.float32),
    }
    adam = optax.ScaleByAdamState(
        count=np.int32(3),
        mu=jax.tree.map(lambda x: x + 0.25, params),
        nu=jax.tree.map(lambda x: x + 0.5, params),
    )
    return TrainState(np.int32(3), params, (adam,), {}, None, {})


def placed(mesh: Mesh, shard_optimizer: bool) -> TrainState:
    """`host_state` on devices."""
    state = host_state()
    return jax.tree.map(
        lambda x, sharding: jax.make_array_from_callback(x.shape, sharding, lambda i: x[i]),
        state,
        state_sharding(state, mesh, shard_optimizer),
    )


def round_trip(output: Path) -> None:
    """Saves a state whose optimizer is spread; restores it as it was and on all devices."""
    mesh = make_mesh()
    state = placed(mesh, shard_optimizer=True)
    with Checkpointer(output / "checkpoints") as checkpointer:
        checkpointer.save(3, state, {}, wait=True)
        for shard_optimizer in (True, False):
            assert_same(checkpointer.restore(placed(mesh, shard_optimizer))[0], host_state())


def assert_same(state: TrainState, expected: TrainState) -> None:
    """Checks all numbers of a state, wherever they lie."""
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        for shard in x.addressable_shards:
            np.testing.assert_array_equal(shard.data, y[shard.index])
    assert state.params["kernel"].sharding.is_fully_replicated


if __name__ == "__main__":
    main(*sys.argv[1:])

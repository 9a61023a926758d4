"""The steps are lowered for shapes alone, on the devices of this host."""

from __future__ import annotations

import jax
import pytest
from helpers.small_densecl import use_small_backbone
from helpers.tiny_run import NANO_CONFIG, use_nano_network
from jax.sharding import PartitionSpec

from solojax.aot import compiling
from solojax.aot.chips import parse_topology
from solojax.aot.compiling import compile_step, compile_steps, default_batch, search
from solojax.aot.cost import StepCost, TooLarge
from solojax.aot.programs import lower_predict_step, lower_train_step
from solojax.config import load_config
from solojax.errors import InputError
from solojax.train.sharding import make_mesh

CANVAS = (64, 96)


@pytest.fixture
def config(monkeypatch):
    use_nano_network(monkeypatch)
    return load_config(NANO_CONFIG)


@pytest.fixture
def mesh():
    return make_mesh(jax.devices()[:2])


def test_the_rows_of_a_training_batch_are_spread_over_the_devices(config, mesh):
    lowered = lower_train_step(config, mesh, 2, CANVAS)
    (_, batch), _ = lowered.args_info
    compiled = lowered.compile()
    (_, shardings), _ = compiled.input_shardings
    assert {sharding.spec for sharding in jax.tree.leaves(shardings)} == {PartitionSpec("data")}
    assert batch.image.shape == (4, *CANVAS, 3)


def test_the_training_step_takes_and_gives_a_donated_state(config, mesh):
    lowered = lower_train_step(config, mesh, 2, CANVAS)
    (state, batch), _ = lowered.in_avals
    assert batch.image.shape == (2 * mesh.size, *CANVAS, 3)
    (given, _), _ = lowered.args_info
    assert all(leaf.donated for leaf in jax.tree.leaves(given))
    new_state, metrics = lowered.out_info
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new_state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert "loss" in metrics and metrics["learning_rate"].shape == ()


def test_a_moving_average_is_part_of_the_state(config, mesh):
    config.train.ema_decay = 0.9
    (state, _), _ = lower_train_step(config, mesh, 1, CANVAS).in_avals
    assert jax.tree.structure(state.ema_params) == jax.tree.structure(state.params)


def test_parts_that_do_not_divide_the_batch(config, mesh):
    config.train.accumulate_steps = 3
    with pytest.raises(InputError, match="train.accumulate_steps"):
        lower_train_step(config, mesh, 1, CANVAS)


def test_compiling_measures_both_steps(config, mesh):
    steps = list(
        compile_steps(config, mesh, parse_topology("v5e:2x2"), per_chip_batch=1, canvas=CANVAS)
    )
    assert [step.name for step in steps] == ["train", "predict"]
    for step in steps:
        (cost,) = step.costs
        assert step.canvas == CANVAS and cost.per_chip_batch == 1
        assert cost.flops > 0 and cost.hbm_bytes > 0 and cost.peak_bytes > cost.argument_bytes
    train, predict = (step.costs[0] for step in steps)
    assert train.argument_bytes > predict.argument_bytes


def test_the_predict_step_keeps_rows_where_they_are(config, mesh):
    compiled = lower_predict_step(config, mesh, 2, CANVAS).compile()
    specs = {sharding.spec for sharding in jax.tree.leaves(compiled.output_shardings)}
    assert specs == {PartitionSpec("data")}


def test_the_batch_of_a_chip_is_its_share():
    config = load_config("configs/solov2.py:r50,3x")
    assert [default_batch(config, "train", chips) for chips in (4, 16, 64)] == [4, 1, 1]
    assert default_batch(config, "predict", 16) == 1
    config.evaluation.batch_size = 64
    assert default_batch(config, "predict", 16) == 4


def make_cost(batch: int, peak: int) -> StepCost:
    return StepCost(batch, 0, peak, peak, 1.0, 1.0, (), (), 0.0)


@pytest.mark.parametrize(
    "first, most, expected",
    [(1, 5, [2, 4, 8]), (3, 5, [6]), (8, 5, [4]), (8, 1, [4, 2, 1]), (8, 0, [4, 2, 1])],
)
def test_the_search_ends_where_the_answer_changes(first, most, expected):
    chip = parse_topology("v5e:1x1").chip

    def compiled(batch: int):
        gib = 2**30
        if batch > most + 10:
            return TooLarge(batch, "Ran out of memory", 0.0)
        return make_cost(batch, 16 * gib if batch <= most else 17 * gib)

    found = list(search(compiled, compiled(first), chip))
    assert [cost.per_chip_batch for cost in found] == expected


class Refusing:
    """A lowered program for which there is no memory."""

    def __init__(self, message: str):
        self.message = message

    def compile(self):
        raise jax.errors.JaxRuntimeError(self.message)


def test_a_program_without_room():
    message = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 20.33G of 15.75G hbm. Exceeded hbm capacity by 4.58G.\n\nTotal hbm usage >= ..."
    )
    cost = compile_step(lambda *_: Refusing(message), None, None, 4, CANVAS)
    assert isinstance(cost, TooLarge) and cost.per_chip_batch == 4
    assert cost.reason.startswith("XLA:TPU") and cost.reason.endswith("by 4.58G.")


def test_another_failure_of_the_compiler_is_not_hidden():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        compile_step(lambda *_: Refusing("INTERNAL: a bug"), None, None, 4, CANVAS)


def test_steps_that_are_not(config):
    with pytest.raises(InputError, match="no step 'serve'; give one or more of train, predict"):
        compiling.check_steps(config, ["train", "serve"])
    assert compiling.check_steps(config, None) == ("train", "predict")
    assert compiling.check_steps(config, ["predict"]) == ["predict"]


def test_a_contrastive_config_is_compiled_for_training(mesh, monkeypatch):
    """Its state with keys and queues goes in and comes out; the canvas is that of the views."""
    use_small_backbone(monkeypatch)
    config = load_config("configs/densecl.py:tiny", ["--config.contrast.queue_length=64"])
    config.model.backbone.norm_group_images = 4
    assert compiling.check_steps(config, None) == ("train",)
    with pytest.raises(InputError, match="densecl has no step 'predict'"):
        compiling.check_steps(config, ["predict"])
    lowered = lower_train_step(config, mesh, 4, (32, 64))
    (state, batch), _ = lowered.in_avals
    assert batch.views.shape == (8, 2, 32, 64, 3) and batch.seed.shape == (8,)
    assert state.extra["queues"]["dense"]["vectors"].shape == (64, 128)
    new_state, metrics = lowered.out_info
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new_state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert {"loss/global", "loss/dense"} <= metrics.keys()
    with pytest.raises(InputError, match="queue_length"):
        lower_train_step(config, mesh, 48, (32, 32))

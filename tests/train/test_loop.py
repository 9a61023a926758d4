"""The training loop on a task small enough to follow by hand: fitting a line by SGD."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from solojax.errors import InputError
from solojax.train import loop
from solojax.train import step as step_module
from solojax.train.guard import NonFiniteLoss
from solojax.train.loop import Intervals, train
from solojax.train.sharding import make_mesh
from solojax.train.state import create_state

BATCH, RATE = 8, 0.1
METADATA = {"config": "{}"}


class Line:
    """y = w x: a task whose loss is the mean of (w x - y)^2."""

    def init(self, rng, batch):
        return {"params": {"w": jnp.full((), 2.0, jnp.float32)}}

    def row_weights(self, batch):
        return jnp.full(batch["x"].shape, 1 / batch["x"].shape[0])

    def loss_fn(self, params, state, batch, rng, weights):
        loss = jnp.sum((params["w"] * batch["x"] - batch["y"]) ** 2 * weights)
        return loss, ({}, {"loss": loss, "left_out": jnp.sum(batch["left_out"])})

    def is_trainable(self, path):
        return True


def batch_at(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    x = rng.uniform(-1, 1, BATCH).astype(np.float32)
    return {"x": x, "y": 0.5 * x, "left_out": np.full(BATCH, step == 3, np.float32)}


def by_hand(steps: int, start: int = 0, w: float = 2.0) -> tuple[float, list[float]]:
    """The final w, and the loss of every step, in float64."""
    losses = []
    for step in range(start, steps):
        batch = {key: value.astype(np.float64) for key, value in batch_at(step).items()}
        error = w * batch["x"] - batch["y"]
        losses.append(np.mean(error**2))
        w -= RATE * np.mean(2 * error * batch["x"])
    return w, losses


class Recorder:
    """Stands for the checkpointer, the metric writer and the evaluation; keeps what they are told.

    Attributes:
      events: ("write", step), ("evaluate", w), ("save", step) and so on, in order.
      lines: {step: metrics} of all that was written.
      saved: {step: (w, metrics)}.
      failing: {event name: error} that is raised instead.
    """

    def __init__(self, **failing):
        self.events, self.lines, self.saved, self.failing = [], {}, {}, failing

    def _note(self, *event):
        if event[0] in self.failing:
            raise self.failing[event[0]]
        self.events.append(event)

    def write(self, step, metrics):
        self._note("write", step)
        self.lines.setdefault(step, {}).update(metrics)

    def save(self, step, state, metadata, metrics=None, wait=False):
        assert metadata == METADATA
        self._note("save", step)
        self.saved[step] = (float(state.params["w"]), metrics)

    def check(self):
        if "check" in self.failing:
            raise self.failing["check"]

    def wait(self):
        self._note("wait")

    def evaluate(self, variables):
        self._note("evaluate", round(float(variables["params"]["w"]), 5))
        return {"mask/AP": 0.5, "mask/AP50": 0.75}


@dataclasses.dataclass
class Batches:
    """Host batches from a first step on; `change` is {step: batch or error}."""

    change: dict
    total: int = 100
    first: int | None = None
    closed: bool = False

    def __call__(self, first):
        self.first = first
        return self._iterate(first)

    def _iterate(self, first):
        try:
            for step in range(first, self.total):
                item = self.change.get(step, batch_at(step))
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.closed = True


def run(
    tmp_path, steps, recorder, *, log=1, evaluate=0, checkpoint=0, start=0, change=None, **options
):
    mesh = make_mesh()
    optimizer = optax.sgd(RATE)
    state = create_state(
        Line(), optimizer, jax.random.key(0), batch_at(0), ema="ema_decay" in options
    )
    state = state.replace(step=jnp.asarray(start, jnp.int32))
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    batches = Batches(change or {})
    final = train(
        Line(),
        optimizer,
        state,
        schedule=optax.constant_schedule(RATE),
        make_batches=batches,
        mesh=mesh,
        total_steps=steps,
        batch_size=BATCH,
        intervals=Intervals(log, evaluate, checkpoint),
        workdir=tmp_path,
        checkpointer=recorder,
        writer=recorder,
        metadata=METADATA,
        evaluate=recorder.evaluate,
        **options,
    )
    return final, batches


def test_it_is_plain_gradient_descent(tmp_path):
    recorder = Recorder()
    final, batches = run(tmp_path, 6, recorder)
    w, losses = by_hand(6)
    assert int(final.step) == 6 and batches.closed and batches.first == 0
    assert float(final.params["w"]) == pytest.approx(w, rel=1e-6)
    assert [recorder.lines[step]["loss"] for step in range(1, 7)] == pytest.approx(losses, rel=1e-5)
    assert recorder.lines[1]["learning_rate"] == pytest.approx(RATE)


def test_the_log_averages_over_its_interval(tmp_path):
    recorder = Recorder()
    run(tmp_path, 7, recorder, log=3)
    _, losses = by_hand(7)
    expected = {3: np.mean(losses[:3]), 6: np.mean(losses[3:6]), 7: losses[6]}
    assert {s: line["loss"] for s, line in recorder.lines.items()} == pytest.approx(expected)


def test_order_of_log_evaluation_and_checkpoint(tmp_path):
    recorder = Recorder()
    run(tmp_path, 5, recorder, log=2, evaluate=4, checkpoint=2)
    kinds = [event if event[0] != "evaluate" else event[:1] for event in recorder.events]
    assert kinds == [
        ("write", 2), ("save", 2),
        ("write", 4), ("evaluate",), ("write", 4), ("save", 4),
        ("write", 5), ("evaluate",), ("write", 5), ("save", 5),
        ("wait",),
    ]  # fmt: skip
    assert recorder.saved[2][1] is None
    assert recorder.saved[4][1] == {"mask/AP": 0.5, "mask/AP50": 0.75}
    assert recorder.events[3] == ("evaluate", round(by_hand(4)[0], 5))
    assert recorder.saved[5][0] == pytest.approx(by_hand(5)[0], rel=1e-6)


def test_an_evaluated_step_is_saved_whatever_the_interval(tmp_path):
    recorder = Recorder()
    run(tmp_path, 4, recorder, log=0, evaluate=3, checkpoint=100)
    assert set(recorder.saved) == {3, 4}


def test_zero_is_never(tmp_path):
    recorder = Recorder()
    run(tmp_path, 3, recorder, log=0, evaluate=0, checkpoint=0)
    assert recorder.events == [("wait",)]
    recorder = Recorder()
    run(tmp_path, 3, recorder, log=0, evaluate=3, checkpoint=0)
    assert recorder.saved == {} and ("write", 3) in recorder.events


def test_it_goes_on_from_the_step_of_the_state(tmp_path):
    recorder = Recorder()
    final, batches = run(tmp_path, 6, recorder, start=4)
    assert batches.first == 4 and int(final.step) == 6
    assert sorted(recorder.lines) == [5, 6]
    assert float(final.params["w"]) == pytest.approx(by_hand(6, start=4)[0], rel=1e-6)


def test_the_moving_average_is_what_gets_evaluated(tmp_path):
    recorder = Recorder()
    final, _ = run(tmp_path, 2, recorder, evaluate=2, checkpoint=2, ema_decay=0.75)
    first, second = by_hand(1)[0], by_hand(2)[0]
    average = 0.75 * (0.75 * 2.0 + 0.25 * first) + 0.25 * second
    assert float(final.ema_params["w"]) == pytest.approx(average, rel=1e-6)
    assert ("evaluate", round(average, 5)) in recorder.events


def test_micro_batches_change_nothing(tmp_path):
    whole, _ = run(tmp_path, 3, Recorder())
    parts, _ = run(tmp_path, 3, Recorder(), accumulate_steps=2)
    assert float(parts.params["w"]) == pytest.approx(float(whole.params["w"]), rel=1e-6)


@pytest.mark.parametrize("log, checkpoint", [(1, 1), (50, 50)])
def test_a_loss_that_is_no_number_ends_the_run(tmp_path, log, checkpoint):
    bad = batch_at(2) | {"y": np.full(BATCH, np.nan, np.float32)}
    recorder = Recorder()
    with pytest.raises(NonFiniteLoss, match="at step 3 .*nonfinite_step_3.npz"):
        run(tmp_path, 9, recorder, log=log, checkpoint=checkpoint, change={2: bad})
    assert max([0, *recorder.lines, *recorder.saved]) == (2 if log == 1 else 0)
    with np.load(tmp_path / "nonfinite_step_3.npz") as saved:
        np.testing.assert_array_equal(saved["x"], bad["x"])


def test_bad_data_half_way_saves_what_was_learned(tmp_path, caplog):
    recorder = Recorder()
    with pytest.raises(InputError, match="image 7"):
        run(tmp_path, 9, recorder, checkpoint=100, change={5: InputError("image 7: broken")})
    # The batch of step 4 is handed out once that of step 5 is being copied.
    assert recorder.saved == {4: (pytest.approx(by_hand(4)[0], rel=1e-6), None)}
    assert "checkpoint 4 holds what it has learned" in caplog.text


def test_nothing_is_saved_before_the_first_step_or_where_checkpoints_are_off(tmp_path):
    for changes in (
        {"change": {0: InputError("no")}, "checkpoint": 1},
        {"change": {5: InputError("no")}},
    ):
        recorder = Recorder()
        with pytest.raises(InputError, match="no"):
            run(tmp_path, 9, recorder, **changes)
        assert recorder.saved == {}


@pytest.mark.parametrize("failing", ["write", "evaluate", "check"])
def test_a_failing_log_evaluation_or_save_in_the_background_saves_first(tmp_path, failing):
    recorder = Recorder(**{failing: InputError("disk full")})
    with pytest.raises(InputError, match="disk full"):
        run(tmp_path, 9, recorder, log=3, evaluate=3, checkpoint=100)
    assert recorder.saved == {3: (pytest.approx(by_hand(3)[0], rel=1e-6), None)}
    assert (3 in recorder.lines) == (failing != "write")  # what is saved is in the log


def test_a_second_failure_does_not_hide_the_first(tmp_path, caplog):
    recorder = Recorder(write=InputError("log: disk full"), save=InputError("save: disk full"))
    with pytest.raises(InputError, match="log: disk full"):
        run(tmp_path, 9, recorder, checkpoint=100)
    assert "save: disk full" in caplog.text


def test_the_batches_are_closed_when_the_run_fails(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        step_module,
        "make_train_step",
        lambda *_, **__: made.append(1) or _raise(ValueError("a bug")),
    )
    with pytest.raises(ValueError, match="a bug"):
        run(tmp_path, 3, Recorder())
    assert made


def _raise(error):
    raise error


def test_metrics_that_should_be_zero_are_followed_by_advice_once(tmp_path, caplog):
    change = {5: batch_at(3), 6: batch_at(3)}
    run(tmp_path, 8, Recorder(), change=change, watched={"left_out": "look at it", "other": "no"})
    said = [message for message in caplog.messages if "left_out" in message]
    assert said == [f"left_out: {BATCH} a step; look at it"]


def test_seconds_per_step_leave_out_compilation_evaluation_and_saving(tmp_path, monkeypatch):
    """On a clock that stands still but for 100 s of evaluation, and 1 s for every batch."""
    clock = [0.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    recorder = Recorder()

    def evaluate(variables):
        clock[0] += 100.0
        return {"mask/AP": 0.5}

    recorder.evaluate = evaluate
    make_step = step_module.make_train_step

    def slow_to_compile(*args, **kwargs):
        step = make_step(*args, **kwargs)

        def traced(state, batch):
            clock[0] += 1000.0  # runs while the step is traced, once
            return step(state, batch)

        return traced

    monkeypatch.setattr(step_module, "make_train_step", slow_to_compile)
    original = Batches._iterate

    def slow_batches(self, first):
        for batch in original(self, first):
            clock[0] += 1.0
            yield batch

    monkeypatch.setattr(Batches, "_iterate", slow_batches)
    run(tmp_path, 6, recorder, log=1, evaluate=2, checkpoint=1)
    # The first step's batch was there before it began.
    seconds = [recorder.lines[step]["seconds_per_step"] for step in range(1, 7)]
    assert seconds == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_the_bar_is_told_of_every_step_and_every_pause(tmp_path, monkeypatch):
    events = []

    class Bar:
        def __init__(self, **settings):
            events.append(settings)

        def advance(self, metrics):
            events.append("step" if metrics is None else "step with losses")

        def __getattr__(self, name):
            return lambda *_: events.append(name)

    monkeypatch.setattr(loop, "TrainProgress", Bar)
    run(tmp_path, 7, Recorder(), log=2, evaluate=3, checkpoint=100, start=4)
    settings, *events = events
    assert settings == dict(total_steps=7, start_step=4, batch_size=BATCH, enabled=True)
    assert events == [
        "skip_time", "step",  # compilation
        "step with losses", "note", "skip_time",  # evaluation and saving
        "step with losses", "note", "skip_time",
        "close",
    ]  # fmt: skip


def test_the_summary_names_the_first_figures_of_each_group():
    results = {"mask/AP": 0.4, "mask/AP50": 0.5, "mask/AP75": 0.3, "mask/APs": 0.1, "box/AP": 0.25}
    assert loop._summary(7, results) == (
        "step 7: mask AP 0.400, AP50 0.500, AP75 0.300; box AP 0.250"
    )

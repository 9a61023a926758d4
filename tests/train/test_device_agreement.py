"""One device and several end a run as near to each other as rounding allows, and evaluate alike.

Also that `scripts/device_agreement.py`, which measures it, finds a difference where there is one.
A single step, in float32 and float64, is in test_sharding.py.
"""

from __future__ import annotations

import math
import re

import jax
import numpy as np
import pytest
from helpers.scripts import load_script, run_script
from helpers.tiny_run import NANO_CONFIG, use_nano_network, write_data

from solojax.config import load_config
from solojax.train.state import TrainState

device_agreement = load_script("device_agreement")
Layout = device_agreement.Layout

COUNTS = (2, 4)
OVERRIDES = (
    "--config.model.backbone.norm=frozen_batch_norm",  # for the bar; the nano network has none
    "--config.train.total_steps=8",
    "--config.evaluation.batch_size=1",
)
needs_four = pytest.mark.skipif(jax.device_count() < 4, reason="fewer than 4 devices")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    data = write_data(tmp_path_factory.mktemp("agreement") / "data")
    with pytest.MonkeyPatch.context() as patch:
        use_nano_network(patch)
        config = load_config(NANO_CONFIG, [f"--config.data.root={data}", *OVERRIDES])
        yield device_agreement.Lab(config)


def runners(lab, counts=COUNTS):
    return [device_agreement.LocalRunner(lab, count) for count in counts]


@pytest.mark.slow
@needs_four
def test_fifty_steps_part_no_further_than_one_ulp_does(lab):
    fresh = lab.fresh()
    checks = list(device_agreement.chaos_checks(lab, "fresh", fresh, runners(lab)))
    assert [check.layout.size for check in checks] == [2, 4]
    assert all(check.verdict == "pass" for check in checks), checks
    end, _ = lab.run(fresh, 1, 50)
    assert end.step == 50 and device_agreement.total_gap(end.params, fresh.params) > 1e-2


@needs_four
def test_results_files_are_the_same_byte_for_byte(lab, tmp_path):
    """Three images of two canvases: with 2 and 4 images a batch there are padding rows."""
    fresh = lab.fresh()
    checks = device_agreement.evaluation_checks(lab, "fresh", fresh, tmp_path, runners(lab))
    assert [check.verdict for check in checks] == ["pass", "pass"]
    one, two, four = ((tmp_path / f"results_1x{n}.json").read_bytes() for n in (1, 2, 4))
    assert one == two == four and one.count(b"segmentation") > 10


def test_the_loader_gives_any_number_of_hosts_the_same_global_batches(lab, monkeypatch):
    checks = list(device_agreement.loader_checks(lab))
    assert [(str(check.layout), check.verdict) for check in checks] == [
        ("2x1", "pass"),
        ("4x1", "pass"),
    ]
    make = lab.make_batches
    monkeypatch.setattr(lab, "make_batches", lambda index, count: make(count - 1 - index, count))
    assert {check.verdict for check in device_agreement.loader_checks(lab)} == {"FAIL"}


@needs_four
def test_a_difference_is_found(lab, monkeypatch, capsys):
    """Parameters that are a ten-thousandth larger on two devices are no kink but a fault."""
    right = lab._step_function(2, "float32")

    def wrong(state, batch):
        return right(state.replace(params=jax.tree.map(lambda x: x * 1.0001, state.params)), batch)

    monkeypatch.setitem(lab._step_functions, (2, "float32"), wrong)
    fresh = lab.fresh()
    loss, gradient = device_agreement.gradient_checks(lab, "fresh", fresh, runners(lab, (2,)))
    assert loss.verdict == gradient.verdict == "FAIL"
    assert 1e-6 < loss.value < 1e-3 and 1e-5 < gradient.value < 1e-2
    (chaos,) = device_agreement.chaos_checks(lab, "fresh", fresh, runners(lab, (2,)))
    assert chaos.verdict == "FAIL" and chaos.value > 100
    assert device_agreement.report(iter([gradient, chaos])) == 1
    assert "0 passed, 0 at a kink, 2 failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "at_kink", "expected"),
    [
        (1e-6, False, "pass"),
        (2e-6, False, "FAIL"),
        (2e-6, True, "kink"),
        (math.nan, False, "FAIL"),
        (math.inf, False, "FAIL"),
    ],
)
def test_verdicts(value, at_kink, expected, capsys):
    check = device_agreement.Check("loss", "fresh", Layout(1, 2), value, 1e-6, at_kink=at_kink)
    assert check.verdict == expected
    assert device_agreement.report(iter([check])) == (expected == "FAIL")
    assert expected in capsys.readouterr().out


def test_gaps_by_hand():
    expected = {"a": np.array([3.0, 4.0]), "b": np.zeros(2), "c": np.array([12.0])}
    tree = {"a": np.array([3.0, 4.5]), "b": np.zeros(2), "c": np.array([12.0])}
    gaps = device_agreement.leaf_gaps(tree, expected)
    assert gaps == {"a": pytest.approx(0.1), "b": 0.0, "c": 0.0}
    assert device_agreement.largest(gaps) == ("a", pytest.approx(0.1))
    assert device_agreement.total_gap(tree, expected) == pytest.approx(0.5 / 13)
    tree["b"], tree["c"] = np.array([0.0, 1e-30]), np.array([math.nan])
    gaps = device_agreement.leaf_gaps(tree, expected)
    assert gaps["b"] == math.inf and math.isnan(gaps["c"])
    assert device_agreement.largest({"a": 0.1, "c": math.nan})[0] == "c"


def test_one_ulp_is_one_bit_of_every_number():
    params = {"a": np.array([1.0, -3.0, 0.0, 1e-20], np.float32)}
    state = TrainState(np.int32(7), params, {}, {}, None, {})
    moved = device_agreement.one_ulp_away(state, 0)
    assert moved.step == 7 and moved.params["a"].dtype == np.float32
    steps = [np.nextafter(params["a"], np.float32(side)) for side in (-np.inf, np.inf)]
    assert all(x in pair for x, pair in zip(moved.params["a"], np.stack(steps, 1), strict=True))


@pytest.mark.slow
def test_the_whole_network(tmp_path):
    """Every bar, on the demo's network at a quarter of its width."""
    done = run_script("device_agreement", "--workdir", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.search(r"(\d+) passed, (\d+) at a kink, 0 failed", done.stdout).groups()
    passed, at_kink = map(int, counts)
    # Three kinds of rows (gradients have two) for three states; files; and the loader's two.
    assert passed + at_kink == 4 * (4 * 3 + 1) + 2 and at_kink <= 8

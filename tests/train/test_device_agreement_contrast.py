"""`scripts/device_agreement.py` for pre-training: queues, pointers and key encoder as well."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from helpers.scripts import load_script
from helpers.small_densecl import use_plain_colors, use_small_backbone
from helpers.tiny_run import write_data

from solojax.config import load_config

device_agreement = load_script("device_agreement")
default_run = load_script("default_run")

OVERRIDES = (
    *default_run.CONTRASTIVE_OVERRIDES,
    "--config.data.train_images=images",
    "--config.views.size=(32,32)",
    "--config.train.total_steps=8",
    "--config.optimizer.schedule=step",
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(jax.device_count() < 4, reason="fewer than 4 devices"),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    data = write_data(tmp_path_factory.mktemp("agreement") / "data")
    with pytest.MonkeyPatch.context() as patch:
        use_small_backbone(patch)
        use_plain_colors(patch)
        overrides = [*OVERRIDES, f"--config.data.root={data}"]
        yield device_agreement.Lab(load_config(default_run.CONTRASTIVE_CONFIG, overrides))


@pytest.fixture(scope="module")
def fresh(lab):
    return lab.fresh()


def runners(lab):
    return [device_agreement.LocalRunner(lab, 4)]


def test_one_step_in_float32(lab, fresh, monkeypatch):
    checks = list(device_agreement.gradient_checks(lab, "fresh", fresh, runners(lab)))
    names = ["loss, float32", "gradient, float32", "keys and queues, float32"]
    assert [check.name for check in checks] == names
    assert not lab.evaluates
    assert {check.verdict for check in checks} <= {"pass", "kink"}, checks
    assert checks[0].verdict == checks[2].verdict == "pass", checks

    right = lab._step_function(4, "float32")

    def wrong(state, batch):
        state, metrics = right(state, batch)
        queues = jax.tree.map(lambda x: x, state.extra["queues"])
        queues["dense"]["position"] = queues["dense"]["position"] + 1
        return state.replace(extra=state.extra | {"queues": queues}), metrics

    monkeypatch.setitem(lab._step_functions, (4, "float32"), wrong)
    *_, keys = device_agreement.gradient_checks(lab, "fresh", fresh, runners(lab))
    assert keys.verdict == "FAIL" and keys.note == "queues/dense/position"


@pytest.mark.slow
def test_five_steps_in_float64(lab, fresh):
    """The same of a smaller task, in everyday tests: test_densecl_devices.py."""
    (check,) = device_agreement.float64_checks(lab, "fresh", fresh, runners(lab))
    assert check.verdict == "pass", check


def test_the_loader_gives_any_number_of_hosts_the_same_views(lab):
    checks = list(device_agreement.loader_checks(lab))
    assert {check.verdict for check in checks} == {"pass"}
    (batch,) = device_agreement.global_batches(lab, 2, 3, 1)
    assert batch.views.shape == (16, 2, 32, 32, 3) and np.all(batch.valid)
    assert len(dataclasses.fields(batch)) == len(jax.tree.leaves(batch))


@pytest.mark.slow
def test_fifty_steps_part_no_further_than_one_ulp_does(lab, fresh):
    (check,) = device_agreement.chaos_checks(lab, "fresh", fresh, runners(lab))
    assert check.verdict == "pass", check

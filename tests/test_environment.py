from __future__ import annotations

import os

import jax
import pytest


@pytest.mark.skipif(os.environ["JAX_PLATFORMS"] != "cpu", reason="another platform was asked for")
def test_the_suite_runs_on_several_cpu_devices():
    assert jax.default_backend() == "cpu"
    assert jax.device_count() == int(os.environ["JAX_NUM_CPU_DEVICES"])

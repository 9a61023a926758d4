"""The run that the determinism checks make by default, with what they change in it."""

from __future__ import annotations

import argparse

import pytest
from helpers.scripts import load_script

from solojax.config import load_config

default_run, kill_test = load_script("default_run"), load_script("kill_test")
device_agreement = load_script("device_agreement")


@pytest.mark.parametrize("task", ["instance_segmentation", "densecl"])
def test_it_is_a_valid_config_of_each_task(task, tmp_path):
    args = argparse.Namespace(config=None, task=task, workdir=tmp_path, overrides=[])
    for changes in (device_agreement.TINY_OVERRIDES, kill_test.tiny_overrides(task)):
        config = load_config(*default_run.config_flags(args, changes))
        assert config.task == task
        assert config.data.root == str(tmp_path / "data")

"""`solojax benchmark`, `info` and `visualize` from the outside."""

from __future__ import annotations

import math

import cv2
import jax
import numpy as np
import pytest
from helpers import tiny_run
from helpers.tiny_run import call, refusal, use_nano_network

from solojax import load
from solojax.config import load_config
from solojax.costs.step_benchmark import time_training
from solojax.inference.grid_picture import level_masks
from solojax.train.checkpoints import load_variables

TINY = "tests/helpers/tiny_config.py"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return tiny_run.finished_run(tmp_path_factory)


@pytest.fixture
def nano_run(tmp_path_factory, monkeypatch):
    run = tiny_run.finished_nano_run(tmp_path_factory)
    use_nano_network(monkeypatch)
    return run


def test_benchmark_times_every_phase():
    sizes = ["--canvas", "64x96", "--train_batch", "0"]
    outcome = call("benchmark", "--config", TINY, *sizes, "--candidates", "5", "--repeats", "2")
    assert outcome.code == 0, outcome
    lines = outcome.out.splitlines()
    assert lines[0].startswith("cpu, ") and lines[1].startswith("phase")
    phases = [line[:34].strip() for line in lines[2:-1]]
    assert phases == [
        "decode the JPEG",
        "backbone",
        "neck",
        "mask_features",
        "head",
        "network, whole",
        "post-processing, whole",
        "Matrix NMS of 64, from the IoU",
        *phases[8:10],
        "network and post-processing",
    ]
    assert phases[8].startswith("resize ") and phases[9].startswith("run lengths of ")
    flops = {phase: line.split()[-3] for phase, line in zip(phases, lines[2:-1], strict=True)}
    parts = sum(float(flops[name]) for name in ("backbone", "neck", "mask_features", "head"))
    assert math.isclose(parts, float(flops["network, whole"]), rel_tol=0.2, abs_tol=0.3)
    assert flops["decode the JPEG"] == "-"
    assert "peak memory" in lines[-1]


def test_benchmark_times_the_training_step(nano_run):
    timing = time_training(load_config(tiny_run.NANO_CONFIG), 2, (64, 64), objects=3, repeats=2)
    assert timing.name == "training step, 2 x 64x64" and len(timing.seconds) == 2
    assert timing.gflop > 0 and timing.compile_seconds > 0


def test_info_counts_the_parameters_that_a_checkpoint_has(finished):
    outcome = call("info", "--config", TINY, "--canvas", "64x64", "--classes", "5")
    assert outcome.code == 0, outcome
    counts = {line.split()[0]: int(line.split()[1].replace(",", ""))
              for line in outcome.out.splitlines()[:5]}  # fmt: skip
    params = load_variables(finished.workdir).params
    expected = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in params.items()}
    assert counts == expected | {"all": sum(expected.values())}
    assert "one image of 64x64" in outcome.out and "GiB with post-processing" in outcome.out


@pytest.mark.parametrize(
    "words, parts",
    [
        (("benchmark", "--config", TINY, "--canvas", "60x64"), ["60x64", "multiples of 32"]),
        (("benchmark", "--config", TINY, "--canvas", "big"), ["'big'", "HEIGHTxWIDTH"]),
        (("benchmark", "--config", TINY, "--repeats", "0"), ["--repeats"]),
        (("info", "--config", TINY, "--classes", "0"), ["--classes 0"]),
        (("info", "--config", "configs/solov2.py:r51"), ["'r51'", "'r50'"]),
    ],
)
def test_bad_flags(words, parts):
    refusal(call(*words), *parts)


def test_the_masks_of_all_cells_become_a_picture(nano_run, tmp_path):
    image = nano_run.data / "images" / "image_7.png"
    words = ["--checkpoint", nano_run.workdir, "--images", image, "--level", "1"]
    outcome = call("visualize", "grid", *words, "--output", tmp_path / "cells.png")
    assert outcome.code == 0 and "16 masks" in outcome.out, outcome
    picture = cv2.imread(str(tmp_path / "cells.png"))
    assert picture.shape[1] > 1.5 * picture.shape[0]

    model = load(nano_run.workdir)
    batch = model.batch_of(cv2.imread(str(image))[..., ::-1].copy())
    outputs = model.task.forward(model.variables, batch)
    (masks,) = outputs.masks
    found = np.asarray(level_masks(outputs, model.task.grid, 1))
    logits = np.einsum("bge,bhwe->bghw", masks.kernels[:, 64:], masks.features)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits)), rtol=0, atol=1e-5)


def test_a_level_that_is_not_there(nano_run, tmp_path):
    image = nano_run.data / "images" / "image_7.png"
    words = ["--checkpoint", nano_run.workdir, "--images", image, "--level", "2"]
    outcome = call("visualize", "grid", *words, "--output", tmp_path / "cells.png")
    refusal(outcome, "level 2", "has 2")

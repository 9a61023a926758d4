"""`solojax benchmark` and `info` of contrastive configs, from the outside."""

from __future__ import annotations

import jax
import pytest
from helpers.small_densecl import use_small_backbone
from helpers.tiny_run import call, refusal

from solojax.config import load_config
from solojax.costs.contrast_info import describe_contrast
from solojax.costs.operations import (
    count_operations,
    count_step_operations,
    count_unseen_step_operations,
)
from solojax.costs.workloads import training_parts
from solojax.train.step import make_train_step

TINY = "configs/densecl.py:tiny"
SMALL = (
    "--config.views.size=(32,32)",
    "--config.model.backbone.norm_group_images=2",
    "--config.model.hidden_channels=8",
    "--config.model.embedding=8",
    "--config.model.grid=(2,2)",
    "--config.contrast.queue_length=64",
    "--config.train.batch_size=4",
)


@pytest.fixture(autouse=True)
def small_backbone(monkeypatch):
    use_small_backbone(monkeypatch)


def small_config(variant=TINY, **changes):
    config = load_config(variant, list(SMALL))
    config.update_from_flattened_dict(changes)
    return config


def step_operations(config):
    return count_step_operations(training_parts(config, 4, (32, 32)))


def test_operations_of_a_matrix_product():
    shapes = [jax.ShapeDtypeStruct(shape, "float32") for shape in ((6, 5), (5, 7))]
    assert count_operations(lambda a, b: a @ b, *shapes) == 2 * 6 * 5 * 7


@pytest.mark.parametrize("variant, queries", [(TINY, 4 * (1 + 4)), (f"{TINY},moco", 4)])
def test_a_step_counts_every_logit_of_the_queues(variant, queries):
    """A query and a negative: their product (2 E), its part in the mean (2 E), the softmax."""
    short, long = (
        step_operations(small_config(variant, **{"contrast.queue_length": length}))
        for length in (8192, 65536)
    )
    # Enqueueing looks at the B new keys alone.
    each = (long - short) / (queries * (65536 - 8192))
    assert 4 * 8 <= each <= 4 * 8 + 10


def test_the_turns_of_a_loop_that_the_compiler_does_not_count():
    """Of 16 parts of the queue 15 are unseen; nothing is where one part is all."""
    config = small_config(**{"contrast.queue_length": 65536})
    parts = training_parts(config, 4, (32, 32))
    step = make_train_step(parts.task, parts.optimizer, schedule=parts.schedule)
    state, batch = parts.abstract_state(), parts.batch(jax.ShapeDtypeStruct)
    seen = count_operations(step, state, batch)
    unseen = count_unseen_step_operations(parts)
    assert seen + unseen == count_step_operations(parts)
    logits = 4 * (1 + 4) * 65536 * 15 / 16
    assert 4 * 8 <= unseen / logits <= 4 * 8 + 10
    short = small_config(**{"contrast.queue_length": 4096})
    assert count_unseen_step_operations(training_parts(short, 4, (32, 32))) == 0


def test_info_has_both_methods_whichever_the_config_is():
    infos = [describe_contrast(small_config(v), (32, 32)) for v in (TINY, f"{TINY},moco")]
    assert infos[0].gflop == infos[1].gflop
    step = infos[0].gflop["training step, an image"]
    assert step["DenseCL"] > step["MoCo-v2"]
    assert 4e9 * step["MoCo-v2"] == step_operations(small_config(f"{TINY},moco"))
    dense, plain = (sum(info.parameters.values()) for info in infos)
    # A 1x1 convolution from 12 to 8 channels and one to the 8 of an embedding, with biases.
    assert dense - plain == (12 * 8 + 8) + (8 * 8 + 8)
    # Two queues of 64 x 8 floats and a place each, or one.
    assert [info.queue_bytes for info in infos] == [2 * (64 * 8 + 1) * 4, (64 * 8 + 1) * 4]


def test_info_as_a_table():
    outcome = call("info", "--config", TINY, *SMALL, "--canvas", "64x32")
    assert outcome.code == 0, outcome
    lines = outcome.out.splitlines()
    assert lines[0].startswith("backbone ") and lines[0].endswith(" parameters")
    (head,) = [line for line in lines if line.startswith("GFLOP")]
    assert head.split() == "GFLOP at 64x32, 4 images a step DenseCL MoCo-v2 ratio".split()
    (step,) = [line for line in lines if line.startswith("training step, an image")]
    dense, plain, ratio = map(float, step.split()[-3:])
    shown = 0.0005  # what is lost of figures with three decimals
    assert (dense - shown) / (plain + shown) < ratio < (dense + shown) / (plain - shown)
    assert ratio > 1


@pytest.mark.slow
def test_benchmark_times_every_phase_and_two_configs_in_turns():
    words = ("--against", f"{TINY},moco", "--repeats", "3")
    outcome = call("benchmark", "--config", TINY, *SMALL, *words)
    assert outcome.code == 0, outcome
    lines = outcome.out.splitlines()
    assert [line[:34].strip() for line in lines[2:-3]] == [
        "decode a JPEG, cut two views",
        "colours of 4 x 2 views",
        "query encoder, forward",
        "key encoder, in other groups",
        "global loss and its gradient",
        "matches of cells",
        "dense loss and its gradient",
        "training step, 4 x 32x32",
        "against: step, 4 x 32x32",
    ]
    assert f"a step of {TINY} takes" in lines[-3] and f"one of {TINY},moco" in lines[-3]
    assert "median of 3 pairs" in lines[-3]
    dense, plain = (step_operations(small_config(v)) for v in (TINY, f"{TINY},moco"))
    assert lines[-2].endswith(f"{dense / plain:.3f} times as many")


@pytest.mark.parametrize(
    "words, parts",
    [
        (("benchmark", "--candidates", "5"), ["--candidates", "densecl"]),
        (("benchmark", "--canvas", "64x64"), ["--canvas", "densecl"]),
        (("benchmark", "--against", TINY, "--train_batch", "0"), ["--against", "--train_batch 0"]),
        (("benchmark", "--train_batch", "3"), ["contrast.queue_length", "3"]),
        (("info", "--classes", "5"), ["--classes", "densecl"]),
    ],
)
def test_flags_without_a_part(words, parts):
    verb, *others = words
    refusal(call(verb, "--config", TINY, *SMALL, *others), *parts)

from __future__ import annotations

import pytest

from solojax.config import (
    base_config,
    evaluation_interval,
    milestone_steps,
    scaled_learning_rate,
    total_steps,
)


def test_epochs_unless_total_steps_is_set():
    config = base_config()
    config.train.epochs = 3
    assert total_steps(config, steps_per_epoch=7) == 21
    config.train.total_steps = 5
    assert total_steps(config, steps_per_epoch=7) == 5


def test_evaluation_interval_in_steps_wins_and_zero_is_never():
    config = base_config()
    config.train.eval_every_epochs = 2
    assert evaluation_interval(config, steps_per_epoch=7) == 14
    config.train.eval_every = 0
    assert evaluation_interval(config, steps_per_epoch=7) == 0
    config.train.eval_every = 5
    assert evaluation_interval(config, steps_per_epoch=7) == 5


@pytest.mark.parametrize("steps_per_epoch", [1, 7, 7330, 14659])
@pytest.mark.parametrize("epochs, drops", [(36, (27, 33)), (12, (9, 11)), (72, (65, 71))])
def test_milestones_fall_on_the_ends_of_epochs(steps_per_epoch, epochs, drops):
    config = base_config()
    config.optimizer.milestones = tuple(drop / epochs for drop in drops)
    expected = tuple(drop * steps_per_epoch for drop in drops)
    assert milestone_steps(config, epochs * steps_per_epoch) == expected


def test_milestones_round_halves_up():
    config = base_config()
    config.optimizer.milestones = (0.25, 0.75)
    assert milestone_steps(config, 10) == (3, 8)


def test_learning_rate_follows_the_batch():
    config = base_config()
    config.train.batch_size = 64
    assert scaled_learning_rate(config) == pytest.approx(0.04)
    config.optimizer.reference_batch = None
    assert scaled_learning_rate(config) == 0.01

"""Configs: every key with its default, variants by name, overrides from the command line.

Only `configs/*.py` and the command line read this package: below them functions take plain
arguments.
"""

from solojax.config.base import base_config
from solojax.config.contrastive import contrastive_config
from solojax.config.files import find_config, shipped_configs
from solojax.config.free_solo import free_solo_config
from solojax.config.json_text import checkpoint_config, from_json, to_json
from solojax.config.loading import apply_overrides, load_config
from solojax.config.published import SCHEDULES, published_config
from solojax.config.schedule import (
    evaluation_interval,
    milestone_steps,
    scaled_learning_rate,
    total_steps,
)
from solojax.config.validation import validate
from solojax.config.variants import parse_variants

__all__ = [
    "SCHEDULES",
    "apply_overrides",
    "base_config",
    "checkpoint_config",
    "contrastive_config",
    "evaluation_interval",
    "find_config",
    "free_solo_config",
    "from_json",
    "load_config",
    "milestone_steps",
    "parse_variants",
    "published_config",
    "scaled_learning_rate",
    "shipped_configs",
    "to_json",
    "total_steps",
    "validate",
]

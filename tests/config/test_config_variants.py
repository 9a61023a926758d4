from __future__ import annotations

import itertools

import pytest

from solojax.config import parse_variants
from solojax.errors import InputError

GROUPS = {"backbone": ("r50", "r18", "r101"), "schedule": ("3x", "1x")}
RECIPES = ("mushrooms", "nuts")


def test_defaults():
    for text in ("", "  "):
        assert parse_variants(text, GROUPS) == {"backbone": "r50", "schedule": "3x", "recipe": ""}


def test_every_combination_in_either_order():
    for backbone, schedule in itertools.product(*GROUPS.values()):
        expected = {"backbone": backbone, "schedule": schedule, "recipe": ""}
        assert parse_variants(f"{backbone},{schedule}", GROUPS) == expected
        assert parse_variants(f"{schedule}, {backbone}", GROUPS) == expected


def test_recipe_stands_alone():
    assert parse_variants("nuts", GROUPS, RECIPES)["recipe"] == "nuts"


@pytest.mark.parametrize(
    "text, parts",
    [
        ("r11", ["'r11'", "did you mean 'r101'", "mushrooms"]),
        ("mushroom", ["did you mean 'mushrooms'"]),
        ("r18,r18", ["'r18'", "twice"]),
        ("r18,1x,r101", ["'r18'", "'r101'", "backbone"]),
        ("3x,1x", ["'3x'", "'1x'", "schedule"]),
        ("mushrooms,r18", ["'mushrooms'", "'r18'"]),
        ("mushrooms,nuts", ["'mushrooms'", "'nuts'"]),
        ("r18,", ["''"]),
    ],
)
def test_errors_name_what_is_wrong(text, parts):
    with pytest.raises(InputError) as error:
        parse_variants(text, GROUPS, RECIPES)
    assert "\n" not in str(error.value)
    assert all(part in str(error.value) for part in parts), str(error.value)

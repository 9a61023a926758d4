from __future__ import annotations

import textwrap

import pytest

from solojax.config import (
    checkpoint_config,
    find_config,
    from_json,
    load_config,
    shipped_configs,
    to_json,
)
from solojax.config.names import nearest_name
from solojax.errors import InputError

SOLOV2 = "configs/solov2.py"


@pytest.fixture
def config_file(tmp_path):
    """Writes a config file with the given lines and returns its path."""

    def write(body: str, name: str = "my.py") -> str:
        path = tmp_path / name
        header = "from solojax.config import base_config\n"
        path.write_text(header + textwrap.dedent(body))
        return str(path)

    return write


def error_of(function, *arguments) -> str:
    with pytest.raises(InputError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "override, path, value",
    [
        ("--config.optimizer.learning_rate=0.02", "optimizer.learning_rate", 0.02),
        ("--config.optimizer.learning_rate=1", "optimizer.learning_rate", 1.0),
        ("--config.train.total_steps=20", "train.total_steps", 20),
        ("--config.optimizer.clip_norm=none", "optimizer.clip_norm", None),
        ("--config.train.shard_optimizer=true", "train.shard_optimizer", True),
        ("--config.data.short_sides=640,800", "data.short_sides", (640, 800)),
        ("--config.data.short_sides=(640,)", "data.short_sides", (640,)),
        ("--config.data.short_sides=640", "data.short_sides", (640,)),
        ("--config.data.buckets=[[64,96],(96,64)]", "data.buckets", ((64, 96), (96, 64))),
        ("--config.data.root=/data/my=coco", "data.root", "/data/my=coco"),
        ("--config.data.root=None", "data.root", "None"),
        ("--config.train.best_metric=None", "train.best_metric", None),
    ],
)
def test_overrides_take_the_type_of_their_key(override, path, value):
    found = load_config(SOLOV2, [override])
    for name in path.split("."):
        found = found[name]
    assert found == value and type(found) is type(value)


def test_the_last_override_wins():
    overrides = ["--config.seed=1", "--config.seed=2"]
    assert load_config(SOLOV2, overrides).seed == 2


@pytest.mark.parametrize(
    "override, parts",
    [
        ("--config.optimizer.lr=1", ["'optimizer.lr'", "'optimizer.learning_rate'", "momentum"]),
        ("--config.train.learning_rate=1", ["did you mean 'optimizer.learning_rate'"]),
        ("--config.trian.batch_size=1", ["did you mean 'train.batch_size'"]),
        ("--config.model=1", ["'model' is a group", "model.backbone.depth"]),
        ("--config.train.batch_size=4.5", ["4.5", "a whole number"]),
        ("--config.train.batch_size=None", ["None", "a whole number"]),
        ("--config.optimizer.learning_rate=fast", ["fast", "a number"]),
        ("--config.train.shard_optimizer=maybe", ["maybe", "true or false"]),
        ("--config.train.total_steps=x", ["a whole number or None"]),
        ("--config.data.short_sides=(1,", ["a tuple"]),
        ("--config.train.shard_optimizer", ["no value"]),
        ("--config.train.remat=true", ["none, blocks, blocks_convs, all, all_convs"]),
        ("--config.model.backbone.norm=bn", ["model.backbone.norm", "batch_norm"]),
    ],
)
def test_bad_overrides(override, parts):
    message = error_of(load_config, SOLOV2, [override])
    assert all(part in message for part in parts), message


def test_shipped_configs_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(SOLOV2).read_text().startswith('r"""SOLOv2')
    assert set(shipped_configs()) >= {SOLOV2, "configs/quickstart.py"}


def test_a_file_of_ones_own_comes_before_a_shipped_one(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / SOLOV2).write_text("own")
    monkeypatch.chdir(tmp_path)
    assert find_config(SOLOV2).read_text() == "own"


def test_absent_file_names_itself_and_the_shipped_ones():
    message = error_of(load_config, "configs/solo2.py:r50")
    assert "'configs/solo2.py'" in message and f"did you mean {SOLOV2}" in message
    assert "configs/quickstart.py" in message


def test_own_file_with_variants(config_file):
    path = config_file(
        """
        def get_config(arg="a"):
            config = base_config()
            config.seed = {"a": 1, "b": 2}[arg]
            return config
        """
    )
    assert load_config(path).seed == 1
    config = load_config(f"{path}:b", ["--config.train.total_steps=3"])
    assert (config.seed, config.train.total_steps) == (2, 3)
    with pytest.raises(AttributeError):
        config.no_such_key = 1


@pytest.mark.parametrize(
    "body, parts",
    [
        ("x = (\n", ["line 2", "SyntaxError"]),
        ("def get_config():\n  return 1 / 0\n", ["line 3", "ZeroDivisionError"]),
        (
            "def get_config():\n  c = base_config()\n  c.model.dept = 18\n  return c\n",
            ["line 4", "dept"],
        ),
        (
            "def get_config():\n  c = base_config()\n  c.seed = 'a'\n  return c\n",
            ["line 4", "seed"],
        ),
        ("seed = 1\n", ["no get_config()"]),
        ("def get_config():\n  return {}\n", ["returns a dict", "base_config()"]),
        (
            "def get_config():\n  c = base_config()\n  c.unlock()\n  del c.seed\n  return c\n",
            ["'seed' is missing"],
        ),
        (
            "def get_config():\n  c = base_config()\n  c.unlock()\n  c.sed = 1\n  return c\n",
            ["'sed'", "did you mean 'seed'"],
        ),
        (
            "def get_config():\n  c = base_config()\n  c.seed = None\n  return c\n",
            ["'seed' is None", "a whole number"],
        ),
    ],
)
def test_broken_files_say_where(config_file, body, parts):
    path = config_file(body)
    message = error_of(load_config, path)
    assert all(part in message for part in parts), message


def test_variants_of_a_file_that_has_none(config_file):
    path = config_file("def get_config():\n  return base_config()\n")
    assert "takes no variants" in error_of(load_config, f"{path}:r50")


def test_json_keeps_every_value_and_type():
    overrides = ["--config.data.buckets=((64,96),)", "--config.optimizer.clip_norm=None"]
    config = load_config(SOLOV2, overrides)
    copy = from_json(to_json(config))
    assert copy.to_dict() == config.to_dict()
    assert copy.data.buckets == ((64, 96),) and copy.is_locked
    copy.optimizer.clip_norm = 10  # still a float key
    assert copy.optimizer.clip_norm == 10.0


def test_json_of_an_older_config_takes_defaults_for_newer_keys():
    assert from_json('{"seed": 7}').seed == 7
    assert from_json('{"seed": 7}').model.backbone.depth == 50


@pytest.mark.parametrize(
    "text, part",
    [
        ("{", "line 1"),
        ("[1]", "object"),
        ('{"sed": 1}', "did you mean 'seed'"),
        ('{"seed": "a"}', "'seed'"),
        ('{"seed": true}', "'seed'"),
        ('{"model": 1}', "is a group"),
        ('{"seed": null}', "'seed' is None"),
    ],
)
def test_bad_json(text, part):
    assert part in error_of(from_json, text)


def test_nearest_name():
    known = ["optimizer.name", "optimizer.learning_rate", "train.log_every"]
    assert nearest_name("optimizer.nam", known) == "optimizer.name"
    assert nearest_name("lr", known) == "optimizer.learning_rate"
    assert nearest_name("model.log_every", known) == "train.log_every"
    assert nearest_name("zzz", known) in known


def test_the_config_of_a_checkpoint_names_it_where_there_is_none():
    assert checkpoint_config({"config": '{"seed": 7}'}, "runs/a/3").seed == 7
    assert "runs/a/3 does not say" in error_of(checkpoint_config, {"data": "x"}, "runs/a/3")
    line = error_of(checkpoint_config, {"config": '{"sed": 7}'}, "runs/a/3")
    assert line.startswith("checkpoint runs/a/3: ") and "'sed'" in line

"""What passes from one segmenter to another, and what stays fresh."""

from __future__ import annotations

import numpy as np
import pytest

from solojax.config import load_config, to_json
from solojax.errors import InputError
from solojax.runs import pretrained_segmenter
from solojax.runs.pretrained_segmenter import start_from_segmenter
from solojax.train.checkpoint_loading import LoadedVariables

TINY = "configs/freesolo.py:tiny"


def variables(value, classes, embedding=None, width=4):
    """The branches of a network, every leaf of one value."""

    def filled(*shape):
        return np.full(shape, value, np.float32)

    head = {
        "kernel_pred": {"kernel": filled(3, 3, width, 8)},
        "category_pred": {"kernel": filled(3, 3, width, classes), "bias": filled(classes)},
    }
    if embedding:
        head["embedding_pred"] = {"kernel": filled(3, 3, width, embedding)}
    params = {"backbone": {"conv1": {"kernel": filled(7, 7, 3, width)}}, "head": head}
    return params, {"backbone": {"bn1": {"mean": filled(width)}}}


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """Makes a checkpoint of given variables stand in the work directory that is returned."""

    def make(params, batch_stats, config=None, ema_params=None):
        config = load_config(TINY) if config is None else config
        loaded = LoadedVariables(
            params, batch_stats, ema_params, {"config": to_json(config)}, 7, "runs/f/checkpoints/7"
        )
        monkeypatch.setattr(pretrained_segmenter, "load_variables", lambda path: loaded)
        return tmp_path

    return make


def config_of(workdir, spec="configs/freesolo.py:finetune_tiny", *overrides):
    return load_config(spec, [f"--config.model.checkpoint={workdir}", *overrides])


def test_all_but_the_classification_layer_passes(trained, caplog):
    caplog.set_level("INFO", logger="solojax")
    workdir = trained(*variables(1, classes=1, embedding=5))
    fresh = variables(0, classes=3)
    params, stats = start_from_segmenter(*fresh, config_of(workdir))
    head = params["head"]
    assert (params["backbone"]["conv1"]["kernel"] == 1).all()
    assert (stats["backbone"]["bn1"]["mean"] == 1).all()
    assert (head["kernel_pred"]["kernel"] == 1).all()
    assert set(head) == {"kernel_pred", "category_pred"}
    assert all((x == 0).all() for x in head["category_pred"].values())
    assert "all weights but those of head/category_pred start from step 7" in caplog.text


def test_the_same_number_of_classes_changes_nothing(trained):
    workdir = trained(*variables(1, classes=3))
    params, _ = start_from_segmenter(*variables(0, classes=3), config_of(workdir))
    assert all((x == 0).all() for x in params["head"]["category_pred"].values())


def test_embeddings_stay_fresh_where_the_checkpoint_has_none(trained):
    workdir = trained(*variables(1, classes=3))
    params, _ = start_from_segmenter(*variables(0, classes=1, embedding=5), config_of(workdir))
    assert (params["head"]["embedding_pred"]["kernel"] == 0).all()
    workdir = trained(*variables(1, classes=3, embedding=5))
    params, _ = start_from_segmenter(*variables(0, classes=1, embedding=5), config_of(workdir))
    assert (params["head"]["embedding_pred"]["kernel"] == 1).all()


def test_the_moving_average_is_what_passes(trained):
    params, stats = variables(1, classes=1)
    workdir = trained(params, stats, ema_params=variables(2, classes=1)[0])
    params, _ = start_from_segmenter(*variables(0, classes=3), config_of(workdir))
    assert (params["backbone"]["conv1"]["kernel"] == 2).all()


def test_another_network_is_refused(trained):
    workdir = trained(*variables(1, classes=1, width=8))
    with pytest.raises(InputError, match="3 leaves differ, the first .*bn1/mean .8,. in it"):
        start_from_segmenter(*variables(0, classes=1), config_of(workdir))


def test_other_conventions_are_refused(trained):
    workdir = trained(*variables(1, classes=1))
    spec = "configs/freesolo.py:finetune_tiny"
    config = config_of(workdir, spec, "--config.model.pixel_std=1,1,1")
    with pytest.raises(InputError, match="model.pixel_std"):
        start_from_segmenter(*variables(0, classes=1), config)


def test_a_pretraining_run_is_no_segmenter(trained):
    workdir = trained(*variables(1, classes=1), config=load_config("configs/densecl.py:tiny"))
    with pytest.raises(InputError, match="is of a densecl run and no segmenter"):
        start_from_segmenter(*variables(0, classes=1), config_of(workdir))

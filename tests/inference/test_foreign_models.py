"""From a PyTorch file to a model and to the start of a training run."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from helpers import foreign_states as foreign

from solojax.config import apply_overrides, base_config
from solojax.errors import InputError
from solojax.inference.foreign_models import implied_config, load_foreign, start_from_backbone
from solojax.interop.load import open_checkpoint
from solojax.interop.safetensors_file import write_safetensors
from solojax.interop.trees import flatten

HEAD = {"c": 32, "convs": 1, "classes": 2, "grids": (4, 3, 2, 2, 1)}


def written(path, shapes):
    write_safetensors(path, foreign.fill(shapes))
    return path


@pytest.mark.parametrize("kind", ["solo", "decoupled", "decoupled_light"])
def test_the_file_alone_makes_the_model(tmp_path, kind):
    path = written(tmp_path / "a.safetensors", foreign.openmmlab(kind, head=HEAD, width=2))
    model = load_foreign(path)
    assert model.config.model.head.kind == kind
    assert model.config.model.grid.num_grids == (4, 3, 2, 2, 1)
    assert model.config.model.num_classes == 2 and model.category_ids == (1, 2)
    assert model.short_side == (512 if kind == "decoupled_light" else 800)
    ours, file = flatten(model.variables), flatten(open_checkpoint(path).variables)
    assert ours.keys() == file.keys()
    for leaf in ours:
        np.testing.assert_array_equal(ours[leaf], file[leaf])


def test_deformable_resnexts(tmp_path):
    """Every leaf of the network has a tensor in the file, and the other way round."""
    head = {"c": 32, "convs": 2, "classes": 3, "offsets": 18}
    body = {"depth": 50, "width": 4, "group_width": 2, "offsets": 27}
    path = written(tmp_path / "x.safetensors", foreign.openmmlab("solov2", head=head, **body))
    model = load_foreign(path).config.model
    assert (model.backbone.groups, model.backbone.base_width) == (4, 32)
    assert (model.backbone.deformable, model.head.deformable) == ("v2", "v1")
    assert model.mask_features.deformable == "none"


def test_inference_settings_may_change_and_the_network_may_not(tmp_path):
    path = written(tmp_path / "a.safetensors", foreign.openmmlab("solo", head=HEAD, width=2))

    def change(*overrides):
        def apply(config):
            apply_overrides(config, overrides)
            return config

        return apply

    assert load_foreign(path, config=change("--config.evaluation.short_side=96")).short_side == 96
    with pytest.raises(InputError, match="--config.model.head.num_convs=1"):
        load_foreign(path, config=change("--config.model.head.num_convs=2"))


def test_networks_that_this_version_has_not(tmp_path):
    path = written(tmp_path / "a.safetensors", foreign.openmmlab("solo", head=HEAD, width=2))
    found = open_checkpoint(path)
    other = dataclasses.replace(found, architecture=found.architecture | {"model.novelty": 3})
    with pytest.raises(InputError, match="needs model.novelty=3"):
        implied_config(other)
    odd = dataclasses.replace(found, architecture=found.architecture | {"model.head.channels": 5})
    with pytest.raises(InputError, match="a.safetensors.*model.head.channels"):
        implied_config(odd)


def test_a_run_starts_from_a_backbone(tmp_path):
    shapes = foreign.resnet(width=2)
    path = written(tmp_path / "r18.safetensors", shapes)
    config = base_config()
    config.model.backbone.depth, config.model.backbone.width = 18, 2
    config.model.backbone.checkpoint = str(path)
    loaded = open_checkpoint(path).variables
    fresh = {
        name: {"backbone": {}, "head": {"kernel": np.ones(2)}} for name in ("params", "batch_stats")
    }
    for name, tree in fresh.items():
        for leaf_path, leaf in flatten(loaded[name]["backbone"]).items():
            group = tree["backbone"]
            for part in leaf_path[:-1]:
                group = group.setdefault(part, {})
            group[leaf_path[-1]] = np.zeros_like(leaf)
    offset = {"kernel": np.zeros(3)}  # of a deformable convolution, which the file lacks
    fresh["params"]["backbone"]["layer2_0"]["conv2"]["offset"] = offset
    params, batch_stats = start_from_backbone(fresh["params"], fresh["batch_stats"], config)
    assert params["head"] is fresh["params"]["head"]
    ours = flatten({"params": params["backbone"], "batch_stats": batch_stats["backbone"]})
    assert ours.pop(("params", "layer2_0", "conv2", "offset", "kernel")) is offset["kernel"]
    file = flatten({name: loaded[name]["backbone"] for name in ("params", "batch_stats")})
    assert ours.keys() == file.keys()
    for leaf_path, leaf in file.items():
        np.testing.assert_array_equal(ours[leaf_path], leaf)
    config.model.backbone.depth = 34
    with pytest.raises(InputError, match="--config.model.backbone.depth=18"):
        start_from_backbone(fresh["params"], fresh["batch_stats"], config)

"""A small model on made-up 160x160 images: from nothing to recognisable masks in minutes.

    solojax demo --workdir runs/demo
    solojax demo --workdir runs/demo_solo --config configs/quickstart.py:solo

makes the images, trains with this config, evaluates and draws the results. Meant for two CPU cores.
Mask AP and AP50 on 100 images never seen (thresholding and connected components: 0.172):

| head | steps | seconds a step | AP | AP50 |
| --- | --- | --- | --- | --- |
| solov2 (default) | 1000 | 0.30 | 0.640 | 0.903 |
| decoupled | 2000 | 0.54 | 0.623 | 0.922 |
| solo | 4000 | 0.41 | 0.680 | 0.958 |

The heads with masks by level learn more slowly, solo from the objects of a cell alone. AdamW with a
cosine instead of the published SGD: it gets further in so few steps.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from solojax.config import base_config, parse_variants

_STEPS = {"solov2": 1000, "solo": 4000, "decoupled": 2000}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config with the head named in `arg`."""
    head = parse_variants(arg, {"head": tuple(_STEPS)})["head"]
    config = base_config()
    config.model.backbone.depth = 18
    config.model.backbone.width = 32
    config.model.backbone.norm = "batch_norm"
    config.model.backbone.frozen_stages = -1
    config.model.neck.channels = 64
    config.model.head.kind = head
    config.model.head.num_convs = 2
    config.model.head.channels = 64
    config.model.mask_features.channels = 32
    config.model.mask_features.out_channels = 64
    config.model.grid.num_grids = (16, 14, 10, 7, 5)
    config.model.grid.scale_ranges = ((1, 24), (16, 40), (28, 72), (56, 112), (88, 320))
    config.model.max_positives = 128

    config.data.root = "data/synthetic"
    config.data.train_annotations = "train.json"
    config.data.train_images = "train"
    config.data.val_annotations = "val.json"
    config.data.val_images = "val"
    config.data.short_sides = (160,)
    config.data.long_side = 160
    config.data.max_instances = 16
    config.evaluation.short_side = 160
    config.evaluation.long_side = 160
    config.evaluation.batch_size = 4
    config.evaluation.max_candidates = 500

    config.train.batch_size = 8
    config.train.total_steps = _STEPS[head]
    config.train.epochs = None
    config.train.log_every = 25
    # The demo evaluates when training is over.
    config.train.eval_every = 0
    config.train.checkpoint_every = 500
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 0.003
    config.optimizer.reference_batch = 8
    config.optimizer.weight_decay = 0.05
    config.optimizer.warmup_steps = 50
    config.optimizer.schedule = "cosine"
    if head != "solov2":
        _use_masks_by_level(config)
    return config


def _use_masks_by_level(config: ConfigDict) -> None:
    """Suits the config to SOLO, whose masks are as coarse as the level that predicts them.

    On images so small the ranges of SOLOv2 would leave an object a few mask pixels. A cell's mask
    is learned from the objects in that cell alone, so that fewer cells learn faster. And the maps
    of all cells are made of the mask tower's channels.
    """
    config.model.grid.num_grids = (10, 8, 6, 5, 4)
    config.model.grid.scale_ranges = ((1, 32), (24, 96), (80, 160), (128, 240), (200, 320))
    config.model.head.num_convs = 3
    config.model.head.channels = 128

"""A small SOLOv2 on made-up 224x224 images: from nothing to recognisable masks in minutes.

    solojax demo --workdir runs/demo

makes the images, trains with this config, evaluates and draws the results. Meant for two CPU cores.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from solojax.config import base_config


def get_config() -> ConfigDict:
    """Returns the config; it has no variants."""
    config = base_config()
    config.model.backbone.depth = 18
    config.model.backbone.norm = "batch_norm"
    config.model.backbone.frozen_stages = -1
    config.model.neck.channels = 64
    config.model.head.num_convs = 2
    config.model.head.channels = 64
    config.model.mask_features.channels = 32
    config.model.mask_features.out_channels = 64
    # Everything about the geometry at half the size of the published light models' 448.
    config.model.grid.num_grids = (20, 18, 12, 8, 6)
    config.model.grid.scale_ranges = ((1, 28), (14, 56), (28, 112), (56, 224), (112, 448))
    config.model.max_positives = 128

    config.data.root = "data/synthetic"
    config.data.train_annotations = "train.json"
    config.data.train_images = "train"
    config.data.val_annotations = "val.json"
    config.data.val_images = "val"
    config.data.short_sides = (224,)
    config.data.long_side = 224
    config.data.max_instances = 16
    config.evaluation.short_side = 224
    config.evaluation.long_side = 224
    config.evaluation.max_candidates = 500

    config.train.batch_size = 8
    config.train.total_steps = 400
    config.train.epochs = None
    config.train.log_every = 20
    config.train.eval_every = 200
    config.train.checkpoint_every = 200
    config.optimizer.reference_batch = 8
    config.optimizer.warmup_steps = 50
    return config

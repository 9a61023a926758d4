"""The demo's config, shrunk: `solojax train --config tests/helpers/tiny_config.py`."""

from __future__ import annotations

from ml_collections import ConfigDict

from solojax.config import load_config, parse_variants

TOTAL_STEPS = 12


def get_config(arg: str = "") -> ConfigDict:
    """The demo's config, shrunk; `data.root` is to be set.

    The variant "nano" is for `helpers.tiny_run.use_nano_network`: fewer levels compile faster.
    """
    config = shrink(load_config("configs/quickstart.py"))
    config.train.total_steps = TOTAL_STEPS
    config.train.log_every = 1
    config.train.eval_every = TOTAL_STEPS
    config.train.checkpoint_every = TOTAL_STEPS
    # With steps of the schedule in it, the program would be another for every length of a run.
    config.optimizer.schedule = "constant"
    # What finds something within a few steps, whatever the demo learns with.
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.01
    config.optimizer.weight_decay = 1e-4
    if parse_variants(arg, {"network": ("resnet", "nano")})["network"] == "nano":
        config.model.grid.num_grids = (8, 4)
        config.model.grid.strides = (8, 16)
        config.model.grid.scale_ranges = ((1, 24), (16, 96))
    return config


def shrink(config: ConfigDict) -> ConfigDict:
    """Makes any shipped config small and fit for `write_data`; its kind stays what it was."""
    config = config.copy_and_resolve_references()
    config.model.backbone.width = 32 if config.model.backbone.norm == "group_norm" else 16
    config.model.neck.channels = 32
    config.model.head.num_convs = 1
    config.model.head.channels = 32
    config.model.mask_features.channels = 32
    config.model.mask_features.out_channels = 32
    config.model.grid.num_grids = (8, 6, 4, 3, 2)
    config.model.grid.scale_ranges = ((1, 16), (12, 24), (20, 32), (24, 48), (40, 96))
    config.model.max_positives = 32
    config.data.train_annotations = "train.json"
    config.data.train_images = "images"
    config.data.val_annotations = "val.json"
    config.data.val_images = "images"
    config.data.short_sides = (64,)
    config.data.long_side = 64
    config.data.max_instances = 4
    config.data.min_mask_area = 1
    config.data.threads = 2
    config.train.batch_size = 4
    config.optimizer.reference_batch = None
    config.optimizer.warmup_steps = 0
    config.evaluation.short_side = 64
    config.evaluation.long_side = 64
    config.evaluation.batch_size = 4
    # A few steps leave scores near the prior of 0.01.
    config.evaluation.score_threshold = 0.001
    config.evaluation.update_threshold = 0.001
    config.evaluation.max_candidates = 64
    config.evaluation.nms_pre = 64
    config.evaluation.max_detections = 20
    return config

r"""SOLOv2 as published, and complete recipes for two small data sets of photos.

    solojax train --config configs/solov2.py:r101,3x --workdir runs/r101 \
        --config.data.root=data/coco --config.model.backbone.checkpoint=resnet101.pth

Backbones r18, r34, r50 (default), r101, x101 (ResNeXt-101-64x4d); schedules 3x (36 epochs, short
side 640 to 800; default), 1x (12 epochs, short side 800), 6x (72 epochs); heads full (default),
light448 and light512 (Table 4.7); convolutions plain (default) or dcn (deformable in the backbone
from C3 on, in the towers and in the mask features; of a light head in the towers' last layer
alone). The default follows the published training: ImageNet weights with frozen statistics, stem
and first stage frozen, batch 16 at learning rate 0.01 (another batch size scales the rate). Without
`model.backbone.checkpoint` the frozen statistics are those of random weights: train with
`--config.model.backbone.norm=batch_norm --config.model.backbone.frozen_stages=-1` then.

COCO, mask AP on val2017 of the published checkpoints, with milliseconds an image on a V100, to
compare with (this code has not been trained on COCO by its authors):

    variant              mask AP  ms
    r50,1x               34.8     54
    r50,3x               37.5
    r101,3x              39.1     66
    dcn,r101,3x          41.4     97
    dcn,x101,3x          42.4     169
    light448,r18,3x      29.6     19
    light448,r34,3x      32.0     20
    light448,r50,3x      33.7     24
    light512,dcn,r50,3x  36.4     34

Meant for eight accelerators of 11 GB or more with two images each, the published setting. COCO is
expected as it is unpacked: annotations/instances_{train,val}2017.json, train2017/ and val2017/ in
data.root. Ablations are overrides: thesis Table 4.3 is model.mask_features.kernel_size and
out_channels, Table 4.4 model.head.num_coordinate_convs=0 and model.mask_features.coordinates=False,
Table 4.5 model.mask_features.kind=separate, Table 4.6 evaluation.nms.

Recipes for small data sets, which choose everything and stand alone. Both start from random weights
and were meant for two CPU cores:

    mushrooms    312 tiles of 320x320 with 10.7 thousand masks of one class; 800 steps of batch 4.
                 The same recipe in AdelaiDet takes 43 minutes (3.2 s a step) and reaches mask AP
                 42.3, AP50 76.4, AP75 40.7 on val.json; here the mean of three seeds is 45.3,
                 77.7, 46.3.
    fruits_nuts  14 photos of 800x600, 3 classes; 700 steps of batch 2 that learn them by heart.

Both expect train.json, val.json and images/ in data.root.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from solojax.config import SCHEDULES, base_config, parse_variants, published_config

_BACKBONES = ("r50", "r18", "r34", "r101", "x101")
# Size, blocks of a tower, channels of the towers and of the mask features, inside and out.
_HEADS = {
    "full": ("800", 4, 512, 128, 256),
    "light448": ("448", 2, 256, 128, 128),
    "light512": ("512", 3, 256, 128, 128),
}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config of the variants named in `arg`, with commas between them."""
    groups = {
        "backbone": _BACKBONES,
        "schedule": ("3x", *(name for name in SCHEDULES if name != "3x")),
        "head": tuple(_HEADS),
        "convolution": ("plain", "dcn"),
    }
    chosen = parse_variants(arg, groups, recipes=tuple(_RECIPES))
    if chosen["recipe"]:
        return _RECIPES[chosen["recipe"]]()
    return _coco(**{group: chosen[group] for group in groups})


def _coco(backbone: str, schedule: str, head: str, convolution: str) -> ConfigDict:
    size, num_convs, channels, inner_channels, mask_channels = _HEADS[head]
    config = published_config(backbone, schedule, size)
    config.model.head.num_convs = num_convs
    config.model.head.channels = channels
    config.model.mask_features.channels = inner_channels
    config.model.mask_features.out_channels = mask_channels
    if convolution == "dcn":
        # The light model has plain deformable convolutions, and none in its mask features.
        version = "v2" if head == "full" else "v1"
        config.model.backbone.deformable = config.model.head.deformable = version
        if head == "full":
            config.model.head.deformable_convs = num_convs
            config.model.mask_features.deformable = version
            config.model.mask_features.deformable_pred = True
    return config


def _mushrooms() -> ConfigDict:
    config = _small()
    config.data.root = "data/mushrooms"
    config.data.short_sides = (384, 416, 448, 480)
    config.data.long_side = 480
    config.data.min_mask_area = 4
    config.evaluation.short_side = 448
    config.evaluation.long_side = 448

    config.train.batch_size = 4
    config.train.total_steps = 800
    config.train.checkpoint_every = 200
    config.train.eval_every = 400
    config.optimizer.reference_batch = 4
    config.optimizer.warmup_steps = 100
    config.optimizer.milestones = (0.75, 0.92)
    return config


def _fruits_nuts() -> ConfigDict:
    config = _small()
    config.model.max_positives = 192
    config.data.root = "data/fruits_nuts"
    config.data.short_sides = (384,)
    config.data.long_side = 512
    config.data.flip_probability = 0.0
    config.data.max_instances = 32
    config.evaluation.short_side = 384
    config.evaluation.long_side = 512

    config.train.batch_size = 2
    config.train.total_steps = 700
    config.train.checkpoint_every = 200
    config.train.eval_every = 200
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 0.002
    config.optimizer.reference_batch = 2
    config.optimizer.weight_decay = 0.01
    config.optimizer.warmup_steps = 50
    config.optimizer.schedule = "cosine"
    return config


def _small() -> ConfigDict:
    """A narrow R18 that learns from random weights on a few hundred photos."""
    config = base_config()
    config.model.backbone.depth = 18
    config.model.backbone.norm = "batch_norm"
    config.model.backbone.frozen_stages = -1
    config.model.neck.channels = 128
    config.model.head.num_convs = 2
    config.model.head.channels = 128
    config.model.mask_features.channels = 64
    config.model.mask_features.out_channels = 128
    config.model.grid.scale_ranges = ((1, 48), (24, 96), (48, 192), (96, 384), (192, 2048))

    config.data.train_annotations = "train.json"
    config.data.train_images = "images"
    config.data.val_annotations = "val.json"
    config.data.val_images = "images"

    config.train.epochs = None
    config.train.log_every = 20
    return config


_RECIPES = {"mushrooms": _mushrooms, "fruits_nuts": _fruits_nuts}

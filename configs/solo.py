r"""SOLO and Decoupled SOLO as published.

    solojax train --config configs/solo.py:decoupled,r101,3x --workdir runs/decoupled_r101 \
        --config.data.root=data/coco --config.model.backbone.checkpoint=resnet101.pth

Heads solo (default), decoupled, light (Decoupled SOLO light, short side 512); backbones r50
(default), r101; schedules 3x (default), 1x, 6x; convolutions plain (default) or dcn (deformable
ones in the stages from C3 on, and at the end of a light head's towers); images large (short side
800, default) or 512 (SOLO-512 of Table 3.6). Everything else is as in configs/solov2.py, but
warm-up starts at a third of the rate, and masks are shrunk after padding and dropped below 10
pixels, as the published code of SOLO does.

COCO, mask AP of the published models, to compare with (this code has not been trained on COCO by
its authors). Of the published checkpoints on val2017, with milliseconds an image on a V100:

    variant             mask AP  ms
    r50,1x              32.9     77
    r50,3x              35.8
    r101,3x             37.1     86
    decoupled,r50,1x    33.9     85
    decoupled,r50,3x    36.4
    decoupled,r101,3x   37.9     92
    light,r50,3x        33.0     29
    light,dcn,r50,3x    35.0     36

Of the thesis, with 72 epochs: r50,6x 36.8, r101,6x 37.8, decoupled,r101,6x 38.4 and
decoupled,dcn,r101,6x 40.5 on test-dev (Table 3.1); 512,r50,6x 34.2 and 512,r101,6x 35.0 on
val2017 (Table 3.6).

Meant for eight accelerators of 11 GB or more with two images each, the published setting. Ablations
are overrides: thesis Table 3.2 is `--config.model.neck.kind=single_scale` with one level in
model.grid, Table 3.3 model.head.num_coordinate_convs, Table 3.4 loss.mask and loss.mask_weight,
Table 3.5 model.head.num_convs, and the alignment of section 3.3.3 model.head.align.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from solojax.config import SCHEDULES, parse_variants, published_config
from solojax.errors import InputError

# Kind, blocks of a tower.
_HEADS = {"solo": ("solo", 7), "decoupled": ("decoupled", 7), "light": ("decoupled_light", 4)}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config of the variants named in `arg`, with commas between them."""
    chosen = parse_variants(
        arg,
        {
            "head": tuple(_HEADS),
            "backbone": ("r50", "r101"),
            "schedule": ("3x", *(name for name in SCHEDULES if name != "3x")),
            "convolution": ("plain", "dcn"),
            "size": ("large", "512"),
        },
    )
    light = chosen["head"] == "light"
    if light and chosen["size"] == "512":
        raise InputError("config variant 'light' is for short side 512 already: leave '512' out")
    size = "512" if light else "800"
    config = published_config(chosen["backbone"], chosen["schedule"], size)
    if chosen["size"] == "512" and not light:
        config.data.short_sides = (512,)
        config.data.long_side = config.evaluation.long_side = 853
        config.evaluation.short_side = 512
    config.model.head.kind, config.model.head.num_convs = _HEADS[chosen["head"]]
    config.model.head.channels = 256
    if chosen["convolution"] == "dcn":
        config.model.backbone.deformable = "v1"
        # The light head ends its towers in a deformable layer, the others have none.
        config.model.head.deformable = "v1" if light else "none"
    config.data.pad_before_shrinking = True
    config.data.min_mask_area = 10
    config.optimizer.warmup_factor = 1 / 3
    return config

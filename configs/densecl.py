r"""DenseCL, and MoCo-v2 as its zero: pre-training without labels (thesis chapter 5).

    solojax train --config configs/densecl.py:imagenet --workdir runs/densecl \
        --config.data.root=data/imagenet
    solojax train --config configs/densecl.py:coco,moco --workdir runs/moco \
        --config.data.root=data/coco
    solojax train --config configs/finetune.py --workdir runs/solov2 \
        --config.model.backbone.checkpoint=densecl.pth

Data imagenet (default; 1.28M images in class folders below train/, whose names are not used; 200
epochs) or coco (118k images of train2017/; 800 epochs) or tiny (a folder of small photos, an R18 of
half the width at 96x96, for a CPU). Methods densecl (default) or moco (the global loss alone, no
dense head).

The published runs had eight GPUs of 32 images each: batch 256, BatchNorm over groups of 32 images
whatever the number of devices. Another batch size scales the learning rate with it. Published, on
PASCAL VOC detection (Faster R-CNN, C4, trainval07+12, test 07), AP:

    pre-training   MoCo-v2   DenseCL
    COCO           54.7      56.7
    ImageNet       57.0      58.7

and mask AP of SOLOv2 1x on COCO from ImageNet: 35.2 and 35.7. This code has not been trained on
ImageNet or COCO by its authors.

Ablations, all on COCO, are overrides: Table 5.6 contrast.dense_weight (with
contrast.dense_warmup_steps=10000 where it is 1), Table 5.7 contrast.correspondence, Table 5.8
model.grid=(S,S), Table 5.9 train.epochs, and of section 5.3.3 contrast.negatives=sampled.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from solojax.config import contrastive_config, parse_variants


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config of the variants named in `arg`, with commas between them."""
    chosen = parse_variants(
        arg, {"data": ("imagenet", "coco", "tiny"), "method": ("densecl", "moco")}
    )
    config = contrastive_config()
    _CHANGES[chosen["data"]](config)
    if chosen["method"] == "moco":
        config.model.dense = False
        config.contrast.dense_weight = 0.0
    return config


def _imagenet(config: ConfigDict) -> None:
    config.train.checkpoint_every = 5000


def _coco(config: ConfigDict) -> None:
    config.data.root = "data/coco"
    config.data.train_images = "train2017"
    config.train.epochs = 800
    config.train.checkpoint_every = 5000
    config.optimizer.learning_rate = 0.3


def _tiny(config: ConfigDict) -> None:
    config.data.root = "data/photos"
    config.data.train_images = ""
    config.views.size = (96, 96)
    # In pixels: what 2 is to a view of 224.
    config.views.blur_sigma = (0.1, 0.9)
    config.model.backbone.depth = 18
    config.model.backbone.width = 32
    config.model.backbone.norm_group_images = 32
    config.model.hidden_channels = 256
    config.contrast.queue_length = 2048
    config.contrast.momentum = 0.99
    # Of the 3x3 cells of such a view all but one touch the border, so that a cell's place is easy
    # to tell, and no mean of cells looks like any: pooled negatives are told apart by the place
    # alone, and the dense head learns nothing of what is seen.
    config.contrast.negatives = "sampled"
    config.train.batch_size = 64
    config.train.epochs = None
    config.train.total_steps = 1000
    config.train.log_every = 20
    config.train.checkpoint_every = 500
    config.optimizer.learning_rate = 0.06
    config.optimizer.reference_batch = 64


_CHANGES = {"imagenet": _imagenet, "coco": _coco, "tiny": _tiny}

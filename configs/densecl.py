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
whatever the number of devices. Another batch size scales the learning rate with it; for a large
one let the rate rise slowly at the start, by optimizer.warmup_steps, such as 10 epochs at batch
4,096 (3130 steps on ImageNet). Published, on PASCAL VOC detection (Faster R-CNN, C4, trainval07+12,
test 07), AP:

    pre-training   MoCo-v2   DenseCL
    COCO           54.7      56.7
    ImageNet       57.0      58.7

and mask AP of SOLOv2 1x on COCO from ImageNet: 35.2 and 35.7. This code has not been trained on
ImageNet or COCO by its authors.

tiny has been run on 3,068 photos of clothing with short sides of 192 pixels (1000 steps of 64, 26
to 28 minutes of one CPU core; seed 0). Accuracy in ten classes, of a linear SVM and of 20 nearest
neighbours on features of 96x96 pixels, and mutual matches between two views of 192x192 whose
similarity is 0.9 or more:

    weights    SVM    neighbours  matches
    untrained  0.406  0.387       18.9 (between equal places of both views, right or wrong)
    MoCo-v2    0.495  0.355       2.6
    DenseCL    0.489  0.301       5.4

SOLOv2 of its width (configs/solov2.py:mushrooms, 200 steps): AP 0.108 from DenseCL, 0.001 from
random weights.

tiny,close is for small photos of many small objects, some hundred of them: views of 192x192 from a
tenth to six tenths of a photo, 600 steps of 16, 7 minutes of two cores. What is found with it is in
configs/freesolo.py.

Ablations, all on COCO, are overrides: Table 5.6 contrast.dense_weight (with
contrast.dense_warmup_steps=10000 where it is 1), Table 5.7 contrast.correspondence, Table 5.8
model.grid=(S,S), Table 5.9 train.epochs, and of section 5.3.3 contrast.negatives=sampled.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from solojax.config import contrastive_config, parse_variants
from solojax.errors import InputError


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config of the variants named in `arg`, with commas between them."""
    chosen = parse_variants(
        arg,
        {
            "data": ("imagenet", "coco", "tiny"),
            "method": ("densecl", "moco"),
            "views": ("whole", "close"),
        },
    )
    config = contrastive_config()
    _CHANGES[chosen["data"]](config)
    if chosen["views"] == "close":
        if chosen["data"] != "tiny":
            raise InputError("the variant close is for tiny: write tiny,close")
        _look_close(config)
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
    # All but one of the 3x3 cells of such a view touch the border: a cell's place is easy to tell,
    # and no mean of cells looks like any. Pooled negatives are told apart by the place alone, and
    # the dense head learns nothing of what is seen.
    config.contrast.negatives = "sampled"
    config.train.batch_size = 64
    config.train.epochs = None
    config.train.total_steps = 1000
    config.train.log_every = 20
    config.train.checkpoint_every = 500
    config.optimizer.learning_rate = 0.06
    config.optimizer.reference_batch = 64


def _look_close(config: ConfigDict) -> None:
    """For small photos of many small objects, some hundred of them; see above."""
    config.views.size, config.views.scale = (192, 192), (0.1, 0.6)
    config.views.blur_sigma = (0.1, 1.7)
    config.contrast.queue_length = 256
    config.model.backbone.norm_group_images = 8
    config.train.batch_size = config.optimizer.reference_batch = 16
    config.train.total_steps = 600


_CHANGES = {"imagenet": _imagenet, "coco": _coco, "tiny": _tiny}

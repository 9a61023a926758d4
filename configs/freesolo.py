r"""FreeSOLO: instance segmentation without labels (thesis chapter 6), and fine-tuning from it.

    solojax free-mask --checkpoint densecl_r50.pth --images data/coco/unlabeled --output masks.json
    solojax train --config configs/freesolo.py --workdir runs/freesolo \
        --config.data.root=data/coco --config.data.train_images=unlabeled \
        --config.data.train_annotations=$PWD/masks.json \
        --config.model.backbone.checkpoint=densecl_r50.pth
    solojax free-solo --config configs/freesolo.py:tiny --images photos/ --workdir runs/photos

The last line does all of it, self-training included; `solojax train` is one round. Meant for eight
accelerators of 16 GB or more with two images each (30,000 steps of batch 16, the published
setting). Backbones r50 (thesis; default), r101 (the published checkpoint), tiny. The backbone's own
weights are `model.backbone.checkpoint`.

tiny is for some hundred small photos and 40 minutes of two CPU cores, all stages of `free-solo`
and the backbone of configs/densecl.py:tiny included (reckoned; tiny,many is measured). It is an
R18 of half width: 250 steps of 4 images, twice each, at short side 320. Free Mask, with the
published filters, sees nothing much smaller than its cells of 32 pixels, so photos are enlarged to
a short side of 1024, 32 cells.

tiny,many is for photos of many small objects that look alike, with configs/densecl.py:tiny,close:

    solojax free-solo --images photos/ --workdir runs/photos \
        --config configs/freesolo.py:tiny,many --pretraining configs/densecl.py:tiny,close

Free Mask searches C3 at a short side of 768 with the queries of a quarter of its resolution, takes
masks apart into connected pieces, and keeps up to 40 of an image: of a maskness of 0.7 or more,
wherever they lie (the published filter that drops the upper fifth is for photos with a sky), but
none of 0.3 of the width or wider. The average projection weighs 1 in place of 0.1, and predictions
are labels from 0.2 on. On 312 tiles of 320x320 pixels with some 34 mushrooms each, 28 minutes of
two cores (backbone 7, masks 2, trainings 7 and 8, labels and predictions 1 each; seed 0),
class-agnostic, on 36 tiles of other photos:

    masks of              AP     AP50   AR100
    Free Mask, untrained  0.035  0.080  0.050
    Free Mask             0.044  0.098  0.065
    the first training    0.094  0.256  0.166
    self-training         0.096  0.260  0.169

With the published weight of the average projection, 0.1, and without it (no_mean) masks of this
size are learned as outlines: AP50 0.000 after the first training, of boxes 0.114 and 0.109 (0.159
with 1).

Variants of Table 6.7, one of each row, the first the default; the table's AP and AP50 on val2017:

    mask losses   weak 3.3 7.9, no_mean 2.0 3.8 (without the average projection), no_max 2.6 7.1,
                  no_pairwise 2.1 6.1, full 2.4 6.2 (Dice on the whole coarse masks)
    rounds        self 3.7 8.3, no_self 3.3 7.9, self2 3.5 7.7 (two rounds); the masks alone 0.7 2.3
    queries       usual (as the other variants say: the pyramid, or many's), pyramid, scale1,
                  scale025: AR of the masks 11.5 with the pyramid, 11.3, 10.1
    embeddings    semantic, no_semantic: AP 25.6, 24.9 after fine-tuning on 10% of the images;
                  `--config.loss.semantics=release` is how the published code trains

The pre-trained backbone (AR 11.5 from DenseCL, 4.7 from MoCo-v2, 7.8 supervised) is the checkpoint
that is given. The published headline, AP 4.0 and AP50 9.8, is probably of r101. `supervised` takes
the labels of any COCO json as one class, with SOLOv2's 3x schedule (Table 6.2: AP 21.4 on UVO).
This code has not been trained on COCO by its authors.

Fine-tuning, recipes that stand alone and take all but the last classification layer:

    solojax train --config configs/freesolo.py:finetune_images5 --workdir runs/finetuned \
        --config.data.root=data/coco --config.model.checkpoint=runs/freesolo

    finetune_images5, finetune_images10  20,000 steps on a part of the images (Table 6.5)
    finetune_masks5, finetune_masks10    90,000 steps on all images, a part of the masks (Table 6.6)
    finetune_tiny                        150 steps of the tiny network, in data/photos

finetune_tiny on 5% of the mushrooms' images (16; three seeds, of the choice of images too) and,
with optimizer.learning_rate=0.0003, on 5% of their masks (seed 0), AP and AP50 on the 36 tiles. At
0.001, too high a rate for so few masks a step, the latter are 0.007 and 0.030 at most:

    start                              images5                      masks5
    random                             0.121 (+- 0.022), 0.346      0.005, 0.014
    DenseCL (the chain's backbone)     0.164 (+- 0.017), 0.432      0.009, 0.019
    FreeSOLO (the chain's round1)      0.306 (+- 0.017), 0.650      0.137, 0.390

`solojax prepare image-split` and `mask-split` write instances_train2017_images5.json and so on. AP
with R50 from supervised, MoCo-v2, DenseCL (each as model.backbone.checkpoint) and FreeSOLO: images5
18.0, 19.0, 20.0, 22.0; images10 22.3, 23.2, 23.7, 25.6; masks5 17.8, 17.2, 20.1, 29.9; masks10
25.4, 25.6, 26.1, 31.1.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from solojax.config import base_config, free_solo_config, parse_variants, published_config
from solojax.errors import InputError

# Weights of the losses: maxima, means, pairs, full masks.
_LOSSES = {
    "weak": (1.0, 0.1, 1.0, 0.0),
    "no_mean": (1.0, 0.0, 1.0, 0.0),
    "no_max": (0.0, 0.1, 1.0, 0.0),
    "no_pairwise": (1.0, 0.1, 0.0, 0.0),
    "full": (0.0, 0.0, 0.0, 3.0),
}
_ROUNDS = {"self": 1, "no_self": 0, "self2": 2}
# Usual is what the other variants say, the pyramid for most.
_SCALES = {"usual": None, "pyramid": (1.0, 0.5, 0.25), "scale1": (1.0,), "scale025": (0.25,)}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config of the variants named in `arg`, with commas between them."""
    groups = {
        "network": ("r50", "r101", "tiny"),
        "mask loss": tuple(_LOSSES),
        "number of rounds": tuple(_ROUNDS),
        "queries": tuple(_SCALES),
        "embeddings": ("semantic", "no_semantic"),
        "labels": ("free", "supervised"),
        "objects": ("few", "many"),
    }
    chosen = parse_variants(arg, groups, recipes=tuple(_RECIPES))
    if chosen["recipe"]:
        return _RECIPES[chosen["recipe"]]()
    config = free_solo_config()
    supervised = chosen["labels"] == "supervised"
    if supervised:
        _train_as_solov2(config)
    _NETWORKS[chosen["network"]](config)
    weights = _LOSSES["full" if supervised else chosen["mask loss"]]
    loss = config.loss
    (
        loss.max_projection_weight,
        loss.mean_projection_weight,
        loss.pairwise_weight,
        loss.mask_weight,
    ) = weights
    if supervised or chosen["embeddings"] == "no_semantic":
        loss.semantic_weight = 0.0
    config.self_training.rounds = 0 if supervised else _ROUNDS[chosen["number of rounds"]]
    if chosen["objects"] == "many":
        if chosen["network"] != "tiny" or supervised:
            raise InputError("the variant many is for tiny and without labels: write tiny,many")
        _many(config)
    if chosen["queries"] != "usual":
        config.free_mask.scales = _SCALES[chosen["queries"]]
    return config


def _train_as_solov2(config: ConfigDict) -> None:
    """Labels that can be trusted: the images as they are, the schedule of configs/solov2.py:3x."""
    config.strong.enabled = False
    config.data.max_instances = 100
    config.data.train_annotations = "annotations/instances_train2017.json"
    published = published_config("r50", "3x")
    config.optimizer.update(published.optimizer.to_dict())
    config.train.epochs, config.train.total_steps = published.train.epochs, None
    config.model.backbone.frozen_stages = published.model.backbone.frozen_stages
    config.model.backbone.train_norm_affine = published.model.backbone.train_norm_affine


def _r101(config: ConfigDict) -> None:
    config.model.backbone.depth = 101


def _tiny(config: ConfigDict) -> None:
    """For small photos and minutes of two CPU cores; see above."""
    _shrink(config)
    config.data.root = "data/photos"
    config.data.train_images = ""
    search = config.free_mask
    search.short_side, search.long_side, search.canvas = 1024, 1536, "buckets"
    # What is measured in pixels follows the short side, which is 640 to 800 as published.
    config.loss.ignored_bottom_rows = 4
    config.loss.pairwise_dilation = 1
    config.strong.blur_sigma = (0.1, 1.0)
    config.loss.pairwise_warmup_steps = 50


def _many(config: ConfigDict) -> None:
    """For photos of many small objects that look alike; see above."""
    search = config.free_mask
    search.stage, search.scales = 3, (0.25,)
    search.short_side, search.long_side = 768, 1152
    search.max_masks = config.self_training.max_labels = 40
    config.self_training.score_threshold = 0.2
    search.components, search.min_piece_area, search.max_width = True, 64, 0.3
    search.min_center = None
    config.data.max_instances = 80  # half of them pasted
    config.model.max_positives = 128
    # An object has few pixels of the maps in which masks are learned. With the published weight of
    # 0.1 the means are too weak for them: maxima and colours are content with outlines.
    config.loss.mean_projection_weight *= 10
    # Many objects of an image are found by low scores alone: for recall. Labels and pictures have
    # thresholds of their own, in self_training.
    config.evaluation.score_threshold, config.evaluation.update_threshold = 0.01, 0.005
    config.evaluation.max_candidates = 1000


def _shrink(config: ConfigDict) -> None:
    """The network of configs/densecl.py:tiny in a small segmenter, and a short run of it."""
    backbone = config.model.backbone
    backbone.depth, backbone.width = 18, 32
    backbone.norm, backbone.train_norm_affine, backbone.frozen_stages = "batch_norm", True, -1
    config.model.neck.channels = 64
    config.model.head.num_convs = 2
    config.model.head.channels = 64
    config.model.mask_features.channels = 32
    config.model.mask_features.out_channels = 64
    config.model.grid.num_grids = (32, 28, 18, 12, 8)
    # An object has one level, where the published ranges overlap: half as many pairs. A step's time
    # grows with the room for them: of tiles with 34 objects each, after copy-paste, 2% have more.
    config.model.grid.scale_ranges = ((1, 24), (24, 48), (48, 96), (96, 192), (192, 2048))
    config.model.max_positives = 192
    config.data.short_sides = (320,)
    config.data.long_side = 512
    config.data.canvas = config.evaluation.canvas = "buckets"
    config.evaluation.short_side = 320
    config.evaluation.long_side = 512
    config.evaluation.batch_size = 4
    config.evaluation.max_candidates = 500
    config.train.batch_size = 4
    config.train.total_steps = 250
    config.train.epochs = None
    config.train.log_every = 25
    config.train.eval_every_epochs = 0
    config.train.checkpoint_every = 125
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 0.001
    config.optimizer.reference_batch = 4
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 35.0
    config.optimizer.warmup_steps = 25
    config.optimizer.schedule = "cosine"


def _finetune(part: str, steps: int, drops: tuple[int, int]) -> ConfigDict:
    """SOLOv2 on a part of COCO's labels; no stage is frozen, norms stay as they are."""
    config = published_config("r50", "3x")
    config.data.train_annotations = f"annotations/instances_train2017_{part}.json"
    config.train.total_steps, config.train.epochs = steps, None
    config.train.checkpoint_every = 5000
    config.optimizer.milestones = tuple(drop / steps for drop in drops)
    config.optimizer.warmup_steps = 1000
    config.optimizer.clip_norm = None
    config.model.backbone.frozen_stages = -1
    config.model.backbone.train_norm_affine = False
    return config


def _finetune_tiny() -> ConfigDict:
    config = base_config()
    _shrink(config)
    config.data.root = "data/photos"
    config.data.train_annotations, config.data.train_images = "train.json", "images"
    config.data.val_annotations, config.data.val_images = "val.json", "images"
    config.train.total_steps = 150
    config.optimizer.warmup_steps = 15
    config.train.checkpoint_every = 150
    return config


_NETWORKS = {"r50": lambda config: None, "r101": _r101, "tiny": _tiny}
_SHORT, _LONG = (20_000, (12_000, 18_000)), (90_000, (60_000, 80_000))
_RECIPES = {
    "finetune_images5": lambda: _finetune("images5", *_SHORT),
    "finetune_images10": lambda: _finetune("images10", *_SHORT),
    "finetune_masks5": lambda: _finetune("masks5", *_LONG),
    "finetune_masks10": lambda: _finetune("masks10", *_LONG),
    "finetune_tiny": _finetune_tiny,
}

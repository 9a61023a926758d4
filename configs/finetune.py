r"""SOLOv2 R50 fine-tuned from a pretrained backbone, with all labels or a tenth (thesis 5.3.2).

    solojax train --config configs/finetune.py --workdir runs/finetuned \
        --config.data.root=data/coco --config.model.backbone.checkpoint=densecl.pth

What is compared is the start: one command with resnet50.pth (supervised), moco.pth and densecl.pth,
or the work directory of a run of configs/densecl.py. Stem and normalisation of the file are held
against the config, which reads RGB as torchvision does.

Labels all (default; Table 5.2) or semi10 (a tenth of the images, which `solojax prepare` chooses,
the same for everybody; Table 5.4):

    solojax prepare image-split --fraction 0.1 \
        --annotations data/coco/annotations/instances_train2017.json \
        --output data/coco/annotations/instances_train2017_images10.json

Both train for 90,000 iterations of batch 16 at learning rate 0.01, which drops after 60,000 and
80,000; short side 640 to 800. No stage is frozen and BatchNorm takes the statistics of the global
batch, as the published runs of Table 5.2 had it (there in the FPN too, and with statistics averaged
over some hundred batches at the end, which this package has not). Meant for eight accelerators of
11 GB or more with two images each. COCO val2017, mask AP, to compare with (this code has not been
trained on COCO by its authors):

    variant  supervised  MoCo-v2  DenseCL
    all      35.2        35.2     35.7
    semi10   21.8        21.8     22.6     of the thesis's Mask R-CNN; this package has SOLOv2

Fewer labels (Tables 6.5 and 6.6) are recipes of configs/freesolo.py.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from solojax.config import parse_variants, published_config

_STEPS, _DROPS = 90_000, (60_000, 80_000)
_ANNOTATIONS = {
    "all": "annotations/instances_train2017.json",
    "semi10": "annotations/instances_train2017_images10.json",
}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config of the labels named in `arg`."""
    labels = parse_variants(arg, {"labels": tuple(_ANNOTATIONS)})["labels"]
    config = published_config("r50", "3x")
    config.model.backbone.norm = "batch_norm"
    config.model.backbone.frozen_stages = -1
    config.data.train_annotations = _ANNOTATIONS[labels]
    config.train.epochs = None
    config.train.total_steps = _STEPS
    config.train.eval_every = _STEPS // 3
    config.train.checkpoint_every = 2000
    config.optimizer.milestones = tuple(drop / _STEPS for drop in _DROPS)
    config.optimizer.warmup_steps = 1000
    # AdelaiDet, with which these runs were made, clips no gradient.
    config.optimizer.clip_norm = None
    return config

"""Every key of a FreeSOLO config, its meaning and default: segmentation without labels."""

from __future__ import annotations

from ml_collections import ConfigDict

from solojax.config.base import base_config, optional
from solojax.config.contrastive import color_keys


def free_solo_config() -> ConfigDict:
    """Returns a new locked config with every key of self-supervised SOLO (thesis chapter 6).

    The keys of `base_config` with defaults of their own, and some more. Conventions as there. The
    training labels are a label file (`solojax free-mask` writes one) or any COCO json: all of its
    classes are one.
    """
    config = base_config()
    with config.unlocked():
        config.task = "free_solo"
        config.model.num_classes = 1
        # E: numbers of the embeddings that labels bring and the head predicts.
        config.model.embedding = 128
        # All stages train, norms stay as they are.
        config.model.backbone.frozen_stages = -1
        config.model.backbone.train_norm_affine = False
        _add_losses(config.loss)
        config.strong = _strong()
        config.data.train_annotations = "free_masks.json"
        # 20 of the image's own and as many pasted ones.
        config.data.max_instances = 40
        config.free_mask = _free_mask()
        config.self_training = _self_training()
        config.train.total_steps = 30_000
        config.train.epochs = None
        config.train.eval_every_epochs = 0
        config.train.best_metric = None
        config.train.checkpoint_every = 5000
        config.optimizer.learning_rate = 0.001
        config.optimizer.clip_norm = None
        config.optimizer.warmup_steps = 1000
        config.optimizer.schedule = "constant"
        config.optimizer.milestones = ()
        config.evaluation.class_agnostic = True
    return config.lock()


def _add_losses(loss: ConfigDict) -> None:
    # Of `loss.mask` on full masks, for comparison.
    loss.mask_weight = 0.0
    # Of the Dice between shadows of masks on either axis: maxima, and means (alpha).
    loss.max_projection_weight = 1.0
    loss.mean_projection_weight = 0.1
    # Added to the sum of both squared sums of these.
    loss.projection_epsilon = 1e-5
    # Of the affinity of neighbours of similar colour; it grows from 0 over the first steps.
    loss.pairwise_weight = 1.0
    loss.pairwise_warmup_steps = 1000
    # Distance of the neighbours, in pixels of the masks; similarity from which they count.
    loss.pairwise_dilation = 2
    loss.color_threshold = 0.3
    # Rows at the bottom of the image file whose colours count for nothing.
    loss.ignored_bottom_rows = 10
    # Of 1 - cosine of predicted and given embeddings (beta). 0: labels need no embeddings.
    loss.semantic_weight = 4.0
    # thesis | release, whose training throws the semantic loss away.
    loss.semantics = "thesis"


def _strong() -> ConfigDict:
    strong = ConfigDict()
    # Whether every image is there twice, strongly and weakly augmented; False: weakly alone.
    strong.enabled = True
    # Whether the strong one gets objects of its neighbour in the batch, which must be even then.
    strong.paste = True
    strong.update(color_keys())
    return strong


def _free_mask() -> ConfigDict:
    """What `solojax free-solo` searches with; `solojax free-mask` has flags instead."""
    free_mask = ConfigDict()
    # As data.short_sides and data.long_side.
    free_mask.short_side = 800
    free_mask.long_side = 1333
    # As data.canvas.
    free_mask.canvas = "multiple_of_32"
    # thesis | release, which takes padding for a part of the image.
    free_mask.semantics = "thesis"
    # n of the backbone's map Cn that is searched, with cells of 2^n pixels; the last is published.
    free_mask.stage = 5
    # Of the maps that queries come from. An earlier map has four times the cells, and 16 times the
    # memory goes to its search: C3 and C2 want fewer queries, scales = (0.25,).
    free_mask.scales = (1.0, 0.5, 0.25)
    # From which on a cell belongs to a mask.
    free_mask.mask_threshold = 0.5
    # Masks of an image.
    free_mask.max_masks = 20
    # Filters, None for none: least score; least height of the box's centre and largest width of
    # the box, as fractions of the image (the last two are not in the thesis).
    free_mask.min_maskness = optional(float, 0.7)
    free_mask.min_center = optional(float, 0.2)
    free_mask.max_width = optional(float, 0.95)
    # Whether each connected piece of a mask is an object of its own, for photos of many objects
    # that look alike (not in the thesis), and from how many pixels of the file on. Scores and
    # filters are of the pieces; of two with an IoU above 0.5 the lower goes; max_masks remain.
    free_mask.components = False
    free_mask.min_piece_area = 0
    return free_mask


def _self_training() -> ConfigDict:
    self_training = ConfigDict()
    # Further trainings, each from the same start on what the one before predicts.
    self_training.rounds = 1
    # Predictions become labels from this score on, the best so many of an image, unless they are
    # as wide as this fraction of it.
    self_training.score_threshold = 0.3
    # Least score of what the pictures at the end show; None: that of labels.
    self_training.picture_threshold = optional(float)
    self_training.max_labels = 20
    self_training.max_width = 0.95
    return self_training

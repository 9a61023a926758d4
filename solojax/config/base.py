"""Every key of an instance segmentation config, its meaning and default: SOLOv2 R50 on COCO."""

from __future__ import annotations

from ml_collections import ConfigDict, FieldReference


def optional(kind: type, value=None) -> FieldReference:
    """A key that may be None (not set); any other value must be of `kind`."""
    return FieldReference(value, field_type=kind)


def base_config() -> ConfigDict:
    """Returns a new locked config with every key of instance segmentation.

    A file under configs/ changes what it needs and adds none. Sizes are in pixels, tuples of two
    are (height, width) unless said otherwise, and None, where a key allows it, means not set.
    """
    config = ConfigDict()
    # What is trained; it decides which keys there are: instance_segmentation (these) | free_solo
    # (these and those of config/free_solo.py) | densecl (those of config/contrastive.py).
    config.task = "instance_segmentation"
    # Of the weights, the order of the images and everything drawn at random.
    config.seed = 0
    config.model = _model()
    config.loss = _loss()
    config.data = _data()
    config.train = train_keys()
    config.optimizer = optimizer_keys()
    config.evaluation = _evaluation()
    return config.lock()


def _model() -> ConfigDict:
    model = ConfigDict()
    # K. None: as many as the training annotations name.
    model.num_classes = optional(int)
    # Of the computation: float32 | bfloat16. Parameters and losses are float32 always.
    model.dtype = "float32"
    # Where the published code and the thesis part, whom the network follows: release | thesis.
    # Numbers that differ (dice_epsilon, sigma) are keys of their own.
    model.semantics = "release"

    model.backbone = backbone_keys()

    model.neck = ConfigDict()
    # fpn (a pyramid) | single_scale (C3 to C5 merged at stride 8, for a grid of one level).
    model.neck.kind = "fpn"
    model.neck.channels = 256
    # P2 and up, of the FPN: 4 or more, as many as model.grid lists.
    model.neck.num_outputs = 5

    model.head = ConfigDict()
    # solov2 | solo | decoupled | decoupled_light (one mask tower for x and y).
    model.head.kind = "solov2"
    # Blocks (3x3 convolution, GroupNorm, ReLU) of every tower: category, and kernel or masks.
    model.head.num_convs = 4
    # Of the towers; a multiple of 32, the number of groups of every GroupNorm.
    model.head.channels = 512
    # First blocks of a tower that get coordinates: 0 or 1 for the kernels of SOLOv2, 0 to
    # num_convs for the masks of SOLO and Decoupled SOLO.
    model.head.num_coordinate_convs = 1
    # How category features come to the grid: interpolate | adaptive_max_pool | region_grid.
    model.head.align = "interpolate"
    # Blocks of the category tower that run before that.
    model.head.align_at = 0
    # The last deformable_convs convolutions of every tower: none | v1 | v2, as in the backbone.
    model.head.deformable = "none"
    model.head.deformable_convs = 1

    model.mask_features = ConfigDict()
    # SOLOv2 alone. unified (one map from P2 to P5) | separate (a tower for every level).
    model.mask_features.kind = "unified"
    # Blocks of a separate tower.
    model.mask_features.num_convs = 7
    # Whether the branch gets coordinates.
    model.mask_features.coordinates = True
    # Inside the branch; a multiple of 32.
    model.mask_features.channels = 128
    # E, of its output and so of the kernels; a multiple of 32.
    model.mask_features.out_channels = 256
    # Side of the predicted kernels: 1 | 3.
    model.mask_features.kernel_size = 1
    # The 3x3 convolutions of the unified branch: none | v1 | v2, as in the backbone.
    model.mask_features.deformable = "none"
    # Whether the 1x1 convolution at its end is deformable then, too.
    model.mask_features.deformable_pred = False

    # One entry per level, finest first (structures.GridSpec).
    model.grid = ConfigDict()
    # S: the level's grid has S x S cells.
    model.grid.num_grids = (40, 36, 24, 16, 12)
    # Pixels per feature cell; at inference also the mask area at 1/4 scale that must be exceeded.
    model.grid.strides = (8, 8, 16, 32, 32)
    # (low, high), both inclusive, on sqrt(box width * box height) in pixels.
    model.grid.scale_ranges = ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048))
    # Side of an object's centre region as a fraction of its box.
    model.grid.center_sigma = 0.2

    # P: (cell, object) pairs per image that the mask loss has room for. COCO images need 50 on
    # average; pairs that find no room are counted in the metrics.
    model.max_positives = 512
    # Weights of a whole segmenter to start from, but for its last classification layer: a PyTorch
    # file, or the work directory of a run. Empty: see backbone.checkpoint.
    model.checkpoint = ""
    # Per channel, RGB, on pixels in [0, 255].
    model.pixel_mean = (123.675, 116.28, 103.53)
    model.pixel_std = (58.395, 57.12, 57.375)
    return model


def backbone_keys() -> ConfigDict:
    """The backbone's keys, which every task has."""
    backbone = ConfigDict()
    # Of the ResNet: 18 | 34 | 50 | 101 | 152.
    backbone.depth = 50
    # Channels of its stem and first stage; the published networks have 64.
    backbone.width = 64
    # frozen_batch_norm (stored statistics) | batch_norm (over the global batch) | group_norm.
    backbone.norm = "frozen_batch_norm"
    # Parts that do not train: -1 none, 0 the stem, 1 the stem and the first stage, up to 4 all.
    backbone.frozen_stages = 1
    # Whether scale and shift of the norms train (outside the frozen stages).
    backbone.train_norm_affine = True
    # Where a stage halves its resolution: in the 3x3 convolution (torchvision) or, if True, in the
    # 1x1 before it (MSRA).
    backbone.stride_in_1x1 = False
    # Groups of the 3x3 convolutions, and channels of one in the first stage: 64 and 4 at depth 101
    # are ResNeXt-101-64x4d. From depth 50 on.
    backbone.groups = 1
    backbone.base_width = 64
    # The 3x3 convolutions of these stages (stage n ends in C(n + 1)): none (ordinary) | v1 | v2
    # (modulated deformable convolution). From depth 50 on.
    backbone.deformable = "none"
    backbone.deformable_stages = (2, 3, 4)
    # Backbone weights to start from: a PyTorch file, or the work directory of a run. Empty: random.
    backbone.checkpoint = ""
    return backbone


def _loss() -> ConfigDict:
    loss = ConfigDict()
    # dice | focal | bce. The thesis weighs them with 3, 20 and 10.
    loss.mask = "dice"
    loss.mask_weight = 3.0
    # Weight of a mask's pixels against those around it, with bce.
    loss.mask_positive_weight = 2.0
    loss.category_weight = 1.0
    # Of the category loss, and of the masks' with focal.
    loss.focal_alpha = 0.25
    loss.focal_gamma = 2.0
    # Added to each of Dice's two squared sums (the thesis has none: 0).
    loss.dice_epsilon = 1e-3
    # Images per group over which losses are averaged before the groups are. None: the global
    # batch; 2: the published runs, with two images per GPU.
    loss.group_images = optional(int)
    return loss


def _data() -> ConfigDict:
    data = ConfigDict()
    # Folder of the data set. The four paths below are relative to it.
    data.root = "data/coco"
    # coco (json and image files) | records (what `solojax prepare` wrote into data.root).
    data.format = "coco"
    # With records, the splits to read; with coco, the four paths.
    data.train_split = "train"
    data.val_split = "val"
    # COCO json files, and the folders in which their `file_name` entries are.
    data.train_annotations = "annotations/instances_train2017.json"
    data.train_images = "train2017"
    data.val_annotations = "annotations/instances_val2017.json"
    data.val_images = "val2017"
    # Training images are resized so that the short side is one of these, at random, unless the
    # long side would pass long_side. The aspect ratio stays.
    data.short_sides = (640, 672, 704, 736, 768, 800)
    data.long_side = 1333
    data.flip_probability = 0.5
    # How a batch's images are padded to one size: multiple_of_32 (the largest image of the batch,
    # rounded up; one compilation per size) | buckets (the smallest of `buckets` that fits).
    data.canvas = "multiple_of_32"
    # (height, width) of every canvas that training and evaluation may use with `buckets`. Empty:
    # each gets some that suit its short and long sides, upright, wide and square.
    data.buckets = ()
    # Whether a batch holds only upright or only wide images.
    data.group_by_orientation = True
    # How masks are shrunk for training: as they are (False, AdelaiDet's SOLOv2) or padded to a
    # multiple of 32 first (True, the published SOLO code). It matters where 4 (or the coarser
    # scales of SOLO and Decoupled SOLO) does not divide a side.
    data.pad_before_shrinking = False
    # N: objects per image that there is room for; objects that find none are counted.
    data.max_instances = 100
    # Objects whose mask has fewer pixels (of the resized image) do not train. 1: empty ones only.
    data.min_mask_area = 1
    # Threads that read images in a process; worker processes (0: none, threads alone); batches
    # kept ready ahead of the step.
    data.threads = 8
    data.workers = 0
    data.prefetch = 2
    return data


def train_keys() -> ConfigDict:
    """The keys about the length and the pace of a run, which every task has."""
    train = ConfigDict()
    # Images per step over all devices and processes.
    train.batch_size = 16
    # Length of the run. Set one or both: total_steps wins.
    train.total_steps = optional(int)
    train.epochs = optional(int, 36)
    # Steps between two lines of metrics. 0: never.
    train.log_every = 50
    # Steps between two evaluations, 0: never. None: eval_every_epochs decides.
    train.eval_every = optional(int)
    # Epochs between two evaluations, 0: never. Read only where eval_every is None.
    train.eval_every_epochs = 1
    # Steps between two checkpoints. 0: never.
    train.checkpoint_every = 1000
    # The newest so many are kept, and the best by best_metric (None: no best one).
    train.keep_checkpoints = 3
    train.best_metric = optional(str, "mask/AP")
    # A step goes through the network in so many parts of batch_size / accumulate_steps images:
    # less memory, the same gradient where no norm looks across images.
    train.accumulate_steps = 1
    # Decay per step of a moving average of the parameters, which is then what gets evaluated.
    train.ema_decay = optional(float)
    # What the backward pass computes anew instead of keeping it, for less memory and more time:
    # none | blocks (all inside the backbone's residual blocks) | blocks_convs (as blocks, but the
    # results of convolutions are kept: norms and ReLUs alone run again) | all (also the neck and
    # the blocks of the heads and mask features) | all_convs (as all, convolutions kept).
    train.remat = "none"
    # Whether each device keeps only its part of the optimizer's state (and of the summed gradient).
    train.shard_optimizer = False
    return train


def optimizer_keys() -> ConfigDict:
    """The optimizer's keys, which every task has."""
    optimizer = ConfigDict()
    # sgd (PyTorch's) | adamw (for runs of minutes; reads no momentum).
    optimizer.name = "sgd"
    # At a batch of reference_batch images; a run's own is learning_rate * batch_size /
    # reference_batch. reference_batch None: learning_rate as it stands.
    optimizer.learning_rate = 0.01
    optimizer.reference_batch = optional(int, 16)
    optimizer.momentum = 0.9
    # Of every parameter, norms and biases too.
    optimizer.weight_decay = 1e-4
    # Largest global norm of the gradient. None: not clipped.
    optimizer.clip_norm = optional(float, 35.0)
    # The rate rises linearly from warmup_factor times its value over the first warmup_steps.
    optimizer.warmup_steps = 500
    optimizer.warmup_factor = 0.01
    # step (times decay_factor at each milestone) | cosine (to 0) | constant.
    optimizer.schedule = "step"
    # Fractions of the run, so that a shorter run keeps the schedule's shape: 27 / 36 is the end of
    # epoch 27 of 36.
    optimizer.milestones = (27 / 36, 33 / 36)
    optimizer.decay_factor = 0.1
    return optimizer


def _evaluation() -> ConfigDict:
    evaluation = ConfigDict()
    # As data.short_sides and data.long_side.
    evaluation.short_side = 800
    evaluation.long_side = 1333
    # As data.canvas; `buckets` are those of data. The canvas changes results slightly: published
    # numbers are for multiple_of_32.
    evaluation.canvas = "multiple_of_32"
    # Images per step over all devices and processes.
    evaluation.batch_size = 1
    # The first so many images of the validation set. None: all.
    evaluation.max_images = optional(int)

    # (cell, class) pairs count as candidates above this score.
    evaluation.score_threshold = 0.1
    # M: candidates per image, best first, whose masks are computed. Those left out are counted.
    evaluation.max_candidates = 1000
    # Probability above which a pixel is foreground.
    evaluation.mask_threshold = 0.5
    # Candidates, best first by score * maskness, that enter the suppression.
    evaluation.nms_pre = 500
    # matrix | soft | hard | fast.
    evaluation.nms = "matrix"
    # Overlap from which hard and fast NMS suppress, and soft NMS with the linear kernel decays.
    evaluation.nms_threshold = 0.5
    # Decay of the score by the overlap in matrix and soft NMS: gaussian, exp(-sigma * iou^2) (the
    # thesis's exp(-iou^2 / 0.5) is sigma 2) | linear, 1 - iou.
    evaluation.kernel = "gaussian"
    evaluation.sigma = 2.0
    # Scores below this after the suppression are dropped, then all but the best max_detections.
    evaluation.update_threshold = 0.05
    evaluation.max_detections = 100

    # Average precision by faster-coco-eval (fast) or pycocotools (reference): the same numbers.
    evaluation.backend = "fast"
    # Whether classes are ignored: every object and every detection counts as one class.
    evaluation.class_agnostic = False
    return evaluation

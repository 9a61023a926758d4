"""Every key of a contrastive pre-training config, its meaning and default: DenseCL on ImageNet."""

from __future__ import annotations

from ml_collections import ConfigDict

from solojax.config.base import backbone_keys, optimizer_keys, train_keys


def contrastive_config() -> ConfigDict:
    """Returns a new locked config with every key of contrastive pre-training.

    Conventions as in `base_config`.
    """
    config = ConfigDict()
    config.task = "densecl"
    # Of the weights, the order of the images and everything drawn at random.
    config.seed = 0
    config.model = _model()
    config.contrast = _contrast()
    config.views = _views()
    config.data = _data()
    config.train = train_keys()
    config.train.batch_size = 256
    config.train.epochs = 200
    config.train.eval_every_epochs = 0
    config.train.best_metric = None
    config.optimizer = optimizer_keys()
    config.optimizer.learning_rate = 0.03
    config.optimizer.reference_batch = 256
    config.optimizer.clip_norm = None
    config.optimizer.warmup_steps = 0
    config.optimizer.schedule = "cosine"
    return config.lock()


def _model() -> ConfigDict:
    model = ConfigDict()
    # Of the computation: float32 | bfloat16. Parameters and losses are float32 always.
    model.dtype = "float32"
    model.backbone = backbone_keys()
    model.backbone.norm = "batch_norm"
    model.backbone.frozen_stages = -1
    # Images whose statistics BatchNorm takes together. 32: the published runs, whatever the
    # number of devices. 0: the whole batch. Then, as with the batch's own size, there is no other
    # group for contrast.shuffle to move keys to: query and key share statistics, which give the
    # positive away.
    model.backbone.norm_group_images = 32
    # Of both projection heads: inside, and E of the embeddings.
    model.hidden_channels = 2048
    model.embedding = 128
    # Whether there is a dense head: DenseCL, and not MoCo-v2.
    model.dense = True
    # (S_h, S_w) to which the dense head pools. Empty: as it comes out of the backbone.
    model.grid = ()
    # Per channel, RGB, on pixels in [0, 255].
    model.pixel_mean = (123.675, 116.28, 103.53)
    model.pixel_std = (58.395, 57.12, 57.375)
    return model


def _contrast() -> ConfigDict:
    contrast = ConfigDict()
    # lambda of equation 5.3: the dense loss's share; 0 for the first dense_warmup_steps.
    contrast.dense_weight = 0.5
    contrast.dense_warmup_steps = 0
    # Q of both queues; a multiple of the batch.
    contrast.queue_length = 65536
    # Of the key encoder.
    contrast.momentum = 0.999
    contrast.temperature = 0.2
    # Which key cell is a query cell's positive (Table 5.7): max_sim_features | max_sim_embeddings
    # | random.
    contrast.correspondence = "max_sim_features"
    # What of an image becomes a negative of the dense loss: pooled (its cells' mean) | sampled
    # (one of them).
    contrast.negatives = "pooled"
    # Whether key images change BatchNorm groups (Shuffling BN), of which there must be two.
    contrast.shuffle = True
    # Whether each device keeps only its part of the queues. Then the queries travel in place of
    # the queues' vectors: for long queues and small batches, and not for large batches.
    contrast.shard_queues = False
    return contrast


def _views() -> ConfigDict:
    views = ConfigDict()
    # (height, width) of both views, multiples of 32.
    views.size = (224, 224)
    # Crops: area as a fraction of the image's, width by height.
    views.scale = (0.2, 1.0)
    views.ratio = (3 / 4, 4 / 3)
    views.flip_probability = 0.5
    views.update(color_keys())
    return views


def color_keys() -> ConfigDict:
    """What changes the colours of an image on the device, which FreeSOLO's strong rows share."""
    colors = ConfigDict()
    # Strengths of the colour jitter, in random order, and how often there is any.
    colors.brightness = 0.4
    colors.contrast = 0.4
    colors.saturation = 0.4
    colors.hue = 0.1
    colors.jitter_probability = 0.8
    colors.grayscale_probability = 0.2
    colors.blur_probability = 0.5
    # Of the Gaussian, in pixels.
    colors.blur_sigma = (0.1, 2.0)
    return colors


def _data() -> ConfigDict:
    data = ConfigDict()
    # folder (image files, in class folders or not) | coco (the images of a json) | records (what
    # `solojax prepare` wrote into data.root).
    data.format = "folder"
    data.root = "data/imagenet"
    # With folder and coco: where in data.root the images are. Empty: data.root itself.
    data.train_images = "train"
    # With coco: the json, in data.root.
    data.train_annotations = ""
    # With records: the split.
    data.train_split = "train"
    # Threads that read images in a process; worker processes (0: none, threads alone); batches
    # kept ready ahead of the step.
    data.threads = 8
    data.workers = 0
    data.prefetch = 2
    return data

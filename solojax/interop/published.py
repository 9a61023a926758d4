"""What the published networks were trained and tested with that their weights do not show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from solojax.interop.layout import Layout

LIGHT_512 = {
    "model.grid.scale_ranges": ((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048)),
    "evaluation.short_side": 512,
    "evaluation.long_side": 852,
}
LIGHT_448 = {
    "model.grid.scale_ranges": ((1, 56), (28, 112), (56, 224), (112, 448), (224, 896)),
    "evaluation.short_side": 448,
    "evaluation.long_side": 768,
}
_GRIDS = (40, 36, 24, 16, 12)

# COCO's classes with the ids of its annotations, in the order of every published head.
COCO_CATEGORIES = tuple(
    zip(
        (
            *range(1, 12), *range(13, 26), 27, 28, *range(31, 45), *range(46, 66), 67, 70,
            *range(72, 83), *range(84, 91),
        ),
        (
            "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
            "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat",
            "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack",
            "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
            "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
            "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl",
            "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza",
            "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
            "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
            "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
            "hair drier", "toothbrush",
        ),
        strict=True,
    )
)  # fmt: skip


def published_settings(architecture: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """Config keys of inference and training of the published network with this architecture.

    A guess for networks that somebody else trained: weights do not show scale ranges or sizes.
    """
    kind = architecture["model.head.kind"]
    light = kind == "decoupled_light" or (
        kind == "solov2" and architecture["model.head.num_convs"] < 4
    )
    settings: dict[str, Any] = {"model.semantics": "release"}
    if kind == "solov2":
        settings["model.grid.num_grids"] = _GRIDS
    if light:
        two_blocks = kind == "solov2" and architecture["model.head.num_convs"] == 2
        settings |= LIGHT_448 if two_blocks else LIGHT_512
    if layout.name.startswith("mmdet"):
        settings["data.pad_before_shrinking"] = True
    return settings


def categories_of(
    num_classes: int, names: Sequence[str] | None, layout: Layout
) -> tuple[tuple[int, str], ...]:
    """(id, name) of every class, from the file's list of names or else by their number.

    Ids are COCO's for COCO's classes, else 1 and up.
    """
    coco = [name for _, name in COCO_CATEGORIES]
    if names is not None and len(names) == num_classes:
        plain = [name.replace("_", " ") for name in names]
        if plain != coco:
            return tuple(enumerate(names, start=1))
    if num_classes == len(COCO_CATEGORIES):
        return COCO_CATEGORIES
    if layout.name == "freesolo":
        # Its class-agnostic head has a second output that no object is of.
        rest = [f"unused {index}" for index in range(1, num_classes)]
        return tuple(enumerate(["object", *rest], start=1))
    return tuple(enumerate(unnamed_classes(num_classes), start=1))


def unnamed_classes(num_classes: int) -> tuple[str, ...]:
    """What classes are called that a file does not name."""
    return tuple(f"class {index}" for index in range(1, num_classes + 1))

"""A data set and runs so small that they take seconds."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.outputs import dynamic_outputs
from ml_collections import ConfigDict
from pycocotools import mask as coco_mask

from solojax.builders.network import build_model
from solojax.cli.main import main
from solojax.structures import Array, SegmenterOutputs

CONFIG = str(Path(__file__).with_name("tiny_config.py"))
NANO_CONFIG = f"{CONFIG}:nano"
# In no order, so that ids, labels and positions all differ.
CATEGORIES = [
    {"id": 7, "name": "disk"},
    {"id": 3, "name": "bar"},
    {"id": 40, "name": "ring"},
    {"id": 11, "name": "block"},
    {"id": 5, "name": "post"},
]
_COLORS = ((220, 40, 40), (30, 60, 200), (40, 180, 60), (230, 220, 60), (200, 60, 210))
_NUM_IMAGES = {"train": 6, "val": 3}
_LARGE = (7,)  # numbers of the images that are 96x96


class NanoNetwork(nn.Module):
    """Colours to predictions, cell by cell: compiles in a second where a ResNet takes many."""

    num_classes: int
    num_grids: Sequence[int]
    kernel_channels: int

    @nn.compact
    def __call__(
        self, image: Array, *, train: bool = False, row_mask: Array | None = None
    ) -> SegmenterOutputs:
        """As `Segmenter`."""
        quarter = nn.avg_pool(image, (4, 4), (4, 4))
        batch, _, _, channels = quarter.shape
        levels = [
            jax.image.resize(quarter, (batch, side, side, channels), "linear")
            for side in self.num_grids
        ]
        cells = jnp.concatenate([x.reshape(batch, -1, channels) for x in levels], axis=1)
        return dynamic_outputs(
            category_logits=nn.Dense(
                self.num_classes, bias_init=nn.initializers.constant(-4.6), name="category"
            )(cells),
            kernels=nn.Dense(self.kernel_channels, name="kernel")(cells),
            mask_features=nn.Dense(self.kernel_channels, name="mask")(quarter),
        )


def use_nano_network(monkeypatch) -> None:
    """Puts `NanoNetwork` in the place of the network that `NANO_CONFIG` describes."""

    def build(config: ConfigDict, num_classes: int) -> NanoNetwork:
        return NanoNetwork(
            num_classes, config.model.grid.num_grids, config.model.mask_features.out_channels
        )

    monkeypatch.setattr("solojax.builders.segmentation.build_model", build)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a command returned and wrote."""

    code: int
    out: str
    err: str


def call(*words) -> Outcome:
    """Runs a command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return Outcome(code, out.getvalue(), err.getvalue())


def train(workdir: Path, data: Path, config: str = CONFIG, **overrides) -> Outcome:
    """`solojax train` with the tiny config; overrides as `train__total_steps=2`."""
    flags = [
        f"--config.{name.replace('__', '.')}={value}"
        for name, value in {"data__root": data, **overrides}.items()
    ]
    return call("train", "--config", config, "--workdir", workdir, *flags)


def refusal(outcome: Outcome, *parts: str) -> str:
    """Checks that a command ended as bad input does, and returns its one line.

    What the log says before goes to the log's handlers, which are pytest's here.
    """
    assert outcome.code == 2, outcome
    *before, line = outcome.err.splitlines()
    assert line.startswith("solojax "), outcome.err
    assert not any("Traceback" in each or each.startswith("solojax ") for each in before)
    missing = [part for part in parts if part not in line]
    assert not missing, f"{missing} not in {line}"
    return line


@dataclasses.dataclass(frozen=True)
class TinyRun:
    """A finished run."""

    data: Path
    workdir: Path
    outcome: Outcome


def finished_run(tmp_path_factory) -> TinyRun:
    """A run of the real network, trained once for all tests, which must not change it."""
    return _train_once(tmp_path_factory.getbasetemp() / "tiny_run")


@functools.cache
def _train_once(folder: Path) -> TinyRun:
    data = write_data(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        # Whatever a test has put there.
        patch.setattr("solojax.builders.segmentation.build_model", build_model)
        return TinyRun(data, folder / "run", train(folder / "run", data))


def finished_nano_run(tmp_path_factory) -> TinyRun:
    """As `finished_run`, of the nano network; what loads it needs `use_nano_network`."""
    return _train_nano_once(tmp_path_factory.getbasetemp() / "nano_run")


@functools.cache
def _train_nano_once(folder: Path) -> TinyRun:
    data = write_data(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        use_nano_network(patch)
        return TinyRun(data, folder / "run", train(folder / "run", data, NANO_CONFIG))


def write_data(root: Path) -> Path:
    """Writes `root/{train,val}.json` and `root/images/`; returns the root.

    Six images to train on and three to evaluate on, of 64x64 or 96x96, each with two objects, one
    as run lengths and one as a polygon.
    """
    (root / "images").mkdir(parents=True, exist_ok=True)
    number = 0
    for split, count in _NUM_IMAGES.items():
        document = {"images": [], "annotations": [], "categories": CATEGORIES}
        for _ in range(count):
            _add_image(root, document, number, side=96 if number in _LARGE else 64)
            number += 1
        (root / f"{split}.json").write_text(json.dumps(document))
    return root


def edit_json(path: Path, change) -> None:
    """Applies `change(document)`, which works in place, to a json file."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def _add_image(root: Path, document: dict, number: int, side: int) -> None:
    rng = np.random.default_rng(number)
    image = rng.integers(90, 130, (side, side, 3), dtype=np.uint8)
    name, image_id = f"image_{number}.png", 100 - number
    document["images"].append({"id": image_id, "file_name": name, "height": side, "width": side})
    for place, label in enumerate((number % 5, (number + 2) % 5)):
        mask = np.zeros((side, side), np.uint8)
        left, top = side // 16 + place * side // 2, int(rng.integers(0, side // 2))
        width, height = side // 3, int(rng.integers(side // 4, side // 2))
        mask[top : top + height, left : left + width] = 1
        image[mask == 1] = _COLORS[label]
        rle = coco_mask.encode(np.asfortranarray(mask))
        right, bottom = left + width, top + height
        polygon = [[left, top, right, top, right, bottom, left, bottom]]
        run_lengths = {"size": [side, side], "counts": rle["counts"].decode()}
        document["annotations"].append(
            {
                "id": 10 + len(document["annotations"]),
                "image_id": image_id,
                "category_id": CATEGORIES[label]["id"],
                "bbox": [left, top, width, height],
                "area": width * height,
                "iscrowd": 0,
                "segmentation": polygon if place else run_lengths,
            }
        )
    cv2.imwrite(str(root / "images" / name), image[..., ::-1])

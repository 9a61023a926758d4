"""FreeSOLO from a folder of images to pictures of what is in them: every stage, once."""

from __future__ import annotations

import json
import logging

import cv2
import numpy as np
import pytest

from solojax.cli.main import main

PRETRAINING = """
from solojax.config import load_config

def get_config():
    config = load_config("configs/densecl.py:tiny")
    config.model.backbone.width = 16
    config.model.backbone.norm_group_images = 4
    config.model.hidden_channels = 32
    config.contrast.queue_length = 16
    config.train.batch_size = 4
    config.train.total_steps = 2
    return config
"""
OVERRIDES = [
    "model.backbone.width=16", "model.neck.channels=32", "model.head.channels=32",
    "model.head.num_convs=1", "model.mask_features.out_channels=32", "model.max_positives=32",
    "data.short_sides=96", "data.long_side=128", "data.max_instances=8",
    "train.batch_size=4", "train.total_steps=3", "train.log_every=1", "train.checkpoint_every=3",
    "evaluation.short_side=96", "evaluation.long_side=128", "evaluation.max_candidates=64",
    "evaluation.nms_pre=32", "evaluation.max_detections=16",
    # After three steps nothing is likely.
    "evaluation.score_threshold=0.001", "evaluation.update_threshold=0.00001",
    "self_training.score_threshold=0.00001", "self_training.max_width=1.0",
    "free_mask.min_maskness=0.3", "free_mask.max_width=1.0", "free_mask.short_side=128",
    "free_mask.long_side=192", "strong.blur_sigma=0.1,0.5",
]  # fmt: skip


def write_photos(folder):
    """Eight images of discs, two of one name, and three files that are none."""
    rng = np.random.default_rng(0)
    (folder / "more").mkdir(parents=True)
    for number in range(8):
        image = rng.normal(128, 8, (96, 128, 3)).clip(0, 255).astype(np.uint8)
        for _ in range(2):
            centre = (int(rng.integers(20, 108)), int(rng.integers(30, 76)))
            color = rng.integers(0, 255, 3).tolist()
            cv2.circle(image, centre, int(rng.integers(10, 22)), color, -1)
        place = folder / "more" if number >= 4 else folder
        cv2.imwrite(str(place / f"p{number % 7}.png"), image)
    whole = (folder / "p0.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])  # its header is whole
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 cut off")
    (folder / "empty.png").write_bytes(b"")


@pytest.mark.slow
def test_a_folder_in_and_masks_out_each_stage_once(tmp_path, capsys, caplog):
    """Everything is there, a second call does nothing again, foreign labels are refused."""
    photos, workdir = tmp_path / "photos", tmp_path / "w"
    write_photos(photos)
    (tmp_path / "pretraining.py").write_text(PRETRAINING)
    arguments = ["free-solo", "--images", str(photos), "--workdir", str(workdir)]
    arguments += ["--pretraining", str(tmp_path / "pretraining.py")]
    arguments += [f"--config.{override}" for override in OVERRIDES]
    caplog.set_level(logging.INFO, logger="solojax")
    assert main(arguments) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "3 files could not be read: broken.jpg, empty.png, cut.png" in shown
    predictions = json.loads((workdir / "predictions.json").read_text())
    names = [image["file_name"] for image in predictions["images"]]
    assert len(names) == 8 and {"p0.png", "more/p0.png"} <= set(names)
    assert len(list((workdir / "overlays").glob("*.png"))) == 8
    drawn = f"of them with a score from 1e-05 on: {workdir / 'overlays'}\n"
    assert f" objects found in 8 images: {workdir / 'predictions.json'}\n" in shown
    assert drawn in shown
    for name in ("masks.json", "labels1.json", "predictions.json"):
        first = json.loads((workdir / name).read_text())["annotations"][0]
        assert len(first["emb"]) == 128

    written = ("masks.json", "labels1.json", "predictions.json")
    before = {
        path: path.stat().st_mtime_ns
        for path in [*(workdir / name for name in written), *workdir.rglob("*.png")]
    }
    caplog.clear()
    assert main(arguments) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert sum("the run is complete" in message for message in caplog.messages) == 3

    assert main([*arguments, "--config.free_mask.min_maskness=0.35"]) == 2
    assert "stale or foreign labels" in capsys.readouterr().err

    trained = (workdir / "round0" / "config.json").read_text()
    assert main([*arguments, "--config.seed=1"]) == 2
    assert f"{workdir / 'round0'}: trained with other settings" in capsys.readouterr().err
    assert (workdir / "round0" / "config.json").read_text() == trained
    (tmp_path / "pretraining.py").write_text(PRETRAINING.replace("steps = 2", "steps = 3"))
    assert main(arguments) == 2  # longer, but there are masks of it
    assert f"{workdir / 'backbone'}: trained with other settings" in capsys.readouterr().err
    (tmp_path / "pretraining.py").write_text(PRETRAINING)
    masks = ["--masks", str(workdir / "masks.json")]
    start = arguments.index("--pretraining")
    others = [*arguments[:start], "--backbone", str(workdir / "round1"), *arguments[start + 2 :]]
    assert main([*others, *masks]) == 2
    assert "started from other weights" in capsys.readouterr().err
    # Its own masks, given: the same chain, with the file that was found to be cut off left out.
    pictures = (workdir / "overlays" / "drawn.json").read_text()
    assert main([*arguments, *masks, "--config.self_training.picture_threshold=0.5"]) == 0
    assert "3 files could not be read" in capsys.readouterr().out
    assert (workdir / "overlays" / "drawn.json").read_text() != pictures
    files = {path: time for path, time in before.items() if path.suffix == ".json"}
    assert files == {path: path.stat().st_mtime_ns for path in files}
    path = photos / "p0.png"
    size = path.stat().st_size
    cv2.imwrite(str(path), np.full((96, 128, 3), 90, np.uint8))
    assert path.stat().st_size != size and main(arguments) == 2
    assert f"are not those that {workdir}/backbone was trained on" in capsys.readouterr().err

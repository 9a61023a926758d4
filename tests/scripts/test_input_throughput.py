"""The throughput script's plain loop does the work of our rows, and the tables are printed."""

from __future__ import annotations

import argparse
import re

import numpy as np
from helpers.scripts import load_script

from solojax.data.canvas import multiple_of_32
from solojax.data.coco import load_coco
from solojax.data.packing import unpack_masks
from solojax.data.rows import TrainRows
from solojax.data.synthetic import write_synthetic_dataset

script = load_script("input_throughput")


def test_the_plain_loop_agrees_with_our_row(tmp_path):
    write_synthetic_dataset(
        tmp_path, seed=0, num_train=6, num_val=1, image_sizes=[(96, 128), (128, 96)]
    )
    json, images = tmp_path / "train.json", tmp_path / "train"
    dataset = load_coco(json, images)
    args = argparse.Namespace(batch=3, short_sides=[128, 160], long_side=220)
    rows = script.rows_of(script.make_plan(args, dataset, multiple_of_32), 9)
    assert len(rows) == 9 and {row.flip for row in rows} == {False, True}
    reader, plain = TrainRows(dataset, 220, max_instances=20), script.PlainLoop(json, images)
    for row in rows:
        ours = reader(row.index, row.short_side, row.flip, row.canvas, row.seed)
        image, masks = plain(row, 220)
        np.testing.assert_array_equal(ours["image"], image)
        ours_masks = unpack_masks(ours["masks"], row.canvas[1] // 4)[: len(masks)]
        # OpenCV's nearest pixel is half a pixel off, and objects of no pixel are left out of ours.
        assert ours["instance_valid"].sum() == len(masks)
        assert np.mean(ours_masks != masks) < 0.02 and masks.any(axis=(1, 2)).all()


def test_the_tables(tmp_path, capsys):
    write_synthetic_dataset(tmp_path, seed=0, num_train=4, num_val=1, image_sizes=[(96, 128)])
    script.main([
        "--annotations", str(tmp_path / "train.json"), "--images", str(tmp_path / "train"),
        "--rows", "3", "--batch", "2", "--batches", "1", "--threads", "1", "--workers",
        "--short_sides", "96", "--long_side", "128",
    ])  # fmt: skip
    out = capsys.readouterr().out
    # 96x128 lies on a canvas of its own size; a square of 128 is a quarter empty.
    assert (
        "buckets, 2 images a step: 1 canvas in 2 steps, padding 0.0% of their pixels (25.0%" in out
    )
    for name in ("decode", "image", "masks", "packing", "whole row", "plain loop"):
        assert re.search(rf"^ *{name} +\d+\.\d\d +\d+\.\d\d +[\d.]+$", out, re.M), name
    assert re.search(r"whole row against plain loop: \d+\.\d\d times as fast", out)
    assert re.search(r"^1 threads +[\d.]+ +[\d.]+$", out, re.M)

"""The throughput script runs, and its plain loop does the same to an image as the package."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from helpers.scripts import load_script

from solojax.data.image_folder import list_folder

script = load_script("view_throughput")


@pytest.mark.slow
def test_the_table(capsys):
    script.main(["--size", "16", "--batch", "2", "--rows", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("two 16 x 16 views an image")
    for name in ("host: decode, crop, resize, flip", "device: colours, blur, normalise"):
        (line,) = [line for line in lines if line.startswith(name)]
        cpu, per_core, clock = map(float, line[len(name) :].split())
        assert cpu > 0 and per_core == pytest.approx(1000 / cpu, rel=0.2) and clock > 0


def test_the_plain_loop(tmp_path):
    """Two normalised views with the mean that the image has, within what colour jitter does."""
    pytest.importorskip("PIL", reason="the plain loop is Pillow's")
    cv2.imwrite(str(tmp_path / "a.png"), np.full((50, 60, 3), 120, np.uint8))
    plain = script.PlainViews(list_folder(tmp_path), 16)
    views = np.stack([plain(0) for _ in range(8)]) * script.STD + script.MEAN
    assert views.shape == (8, 2, 16, 16, 3)
    assert (views > 0.6**2 * 119).all() and (views < 1.4 * 121).all()

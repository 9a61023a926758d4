"""Rows by their indices."""

from __future__ import annotations

import numpy as np
import pytest

from solojax.ops.picking import pick_rows


@pytest.mark.parametrize("shape", [(), (3,), (3, 2)])
def test_each_image_has_its_own_rows_repeats_too(shape):
    values = np.random.default_rng(0).normal(size=(2, 10, *shape)).astype(np.float32)
    index = np.array([[9, 0, 9, 4], [1, 1, 1, 2]], np.int32)
    out = np.asarray(pick_rows(values, index))
    assert out.shape == (2, 4, *shape)
    for b in range(2):
        for m in range(4):
            np.testing.assert_array_equal(out[b, m], values[b, index[b, m]])

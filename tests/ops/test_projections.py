"""solojax.ops.projections against NumPy."""

from __future__ import annotations

import numpy as np

from solojax.ops.projections import project_max, project_mean

MASKS = np.random.default_rng(0).random((2, 3, 5, 7))


def test_soft_masks():
    columns, rows = project_max(MASKS)
    np.testing.assert_array_equal(columns, MASKS.astype(np.float32).max(axis=2))
    np.testing.assert_array_equal(rows, MASKS.astype(np.float32).max(axis=3))
    columns, rows = project_mean(MASKS.astype(np.float32))
    np.testing.assert_allclose(columns, MASKS.mean(axis=2), rtol=1e-6)
    np.testing.assert_allclose(rows, MASKS.mean(axis=3), rtol=1e-6)


def test_binary_masks():
    binary = MASKS > 0.7
    columns, rows = project_max(binary)
    assert columns.dtype == bool
    np.testing.assert_array_equal(columns, binary.any(axis=2))
    np.testing.assert_array_equal(rows, binary.any(axis=3))
    columns, rows = project_mean(binary)
    assert columns.dtype == np.float32
    np.testing.assert_allclose(columns, binary.mean(axis=2), rtol=1e-6)
    np.testing.assert_allclose(rows, binary.mean(axis=3), rtol=1e-6)

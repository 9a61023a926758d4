"""The guard against a loss that is no number."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solojax.errors import InputError
from solojax.structures import Batch, Instances
from solojax.train.guard import NonFiniteLoss, check_finite


def make_batch(rows: int = 3) -> Batch:
    rng = np.random.default_rng(0)
    instances = Instances(
        boxes=rng.random((rows, 2, 4), np.float32),
        labels=np.ones((rows, 2), np.int32),
        centers=rng.random((rows, 2, 2), np.float32),
        masks=rng.integers(0, 255, (rows, 2, 8, 1), np.uint8),
        valid=np.ones((rows, 2), bool),
    )
    return Batch(
        image=rng.integers(0, 255, (rows, 32, 32, 3), np.uint8),
        image_size=np.full((rows, 2), 32, np.int32),
        original_size=np.full((rows, 2), 40, np.int32),
        valid=np.arange(rows) != 1,
        image_index=np.arange(rows, dtype=np.int32) * 10 + 7,
        seed=np.arange(rows, dtype=np.uint32),
        dropped_instances=np.zeros(rows, np.int32),
        instances=instances,
    )


@pytest.mark.parametrize(
    "metrics",
    [
        {"loss": 1.0, "loss/mask": jnp.float32(3e38)},
        {"learning_rate": float("nan"), "lossless": float("inf")},  # no terms of the loss
        {},
    ],
)
def test_a_finite_loss_passes(tmp_path, metrics):
    check_finite(5, metrics, make_batch(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), jnp.float32("nan")])
@pytest.mark.parametrize("name", ["loss", "loss/category", "grad_norm"])
def test_one_line_says_what_happened(tmp_path, name, value):
    metrics = {"loss": 1.5, "loss/category": 0.25, "learning_rate": 0.01} | {name: value}
    with pytest.raises(NonFiniteLoss) as error:
        check_finite(1234, metrics, make_batch(), tmp_path / "run")
    assert isinstance(error.value, InputError)
    text = str(error.value)
    assert "\n" not in text
    assert "step 1234" in text
    assert f"{name} {float(value)}" in text
    assert ("loss/category 0.25" in text) or ("loss 1.5" in text)
    assert "learning_rate 0.01" not in text
    assert str(tmp_path / "run" / "nonfinite_step_1234.npz") in text
    assert "image indices 7, 27;" in text  # the second row is padding
    assert "optimizer.learning_rate" in text


def test_the_saved_batch_is_the_batch(tmp_path):
    batch = make_batch()
    with pytest.raises(NonFiniteLoss):
        check_finite(8, {"loss": np.nan}, batch, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["nonfinite_step_8.npz"]
    with np.load(tmp_path / "nonfinite_step_8.npz") as saved:
        assert len(saved.files) == len(jax.tree.leaves(batch)) == 12
        for field in ("image", "image_size", "valid", "image_index", "seed"):
            np.testing.assert_array_equal(saved[field], getattr(batch, field), strict=True)
        for field in ("boxes", "masks", "valid"):
            expected = getattr(batch.instances, field)
            np.testing.assert_array_equal(saved[f"instances/{field}"], expected, strict=True)


def test_many_images_are_counted(tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"image indices 7, 27, .* and 11 more;"):
        check_finite(8, {"loss": np.nan}, make_batch(20), tmp_path)


def test_other_batches_are_saved_too(tmp_path):
    views = {"views": [np.zeros((2, 4)), np.ones((2, 4))]}
    with pytest.raises(NonFiniteLoss) as error:
        check_finite(8, {"loss": np.nan}, views, tmp_path)
    assert "image indices" not in str(error.value)
    with np.load(tmp_path / "nonfinite_step_8.npz") as saved:
        np.testing.assert_array_equal(saved["views/1"], np.ones((2, 4)))


def test_each_process_has_its_own_file(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(NonFiniteLoss, match=r"nonfinite_step_8_process_1\.npz"):
        check_finite(8, {"loss": np.nan}, make_batch(), tmp_path)
    assert (tmp_path / "nonfinite_step_8_process_1.npz").is_file()


def test_a_batch_that_cannot_be_saved_does_not_hide_the_loss(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NonFiniteLoss) as error:
        check_finite(8, {"loss": np.nan}, make_batch(), tmp_path / "file")
    assert "step 8" in str(error.value) and "could not be saved" in str(error.value)
    assert "\n" not in str(error.value)

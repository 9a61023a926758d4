"""Recordings of other systems: what they say, and what they may not be."""

from __future__ import annotations

import numpy as np
import pytest

from solojax.errors import InputError
from solojax.interop.recordings import read_recording

IMAGE = np.zeros((1, 32, 64, 3), np.uint8)
ONE = np.ones(1, np.int32)


def recording(tmp_path, **arrays):
    path = tmp_path / "outputs.npz"
    np.savez(path, **arrays)
    return path


def sample(shape=(1, 4, 2, 3), idx=(5,), val=(7.0,)):
    return {"c2/shape": shape, "c2/idx": idx, "c2/val": val}


def objects(**changes):
    """The objects of the first image, two of them."""
    arrays = {"scores": np.ones(2), "classes": np.ones(2, int), "masks": np.ones((2, 32, 64))}
    return {f"image0/{name}": array for name, array in (arrays | changes).items()}


def test_recordings(tmp_path):
    stage = np.arange(24.0).reshape(1, 2, 3, 4)
    found = read_recording(recording(tmp_path, image=IMAGE, c2=stage))
    np.testing.assert_array_equal(found.stages["c2"], stage)
    assert found.image_size.tolist() == found.original_size.tolist() == [[32, 64]]
    assert found.pyramid == () and found.instances == {} and not found.float64
    path = recording(
        tmp_path, image=IMAGE, image_size=[[30, 60]], layout="NCHW", c2=stage, flat=stage[0, 0]
    )
    found = read_recording(path)
    np.testing.assert_array_equal(found.stages["c2"], stage.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(found.stages["flat"], stage[0, 0])
    assert found.image_size.tolist() == [[30, 60]] and found.image_size.dtype == np.int32


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"c2": IMAGE}, "'image' is absent or odd"),
        ({"image": IMAGE.astype(np.float32), "c2": IMAGE}, "'image' is absent or odd"),
        ({"image": IMAGE[:, :30], "c2": IMAGE}, "multiples of 32"),
        ({"image": IMAGE, "layout": "CHWN", "c2": IMAGE}, "'layout' is 'CHWN'"),
        ({"image": IMAGE, "image_size": [30, 60], "c2": IMAGE}, "'image_size' is"),
        ({"image": IMAGE}, "no stage is recorded"),
        ({"image": IMAGE, "c2": np.array([None])}, "is no readable .npz"),
        ({"image": IMAGE, "precision": "half", "c2": IMAGE}, "give float32 or float64"),
        ({"image": IMAGE, "original_size": [30, 60], "c2": IMAGE}, "'original_size' is"),
        ({"image": IMAGE, "input_p3": IMAGE, "c2": IMAGE}, "without all from input_p2 on"),
        ({"image": IMAGE, "c2/stats": np.ones(3)}, "'c2/stats' is unknown"),
        ({"image": IMAGE, "c2/idx": ONE, "c2/val": ONE}, "the sample of 'c2' is odd"),
        ({"image": IMAGE, **sample(), "c2": IMAGE}, "the sample of 'c2' is odd"),
        ({"image": IMAGE, **sample(idx=[1, 2])}, "the sample of 'c2' is odd"),
        ({"image": IMAGE, **sample(idx=[24])}, "'c2/idx' leaves an array of"),
        ({"image": IMAGE, **objects(scores=np.ones(3))}, "image0/... has"),
        ({"image": IMAGE, **objects(masks=np.ones((2, 30, 60)))}, "at 'original_size'"),
        ({"image": IMAGE, "image1/scores": ONE, "image1/classes": ONE}, "for image0 to image0"),
        ({"image": IMAGE, "image0/scores": ONE}, "go together"),
        ({"image": IMAGE, **objects(boxes=np.ones((2, 4)))}, r"'boxes': \(2, 4\)"),
    ],
)
def test_bad_recordings(tmp_path, arrays, said):
    path = recording(tmp_path, **arrays)
    with pytest.raises(InputError, match=said) as caught:
        read_recording(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_other_files_are_no_recordings(tmp_path):
    path = tmp_path / "a.npz"
    for content in (b"", b"words", b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is no readable .npz"):
            read_recording(path)
    np.save(path.with_suffix(".npy"), np.ones(2))
    for absent in (path.with_suffix(".npy"), tmp_path / "absent.npz"):
        with pytest.raises(InputError, match="is no readable .npz"):
            read_recording(absent)


def test_samples(tmp_path):
    """Positions are those of the array as it was recorded, channels second."""
    whole = np.arange(24.0).reshape(1, 4, 2, 3)
    idx = np.array([0, 5, 23, 8])
    parts = sample(idx=idx, val=whole.ravel()[idx])
    path = recording(tmp_path, image=IMAGE, layout="NCHW", **parts)
    found = read_recording(path).stages["c2"]
    assert found.shape == (1, 2, 3, 4)
    np.testing.assert_array_equal(whole.transpose(0, 2, 3, 1).ravel()[found.index], found.values)
    found = read_recording(recording(tmp_path, image=IMAGE, **parts)).stages["c2"]
    assert found.shape == (1, 4, 2, 3) and found.index.tolist() == idx.tolist()


def test_objects_and_a_pyramid(tmp_path):
    levels = [np.full((1, 2, side, side), side, np.float32) for side in (4, 2)]
    path = recording(
        tmp_path, image=IMAGE, layout="NCHW", precision="float64",
        **objects(masks=np.ones((2, 40, 80))), original_size=[[40, 80]],
        input_p3=levels[1], input_p2=levels[0],
    )  # fmt: skip
    found = read_recording(path)
    assert [level.shape for level in found.pyramid] == [(1, 4, 4, 2), (1, 2, 2, 2)]
    assert found.float64 and found.stages == {} and list(found.instances) == [0]
    assert found.instances[0].masks.shape == (2, 40, 80) and found.instances[0].masks.dtype == bool
    del (arrays := objects())["image0/masks"]
    found = read_recording(recording(tmp_path, image=IMAGE, **arrays))
    assert found.instances[0].masks is None

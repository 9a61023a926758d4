"""Reports on recorded outputs: figures by hand, and what recordings may not be."""

from __future__ import annotations

import numpy as np
import pytest

from solojax.errors import InputError
from solojax.interop.parity import compare_stages, read_recording, report_table

IMAGE = np.zeros((1, 32, 64, 3), np.uint8)


def recording(tmp_path, **arrays):
    path = tmp_path / "outputs.npz"
    np.savez(path, **arrays)
    return path


def test_a_worked_example():
    recorded = {"c2": np.array([[3.0, 4.0], [0.0, 0.0]])}
    ours = {"c1": np.zeros(3), "c2": np.array([[3.0, 4.0], [0.0, -2.0]])}
    [report] = compare_stages(recorded, ours, tolerance=0.4)
    assert (report.stage, report.shape) == ("c2", (2, 2))
    assert (report.largest, report.mean, report.scale) == (2.0, 0.5, 4.0)
    assert report.cosine == pytest.approx(25 / (5 * 29**0.5))
    assert report.allowed == pytest.approx(1.6) and not report.passed
    assert compare_stages(recorded, ours, tolerance=0.5)[0].passed


def test_equal_zeros_pass_and_nan_does_not():
    zeros, nan = np.zeros(2), np.array([0.0, np.nan])
    [report] = compare_stages({"a": zeros}, {"a": zeros})
    assert report.passed and report.cosine == 1
    for one, other in ((zeros, nan), (nan, zeros), (nan, nan)):
        assert not compare_stages({"a": one}, {"a": other})[0].passed


def test_stages_come_in_the_order_of_the_network():
    arrays = {"p2": np.ones(1), "c2": np.ones(1)}
    ours = {"c2": np.ones(1), "p2": np.ones(1)}
    assert [report.stage for report in compare_stages(arrays, ours)] == ["c2", "p2"]


def test_the_table():
    reports = compare_stages(
        {"c2": np.ones((1, 2, 3)), "p2": np.ones(1)}, {"c2": np.ones((1, 2, 3)), "p2": np.zeros(1)}
    )
    head, first, second = report_table(reports).splitlines()
    assert head.split() == "stage shape largest diff mean diff cosine allowed".split()
    assert first.split() == ["c2", "1x2x3", "0.000e+00", "0.000e+00", "1.000000000", "1.000e-04",
                             "pass"]  # fmt: skip
    assert second.split()[-1] == "FAIL" and second.split()[2] == "1.000e+00"


def test_unknown_stages_and_other_shapes_are_refused():
    with pytest.raises(InputError, match="stage 'c9' is recorded and not known; use one of c2, p2"):
        compare_stages({"c9": np.ones(1)}, {"c2": np.ones(1), "p2": np.ones(1)})
    with pytest.raises(InputError, match=r"recorded as \(1, 2\) and is \(2, 1\) here"):
        compare_stages({"c2": np.ones((1, 2))}, {"c2": np.ones((2, 1))})


def test_recordings(tmp_path):
    stage = np.arange(24.0).reshape(1, 2, 3, 4)
    found = read_recording(recording(tmp_path, image=IMAGE, c2=stage))
    np.testing.assert_array_equal(found.stages["c2"], stage)
    assert found.image_size.tolist() == [[32, 64]]
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

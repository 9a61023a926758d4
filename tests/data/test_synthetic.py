"""The synthetic data set: what it must contain, and that it is written once, whole and the same."""

from __future__ import annotations

import json
import multiprocessing

import cv2
import numpy as np
import pytest
from helpers.synthetic_report import measure_synthetic_dataset
from pycocotools import mask as coco_mask

from solojax.data.coco import load_coco
from solojax.data.synthetic import CATEGORY_IDS, STATUS_FILE, write_synthetic_dataset
from solojax.data.synthetic_scene import draw_scene
from solojax.data.synthetic_shapes import CLASS_NAMES, SHAPES, place_shape, rasterize_coverage
from solojax.data.synthetic_textures import PALETTE, TEXTURES, draw_background, draw_texture
from solojax.errors import InputError

SMALL = {"seed": 5, "num_train": 4, "num_val": 2, "image_sizes": ((96, 128), (128, 100))}


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """150 images as the quickstart has them; small enough to draw in seconds."""
    directory = tmp_path_factory.mktemp("synthetic") / "data"
    write_synthetic_dataset(directory, seed=0, num_train=150, num_val=1)
    return directory


@pytest.fixture(scope="module")
def objects(sample):
    """Per object of the sample: (image, modal mask, annotation)."""
    document = json.loads((sample / "train.json").read_text())
    images = {
        record["id"]: cv2.imread(str(sample / "train" / record["file_name"]))[..., ::-1]
        for record in document["images"]
    }
    return [
        (images[entry["image_id"]], coco_mask.decode(entry["segmentation"]).astype(bool), entry)
        for entry in document["annotations"]
    ]


def _files(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_the_sample_is_as_hard_as_promised(objects):
    visible = np.array([mask.sum() for _, mask, _ in objects])
    full = np.array([entry["full_area"] for *_, entry in objects])
    widths = np.array([max(np.ptp(np.nonzero(mask), axis=1)) + 1 for _, mask, _ in objects])
    assert len({entry["category_id"] for *_, entry in objects}) >= 5
    assert len(objects) / 150 >= 6.0
    assert 0.30 <= np.mean(visible / full < 0.8) <= 0.40
    assert 0.25 <= np.mean(visible < 32**2) <= 0.35
    assert widths.max() > 0.85 * 160
    assert widths.min() >= 14


def test_every_object_can_be_recognised(objects):
    for _, mask, entry in objects:
        assert mask.sum() >= 100
        assert mask.sum() / entry["full_area"] >= 0.5


def test_rings_have_holes_and_nothing_else_has(objects):
    ring = CATEGORY_IDS[CLASS_NAMES.index("ring")]
    for _, mask, entry in objects:
        if mask.sum() < entry["full_area"]:  # what is in front may cut or make a hole
            continue
        _, hierarchy = cv2.findContours(
            mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
        )
        has_hole = bool((hierarchy[0, :, 3] >= 0).any())
        assert has_hole == (entry["category_id"] == ring)


def test_edges_of_objects_are_visible(objects):
    """Almost every outline is a stronger edge than three quarters of its picture's pixels."""
    strong = []
    for image, mask, _ in objects:
        gray = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (0, 0), 1.0)
        dx, dy = (cv2.Sobel(gray, cv2.CV_32F, *order) for order in ((1, 0), (0, 1)))
        strength = np.hypot(dx, dy)
        border = cv2.morphologyEx(
            mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)
        )
        strong.append(np.median(strength[border > 0]) > np.quantile(strength, 0.75))
    assert np.mean(strong) > 0.9


def test_colour_does_not_tell_the_class(objects):
    colours = {category_id: [] for category_id in CATEGORY_IDS}
    for image, mask, entry in objects:
        colours[entry["category_id"]].append(image[mask].mean(axis=0))
    means = np.array([np.mean(each, axis=0) for each in colours.values()])
    spread = np.mean([np.std(each, axis=0) for each in colours.values()])
    assert np.ptp(means, axis=0).max() < 0.6 * spread


def test_annotations_are_those_of_a_sound_coco_file(objects, sample):
    document = json.loads((sample / "train.json").read_text())
    ids = [entry["id"] for entry in document["annotations"]]
    assert len(set(ids)) == len(ids)
    covered = {}
    for image, mask, entry in objects:
        assert mask.shape == image.shape[:2] == (160, 160)
        ys, xs = np.nonzero(mask)
        box = [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
        assert entry["bbox"] == box
        assert entry["area"] == mask.sum()
        assert entry["iscrowd"] == 0
        covered[entry["image_id"]] = covered.get(entry["image_id"], 0) + mask
    assert max(count.max() for count in covered.values()) == 1  # modal masks never overlap


def test_the_data_layer_reads_it(sample):
    dataset = load_coco(sample / "train.json", sample / "train")
    assert dataset.category_ids == CATEGORY_IDS
    assert dataset.category_names == CLASS_NAMES
    assert list(CATEGORY_IDS) != list(range(1, 6))
    assert len(dataset.images) == 150
    assert all(record.annotations for record in dataset.images)


def test_measurements_agree_with_the_masks(objects, sample):
    measured = measure_synthetic_dataset(sample / "train.json")
    small = np.mean([mask.sum() < 1024 for _, mask, _ in objects])
    occluded = np.mean([mask.sum() < 0.8 * entry["full_area"] for _, mask, entry in objects])
    assert measured["objects"] == len(objects)
    assert measured["objects_per_image"] == len(objects) / 150
    assert measured["small_share"] == pytest.approx(small)
    assert measured["occluded_share"] == pytest.approx(occluded)
    assert 0.1 < measured["hole_share"] < 0.25  # a fifth are rings, some of them cut open
    assert sum(measured[f"objects/{name}"] for name in CLASS_NAMES) == len(objects)


def test_measurements_of_a_hand_made_file(tmp_path):
    """A frame with a hole that is covered by a third, and a small bar beside it."""
    frame, bar = np.zeros((64, 96), np.uint8), np.zeros((64, 96), np.uint8)
    frame[:48, :48] = 1
    frame[10:20, 10:20] = 0
    bar[60:62, 10:90] = 1
    entries = [
        {
            "image_id": 1,
            "category_id": 9,
            "segmentation": {**rle, "counts": rle["counts"].decode()},
            "area": int(coco_mask.area(rle)),
            "bbox": coco_mask.toBbox(rle).tolist(),
            "full_area": full_area,
        }
        for rle, full_area in (
            (coco_mask.encode(np.asfortranarray(frame)), (48 * 48 - 100) * 3 // 2),
            (coco_mask.encode(np.asfortranarray(bar)), 160),
        )
    ]
    path = tmp_path / "hand.json"
    document = {
        "images": [{"id": 1, "height": 64, "width": 96}],
        "annotations": entries,
        "categories": [{"id": 9, "name": "thing"}],
    }
    path.write_text(json.dumps(document))
    measured = measure_synthetic_dataset(path)
    assert measured["objects_per_image"] == 2
    assert measured["occluded_share"] == measured["small_share"] == measured["hole_share"] == 0.5
    assert measured["min_visible_area"] == 160
    assert measured["min_visible_share"] == pytest.approx(2 / 3)
    assert (measured["min_side"], measured["max_side"]) == (48 / 64, 80 / 64)


def test_same_seed_same_bytes(tmp_path):
    write_synthetic_dataset(tmp_path / "a", **SMALL)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        write_synthetic_dataset(tmp_path / "b", **SMALL)
    finally:
        cv2.setNumThreads(threads)
    write_synthetic_dataset(tmp_path / "c", **{**SMALL, "seed": 6})
    first = _files(tmp_path / "a")
    assert first == _files(tmp_path / "b")
    other = _files(tmp_path / "c")
    assert all(first[name] != other[name] for name in first)
    assert first["train/000001.jpg"] != first["val/000001.jpg"]


def test_a_larger_data_set_begins_with_the_smaller(tmp_path):
    write_synthetic_dataset(tmp_path / "small", **SMALL)
    write_synthetic_dataset(tmp_path / "large", **{**SMALL, "num_train": 6})
    small, large = _files(tmp_path / "small"), _files(tmp_path / "large")
    images = [name for name in small if name.endswith(".jpg")]
    assert [small[name] for name in images] == [large[name] for name in images]
    annotations = [json.loads(files["train.json"])["annotations"] for files in (small, large)]
    assert annotations[1][: len(annotations[0])] == annotations[0]


def test_image_sizes_are_taken_in_turn(tmp_path):
    write_synthetic_dataset(tmp_path, **SMALL)
    for record in json.loads((tmp_path / "train.json").read_text())["images"]:
        expected = SMALL["image_sizes"][(record["id"] - 1) % 2]
        image = cv2.imread(str(tmp_path / "train" / record["file_name"]))
        assert (record["height"], record["width"]) == image.shape[:2] == expected


def test_a_whole_data_set_is_left_alone(tmp_path):
    write_synthetic_dataset(tmp_path, **SMALL)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    write_synthetic_dataset(tmp_path, **SMALL)
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def _write_until_killed(directory, images_before_the_end):
    """Writes `SMALL`, and dies without notice while it draws a later image."""
    import os

    from solojax.data import synthetic

    drawn = 0

    def draw(*arguments):
        nonlocal drawn
        drawn += 1
        if drawn > images_before_the_end:
            os._exit(9)
        return draw_scene(*arguments)

    synthetic.draw_scene = draw
    synthetic.write_synthetic_dataset(directory, **SMALL)


@pytest.mark.parametrize("images_before_the_end", [2, 5])
def test_a_half_written_data_set_is_finished(tmp_path, images_before_the_end):
    write_synthetic_dataset(tmp_path / "whole", **SMALL)
    directory = tmp_path / "killed"
    process = multiprocessing.get_context("spawn").Process(
        target=_write_until_killed, args=(directory, images_before_the_end)
    )
    process.start()
    process.join()
    assert process.exitcode == 9
    assert not (directory / "val.json").exists()
    (directory / "train" / "000001.jpg").write_bytes(b"torn")
    write_synthetic_dataset(directory, **SMALL)
    assert _files(directory) == _files(tmp_path / "whole")


def test_a_half_written_data_set_with_other_settings_is_replaced(tmp_path):
    write_synthetic_dataset(tmp_path / "whole", **SMALL)
    directory = tmp_path / "killed"
    write_synthetic_dataset(directory, **{**SMALL, "num_train": 7})
    status = json.loads((directory / STATUS_FILE).read_text())
    (directory / STATUS_FILE).write_text(json.dumps({**status, "complete": False}))
    write_synthetic_dataset(directory, **SMALL)
    assert _files(directory) == _files(tmp_path / "whole")


def test_a_missing_image_is_drawn_again(tmp_path):
    write_synthetic_dataset(tmp_path, **SMALL)
    before = _files(tmp_path)
    (tmp_path / "val" / "000002.jpg").unlink()
    write_synthetic_dataset(tmp_path, **SMALL)
    assert _files(tmp_path) == before


def test_nothing_of_a_users_is_overwritten(tmp_path):
    held = tmp_path / "held"
    write_synthetic_dataset(held, **SMALL)
    before = _files(held)
    with pytest.raises(InputError, match="other settings \\(seed\\)"):
        write_synthetic_dataset(held, **{**SMALL, "seed": 1})
    assert _files(held) == before

    users = tmp_path / "users"
    users.mkdir()
    (users / "train.json").write_text("precious")
    with pytest.raises(InputError, match="name an empty directory"):
        write_synthetic_dataset(users, **SMALL)
    assert _files(users) == {"train.json": b"precious"}

    with pytest.raises(InputError, match="is a file"):
        write_synthetic_dataset(users / "train.json", **SMALL)
    (users / STATUS_FILE).write_text("[1, 2]")
    with pytest.raises(InputError, match="no status file"):
        write_synthetic_dataset(users, **SMALL)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"seed": -1}, "seed is -1"),
        ({"num_train": 0}, "num_train is 0"),
        ({"num_val": -2}, "num_val is -2"),
        ({"image_sizes": ()}, "image_sizes"),
        ({"image_sizes": (224, 224)}, "image_sizes"),
        ({"image_sizes": ((224, 224), (224,))}, "image_sizes"),
        ({"image_sizes": ((224, 95),)}, "at least 96"),
        ({"image_sizes": ((224.0, 224.0),)}, "image_sizes"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, wrong, message):
    with pytest.raises(InputError, match=message) as caught:
        write_synthetic_dataset(tmp_path / "data", **{**SMALL, **wrong})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_placed_shapes_cover_their_area(name):
    shape = place_shape(SHAPES[name], center_xy=(40.3, 31.8), scale=30.0, aspect=1.2, angle=0.7)
    coverage = rasterize_coverage(shape, origin_xy=(0, 0), size=(64, 80))
    assert coverage.dtype == np.float32
    assert coverage.sum() == pytest.approx(30.0**2, rel=0.002)
    ys, xs = np.mgrid[:64, :80] + 0.5
    center = [(coverage * axis).sum() / coverage.sum() for axis in (xs, ys)]
    # The triangle's contour is centred on its centroid too.
    np.testing.assert_allclose(center, (40.3, 31.8), atol=0.01)


def test_coverage_of_a_ring_matches_point_sampling():
    """Sixteen by sixteen samples a pixel, decided by the circles' equations."""
    shape = place_shape(SHAPES["ring"], center_xy=(20.0, 18.0), scale=20.0, aspect=1.0, angle=0.0)
    coverage = rasterize_coverage(shape, origin_xy=(2, 1), size=(40, 44))
    outer = 20.0 / np.sqrt(np.pi * (1 - 0.56**2))
    ys, xs = (np.mgrid[: 16 * 40, : 16 * 44] + 0.5) / 16
    radius = np.hypot(xs + 2 - 20.0, ys + 1 - 18.0)
    inside = (radius < outer) & (radius > 0.56 * outer)
    expected = inside.reshape(40, 16, 44, 16).mean(axis=(1, 3))
    assert np.abs(coverage - expected).max() < 0.1
    assert np.abs(coverage - expected).mean() < 0.003


def test_a_window_is_a_part_of_the_picture():
    shape = place_shape(SHAPES["cross"], center_xy=(30.6, 27.1), scale=25.0, aspect=0.9, angle=1.1)
    whole = rasterize_coverage(shape, origin_xy=(0, 0), size=(60, 60))
    part = rasterize_coverage(shape, origin_xy=(9, 5), size=(46, 44))
    np.testing.assert_allclose(part, whole[5:51, 9:53], atol=1e-6)
    assert whole.sum() == pytest.approx(part.sum(), rel=1e-6)


@pytest.mark.parametrize("texture", TEXTURES)
def test_textures_are_weights_with_variation(texture):
    field = texture(np.random.default_rng(3), 60, 90)
    assert field.shape == (60, 90)
    assert field.dtype == np.float32
    assert field.min() >= 0 and field.max() <= 1
    assert field.std() > 0.1


def test_textures_mix_two_colours_of_the_palette():
    image = draw_texture(np.random.default_rng(1), 50, 50).reshape(-1, 3)
    fits = []
    for first in range(len(PALETTE)):
        for second in range(first):
            step = PALETTE[second] - PALETTE[first]
            along = (image - PALETTE[first]) @ step / (step @ step)
            error = np.abs(PALETTE[first] + along[:, None] * step - image).max()
            fits.append(error < 0.01 and along.min() > -0.01 and along.max() < 1.01)
    assert sum(fits) == 1


def test_backgrounds_are_cluttered():
    """Even tiles of 16x16 pixels vary, by over 12 levels on average: few plain surfaces."""
    rng = np.random.default_rng(0)
    within = []
    for _ in range(8):
        background = draw_background(rng, 128, 160)
        assert background.min() >= 0 and background.max() <= 255
        within.append(background.reshape(8, 16, 10, 16, 3).std(axis=(1, 3)).mean())
    assert np.mean(within) > 12


def test_what_is_in_front_is_taken_from_what_is_behind():
    """The last object is whole; every pixel belongs to one object at most."""
    for seed in range(6):
        scene = draw_scene(np.random.default_rng(seed), 128, 160)
        assert scene.image.shape == (128, 160, 3)
        assert scene.image.dtype == np.uint8
        assert scene.objects[-1].visible.sum() == scene.objects[-1].full_area
        assert sum(each.visible.astype(int) for each in scene.objects).max() == 1
        assert all(each.visible.sum() <= each.full_area for each in scene.objects)

"""solojax.evaluators.coco against AP worked out by hand and against pycocotools used directly."""

from __future__ import annotations

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from solojax.errors import InputError
from solojax.evaluators.coco import CocoEvaluator

BACKENDS = ("fast", "reference")
ONE = pytest.approx(1.0, abs=1e-12)  # pycocotools guards a division: a perfect score is 1 - 2e-16
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def rle(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def rectangle(x, y, width, height, image_size=(40, 40)):
    mask = np.zeros(image_size, np.uint8)
    mask[y : y + height, x : x + width] = 1
    return mask


def annotation(number, mask, image_id=1, category_id=1, iscrowd=0):
    encoded = rle(mask)
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "iscrowd": iscrowd,
        "area": int(mask.sum()),
        "bbox": coco_mask.toBbox(encoded).tolist(),
        "segmentation": encoded,
    }


def result(mask, score, image_id=1, category_id=1):
    return {
        "image_id": image_id,
        "category_id": category_id,
        "score": score,
        "segmentation": rle(mask),
    }


def dataset(annotations, categories=("thing",), num_images=1, image_size=(40, 40)):
    height, width = image_size
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": height, "width": width}
            for i in range(1, num_images + 1)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(categories, start=1)],
        "annotations": annotations,
    }


def two_objects():
    return dataset([annotation(1, rectangle(0, 0, 10, 10)), annotation(2, rectangle(20, 20, 8, 8))])


def three_results():
    return [
        result(rectangle(0, 0, 10, 10), 0.9),
        result(rectangle(0, 20, 9, 9), 0.8),
        result(rectangle(20, 20, 5, 8), 0.7),
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_ap_by_hand(backend):
    # Found exactly, found nothing, found at IoU 40 / 64 = 0.625. Precision at the 51 recalls up to
    # 0.5 is 1; at the other 50 it is 2/3 where 0.625 is enough (3 thresholds of 10) and 0 beyond.
    loose, strict = (51 + 50 * 2 / 3) / 101, 51 / 101
    expected = {
        "AP": (3 * loose + 7 * strict) / 10,
        "AP50": loose,
        "AP75": strict,
        "APs": (3 * loose + 7 * strict) / 10,
        "APm": -1,
        "APl": -1,
        "AR1": 0.5,
        "AR10": (3 * 1 + 7 * 0.5) / 10,
        "AR100": (3 * 1 + 7 * 0.5) / 10,
        "ARs": (3 * 1 + 7 * 0.5) / 10,
        "ARm": -1,
        "ARl": -1,
    }
    figures = CocoEvaluator(two_objects(), backend=backend).run(three_results())
    assert list(figures) == ["mask", "box", "per_class"]
    assert figures["mask"] == pytest.approx(expected, abs=1e-12)
    assert figures["box"] == pytest.approx(expected, abs=1e-12)
    assert figures["per_class"] == {
        "thing": pytest.approx({"mask/AP": expected["AP"], "box/AP": expected["AP"]}, abs=1e-12)
    }
    assert all(type(value) is float for value in figures["mask"].values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_given_box_is_used_for_box_figures_alone(backend):
    results = three_results()
    results[0]["bbox"] = [30.0, 0.0, 10.0, 10.0]
    figures = CocoEvaluator(two_objects(), backend=backend).run(results)
    plain = CocoEvaluator(two_objects(), backend=backend).run(three_results())
    assert figures["mask"] == plain["mask"]
    # Of the boxes only the third finds anything, at rank 3: precision 1/3 up to recall 0.5.
    assert figures["box"]["AP50"] == pytest.approx(51 / 101 / 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_crowds_are_not_counted(backend):
    objects = [annotation(1, rectangle(0, 0, 10, 10))]
    crowd = annotation(2, rectangle(15, 0, 25, 40), iscrowd=1)
    results = [
        result(rectangle(16, 4, 5, 5), 0.99),  # inside the crowd
        result(rectangle(26, 4, 9, 9), 0.98),  # also inside: a crowd takes any number
        result(rectangle(0, 0, 10, 10), 0.5),
    ]
    with_crowd = CocoEvaluator(dataset([*objects, crowd]), backend=backend).run(results)
    without = CocoEvaluator(dataset(objects), backend=backend).run(results)
    assert with_crowd["mask"]["AP"] == with_crowd["box"]["AP"] == ONE
    assert with_crowd["mask"]["AR100"] == ONE
    assert without["mask"]["AP"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_area_of_a_mask_is_not_that_of_its_box(backend):
    size = (100, 100)
    frame = rectangle(10, 10, 60, 60, size) - rectangle(11, 11, 58, 58, size)  # 236 pixels of 3600
    truth = dataset([annotation(1, rectangle(80, 80, 10, 10, size))], image_size=size)
    results = [result(frame, 0.9), result(rectangle(80, 80, 10, 10, size), 0.5)]
    for entry in results:
        entry["bbox"] = coco_mask.toBbox(entry["segmentation"]).tolist()
    figures = CocoEvaluator(truth, backend=backend).run(results)
    assert figures["mask"]["APs"] == pytest.approx(0.5)  # the frame is a small false positive
    assert figures["box"]["APs"] == ONE  # its box is a medium one


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_mask_is_a_false_positive(backend):
    truth = dataset([annotation(1, rectangle(0, 0, 10, 10))])
    good = result(rectangle(0, 0, 10, 10), 0.5)
    empty = result(np.zeros((40, 40), np.uint8), 0.9)
    figures = CocoEvaluator(truth, backend=backend).run([empty, good])
    assert figures["mask"]["AP"] == figures["box"]["AP"] == pytest.approx(0.5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_categories_count_unless_they_are_ignored(backend):
    truth = dataset(
        [
            annotation(1, rectangle(0, 0, 10, 10), category_id=2),
            annotation(2, rectangle(20, 20, 8, 8), category_id=1),
        ],
        categories=("cat", "dog", "emu"),
    )
    results = [
        result(rectangle(0, 0, 10, 10), 0.9, category_id=2),
        result(rectangle(20, 20, 8, 8), 0.8, category_id=3),
    ]
    with_classes = CocoEvaluator(truth, backend=backend).run(results)
    assert with_classes["mask"]["AP"] == pytest.approx(0.5)  # cat 0, dog 1, emu undefined
    assert with_classes["per_class"] == {
        "cat": {"mask/AP": 0.0, "box/AP": 0.0},
        "dog": {"mask/AP": ONE, "box/AP": ONE},
        "emu": {"mask/AP": -1.0, "box/AP": -1.0},
    }
    results[0]["category_id"] = 4711
    del results[1]["category_id"]
    figures = CocoEvaluator(truth, backend=backend, class_agnostic=True).run(results)
    assert figures["mask"]["AP"] == figures["box"]["AP"] == ONE
    assert figures["mask"]["AR1"] == 0.5
    assert figures["per_class"] == {}


def random_data(seed, num_images=12, per_image=8):
    """Rectangles of all sizes, some crowds, scores with many ties, more than 100 on one image."""
    rng = np.random.default_rng(seed)
    size = (150, 200)

    def random_mask():
        side = int(rng.choice([12, 50, 120]))
        width, height = rng.integers(side // 2, side, 2)
        return rectangle(
            rng.integers(0, size[1] - width), rng.integers(0, size[0] - height), width, height, size
        )

    objects, results = [], []
    for image_id in range(1, num_images + 1):
        for _ in range(per_image if image_id != 3 else 0):
            category_id, mask = int(rng.integers(1, 5)), random_mask()
            crowd = int(rng.random() < 0.15)
            objects.append(annotation(len(objects) + 1, mask, image_id, category_id, crowd))
            shift = rng.integers(-4, 5, 2)
            results.append(
                result(
                    np.roll(mask, shift, (0, 1)),
                    round(float(rng.random()), 1),
                    image_id,
                    category_id if rng.random() < 0.8 else 1,
                )
            )
        for _ in range(130 if image_id == 5 else 4):
            score, category_id = round(float(rng.random()), 1), int(rng.integers(1, 5))
            results.append(result(random_mask(), score, image_id, category_id))
    rng.shuffle(results)
    names = ("a", "b", "c", "d", "never there")
    return dataset(objects, names, num_images, size), results


def straight_pycocotools(truth, results, iou_type, use_cats):
    """The library as its own demo uses it."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = copy.deepcopy(truth)
        ground_truth.createIndex()
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(copy.deepcopy(results)), iou_type)
        evaluation.params.useCats = use_cats
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NAMES, evaluation.stats, strict=False)), evaluation.eval["precision"]


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_both_backends_equal_pycocotools(seed, class_agnostic):
    truth, results = random_data(seed)
    figures = [
        CocoEvaluator(truth, backend=backend, class_agnostic=class_agnostic).run(results)
        for backend in BACKENDS
    ]
    # Without boxes in the results, pycocotools takes areas and boxes from the masks as we do; it
    # takes the area of boxes from the mask then, too, which only APs, APm and APl can tell.
    masks, precision = straight_pycocotools(truth, results, "segm", int(not class_agnostic))
    boxed = [
        {**entry, "bbox": coco_mask.toBbox(entry["segmentation"]).tolist()} for entry in results
    ]
    boxes, _ = straight_pycocotools(truth, boxed, "bbox", int(not class_agnostic))
    assert 0.1 < masks["AP"] < 0.9 and all(value > 0 for value in masks.values())
    for ours in figures:
        assert ours["mask"] == pytest.approx(masks, abs=1e-9)
        assert (ours["box"].pop("CorLoc", None) is not None) == class_agnostic
        assert ours["box"] == pytest.approx(boxes, abs=1e-9)
    if not class_agnostic:
        for k, name in enumerate(("a", "b", "c", "d")):
            expected = precision[:, :, k, 0, -1].mean()
            assert figures[0]["per_class"][name]["mask/AP"] == pytest.approx(expected, abs=1e-9)
            assert figures[1]["per_class"][name]["mask/AP"] == pytest.approx(expected, abs=1e-9)
        assert figures[0]["per_class"]["never there"]["mask/AP"] == -1


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_results_score_zero(backend, class_agnostic):
    evaluator = CocoEvaluator(two_objects(), backend=backend, class_agnostic=class_agnostic)
    expected = {name: 0.0 for name in NAMES} | {f"{a}{s}": -1.0 for a in ("AP", "AR") for s in "ml"}
    figures = evaluator.run(iter(()))
    assert figures["box"].pop("CorLoc", 0.0) == 0.0
    assert figures["mask"] == figures["box"] == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_find_is_undefined(backend):
    figures = CocoEvaluator(dataset([]), backend=backend).run(three_results())
    assert set(figures["mask"].values()) == set(figures["box"].values()) == {-1.0}


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_object_with_id_zero_can_be_found(backend):
    truth = dataset([annotation(0, rectangle(0, 0, 10, 10))])
    figures = CocoEvaluator(truth, backend=backend).run([result(rectangle(0, 0, 10, 10), 0.5)])
    assert figures["mask"]["AP"] == ONE


@pytest.mark.parametrize("backend", BACKENDS)
def test_runs_again_without_a_trace(backend, capfd):
    truth, results = random_data(2, num_images=3)
    kept = copy.deepcopy((truth, results))
    evaluator = CocoEvaluator(truth, backend=backend)
    first = evaluator.run(results)
    other = evaluator.run(results[:5])
    assert evaluator.run(entry for entry in results) == first != other
    assert (truth, results) == kept
    assert capfd.readouterr() == ("", "")


def test_numbers_of_numpy_and_counts_in_bytes():
    plain = three_results()
    converted = [
        {
            "image_id": np.int64(entry["image_id"]),
            "category_id": np.int32(entry["category_id"]),
            "score": np.float32(entry["score"]),
            "bbox": coco_mask.toBbox(entry["segmentation"]),
            "segmentation": {
                "size": np.array(entry["segmentation"]["size"]),
                "counts": entry["segmentation"]["counts"].encode(),
            },
        }
        for entry in plain
    ]
    evaluator = CocoEvaluator(two_objects())
    assert evaluator.run(converted)["mask"] == evaluator.run(plain)["mask"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_boxes_alone_need_no_masks(backend):
    truth = two_objects()
    full = CocoEvaluator(truth, backend=backend).run(three_results())
    results = three_results()
    for entry in results:
        entry["bbox"] = coco_mask.toBbox(entry.pop("segmentation")).tolist()
    for entry in truth["annotations"]:
        del entry["segmentation"]
    figures = CocoEvaluator(truth, backend=backend, kinds=("box",)).run(results)
    assert figures["box"] == full["box"] and "mask" not in figures
    assert set(figures["per_class"]["thing"]) == {"box/AP"}


def test_categories_of_one_name_are_told_apart():
    truth = dataset([annotation(1, rectangle(0, 0, 9, 9), category_id=3)], ("cat", "dog", "cat"))
    figures = CocoEvaluator(truth).run([result(rectangle(0, 0, 9, 9), 0.5, category_id=3)])
    assert {name: f["mask/AP"] for name, f in figures["per_class"].items()} == {
        "cat 1": -1.0,
        "dog": -1.0,
        "cat 3": 1.0,
    }


def test_annotations_from_a_file(tmp_path):
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(two_objects()))
    from_file = CocoEvaluator(path).run(three_results())
    assert from_file == CocoEvaluator(two_objects()).run(three_results())


def test_unknown_choices_are_errors():
    with pytest.raises(InputError, match="'quick'.*fast"):
        CocoEvaluator(two_objects(), backend="quick")
    with pytest.raises(InputError, match="keypoints"):
        CocoEvaluator(two_objects(), kinds=("keypoints",))


def test_a_bad_result_names_file_and_entry():
    results = three_results()
    results[1]["image_id"] = 5
    with pytest.raises(InputError, match=r"^predictions.json: entry 1 \(image_id 5\)"):
        CocoEvaluator(two_objects()).run(results, source="predictions.json")

"""Label files: what is written comes back, what made them is checked, published files load."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from solojax.data import label_file
from solojax.data.coco import load_coco
from solojax.data.loader import stack_examples
from solojax.data.rows import TrainRows
from solojax.errors import InputError

INFO = label_file.LabelInfo("0123456789abcdef", {"threshold": 0.5}, "runs/a", "made by a test")
E = 5


def box_rle(left, top, right, bottom, height=40, width=64):
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[top:bottom, left:right] = 1
    rle = mask_utils.encode(mask)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def image_entry(image_id):
    return {"id": image_id, "file_name": f"{image_id}.png", "height": 40, "width": 64}


def annotation(image_id, emb=None, **extra):
    entry = {
        "image_id": image_id, "segmentation": box_rle(8, 4, 24, 20), "area": 256,
        "bbox": [8, 4, 16, 16], "score": 0.75,
    }  # fmt: skip
    return entry | ({} if emb is None else {"emb": emb}) | extra


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / "masks.json"
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3, E)).astype(np.float32)
    embeddings = [label_file.embedding_as_list(vector) for vector in vectors]
    annotations = [annotation(1, embeddings[0]), annotation(3, embeddings[1]),
                   annotation(1, embeddings[2])]  # fmt: skip
    images = [image_entry(number) for number in (1, 2, 3)]
    label_file.write(path, images=images, annotations=annotations, info=INFO)
    return path, vectors


def test_what_is_written_comes_back(labels, tmp_path):
    path, vectors = labels
    assert label_file.read_info(path) == INFO
    for dataset in (load_coco(path, tmp_path), label_file.load_labels(path, tmp_path)):
        assert [len(image.annotations) for image in dataset.images] == [2, 0, 1]
        found = [a.embedding for image in dataset.images for a in image.annotations]
        np.testing.assert_array_equal(found, vectors[[0, 2, 1]])
        assert [(c.id, c.name) for c in dataset.categories] == [(1, "object")]
        assert dataset.images[0].annotations[0].bbox_xywh == (8, 4, 16, 16)
        assert label_file.embedding_size(dataset) == E


def test_other_tools_open_it(labels):
    from pycocotools.coco import COCO

    coco = COCO(str(labels[0]))
    assert sorted(coco.getAnnIds()) == [1, 2, 3]
    assert coco.annToMask(coco.loadAnns(2)[0]).sum() == 256


def test_info_is_read_without_the_rest_and_with_other_spacing(labels):
    path, _ = labels
    whole = path.read_text()
    path.write_text(whole[: whole.index('"images"')])
    assert label_file.read_info(path) == INFO
    path.write_text(json.dumps(json.loads(whole), indent=1))
    assert label_file.read_info(path) == INFO


def test_entries_are_read_one_at_a_time(tmp_path):
    path, vector = tmp_path / "masks.json", [0.123456789] * 128
    label_file.write(
        path,
        images=[image_entry(1)],
        annotations=(annotation(1, vector, score=n / 2000) for n in range(2000)),
        info=INFO,
    )
    assert list(label_file.read_entries(path, "images")) == [image_entry(1)]
    first, *_, last = (each["score"] for each in label_file.read_entries(path, "annotations"))
    assert (first, last) == (0.0, 1999 / 2000)
    tracemalloc.start()
    for each in label_file.read_entries(path, "annotations"):
        assert each["emb"] == vector
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < path.stat().st_size / 10


def test_sections_without_entries_are_read(tmp_path):
    path = tmp_path / "masks.json"
    label_file.write(path, images=[image_entry(1)], annotations=[], info=INFO)
    assert list(label_file.read_entries(path, "annotations")) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: json.dumps(json.loads(text), indent=1), "not an entry a line"),
        (lambda text: text[: text.rindex("\n]")], "have no end"),
        (lambda text: text[: text.rindex("0.75")], "Expecting value"),
    ],
)
def test_entries_of_a_damaged_file_are_refused(labels, damage, message):
    path, _ = labels
    path.write_text(damage(path.read_text()))
    with pytest.raises(InputError, match=f'{path}: .*"annotations".*{message}.*; remove the file'):
        list(label_file.read_entries(path, "annotations"))
    path.unlink()
    with pytest.raises(InputError, match="No such file"):
        list(label_file.read_entries(path, "annotations"))


def test_fingerprint_depends_on_values_shapes_names_and_settings_alone():
    variables = {"a": {"x": np.arange(6, dtype=np.float32)}, "b": np.ones((), np.float32)}
    base = label_file.fingerprint(variables, {"s": 1, "t": [0.5]})
    same = {"b": np.ones((), np.float32), "a": {"x": np.arange(6, dtype=np.float32)}}
    assert label_file.fingerprint(same, {"t": [0.5], "s": 1}) == base
    changed = {"a": {"x": np.array([0, 1, 2, 3, 4, 6], np.float32)}, "b": np.ones((), np.float32)}
    reshaped = {"a": {"x": variables["a"]["x"].reshape(2, 3)}, "b": variables["b"]}
    renamed = {"a": {"y": variables["a"]["x"]}, "b": variables["b"]}
    others = [label_file.fingerprint(v, {"s": 1, "t": [0.5]}) for v in (changed, reshaped, renamed)]
    others.append(label_file.fingerprint(variables, {"s": 2, "t": [0.5]}))
    assert len({base, *others}) == 5


def test_stale_or_foreign_labels_are_refused(labels):
    path, _ = labels
    label_file.check_fingerprint(path, INFO.fingerprint, "runs/a")
    with pytest.raises(InputError, match="stale or foreign labels, made by runs/a"):
        label_file.check_fingerprint(path, "f" * 16, "runs/b")
    for settings, told in (({"threshold": 0.25}, "other threshold"), (INFO.settings, "weights")):
        with pytest.raises(InputError, match=told):
            label_file.check_fingerprint(path, "f" * 16, "runs/a", settings)
    path.write_text(json.dumps({"info": {}, "images": [], "annotations": [], "categories": []}))
    with pytest.raises(InputError, match="does not say what made it"):
        label_file.check_fingerprint(path, INFO.fingerprint, "runs/a")


def test_published_mask_files_load(tmp_path):
    """Corners as bbox, ids that begin anew, COCO's categories, no fingerprint."""
    path = tmp_path / "published.json"
    entries = [annotation(1, [0.5] * E, id=0, category_id=1, iscrowd=0) for _ in range(2)]
    entries.append(entries[0] | {"image_id": 2, "bbox": [40.0, 20.0, 60.0, 38.0],
                                 "segmentation": box_rle(40, 20, 60, 38)})  # fmt: skip
    categories = [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}]
    contents = {"images": [image_entry(1), image_entry(2)], "categories": categories}
    path.write_text(json.dumps(contents | {"annotations": entries}))
    assert label_file.read_info(path) is None
    dataset = label_file.load_labels(path, tmp_path)
    assert dataset.category_names == ("object",)
    assert [a.id for image in dataset.images for a in image.annotations] == [0, 1, 2]
    assert all(a.bbox_xywh is None for image in dataset.images for a in image.annotations)
    # The box comes from the mask then.
    image = np.zeros((40, 64, 3), np.uint8)
    rows = TrainRows(_Images(dataset, image), 64, 2, embedding_size=E)
    example = rows(1, 40, False, (64, 64), 0)
    assert example["boxes"][0].tolist() == [40, 20, 60, 38]


class _Images:
    def __init__(self, dataset, image):
        self.dataset, self.image = dataset, image

    def read(self, index):
        return self.image, self.dataset.images[index]


def test_embeddings_of_different_lengths_are_refused(tmp_path):
    path = tmp_path / "masks.json"
    images = [image_entry(1)]
    for embeddings, lengths in (([[0.5] * E, None], "5, none"), ([[1.0], [1.0, 2.0]], "1, 2")):
        entries = [annotation(1, emb) for emb in embeddings]
        label_file.write(path, images=images, annotations=entries, info=INFO)
        with pytest.raises(InputError, match=f"different lengths \\({lengths}\\)"):
            label_file.load_labels(path, tmp_path)


@pytest.mark.parametrize("emb", ["a text", [], ["a"], [[1.0]], [float("nan")]])
def test_an_embedding_that_is_none_is_refused_with_its_entry(tmp_path, emb):
    path = tmp_path / "masks.json"
    label_file.write(path, images=[image_entry(1)], annotations=[annotation(1, emb)], info=INFO)
    with pytest.raises(InputError, match='annotation entry 0 .*"emb"'):
        load_coco(path, tmp_path)


def test_images_without_objects_are_counted_and_left_out(labels, tmp_path):
    dataset = label_file.load_labels(labels[0], tmp_path)
    kept, dropped = label_file.without_empty_images(dataset)
    assert ([image.id for image in kept.images], dropped) == ([1, 3], 1)


def test_embeddings_travel_to_the_batch(labels, tmp_path):
    path, vectors = labels
    dataset = _Images(load_coco(path, tmp_path), np.zeros((40, 64, 3), np.uint8))
    rows = TrainRows(dataset, 64, 3, embedding_size=E)
    batch = stack_examples([rows(0, 40, True, (64, 64), 0), rows.empty((64, 64))])
    expected = np.zeros((2, 3, E), np.float32)
    expected[0, :2] = vectors[[0, 2]]
    np.testing.assert_array_equal(batch.instances.embeddings, expected)
    rows = TrainRows(dataset, 64, 3)
    assert stack_examples([rows(0, 40, True, (64, 64), 0)]).instances.embeddings is None


def test_the_data_sets_fingerprint_sees_embeddings(labels, tmp_path):
    path, _ = labels
    before = load_coco(path, tmp_path).fingerprint
    contents = json.loads(path.read_text())
    contents["annotations"][0]["emb"][0] += 1
    path.write_text(json.dumps(contents))
    assert load_coco(path, tmp_path).fingerprint != before


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match="absent.json: cannot read the labels"):
        label_file.read_info(tmp_path / "absent.json")
    (tmp_path / "bad.json").write_text('{"info": {"fingerprint": ')
    with pytest.raises(InputError, match="bad.json: not valid json"):
        label_file.read_info(tmp_path / "bad.json")

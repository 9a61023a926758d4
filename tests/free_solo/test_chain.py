"""FreeSOLO as a chain: rules, the rounds' configs, recipe, bad input."""

from __future__ import annotations

import json
import shlex
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.photos import color_backbone, write_photos

from solojax.builders.segmentation import build_task
from solojax.cli.main import main
from solojax.config import load_config
from solojax.data import label_file
from solojax.errors import InputError
from solojax.free_solo import chain
from solojax.free_solo.free_masks import load_photos
from solojax.free_solo.overlays import FoundSummary
from solojax.free_solo.pseudo_labels import LabelRule, LabelSummary
from solojax.free_solo.stages import (
    Stages,
    check_same_backbone,
    free_mask_run,
    recipe,
    round_config,
)
from solojax.postprocess.free_mask_labels import FreeMaskFilters
from solojax.postprocess.rescale import encode_rle
from solojax.tasks.free_solo import FreeSOLO

TINY = "configs/freesolo.py:tiny"
MANY = f"{TINY},many"


def result(score, left=0.0, width=10.0):
    return {"score": score, "bbox": [left, 0.0, width, 5.0]}


def test_labels_are_the_best_few_above_the_score_and_not_too_wide():
    rule = LabelRule(score_threshold=0.3, max_labels=2, max_width=0.95)
    found = [result(0.2), result(0.9, width=95), result(0.3), result(0.5, left=60, width=94)]
    assert [r["score"] for r in rule.choose(found, 100)] == [0.5]
    # The width decides, wherever the box is: the published code takes off the left edge.
    assert rule.choose([result(0.9, left=50, width=94.9)], 100)
    assert not rule.choose([result(0.9, left=5, width=95)], 100)
    everything = LabelRule(score_threshold=0.0, max_labels=None, max_width=None)
    assert len(everything.choose([*found, result(0.1, width=0)], 100)) == 4  # empty masks are none


def test_every_round_starts_alike_on_labels_of_its_own(tmp_path):
    config = load_config(TINY)
    stages = Stages(tmp_path / "w", rounds=2)
    one, other = (round_config(config, tmp_path, stages, k, "runs/b") for k in (0, 2))
    assert one.data.train_annotations == str(tmp_path / "w" / "masks.json")
    assert other.data.train_annotations == str(tmp_path / "w" / "labels2.json")
    other.data.train_annotations = one.data.train_annotations
    assert one == other and one.model.backbone.checkpoint == "runs/b"
    assert config.model.backbone.checkpoint == ""


def recipe_of(overrides=(), backbone=None, images="photos", masks=None):
    config = load_config(MANY, overrides)
    pretraining = "configs/densecl.py:tiny"
    text = recipe(config, Path(images), Stages(Path("w"), 1, masks), spec=MANY, overrides=overrides,
                  backbone=backbone, pretraining=pretraining)  # fmt: skip
    return [shlex.split(line)[1:] for line in text.splitlines()]


def test_the_recipe_names_every_stage_with_its_settings():
    overrides = ["--config.free_mask.min_center=0.3", "--config.seed=3"]
    backbone, search, first, labels, second, last = recipe_of(overrides, images="my photos")
    workdir, images = Path("w").absolute(), str(Path("my photos").absolute())
    assert backbone[:4] == ["solojax", "train", "--config", "configs/densecl.py:tiny"]
    assert f"--config.data.train_annotations={workdir}/images.json" in backbone
    assert search[:4] == ["solojax", "free-mask", "--checkpoint", f"{workdir}/backbone"]
    assert search[4:8] == ["--images", images, "--output", f"{workdir}/masks.json"]
    config = load_config(MANY, overrides)
    search.remove("--components")
    given = dict(zip(search[8::2], search[9::2], strict=True))
    assert given["--min_piece_area"] == str(config.free_mask.min_piece_area)
    assert given["--short_side"] == str(config.free_mask.short_side)
    assert (given["--min_center"], given["--stage"], given["--scales"]) == ("0.3", "3", "0.25")
    for words, name in ((first, "masks.json"), (second, "labels1.json")):
        assert {*overrides, f"--config.data.root={images}"} <= set(words)
        # Relative to data.root unless it is absolute.
        assert f"--config.data.train_annotations={workdir}/{name}" in words
        assert f"--config.model.backbone.checkpoint={workdir}/backbone" in words
    assert labels[1] == f"{workdir}/round0" and last[-1] == f"{workdir}/predictions.json"


def test_the_recipe_of_a_segmenter_that_trains_on_names_no_backbone():
    _, first, *_ = recipe_of(["--config.model.checkpoint=runs/s"], backbone="b.pth")
    assert "--config.model.checkpoint=runs/s" in first
    assert not any("backbone.checkpoint" in word for word in first)


def test_the_recipe_of_masks_made_elsewhere_searches_none():
    _, given, first, *_ = recipe_of(masks=Path("m.json"))
    assert given == ["masks", "made", "elsewhere:", str(Path("m.json").absolute())]
    assert f"--config.data.train_annotations={Path('m.json').absolute()}" in first


def test_the_task_gets_what_the_config_says():
    """Every weight of the losses, and the doubled batch's two rows an image."""
    values = {
        "max_projection_weight": 0.5, "mean_projection_weight": 0.25, "pairwise_weight": 0.75,
        "pairwise_warmup_steps": 7, "pairwise_dilation": 3, "color_threshold": 0.4,
        "ignored_bottom_rows": 4, "projection_epsilon": 1e-4, "semantic_weight": 2.0,
        "mask_weight": 1.5,
    }  # fmt: skip
    overrides = [f"--config.loss.{name}={value}" for name, value in values.items()]
    overrides += ["--config.loss.group_images=2", "--config.strong.hue=0.2"]
    task = build_task(load_config(TINY, overrides), 1)
    assert isinstance(task, FreeSOLO)
    assert {name: getattr(task, name) for name in values} == values
    assert task.loss_group_images == 4 and task.augment.keywords["hue"] == 0.2
    assert task.model.head.embedding_width == 128
    plain = build_task(load_config(f"{TINY},no_semantic", ["--config.strong.enabled=false"]), 1)
    assert plain.augment is None and plain.model.head.embedding_width is None


def test_free_mask_settings_come_from_the_config():
    overrides = ["--config.free_mask.scales=0.5,", "--config.free_mask.max_masks=3",
                 "--config.free_mask.max_width=none", "--config.model.embedding=16"]  # fmt: skip
    how = free_mask_run(load_config("configs/freesolo.py", overrides))
    assert (how.settings.scales, how.settings.max_masks, how.settings.embedding_size) == (
        (0.5,), 3, 16,
    )  # fmt: skip
    assert (how.filters.max_width, how.filters.min_maskness, how.short_side) == (None, 0.7, 800)
    assert not how.filters.components
    overrides = ["--config.free_mask.min_piece_area=30", "--config.free_mask.max_width=0.5"]
    many = free_mask_run(load_config(MANY, overrides))
    assert many.filters == FreeMaskFilters(0.7, None, 0.5, components=True, min_piece_area=30)
    described = many.described()
    assert described["components"] is True and described["min_piece_area"] == 30
    assert many.stage == described["stage"] == 3 and how.stage == 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no such folder"),
        (lambda folder: folder.mkdir(), "no image there"),
        (lambda folder: (folder.mkdir(), (folder / "a.png").write_bytes(b"x")), "none of the 1"),
    ],
)
def test_folders_without_images_are_refused_in_a_line(tmp_path, capsys, make, message):
    make(tmp_path / "photos")
    arguments = ["--images", str(tmp_path / "photos"), "--workdir", str(tmp_path / "w")]
    assert main(["free-solo", *arguments]) == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("solojax free-solo: ") and message in line
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "configs/solov2.py"], "is for instance_segmentation"),
        (["--config", f"{TINY},supervised"],
         "(data.train_annotations=annotations/instances_train2017.json), which a chain makes"),
        (["--pretraining", "configs/solov2.py"], "is for instance_segmentation"),
        (["--backbone", "b", "--pretraining", "configs/densecl.py"], "has no part"),
        (["--config", "configs/freesolo.py:r50"],
         "model.backbone.depth 50 and 18; model.backbone.width 64 and 32: give a --pretraining"),
        (["--config.model.pixel_std=1.0,1.0,1.0"], "model.pixel_std (1.0, 1.0, 1.0) and (58"),
        (["--config.model.backbone.norm=group_norm"], "norm 'group_norm' and 'batch_norm'"),
    ],
)  # fmt: skip
def test_configs_that_do_not_belong_together_are_refused_before_any_work(
    tmp_path, capsys, arguments, message
):
    photos = write_photos(tmp_path / "photos")
    base = ["--images", str(photos), "--workdir", str(tmp_path / "w")]
    assert main(["free-solo", *base, *arguments]) == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert message in line and not (tmp_path / "w").exists()


def test_backbones_that_only_train_otherwise_are_the_same():
    ours, theirs = load_config("configs/freesolo.py"), load_config("configs/densecl.py")
    assert ours.model.backbone.norm != theirs.model.backbone.norm
    check_same_backbone(ours, theirs)
    ours.model.checkpoint = "runs/s"  # takes no backbone
    check_same_backbone(ours, load_config("configs/densecl.py:tiny"))


def test_files_that_are_cut_off_are_told_and_take_no_further_part(tmp_path, monkeypatch):
    """Their headers are whole, so that Free Mask is the first to find out."""
    folder = write_photos(tmp_path / "photos")
    whole = (folder / "c" / "0.png").read_bytes()
    (folder / "c" / "cut.png").write_bytes(whole[: len(whole) // 2])
    monkeypatch.setattr(chain, "load_backbone", lambda _: color_backbone())
    overrides = [
        "free_mask.min_maskness=0.5",
        "free_mask.short_side=192",
        "free_mask.long_side=400",
    ]
    config = load_config(TINY, [f"--config.{override}" for override in overrides])
    dataset, unread = load_photos(folder)
    assert len(dataset.images) == 8 and unread == ()
    for _ in range(2):  # the second time from the file
        stages = Stages(tmp_path / "w", 1)
        summary, readable, cut_off = chain._find_masks(config, "b", dataset, stages, unread)
        assert cut_off == ("c/cut.png",) and summary.images == len(readable.images) == 7
        assert summary.objects > 7


def test_a_backbone_of_other_photos_under_the_same_names_is_refused(tmp_path):
    """Pre-training itself compares names alone."""
    folder, stages = write_photos(tmp_path / "photos"), Stages(tmp_path / "w", 1)

    def list_images():
        chain._list_images(load_photos(folder)[0], stages)

    list_images()
    path = folder / "c" / "2.png"
    photo = path.read_bytes()
    path.write_bytes((folder / "c" / "3.png").read_bytes())
    assert len(photo) != path.stat().st_size
    before = stages.images.read_bytes()
    list_images()  # nothing has been trained yet
    listed = stages.images.read_bytes()
    assert listed != before
    (stages.backbone / "checkpoints" / "5").mkdir(parents=True)
    path.write_bytes(photo)
    with pytest.raises(InputError, match=f"are not those that {stages.backbone} was trained on"):
        list_images()
    assert stages.images.read_bytes() == listed
    path.write_bytes((folder / "c" / "3.png").read_bytes())
    list_images()


def write_masks(folder, names, path, embedding=(1.0, 0.0)):
    """A label file of one block in each of the named images."""
    images, annotations = [], []
    for number, name in enumerate(names, start=1):
        image = cv2.imread(str(folder / name))
        height, width = (9, 9) if image is None else image.shape[:2]
        mask = np.zeros((height, width), np.uint8)
        mask[2:8, 3:9] = 1
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        label = {"image_id": number, "segmentation": encode_rle(mask), "area": 36.0, "score": 0.5}
        annotations.append(label | ({"emb": list(embedding)} if embedding else {}))
    info = label_file.LabelInfo("f" * 16, {}, "elsewhere")
    label_file.write(path, images=images, annotations=annotations, info=info)
    return path


def test_masks_made_elsewhere_take_the_place_of_free_masks(tmp_path, monkeypatch):
    """Nothing is searched; the first training has them, and the others labels of the workdir."""
    folder, workdir = write_photos(tmp_path / "photos"), tmp_path / "w"
    masks = write_masks(folder, ["b/one.png", "c/2.png"], tmp_path / "masks.json")
    config = load_config(TINY, ["--config.model.embedding=2"])
    trained, empty = [], LabelSummary(0, 0, 0)
    monkeypatch.setattr(chain, "find_masks", None)
    monkeypatch.setattr(chain, "starting_weights", lambda _: "")
    monkeypatch.setattr(
        chain, "run_training", lambda config, *_: trained.append(config.data.train_annotations)
    )
    monkeypatch.setattr(chain, "_label", lambda *_: empty)
    monkeypatch.setattr(chain, "_predict", lambda *_: empty)
    dataset, _ = load_photos(folder)
    stages = Stages(workdir, config.self_training.rounds, masks)
    summary = chain.run_free_solo(config, dataset, stages, backbone="b")
    assert trained == [str(masks), str(workdir / "labels1.json")]
    assert summary.labels == (LabelSummary(2, 2, 0), empty)


@pytest.mark.parametrize(("own", "left"), [(True, 5), (False, 7)])
def test_masks_of_all_images_tell_which_of_them_are_cut_off(tmp_path, own, left):
    """Those that a chain has found itself, and is given; others may be of some images alone."""
    dataset, _ = load_photos(write_photos(tmp_path / "photos"))
    settings = {"images": dataset.fingerprint if own else "others"}
    info = label_file.LabelInfo("f" * 16, settings, "runs/b")
    images = label_file.image_entries(dataset.images)
    label_file.write(tmp_path / "masks.json", images=images[2:], annotations=[], info=info)
    summary, rest, cut_off = chain._given_masks(dataset, tmp_path / "masks.json")
    assert summary == LabelSummary(5, 0, 5) and rest.images == dataset.images[-left:]
    assert cut_off == tuple(image.file_name for image in dataset.images[: 7 - left])


@pytest.mark.parametrize(
    ("names", "embedding", "message"),
    [
        (["c/2.png", "one.png"], (1.0, 0.0), "1 of its 2 images .* one.png the first: give"),
        (["c/2.png"], (1.0, 0.0, 0.0), "have embeddings of 3 numbers"),
        (["c/2.png"], None, "have no embeddings"),
        ([], None, "no object|no image"),
    ],
)
def test_masks_that_do_not_fit_are_refused_before_any_work(tmp_path, names, embedding, message):
    folder, workdir = write_photos(tmp_path / "photos"), tmp_path / "w"
    masks = write_masks(folder, names, tmp_path / "masks.json", embedding)
    config, (dataset, _) = load_config(TINY, ["--config.model.embedding=2"]), load_photos(folder)
    with pytest.raises(InputError, match=message):
        chain.run_free_solo(config, dataset, Stages(workdir, config.self_training.rounds, masks))
    assert not workdir.exists()


def test_masks_of_another_checkpoint_are_refused_unless_told(tmp_path, monkeypatch):
    """The refusal says how to tell."""
    folder, stages = write_photos(tmp_path / "photos"), Stages(tmp_path, 1)
    write_masks(folder, ["c/2.png"], stages.labels(0))
    monkeypatch.setattr(chain, "load_backbone", lambda _: color_backbone())
    dataset, _ = load_photos(folder)
    with pytest.raises(InputError, match=f"foreign labels.* give --masks {stages.labels(0)}$"):
        chain._find_masks(load_config(TINY), "b", dataset, stages, ())


def test_predictions_are_made_with_the_settings_of_now(tmp_path, monkeypatch):
    """And made again where they change; the labels of rounds are as they were."""
    folder, stages = write_photos(tmp_path / "photos"), Stages(tmp_path / "w", 1)
    dataset, _ = load_photos(folder)
    trained = load_config(TINY, ["--config.evaluation.sigma=1.0"])

    def load(checkpoint, config=lambda trained: trained):
        variables = {"a": np.ones(2, np.float32)}
        return types.SimpleNamespace(variables=variables, step=3, config=config(trained))

    def write(model, dataset, output, rule, checkpoint):
        info = chain.labels_info(model, dataset, rule, checkpoint)
        if output.exists():
            label_file.check_fingerprint(output, info.fingerprint, checkpoint)
            return False
        write_masks(folder, ["a/one.png"], output)
        found = json.loads(output.read_text())
        label_file.write(
            output, images=found["images"], annotations=found["annotations"], info=info
        )
        return True

    monkeypatch.setattr(chain, "load", load)
    monkeypatch.setattr(chain, "write_labels", write)
    for override in ("score_threshold=0.2", "score_threshold=0.2", "max_detections=7"):
        config = load_config(TINY, [f"--config.evaluation.{override}"])
        chain._label(config, dataset, stages, 1)
        chain._predict(config, dataset, stages)
        labels, predictions = (
            label_file.read_info(path).settings["evaluation"]
            for path in (stages.labels(1), stages.predictions)
        )
        assert labels == json.loads(json.dumps(trained.evaluation.to_dict()))
        assert predictions == json.loads(json.dumps(config.evaluation.to_dict()))
    assert trained.evaluation.sigma == 1.0
    config.self_training.picture_threshold = 0.6
    before = (stages.overlays / "a_one.png").read_bytes()
    assert chain._predict(config, dataset, stages) == FoundSummary(1, 1, 0, 0.6)
    assert (stages.overlays / "a_one.png").read_bytes() != before


def test_pictures_do_not_outlive_their_predictions(tmp_path):
    """Else those of an older model stayed where a run is stopped before it has drawn new ones."""
    stages = Stages(tmp_path, 1)

    def leave(fingerprint):
        """What a whole run leaves, by a model of this fingerprint."""
        info = label_file.LabelInfo(fingerprint, {}, "runs/a")
        label_file.write(stages.predictions, images=[], annotations=[], info=info)
        stages.overlays.mkdir(exist_ok=True)
        (stages.overlays / "a.png").write_bytes(b"")
        return info

    wanted = leave("new")
    chain._forget_others(stages, wanted)
    assert stages.predictions.exists() and (stages.overlays / "a.png").exists()
    leave("old")
    chain._forget_others(stages, wanted)
    assert not stages.predictions.exists() and not stages.overlays.exists()
    leave("new")
    stages.predictions.unlink()  # by a person
    chain._forget_others(stages, wanted)
    assert not stages.overlays.exists()
    chain._forget_others(stages, wanted)  # there is nothing yet

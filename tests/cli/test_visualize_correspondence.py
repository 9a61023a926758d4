"""`solojax visualize correspondence`, for every kind of checkpoint."""

from __future__ import annotations

import json

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import foreign_states as foreign
from helpers.small_densecl import SmallBackbone
from helpers.tiny_run import call, refusal

from solojax.builders.contrast import build_contrast_task, example_views
from solojax.builders.network import build_backbone
from solojax.config import base_config, load_config, to_json
from solojax.features.correspondence_pictures import MatchSettings, view_pairs, view_settings
from solojax.features.frozen_backbone import load_backbone
from solojax.interop.safetensors_file import write_safetensors
from solojax.train.checkpoints import Checkpointer

FLAGS = ("--size", "32x32")
WIDTH = 32  # of what is two convolutions here


@pytest.fixture(scope="module", autouse=True)
def small_backbone():
    """Two convolutions in the place of ResNets of width 32: one map of a cell every four pixels."""

    def build(backbone, remat, dtype, group=None):
        if backbone.width != WIDTH:
            return build_backbone(backbone, remat, dtype, group)
        return SmallBackbone(group, dtype)

    with pytest.MonkeyPatch.context() as patch:
        for module in ("builders.contrast", "features.frozen_backbone"):
            patch.setattr(f"solojax.{module}.build_backbone", build)
        yield


def tiny_contrastive():
    config = load_config("configs/densecl.py:tiny")
    config.views.size = (32, 32)
    config.seed = 3
    return config


def tiny_segmentation():
    config = base_config()
    config.model.backbone.depth, config.model.backbone.width = 18, WIDTH
    return config


def save_run(workdir, config, *backbones):
    """What a run leaves, of the backbone: a checkpoint for each, at steps 10, 20, ..."""
    with Checkpointer(workdir / "checkpoints") as checkpointer:
        for index, variables in enumerate(backbones, start=1):
            state = {name: {"backbone": part} for name, part in variables.items()}
            state |= {"extra": {"queues": np.zeros(3)}}
            checkpointer.save(10 * index, state, {"config": to_json(config)})
    return workdir


def draw_weights(seed):
    """Variables of `SmallBackbone`, with running statistics as if trained."""
    shapes = jax.eval_shape(SmallBackbone().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(seed)
    values = {"scale": np.ones, "var": np.ones}
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: values.get(path[-1].key, lambda s: 0.2 * rng.standard_normal(s))(
            leaf.shape
        ).astype(np.float32),
        shapes,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a contrastive and a segmentation run, and photos."""
    folder = tmp_path_factory.mktemp("runs")
    save_run(folder / "contrast", tiny_contrastive(), draw_weights(0), draw_weights(1))
    save_run(folder / "segment", tiny_segmentation(), draw_weights(1))
    photos = folder / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        coarse = rng.integers(0, 255, (6, 8, 3)).astype(np.uint8)
        image = cv2.resize(coarse, (120, 90), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(photos / f"{index}.png"), image)
    return folder


def compare(runs, output, *words, checkpoints=("contrast",), flags=FLAGS):
    paths = [path if path == "random" else runs / path for path in checkpoints]
    images = ["--images", runs / "photos", "--output", output]
    return call("visualize", "correspondence", "--checkpoint", *paths, *images, *flags, *words)


def report_of(outcome, output):
    assert outcome.code == 0, outcome
    return json.loads((output / "correspondence.json").read_text())


@pytest.fixture(scope="module")
def compared(runs, tmp_path_factory):
    output = tmp_path_factory.mktemp("matches") / "new"
    checkpoints = ("random", "contrast", "segment")
    outcome = compare(runs, output, checkpoints=checkpoints)
    return output, outcome, report_of(outcome, output)


def test_every_kind_of_checkpoint_is_compared(runs, compared):
    output, outcome, report = compared
    titles = [each["checkpoint"] for each in report["checkpoints"]]
    assert titles == [
        "random weights, seed 0",
        f"{runs}/contrast at step 20",
        f"{runs}/segment at step 10",
    ]
    # The same weights twice, and others.
    others, *same = ([image["checkpoints"][i] for image in report["images"]] for i in range(3))
    assert same[0] == same[1] != others
    assert [line.split("  ")[-1] for line in outcome.out.splitlines()[1:4]] == titles
    assert outcome.out.splitlines()[-1] == f"3 pictures of 3 images: {output}"
    pictures = sorted(path.name for path in output.glob("*.png"))
    assert pictures == ["0.png", "1.png", "2.png"]
    height, width, _ = cv2.imread(str(output / "0.png")).shape
    assert height > 3 * 384 and width > 2 * 384  # three pairs of views below each other


def test_counts_are_those_of_two_loops(runs, compared):
    _, _, report = compared
    backbone = load_backbone(runs / "contrast")
    settings = MatchSettings((32, 32), (0.1, 0.9))
    paths = sorted((runs / "photos").iterdir())
    (pairs,) = view_pairs(paths, settings, [])
    pixels = pairs.pixels[: len(paths)]
    assert 0 <= pixels.min() < pixels.max() <= 255
    images = (pixels - backbone.pixel_mean) / backbone.pixel_std
    maps = backbone.network.apply(backbone.variables, images.reshape(-1, 32, 32, 3))[-1]
    assert maps.shape == (6, 8, 8, 12)
    cells = np.asarray(maps, np.float64).reshape(3, 2, 64, 12)
    cells /= np.linalg.norm(cells, axis=-1, keepdims=True)
    similarities = []
    for index, (first, second) in enumerate(cells):
        cosine = first @ second.T
        found = [cosine[a].max() for a in range(64) if cosine[:, cosine[a].argmax()].argmax() == a]
        counts = report["images"][index]["checkpoints"][1]
        assert counts == {"matches": len(found), "kept": int(np.sum(np.array(found) >= 0.9))}
        similarities += found
    mean = report["checkpoints"][1]
    assert mean["matches"] == pytest.approx(
        np.mean([image["checkpoints"][1]["matches"] for image in report["images"]])
    )
    assert mean["similarity"] == pytest.approx(np.mean(similarities), rel=1e-5)
    assert 0 < mean["kept"] < mean["matches"]


def test_the_same_seed_gives_the_same_files_and_another_others(runs, compared, tmp_path):
    output, _, report = compared
    again = report_of(compare(runs, tmp_path / "again"), tmp_path / "again")
    assert [image["checkpoints"][0] for image in again["images"]] == [
        image["checkpoints"][1] for image in report["images"]
    ]
    other = report_of(compare(runs, tmp_path / "other", "--seed", "1"), tmp_path / "other")
    assert other["images"] != again["images"] and other["settings"]["seed"] == 1


def test_views_are_those_of_pretraining_unless_given(runs, tmp_path):
    contrast, segment = (load_backbone(runs / name) for name in ("contrast", "segment"))
    trained = {"size": (32, 32), "blur_sigma": (0.1, 0.9)}
    assert view_settings([contrast], None) == view_settings([segment, contrast], None) == trained
    assert view_settings([segment], None) == {"size": (224, 224), "blur_sigma": (0.1, 2.0)}
    assert view_settings([contrast], (96, 64))["blur_sigma"] == pytest.approx((0.1, 1.8))
    assert view_settings([segment], (112, 224))["blur_sigma"] == pytest.approx((0.1, 1.0))
    settings = report_of(compare(runs, tmp_path, flags=()), tmp_path)["settings"]
    assert settings["size"] == [32, 32] and settings["blur_sigma"] == [0.1, 0.9]


def test_blur_follows_the_settings(runs):
    paths = sorted((runs / "photos").iterdir())
    sharp, blurred = (
        next(view_pairs(paths, MatchSettings((32, 32), sigma), [])).pixels[:3]
        for sigma in ((0.1, 0.1), (2.0, 2.0))
    )
    roughness = [np.abs(np.diff(pixels, axis=2)).mean() for pixels in (sharp, blurred)]
    assert roughness[1] < 0.9 * roughness[0]


def test_without_a_threshold_all_matches_are_drawn_and_only_some_images(runs, tmp_path):
    outcome = compare(runs, tmp_path, "--threshold", "none", "--pictures", "1")
    report = report_of(outcome, tmp_path)
    (mean,) = report["checkpoints"]
    assert report["settings"]["threshold"] is None and mean["kept"] == mean["matches"] > 0
    assert [path.name for path in tmp_path.glob("*.png")] == ["0.png"]
    assert "all kept" in outcome.out and "1 pictures of 3 images" in outcome.out


def test_steps_of_one_run_from_its_beginning(runs, tmp_path):
    report = report_of(compare(runs, tmp_path, "--step", "0,10,last"), tmp_path)
    titles = [each["checkpoint"] for each in report["checkpoints"]]
    assert titles == [f"{runs}/contrast at step {step}" for step in (0, 10, 20)]
    counts = [[image["checkpoints"][i] for image in report["images"]] for i in range(3)]
    assert counts[0] != counts[1] and counts[1] != counts[2]


def test_step_0_is_the_state_that_a_run_begins_with(runs):
    config = tiny_contrastive()
    task, batch = build_contrast_task(config), example_views(config)
    params = jax.jit(lambda key: task.init(key, batch)["params"])(jax.random.key(config.seed))
    found = load_backbone(runs / "contrast", step=0).variables["params"]
    jax.tree.map(np.testing.assert_array_equal, found, params["backbone"])
    assert not np.array_equal(
        found["conv0"]["kernel"],
        load_backbone(runs / "segment").variables["params"]["conv0"]["kernel"],
    )


def test_files_that_cannot_be_read_are_left_out_and_counted(runs, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "0.png").write_bytes((runs / "photos" / "0.png").read_bytes())
    (photos / "1.png").write_text("no image")
    words = ["--checkpoint", runs / "contrast", "--images", photos, "--output", tmp_path / "out"]
    outcome = call("visualize", "correspondence", *words, *FLAGS)
    report = report_of(outcome, tmp_path / "out")
    assert report["skipped"] == [str(photos / "1.png")] and len(report["images"]) == 1
    assert "1 could not be read" in outcome.out
    (photos / "0.png").unlink()
    outcome = call("visualize", "correspondence", *words, *FLAGS)
    refusal(outcome, "none of the 1 image files could be read", "1.png")


@pytest.mark.parametrize(
    ("words", "options", "parts"),
    [
        (["--threshold", "2"], {}, ["--threshold", "2 is no cosine", "-1 to 1, or none"]),
        (["--threshold", "high"], {}, ["--threshold", "high is no cosine"]),
        ([], {"flags": ("--size", "60x64")}, ["60x64", "multiples of 32"]),
        ([], {"flags": ("--stage", "6")}, ["--stage", "6"]),
        (["--seed", "-1"], {}, ["--seed", "-1 is not a whole number"]),
        (["--step", "first"], {}, ["--step first", "'first' is no step"]),
        (["--step", "15"], {}, ["no checkpoint '15'", "[10, 20]"]),
        (["--step", "10"], {"checkpoints": ["photos/0.png"]}, ["is a file", "no step 10"]),
        (["--stage", "4"], {}, ["no C4", "from 5 to 5"]),
        (["--step", "0"], {"checkpoints": ["segment"]}, ["step 0", "contrastive runs", "'random'"]),
        ([], {"checkpoints": ["random"]}, ["--checkpoint random", "another checkpoint"]),
        ([], {"checkpoints": ["absent"]}, ["absent does not exist"]),
        (["--level", "1"], {}, ["--level belongs to `solojax visualize grid`"]),
        (["--config.seed=1"], {}, ["--config.seed=1 belongs to `solojax visualize grid`"]),
    ],
)
def test_bad_input(runs, tmp_path, words, options, parts):
    refusal(compare(runs, tmp_path / "out", *words, **options), *parts)


def test_a_grid_refuses_what_belongs_to_correspondence(runs, tmp_path):
    words = ["--checkpoint", runs / "a", runs / "b", "--images", runs / "photos" / "0.png"]
    output = ["--output", tmp_path / "grid.png"]
    refusal(call("visualize", "grid", *words, *output), "a grid is that of one checkpoint")
    outcome = call("visualize", "grid", *words, *output, "--threshold", "0.5")
    refusal(outcome, "--threshold belongs to `solojax visualize correspondence`")


def test_a_file_of_another_system(runs, tmp_path):
    state = foreign.fill(foreign.resnet(depth=18, width=4))
    rng = np.random.default_rng(0)
    for name, value in state.items():
        if value.ndim == 4:
            spread = np.sqrt(2 / np.prod(value.shape[1:]))
            state[name] = (spread * rng.standard_normal(value.shape)).astype(np.float32)
        elif name.endswith("running_var"):
            state[name] = np.ones_like(value)
    file = tmp_path / "backbone.safetensors"
    write_safetensors(file, state)
    kernel = np.transpose(state["conv1.weight"], (2, 3, 1, 0))
    np.testing.assert_array_equal(
        load_backbone(file).variables["params"]["conv1"]["kernel"], kernel
    )
    words = ["--checkpoint", file, "--images", runs / "photos" / "0.png", "--output", tmp_path]
    outcome = call("visualize", "correspondence", *words, "--size", "64x64", "--stage", "3")
    (mean,) = report_of(outcome, tmp_path)["checkpoints"]
    assert mean["checkpoint"] == str(file) and 1 <= mean["matches"] <= 64


def test_weights_that_make_no_numbers_are_named(runs, tmp_path):
    variables = draw_weights(0)
    variables["batch_stats"]["bn1"]["var"][:] = -1
    save_run(tmp_path / "broken", tiny_contrastive(), variables)
    words = ["--checkpoint", tmp_path / "broken", "--images", runs / "photos" / "0.png"]
    outcome = call("visualize", "correspondence", *words, "--output", tmp_path / "out", *FLAGS)
    refusal(outcome, "0.png", "broken at step 10 are not finite numbers")

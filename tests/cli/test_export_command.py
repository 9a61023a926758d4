"""`solojax export`, and the files it writes in a process that has no solojax."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import tiny_run
from helpers.tiny_run import call, refusal, use_nano_network
from jax import export

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "run_exported.py"
# Whatever is installed, `import solojax` fails in it.
WITHOUT_SOLOJAX = (
    "import runpy, sys; sys.modules['solojax'] = None; sys.argv = sys.argv[1:]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    """A finished run of the nano network, which stays in its place."""
    with pytest.MonkeyPatch.context() as patch:
        use_nano_network(patch)
        yield tiny_run.finished_nano_run(tmp_path_factory)


@pytest.fixture(scope="module")
def folder(nano, tmp_path_factory):
    """Programs for two canvases, and what was said of the first."""
    folder = tmp_path_factory.mktemp("exported")
    first = run_export(nano, folder / "square.jaxexport")
    second = run_export(nano, folder / "flat.jaxexport", "--canvas", "32x64", "--batch", "2")
    assert (first.code, second.code) == (0, 0), (first, second)
    (folder / "said.txt").write_text(first.out)
    return folder


def run_export(run, output, *words):
    return call("export", "--checkpoint", run.workdir, "--output", output, *words)


def run_loader(cwd, *words) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_SOLOJAX, str(SCRIPT), *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
    )


def test_the_program_and_its_settings(nano, folder):
    program, settings = (
        folder / "square.jaxexport",
        json.loads((folder / "square.json").read_text()),
    )
    loaded = export.deserialize(bytearray(program.read_bytes()))
    assert loaded.platforms == ("cpu", "cuda", "tpu") == tuple(settings["platforms"])
    assert settings["canvas"] == [64, 64] and settings["batch"] == 1
    assert (settings["short_side"], settings["long_side"]) == (64, 64)
    assert settings["pixel_order"] == "RGB" and settings["mask_threshold"] == 0.5
    names = {category["id"]: category["name"] for category in tiny_run.CATEGORIES}
    ids = [category["id"] for category in settings["categories"]]
    assert ids == sorted(names) and len(ids) == 5
    assert {each["id"]: each["name"] for each in settings["categories"]} == names
    assert [each["shape"] for each in settings["inputs"]] == [
        list(each.shape) for each in loaded.in_avals
    ]
    outputs = {each["name"]: (each["shape"], each["dtype"]) for each in settings["outputs"]}
    names = sorted(outputs)  # as JAX orders the leaves of a dict
    assert [outputs[name] for name in names] == [
        (list(each.shape), str(each.dtype)) for each in loaded.out_avals
    ]
    lines = (folder / "said.txt").read_text().splitlines()
    assert lines[0].startswith(f"{program}: ") and "1 image(s) of 64x64" in lines[0]
    assert lines[0].endswith("for cpu, cuda, tpu")
    assert lines[1].startswith(f"{folder / 'square.json'}: ")


def test_without_the_package_the_results_are_those_of_predict(nano, folder, tmp_path):
    """Square images on one canvas, a flat one on the other, all with the same command."""
    images = tmp_path / "images"
    images.mkdir()
    for number in (0, 1, 7):
        source = nano.data / "images" / f"image_{number}.png"
        (images / source.name).write_bytes(source.read_bytes())
    flat = np.random.default_rng(0).integers(0, 256, (31, 90, 3), dtype=np.uint8)
    flat[8:20, 10:60] = (40, 40, 220)
    cv2.imwrite(str(images / "flat.png"), flat)
    paths = sorted(images.iterdir())

    words = [folder / "square.jaxexport", folder / "flat.jaxexport"]
    outcome = run_loader(tmp_path, *words, "--images", *paths, "--output", "results.json")
    assert outcome.returncode == 0, outcome.stderr
    mine = json.loads((tmp_path / "results.json").read_text())
    assert outcome.stdout == f"{len(mine)} objects in 4 images: results.json\n"

    flags = ["--checkpoint", nano.workdir, "--images", images, "--output", tmp_path / "out"]
    assert call("predict", *flags).code == 0
    theirs = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {result["file_name"] for result in theirs} == {path.name for path in paths}
    assert len(mine) == len(theirs)
    for found, expected in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(found.pop("score"), expected.pop("score"), rtol=1e-6, atol=0)
        assert found == expected


def test_ids_of_images_from_annotations(nano, folder, tmp_path):
    words = [folder / "square.jaxexport", "--images", nano.data / "images" / "image_8.png"]
    annotations = ["--annotations", nano.data / "val.json"]
    outcome = run_loader(tmp_path, *words, *annotations, "--output", "results.json")
    assert outcome.returncode == 0, outcome.stderr
    scored = ["--predictions", tmp_path / "results.json", *annotations]
    assert {each["image_id"] for each in json.loads((tmp_path / "results.json").read_text())} == {
        92
    }
    assert call("evaluate", *scored).code == 0


def test_an_image_that_no_program_holds(nano, folder, tmp_path):
    words = ["--images", nano.data / "images" / "image_0.png", "--output", "results.json"]
    outcome = run_loader(tmp_path, folder / "flat.jaxexport", *words)
    assert outcome.returncode == 1 and not (tmp_path / "results.json").exists()
    assert outcome.stderr.strip().endswith(
        "image_0.png: 64x64 once resized, which fits no canvas; export one"
    )


def test_settings_of_another_program(nano, folder, tmp_path):
    (tmp_path / "a.jaxexport").write_bytes((folder / "square.jaxexport").read_bytes())
    (tmp_path / "a.json").write_bytes((folder / "flat.json").read_bytes())
    words = ["--images", nano.data / "images" / "image_0.png", "--output", "results.json"]
    outcome = run_loader(tmp_path, "a.jaxexport", *words)
    assert outcome.returncode == 1
    assert outcome.stderr == (
        "a.jaxexport: a.json beside it belongs to another program; export again\n"
    )


# Bad input.


@pytest.mark.parametrize(
    "flags, parts",
    [
        (["--canvas", "60x64"], ["--canvas", "60x64", "multiples of 32"]),
        (["--canvas", "big"], ["'big'", "HEIGHTxWIDTH"]),
        (["--platforms", "cpu,gpu"], ["platform 'gpu' is unknown", "cuda"]),
        (["--platforms", ","], ["platforms: the list is empty"]),
        (["--batch", "0"], ["--batch", "'0'", "symbolic"]),
        (["--batch", "some"], ["--batch", "'some'"]),
        (["--step", "worst"], ["'worst'", "'best'"]),
        (["--config.seeds=1"], ["did you mean 'seed'"]),
    ],
)
def test_bad_flags(nano, tmp_path, flags, parts):
    outcome = run_export(nano, tmp_path / "model.jaxexport", *flags)
    refusal(outcome, *parts)
    assert outcome.err.count("\n") == 1 and outcome.out == ""
    assert not any(tmp_path.iterdir())


def test_an_output_that_is_a_folder(nano, tmp_path):
    refusal(run_export(nano, tmp_path), f"--output {tmp_path}", "is a folder", "path of a file")
    (tmp_path / "model.json").mkdir()
    outcome = run_export(nano, tmp_path / "model.jaxexport")
    refusal(outcome, f"{tmp_path / 'model.json'}", "is a folder")


def test_without_flatbuffers(nano, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    refusal(run_export(nano, tmp_path / "m"), "flatbuffers", "pip install flatbuffers")


def test_a_checkpoint_that_is_not_there(nano, tmp_path):
    words = ["--checkpoint", tmp_path / "run", "--output", tmp_path / "model.jaxexport"]
    refusal(call("export", *words), str(tmp_path / "run"), "does not exist")


def test_a_canvas_that_holds_no_image_is_said(nano, tmp_path, caplog):
    outcome = run_export(nano, tmp_path / "m.jaxexport", "--canvas", "32x32")
    assert outcome.code == 0
    (line,) = [each for each in caplog.messages if "no image fits" in each]
    assert "canvas 32x32" in line and "short_side 64" in line


def test_a_full_disk_leaves_what_was_there(nano, tmp_path, monkeypatch):
    path = tmp_path / "model.jaxexport"
    path.write_bytes(b"before")

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    refusal(run_export(nano, path), "No space left", "free some space")
    assert [each.name for each in tmp_path.iterdir()] == ["model.jaxexport"]
    assert path.read_bytes() == b"before"

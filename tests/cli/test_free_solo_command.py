"""Where the work directory of `solojax free-solo` may be."""

from __future__ import annotations

import json

import pytest
from helpers.photos import SIZES, write_photos
from helpers.tiny_run import call, refusal


@pytest.fixture
def photos(tmp_path):
    """A folder of photos, a link to it, and a place to run in."""
    folder = write_photos(tmp_path / "photos")
    (tmp_path / "link").symlink_to(folder)
    return folder


@pytest.mark.parametrize(
    ("images", "workdir"),
    [
        (".", "runs/x"),
        (".", "."),
        ("../photos", "../link/runs"),
        ("../link", "runs"),
    ],
)
def test_a_workdir_among_the_images_is_refused_before_any_work(
    photos, monkeypatch, images, workdir
):
    """Its pictures would be images of the second run."""
    monkeypatch.chdir(photos)
    outcome = call("free-solo", "--images", images, "--workdir", workdir)
    refusal(outcome, f"--workdir {workdir} is in --images {images}", "outside of the images")
    assert not (photos / "runs").exists()


def list_images(folder, path):
    images = [
        {"id": number, "file_name": name, "height": size[0], "width": size[1]}
        for number, (name, size) in enumerate(SIZES.items(), start=1)
    ]
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    return path


@pytest.mark.parametrize("case", ["beside", "around", "hidden", "listed"])
def test_other_workdirs_are_not(photos, tmp_path, monkeypatch, case):
    """Stopped at the first stage, whose folder is made already."""
    workdir = {"beside": tmp_path / "photos2", "around": tmp_path}.get(case, photos / "w")
    if case == "hidden":
        workdir = photos / ".runs" / "w"
    listed = list_images(photos, tmp_path / "all.json")
    more = ["--annotations", listed] if case == "listed" else []

    def stop(*_, **__):
        raise KeyError("begun")

    monkeypatch.setattr("solojax.free_solo.chain.run_free_solo", stop)
    with pytest.raises(KeyError, match="begun"):
        call("free-solo", "--images", photos, "--workdir", workdir, *more)

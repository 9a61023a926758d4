"""`solojax aot` from the outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jax
import pytest
from helpers.small_densecl import use_small_backbone
from helpers.tiny_run import NANO_CONFIG, call, refusal, use_nano_network

from solojax.aot.devices import has_compiler

WORDS = ("aot", "--config", NANO_CONFIG)


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """What the verb sets for libtpu is gone after a test."""
    for name in ("TPU_SKIP_MDS_QUERY", "JAX_PLATFORMS", "TPU_WORKER_HOSTNAMES",
                 "TPU_ACCELERATOR_TYPE", "TPU_MIN_LOG_LEVEL", "TPU_LOG_DIR"):  # fmt: skip
        monkeypatch.setenv(name, "cpu" if name == "JAX_PLATFORMS" else "1")
        if name != "JAX_PLATFORMS":
            monkeypatch.delenv(name)


@pytest.fixture
def no_slice(monkeypatch):
    """This host's devices in the place of a slice's, and a network that compiles at once."""
    use_nano_network(monkeypatch)
    monkeypatch.setattr("solojax.aot.devices.has_compiler", lambda: True)
    monkeypatch.setattr("solojax.aot.report.slice_devices", lambda _: jax.devices()[:2])
    monkeypatch.setattr("solojax.aot.report.metadata.version", lambda package: "1.0")


def test_a_report_on_the_devices_of_this_host(no_slice, tmp_path):
    path = tmp_path / "reports" / "report.json"
    outcome = call(*WORDS, "--topology", "v5e:4x4", "--canvas", "64x96", "--output", path)
    assert outcome.code == 0, outcome
    report = json.loads(path.read_text())
    assert report["topology"] == "v5e:4x4" and report["num_classes"] == 80
    for step in ("train", "predict"):
        # The config's batch of 4 over 2 devices.
        assert report[step]["per_chip_batch"] == 2 and report[step]["canvas"] == [64, 96]
        assert report[step]["fits"] and report[step]["largest_batch"]["estimate"]
    assert os.environ["TPU_SKIP_MDS_QUERY"] == "1"
    assert "train" in outcome.out and str(path) in outcome.out


@pytest.mark.slow
def test_a_contrastive_config(no_slice, tmp_path, monkeypatch):
    """Its training step alone; the search for a batch ends where the queue no longer fits."""
    use_small_backbone(monkeypatch)
    path = tmp_path / "report.json"
    words = ("--config.contrast.queue_length=64", "--config.model.backbone.norm_group_images=4")
    outcome = call(
        "aot", "--config", "configs/densecl.py:tiny", *words, "--topology", "v5e:4x4",
        "--canvas", "32x64", "--per-chip-batch", 16, "--find-batch", "--output", path,
    )  # fmt: skip
    assert outcome.code == 0, outcome
    report = json.loads(path.read_text())
    assert report["queue_length"] == 64 and "predict" not in report
    train = report["train"]
    assert train["canvas"] == [32, 64] and train["per_chip_batch"] == 16
    assert [each["per_chip_batch"] for each in train["further_batches"]] == [32]
    assert "an image is two views; 2 queue(s) of 64 embeddings" in outcome.out
    refusal(call("aot", "--config", "configs/densecl.py", "--topology", "v5e:4x4", "--steps",
                 "predict"), "densecl has no step 'predict'")  # fmt: skip


def test_one_step_alone(no_slice):
    words = ("--topology", "v6e:2x2", "--steps", "predict", "--per-chip-batch", "1")
    outcome = call(*WORDS, *words, "--canvas", "64x64")
    assert outcome.code == 0 and "train" not in outcome.out, outcome


@pytest.mark.parametrize(
    "words, parts",
    [
        (("--topology", "v5e:3x3"), ["--topology 'v5e:3x3'", "no such slice", "4x4"]),
        (("--topology", "h100"), ["'h100'", "v4:2x2x4", "v5e:4x4"]),
        (("--topology", "v5e:4x4", "--canvas", "801x1344"), ["801x1344", "multiples of 32"]),
        (("--topology", "v5e:4x4", "--per-chip-batch", "0"), ["--per-chip-batch 0", "1 or more"]),
        (("--topology", "v5e:4x4", "--steps", "serve"), ["'serve'", "train, predict"]),
        (("--topology", "v5e:4x4", "--output", "."), ["--output", "folder"]),
        ((), ["--topology"]),
    ],
)
def test_bad_flags(words, parts, monkeypatch):
    monkeypatch.setattr("solojax.aot.devices.has_compiler", lambda: True)
    refusal(call(*WORDS, *words), *parts)


def test_without_the_compiler(monkeypatch):
    monkeypatch.setattr("solojax.aot.devices.has_compiler", lambda: False)
    refusal(call(*WORDS, "--topology", "v5e:4x4"), 'pip install "solojax[aot]"', "libtpu")


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="libtpu is not installed")


@pytest.mark.slow
@needs_compiler
def test_the_tpu_compiler_itself(tmp_path):
    path = tmp_path / "report.json"
    words = ["--topology", "v5e:2x2", "--steps", "predict", "--canvas", "64x64"]
    done = subprocess.run(
        [sys.executable, "-m", "solojax", "aot", "--config", "configs/quickstart.py", *words,
         "--output", str(path)],
        capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # libtpu's own log stays away.
    assert all(line.startswith("compiling") for line in done.stderr.splitlines()), done.stderr
    predict = json.loads(path.read_text())["predict"]
    assert predict["fits"] and predict["peak_bytes"] < 2**30
    assert predict["flops_per_image"] > 1e6 and predict["hbm_bytes_per_image"] > 1e6
    assert "all-gather" not in [each["op"] for each in predict["collectives"]]


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name", ["v4:2x2x4", "v5e:4x4", "v5p:2x2x4", "v6e:4x4"])
def test_every_kind_has_a_device_for_each_chip(name):
    program = (
        "import sys; from solojax.aot.chips import parse_topology;"
        "from solojax.aot.devices import slice_devices;"
        "print(len(slice_devices(parse_topology(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", program, name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "16"), done.stderr

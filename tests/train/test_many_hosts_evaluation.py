"""Evaluation on several processes writes the files that one process writes, byte for byte.

The same two processes gather json and save a state whose optimizer is spread over both.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from helpers import host_process
from helpers.tiny_run import edit_json, use_nano_network, write_data

from solojax.train.checkpoints import Checkpointer
from solojax.train.sharding import make_mesh

needs_four = pytest.mark.skipif(jax.device_count() < 4, reason="fewer than 4 devices")
IMAGES = 11


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eleven images of two sizes in turn, one of which cannot be read."""
    root = write_data(tmp_path_factory.mktemp("hosts") / "data")

    def multiply(document):
        images, annotations = document["images"], document["annotations"]
        for number in range(len(images), IMAGES):
            original = images[number % 3]
            image = original | {"id": 200 - 7 * number, "file_name": f"copy_{number}.png"}
            folder = root / "images"
            shutil.copy(folder / original["file_name"], folder / image["file_name"])
            for each in [a for a in annotations if a["image_id"] == original["id"]]:
                place = {"id": 1000 + len(annotations), "image_id": image["id"]}
                annotations.append(copy.deepcopy(each) | place)
            images.append(image)

    edit_json(root / "val.json", multiply)
    (root / "images" / "copy_5.png").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """(figures, results file) of one process with one and with four devices, an image on each."""
    folder = tmp_path_factory.mktemp("alone")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        use_nano_network(patch)
        for devices in (1, 4):
            path = folder / f"{devices}.json"
            config = host_process.nano_config(data, batch_size=devices)
            found[devices] = host_process.evaluate(config, path), path.read_bytes()
    return found


def start(processes: int, devices: int, data: Path, output: Path) -> list[str]:
    """Runs `helpers/host_process.py` in so many processes; returns what they say."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    running = [
        subprocess.Popen(
            [sys.executable, host_process.__file__]
            + [address, str(process), str(processes), str(data), str(output)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(processes)
    ]
    try:
        texts = [process.communicate(timeout=300)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * processes, "\n".join(texts)
    return texts


@pytest.fixture(scope="module")
def two(data, tmp_path_factory):
    """The output folder and the texts of two processes with two devices each."""
    output = tmp_path_factory.mktemp("two")
    return output, start(2, 2, data, output)


@needs_four
def test_one_and_four_devices_write_the_same_file(alone):
    (figures, one), (others, four) = alone[1], alone[4]
    assert figures == others and one == four
    results = json.loads(one)
    assert len(results) > 50 and len({each["image_id"] for each in results}) == IMAGES - 1


@needs_four
def test_results_stand_in_the_order_of_the_data_set(alone, data):
    ids = [image["id"] for image in json.loads((data / "val.json").read_text())["images"]]
    results = json.loads(alone[4][1])
    places = [(ids.index(each["image_id"]), -each["score"]) for each in results]
    assert places == sorted(places)


@needs_four
def test_two_processes_write_the_same_file_and_know_the_same_figures(alone, two):
    output, texts = two
    figures, one = alone[1]
    assert (output / "results.json").read_bytes() == one
    for process in range(2):
        assert json.loads((output / f"figures_{process}.json").read_text()) == figures
    assert figures["mask"]["AP"] >= 0
    # The image that is broken lies on one of them, and all of them say so.
    assert all(f"1 of {IMAGES} images could not be read" in text for text in texts)


@needs_four
def test_json_is_gathered_in_pieces(two):
    expected = [host_process.message(process) for process in range(2)]
    for process in range(2):
        assert json.loads((two[0] / f"gathered_{process}.json").read_text()) == expected


@needs_four
@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("shard_optimizer", [False, True])
def test_a_spread_state_of_two_processes_is_restored_in_one(two, devices, shard_optimizer):
    template = host_process.placed(make_mesh(jax.devices()[:devices]), shard_optimizer)
    with Checkpointer(two[0] / "checkpoints") as checkpointer:
        state, _, step = checkpointer.restore(template)
    assert step == 3
    host_process.assert_same(state, host_process.host_state())


@needs_four
@pytest.mark.slow
def test_four_processes_write_the_same_file(alone, data, tmp_path):
    start(4, 1, data, tmp_path)
    assert (tmp_path / "results.json").read_bytes() == alone[1][1]

"""`solojax` with the nano network, as a process of its own: python nano_process.py VERB flags.

Environment variables of the tests, which the project itself knows nothing of:
JAX_VERSION_OF_TEST    the version of JAX that this process claims to have.
ERROR_AT_STEP_OF_TEST  the batch of this step cannot be read.
DATA_ROOT_OF_TEST      where this process finds the data set, in place of data.root.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys

import pytest
from helpers.tiny_run import use_nano_network

import solojax.builders.segmentation
import solojax.runs.segmentation
from solojax.cli.main import main
from solojax.errors import InputError


def claim_version(patch: pytest.MonkeyPatch, claimed: str) -> None:
    """Another version of JAX, as far as package metadata goes."""
    version = importlib.metadata.version
    patch.setattr(
        importlib.metadata, "version", lambda name: claimed if name == "jax" else version(name)
    )


def break_batch(patch: pytest.MonkeyPatch, step: int) -> None:
    """The batch of a step raises what a bad image raises."""
    build = solojax.runs.segmentation.build_train_batches

    def broken_build(*args, **kwargs):
        make_batches = build(*args, **kwargs)

        def batches(start):
            for number, batch in enumerate(make_batches(start), start):
                if number == step:
                    raise InputError("photo.jpg is unlike its annotation; mend it")
                yield batch

        return batches

    patch.setattr(solojax.runs.segmentation, "build_train_batches", broken_build)


def move_data(patch: pytest.MonkeyPatch, root: str) -> None:
    """The data sets of another folder, as on a host whose disk holds others."""

    def move(module, name):
        load = getattr(module, name)

        def load_moved(config):
            config = config.copy_and_resolve_references()
            config.data.root = root
            return load(config)

        patch.setattr(module, name, load_moved)

    move(solojax.runs.segmentation, "load_train_set")
    move(solojax.builders.segmentation, "load_val_set")


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        use_nano_network(patch)
        if claimed := os.environ.get("JAX_VERSION_OF_TEST"):
            claim_version(patch, claimed)
        if step := os.environ.get("ERROR_AT_STEP_OF_TEST"):
            break_batch(patch, int(step))
        if root := os.environ.get("DATA_ROOT_OF_TEST"):
            move_data(patch, root)
        sys.exit(main(sys.argv[1:]))

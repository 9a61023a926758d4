"""`solojax` with two convolutions for a backbone, as a process: python probe_process.py VERB flags.

In a process of the tests, `use_small_untrained_backbone` does the same.
"""

from __future__ import annotations

import sys

import pytest
from helpers.small_densecl import SmallBackbone

from solojax.cli.main import main


def use_small_untrained_backbone(patch: pytest.MonkeyPatch) -> None:
    """Puts `SmallBackbone` in the place of the ResNet of `--checkpoint random`."""
    patch.setattr(
        "solojax.features.frozen_backbone.build_backbone", lambda *arguments: SmallBackbone()
    )


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        use_small_untrained_backbone(patch)
        sys.exit(main(sys.argv[1:]))

"""One of several processes that find masks: python free_mask_process.py flags of `free-mask`.

Any checkpoint is the backbone of colours.
"""

from __future__ import annotations

import sys

from helpers.photos import color_backbone

import solojax.features.frozen_backbone
from solojax.cli.main import main

if __name__ == "__main__":
    solojax.features.frozen_backbone.load_backbone = lambda *_: color_backbone()
    sys.exit(main(["free-mask", *sys.argv[1:]]))

"""Prints the mask AP that thresholds and connected components reach on a COCO-format data set.

python scripts/threshold_baseline.py --annotations DIR/val.json --images DIR/val
"""

from __future__ import annotations

import argparse
import sys

from solojax.errors import InputError
from solojax.evaluators.threshold_baseline import run_threshold_baseline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--annotations", required=True, help="COCO json")
    parser.add_argument("--images", required=True, help="folder of the pictures")
    arguments = parser.parse_args()
    try:
        scores = run_threshold_baseline(arguments.annotations, arguments.images)
    except (InputError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    for name, score in scores.items():
        print(f"{name:36s} AP {score['AP']:.3f}  AP50 {score['AP50']:.3f}")


if __name__ == "__main__":
    main()

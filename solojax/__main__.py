"""`python -m solojax` is `solojax`."""

from __future__ import annotations

import sys

from solojax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

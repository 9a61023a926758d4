"""Instance segmentation by locations in JAX.

`solojax.load(checkpoint)` gives a model that takes images; everything else is in the submodules.
"""

from __future__ import annotations

__all__ = ["load"]


def __getattr__(name: str):
    # Imported when asked for: `solojax --help` must not wait for JAX.
    if name == "load":
        from solojax.inference.segmenter import load

        return load
    raise AttributeError(f"module 'solojax' has no attribute {name!r}")

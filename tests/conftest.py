"""What every test runs under: the CPU, four devices, and a compilation cache between runs."""

from __future__ import annotations

import gc
import os

import pytest

# JAX reads these when it is imported, which no test module has done yet. Four devices on one
# processor let every test about sharding run anywhere. What the environment says already wins.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")


# Compiling is most of what the tests do, and optimising is most of compiling. What the compiler
# then makes is right too, to other last digits; `XLA_FLAGS= python -m pytest` tests what users run.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false",
)

# Tracing makes objects by the million that live as long as their program. Looking through them for
# cycles at every 700th, as Python does, took a quarter of the suite's time.
gc.set_threshold(100_000, 20, 50)


def pytest_configure(config):
    """Keeps compiled programs in pytest's cache folder: the second run compiles next to nothing."""
    if hasattr(config, "cache"):
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("jax")))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


@pytest.fixture(scope="module", autouse=True)
def nothing_left_of_other_files():
    """Forgets the programs of a file with it: they take gigabytes, and every collection's time."""
    yield
    import jax

    jax.clear_caches()
    gc.collect()
    gc.freeze()  # what is left is wanted to the end

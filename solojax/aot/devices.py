"""The devices of a TPU slice that is not there: the TPU compiler compiles for them all the same."""

from __future__ import annotations

import importlib.util
import os

from solojax.aot.chips import Topology
from solojax.errors import InputError

# Read by libtpu when it is loaded. The first stops it from asking Google Cloud's metadata server,
# for minutes, which TPU this is; the second lets it load while another process has it, since no TPU
# is used.
_FORCED = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
# The first two answer what libtpu would complain about on a host without a TPU, the others keep its
# log off the terminal and the disk.
_DEFAULTS = {
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_LOG_DIR": "disabled",
}


def prepare_environment() -> None:
    """Sets what libtpu and JAX read when they start; to be called before JAX is imported.

    JAX itself is to run on the CPU, so that a TPU of this host stays free for others.
    """
    os.environ.update(_FORCED, JAX_PLATFORMS="cpu")
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


def has_compiler() -> bool:
    """Whether libtpu, in which the TPU compiler is, is installed."""
    return importlib.util.find_spec("libtpu") is not None


def require_compiler() -> None:
    """Raises an InputError unless libtpu is installed."""
    if not has_compiler():
        raise InputError(
            'the TPU compiler (libtpu) is not installed: pip install "solojax[aot]"; it needs no '
            "TPU, and x86-64 Linux"
        )


def slice_devices(topology: Topology) -> list:
    """The JAX devices of a slice, one for each chip: good for compiling, not for running.

    Raises:
      InputError: libtpu is not installed, or knows no such slice.
    """
    require_compiler()
    prepare_environment()
    import jax
    from jax.experimental import topologies

    mode = topology.chip.core_mode
    options = {} if mode is None else {"chip_config_name": mode}
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=str(topology), **options
        )
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"--topology {topology}: the TPU compiler refuses it ({reason}); give another shape"
        ) from error
    # In the order in which `make_mesh` has the devices of a run.
    devices = sorted(description.devices, key=lambda device: (device.process_index, device.id))
    if len(devices) != topology.num_chips:
        raise InputError(
            f"--topology {topology}: this libtpu gives {len(devices)} devices for "
            f"{topology.num_chips} chips; install the libtpu that solojax[aot] asks for"
        )
    return devices

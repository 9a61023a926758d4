"""Which processes make up a run, from what started them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping

from solojax.errors import InputError

_SLURM_TASKS, _SLURM_NODES = "SLURM_NTASKS", "SLURM_STEP_NUM_NODES"
_MPI_LOCAL_TASKS, _MPI_LOCAL_INDEX = "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The place of this process among those of a run.

    Attributes:
      coordinator: HOST:PORT of process 0.
      process_id: of this process, from 0.
      num_processes: how many there are, at least 2.
    """

    coordinator: str
    process_id: int
    num_processes: int


def detect_cluster(timeout: int) -> Cluster | None:
    """What Slurm, Open MPI or a TPU pod says of this process, as JAX reads it; None if it is alone.

    Args:
      timeout: seconds to wait for a name of process 0 that can be looked up.

    Raises:
      InputError: several processes were started, but the environment does not say enough of them.
    """
    from jax._src import clusters  # jax.distributed.initialize() has no way to ask without joining

    kinds = {
        "Slurm": clusters.SlurmCluster,
        "Open MPI": clusters.OmpiCluster,
        "a TPU pod": clusters.GkeTpuCluster,
        "a TPU pod slice": clusters.GceTpuCluster,
    }
    for name, kind in kinds.items():
        try:
            if not kind.is_env_present():
                continue
            num_processes = kind.get_process_count()
            if num_processes == 1:
                return None
            port = os.environ.get("JAX_COORDINATOR_PORT")
            address = kind.get_coordinator_address(
                timeout_secs=timeout, override_coordinator_port=port
            )
            return Cluster(address, kind.get_process_id(), num_processes)
        except (KeyError, ValueError, RuntimeError, ImportError, OSError) as error:
            raise InputError(
                f"the processes of {name} cannot be found out ({type(error).__name__}: {error}): "
                "give --coordinator, --process_id and --num_processes"
            ) from error
    return None


def local_device_ids(environment: Mapping[str, str] = os.environ) -> list[int] | None:
    """The devices for this process where several share a machine, as JAX assigns them under Slurm
    and Open MPI; None for all of the machine's.

    JAX itself gives a process one device even if it is alone on its machine.
    """
    if environment.get("JAX_LOCAL_DEVICE_IDS"):
        return None  # JAX reads it
    if "SLURM_LOCALID" in environment and _SLURM_TASKS in environment:
        alone = environment[_SLURM_TASKS] == environment.get(_SLURM_NODES, "1")
        return None if alone else [int(environment["SLURM_LOCALID"])]
    if int(environment.get(_MPI_LOCAL_TASKS) or 1) > 1:
        return [int(environment[_MPI_LOCAL_INDEX])]
    return None

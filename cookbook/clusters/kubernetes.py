"""A client on this machine, whose workers are pods. The recipe's own program talks to the cluster; here only what all of them need."""

from cookbook import UserError
from cookbook.clusters import local

CLIENTS = ("kfp",)  # launchers whose program hands its work to a cluster


def run(processes, cluster, run_dir, mark, watch):
    """See `local.run`. Raises UserError for a recipe whose launcher would start its workers on this machine all the same."""
    for process in processes:
        if process.name not in CLIENTS:
            raise UserError(
                f"cluster=kubernetes: {process.name} starts its workers on this machine; expected a recipe whose launcher is one of: "
                f"{', '.join(CLIENTS)}. Choose cluster=local, or give the address of a running cluster (spark_master, dask_scheduler, ray_address)"
            )
    return local.run(processes, cluster, run_dir, mark, watch)

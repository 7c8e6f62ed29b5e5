"""Starts the processes of a run where the config says. Each module has `run(processes, cluster, run_dir, mark, watch)`."""

import importlib

from cookbook import UserError

KINDS = ("local", "hosts", "slurm", "kubernetes")


def of_kind(kind):
    if kind not in KINDS:
        raise UserError(f"cluster.kind={kind!r} is unknown; there are: {', '.join(KINDS)}")
    return importlib.import_module(f"cookbook.clusters.{kind}")

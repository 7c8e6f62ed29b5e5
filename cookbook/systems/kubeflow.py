"""Kubeflow Pipelines ("Run a Pipeline" and "Execute KFP pipelines locally" in its documentation).

The program is a client. The pipeline's steps are processes of this machine, or pods of the cluster to which the program
itself talks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from cookbook.job import Job, Process
from cookbook.systems import System

if TYPE_CHECKING:
    from cookbook.pods import Pods


class Kubeflow(System):
    is_kubernetes_client: ClassVar = True
    kueue = False  # its pipeline makes its objects itself
    address_form = (r"https?://[^\s/]+\S*", "http://localhost:8080")

    def on_local(self, job: Job) -> list[Process]:
        argv = [str(job.python), *job.program_and_settings, f"num_workers={job.num_workers}"]
        return [Process("kfp", argv, job.environment())]

    def on_kubernetes(self, job: Job, pods: Pods) -> list[Process]:
        return self.on_local(job)

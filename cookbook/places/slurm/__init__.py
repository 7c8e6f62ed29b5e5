"""A job of Slurm's: written, submitted, waited for, and cancelled when the run is given up.

Neither submitit nor torchx is used. submitit runs pickled functions, and torchx runs applications that are described in
its own way. Here the systems' own launchers run inside an allocation, as their documentation shows it. That takes a
script of a few lines.
"""

from __future__ import annotations

import math
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cookbook import ROOT, UserError, access, processes
from cookbook.evidence.inspector import PROBE, Answers, Spec, ask
from cookbook.files import read_log
from cookbook.job import Job, Process, Settings
from cookbook.places import Place, Watch
from cookbook.places.local import POLL_SECONDS as WATCH_SECONDS
from cookbook.places.slurm import allocation
from cookbook.report.console import Progress
from cookbook.systems import System
from preempt import NOTICE

TOOLS = ("sbatch", "squeue", "scancel", "scontrol")
UNDER_WAY = (
    "UNKNOWN",
    "PENDING",
    "CONFIGURING",
    "RUNNING",
    "COMPLETING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "SUSPENDED",
    "RESIZING",
    "PREEMPTED",
    "NODE_FAIL",
    "STOPPED",
)
POLL_SECONDS = 1.0
# bash heeds a signal only while it waits, so a child does the work. If SIGTERM came and the workers had not finished
# (their status is not 0), the job goes back into the queue.
GOES_ON_LATER = """\
notice={notice}
rm -f "$notice"
taken_away=
trap 'taken_away=1; echo "SIGTERM of Slurm" > "$notice"' TERM
(
{body}
) &
status=0
wait $! || status=$?
if [ -n "$taken_away" ]; then
  status=0
  wait $! || status=$?
  # Not one that somebody has cancelled: its processes get SIGTERM, too.
  if [ "$status" -ne 0 ] && [ "$(squeue -h -j "$SLURM_JOB_ID" -o %T)" = RUNNING ]; then
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit "$status\""""


class Slurm(Place):
    number = ""  # of the job, once it is submitted
    stage: Progress | None = None  # of the run

    @property
    def num_hosts(self) -> int:
        num_nodes: int = self.cluster["num_nodes"]
        return num_nodes

    @classmethod
    def check(cls, config: Settings, system: System) -> None:
        super().check(config, system)
        num_workers, num_nodes = config["cluster"]["num_workers"], config["cluster"]["num_nodes"]
        if num_workers % num_nodes:
            raise UserError(
                f"cluster.num_workers={num_workers} cannot be divided among cluster.num_nodes={num_nodes} nodes: "
                "expected a multiple"
            )
        if missing := [name for name in TOOLS if not shutil.which(name)]:
            raise UserError(
                f"cluster=slurm: {', '.join(missing)} is missing: run the driver on a node from which jobs are "
                "submitted (a login node)"
            )

    def prepare(self, data_dir: Path | None, stage: Progress) -> None:
        """Raises UserError when Slurm does not answer, or still has a job of this run."""
        self.stage = stage
        argv = ["squeue", "--noheader", "--format=%i %T", f"--name={job_name(self.job.run_dir)}"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise UserError(f"cluster=slurm: squeue does not answer: {' '.join(done.stderr.split())}")
        if done.stdout.strip():
            number, state = done.stdout.split()[:2]
            raise UserError(
                f"an earlier try of this run is still there, as job {number} ({state}): "
                f"wait for it, or `scancel {number}`"
            )

    def plan(self) -> list[Process]:
        return [submission(self.job, self.system)]

    def run(self, planned: Sequence[Process], watch: Watch) -> dict[str, int]:
        """Submits the job and follows it to its end, however often Slurm puts it back into the queue."""
        (process,) = planned
        processes.write_files(process.files)
        done = subprocess.run(process.argv, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"Slurm refused the job: {' '.join(done.stderr.split())}")
        number = self.number = done.stdout.strip().partition(";")[0]
        try:
            state = self._follow(number, watch)
        finally:
            subprocess.run(["scancel", "--quiet", number], capture_output=True, timeout=60)
            deadline = time.monotonic() + 60
            while about(number)["JobState"] in UNDER_WAY and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
            watch()
        logs = self.job.run_dir / "logs"
        job_log = logs / "job.log"
        tail = read_log(job_log).splitlines()[-20:] if job_log.exists() else []
        (logs / "sbatch.log").write_text("\n".join([*tail, f"job {number} ended as {state}"]) + "\n")
        return {"sbatch": 0 if state == "COMPLETED" else 1}

    def _follow(self, number: str, watch: Watch) -> str:
        """The state in which a job ends. Says why it waits, and notes when Slurm has put it back into the queue."""
        looked, state, restarts, waits_for = 0.0, "PENDING", 0, "None"
        while state in UNDER_WAY:
            watch(waiting=state not in ("RUNNING", "COMPLETING"))
            if time.monotonic() - looked > POLL_SECONDS:
                known, looked = about(number), time.monotonic()
                state = known["JobState"]
                if state == "PENDING" and known.get("Reason", "None") not in ("None", waits_for) and self.stage:
                    waits_for = known["Reason"]  # PartitionTimeLimit and InvalidAccount never end
                    self.stage.line(f"job {number} waits, and Slurm says why: {waits_for}")
                if int(known.get("Restarts", restarts)) > restarts:
                    restarts, self.again_since = int(known["Restarts"]), time.time()
            time.sleep(WATCH_SECONDS)
        return state

    def probe(self, spec: Spec) -> Answers:
        """See `Place.probe`: srun starts it on each node of the job, beside what runs there."""
        if not self.number:
            return {"Slurm": "the job is not submitted yet"}
        found = ask(look_at(self.number, self.cluster["num_nodes"], self.job.python), spec)
        if isinstance(found, str):
            return {f"job {self.number}": found}
        return {answer["host"]: answer for answer in found}


def look_at(number: str, num_nodes: int, python: Path) -> list[str]:
    """The command that runs probe.py on each node of a job. It takes no processors from the job's own steps."""
    options = [f"--jobid={number}", "--overlap", f"--nodes={num_nodes}", f"--ntasks={num_nodes}", "--ntasks-per-node=1"]
    return ["srun", *options, "--cpus-per-task=1", "--mem=0", "--quiet", str(python), "-c", PROBE.read_text()]


def job_name(run_dir: Path) -> str:
    """The name of a run's Slurm job, by which it is found again: no two runs share a folder."""
    return f"cookbook-{run_dir.parent.name}-{run_dir.name}"


def submission(job: Job, system: System) -> Process:
    """sbatch, and the script that it submits: the allocation, the environment, and what the system does in it."""
    cluster, run_dir = job.cluster, job.run_dir
    extra = [str(option) for option in cluster["sbatch_options"]]
    if any(ord(character) < 32 for text in [str(run_dir), *extra] for character in text):
        raise UserError(
            f"{run_dir} or cluster.sbatch_options={cluster['sbatch_options']} has control characters: "
            "a job script cannot hold them"
        )
    body, files = system.on_slurm(job), dict[str, str]()
    if body is None:
        path = str(run_dir / "scratch/secrets/job.json")
        files[path] = allocation.job_file(job)
        argv = [sys.executable, "-m", allocation.__name__, path]
        body = f"cd {shlex.quote(str(ROOT))}\nexec {shlex.join(argv)}"
    per_node = job.num_workers // cluster["num_nodes"]
    options = [
        f"--job-name={job_name(job.run_dir)}",
        f"--nodes={cluster['num_nodes']}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={per_node * job.num_threads}",
        f"--time={cluster['time_minutes']}",
        f"--output={str(run_dir).replace('%', '%%')}/logs/job.log",  # to Slurm a % begins a pattern
        "--open-mode=append",
        # Slurm may stop the job for a more important one, or when a node fails. Started again, it goes on from its last
        # checkpoint.
        "--requeue",
        # So long before the end of its time, or before another job takes its place, Slurm sends the script SIGTERM.
        f"--signal=B:TERM@{math.ceil(cluster['notice_grace_seconds'])}",
    ]
    options += [f"--{key}={cluster[key]}" for key in ("partition", "account") if cluster[key]]
    options += [f"--gpus-per-node={per_node * cluster['gpus_per_worker']}"] if cluster["gpus_per_worker"] else []
    store = cluster["storage"]
    own = access.to_store(store, run_dir / "scratch/secrets") if store else access.Access()
    environment = job.environment(**own.environment)
    lines = ["#!/bin/bash", *(f"#SBATCH {quoted(option)}" for option in [*options, *extra]), "set -euo pipefail"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in environment.items() if name != "PATH"]
    # The job has the shell's variables; keys among them would be in the command lines of launchers that use ssh.
    lines += [f"unset {' '.join(access.KEYS)}"] if own.files else []
    lines += [f"export PATH={shlex.quote(str(job.bin))}:$PATH"]
    lines += ['head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)']
    lines += [GOES_ON_LATER.format(notice=shlex.quote(str(run_dir / NOTICE)), body=body)]
    script = str(run_dir / "job.sh")
    argv, path_only = ["sbatch", "--parsable", script], {"PATH": environment["PATH"]}
    files |= {script: "\n".join(lines) + "\n", **own.files}
    return Process("sbatch", argv, path_only, files=files, takes_settings=False)


def quoted(option: str) -> str:
    """An option of sbatch as it has to stand in a script: a blank outside of quotes would end it there."""
    name, equals, value = option.partition("=")
    return f"{name}={shlex.quote(value)}" if equals and name.startswith("--") else shlex.quote(option)


def about(number: str) -> dict[str, str]:
    """What Slurm knows of a job. JobState is GONE for one that it no longer knows."""
    argv = ["scontrol", "--oneliner", "show", "job", number]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return {"JobState": "UNKNOWN"}
    if done.returncode and "Invalid job id" not in done.stderr:
        return {"JobState": "UNKNOWN"}  # the controller is silent for a moment: the job goes on without it
    return {"JobState": "GONE"} | dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)

"""A job of Slurm's: submitted, waited for, and cancelled when the run is given up."""

import shutil
import subprocess
import time
from pathlib import Path

from cookbook import UserError
from cookbook import processes as os_processes
from cookbook.clusters import local
from cookbook.launch_slurm import job_name

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


def prepare(cluster, recipe, python, data_dir, run_dir, mark, stage):
    """Raises UserError when Slurm is not here, does not answer, or still has a job of this run."""
    if missing := [name for name in TOOLS if not shutil.which(name)]:
        raise UserError(
            f"cluster=slurm: {', '.join(missing)} is missing: run the driver on a node from which jobs are submitted (a login node)"
        )
    done = subprocess.run(
        ["squeue", "--noheader", "--format=%i %T", f"--name={job_name(run_dir)}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode:
        raise UserError(f"cluster=slurm: squeue does not answer: {' '.join(done.stderr.split())}")
    if done.stdout.strip():
        number, state = done.stdout.split()[:2]
        raise UserError(
            f"an earlier try of this run is still there, as job {number} ({state}): wait for it, or `scancel {number}`"
        )
    return cluster


def run(processes, cluster, run_dir, mark, watch):
    """See `local.run`: submits the job and follows it to its end, however often Slurm puts it back into the queue. None is left behind."""
    (process,) = processes
    for path, content in process.files.items():
        os_processes.write_file(path, content, 0o755)
    done = subprocess.run(process.argv, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"Slurm refused the job: {' '.join(done.stderr.split())}")
    number = done.stdout.strip().partition(";")[0]
    try:
        state = follow(number, watch)
    finally:
        subprocess.run(["scancel", "--quiet", number], capture_output=True, timeout=60)
        deadline = time.monotonic() + 60
        while about(number)["JobState"] in UNDER_WAY and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        watch()
    log = Path(run_dir) / "logs/sbatch.log"
    job_log = Path(run_dir) / "logs/job.log"
    tail = job_log.read_text(errors="replace").splitlines()[-20:] if job_log.exists() else []
    log.write_text("\n".join([*tail, f"job {number} ended as {state}"]) + "\n")
    return {"sbatch": 0 if state == "COMPLETED" else 1}


def follow(number, watch):
    """The state in which a job ends."""
    looked, state = 0.0, "PENDING"
    while state in UNDER_WAY:
        watch(waiting=state not in ("RUNNING", "COMPLETING"))
        if time.monotonic() - looked > POLL_SECONDS:
            state, looked = about(number)["JobState"], time.monotonic()
        time.sleep(local.POLL_SECONDS)
    return state


def about(number):
    """What Slurm knows of a job; of one that it has forgotten it says that it is gone."""
    try:
        done = subprocess.run(
            ["scontrol", "--oneliner", "show", "job", number], capture_output=True, text=True, timeout=60
        )
    except subprocess.TimeoutExpired:
        return {"JobState": "UNKNOWN"}
    if done.returncode and "Invalid job id" not in done.stderr:
        return {"JobState": "UNKNOWN"}  # the controller is silent for a moment: the job goes on without it
    return {"JobState": "GONE"} | dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)

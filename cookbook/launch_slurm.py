"""From settings to a job script for Slurm: what launch.py is for one machine. Pure as that one.

submitit and torchx were looked at: submitit runs pickled functions, torchx applications of its own description. Here the systems' own
launchers run inside an allocation, as their documentation has it, and that is a script of a few lines.
"""

import shlex

from cookbook import UserError
from cookbook.launch import Process, program_of, worker_environment

# What a node is to the others: its address, and the interface that has it.
WHO_AM_I = """\
address=$(getent ahostsv4 "$SLURMD_NODENAME" | awk 'NR==1 {print $1}')
interface=$(ip -o -4 addr show | awk -v a="$address/" 'index($4, a) == 1 {print $2; exit}')
export GLOO_SOCKET_IFNAME=$interface NCCL_SOCKET_IFNAME=$interface"""


def job_name(run_dir):
    """The job's name, by which it is found again: no two runs share a folder."""
    return f"cookbook-{run_dir.parent.name}-{run_dir.name}"


def submission(config, run_dir, python, body):
    """[Process] that submits a script with this body."""
    cluster = config["cluster"]
    if any(ord(sign) < 32 for word in [str(run_dir), *cluster["sbatch_options"]] for sign in str(word)):
        raise UserError(
            f"{run_dir} or cluster.sbatch_options={cluster['sbatch_options']} has control characters: a job script cannot hold them"
        )
    per_node, left = divmod(cluster["num_workers"], cluster["num_nodes"])
    if left or not per_node:
        raise UserError(
            f"cluster.num_workers={cluster['num_workers']} cannot be divided among cluster.num_nodes={cluster['num_nodes']} nodes: expected a multiple"
        )
    options = [
        f"--job-name={job_name(run_dir)}", f"--nodes={cluster['num_nodes']}", "--ntasks-per-node=1",
        f"--cpus-per-task={per_node * cluster['num_threads_per_worker']}", f"--time={cluster['time_minutes']}",
        f"--output={str(run_dir).replace('%', '%%')}/logs/job.log",  # to Slurm a % begins a pattern
        "--open-mode=append",
        "--requeue",  # taken back and run again, when something more important comes or a node fails: from the last checkpoint
    ]  # fmt: skip
    options += [f"--{key}={cluster[key]}" for key in ("partition", "account") if cluster[key]]
    options += [f"--gpus-per-node={per_node * cluster['gpus_per_worker']}"] if cluster["gpus_per_worker"] else []
    environment = worker_environment(config, python)
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment.items() if name != "PATH"]
    exports += [f"export PATH={shlex.quote(str(python.parent))}:$PATH"]
    script = run_dir / "job.sh"
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {_quoted(str(word))}" for word in [*options, *cluster["sbatch_options"]]),
        "set -euo pipefail",
        *exports,
    ]
    text = "\n".join([*lines, 'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)', body]) + "\n"
    argv = ["sbatch", "--parsable", str(script)]
    return [Process("sbatch", argv, {"PATH": environment["PATH"]}, files={str(script): text}, takes_settings=False)]


def _quoted(word):
    """--name=value as sbatch reads it in a script: it knows quotes, and takes blanks outside of them for the end of a word."""
    name, equals, value = word.partition("=")
    return f"{name}={shlex.quote(value)}" if equals and name.startswith("--") else shlex.quote(word)


def torchrun(config, recipe_dir, python, run_dir):
    """srun starts one torchrun on each node ("torchrun (Elastic Launch)"; PyTorch's tutorials start it so on Slurm)."""
    recipe, cluster = config["recipe"], config["cluster"]
    words = [
        "exec", str(python.parent / "torchrun"), "--nnodes", '"$SLURM_NNODES"', "--nproc-per-node", str(cluster["num_workers"] // cluster["num_nodes"]),
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f'"$head:{cluster["port"]}"', "--rdzv-id", '"$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"',
        "--rdzv-conf", '"is_host=$((SLURM_NODEID == 0))"', "--local-addr", '"$address"', "--max-restarts", str(recipe["max_restarts"]),
        shlex.quote(str(program_of(recipe_dir, recipe["driver"].get("variant")))), shlex.quote(str(run_dir / "config.yaml")),
    ]  # fmt: skip
    node = f"{WHO_AM_I}\n{' '.join(words)}"
    return submission(
        config,
        run_dir,
        python,
        f"export head\nsrun --cpus-per-task=$SLURM_CPUS_PER_TASK --kill-on-bad-exit=1 bash -c {shlex.quote(node)}",
    )


def horovodrun(config, recipe_dir, python, run_dir):
    """horovodrun on the first node, which reaches the others by ssh as everywhere ("Run Horovod"); on one node it needs none."""
    recipe, cluster = config["recipe"], config["cluster"]
    if recipe["elastic"]:
        raise UserError("on Slurm: recipe.elastic=false (its jobs have a fixed size)")
    per_node = cluster["num_workers"] // cluster["num_nodes"]
    slots = f"slots=$(scontrol show hostnames \"$SLURM_JOB_NODELIST\" | sed 's/$/:{per_node}/' | paste -sd, -)"
    # Slurm has promised one task on each node, with room for all workers there: mpirun counts the tasks.
    mapping = f"--bind-to none --map-by ppr:{per_node}:node:OVERSUBSCRIBE"
    controller = ["--gloo"] if recipe["controller"] == "gloo" else ["--mpi", f"'--binding-args={mapping}'"]
    words = [
        str(python.parent / "horovodrun"), "--disable-cache", "-np", str(cluster["num_workers"]), "--start-timeout", str(cluster["start_timeout_seconds"]), "-H", '"$slots"',
        *controller, "--network-interfaces", '"$interface"' if cluster["num_nodes"] > 1 else "lo", shlex.quote(str(python)),
        shlex.quote(str(program_of(recipe_dir, recipe["driver"].get("variant")))), shlex.quote(str(run_dir / "config.yaml")),
    ]  # fmt: skip
    local = [] if cluster["num_nodes"] > 1 else [f"slots=localhost:{per_node}", "export GLOO_SOCKET_IFNAME=lo"]
    return submission(config, run_dir, python, "\n".join([slots, WHO_AM_I, *local, "exec " + " ".join(words)]))


LAUNCHERS = {launcher.__name__: launcher for launcher in (torchrun, horovodrun)}

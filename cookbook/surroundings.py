"""Which environment variables of the shell a run takes over, and which ones it does not.

Every worker would inherit them all: another Python's packages, what another launcher has set, the network interface of
another cluster. So `settle` chooses once, before anything is started. It changes the driver's own environment, which
all its children inherit. `cluster.inherit` names variables that are kept all the same.
"""

import contextlib
import fnmatch
import locale
import os
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cookbook import UserError, bootstrap, machine

ORIGINAL = dict(os.environ)  # as the user has it; a sweep settles anew for each of its runs
LOOPBACK = ("localhost", "127.0.0.1", "::1", "127.0.0.0/8")
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy", "grpc_proxy")
# The most characters that a run's own folder in TMPDIR may have. The path of a socket may have 107; Ray's sockets take
# up to 87 of them behind the folder.
LONGEST_TMPDIR = 20
SHORTER = "set TMPDIR to a folder with a shorter name"
SHORT_PLACES = ("/tmp", "/var/tmp", "/dev/shm")


@dataclass(frozen=True)
class Rule:
    """Variables that workers do not inherit: their names as patterns, the reason, and the exceptions."""

    names: tuple[str, ...]
    reason: str
    but: tuple[str, ...] = ()  # names that are inherited although a pattern of `names` fits
    not_in: tuple[str, ...] = ()  # places where they are inherited all the same
    address: str = ""  # not where this setting of the cluster names a running system: then they say how to reach it
    setting: str = ""  # only where this setting of the cluster is given: they would win over it


RULES = (
    Rule(
        (
            *("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "PYTHONSTARTUP", "PYTHONUSERBASE", "PYTHONPLATLIBDIR"),
            *("PYTHONEXECUTABLE", "PYTHONOPTIMIZE", "PYTHONWARNINGS", "PYTHONINSPECT", "PYTHONIOENCODING"),
            *("PYTHONHASHSEED", "PYTHONMALLOC", "__PYVENV_LAUNCHER__"),
        ),
        "the recipe's environment is whole: nothing of another Python belongs into it",
    ),
    Rule(("PYTHONDONTWRITEBYTECODE",), "each worker would compile all its modules anew: seconds of every start"),
    Rule(bootstrap.OTHER_INSTALLS, "of another environment: this one's packages go nowhere else"),
    Rule(
        ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "COOKBOOK_ARGS"),
        "of the make that has started the driver",
    ),
    Rule(
        (
            *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME"),
            *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
            *("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_*", "PET_*"),
        ),
        "of another torchrun",
    ),
    Rule(
        ("OMPI_*", "PMIX_*", "PMI_*", "PRTE_*", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "I_MPI_*", "MV2_*"),
        "of another MPI job",
        not_in=("slurm", "kubernetes"),
    ),
    Rule(
        (
            *("OMPI_COMM_WORLD_*", "OMPI_UNIVERSE_*", "PMIX_RANK", "PMIX_NAMESPACE", "PMIX_SERVER_*"),
            *("PMI_RANK", "PMI_SIZE", "PMI_FD", "PRTE_*", "OPAL_*"),
        ),
        "of another MPI job",
    ),
    Rule(
        ("HOROVOD_*",),
        "of another horovodrun; tuning has settings of the recipe's",
        but=(
            *("HOROVOD_WITH*", "HOROVOD_GPU*", "HOROVOD_CUDA*", "HOROVOD_NCCL_*", "HOROVOD_ROCM*"),
            *("HOROVOD_BUILD*", "HOROVOD_ENABLE*"),
        ),
    ),
    Rule(
        ("SLURM_*", "SLURMD_*"),
        "of the allocation that the driver is in: launchers would start their workers through it",
        but=("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_TIME_FORMAT"),
    ),
    Rule(
        (
            *("SBATCH_JOB_NAME", "SBATCH_TIMELIMIT", "SBATCH_OUTPUT", "SBATCH_ERROR", "SBATCH_INPUT", "SBATCH_SIGNAL"),
            *("SBATCH_OPEN_MODE", "SBATCH_REQUEUE", "SBATCH_NO_REQUEUE", "SBATCH_GPUS*", "SBATCH_ARRAY_INX"),
            *("SBATCH_EXPORT", "SBATCH_WAIT", "SBATCH_DISTRIBUTION", "SBATCH_OVERCOMMIT", "SQUEUE_*"),
        ),
        "sbatch and squeue heed it before what a run asks for: settings of cluster=slurm say it",
    ),
    Rule(("SBATCH_PARTITION",), "cluster.partition says it, and sbatch would heed this", setting="partition"),
    Rule(("SBATCH_ACCOUNT",), "cluster.account says it, and sbatch would heed this", setting="account"),
    Rule(("PBS_*", "LSB_*", "LSF_*", "PE_HOSTFILE", "SGE_*", "COBALT_*"), "of the batch job that the driver is in"),
    Rule(
        (
            *("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "NCCL_COMM_ID", "NCCL_IB_*"),
            *("NCCL_NET*", "UCX_NET_DEVICES", "UCX_TLS", "FI_PROVIDER", "GLOO_DEVICE_TRANSPORT*"),
        ),
        "of another cluster's network: here workers meet on loopback",
        not_in=("hosts", "slurm", "kubernetes"),
    ),
    Rule(("LOGLEVEL",), "torchrun would read it, and end with an error where it is no name of Python's, such as info"),
    Rule(
        ("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION*",),
        "a way out for another program's packages: these ones lack what it names",
    ),
    Rule(("TF_CONFIG", "TFRUN_ATTEMPT"), "of another TensorFlow cluster"),
    Rule(("KERAS_BACKEND", "TF_USE_LEGACY_KERAS", "KERAS_HOME"), "of another Keras: this one computes by TensorFlow"),
    Rule(
        (
            *("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS"),
            *("VECLIB_MAXIMUM_THREADS", "BLIS_NUM_THREADS", "GOTO_NUM_THREADS", "NUMBA_NUM_THREADS"),
            *("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "LOKY_MAX_CPU_COUNT", "POLARS_MAX_THREADS"),
            *("OMP_*", "GOMP_*", "KMP_*"),
        ),
        "cluster.num_threads_per_worker says how many threads there are",
        but=("OMP_NUM_THREADS",),  # which every worker gets anew
    ),
    Rule(
        ("RAY_*", "TUNE_*", "RAYRUN_SECONDS"),
        "of another Ray; cluster.ray_address names one",
        but=("RAY_AUTH_*", "RAY_TLS_*", "RAY_USE_TLS"),
    ),
    Rule(
        ("DASK_*",),
        "of another Dask; cluster.dask_scheduler names one",
        but=("DASK_DISTRIBUTED__COMM__TLS__*", "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION"),
        address="dask_scheduler",
    ),
    Rule(("SPARK_HOME", "PYSPARK_*"), "of another Spark: the recipe's environment has its own"),
    Rule(
        ("SPARK_*", "HADOOP_*", "YARN_CONF_DIR"),
        "of another Spark; cluster.spark_master names one",
        address="spark_master",
    ),
    Rule(
        (
            *("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"),
            *("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"),
        ),
        "tracking=mlflow says where the metrics go, and each run is a run of its own",
    ),
)
# Single values that do harm, while other values of the same variable do not.
VALUES = {
    ("TORCH_DISTRIBUTED_DEBUG", "DETAIL"): (
        "DistributedDataParallel of this PyTorch dies of it (SIGSEGV), in a bare program as well; INFO is taken"
    ),
}


def choose(environment: Mapping[str, str], cluster: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """(what is inherited, {name: reason} of what is not). `cluster`: the composed settings of the cluster."""
    kept: dict[str, str] = {}
    dropped: dict[str, str] = {}
    wanted: Collection[str] = cluster.get("inherit") or ()
    rules = [
        rule
        for rule in RULES
        if cluster["kind"] not in rule.not_in
        and not (rule.address and cluster.get(rule.address))
        and (not rule.setting or cluster.get(rule.setting))
    ]
    for name, value in environment.items():
        reason = next((rule.reason for rule in rules if _fits(name, rule.names) and not _fits(name, rule.but)), None)
        reason = reason or VALUES.get((name, value.upper()))
        if reason and not _fits(name, wanted):
            dropped[name] = reason
        else:
            kept[name] = value
    return kept | without_proxy(environment), dropped


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def without_proxy(environment: Mapping[str, str], addresses: Collection[str] = ()) -> dict[str, str]:
    """{name: value} of variables by which no program uses a proxy for loopback, nor for these addresses.

    Programs read different variables: no_proxy or NO_PROXY. gRPC reads a variable of its own first.
    """
    proxied = any(name.lower() in PROXIES for name in environment)
    listed = [environment.get(name, "") for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy")]
    if not (proxied or any(listed) or addresses):
        return {}
    made = {}
    for name, other in (("no_proxy", "NO_PROXY"), ("NO_PROXY", "no_proxy"), ("no_grpc_proxy", "")):
        if name == "no_grpc_proxy" and name not in environment:
            continue
        there = environment.get(name) or environment.get(other, "")
        entries = [entry.strip() for entry in there.split(",") if entry.strip()]
        if "*" in entries:  # no proxy at all: alone, or it is no pattern; gRPC does not know it
            return {"no_proxy": "*", "NO_PROXY": "*", "no_grpc_proxy": ",".join((*LOOPBACK, *addresses))}
        entries += [entry for entry in (*LOOPBACK, *addresses) if entry not in entries]
        made[name] = ",".join(entries)
    return made


def settle(cluster: Mapping[str, Any]) -> list[str]:
    """Leaves in the driver's environment what its workers are to inherit; returns notes for the user, one line each.

    Raises UserError when a place that everything needs cannot be used.
    """
    kept, dropped = choose(ORIGINAL, cluster)
    tmpdir, notes = temporary_folder(kept)
    kept |= {"PYTHONUTF8": "1"} | ({"TMPDIR": tmpdir} if tmpdir else {})
    if not _fits("LC_ALL", cluster.get("inherit") or ()):
        kept |= utf8_locale()
    kept |= java_options(kept, tmpdir)
    kept.setdefault("KERAS_HOME", os.devnull)  # not ~/.keras/keras.json: channels_first or float16 of another project
    if tmpdir is None:
        kept.pop("TMPDIR", None)
    os.environ.clear()
    os.environ.update(kept)
    tempfile.tempdir = None
    by_reason: dict[str, list[str]] = {}
    for name, reason in dropped.items():
        if not reason.startswith("of the make"):
            by_reason.setdefault(reason, []).append(name)
    notes += [
        f"{', '.join(sorted(names))}: not handed on to the workers ({reason}); cluster.inherit=[...] keeps it"
        for reason, names in by_reason.items()
    ]
    return notes


def utf8_locale() -> dict[str, str]:
    """{LC_ALL: a locale of English and UTF-8}; {} where this machine has none.

    Java takes the encoding of names from it: with LC_ALL=C it finds no file with an umlaut in its name. A Turkish one
    makes another letter of `i`, and with a German one numbers have a comma.
    """
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        for name in ("C.UTF-8", "en_US.UTF-8"):
            with contextlib.suppress(locale.Error):
                locale.setlocale(locale.LC_CTYPE, name)
                return {"LC_ALL": name}
        return {}
    finally:
        locale.setlocale(locale.LC_CTYPE, before)


def java_options(environment: Mapping[str, str], tmpdir: str | None) -> dict[str, str]:
    """{JAVA_TOOL_OPTIONS: ...} with a folder for the libraries that Java unpacks, where none of /tmp may run; else {}.

    Java takes /tmp whatever TMPDIR says, and Spark ends with an UnsatisfiedLinkError there.
    """
    if not os.path.isdir("/tmp") or machine.may_run_programs("/tmp"):
        return {}
    places = [place for place in (tmpdir, "/var/tmp", str(bootstrap.cache_dir())) if place and os.path.isdir(place)]
    fitting = [place for place in places if _can_write(place) and machine.may_run_programs(place)]
    own = environment.get("JAVA_TOOL_OPTIONS", "")
    return {"JAVA_TOOL_OPTIONS": f'{own} -Djava.io.tmpdir="{fitting[0]}"'.strip()} if fitting else {}


def temporary_folder(environment: Mapping[str, str]) -> tuple[str | None, list[str]]:
    """(value for TMPDIR or None, notes).

    Raises UserError where its name is too long for sockets, and no folder with a shorter name can take a link to it.
    """
    wanted = environment.get("TMPDIR", "")
    try:
        usual = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UserError(f"{error.strerror}: set TMPDIR to a folder that can be written") from None
    if not wanted:
        return None, []
    if not os.access(wanted, os.W_OK | os.X_OK) or not Path(wanted).is_dir():
        return None, [f"TMPDIR={wanted} is no folder that can be written: {usual} is used instead"]
    if len(os.fsencode(f"{wanted}/{own_name('0' * 32)}")) > LONGEST_TMPDIR and not any(map(_can_write, SHORT_PLACES)):
        raise UserError(
            f"TMPDIR={wanted} has {len(os.fsencode(wanted))} characters, and the names of sockets in it would be too "
            f"long for the system (107 in all); none of {', '.join(SHORT_PLACES)} can take a link to it: "
            f"{SHORTER}"
        )
    return wanted, []


def own_name(run_id: str) -> str:
    """The name of a run's folder for temporary files."""
    return f"cb-{run_id[:8]}"


def own_folder(run_id: str) -> list[Path]:
    """Makes a folder for a run's temporary files; returns [folder], or [folder, link].

    The link is short; it is made where the name of the folder is too long for sockets. The run removes both. Raises
    UserError where no folder can take such a link.
    """
    folder = Path(tempfile.gettempdir()).absolute() / own_name(run_id)
    folder.mkdir(mode=0o700)
    if len(os.fsencode(folder)) > LONGEST_TMPDIR:
        place = next(filter(_can_write, SHORT_PLACES), None)
        if place is None:
            raise UserError(f"{folder.parent} has too long a name for the sockets in it; {SHORTER}")
        link = Path(place, folder.name)
        link.symlink_to(folder)
        return [folder, link]
    return [folder]


def _can_write(place: str) -> bool:
    return os.access(place, os.W_OK | os.X_OK)

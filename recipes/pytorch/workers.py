"""Joining and leaving the world of processes that torchrun started."""

import contextlib
import datetime
import os
import socket
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.elastic.control_plane import worker_main

from preempt import Preempted


@contextlib.contextmanager
def joined_world(config):
    """Meets the other processes; gives (rank, world_size, device) and leaves in order at the end."""
    # Distributed: torchrun put rank, world size and the address of the store into the environment. The timeout bounds
    # how long a rank waits in an exchange for one that hangs.
    timeout = datetime.timedelta(seconds=config.exchange_timeout_seconds)
    # Distributed: in the store the ranks find each other's addresses. After a restart PyTorch 2.13's env:// finds the
    # dead workers', still in torchrun's store, and connects to them (sometimes: it is a race). A prefix for each
    # attempt keeps them apart.
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timeout)
    store = dist.PrefixStore(f"attempt{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    backend, device = backend_for(config, store, rank, world_size), torch.device("cpu")
    if backend == "nccl":
        # Distributed: local_rank counts the processes of one host, rank those of all hosts; a GPU belongs to a host.
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        torch.backends.cudnn.deterministic = True  # its fastest sums come in another order each time
    # Distributed: waits until all world_size processes are there, and connects them.
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    try:
        preempted = None
        try:
            with answers_when_asked(config):
                yield dist.get_rank(), dist.get_world_size(), device  # Distributed: who am I, among how many?
        except Preempted as error:
            preempted = error
        # Distributed: nobody leaves while another still waits for an answer. They meet in the store: that
        # is no exchange.
        store.set(f"done{rank}", "")
        store.wait([f"done{other}" for other in range(world_size)], timeout)
        # PyTorch 2.13's Gloo thread needs Python's lock to let go of the last exchange. If the interpreter ends while
        # it waits for the lock, the process is aborted ("terminate called without an active exception"): leave it the
        # lock for a while.
        time.sleep(0.2)
    finally:
        dist.destroy_process_group()  # Distributed: leaves the others in order.
    if preempted:
        raise preempted


def backend_for(config, store, rank, world_size):
    """Who moves the tensors: what the settings say; "auto" is NCCL where each worker has a GPU of its own, else Gloo.

    Raises SystemExit when the settings say NCCL, and this host has fewer GPUs than workers.
    """
    num_gpus, num_workers = torch.cuda.device_count(), int(os.environ["LOCAL_WORLD_SIZE"])
    mine = f"PyTorch sees {num_gpus} for the {num_workers} workers of {socket.gethostname()}"
    if config.backend == "nccl" and num_gpus < num_workers:
        raise SystemExit(
            f"backend=nccl needs a GPU for each worker, and {mine}: set backend=gloo or auto, or fewer workers"
        )
    if config.backend != "auto":
        return config.backend
    # Distributed: hosts differ, and all must take the same: each rank tells the others what it lacks.
    store.set(f"lacks{rank}", mine if num_gpus < num_workers else "")
    lacking = [lack for other in range(world_size) if (lack := store.get(f"lacks{other}").decode())]
    if rank == 0 and lacking and num_gpus:  # Distributed: one rank tells for all.
        print(f"computing on the CPU: NCCL needs a GPU for each worker, and {lacking[0]}", flush=True)
    return "gloo" if lacking else "nccl"


@contextlib.contextmanager
def answers_when_asked(config):
    """In the block this process answers on a socket which exchanges it is in.

    PyTorch's worker server answers from a thread of its own, also when the program hangs. Its Flight Recorder keeps the
    last exchanges. `make diagnose` asks it.
    """
    if sys.platform != "linux":
        yield
        return
    folder, name = Path(config.output_dir, "scratch"), f"torch-{socket.gethostname()}-{os.getpid()}.sock"
    folder.mkdir(parents=True, exist_ok=True)
    opened = os.open(folder, os.O_RDONLY)
    # A socket's name has 107 bytes at most. This one is short, however long the folder's name is.
    os.environ["TORCH_WORKER_SERVER_SOCKET"] = f"/proc/self/fd/{opened}/{name}"
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, opened)
        stack.callback(remove, folder, name)
        try:
            stack.enter_context(worker_main())
        except RuntimeError as error:  # a disk that has no sockets
            print(f"nobody can ask this process for its exchanges: {error}", flush=True)
        yield


def remove(folder, name):
    """Removes a file, and its folder when nobody else has one there."""
    (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def facts(device):
    """What the run record notes about this process."""
    return {
        "local_rank": int(os.environ.get("LOCAL_RANK", "0")),
        "attempt": int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
        "device": str(device),
        "torch": torch.__version__,
    }


def shared_now():
    """Rank 0's clock on all ranks: a number that is the same everywhere, and newer than any before."""
    # Distributed: clocks differ; what rank 0 reads is sent to all.
    now = torch.tensor([time.time()], dtype=torch.float64)
    now = now.cuda() if dist.get_backend() == "nccl" else now
    dist.broadcast(now, src=0)
    return now.item()


def ask_all(wish, device):
    """Begins to exchange the ranks' wishes (see preempt.py); returns a function that waits for the most urgent one."""
    # Distributed: the exchange goes on while the step is computed, and costs next to nothing.
    most = torch.tensor(wish, device=device)
    work = dist.all_reduce(most, op=dist.ReduceOp.MAX, async_op=True)
    return lambda: work.wait() and most.item()


def sum_over_ranks(value, device):
    # Distributed: counts and sums add up exactly over unequal shares, a mean of means would not.
    total = torch.as_tensor(value, dtype=torch.float64, device=device).clone()
    dist.all_reduce(total)
    return total.item()


def max_over_ranks(value, device):
    # Distributed: every rank brings its value, and all get the largest: the slowest one counts.
    most = torch.tensor(float(value), dtype=torch.float64, device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return most.item()

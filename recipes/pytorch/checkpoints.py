"""Sharded checkpoints of the model-parallel modes.

Every process writes what it holds; together they are the whole model.

torch.distributed.checkpoint (DCP) stores tensors by name with their place in the whole, so another number of processes
can read them. Each process writes its shards to its own disk, and `Checkpoints` brings them to their place: moved, or
sent beside the training to an object store. DCP's own writer for object stores (FsspecWriter under `async_save`) is not
used: it keeps no sums of the files, and a request that fails ends the save.
"""

import json
import os
import time
import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from runrecord import check_position
from settings import depends_on
from storage import Checkpoints

# main_single.py saves without a process group on purpose; DCP would warn of it.
warnings.filterwarnings("ignore", message=".*torch.distributed is (disabled|unavailable).*")

# Distributed: optimizer state goes by its parameter's name. Pipeline stages have different parameters, and a list of
# groups from each of them would overwrite the others'.
OPTIONS = StateDictOptions(flatten_optimizer_state_dict=True)


class Sharded:
    """The checkpoints of a model and its optimizer, which several processes hold together."""

    def __init__(self, model, optimizer, config, num_rows, run=None, rank=0, world_size=1):
        self.model, self.optimizer, self.config, self.num_rows, self.rank = model, optimizer, config, num_rows, rank
        # Distributed: the token tells this start of the processes from an earlier one, whose files may still be there.
        (token,) = from_rank_0([f"{time.time_ns()}-{os.getpid()}"])
        self.store = Checkpoints(
            config.checkpoint_dir, config.output_dir, run, rank, world_size, token, exchange=gathered
        )

    def save(self, step, epoch, step_of_epoch):
        """Writes the checkpoint of a step; two are kept."""
        model_state, optimizer_state = get_state_dict(self.model, self.optimizer, options=OPTIONS)
        with self.store.save(epoch, step_of_epoch) as folder:
            # Distributed: all processes write at the same time, each the shards that it holds.
            dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=folder)
            if self.rank == 0:
                about = {"mode": self.config.mode, "step": step, "depends_on": depends_on(self.config, self.num_rows)}
                (folder / "about.json").write_text(json.dumps(about))
        if not self.store.beside:
            # Distributed: nobody goes on before the checkpoint is whole: workers that are lost now restart from it.
            barrier()

    def agreed(self, wish):
        """The most urgent of all processes' wishes: see preempt.py."""
        if not dist.is_initialized():
            return wish
        # Distributed: a notice reaches processes at different moments, and their clocks differ; all do the same.
        most = torch.tensor(wish)
        most = most.cuda() if dist.get_backend() == "nccl" else most
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return most.item()

    def load(self):
        """Fills model and optimizer from the last whole checkpoint; returns the step to go on with, 0 without one.

        Raises SystemExit when the checkpoint is another mode's or another model's, or of other batches.
        """
        # Distributed: one rank says which checkpoint is the last whole one, so that all go on from the same.
        (name,) = from_rank_0([found.name if self.rank == 0 and (found := self.store.last()) else None])
        if name is None:
            return 0
        folder, path, mode = self.store.fetch(name), f"{self.config.checkpoint_dir}/{name}", self.config.mode
        if not (folder / "about.json").exists():
            raise SystemExit(f"checkpoint {path} is of mode=ddp, this run is mode={mode}: use another checkpoint_dir")
        about = json.loads((folder / "about.json").read_text())
        if about["mode"] != mode:
            raise SystemExit(
                f"checkpoint {path} is of mode={about['mode']}, this run is mode={mode}: use another checkpoint_dir, "
                f"or mode={about['mode']}"
            )
        check_position(path, about["depends_on"], depends_on(self.config, self.num_rows))
        model_state, optimizer_state = get_state_dict(self.model, self.optimizer, options=OPTIONS)
        state = {"model": model_state, "optimizer": optimizer_state}
        try:
            # Distributed: each process reads the parts that it holds now, however many processes wrote them.
            dcp.load(state, checkpoint_id=folder)
        except Exception as error:  # DCP wraps what went wrong on each rank in exceptions of its own
            raise SystemExit(
                f"checkpoint {path} does not fit this model: {str(error).strip().splitlines()[-1]}; use another "
                "checkpoint_dir, or the settings of that run"
            ) from None
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=OPTIONS,
        )
        if self.rank == 0:  # Distributed: one says it for all.
            print(f"going on from {path}", flush=True)
        return about["step"]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.store.__exit__(*error)


def from_rank_0(values):
    """Rank 0's list on all processes."""
    if dist.is_initialized():
        dist.broadcast_object_list(values, src=0)  # Distributed: what rank 0 knows is sent to all.
    return values


def gathered(own):
    """[what each process has], on all of them."""
    found = [None] * dist.get_world_size()  # Distributed: each sends its own to all.
    dist.all_gather_object(found, own)
    return found


def barrier():
    # Distributed: waits until every process is here; main_single.py has no others.
    if dist.is_initialized():
        dist.barrier()

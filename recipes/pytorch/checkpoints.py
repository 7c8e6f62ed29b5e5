"""Sharded checkpoints of the model-parallel modes.

Every process writes what it holds; together they are the whole model.

torch.distributed.checkpoint stores tensors by name with their place in the whole, so another number of processes can
read them. A folder gets its final name only when all parts are in it.
"""

import json
import shutil
import warnings
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from runrecord import check_position
from settings import depends_on

# One process without a process group is a use that is meant here, not an oversight.
warnings.filterwarnings("ignore", message=".*torch.distributed is (disabled|unavailable).*")

# Distributed: optimizer state goes by its parameter's name. Pipeline stages have different parameters, and a list of
# groups from each of them would overwrite the others'.
OPTIONS = StateDictOptions(flatten_optimizer_state_dict=True)


def save(model, optimizer, step, config, num_rows, rank=0):
    """Writes <checkpoint_dir>/step-<step>/ and then removes the older ones; returns its path."""
    path = Path(config.checkpoint_dir) / f"step-{step:08d}"
    partial = path.with_suffix(".partial")
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    barrier()  # Distributed: nobody writes before the folder is there.
    model_state, optimizer_state = get_state_dict(model, optimizer, options=OPTIONS)
    # Distributed: all processes write at the same time, each the shards that it holds.
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=partial)
    if rank == 0:
        about = {"mode": config.mode, "step": step, "depends_on": depends_on(config, num_rows)}
        (partial / "about.json").write_text(json.dumps(about))
        partial.rename(path)
        for old in sorted(path.parent.glob("step-*")):
            if old != path:
                shutil.rmtree(old, ignore_errors=True)
    # Distributed: nobody goes on before the checkpoint has its name: whoever is lost now is restarted from it.
    barrier()
    return path


def load(model, optimizer, config, num_rows, rank=0):
    """Fills model and optimizer from the last whole checkpoint; returns the step to go on with, 0 without one.

    Raises SystemExit when the checkpoint is another mode's or another model's, or of other batches.
    """
    if (other := Path(config.checkpoint_dir) / "last.pt").exists():
        raise SystemExit(
            f"checkpoint {other} is of mode=ddp, this run is mode={config.mode}: use another checkpoint_dir"
        )
    found = sorted(path for path in Path(config.checkpoint_dir).glob("step-*") if not path.suffix)
    if not found:
        return 0
    about = json.loads((found[-1] / "about.json").read_text())
    if about["mode"] != config.mode:
        raise SystemExit(
            f"checkpoint {found[-1]} is of mode={about['mode']}, this run is mode={config.mode}: use another "
            f"checkpoint_dir, or mode={about['mode']}"
        )
    check_position(found[-1], about.get("depends_on", {}), depends_on(config, num_rows))
    model_state, optimizer_state = get_state_dict(model, optimizer, options=OPTIONS)
    state = {"model": model_state, "optimizer": optimizer_state}
    try:
        # Distributed: each process reads the parts that it holds now, however many processes wrote them.
        dcp.load(state, checkpoint_id=found[-1])
    except Exception as error:  # DCP wraps what went wrong on each rank in exceptions of its own
        raise SystemExit(
            f"checkpoint {found[-1]} does not fit this model: {str(error).strip().splitlines()[-1]}; use another "
            "checkpoint_dir, or the settings of that run"
        ) from None
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=OPTIONS
    )
    if rank == 0:
        print(f"going on from {found[-1]}", flush=True)
    return about["step"]


def barrier():
    # Distributed: waits until every process is here; main_single.py has no others.
    if dist.is_initialized():
        dist.barrier()

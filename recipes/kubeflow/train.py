"""The training program: torchrun starts it once per worker, on this machine or in the pods of a TrainJob or PyTorchJob.

Run:     torchrun --nproc-per-node 2 train.py train.yaml
Source:  Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating Data Parallel Training".
"""

import math
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from data import Batches, ImageData
from model import torch_network
from preempt import Notice, Preempted
from runrecord import RunRecord, check_model, check_position, load_config
from storage import Checkpoints


def main():
    config = load_config()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if config.use_gpu else torch.device("cpu")
    # Distributed: torchrun started world_size copies of this program and told each its rank; they meet here.
    store = meet(device)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    data = ImageData(config.rows_dir, "train")
    torch.manual_seed(config.seed)
    network = torch_network(data.images.shape[3], data.num_classes, config.width).to(device)
    # Distributed: rank 0's parameters are copied to all, and `backward` exchanges the gradients from here on.
    model = DistributedDataParallel(network, gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(network.parameters(), config.learning_rate, momentum=0.9, nesterov=True)
    facts = {
        "local_rank": int(os.environ["LOCAL_RANK"]),
        "attempt": int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)),
        "phase": 0,  # the pipeline's one training: a try that finds it in the cache has no workers of its own
    }
    preempted = None
    try:
        with (
            RunRecord(config.output_dir, rank, world_size, device=str(device), torch=torch.__version__, **facts) as run,
            Checkpoints(config.checkpoint_dir, config.output_dir, run) as checkpoints,
        ):
            notice = Notice(config.output_dir, config.checkpoint_every_steps, config.checkpoint_every_seconds)
            position = load_checkpoint(network, optimizer, checkpoints, config, len(data))
            # Distributed: rank 0's clock on all ranks.
            run.restore(position["epoch"], position["step"], generation=shared_now(device))
            batches = Batches(len(data), config.global_batch_size, config.seed)
            num_steps = config.num_epochs * batches.steps_per_epoch
            num_steps = min(num_steps, config.max_steps or num_steps)
            while position["epoch"] * batches.steps_per_epoch < num_steps:
                train_epoch(
                    model, network, optimizer, position, checkpoints, notice, num_steps, data, batches, config, run
                )
                position.update(epoch=position["epoch"] + 1, step=0, loss_sum=0.0)
                save_checkpoint(network, optimizer, position, checkpoints, config, run, len(data))
                notice.saved()
            run.digest(tensor.detach().cpu().numpy() for tensor in network.state_dict().values())
            if rank == 0:  # Distributed: the parameters are the same everywhere, so one rank writes them down.
                save_whole(network.state_dict(), Path(config.model_path))
    except Preempted as error:
        preempted = error
    leave(store, rank, world_size)
    return preempted


def meet(device):
    """Joins the process group.

    Returns the store that its members share. Raises RuntimeError when not all workers are there within five minutes.
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # Distributed: the store is where the workers find each other's addresses. After a restart PyTorch 2.13's env://
    # finds the dead ones' there: a prefix keeps the attempts apart.
    hosts = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # else torchrun does
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=hosts)
    store = dist.PrefixStore(f"attempt{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.deterministic = True  # its fastest sums come in another order each time
    # Distributed: waits until all world_size workers are there, and connects them.
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=world_size)
    return store


def leave(store, rank, world_size):
    """Leaves the process group when all are done; workers.py of recipes/pytorch says why there is a short sleep."""
    # Distributed: all say in the store that they are done and wait for the others' word, then the group ends in order.
    store.set(f"done{rank}", "")
    store.wait([f"done{other}" for other in range(world_size)])
    time.sleep(0.2)
    dist.destroy_process_group()


def train_epoch(model, network, optimizer, position, checkpoints, notice, num_steps, data, batches, config, run):
    """Takes the position {epoch, step, loss_sum of the epoch so far} to the epoch's end, or to `num_steps`."""
    # Distributed: who am I, among how many? From these two follows which rows are mine.
    rank, world_size, device = dist.get_rank(), dist.get_world_size(), next(model.parameters()).device
    epoch, started, num_rows = position["epoch"], time.perf_counter(), 0
    first_step = epoch * batches.steps_per_epoch
    steps = range(position["step"], min(batches.steps_per_epoch, num_steps - first_step))
    for step, ids in zip(steps, batches.of_epoch(epoch, steps.start), strict=False):
        # Distributed: a notice reaches ranks at different moments, and their clocks differ: all do what the most urgent
        # wish says, after this step. The exchange goes on beside it.
        wish = torch.tensor(notice.wish(first_step + step + 1, step + 1 == steps.stop), device=device)
        exchange = dist.all_reduce(wish, op=dist.ReduceOp.MAX, async_op=True)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(epoch + step / batches.steps_per_epoch, config)
        # Distributed: every worker knows the whole batch and takes its own share of it.
        own = ids[rank::world_size]
        run.rows(epoch, step, own)
        loss = train_step(model, optimizer, *data.read(own), len(ids), device)
        position["loss_sum"] += run.finite(loss, epoch, step)
        position["step"], num_rows = step + 1, num_rows + len(ids)
        exchange.wait()
        if wish.item():
            save_checkpoint(network, optimizer, position, checkpoints, config, run, len(data))
            notice.saved(wish.item())
    done, rows_of_epoch = first_step + steps.stop, min(steps.stop * config.global_batch_size, len(data))
    run.metric("train/loss", sum_over_ranks(position["loss_sum"], device) / rows_of_epoch, done, epoch)
    if rank == 0 and num_rows:  # Distributed: all took as long, so one of them tells.
        run.metric("samples_per_second", num_rows / (time.perf_counter() - started), done, epoch, unit="samples/s")
    run.progress(done, num_steps, f"epoch {epoch + 1}")


def train_step(model, optimizer, images, labels, batch_size, device):
    """One optimizer step on this worker's share of a batch of `batch_size` rows; returns the share's summed loss."""
    images, labels = torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images), labels, reduction="sum")
    # Distributed: DDP averages over the workers; divided by the rows of the whole batch each row has the same weight.
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    (loss * world_size / batch_size).backward()
    optimizer.step()
    return loss.item()


def learning_rate_at(epoch, config):
    """Rises linearly over the first epoch, then falls to 0 along a cosine; `epoch` counts fractions."""
    if epoch < 1:
        return config.learning_rate * epoch
    return config.learning_rate * (1 + math.cos(math.pi * (epoch - 1) / max(1, config.num_epochs - 1))) / 2


def sum_over_ranks(value, device):
    # Distributed: sums over unequal shares add up exactly, a mean of means would not.
    total = torch.tensor([value], dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.item()


def shared_now(device):
    """Rank 0's clock on all ranks."""
    # Distributed: clocks differ; what one rank reads is sent to all.
    now = torch.tensor([time.time()], dtype=torch.float64, device=device)
    dist.broadcast(now, src=0)
    return now.item()


def depends_on(config, num_rows):
    """What a position depends on: with other values the same epoch and step stand for other rows."""
    return {"seed": config.seed, "global_batch_size": config.global_batch_size, "num_rows": num_rows}


def save_checkpoint(network, optimizer, position, checkpoints, config, run, num_rows):
    """Network, optimizer and position; the checkpoint is whole or not there."""
    total = sum(tensor.sum() for tensor in network.state_dict().values())
    run.finite(total, position["epoch"], position["step"] - 1, "the sum of the parameters")
    loss_sum = sum_over_ranks(position["loss_sum"], next(network.parameters()).device)
    if dist.get_rank() > 0:  # Distributed: the parameters are the same everywhere, so one rank writes them down.
        return
    content = {"model": network.state_dict(), "optimizer": optimizer.state_dict()}
    content |= {"position": {**position, "loss_sum": loss_sum}, "depends_on": depends_on(config, num_rows)}
    with checkpoints.save(position["epoch"], position["step"]) as folder:
        torch.save(content, folder / "state.pt")


def save_whole(content, path):
    """Written beside and renamed: the file is there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_checkpoint(network, optimizer, checkpoints, config, num_rows):
    """Every rank reads the last whole checkpoint, if there is one; returns the position to go on with."""
    # Distributed: one rank says which checkpoint is the last whole one, so that all go on from the same.
    names = [found.name if dist.get_rank() == 0 and (found := checkpoints.last()) else None]
    dist.broadcast_object_list(names, src=0)
    if names[0] is None:
        return {"epoch": 0, "step": 0, "loss_sum": 0.0}
    path = checkpoints.fetch(names[0])
    content = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    check_position(path, content["depends_on"], depends_on(config, num_rows))
    check_model(path, content["model"], network.state_dict())
    network.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    # Distributed: the epoch's sum so far is that of all ranks: one of them keeps it.
    return {**content["position"], **({} if dist.get_rank() == 0 else {"loss_sum": 0.0})}


if __name__ == "__main__":
    sys.exit(preempted.code if (preempted := main()) else 0)

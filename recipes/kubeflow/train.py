"""The training program: torchrun starts it once per worker, on this machine or in the pods of a TrainJob or PyTorchJob.

Run:     torchrun --nproc-per-node 2 train.py train.yaml
Source:  Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating Data Parallel Training".
"""

import math
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from data import Batches, ImageData
from model import torch_network
from runrecord import RunRecord, check_position, load_config


def main():
    config = load_config()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if config.use_gpu else torch.device("cpu")
    # Distributed: torchrun started world_size copies of this program and told each its rank; they meet here.
    store = meet(config, device)
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
    with RunRecord(config.output_dir, rank, world_size, device=str(device), torch=torch.__version__, **facts) as run:
        epoch = load_checkpoint(network, optimizer, config, len(data))
        run.restore(epoch, 0, generation=shared_now(device))
        batches = Batches(len(data), config.global_batch_size, config.seed)
        num_steps = config.num_epochs * batches.steps_per_epoch
        num_steps = min(num_steps, config.max_steps or num_steps)
        while epoch * batches.steps_per_epoch < num_steps:
            train_epoch(model, optimizer, epoch, num_steps, data, batches, config, run)
            epoch += 1
            # Distributed: the parameters are the same everywhere, so one rank writes them down.
            if rank == 0:
                save_checkpoint(network, optimizer, epoch, config, run, len(data))
        run.digest(tensor.detach().cpu().numpy() for tensor in network.state_dict().values())
        if rank == 0:
            save_whole(network.state_dict(), Path(config.model_path))
        leave(store, rank, world_size)


def meet(config, device):
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
    # Distributed: waits until all world_size workers are there, and connects them.
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=world_size)
    return store


def leave(store, rank, world_size):
    """Nobody goes while another still waits for an answer; see recipes/pytorch on why there is a short sleep."""
    # Distributed: all say in the store that they are done and wait for the others' word, then the group ends in order.
    store.set(f"done{rank}", "")
    store.wait([f"done{other}" for other in range(world_size)])
    time.sleep(0.2)
    dist.destroy_process_group()


def train_epoch(model, optimizer, epoch, num_steps, data, batches, config, run):
    # Distributed: who am I, among how many? From these two follows which rows are mine.
    rank, world_size, device = dist.get_rank(), dist.get_world_size(), next(model.parameters()).device
    first_step, started, loss_sum, num_rows = epoch * batches.steps_per_epoch, time.perf_counter(), 0.0, 0
    steps = min(batches.steps_per_epoch, num_steps - first_step)
    for step, ids in zip(range(steps), batches.of_epoch(epoch), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(epoch + step / batches.steps_per_epoch, config)
        # Distributed: every worker knows the whole batch and takes its own share of it.
        own = ids[rank::world_size]
        run.rows(epoch, step, own)
        loss_sum += run.finite(train_step(model, optimizer, *data.read(own), len(ids), device), epoch, step)
        num_rows += len(ids)
    # Distributed: sums over unequal shares add up exactly, a mean of means would not.
    total = torch.tensor([loss_sum], dtype=torch.float64, device=device)
    dist.all_reduce(total)
    done = first_step + steps
    run.metric("train/loss", total.item() / num_rows, done, epoch)
    if rank == 0:
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


def shared_now(device):
    """Rank 0's clock on all ranks."""
    # Distributed: clocks differ; what one rank reads is sent to all.
    now = torch.tensor([time.time()], dtype=torch.float64, device=device)
    dist.broadcast(now, src=0)
    return now.item()


def depends_on(config, num_rows):
    """What a position depends on: with other values the same epoch and step stand for other rows."""
    return {"seed": config.seed, "global_batch_size": config.global_batch_size, "num_rows": num_rows}


def save_checkpoint(network, optimizer, epoch, config, run, num_rows):
    path = Path(config.checkpoint_dir) / "last.pt"
    content = {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
    content["depends_on"] = depends_on(config, num_rows)
    run.finite(sum(tensor.sum() for tensor in content["model"].values()), epoch - 1, 0, "the sum of the parameters")
    save_whole(content, path)
    run.checkpoint(path, epoch, 0)


def save_whole(content, path):
    """Written beside and renamed: the file is there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_checkpoint(network, optimizer, config, num_rows):
    """Every rank reads the last checkpoint, if there is one; returns the epoch to go on with."""
    path = Path(config.checkpoint_dir) / "last.pt"
    if not path.exists():
        return 0
    content = torch.load(path, map_location="cpu", weights_only=True)
    check_position(path, content.get("depends_on", {}), depends_on(config, num_rows))
    try:
        network.load_state_dict(content["model"])
    except RuntimeError as error:
        raise SystemExit(f"checkpoint {path} is from another model: {error}; use another checkpoint_dir") from None
    optimizer.load_state_dict(content["optimizer"])
    return content["epoch"]


if __name__ == "__main__":
    main()

"""Data-parallel training by Ray Train: Ray starts the workers where there is room, feeds them, and replaces the dead.

Shows:   TorchTrainer with its scaling, failure and checkpoint configuration, input by Ray Data that is prepared by
         tasks beside the training, checkpoints that any later attempt goes on from, and how a run that Ray drives can
         be repeated bit for bit.
Choose:  when training is one part of a larger Python program on a cluster: preparation on CPUs, training on GPUs,
         tuning, serving.
Run:     python -m rayrun --num-cpus 4 main.py config.yaml num_workers=2
Expect:  test accuracy of at least 0.97 on handwritten digits, in under a minute on two CPU cores; 20 seconds pass
         before the first step.
Source:  Moritz et al. 2018, "Ray: A Distributed Framework for Emerging AI Applications"; Ray Train's documentation.
"""

import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig
from ray.train.torch import TorchConfig, TorchTrainer
from torch.nn import functional as F

from batches import joined, my_shards, options
from checkpoints import fit, last_whole, report, with_status
from data import datasets_of, num_rows_of, read_manifest, remove_shards, write_shards
from model import torch_network
from preempt import Notice
from runrecord import RunRecord, check_model, check_position, load_config, read_records
from scaling import scaling_of
from settings import check_settings, depends_on, learning_rate_at, num_steps_of
from storage import for_arrow
from workers import connect, keep_profile


@dataclass
class Training:
    """What a checkpoint holds."""

    network: torch.nn.Module
    model: torch.nn.Module  # Distributed: the network, with the exchange around it.
    optimizer: torch.optim.Optimizer
    num_rows: int  # of the training data; a checkpoint made with another number is refused
    epoch: int = 0
    step: int = 0  # of the epoch
    loss_sum: float = 0.0  # Distributed: of the epoch so far, and of this rank only.
    accuracy: float = 0.0  # after the epoch before


def main():
    config = check_settings(load_config())
    manifest = read_manifest(config)
    with RunRecord(config.output_dir, 0, 1, role="driver", ray=ray.__version__) as run:
        began, clock = time.time(), time.perf_counter()
        os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = str(config.poll_seconds)
        if "RAYRUN_SECONDS" in os.environ:
            os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # nobody takes this instance's machine away
        connect(run)  # Distributed: this program only asks; everything else happens in processes that Ray starts.
        scaling = scaling_of(config)  # Distributed: how many workers, with which resources, and where.
        run.progress(0, 1, "preparing the rows")
        shards = write_shards(config, manifest)
        # Distributed: every worker must reach the checkpoints: a folder that all see, or an object store.
        storage_path, file_system = for_arrow(config.checkpoint_dir)
        datasets = datasets_of(config, manifest, shards)
        trainer = TorchTrainer(
            with_status(train_worker),
            train_loop_config={"config": vars(config), "manifest": manifest, "began": began},
            scaling_config=scaling,
            run_config=RunConfig(
                # The same name and path again: Ray Train goes on from the last checkpoint that it finds there.
                name="train",
                storage_path=storage_path,
                storage_filesystem=file_system,
                checkpoint_config=CheckpointConfig(num_to_keep=2),
                # Distributed: when a worker dies, all are started anew, so many times, from the last checkpoint.
                failure_config=FailureConfig(max_failures=config.max_restarts),
            ),
            torch_config=TorchConfig(backend="nccl" if config.use_gpu else "gloo"),
            datasets=datasets,
            # Distributed: left alone, Ray Train gives each worker whichever blocks are ready, and drops rows to make
            # all shares equal. That balances the load, but no two runs see the same batches. Here shards belong to
            # workers, by number.
            dataset_config=DataConfig(datasets_to_split=[]),
        )
        run.metric("seconds/prepare", time.perf_counter() - clock, step=0, unit="s")
        if not (status := fit(trainer)):
            remove_shards(config, shards)
        keep_profile(config)
    return status


def train_worker(settings):
    """Runs in each worker process that Ray Train has started."""
    config, manifest = SimpleNamespace(**settings["config"]), settings["manifest"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    torch.manual_seed(config.seed)
    if config.use_gpu:
        ray.train.torch.enable_reproducibility(config.seed)  # a GPU's fastest sums come in another order each time
    channels = manifest["schema"]["images"]["shape"][3]
    network = torch_network(channels, len(manifest["classes"]), config.width)
    # Distributed: moves the network to this worker's device; `backward` then averages gradients over the workers.
    model = ray.train.torch.prepare_model(network)
    optimizer = torch.optim.SGD(
        network.parameters(), config.learning_rate, config.momentum, nesterov=config.momentum > 0
    )
    attempt, generation = agreed_attempt(config, settings["began"])
    facts = {"ray": ray.__version__, "torch": torch.__version__, "device": str(device), "node": context.get_node_rank()}
    with RunRecord(config.output_dir, rank, world_size, context.get_local_rank(), attempt=attempt, **facts) as run:
        training = Training(network, model, optimizer, num_rows_of(config, manifest, "train"))
        load_checkpoint(training, config)
        run.restore(training.epoch, training.step, generation=generation)
        train(training, config, manifest, run)
        run.digest(parameter.detach().cpu().numpy() for parameter in network.state_dict().values())
        dist.barrier()  # Distributed: nobody leaves while another still waits for an answer.


def agreed_attempt(config, began):
    """(how often this program has started the workers before, a number newer than any before), equal on all ranks."""
    workers = [events for events in read_records(config.output_dir) if events[0]["role"] == "worker"]
    own = [events for events in workers if events[0]["rank"] == 0]
    # Distributed: the ranks must agree, and only one of them can count.
    agreed = torch.tensor([sum(events[0]["time"] >= began for events in own), time.time()], dtype=torch.float64)
    agreed = agreed.to(ray.train.torch.get_device())
    dist.broadcast(agreed, src=0)
    return int(agreed[0]), agreed[1].item()


def train(training, config, manifest, run):
    """Trains from where `training` is to the end."""
    notice = Notice(config.output_dir, config.checkpoint_every_steps, config.checkpoint_every_seconds)
    steps_per_epoch, num_steps = num_steps_of(config, training.num_rows)
    shards, device = my_shards(config, "train"), ray.train.torch.get_device()
    # Small, and the same each time: read once, and kept.
    test = [
        channels_first(batch)
        for shard in my_shards(config, "test")
        for batch in shard.iter_torch_batches(batch_size=256, device=device)
    ]
    while (first := training.epoch * steps_per_epoch) < num_steps:
        epoch, started, taken = training.epoch, time.perf_counter(), 0
        steps = range(training.step, min(steps_per_epoch, num_steps - first))
        training.network.train()
        streams = [shard.iter_torch_batches(device=device, **options(config, epoch)) for shard in shards]
        for step, batch in zip(steps, joined(streams, steps, torch.cat), strict=True):
            # Distributed: a notice reaches ranks at different moments, and their clocks differ: all do what the most
            # urgent wish says, after this step. The exchange goes on beside it.
            wish = torch.tensor(notice.wish(first + step + 1, step + 1 == steps.stop), device=device)
            exchange = dist.all_reduce(wish, dist.ReduceOp.MAX, async_op=True)
            run.rows(epoch, step, batch["id"].cpu().numpy())
            # Of all workers together.
            size = min(config.global_batch_size, training.num_rows - step * config.global_batch_size)
            for group in training.optimizer.param_groups:
                group["lr"] = learning_rate_at(epoch + step / steps_per_epoch, config)
            loss = train_step(training.model, training.optimizer, channels_first(batch), size)
            training.loss_sum += run.finite(loss, epoch, step)
            training.step, taken = step + 1, taken + size
            if step % 50 == 49:
                run.progress(first + step + 1, num_steps, f"epoch {epoch + 1}, step {step + 1}")
            if exchange.wait() and wish.item():
                save_checkpoint(training, config, run)
                notice.saved(wish.item())
        done, rows_of_epoch = first + steps.stop, min(steps.stop * config.global_batch_size, training.num_rows)
        run.metric("train/loss", sum_over_ranks(training.loss_sum) / rows_of_epoch, done, epoch)
        if taken:  # nothing when the last try had taken the epoch's last step
            # Distributed: ranks stop their clocks at slightly different times; the slowest one's counts.
            speed = taken / sum_over_ranks(time.perf_counter() - started, dist.ReduceOp.MAX)
            run.metric("samples_per_second", speed, done, epoch, unit="samples/s")
        training.accuracy = evaluate(training.network, test, manifest)
        run.metric("eval/accuracy", training.accuracy, done, epoch)
        run.progress(done, num_steps, f"epoch {epoch + 1}  accuracy {training.accuracy:.4f}")
        training.epoch, training.step, training.loss_sum = epoch + 1, 0, 0.0
        save_checkpoint(training, config, run)
        notice.saved()


def channels_first(batch):
    """Images (n, height, width, channels) as a view (n, channels, height, width).

    Their memory stays channels-last, which is faster for convolutions on a CPU.
    """
    return {**batch, "image": batch["image"].permute(0, 3, 1, 2)}


def train_step(model, optimizer, batch, size):
    """One optimizer step on this worker's share of a global batch of `size` rows; returns the share's summed loss."""
    optimizer.zero_grad()
    loss = F.cross_entropy(model(batch["image"]), batch["label"], reduction="sum")
    # Distributed: gradients are averaged over the workers. Dividing by the rows of the whole batch, not by one's own
    # share, gives each row the same weight even where the shares differ in size.
    (loss * dist.get_world_size() / size).backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def evaluate(network, test, manifest):
    """Accuracy over the whole test part, each rank judging its shards."""
    network.eval()
    num_correct = sum((network(batch["image"]).argmax(1) == batch["label"]).sum().item() for batch in test)
    return sum_over_ranks(num_correct) / manifest["rows"]["test"]


def sum_over_ranks(value, op=dist.ReduceOp.SUM):
    # Distributed: counts and sums add up exactly over unequal shares, a mean of means would not.
    total = torch.tensor(float(value), dtype=torch.float64, device=ray.train.torch.get_device())
    dist.all_reduce(total, op)
    return total.item()


def save_checkpoint(training, config, run):
    """Hands a checkpoint to Ray Train, which copies it to `storage_path` and only then counts it as one."""
    position = {"epoch": training.epoch, "step": training.step, "accuracy": training.accuracy}
    position["loss_sum"] = sum_over_ranks(training.loss_sum)
    if dist.get_rank() > 0:  # Distributed: parameters are equal, so one of them writes.
        report(position, None)
        return
    content = {
        "network": training.network.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "position": position,
        "depends_on": depends_on(config, training.num_rows),
    }
    with tempfile.TemporaryDirectory() as folder:
        torch.save(content, Path(folder) / "state.pt")
        report(position, folder)
    run.checkpoint(config.checkpoint_dir, training.epoch, training.step)


def load_checkpoint(training, config):
    """Reads the last checkpoint, if there is one, and goes on from there."""
    # Distributed: each worker reads it from the storage, wherever it runs.
    with last_whole() as folder:
        if folder is None:
            return
        content = torch.load(Path(folder) / "state.pt", map_location="cpu", weights_only=True)
    check_position(config.checkpoint_dir, content["depends_on"], depends_on(config, training.num_rows))
    check_model(config.checkpoint_dir, content["network"], training.network.state_dict())
    training.network.load_state_dict(content["network"])
    training.optimizer.load_state_dict(content["optimizer"])
    for group in training.optimizer.param_groups:
        group.update(momentum=config.momentum, nesterov=config.momentum > 0)  # the settings', not the checkpoint's
    position = content["position"]
    training.epoch, training.step, training.accuracy = position["epoch"], position["step"], position["accuracy"]
    # Distributed: the epoch's sum so far is that of all ranks: one of them keeps it.
    if dist.get_rank() == 0:
        training.loss_sum = position["loss_sum"]


if __name__ == "__main__":
    sys.exit(main())

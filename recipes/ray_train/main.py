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

import contextlib
import os
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from torch.nn import functional as F

from data import datasets_of, num_rows_of, read_manifest, remove_shards, write_shards
from model import torch_network
from runrecord import RunRecord, check_position, load_config, read_records
from settings import check_settings, depends_on, learning_rate_at, num_steps_of
from storage import for_arrow
from workers import connect, require_free


def main():
    config = check_settings(load_config())
    manifest = read_manifest(config)
    with RunRecord(config.output_dir, 0, 1, role="driver", ray=ray.__version__) as run:
        began, clock = time.time(), time.perf_counter()
        os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = str(config.poll_seconds)
        if "RAYRUN_SECONDS" in os.environ:
            os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # nobody takes this instance's machine away
        connect(run)  # Distributed: this program only asks; everything else happens in processes that Ray starts.
        need = {"CPU": 1.0, **({"GPU": 1.0} if config.use_gpu else {})}
        require_free(config.num_workers, need)
        run.progress(0, 1, "preparing the rows")
        shards = write_shards(config, manifest)
        # Distributed: every worker must reach the checkpoints: a folder that all see, or an object store.
        storage_path, file_system = for_arrow(config.checkpoint_dir)
        datasets = datasets_of(config, manifest, shards)
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"config": vars(config), "manifest": manifest, "began": began},
            # Distributed: so many workers, each with these resources, placed together or not at all.
            # Distributed: SPREAD: on as many nodes as there are; left alone, Ray packs workers together.
            scaling_config=ScalingConfig(
                num_workers=config.num_workers,
                use_gpu=config.use_gpu,
                resources_per_worker=need,
                placement_strategy="SPREAD",
            ),
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
        with told_in_one_line():
            trainer.fit()
        remove_shards(config, shards)


@contextlib.contextmanager
def told_in_one_line():
    try:
        yield
    except ray.train.TrainingFailedError as error:
        raise SystemExit(f"Ray Train gave up: {str(error).strip().splitlines()[-1]}") from None


def train_worker(settings):
    """Runs in each worker process that Ray Train has started."""
    config, manifest = SimpleNamespace(**settings["config"]), settings["manifest"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    torch.manual_seed(config.seed)
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
        epoch = load_checkpoint(network, optimizer, config, num_rows_of(config, manifest, "train"))
        run.restore(epoch, 0, generation=generation)
        train(model, network, optimizer, epoch, config, manifest, run)
        run.digest(parameter.detach().cpu().numpy() for parameter in network.state_dict().values())
        dist.barrier()  # Distributed: nobody leaves while another still waits for an answer.


def agreed_attempt(config, began):
    """(how often this program has started the workers before, a number newer than any before), equal on all ranks."""
    workers = [events for events in read_records(config.output_dir) if events[0]["role"] == "worker"]
    own = [events for events in workers if events[0]["rank"] == 0]
    # Distributed: the ranks must agree, and only one of them can count.
    told = torch.tensor([sum(events[0]["time"] >= began for events in own), time.time()], dtype=torch.float64)
    told = told.to(ray.train.torch.get_device())
    dist.broadcast(told, src=0)
    return int(told[0]), told[1].item()


def my_shards(config, split):
    # Distributed: a shard belongs to exactly one worker; with one worker, all of them do.
    mine = range(dist.get_rank(), config.num_shards, dist.get_world_size())
    return [ray.train.get_dataset_shard(f"{split}-{shard}") for shard in mine]


def train(model, network, optimizer, epoch, config, manifest, run):
    num_rows = num_rows_of(config, manifest, "train")
    steps_per_epoch, num_steps = num_steps_of(config, num_rows)
    shards, device = my_shards(config, "train"), ray.train.torch.get_device()
    # Small, and the same each time: read once, and kept.
    test = [
        seen_as_channels_first(batch)
        for shard in my_shards(config, "test")
        for batch in shard.iter_torch_batches(batch_size=256, device=device)
    ]
    while epoch * steps_per_epoch < num_steps:
        first = epoch * steps_per_epoch
        steps = range(min(steps_per_epoch, num_steps - first))
        started, loss_sum, taken = time.perf_counter(), 0.0, 0
        network.train()
        for step, batch in zip(steps, joined(shards, len(steps), config, epoch, device), strict=True):
            run.rows(epoch, step, batch["id"].cpu().numpy())
            size = min(config.global_batch_size, num_rows - step * config.global_batch_size)  # of all workers together
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(epoch + step / steps_per_epoch, config)
            loss_sum += run.finite(train_step(model, optimizer, batch, size), epoch, step)
            taken += size
            if step % 50 == 49:
                run.progress(first + step + 1, num_steps, f"epoch {epoch + 1}, step {step + 1}")
        done = first + len(steps)
        run.metric("train/loss", sum_over_ranks(loss_sum) / taken, done, epoch)
        # Distributed: ranks stop their clocks at slightly different times; the slowest one's counts.
        speed = taken / max_over_ranks(time.perf_counter() - started)
        run.metric("samples_per_second", speed, done, epoch, unit="samples/s")
        accuracy = evaluate(network, test, manifest)
        run.metric("eval/accuracy", accuracy, done, epoch)
        run.progress(done, num_steps, f"epoch {epoch + 1}  accuracy {accuracy:.4f}")
        epoch += 1
        save_checkpoint(network, optimizer, epoch, accuracy, config, run, num_rows)


def joined(shards, num_steps, config, epoch, device):
    """Yields this worker's part of each global batch, {id, label, image}: equally many rows of each of its shards."""
    how = {
        "batch_size": config.global_batch_size // config.num_shards,
        "prefetch_batches": config.prefetch_batches,
        "device": device,
        "local_shuffle_buffer_size": config.shuffle_rows,
        "local_shuffle_seed": config.seed * 1000 + epoch,
    }
    # Distributed: tasks of Ray Data send blocks, and a thread prepares the next batches, while this worker computes.
    streams = [iter(shard.iter_torch_batches(**how)) for shard in shards]
    batch = None
    for _ in range(num_steps):
        parts = [part for stream in streams if (part := next(stream, None)) is not None]
        # Distributed: shards may differ by a row, and a last batch may have none for this worker. It takes part all the
        # same, with nothing to add: the others wait for it in the exchange.
        parts = parts or [{name: values[:0] for name, values in batch.items()}]
        batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        yield seen_as_channels_first(batch)


def seen_as_channels_first(batch):
    """(n, height, width, channels) as (n, channels, height, width), not moved: on a CPU convolutions are faster so."""
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


def max_over_ranks(value):
    return sum_over_ranks(value, dist.ReduceOp.MAX)


def save_checkpoint(network, optimizer, epoch, accuracy, config, run, num_rows):
    """Hands a checkpoint to Ray Train, which copies it to `storage_path` and only then counts it as one."""
    metrics = {"epoch": epoch, "accuracy": accuracy}
    # Distributed: every rank reports, or all would wait; parameters are equal, so one of them writes.
    if dist.get_rank() > 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        content = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        content["depends_on"] = depends_on(config, num_rows)
        torch.save(content, Path(folder) / "last.pt")
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))  # Distributed: the one that writes.
    run.checkpoint(config.checkpoint_dir, epoch, 0)


def load_checkpoint(network, optimizer, config, num_rows):
    """Fills network and optimizer from the checkpoint that Ray Train hands over; returns the epoch to go on with."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    # Distributed: each worker reads it from the storage, wherever it runs.
    with checkpoint.as_directory() as folder:
        content = torch.load(os.path.join(folder, "last.pt"), map_location="cpu", weights_only=True)
    check_position(config.checkpoint_dir, content.get("depends_on", {}), depends_on(config, num_rows))
    try:
        network.load_state_dict(content["network"])
    except RuntimeError as error:
        raise SystemExit(f"the checkpoint is from another model: {error}; use another checkpoint_dir") from None
    optimizer.load_state_dict(content["optimizer"])
    return content["epoch"]


if __name__ == "__main__":
    main()

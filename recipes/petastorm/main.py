"""From Spark's Parquet to PyTorch with Petastorm: each worker reads its own row groups, and every row is read once.

Shows:   a store that Spark has written, read by two workers through Petastorm's column reader, its row reader, a
         Spark converter, or pyarrow's datasets, with the same result; sharding, shuffling, predicates, transforms,
         caches, reader pools.
Choose:  when there is a Petastorm store already, or tensors in Parquet cells; README.md says when
         something else is better.
Run:     torchrun --nproc-per-node 2 main.py config.yaml
Expect:  flights: AUC of at least 0.65 for "more than 15 minutes late"; digits: accuracy of at least 0.95. A
         minute on two cores.
Source:  Petastorm's documentation; Li et al. 2020, "PyTorch Distributed" (DistributedDataParallel).
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import petastorm
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from model import make_network, scores_of, sum_of_losses
from preempt import Notice, Preempted
from readers import batches_of, check_row_groups, chunks_of, leave
from runrecord import RunRecord, check_model, check_position, load_config
from settings import check_settings, depends_on
from storage import Checkpoints
from stores import open_store


@dataclass
class Training:
    """What a checkpoint holds, and who keeps it."""

    network: torch.nn.Module
    model: DistributedDataParallel  # Distributed: the network, with the exchange around it.
    optimizer: torch.optim.Optimizer
    checkpoints: Checkpoints
    epoch: int = 0
    step: int = 0  # since the beginning
    taken: int = 0  # steps of the epoch so far
    # Distributed: of the epoch so far, and of this rank only; a checkpoint has the sums of all ranks.
    loss_sum: float = 0.0
    num_rows: int = 0


def main():
    config = check_settings(load_config())
    rank, world_size = meet()
    check_settings(config, world_size)
    check_row_groups(config, rank, world_size)
    torch.manual_seed(config.seed)
    manifest = json.loads((Path(config.data_dir) / "manifest.json").read_text())
    network = make_network(manifest, config.width)
    # Distributed: sends rank 0's parameters to all, and averages the gradients of all ranks while `backward`
    # computes them.
    model = DistributedDataParallel(network)
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate)
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    facts = {"petastorm": petastorm.__version__, "torch": torch.__version__, "device": "cpu"}
    preempted = None
    try:
        with (
            RunRecord(
                config.output_dir, rank, world_size, int(os.environ["LOCAL_RANK"]), attempt=attempt, **facts
            ) as run,
            open_store(config, manifest) as store,
            Checkpoints(config.checkpoint_dir, config.output_dir, run) as checkpoints,
        ):
            notice = Notice(config.output_dir, config.checkpoint_every_steps, config.checkpoint_every_seconds)
            training = Training(network, model, optimizer, checkpoints)
            load_checkpoint(training, config, manifest)
            # Distributed: a clock that all ranks share.
            run.restore(training.epoch, training.taken, generation=shared_clock())
            train(training, notice, store, manifest, config, run)
            run.digest(parameter.detach().numpy() for parameter in network.state_dict().values())
    except Preempted as error:
        preempted = error
    # Distributed: nobody leaves while another may still need an answer.
    dist.barrier()
    dist.destroy_process_group()  # Distributed: leaves the others in order.
    return preempted


def meet():
    """Joins the process group; returns (rank, world_size)."""
    # Distributed: torchrun started world_size copies of this program; they find each other's addresses in its store.
    # After a restart PyTorch 2.13's env:// finds the dead workers' there: a prefix keeps the attempts apart.
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    store = dist.PrefixStore(f"attempt{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    return rank, world_size


def shared_clock():
    """A number newer than any before, the same on all ranks."""
    # Distributed: clocks differ; what rank 0 reads is sent to all.
    moment = torch.tensor(time.time(), dtype=torch.float64)
    dist.broadcast(moment, 0)
    return moment.item()


def my_shards(config):
    # Distributed: a shard belongs to exactly one rank; with one worker, all of them do.
    return range(dist.get_rank(), config.num_shards, dist.get_world_size())


def train(training, notice, store, manifest, config, run):
    """Trains from where `training` is to the end."""
    for epoch in range(training.epoch, config.num_epochs):
        if config.max_steps and training.step >= config.max_steps and not training.taken:
            break
        train_epoch(training, notice, store, manifest, config, run)
        evaluate(training.network, manifest, config, epoch, training.step, run)
        training.epoch, training.taken, training.loss_sum, training.num_rows = epoch + 1, 0, 0.0, 0
        save_checkpoint(training, config, manifest)
        notice.saved()


def train_epoch(training, notice, store, manifest, config, run):
    """Trains on the rest of one pass over this rank's shards."""
    epoch = training.epoch
    per_shard = config.global_batch_size // config.num_shards
    streams = [
        batches_of(
            chunks_of(store, config, manifest, shard, config.num_shards, epoch, config.max_rows),
            per_shard,
            config.shuffle_rows,
            np.random.default_rng([config.seed, epoch, shard]),
        )
        for shard in my_shards(config)
    ]
    for stream in streams:  # read past what an earlier try has taken: where the rest begins depends on all before it
        for _ in range(training.taken):
            next(stream, None)
    training.model.train()
    while config.max_steps is None or training.step < config.max_steps:
        parts = [part for stream in streams if (part := next(stream, None))]
        # Distributed: row groups do not divide evenly, so some rank runs out first. All ranks go on, with nothing to
        # add, until the last one has: each must take part in each exchange. The ranks' wishes for a checkpoint (see
        # preempt.py) travel with it, so that all save after the same step.
        total = torch.tensor([sum(len(part["id"]) for part in parts), notice.wish(training.step + 1)])
        dist.all_reduce(total)
        total, wish = total.tolist()
        if not total:
            break
        batch = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else None
        run.rows(epoch, training.taken, batch["id"] if batch else np.empty(0, np.int64))
        training.optimizer.zero_grad()
        loss = sum_of_losses(training.model, batch, manifest)
        # Distributed: the average over ranks, times their number, over the rows of all: the mean over the global batch.
        (loss * (dist.get_world_size() / total)).backward()
        training.optimizer.step()
        note(training, loss, batch)
        if dist.get_rank() == 0 and training.step % 50 == 0:  # Distributed: one rank tells for all.
            run.progress(epoch, config.num_epochs, f"epoch {epoch + 1}  step {training.step}")
        if wish:
            save_checkpoint(training, config, manifest)
            notice.saved(wish)
    for stream in streams:
        stream.close()  # a reader that was not read to its end has threads that wait
    loss_sum, num_rows = sums_over_ranks(training)
    run.metric("train/loss", loss_sum / num_rows, step=training.step, epoch=epoch)


def sums_over_ranks(training):
    """(loss_sum, num_rows) of all ranks."""
    # Distributed: each rank knows its own part of the sums only.
    sums = torch.tensor([training.loss_sum, training.num_rows], dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()


def note(training, loss, batch):
    """Notes that a step was taken."""
    training.loss_sum += loss.item()
    training.num_rows += len(batch["id"]) if batch else 0
    training.step += 1
    training.taken += 1


@torch.no_grad()
def evaluate(network, manifest, config, epoch, step, run):
    """Judges the network on the test store: each rank scores its own shards, and all see all scores."""
    network.eval()
    found = []
    for shard in my_shards(config):
        for chunk in chunks_of(f"{config.data_dir}/test", config, manifest, shard, config.num_shards, 0):
            found.append(scores_of(network, chunk, manifest))
    # Distributed: the area under a curve cannot be averaged over ranks; it needs all scores in one place.
    everybody = [None] * dist.get_world_size()
    dist.all_gather_object(everybody, [np.concatenate(column) for column in zip(*found, strict=True)])
    scores, truth = (np.concatenate(column) for column in zip(*everybody, strict=True))
    name, value = judge(scores, truth, manifest)
    run.metric(name, value, step=step, epoch=epoch)
    run.progress(epoch + 1, config.num_epochs, f"epoch {epoch + 1}  {name} {value:.4f}")


def judge(scores, truth, manifest):
    if manifest["task"] == "digits":
        return "eval/accuracy", float((scores == truth).mean())
    from sklearn.metrics import roc_auc_score

    return "eval/auc", float(roc_auc_score(truth, scores))


def save_checkpoint(training, config, manifest):
    """Network, optimizer and position; the checkpoint is whole or not there."""
    loss_sum, num_rows = sums_over_ranks(training)
    if dist.get_rank() > 0:  # Distributed: all ranks hold the same parameters, so one of them writes them.
        return
    position = {"epoch": training.epoch, "step": training.step, "taken": training.taken}
    content = {
        "network": training.network.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "position": position | {"loss_sum": loss_sum, "num_rows": num_rows},
        "depends_on": depends_on(config, manifest),
    }
    with training.checkpoints.save(training.epoch, training.taken) as folder:
        torch.save(content, folder / "state.pt")


def load_checkpoint(training, config, manifest):
    """Every rank reads the last checkpoint, if there is one, and goes on from there."""
    # Distributed: one rank says which checkpoint is the last whole one, so that all go on from the same.
    names = [found.name if dist.get_rank() == 0 and (found := training.checkpoints.last()) else None]
    dist.broadcast_object_list(names, src=0)
    if names[0] is None:
        return
    folder = training.checkpoints.fetch(names[0])
    content = torch.load(folder / "state.pt", weights_only=True)
    check_position(folder, content["depends_on"], depends_on(config, manifest))
    check_model(folder, content["network"], training.network.state_dict())
    training.network.load_state_dict(content["network"])
    training.optimizer.load_state_dict(content["optimizer"])
    for group in training.optimizer.param_groups:
        group["lr"] = config.learning_rate  # the settings', not the checkpoint's
    position = content["position"]
    training.epoch, training.step, training.taken = position["epoch"], position["step"], position["taken"]
    # Distributed: the sums of the epoch so far are those of all ranks: one of them keeps them.
    if dist.get_rank() == 0:
        training.loss_sum, training.num_rows = position["loss_sum"], position["num_rows"]


if __name__ == "__main__":
    leave(main())

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


def main():
    config = check_settings(load_config())
    dist.init_process_group("gloo")  # Distributed: torchrun started world_size copies of this program; meet the others.
    rank, world_size = dist.get_rank(), dist.get_world_size()
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
            position = load_checkpoint(network, optimizer, checkpoints, config, manifest)
            run.restore(position["epoch"], position["taken"], generation=shared_clock())
            train(model, network, optimizer, position, checkpoints, notice, store, manifest, config, run)
            run.digest(parameter.detach().numpy() for parameter in network.state_dict().values())
    except Preempted as error:
        preempted = error
    # Distributed: nobody leaves while another may still need an answer.
    dist.barrier()
    dist.destroy_process_group()  # Distributed: leaves the others in order.
    return preempted


def shared_clock():
    """A number newer than any before, the same on all ranks."""
    # Distributed: clocks differ; what rank 0 reads is sent to all.
    moment = torch.tensor(time.time(), dtype=torch.float64)
    dist.broadcast(moment, 0)
    return moment.item()


def my_shards(config):
    # Distributed: a shard belongs to exactly one rank; with one worker, all of them do.
    return range(dist.get_rank(), config.num_shards, dist.get_world_size())


def train(model, network, optimizer, position, checkpoints, notice, store, manifest, config, run):
    """Trains from the position to the end.

    It is {epoch, step: since the beginning; taken, loss_sum, num_rows: steps, losses and rows of the epoch so far}.
    """
    for epoch in range(position["epoch"], config.num_epochs):
        if config.max_steps and position["step"] >= config.max_steps and not position["taken"]:
            break
        train_epoch(model, network, optimizer, position, checkpoints, notice, store, manifest, config, run)
        evaluate(network, manifest, config, epoch, position["step"], run)
        position.update(epoch=epoch + 1, taken=0, loss_sum=0.0, num_rows=0)
        save_checkpoint(network, optimizer, position, checkpoints, config, manifest)
        notice.saved()


def train_epoch(model, network, optimizer, position, checkpoints, notice, store, manifest, config, run):
    """Takes the position through the rest of one pass over this rank's shards."""
    epoch = position["epoch"]
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
        for _ in range(position["taken"]):
            next(stream, None)
    model.train()
    while config.max_steps is None or position["step"] < config.max_steps:
        parts = [part for stream in streams if (part := next(stream, None))]
        # Distributed: row groups do not divide evenly, so some rank runs out first. All ranks go on, with nothing to
        # add, until the last one has: each must take part in each exchange. The ranks' wishes for a checkpoint (see
        # preempt.py) travel with it, so that all save after the same step.
        total = torch.tensor([sum(len(part["id"]) for part in parts), notice.wish(position["step"] + 1)])
        dist.all_reduce(total)
        total, wish = total.tolist()
        if not total:
            break
        batch = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else None
        run.rows(epoch, position["taken"], batch["id"] if batch else np.empty(0, np.int64))
        optimizer.zero_grad()
        loss = sum_of_losses(model, batch, manifest)
        # Distributed: the average over ranks, times their number, over the rows of all: the mean over the global batch.
        (loss * (dist.get_world_size() / total)).backward()
        optimizer.step()
        note(position, loss, batch)
        if dist.get_rank() == 0 and position["step"] % 50 == 0:  # Distributed: one rank tells for all.
            run.progress(epoch, config.num_epochs, f"epoch {epoch + 1}  step {position['step']}")
        if wish:
            save_checkpoint(network, optimizer, position, checkpoints, config, manifest)
            notice.saved(wish)
    for stream in streams:
        stream.close()  # a reader that was not read to its end has threads that wait
    loss_sum, num_rows = sums_over_ranks(position)
    run.metric("train/loss", loss_sum / num_rows, step=position["step"], epoch=epoch)


def sums_over_ranks(position):
    """(loss_sum, num_rows) of all ranks."""
    # Distributed: each rank knows its own part of the sums only.
    sums = torch.tensor([position["loss_sum"], position["num_rows"]], dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()


def note(position, loss, batch):
    """Moves the position on by a step."""
    position["loss_sum"] += loss.item()
    position["num_rows"] += len(batch["id"]) if batch else 0
    position["step"] += 1
    position["taken"] += 1


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


def save_checkpoint(network, optimizer, position, checkpoints, config, manifest):
    """Network, optimizer and position; the checkpoint is whole or not there."""
    loss_sum, num_rows = sums_over_ranks(position)
    if dist.get_rank() > 0:  # Distributed: all ranks hold the same parameters, so one of them writes them.
        return
    position = {**position, "loss_sum": loss_sum, "num_rows": num_rows}
    content = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "position": position}
    content["depends_on"] = depends_on(config, manifest)
    with checkpoints.save(position["epoch"], position["taken"]) as folder:
        torch.save(content, folder / "state.pt")


def load_checkpoint(network, optimizer, checkpoints, config, manifest):
    """Fills network and optimizer from the last checkpoint, if there is one; returns the position to go on with."""
    # Distributed: one rank says which checkpoint is the last whole one, so that all go on from the same.
    names = [found.name if dist.get_rank() == 0 and (found := checkpoints.last()) else None]
    dist.broadcast_object_list(names, src=0)
    if names[0] is None:
        return {"epoch": 0, "step": 0, "taken": 0, "loss_sum": 0.0, "num_rows": 0}
    folder = checkpoints.fetch(names[0])
    content = torch.load(folder / "state.pt", weights_only=True)
    check_position(folder, content["depends_on"], depends_on(config, manifest))
    check_model(folder, content["network"], network.state_dict())
    network.load_state_dict(content["network"])
    optimizer.load_state_dict(content["optimizer"])
    # Distributed: the sums of the epoch so far are those of all ranks: one of them keeps them.
    own = {} if dist.get_rank() == 0 else {"loss_sum": 0.0, "num_rows": 0}
    return {**content["position"], **own}


if __name__ == "__main__":
    leave(main())

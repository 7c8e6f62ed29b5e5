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
from readers import batches_of, check_row_groups, chunks_of, leave
from runrecord import RunRecord, check_position, load_config
from settings import check_settings, depends_on
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
    with (
        RunRecord(config.output_dir, rank, world_size, int(os.environ["LOCAL_RANK"]), attempt=attempt, **facts) as run,
        open_store(config, manifest) as store,
    ):
        first, step = load_checkpoint(network, optimizer, config, manifest)
        run.restore(first, 0, generation=shared_clock())
        for epoch in range(first, config.num_epochs):
            step = train_epoch(model, optimizer, store, manifest, config, epoch, step, run)
            evaluate(network, manifest, config, epoch, step, run)
            if rank == 0:  # Distributed: all ranks hold the same parameters, so one of them writes them.
                run.checkpoint(save_checkpoint(network, optimizer, epoch + 1, step, config, manifest), epoch + 1, 0)
            if config.max_steps and step >= config.max_steps:
                break
        run.digest(parameter.detach().numpy() for parameter in network.state_dict().values())
    # Distributed: nobody leaves while another may still need an answer.
    dist.barrier()
    dist.destroy_process_group()  # Distributed: leaves the others in order.


def shared_clock():
    """A number newer than any before, the same on all ranks."""
    # Distributed: clocks differ; what rank 0 reads is sent to all.
    moment = torch.tensor(time.time(), dtype=torch.float64)
    dist.broadcast(moment, 0)
    return moment.item()


def my_shards(config):
    # Distributed: a shard belongs to exactly one rank; with one worker, all of them do.
    return range(dist.get_rank(), config.num_shards, dist.get_world_size())


def train_epoch(model, optimizer, store, manifest, config, epoch, step, run):
    """One pass over this rank's shards; returns the number of steps that were taken since the beginning."""
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
    loss_sum, num_rows, first_step = 0.0, 0, step
    model.train()
    while config.max_steps is None or step < config.max_steps:
        parts = [part for stream in streams if (part := next(stream, None))]
        # Distributed: row groups do not divide evenly, so some rank runs out first. All ranks go on, with nothing to
        # add, until the last one has: each must take part in each exchange.
        total = torch.tensor(float(sum(len(part["id"]) for part in parts)))
        dist.all_reduce(total)
        if not total:
            break
        batch = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else None
        run.rows(epoch, step - first_step, batch["id"] if batch else np.empty(0, np.int64))
        optimizer.zero_grad()
        loss = sum_of_losses(model, batch, manifest)
        # Distributed: the average over ranks, times their number, over the rows of all: the mean over the global batch.
        (loss * (dist.get_world_size() / total)).backward()
        optimizer.step()
        loss_sum, num_rows, step = loss_sum + loss.item(), num_rows + (len(batch["id"]) if batch else 0), step + 1
        if dist.get_rank() == 0 and step % 50 == 0:  # Distributed: one rank tells for all.
            run.progress(epoch, config.num_epochs, f"epoch {epoch + 1}  step {step}")
    for stream in streams:
        stream.close()  # a reader that was not read to its end has threads that wait
    # Distributed: each rank knows its own part of the sums only.
    sums = torch.tensor([loss_sum, num_rows], dtype=torch.float64)
    dist.all_reduce(sums)
    run.metric("train/loss", (sums[0] / sums[1]).item(), step=step, epoch=epoch)
    return step


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


def save_checkpoint(network, optimizer, epoch, step, config, manifest):
    path = Path(config.checkpoint_dir) / "last.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch, "step": step}
    content["depends_on"] = depends_on(config, manifest)
    torch.save(content, path.with_suffix(".partial"))
    path.with_suffix(".partial").replace(path)
    return path


def load_checkpoint(network, optimizer, config, manifest):
    """Fills network and optimizer; returns (epoch, step) to go on with, (0, 0) without a checkpoint."""
    path = Path(config.checkpoint_dir) / "last.pt"
    # Distributed: every rank reads the same file, and none before all are here: rank 0 could be writing.
    dist.barrier()
    if not path.exists():
        return 0, 0
    content = torch.load(path, weights_only=True)
    check_position(path, content.get("depends_on", {}), depends_on(config, manifest))
    network.load_state_dict(content["network"])
    optimizer.load_state_dict(content["optimizer"])
    return content["epoch"], content["step"]


if __name__ == "__main__":
    main()
    leave()

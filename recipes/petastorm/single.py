"""From Spark's Parquet to PyTorch in one process: main.py as it was before DistributedDataParallel.

Shows:   what a distributed program begins as; `diff -uw single.py main.py` shows the lines that make it one. Petastorm
         stays: it is the format of the store, and one process reads all shards of it.
Choose:  as long as one process is fast enough.
Run:     python single.py config.yaml output_dir=outputs/single checkpoint_dir=outputs/single
Expect:  the losses of main.py on one worker.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import petastorm
import torch

from model import make_network, scores_of, sum_of_losses
from preempt import Notice, Preempted
from readers import batches_of, check_row_groups, chunks_of, leave
from runrecord import RunRecord, check_model, check_position, load_config
from settings import check_settings, depends_on
from storage import Checkpoints


@dataclass
class Training:
    """What a checkpoint holds, and who keeps it."""

    network: torch.nn.Module
    optimizer: torch.optim.Optimizer
    checkpoints: Checkpoints
    epoch: int = 0
    step: int = 0  # since the beginning
    taken: int = 0  # steps of the epoch so far
    loss_sum: float = 0.0  # of the epoch so far
    num_rows: int = 0  # of the epoch so far


def main():
    config = check_settings(load_config())
    check_row_groups(config)
    torch.manual_seed(config.seed)
    manifest = json.loads((Path(config.data_dir) / "manifest.json").read_text())
    network = make_network(manifest, config.width)
    optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate)
    facts = {"petastorm": petastorm.__version__, "torch": torch.__version__, "device": "cpu"}
    # The store as it is, also with reader=converter, which takes the same rows through Spark once more.
    store = f"{config.data_dir}/train"
    preempted = None
    try:
        with (
            RunRecord(config.output_dir, 0, 1, **facts) as run,
            Checkpoints(config.checkpoint_dir, config.output_dir, run) as checkpoints,
        ):
            notice = Notice(config.output_dir, config.checkpoint_every_steps, config.checkpoint_every_seconds)
            training = Training(network, optimizer, checkpoints)
            load_checkpoint(training, config, manifest)
            run.restore(training.epoch, training.taken, generation=time.time())
            train(training, notice, store, manifest, config, run)
            run.digest(parameter.detach().numpy() for parameter in network.state_dict().values())
    except Preempted as error:
        preempted = error
    return preempted


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
    """Trains on the rest of one pass over all shards."""
    epoch = training.epoch
    per_shard = config.global_batch_size // config.num_shards
    streams = [
        batches_of(
            chunks_of(store, config, manifest, shard, config.num_shards, epoch, config.max_rows),
            per_shard,
            config.shuffle_rows,
            np.random.default_rng([config.seed, epoch, shard]),
        )
        for shard in range(config.num_shards)
    ]
    for stream in streams:  # read past what an earlier try has taken: where the rest begins depends on all before it
        for _ in range(training.taken):
            next(stream, None)
    training.network.train()
    while config.max_steps is None or training.step < config.max_steps:
        parts = [part for stream in streams if (part := next(stream, None))]
        total = sum(len(part["id"]) for part in parts)
        if not total:
            break
        batch = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        wish = notice.wish(training.step + 1)
        run.rows(epoch, training.taken, batch["id"])
        training.optimizer.zero_grad()
        loss = sum_of_losses(training.network, batch, manifest)
        (loss / total).backward()
        training.optimizer.step()
        note(training, loss, batch)
        if training.step % 50 == 0:
            run.progress(epoch, config.num_epochs, f"epoch {epoch + 1}  step {training.step}")
        if wish:
            save_checkpoint(training, config, manifest)
            notice.saved(wish)
    for stream in streams:
        stream.close()  # a reader that was not read to its end has threads that wait
    run.metric("train/loss", training.loss_sum / training.num_rows, step=training.step, epoch=epoch)


def note(training, loss, batch):
    """Notes that a step was taken."""
    training.loss_sum += loss.item()
    training.num_rows += len(batch["id"])
    training.step += 1
    training.taken += 1


@torch.no_grad()
def evaluate(network, manifest, config, epoch, step, run):
    """Judges the network on the test store."""
    network.eval()
    found = []
    for shard in range(config.num_shards):
        for chunk in chunks_of(f"{config.data_dir}/test", config, manifest, shard, config.num_shards, 0):
            found.append(scores_of(network, chunk, manifest))
    scores, truth = (np.concatenate(column) for column in zip(*found, strict=True))
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
    position = {"epoch": training.epoch, "step": training.step, "taken": training.taken}
    content = {
        "network": training.network.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "position": position | {"loss_sum": training.loss_sum, "num_rows": training.num_rows},
        "depends_on": depends_on(config, manifest),
    }
    with training.checkpoints.save(training.epoch, training.taken) as folder:
        torch.save(content, folder / "state.pt")


def load_checkpoint(training, config, manifest):
    """Reads the last checkpoint, if there is one, and goes on from there."""
    folder = training.checkpoints.last()
    if folder is None:
        return
    content = torch.load(folder / "state.pt", weights_only=True)
    check_position(folder, content["depends_on"], depends_on(config, manifest))
    check_model(folder, content["network"], training.network.state_dict())
    training.network.load_state_dict(content["network"])
    training.optimizer.load_state_dict(content["optimizer"])
    for group in training.optimizer.param_groups:
        group["lr"] = config.learning_rate  # the settings', not the checkpoint's
    position = content["position"]
    training.epoch, training.step, training.taken = position["epoch"], position["step"], position["taken"]
    training.loss_sum, training.num_rows = position["loss_sum"], position["num_rows"]


if __name__ == "__main__":
    leave(main())

"""From Spark's Parquet to PyTorch in one process: main.py as it was before DistributedDataParallel.

Shows:   what a distributed program begins as; `diff -uw single.py main.py` shows the lines that make it one. Petastorm
         stays: it is the format of the store, and one process reads all shards of it.
Choose:  as long as one process is fast enough.
Run:     python single.py config.yaml output_dir=outputs/single checkpoint_dir=outputs/single
Expect:  the losses of main.py on one worker.
"""

import json
import time
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
            position = load_checkpoint(network, optimizer, checkpoints, config, manifest)
            run.restore(position["epoch"], position["taken"], generation=time.time())
            train(network, optimizer, position, checkpoints, notice, store, manifest, config, run)
            run.digest(parameter.detach().numpy() for parameter in network.state_dict().values())
    except Preempted as error:
        preempted = error
    return preempted


def train(network, optimizer, position, checkpoints, notice, store, manifest, config, run):
    """Trains from the position to the end.

    It is {epoch, step: since the beginning; taken, loss_sum, num_rows: steps, losses and rows of the epoch so far}.
    """
    for epoch in range(position["epoch"], config.num_epochs):
        if config.max_steps and position["step"] >= config.max_steps and not position["taken"]:
            break
        train_epoch(network, optimizer, position, checkpoints, notice, store, manifest, config, run)
        evaluate(network, manifest, config, epoch, position["step"], run)
        position.update(epoch=epoch + 1, taken=0, loss_sum=0.0, num_rows=0)
        save_checkpoint(network, optimizer, position, checkpoints, config, manifest)
        notice.saved()


def train_epoch(network, optimizer, position, checkpoints, notice, store, manifest, config, run):
    """Takes the position through the rest of one pass over all shards."""
    epoch = position["epoch"]
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
        for _ in range(position["taken"]):
            next(stream, None)
    network.train()
    while config.max_steps is None or position["step"] < config.max_steps:
        parts = [part for stream in streams if (part := next(stream, None))]
        total = sum(len(part["id"]) for part in parts)
        if not total:
            break
        batch = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        wish = notice.wish(position["step"] + 1)
        run.rows(epoch, position["taken"], batch["id"])
        optimizer.zero_grad()
        loss = sum_of_losses(network, batch, manifest)
        (loss / total).backward()
        optimizer.step()
        note(position, loss, batch)
        if position["step"] % 50 == 0:
            run.progress(epoch, config.num_epochs, f"epoch {epoch + 1}  step {position['step']}")
        if wish:
            save_checkpoint(network, optimizer, position, checkpoints, config, manifest)
            notice.saved(wish)
    for stream in streams:
        stream.close()  # a reader that was not read to its end has threads that wait
    run.metric("train/loss", position["loss_sum"] / position["num_rows"], step=position["step"], epoch=epoch)


def note(position, loss, batch):
    """Moves the position on by a step."""
    position["loss_sum"] += loss.item()
    position["num_rows"] += len(batch["id"]) if batch else 0
    position["step"] += 1
    position["taken"] += 1


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


def save_checkpoint(network, optimizer, position, checkpoints, config, manifest):
    """Network, optimizer and position; the checkpoint is whole or not there."""
    content = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "position": position}
    content["depends_on"] = depends_on(config, manifest)
    with checkpoints.save(position["epoch"], position["taken"]) as folder:
        torch.save(content, folder / "state.pt")


def load_checkpoint(network, optimizer, checkpoints, config, manifest):
    """Fills network and optimizer from the last checkpoint, if there is one; returns the position to go on with."""
    folder = checkpoints.last()
    if folder is None:
        return {"epoch": 0, "step": 0, "taken": 0, "loss_sum": 0.0, "num_rows": 0}
    content = torch.load(folder / "state.pt", weights_only=True)
    check_position(folder, content["depends_on"], depends_on(config, manifest))
    check_model(folder, content["network"], network.state_dict())
    network.load_state_dict(content["network"])
    optimizer.load_state_dict(content["optimizer"])
    return content["position"]


if __name__ == "__main__":
    leave(main())

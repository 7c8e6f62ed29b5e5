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
from readers import batches_of, check_row_groups, chunks_of, leave
from runrecord import RunRecord, check_position, load_config
from settings import check_settings, depends_on


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
    with RunRecord(config.output_dir, 0, 1, **facts) as run:
        first, step = load_checkpoint(network, optimizer, config, manifest)
        run.restore(first, 0, generation=time.time())
        for epoch in range(first, config.num_epochs):
            step = train_epoch(network, optimizer, store, manifest, config, epoch, step, run)
            evaluate(network, manifest, config, epoch, step, run)
            run.checkpoint(save_checkpoint(network, optimizer, epoch + 1, step, config, manifest), epoch + 1, 0)
            if config.max_steps and step >= config.max_steps:
                break
        run.digest(parameter.detach().numpy() for parameter in network.state_dict().values())


def train_epoch(network, optimizer, store, manifest, config, epoch, step, run):
    """One pass over all shards; returns the number of steps that were taken since the beginning."""
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
    loss_sum, num_rows, first_step = 0.0, 0, step
    network.train()
    while config.max_steps is None or step < config.max_steps:
        parts = [part for stream in streams if (part := next(stream, None))]
        total = sum(len(part["id"]) for part in parts)
        if not total:
            break
        batch = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        run.rows(epoch, step - first_step, batch["id"])
        optimizer.zero_grad()
        loss = sum_of_losses(network, batch, manifest)
        (loss / total).backward()
        optimizer.step()
        loss_sum, num_rows, step = loss_sum + loss.item(), num_rows + len(batch["id"]), step + 1
        if step % 50 == 0:
            run.progress(epoch, config.num_epochs, f"epoch {epoch + 1}  step {step}")
    for stream in streams:
        stream.close()  # a reader that was not read to its end has threads that wait
    run.metric("train/loss", loss_sum / num_rows, step=step, epoch=epoch)
    return step


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

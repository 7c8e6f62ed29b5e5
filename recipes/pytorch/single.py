"""Image classification in one process: main.py as it was before DistributedDataParallel.

Shows:   what a distributed program begins as; `diff -uw single.py main.py` shows the lines that make it one.
Choose:  as long as one process is fast enough.
Run:     python single.py config.yaml output_dir=outputs/single checkpoint_dir=outputs/single
Expect:  the losses of main.py on one worker.
"""

import time

import torch
from torch.nn import functional as F

from data import Batches, ImageData, loader_of
from model import torch_network
from preempt import Notice
from runrecord import RunRecord, check_model, check_position, load_config
from settings import check_settings, depends_on, learning_rate_at, num_steps_of
from storage import Checkpoints


def main():
    config = check_settings(load_config())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.deterministic = True  # its fastest sums come in another order each time
    train_data = ImageData(config.data_dir, "train", config.max_rows)
    test_data = ImageData(config.data_dir, "test")
    torch.manual_seed(config.seed)
    network = torch_network(train_data.images.shape[3], train_data.num_classes, config.width).to(device)
    # Numbers drawn from here on (shifts) do not depend on how many the network took.
    torch.manual_seed(config.seed)
    model = torch.compile(network) if config.compile else network
    optimizer = torch.optim.SGD(
        network.parameters(), config.learning_rate, config.momentum, nesterov=config.momentum > 0
    )
    with (
        RunRecord(config.output_dir, 0, 1, device=str(device), torch=torch.__version__) as run,
        Checkpoints(config.checkpoint_dir, config.output_dir, run) as checkpoints,
    ):
        position = load_checkpoint(network, optimizer, checkpoints, config, len(train_data))
        run.restore(position["epoch"], position["step"], generation=time.time())
        notice = Notice(config.output_dir, config.checkpoint_every_steps, config.checkpoint_every_seconds)
        train(model, network, optimizer, position, checkpoints, notice, train_data, test_data, config, run)
        run.digest(parameter.detach().cpu().numpy() for parameter in network.state_dict().values())


def train(model, network, optimizer, position, checkpoints, notice, train_data, test_data, config, run):
    """Trains from the position {epoch, step, loss_sum of the epoch so far} to the end."""
    batches = Batches(len(train_data), config.global_batch_size, config.seed)
    num_steps = num_steps_of(config, batches)
    while position["epoch"] * batches.steps_per_epoch < num_steps:
        epoch = position["epoch"]
        seconds, num_rows = train_epoch(
            model, network, optimizer, position, checkpoints, notice, train_data, batches, num_steps, config, run
        )
        done = min(num_steps, (epoch + 1) * batches.steps_per_epoch)
        rows_of_epoch = min((done - epoch * batches.steps_per_epoch) * config.global_batch_size, len(train_data))
        run.metric("train/loss", position["loss_sum"] / rows_of_epoch, done, epoch)
        if num_rows:  # none when the last try had taken the epoch's last step
            run.metric("samples_per_second", num_rows / seconds, done, epoch, unit="samples/s")
        accuracy = evaluate(network, test_data, config)
        run.metric("eval/accuracy", accuracy, done, epoch)
        run.progress(done, num_steps, f"epoch {epoch + 1}  accuracy {accuracy:.4f}")
        position.update(epoch=epoch + 1, step=0, loss_sum=0.0)
        save_checkpoint(network, optimizer, position, checkpoints, config, run, len(train_data))
        notice.saved()


def train_epoch(model, network, optimizer, position, checkpoints, notice, train_data, batches, num_steps, config, run):
    """Takes the position to the epoch's end (or to `num_steps`). Returns seconds and rows in them."""
    epoch, first_step = position["epoch"], position["epoch"] * batches.steps_per_epoch
    steps = range(position["step"], min(batches.steps_per_epoch, num_steps - first_step))
    loader = loader_of(train_data, batches, epoch, steps, 0, 1, config.num_loader_workers)
    started, num_rows = time.perf_counter(), 0
    shown = started
    network.train()
    for step, (ids, batch_size, images, labels) in zip(steps, loader, strict=True):
        run.rows(epoch, step, ids)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(epoch + step / batches.steps_per_epoch, config)
        loss = train_step(model, optimizer, images, labels, batch_size, config)
        position["loss_sum"] += run.finite(loss, epoch, step)
        position["step"], num_rows = step + 1, num_rows + batch_size
        if time.perf_counter() - shown > 2:
            shown = time.perf_counter()
            run.progress(first_step + step + 1, num_steps, f"epoch {epoch + 1}, step {step + 1}")
        if wish := notice.wish(first_step + step + 1, step + 1 == steps.stop):
            save_checkpoint(network, optimizer, position, checkpoints, config, run, len(train_data))
            notice.saved(wish)
    return time.perf_counter() - started, num_rows


def train_step(model, optimizer, images, labels, batch_size, config):
    """One optimizer step on a batch of `batch_size` rows; returns the summed loss."""
    device = next(model.parameters()).device
    images, labels = shifted(images.to(device), config.max_shift), labels.to(device)
    num_parts, loss_sum = config.accumulation_steps, 0.0
    parts = zip(images.tensor_split(num_parts), labels.tensor_split(num_parts), strict=True)
    optimizer.zero_grad()
    for part, part_labels in parts:
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            loss = F.cross_entropy(model(part).float(), part_labels, reduction="sum")
        (loss / batch_size).backward()
        loss_sum += loss.item()
    optimizer.step()
    return loss_sum


def shifted(images, most):
    """Images (batch, channels, height, width) moved by a random number of pixels, the same for the whole batch."""
    if not most:
        return images
    height, width = images.shape[2:]
    top, left = torch.randint(0, 2 * most + 1, (2,)).tolist()
    return F.pad(images, (most, most, most, most))[:, :, top : top + height, left : left + width]


@torch.no_grad()
def evaluate(network, data, config):
    """Accuracy over the whole split."""
    network.eval()
    device, num_correct = next(network.parameters()).device, 0
    rows = torch.arange(len(data))
    for ids in rows.split(config.global_batch_size):
        images, labels = data.read(ids.numpy())
        logits = network(torch.from_numpy(images).permute(0, 3, 1, 2).to(device))
        num_correct += (logits.argmax(1).cpu() == torch.from_numpy(labels)).sum().item()
    return num_correct / len(data)


def save_checkpoint(network, optimizer, position, checkpoints, config, run, num_rows):
    """Model, optimizer, position and random state; the checkpoint is whole or not there."""
    total = sum(parameter.detach().sum() for parameter in network.parameters())
    run.finite(total, position["epoch"], position["step"] - 1, "the sum of the parameters")
    of_ranks = [{"random": torch.get_rng_state(), "loss_sum": position["loss_sum"]}]
    content = {
        "mode": config.mode,
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": position["epoch"],
        "step": position["step"],
        "of_ranks": of_ranks,
        "depends_on": depends_on(config, num_rows),
    }
    with checkpoints.save(position["epoch"], position["step"]) as folder:
        torch.save(content, folder / "state.pt")


def load_checkpoint(network, optimizer, checkpoints, config, num_rows):
    """Reads the last checkpoint, if there is one; returns the position to go on with.

    Raises SystemExit when it belongs to another mode or model, or to other batches.
    """
    folder = checkpoints.last()
    if folder is None:
        return {"epoch": 0, "step": 0, "loss_sum": 0.0}
    path = f"{config.checkpoint_dir}/{folder.name}"
    if not (folder / "state.pt").exists():
        raise SystemExit(f"checkpoint {path} is of another mode than mode=ddp: use another checkpoint_dir")
    content = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    check_position(path, content["depends_on"], depends_on(config, num_rows))
    check_model(path, content["model"], network.state_dict())
    network.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    position, of_ranks = {"epoch": content["epoch"], "step": content["step"]}, content["of_ranks"]
    torch.set_rng_state(of_ranks[0]["random"])
    position["loss_sum"] = sum(own["loss_sum"] for own in of_ranks)
    print(f"going on from {path}: epoch {position['epoch']}, step {position['step']}", flush=True)
    return position


if __name__ == "__main__":
    main()

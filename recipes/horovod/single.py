"""Image classification in one process: main.py as it was before Horovod.

Shows:   what a distributed program begins as; `diff -uw single.py main.py` shows the lines that make it one.
Choose:  as long as one process is fast enough.
Run:     python single.py config.yaml output_dir=outputs/single checkpoint_dir=outputs/single
Expect:  the losses of main.py on one worker.
"""

import time
from types import SimpleNamespace

import torch
from torch.nn import functional as F

from data import Batches, ImageData
from model import torch_network
from preempt import Notice
from runrecord import RunRecord, check_model, check_position, load_config
from settings import check_settings, depends_on, learning_rate_at, num_steps_of
from storage import Checkpoints


def main():
    config = check_settings(load_config(), "pytorch")
    device = pick_device()
    torch.manual_seed(config.seed)
    train_data = ImageData(config.data_dir, "train", config.max_rows)
    test_data = ImageData(config.data_dir, "test")
    model = torch_network(train_data.images.shape[3], train_data.num_classes, config.width).to(device)
    state = SimpleNamespace(model=model, optimizer=make_optimizer(model, config), epoch=0, step=0, epoch_loss=0.0)

    facts = {"device": str(device), "torch": torch.__version__}
    with (
        RunRecord(config.output_dir, 0, 1, **facts) as run,
        Checkpoints(config.checkpoint_dir, config.output_dir, run) as checkpoints,
    ):
        notice = Notice(config.output_dir, config.checkpoint_every_steps, config.checkpoint_every_seconds)
        load_checkpoint(state, checkpoints, config, len(train_data))
        train(state, checkpoints, notice, train_data, test_data, config, run)
        run.digest(parameter.detach().cpu().numpy() for parameter in model.state_dict().values())


def pick_device():
    """A GPU on a GPU machine, the CPU elsewhere."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.deterministic = True  # its fastest sums come in another order each time
    return torch.device("cuda")


def make_optimizer(model, config):
    return torch.optim.SGD(model.parameters(), config.learning_rate, config.momentum, nesterov=config.momentum > 0)


def train(state, checkpoints, notice, train_data, test_data, config, run):
    """Trains from the state's position to the end."""
    run.restore(state.epoch, state.step, generation=time.time())
    batches = Batches(len(train_data), config.global_batch_size, config.seed)
    num_steps = num_steps_of(config, batches)
    while state.epoch * batches.steps_per_epoch < num_steps:  # an epoch is over only when it has been evaluated
        train_epoch(state, checkpoints, notice, train_data, batches, num_steps, config, run)
        run.finite(sum_of_parameters(state.model), state.epoch, state.step - 1, "the sum of the parameters")
        accuracy = evaluate(state.model, test_data, config.global_batch_size)
        done = min(num_steps, (state.epoch + 1) * batches.steps_per_epoch)
        run.metric("eval/accuracy", accuracy, step=done, epoch=state.epoch)
        run.progress(done, num_steps, f"epoch {state.epoch + 1}  accuracy {accuracy:.4f}")
        state.epoch, state.step, state.epoch_loss = state.epoch + 1, 0, 0.0
        save_checkpoint(state, checkpoints, config, len(train_data))
        notice.saved()


def train_epoch(state, checkpoints, notice, train_data, batches, num_steps, config, run):
    """Takes the state from its step to the epoch's end (or to `num_steps`, if that comes first)."""
    first_step = state.epoch * batches.steps_per_epoch
    num_steps_here = min(batches.steps_per_epoch, num_steps - first_step)
    order, loss_sum, num_rows = batches.order(state.epoch), 0.0, 0
    started = shown = time.perf_counter()
    state.model.train()
    while state.step < num_steps_here:
        ids, batch_size = batches.share(order, state.step, 0, 1)
        wish = notice.wish(first_step + state.step + 1, state.step + 1 == num_steps_here)
        run.rows(state.epoch, state.step, ids)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate_at(state.epoch + state.step / batches.steps_per_epoch, config)
        loss_sum += run.finite(train_step(state, *train_data.read(ids), batch_size, config), state.epoch, state.step)
        num_rows += batch_size
        state.step += 1
        if time.perf_counter() - shown > 2:
            shown = time.perf_counter()
            run.progress(first_step + state.step, num_steps, f"epoch {state.epoch + 1}, step {state.step}")
        if wish:
            state.epoch_loss, loss_sum = state.epoch_loss + float(loss_sum), 0.0
            save_checkpoint(state, checkpoints, config, len(train_data))
            notice.saved(wish)
    state.epoch_loss += float(loss_sum)
    seconds = time.perf_counter() - started
    done, rows_of_epoch = first_step + num_steps_here, min(num_steps_here * config.global_batch_size, len(train_data))
    run.metric("train/loss", state.epoch_loss / rows_of_epoch, done, state.epoch)
    if num_rows:  # none when the last try had taken the epoch's last step
        run.metric("samples_per_second", num_rows / seconds, done, state.epoch, unit="samples/s")


def train_step(state, images, labels, batch_size, config):
    """One optimizer step on a batch of `batch_size` rows; returns the summed loss."""
    device = next(state.model.parameters()).device
    images, labels = torch.from_numpy(images).permute(0, 3, 1, 2).to(device), torch.from_numpy(labels).to(device)
    num_passes, loss_sum = config.backward_passes_per_step, 0.0
    state.optimizer.zero_grad()
    for part, part_labels in zip(images.tensor_split(num_passes), labels.tensor_split(num_passes), strict=True):
        loss = F.cross_entropy(state.model(part), part_labels, reduction="sum")
        (loss / batch_size).backward()
        loss_sum += loss.detach()
    state.optimizer.step()
    return loss_sum


@torch.no_grad()
def evaluate(model, data, batch_size):
    """Accuracy over the whole split."""
    model.eval()
    device, num_correct = next(model.parameters()).device, 0
    rows = torch.arange(len(data))
    for ids in rows.split(batch_size):
        images, labels = data.read(ids.numpy())
        logits = model(torch.from_numpy(images).permute(0, 3, 1, 2).to(device))
        num_correct += (logits.argmax(1).cpu() == torch.from_numpy(labels)).sum().item()
    return num_correct / len(data)


def sum_of_parameters(model):
    """A number that is finite as long as all parameters are.

    Parameters so large that the sum overflows are of no use either.
    """
    return sum(parameter.detach().sum() for parameter in model.parameters())


def save_checkpoint(state, checkpoints, config, num_rows):
    """Model, optimizer and position; the checkpoint is whole or not there."""
    content = {
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "position": {"epoch": state.epoch, "step": state.step, "epoch_loss": float(state.epoch_loss)},
        "depends_on": depends_on(config, num_rows),
    }
    with checkpoints.save(state.epoch, state.step) as folder:
        torch.save(content, folder / "state.pt")


def load_checkpoint(state, checkpoints, config, num_rows):
    """Puts the last checkpoint into the state, if there is one.

    Raises SystemExit when it belongs to another model or other batches.
    """
    folder = checkpoints.last()
    if folder is None:
        return
    path = f"{config.checkpoint_dir}/{folder.name}"
    content = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    check_position(path, content["depends_on"], depends_on(config, num_rows))
    check_model(path, content["model"], state.model.state_dict())
    state.model.load_state_dict(content["model"])
    state.optimizer.load_state_dict(content["optimizer"])
    for group in state.optimizer.param_groups:
        group.update(momentum=config.momentum, nesterov=config.momentum > 0)  # the settings', not the checkpoint's
    position = content["position"]
    state.epoch, state.step, state.epoch_loss = position["epoch"], position["step"], position["epoch_loss"]
    print(f"going on from {path}: epoch {state.epoch}, step {state.step}", flush=True)


if __name__ == "__main__":
    main()

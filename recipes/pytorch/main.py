"""Data parallelism with DistributedDataParallel: every worker has the whole model and its own share of each batch.

Shows:   the sampler, the overlapped exchange of gradient buckets, accumulation without exchange (`no_sync`),
         uneven inputs (`join`), mixed precision, `torch.compile`, a checkpoint in the middle of an epoch, and
         restarts by torchrun.
Choose:  first, as long as the model fits one device. main_fsdp.py, main_tensor_parallel.py and main_pipeline.py
         divide the model.
Run:     torchrun --nproc-per-node 2 main.py config.yaml
Expect:  test accuracy of at least 0.97 on handwritten digits, within a minute on two CPU cores.
Source:  Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating Data Parallel Training";
         PyTorch's documentation.
"""

import contextlib
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from data import Batches, ImageData
from loader import loader_of
from model import torch_network
from preempt import Notice
from profiles import profiled
from runrecord import RunRecord, check_model, check_position, load_config
from settings import check_settings, depends_on, learning_rate_at, num_steps_of
from storage import Checkpoints
from workers import ask_all, facts, joined_world, max_over_ranks, shared_now, sum_over_ranks


@dataclass
class Training:
    """What a checkpoint holds, and who keeps it."""

    network: torch.nn.Module
    model: DistributedDataParallel  # Distributed: the network, with the exchange around it.
    optimizer: torch.optim.Optimizer
    checkpoints: Checkpoints
    num_rows: int  # of the training data; a checkpoint made with another number is refused
    epoch: int = 0
    step: int = 0  # of the epoch
    loss_sum: float = 0.0  # Distributed: of the epoch so far, and of this rank only.


def main():
    config = check_settings(load_config())
    # Distributed: torchrun started world_size copies of this program; they meet before anything else.
    with joined_world(config) as (rank, world_size, device):
        check_settings(config, world_size)  # Distributed: some settings depend on the number of workers.
        train_data = ImageData(config.data_dir, "train", config.max_rows)
        test_data = ImageData(config.data_dir, "test")
        torch.manual_seed(config.seed)
        network = torch_network(train_data.images.shape[3], train_data.num_classes, config.width).to(device)
        # Distributed: from here on each worker draws numbers of its own (shifts).
        torch.manual_seed(config.seed + rank)
        # Distributed: copies rank 0's parameters to all, and hooks the exchange into `backward`.
        model = DistributedDataParallel(
            torch.compile(network) if config.compile else network,
            bucket_cap_mb=config.bucket_cap_mb,
        )
        optimizer = torch.optim.SGD(
            network.parameters(), config.learning_rate, config.momentum, nesterov=config.momentum > 0
        )
        with (
            RunRecord(config.output_dir, rank, world_size, **facts(device)) as run,
            Checkpoints(config.checkpoint_dir, config.output_dir, run) as checkpoints,
        ):
            training = Training(network, model, optimizer, checkpoints, len(train_data))
            load_checkpoint(training, config, rank, world_size)
            run.restore(training.epoch, training.step, generation=shared_now())  # Distributed: rank 0's clock.
            notice = Notice(config.output_dir, config.checkpoint_every_steps, config.checkpoint_every_seconds)
            # Distributed: the first layer's gradient is the last one that `backward` computes. After it this
            # rank only waits for the others: the record says for how long.
            next(network.parameters()).register_post_accumulate_grad_hook(lambda _: run.own_work_done())
            with profiled(config, run):
                train(training, notice, train_data, test_data, config, run)
            run.digest(parameter.detach().cpu().numpy() for parameter in network.state_dict().values())


def train(training, notice, train_data, test_data, config, run):
    """Trains from where `training` is to the end."""
    batches = Batches(len(train_data), config.global_batch_size, config.seed)
    num_steps, device = num_steps_of(config, batches), next(training.network.parameters()).device
    while training.epoch * batches.steps_per_epoch < num_steps:
        epoch = training.epoch
        # Distributed: uneven inputs: a rank without rows left waits in `join`, which takes part in the
        # exchanges for it.
        with training.model.join() if config.join else contextlib.nullcontext():
            seconds, num_rows = train_epoch(training, notice, train_data, batches, num_steps, config, run)
        if config.join:
            share_momentum(training.optimizer)
        done = min(num_steps, (epoch + 1) * batches.steps_per_epoch)
        rows_of_epoch = min((done - epoch * batches.steps_per_epoch) * config.global_batch_size, len(train_data))
        run.metric("train/loss", sum_over_ranks(training.loss_sum, device) / rows_of_epoch, done, epoch)
        if num_rows:  # none when the last try had taken the epoch's last step
            # Distributed: ranks stop their clocks at slightly different times, and one that left early counted fewer
            # rows.
            speed = max_over_ranks(num_rows, device) / max_over_ranks(seconds, device)
            run.metric("samples_per_second", speed, done, epoch, unit="samples/s")
        accuracy = evaluate(training.network, test_data, config)
        run.metric("eval/accuracy", accuracy, done, epoch)
        run.progress(done, num_steps, f"epoch {epoch + 1}  accuracy {accuracy:.4f}")
        training.epoch, training.step, training.loss_sum = epoch + 1, 0, 0.0
        save_checkpoint(training, config, run)
        notice.saved()


def train_epoch(training, notice, train_data, batches, num_steps, config, run):
    """Trains to the epoch's end (or to `num_steps`). Returns seconds and rows of all ranks in them."""
    epoch, first_step = training.epoch, training.epoch * batches.steps_per_epoch
    steps = range(training.step, min(batches.steps_per_epoch, num_steps - first_step))
    # Distributed: the sampler: every worker knows the whole order of the epoch and takes its own share of each batch.
    rank, world_size = dist.get_rank(), dist.get_world_size()
    device, started, num_rows = next(training.network.parameters()).device, time.perf_counter(), 0
    loader = loader_of(train_data, batches, epoch, steps, rank, world_size, config.num_loader_workers, device)
    shown = started
    training.network.train()
    for step, (ids, batch_size, images, labels) in zip(steps, loader, strict=True):
        last = step + 1 == steps.stop
        # Distributed: a notice reaches ranks at different moments, and their clocks differ: all do what the most urgent
        # wish says, after this step. The exchange goes on beside it. With `join` some ranks may leave out an epoch's
        # last step: there nobody wishes for anything.
        answer = ask_all(0 if config.join and last else notice.wish(first_step + step + 1, last), device)
        if config.join and not len(ids):
            break  # Distributed: a last batch of fewer rows than workers leaves some without any.
        run.rows(epoch, step, ids)
        for group in training.optimizer.param_groups:
            group["lr"] = learning_rate_at(epoch + step / batches.steps_per_epoch, config)
        loss = train_step(training.model, training.optimizer, images, labels, batch_size, config)
        run.exchange_done()  # Distributed: with the gradients of all.
        training.loss_sum += run.finite(loss, epoch, step)
        training.step, num_rows = step + 1, num_rows + batch_size
        if time.perf_counter() - shown > 2:
            shown = time.perf_counter()
            run.progress(first_step + step + 1, num_steps, f"epoch {epoch + 1}, step {step + 1}")
        if wish := answer():
            save_checkpoint(training, config, run)
            notice.saved(wish)
    return time.perf_counter() - started, num_rows


def train_step(model, optimizer, images, labels, batch_size, config):
    """One optimizer step on this worker's share of a global batch of `batch_size` rows.

    Returns the share's summed loss.
    """
    device = next(model.parameters()).device
    images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
    images = shifted(images, config.max_shift)
    num_parts, loss_sum = config.accumulation_steps, 0.0
    parts = zip(images.tensor_split(num_parts), labels.tensor_split(num_parts), strict=True)
    optimizer.zero_grad()
    for number, (part, part_labels) in enumerate(parts):
        # Distributed: gradients of all parts but the last only add up on this worker; the last one's `backward`
        # sends the sum.
        with model.no_sync() if number + 1 < num_parts else contextlib.nullcontext():
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                loss = F.cross_entropy(model(part).float(), part_labels, reduction="sum")
            # Distributed: DDP averages over the workers. Dividing by the rows of the whole batch, not by one's own
            # share, gives each row the same weight even where the shares differ in size.
            (loss * dist.get_world_size() / batch_size).backward()
        loss_sum += loss.item()
    optimizer.step()
    return loss_sum


def shifted(images, most):
    """Images (batch, channels, height, width) moved by a random number of pixels, the same for the whole share."""
    if not most:
        return images
    height, width = images.shape[2:]
    top, left = torch.randint(0, 2 * most + 1, (2,)).tolist()
    return F.pad(images, (most, most, most, most))[:, :, top : top + height, left : left + width]


@torch.no_grad()
def evaluate(network, data, config):
    """Accuracy over the whole split, each rank judging its share of it.

    Without DDP around it: nothing is exchanged here.
    """
    network.eval()
    device, num_correct = next(network.parameters()).device, 0
    rows = torch.arange(dist.get_rank(), len(data), dist.get_world_size())  # Distributed: every world_size-th row
    for ids in rows.split(config.global_batch_size):
        images, labels = data.read(ids.numpy())
        logits = network(torch.from_numpy(images).permute(0, 3, 1, 2).to(device))
        num_correct += (logits.argmax(1).cpu() == torch.from_numpy(labels)).sum().item()
    return sum_over_ranks(num_correct, device) / len(data)


def share_momentum(optimizer):
    # Distributed: `join` hands the parameters of a rank that took the last step to all, but no optimizer state: without
    # this the momentum of a worker that left early stays behind, and the workers drift apart. Rank 0 has a row in every
    # batch.
    for state in optimizer.state.values():
        dist.broadcast(state["momentum_buffer"], src=0)


def save_checkpoint(training, config, run):
    """Model, optimizer, position and all ranks' random states; the checkpoint is whole or not there."""
    total = sum(parameter.detach().sum() for parameter in training.network.parameters())
    run.finite(total, training.epoch, training.step - 1, "the sum of the parameters")
    # Distributed: parameters are equal everywhere, so one rank writes; what differs between ranks is
    # gathered to it first.
    own = {"random": torch.get_rng_state(), "loss_sum": training.loss_sum}
    of_ranks = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(own, of_ranks)
    if dist.get_rank() > 0:  # Distributed: the others have handed theirs in.
        return
    content = {
        "mode": config.mode,
        "model": training.network.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "epoch": training.epoch,
        "step": training.step,
        "of_ranks": of_ranks,
        "depends_on": depends_on(config, training.num_rows),
    }
    with training.checkpoints.save(training.epoch, training.step) as folder:
        torch.save(content, folder / "state.pt")


def load_checkpoint(training, config, rank, world_size):
    """Every rank reads the last checkpoint, if there is one, and goes on from there.

    Raises SystemExit when it belongs to another mode or model, or to other batches.
    """
    # Distributed: one rank says which checkpoint is the last whole one, so that all go on from the same.
    names = [found.name if rank == 0 and (found := training.checkpoints.last()) else None]
    dist.broadcast_object_list(names, src=0)
    if names[0] is None:
        return
    folder, path = training.checkpoints.fetch(names[0]), f"{config.checkpoint_dir}/{names[0]}"
    if not (folder / "state.pt").exists():
        raise SystemExit(f"checkpoint {path} is of another mode than mode=ddp: use another checkpoint_dir")
    content = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    check_position(path, content["depends_on"], depends_on(config, training.num_rows))
    check_model(path, content["model"], training.network.state_dict())
    training.network.load_state_dict(content["model"])
    training.optimizer.load_state_dict(content["optimizer"])
    for group in training.optimizer.param_groups:
        group.update(momentum=config.momentum, nesterov=config.momentum > 0)  # the settings', not the checkpoint's
    training.epoch, training.step, of_ranks = content["epoch"], content["step"], content["of_ranks"]
    if len(of_ranks) == world_size:
        torch.set_rng_state(of_ranks[rank]["random"])
        training.loss_sum = of_ranks[rank]["loss_sum"]
    else:
        # Distributed: another number of workers goes on with the same batches; their random numbers are new ones.
        training.loss_sum = sum(own["loss_sum"] for own in of_ranks) if rank == 0 else 0.0
    if rank == 0:
        print(f"going on from {path}: epoch {training.epoch}, step {training.step}", flush=True)


if __name__ == "__main__":
    main()

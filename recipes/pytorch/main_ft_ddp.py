"""Data parallelism that a lost worker does not stop: before every step torchft settles who takes part in it.

Shows:   a quorum for each step, a step that counts only if all exchanges of it went well, and a worker that comes back
         and gets its parameters from a living one, not from a disk.
Choose:  instead of main.py where restarts of all workers cost too much: many workers, long steps, machines that come
         and go. What it costs: one more service, and an answer from it before each step.
Run:     make recipe-pytorch ARGS="recipe.mode=ft_ddp recipe.max_restarts=3"
Expect:  test accuracy of at least 0.97 on handwritten digits; a kill -9 of a worker costs the step that it was in.
Source:  torchft's documentation ("Manager", "Distributed Data Parallel").
"""

import datetime
import importlib.metadata
import logging
import os
import time

import torch
import torchft
from torch.nn import functional as F

from data import Batches, ImageData
from model import torch_network
from preempt import Notice
from runrecord import RunRecord, check_model, check_position, load_config
from settings import check_settings, depends_on, learning_rate_at, num_steps_of
from storage import Checkpoints
from workers import answers_when_asked, facts

WAIT_SECONDS = 0.2  # between two looks at who is there, before the first step


def main():
    config, num_replicas = check_settings(load_config()), int(os.environ["NUM_REPLICA_GROUPS"])
    check_settings(config, num_replicas)
    logging.getLogger("torchft").setLevel(logging.CRITICAL)  # a failed exchange is no error here: `take_step` says so
    train_data = ImageData(config.data_dir, "train", config.max_rows)
    test_data = ImageData(config.data_dir, "test")
    batches = Batches(len(train_data), config.global_batch_size, config.seed)
    torch.manual_seed(config.seed)
    network = torch_network(train_data.images.shape[3], train_data.num_classes, config.width)
    optimizer = torch.optim.SGD(
        network.parameters(), config.learning_rate, config.momentum, nesterov=config.momentum > 0
    )
    state = State(network, optimizer)
    with Checkpoints(config.checkpoint_dir, config.output_dir) as checkpoints, answers_when_asked(config):
        begun = load_checkpoint(state, checkpoints, config, len(train_data))
        is_restart = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        if is_restart and begun == num_steps_of(config, batches):
            return  # the others have done the rest meanwhile
        manager = meet(state, begun, config)
        first_quorum(manager, 1 if is_restart else num_replicas, config)
        # Distributed: rank and world size are those of the quorum, and may be others in the next step.
        rank, world_size = manager.participating_rank(), manager.num_participants()
        about = {
            **facts("cpu"),
            "attempt": 0,
            "torchft": importlib.metadata.version("torchft"),
            "replica": int(os.environ["REPLICA_GROUP_ID"]),
        }
        with RunRecord(config.output_dir, rank, world_size, **about) as run:
            checkpoints.run = run
            notice = Notice(config.output_dir, config.checkpoint_every_steps, config.checkpoint_every_seconds)
            train(manager, state, checkpoints, notice, batches, train_data, test_data, config, run)
            run.digest(parameter.detach().numpy() for parameter in network.state_dict().values())
        # Distributed: the others see at once that it has left. Whoever leaves first does not wait for them.
        manager.shutdown(wait=False)


class State:
    """What a worker that comes back gets from a living one: parameters, optimizer, the epoch's sum of losses so far."""

    def __init__(self, network, optimizer):
        self.network, self.optimizer, self.loss_sum = network, optimizer, 0.0

    def take(self):
        return {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loss_sum": self.loss_sum,
        }

    def put(self, content):
        self.network.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.loss_sum = content["loss_sum"]


def meet(state, step, config):
    """The manager of this worker, at `step`. It tells the lighthouse ten times a second that this worker lives."""
    timeout = datetime.timedelta(seconds=config.exchange_timeout_seconds)
    # Distributed: min_replica_size: with fewer workers no step counts. use_async_quorum: the quorum is there before the
    # step begins, so that the rows can be dealt among those who take part. Asked for beside the step, it would be
    # faster, and a worker that has just come back would add nothing to its first step.
    manager = torchft.Manager(
        pg=torchft.ProcessGroupGloo(timeout=timeout),
        state_dict=state.take,
        load_state_dict=state.put,
        min_replica_size=config.min_workers,
        use_async_quorum=False,
        init_sync=False,  # all begin with equal parameters: the seed's, or the checkpoint's
        replica_id=f"replica_{os.environ['REPLICA_GROUP_ID']}",
        timeout=timeout,
        quorum_timeout=timeout,
    )
    manager.load_state_dict({"step": step, "batches_committed": 0})
    return manager


def first_quorum(manager, wanted, config):
    """Waits until `wanted` workers are there, or for as long as an exchange may take.

    Without it the first one to be ready would begin alone, and the others come in later.
    """
    deadline = time.monotonic() + config.exchange_timeout_seconds
    while True:
        # Distributed: waits for the lighthouse's answer. A worker that is behind gets its state from one that is not.
        manager.start_quorum()
        if manager.num_participants() >= wanted or time.monotonic() > deadline:
            return
        time.sleep(WAIT_SECONDS)


def train(manager, state, checkpoints, notice, batches, train_data, test_data, config, run):
    """Trains from the manager's step to the end. There is a quorum for that step already."""
    num_steps, quorum = num_steps_of(config, batches), None
    # Distributed: generations of this start are newer than those of earlier ones; the quorum's number grows with each
    # change of the members, and after each step that did not count.
    base, since, taken = int(os.environ["STARTED"]) * 1_000_000, time.perf_counter(), 0
    while (step := manager.current_step()) < num_steps:
        epoch, in_epoch = divmod(step, batches.steps_per_epoch)
        rank, world_size = manager.participating_rank(), manager.num_participants()
        if quorum != (quorum := manager._quorum_id):  # torchft has no public name for it
            run.world(rank, world_size)
            run.restore(epoch, in_epoch, generation=base + quorum)
        # Distributed: each worker of the quorum takes its own share of the global batch.
        ids, batch_size = batches.share(batches.order(epoch), in_epoch, rank, world_size)
        run.rows(epoch, in_epoch, ids)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate_at(step / batches.steps_per_epoch, config)
        last = in_epoch + 1 == batches.steps_per_epoch or step + 1 == num_steps
        wish = notice.wish(step + 1, last)
        counts, wish = take_step(manager, state, *train_data.read(ids), batch_size, wish)
        if counts:
            taken += batch_size
            run.finite(state.loss_sum, epoch, in_epoch)
            if last:
                if rank == 0:  # Distributed: the workers' clocks differ; one of them counts.
                    speed = taken / (time.perf_counter() - since)
                    run.metric("samples_per_second", speed, step + 1, epoch, unit="samples/s")
                end_epoch(state, step, batches, train_data, test_data, config, run)
            if (last or wish) and rank == 0:
                # Distributed: parameters are equal everywhere, so one writes them: for the case that all are lost.
                save_checkpoint(state, checkpoints, step + 1, batches, config, len(train_data))
            if last:
                since, taken = time.perf_counter(), 0
                notice.saved()
            if wish:
                notice.saved(wish)
        if manager.current_step() < num_steps:
            # Distributed: settles who takes part in the next step: no worker that has been silent for some seconds.
            manager.start_quorum()


def take_step(manager, state, images, labels, batch_size, wish):
    """One optimizer step on this worker's share of a global batch of `batch_size` rows.

    Returns (whether the step counts, the sum of the wishes of all: see preempt.py).
    """
    images, labels = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)
    state.optimizer.zero_grad()
    loss = F.cross_entropy(state.network(images), labels, reduction="sum")
    # Distributed: the manager averages over the workers of the quorum. Dividing by the rows of the whole batch, not by
    # one's own share, gives each row the same weight even where the shares differ in size.
    (loss * manager.num_participants() / batch_size).backward()
    exchange_gradients(manager, state.network)
    # Distributed: the losses and the wishes of all: an exchange like that of the gradients, and part of the step.
    totals = torch.tensor([loss.item(), wish], dtype=torch.float64) * manager.num_participants()
    manager.allreduce(totals).wait()
    # Distributed: False when an exchange of this step has failed. Nothing has changed then, and the step is taken
    # again, by the next quorum.
    if not manager.should_commit():
        print(f"a step does not count, and is taken again: {manager.errored() or 'by the others'}"[:300], flush=True)
        return False, 0
    state.optimizer.step()
    state.loss_sum += totals[0].item()
    return True, round(totals[1].item())


def exchange_gradients(manager, network):
    """Averages the gradients over the workers of the quorum. When that fails, the manager has noted it.

    torchft has a DistributedDataParallel, which exchanges some gradients while others are computed. Over Gloo it cannot
    be used: in torchft 0.2.0 a failed exchange ends its worker (`assert fut._fut`), and with it the others.
    """
    gradients = [parameter.grad for parameter in network.parameters()]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    # Distributed: raises nothing; what is in `flat` after a failure is of no use, and the step does not count.
    manager.allreduce(flat).wait()
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def end_epoch(state, step, batches, train_data, test_data, config, run):
    """Reports the epoch's results."""
    epoch, in_epoch = divmod(step, batches.steps_per_epoch)
    rows = min((in_epoch + 1) * config.global_batch_size, len(train_data))
    run.metric("train/loss", state.loss_sum / rows, step + 1, epoch)
    # Distributed: each worker judges all test rows. An exchange outside of a step would have to be made again when one
    # is lost in it.
    accuracy = evaluate(state.network, test_data, config.global_batch_size)
    run.metric("eval/accuracy", accuracy, step + 1, epoch)
    run.progress(step + 1, num_steps_of(config, batches), f"epoch {epoch + 1}  accuracy {accuracy:.4f}")
    if in_epoch + 1 == batches.steps_per_epoch:
        state.loss_sum = 0.0


@torch.no_grad()
def evaluate(network, data, batch_size):
    """Accuracy over the whole split."""
    network.eval()
    num_correct = 0
    for ids in torch.arange(len(data)).split(batch_size):
        images, labels = data.read(ids.numpy())
        logits = network(torch.from_numpy(images).permute(0, 3, 1, 2))
        num_correct += (logits.argmax(1) == torch.from_numpy(labels)).sum().item()
    network.train()
    return num_correct / len(data)


def save_checkpoint(state, checkpoints, step, batches, config, num_rows):
    """All that `State` has, and the number of steps; the checkpoint is whole or not there."""
    content = {**state.take(), "mode": config.mode, "step": step, "depends_on": depends_on(config, num_rows)}
    epoch, in_epoch = divmod(step, batches.steps_per_epoch)
    with checkpoints.save(epoch, in_epoch) as folder:
        torch.save(content, folder / "replica.pt")


def load_checkpoint(state, checkpoints, config, num_rows):
    """Fills the state from the last checkpoint; returns its step, or 0 without one.

    Raises SystemExit when it belongs to another mode or model, or to other batches.
    """
    if (folder := checkpoints.last()) is None:
        return 0
    path = f"{config.checkpoint_dir}/{folder.name}"
    if not (folder / "replica.pt").exists():
        raise SystemExit(f"checkpoint {path} is of another mode than mode=ft_ddp: use another checkpoint_dir")
    content = torch.load(folder / "replica.pt", map_location="cpu", weights_only=True)
    check_position(path, content["depends_on"], depends_on(config, num_rows))
    check_model(path, content["model"], state.network.state_dict())
    state.put(content)
    for group in state.optimizer.param_groups:
        group.update(momentum=config.momentum, nesterov=config.momentum > 0)  # the settings', not the checkpoint's
    print(f"going on from {path}: step {content['step']}", flush=True)
    return content["step"]


if __name__ == "__main__":
    main()

"""Image classification with Horovod: data-parallel training by ring all-reduce.

Shows:   the few lines that make a single-process program a distributed one (all tagged), checkpoint and resume, and
         elastic training that survives a lost worker. This file is the PyTorch program; `main_tensorflow.py` is the
         same in TensorFlow.
Choose:  when one program must run under PyTorch and TensorFlow, on an MPI cluster, or with workers that come and go.
Run:     horovodrun -np 2 --gloo python main.py config.yaml
Expect:  test accuracy of at least 0.97 on handwritten digits, within a minute on two CPU cores.
Source:  Sergeev and Del Balso 2018, "Horovod: fast and easy distributed deep learning in TensorFlow";
         Horovod's documentation.
"""

import time

import horovod
import horovod.torch as hvd
import torch
from torch.nn import functional as F

from data import Batches, ImageData
from model import torch_network
from preempt import Notice, Preempted
from runrecord import RunRecord, check_model, check_position, load_config
from settings import check_settings, depends_on, learning_rate_at, num_steps_of
from storage import Checkpoints


def main():
    config = check_settings(load_config(), "pytorch")
    # Distributed: horovodrun started world_size copies of this program; meet the others before anything else.
    hvd.init()
    check_settings(config, "pytorch", hvd.size())  # Distributed: some settings depend on the number of workers.
    device = pick_device()
    torch.manual_seed(config.seed)
    train_data = ImageData(config.data_dir, "train", config.max_rows)
    test_data = ImageData(config.data_dir, "test")
    model = torch_network(train_data.images.shape[3], train_data.num_classes, config.width).to(device)
    # Distributed: holds all that the ranks must agree on; it can broadcast, commit and restore it, elastic or not.
    state = hvd.elastic.TorchState(model, make_optimizer(model, config), epoch=0, step=0, epoch_loss=0.0)

    facts = {"device": str(device), "torch": torch.__version__, "horovod": horovod.__version__}
    try:
        # Distributed: each rank keeps a record of its own: who it is, among how many, which of its host's processes.
        with (
            RunRecord(config.output_dir, hvd.rank(), hvd.size(), hvd.local_rank(), **facts) as run,
            Checkpoints(config.checkpoint_dir, config.output_dir, run) as checkpoints,
        ):
            # Distributed: in elastic training SIGTERM is for one worker, without which the others go on.
            notice = Notice(
                config.output_dir, config.checkpoint_every_steps, config.checkpoint_every_seconds, not config.elastic
            )
            if hvd.rank() == 0:  # Distributed: one rank reads the checkpoint, `sync` brings it to all the others.
                load_checkpoint(state, checkpoints, config, len(train_data))
            if config.elastic:
                # Distributed: calls `train` again, with the last committed state, each time the set of workers has
                # changed.
                hvd.elastic.run(train)(state, checkpoints, notice, train_data, test_data, config, run)
            else:
                # Distributed: broadcasts rank 0's parameters, optimizer state and position: all start as equals.
                state.sync()
                train(state, checkpoints, notice, train_data, test_data, config, run)
            run.digest(parameter.detach().cpu().numpy() for parameter in model.state_dict().values())
    except Preempted:
        # Distributed: as soon as one has left, horovodrun ends the others: they wait for the one that saves.
        hvd.barrier()
        raise
    # Distributed: leaves the others in order; a process that merely ends looks to them like one that died.
    hvd.shutdown()


def pick_device():
    """A GPU of its own for each process where the host has so many and Horovod was built with NCCL, else the CPU."""
    num_gpus, has_nccl = torch.cuda.device_count(), hvd.nccl_built()
    if num_gpus < hvd.local_size() or not has_nccl:
        if num_gpus and hvd.local_rank() == 0:  # Distributed: one process tells for all of its host.
            found = f"{num_gpus} GPUs for {hvd.local_size()} workers, Horovod with{'' if has_nccl else 'out'} NCCL"
            print(f"computing on the CPU: {found}", flush=True)
        return torch.device("cpu")
    # Distributed: local_rank counts the processes of one host, rank those of all hosts; a GPU belongs to a host.
    torch.cuda.set_device(hvd.local_rank())
    torch.backends.cudnn.deterministic = True  # its fastest sums come in another order each time
    return torch.device("cuda", hvd.local_rank())


def make_optimizer(model, config):
    """SGD whose `step` first waits until the gradients of all workers are combined."""
    optimizer = torch.optim.SGD(model.parameters(), config.learning_rate, config.momentum, nesterov=config.momentum > 0)
    # Distributed: exchanges each gradient as soon as the backward pass has made it, while the rest is still computed.
    return hvd.DistributedOptimizer(
        optimizer,
        named_parameters=model.named_parameters(),
        op={"average": hvd.Average, "adasum": hvd.Adasum}[config.op],
        compression={"none": hvd.Compression.none, "fp16": hvd.Compression.fp16}[config.compression],
        backward_passes_per_step=config.backward_passes_per_step,
    )


def train(state, checkpoints, notice, train_data, test_data, config, run):
    """Trains from the state's position to the end; the state then is equal on every rank."""
    # Distributed: in elastic training the world may be another one than when this process started.
    run.world(hvd.rank(), hvd.size())
    # Distributed: a number newer than any before and the same on all ranks. From it the reader of the record knows
    # which steps an earlier set of workers took in vain.
    run.restore(state.epoch, state.step, generation=hvd.broadcast_object(time.time(), name="generation"))
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
        if hvd.rank() == 0:  # Distributed: all ranks hold the same state, so one of them writes it.
            save_checkpoint(state, checkpoints, config, len(train_data))
        notice.saved()
        if config.elastic:
            state.commit()  # Distributed: an epoch that was evaluated and written is not done again.


def train_epoch(state, checkpoints, notice, train_data, batches, num_steps, config, run):
    """Takes the state from its step to the epoch's end (or to `num_steps`, if that comes first)."""
    first_step = state.epoch * batches.steps_per_epoch
    num_steps_here = min(batches.steps_per_epoch, num_steps - first_step)
    # `state.epoch_loss` is the sum over all ranks up to the last commit, `loss_sum` this rank's since then.
    order, loss_sum, num_rows = batches.order(state.epoch), 0.0, 0
    started = shown = time.perf_counter()
    state.model.train()
    while state.step < num_steps_here:
        # Distributed: each worker takes its own share of the global batch.
        ids, batch_size = batches.share(order, state.step, hvd.rank(), hvd.size())
        # Distributed: a notice reaches ranks at different moments, and their clocks differ: all do what the wishes of
        # all say, after this step. The exchange goes on beside it.
        wish = notice.wish(first_step + state.step + 1, state.step + 1 == num_steps_here)
        answer = hvd.allreduce_async(torch.tensor(wish), op=hvd.Sum, name="wish")
        run.rows(state.epoch, state.step, ids)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate_at(state.epoch + state.step / batches.steps_per_epoch, config)
        loss_sum += run.finite(train_step(state, *train_data.read(ids), batch_size, config), state.epoch, state.step)
        num_rows += batch_size
        state.step += 1
        if time.perf_counter() - shown > 2:
            shown = time.perf_counter()
            run.progress(first_step + state.step, num_steps, f"epoch {state.epoch + 1}, step {state.step}")
        wish = hvd.synchronize(answer).item()  # Distributed: whether any rank has been told to leave.
        commit = config.elastic and state.step % config.commit_every_steps == 0
        if wish or commit:
            state.epoch_loss, loss_sum = state.epoch_loss + sum_over_ranks(loss_sum), 0.0
        if wish:
            if hvd.rank() == 0:  # Distributed: one writes for all.
                save_checkpoint(state, checkpoints, config, len(train_data))
            notice.saved(wish)
        if commit:
            state.commit()  # Distributed: a lost worker throws the others back to here, and no further.
    state.epoch_loss += sum_over_ranks(loss_sum)
    seconds = time.perf_counter() - started
    done, rows_of_epoch = first_step + num_steps_here, min(num_steps_here * config.global_batch_size, len(train_data))
    run.metric("train/loss", state.epoch_loss / rows_of_epoch, done, state.epoch)
    if num_rows:  # none when the workers changed right at the epoch's end
        # Distributed: ranks stop their clocks at slightly different times; the slowest one counts.
        run.metric("samples_per_second", num_rows / max_over_ranks(seconds), done, state.epoch, unit="samples/s")


def train_step(state, images, labels, batch_size, config):
    """One optimizer step on this worker's share of a global batch of `batch_size` rows.

    Returns the share's summed loss.
    """
    device = next(state.model.parameters()).device
    images, labels = torch.from_numpy(images).permute(0, 3, 1, 2).to(device), torch.from_numpy(labels).to(device)
    num_passes, loss_sum = config.backward_passes_per_step, 0.0
    state.optimizer.zero_grad()
    for part, part_labels in zip(images.tensor_split(num_passes), labels.tensor_split(num_passes), strict=True):
        loss = F.cross_entropy(state.model(part), part_labels, reduction="sum")
        # Distributed: Horovod averages over the workers. Dividing by the rows of the whole batch, not by one's own
        # share, gives each row the same weight even where the shares differ in size.
        (loss * hvd.size() / batch_size).backward()
        loss_sum += loss.detach()
    state.optimizer.step()
    return loss_sum


@torch.no_grad()
def evaluate(model, data, batch_size):
    """Accuracy over the whole split, each rank judging its share of it."""
    model.eval()
    device, num_correct = next(model.parameters()).device, 0
    rows = torch.arange(hvd.rank(), len(data), hvd.size())  # Distributed: every world_size-th row
    for ids in rows.split(batch_size):
        images, labels = data.read(ids.numpy())
        logits = model(torch.from_numpy(images).permute(0, 3, 1, 2).to(device))
        num_correct += (logits.argmax(1).cpu() == torch.from_numpy(labels)).sum().item()
    return sum_over_ranks(num_correct) / len(data)


def sum_of_parameters(model):
    """A number that is finite as long as all parameters are.

    Parameters so large that the sum overflows are of no use either.
    """
    return sum(parameter.detach().sum() for parameter in model.parameters())


def sum_over_ranks(value):
    # Distributed: counts and sums add up exactly over unequal shares, a mean of means would not. The name lets workers
    # that joined later take part: without it Horovod numbers the calls, and theirs would not match.
    return hvd.allreduce(torch.as_tensor(value, dtype=torch.float64).cpu(), op=hvd.Sum, name="sum_over_ranks").item()


def max_over_ranks(value):
    # Distributed: every rank gets the values of all and takes the largest.
    return max(hvd.allgather(torch.tensor([value], dtype=torch.float64), name="max_over_ranks").tolist())


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
    state.save()  # `sync` spreads what was saved last, not what the attributes are
    print(f"going on from {path}: epoch {state.epoch}, step {state.step}", flush=True)


if __name__ == "__main__":
    main()

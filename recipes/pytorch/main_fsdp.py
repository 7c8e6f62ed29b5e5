"""Fully sharded data parallelism (FSDP2): each process keeps a share of every parameter, gradient and optimizer state.

Shows:   `fully_shard` block by block, a mixed precision policy, activation checkpointing, CPU offload,
         sharded checkpoints.
Choose:  when the model fits a device only in parts; each layer's parameters are gathered just before they are needed.
Run:     torchrun --nproc-per-node 2 main_fsdp.py config.yaml
Expect:  the loss curve of main_single.py, with about half the memory for parameters and optimizer on
         each of two workers.
Source:  Zhao et al. 2023, "PyTorch FSDP"; PyTorch's documentation of torch.distributed.fsdp.fully_shard.
"""

import numpy as np
import torch
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from checkpoints import Sharded
from data import Batches
from language import TextData, build_model, loss_of, report_baselines, train_language_model
from runrecord import RunRecord, load_config
from settings import check_rows, check_settings, num_steps_of
from workers import facts, joined_world, max_over_ranks, shared_now, sum_over_ranks


class FullySharded:
    def __init__(self, config, rank, world_size, device):
        self.config, self.rank, self.world_size, self.device = config, rank, world_size, device
        self.train_data = TextData(config.data_dir, "train", config.max_rows)
        self.test_data = TextData(config.data_dir, "test")
        self.model = build_model(config)
        self.num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        # Distributed: the processes as a line: along it the parameters are divided.
        mesh = init_device_mesh(device.type, (world_size,))
        precision = {"float32": None, "bfloat16": torch.bfloat16}[config.precision]
        # Distributed: shards and optimizer state wait in the host's memory, and go to the GPU block by block.
        offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if config.cpu_offload else OffloadPolicy()
        policies = {
            "offload_policy": offload,
            # Distributed: shards stay in float32; what is gathered, computed and exchanged may be of half the size.
            "mp_policy": MixedPrecisionPolicy(param_dtype=precision, reduce_dtype=precision and torch.float32),
        }
        for name, block in self.model.layers.items():
            if config.activation_checkpointing:
                # keeps a block's input only, and computes its inside again when going back
                block = self.model.layers[name] = checkpoint_wrapper(block)
            # Distributed: the unit of gathering. Only one block's whole parameters are in memory at a time.
            fully_shard(block, mesh=mesh, **policies)
        # Distributed: what is left (embedding, output) is a unit of its own, and the root that begins each pass.
        fully_shard(self.model, mesh=mesh, **policies)
        # Distributed: made after sharding, so that its state is as divided as the parameters it belongs to.
        self.optimizer = torch.optim.AdamW(self.model.parameters(), config.learning_rate)

    def ids(self, order, step):
        batch = order[step * self.config.global_batch_size : (step + 1) * self.config.global_batch_size]
        return batch[self.rank :: self.world_size]  # Distributed: data parallel: each process computes its own rows

    def backward(self, ids):
        inputs, targets = (part.to(self.device) for part in self.train_data.read(ids))
        loss = loss_of(self.model(inputs), targets)
        # Distributed: gathers each block again, then sums its gradients over the processes and leaves each its shard.
        loss.backward()
        return loss.detach()

    def train_step(self, ids):
        loss = self.backward(ids)
        self.optimizer.step()
        self.optimizer.zero_grad()
        # Distributed: all shares have the same size (checked), so the mean of the means is the mean.
        return sum_over_ranks(loss, self.device) / self.world_size

    @torch.no_grad()
    def evaluate(self):
        """Each process judges its share; all take part in every pass, because all hold a part of each layer."""
        batch_size, total = self.config.global_batch_size, 0.0
        # Distributed: every process makes the same number of passes. Where the last batch has fewer windows than there
        # are processes, each of them judges all of it, and its sum counts 1 / world_size.
        for start in range(0, len(self.test_data), batch_size):
            inputs, targets = self.test_data.read(slice(start, start + batch_size))
            mine = slice(self.rank, None, self.world_size) if len(inputs) >= self.world_size else slice(None)
            counts = 1.0 if mine.start is not None else 1 / self.world_size
            inputs, targets = inputs[mine].to(self.device), targets[mine].to(self.device)
            total += loss_of(self.model(inputs), targets).item() * len(inputs) * counts
        return sum_over_ranks(total, self.device) / len(self.test_data)

    def report_memory(self, run):
        """What this process holds of the parameters, and the most memory that they and the optimizer state take, in MB.

        Seen by PyTorch's own tracker in one more pass, at the borders of each unit: there the gathered parameters come
        and go. Gradients and activations are other kinds of memory to it, and are left out.
        """
        tracker = FSDPMemTracker(self.model, self.optimizer)
        with tracker:
            self.backward(self.ids(np.arange(len(self.train_data)), 0))
        self.optimizer.zero_grad()
        own = ("SHARDED_PARAM", "OPT")
        gathered = ("UNSHARDED_PARAM", "ALL_GATHER")
        snapshots = [
            {kind.name: size for kind, size in memory.items() if kind != "Total"}
            for module in tracker.memory_tracking.values()
            for state in module.snapshots.values()
            for snapshot in state
            for memory in snapshot.values()
        ]
        held = sum(parameter.to_local().numel() for parameter in self.model.parameters())
        run.parameters(held=held, total=self.num_parameters)
        for name, kinds in (("kept", own), ("peak", own + gathered)):
            most = max(sum(memory[kind] for kind in kinds) for memory in snapshots)
            run.metric(f"memory/{name}_mb", max_over_ranks(most / 1e6, self.device), 0, unit="MB")


def main():
    config = check_settings(load_config())
    with joined_world(config) as (rank, world_size, device):
        check_settings(config, world_size)
        sharded = FullySharded(config, rank, world_size, device)
        batches = Batches(check_rows(len(sharded.train_data), config), config.global_batch_size, config.seed)
        num_steps = num_steps_of(config, batches)
        with (
            RunRecord(config.output_dir, rank, world_size, **facts(device)) as run,
            Sharded(
                sharded.model, sharded.optimizer, config, len(sharded.train_data), run, rank, world_size
            ) as checkpoints,
        ):
            start = checkpoints.load()
            # Distributed: rank 0's clock on all ranks.
            run.restore(*divmod(start, batches.steps_per_epoch), generation=shared_now())
            bits_per_byte = train_language_model(
                sharded, sharded.optimizer, batches, num_steps, start, checkpoints, config, run
            )
            sharded.report_memory(run)
            if rank == 0:  # Distributed: one writes the table for all.
                report_baselines(config, run, bits_per_byte)
            # Distributed: gathered whole on every process, so that all can be compared. With cpu_offload the shards are
            # in the host's memory, where NCCL cannot gather them: they go to the device first.
            whole = (parameter.to(device).full_tensor() for parameter in sharded.model.state_dict().values())
            run.digest(parameter.cpu().numpy() for parameter in whole)


if __name__ == "__main__":
    main()

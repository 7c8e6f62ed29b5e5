"""Tensor parallelism: every matrix of the model is divided among the processes, which compute each layer together.

Shows:   `parallelize_module` with column- and row-wise plans, and sequence-parallel normalisation between them.
Choose:  inside one host with fast links, when a single layer is too large or too slow for one device.
Run:     torchrun --nproc-per-node 2 main_tensor_parallel.py config.yaml
Expect:  the loss curve of main_single.py; every process sees every row, and holds its part of each matrix.
Source:  Shoeybi et al. 2019, "Megatron-LM"; Korthikanti et al. 2022 (sequence parallelism); PyTorch's tensor
         parallel tutorial.
"""

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from checkpoints import Sharded
from data import Batches
from language import TextData, build_model, loss_of, report_baselines, train_language_model
from runrecord import RunRecord, load_config
from settings import check_rows, check_settings, divides, num_steps_of
from workers import facts, joined_world, shared_now


def divide(model, mesh):
    """Divides the model's matrices over the mesh.

    Between the layers each process keeps its share of the sequence (dimension 1).
    """
    gathered = PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),))
    for layer in model.layers.values():
        plan = {
            # Distributed: normalisation looks at one position at a time, so it works on the share of the sequence.
            "attention_norm": SequenceParallel(),
            "feed_forward_norm": SequenceParallel(),
            # Distributed: an all-gather brings the whole sequence together before the matrices.
            "attention": gathered,
            "feed_forward": gathered,
            # Distributed: by columns: each process computes its own heads and its own hidden features,
            # without exchange.
            "attention.query": ColwiseParallel(),
            "attention.key": ColwiseParallel(),
            "attention.value": ColwiseParallel(),
            "feed_forward.up": ColwiseParallel(),
            # Distributed: by rows: each process has a part of every sum; a reduce-scatter adds them and deals
            # out the sequence.
            "attention.out": RowwiseParallel(output_layouts=Shard(1)),
            "feed_forward.down": RowwiseParallel(output_layouts=Shard(1)),
        }
        # Distributed: from here on each process keeps its part of the layer's matrices only.
        parallelize_module(layer, mesh, plan)
    plan = {
        "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        # Distributed: each process scores its part of the byte values; gathered, because the loss needs all of them.
        "output": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }
    return parallelize_module(model, mesh, plan)


class TensorParallel:
    def __init__(self, config, rank, world_size, device):
        self.config, self.rank, self.device = config, rank, device
        self.train_data = TextData(config.data_dir, "train", config.max_rows)
        self.test_data = TextData(config.data_dir, "test")
        # Distributed: between the layers each process has its share of the positions, and `divide` takes the shares for
        # equal: with others the processes would exchange tensors of different sizes.
        divides("data.parameters.context_length", self.train_data.rows.shape[1] - 1, "workers", world_size)
        model = build_model(config).to(device)
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        # Distributed: the processes as a line: along it each layer is divided.
        self.model = divide(model, init_device_mesh(device.type, (world_size,)))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), config.learning_rate)

    def ids(self, order, step):
        # Distributed: every process takes the whole batch: what is divided is the model.
        return order[step * self.config.global_batch_size : (step + 1) * self.config.global_batch_size]

    def train_step(self, ids):
        inputs, targets = (part.to(self.device) for part in self.train_data.read(ids))
        loss = loss_of(self.model(inputs), targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()  # Distributed: computed from gathered logits, so it is the same on all processes

    @torch.no_grad()
    def evaluate(self):
        batch_size, total = self.config.global_batch_size, 0.0
        for start in range(0, len(self.test_data), batch_size):
            inputs, targets = (part.to(self.device) for part in self.test_data.read(slice(start, start + batch_size)))
            total += loss_of(self.model(inputs), targets).item() * len(inputs)
        return total / len(self.test_data)


def main():
    config = check_settings(load_config())
    with joined_world(config) as (rank, world_size, device):
        check_settings(config, world_size)
        divided = TensorParallel(config, rank, world_size, device)
        batches = Batches(check_rows(len(divided.train_data), config), config.global_batch_size, config.seed)
        num_steps = num_steps_of(config, batches)
        with (
            RunRecord(config.output_dir, rank, world_size, **facts(device)) as run,
            Sharded(
                divided.model, divided.optimizer, config, len(divided.train_data), run, rank, world_size
            ) as checkpoints,
        ):
            start = checkpoints.load()
            # Distributed: rank 0's clock on all ranks.
            run.restore(*divmod(start, batches.steps_per_epoch), generation=shared_now())
            bits_per_byte = train_language_model(
                divided, divided.optimizer, batches, num_steps, start, checkpoints, config, run
            )
            parameters = list(divided.model.state_dict().values())
            held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in parameters)
            run.parameters(held=held, total=divided.num_parameters)
            if rank == 0:  # Distributed: one writes the table for all.
                report_baselines(config, run, bits_per_byte)
            # Distributed: gathered whole on every process, so that all can be compared.
            run.digest((p.full_tensor() if isinstance(p, DTensor) else p).cpu().numpy() for p in parameters)


if __name__ == "__main__":
    main()

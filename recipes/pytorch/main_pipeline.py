"""Pipeline parallelism: the model's layers are divided among the processes, and micro-batches flow through them.

Shows:   `PipelineStage`, the GPipe and 1F1B schedules, micro-batches; only activations travel, from stage to stage.
Choose:  when the model is deep and the link between hosts slow; the price is the bubble at the start and
         end of each step.
Run:     torchrun --nproc-per-node 2 main_pipeline.py config.yaml
Expect:  the loss curve of main_single.py; each process holds its own layers and nothing else.
Source:  Huang et al. 2019, "GPipe"; Narayanan et al. 2019, "PipeDream" (1F1B); PyTorch's documentation of
         torch.distributed.pipelining.
"""

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from checkpoints import Sharded
from data import Batches
from language import TextData, build_model, loss_of, report_baselines, train_language_model
from runrecord import RunRecord, load_config
from settings import check_rows, check_settings, num_steps_of
from workers import facts, joined_world, shared_now


def cut(model, rank, world_size):
    """Leaves this process its stage of the model: equal shares of the layers, the embedding first, the output last."""
    layers_per_stage = len(model.layers) // world_size
    for number in list(model.layers):
        # Distributed: what other stages compute is deleted here. (All were built first, for equal initial weights.)
        if int(number) // layers_per_stage != rank:
            del model.layers[number]
    # Distributed: the first stage alone embeds the bytes, the last one alone computes the output.
    if rank > 0:
        model.embedding = None
    if rank < world_size - 1:
        model.norm = model.output = None
    return model


class Pipeline:
    def __init__(self, config, rank, world_size, device):
        self.config, self.rank, self.world_size, self.device = config, rank, world_size, device
        self.train_data = TextData(config.data_dir, "train", config.max_rows)
        self.test_data = TextData(config.data_dir, "test")
        model = build_model(config)
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.model = cut(model, rank, world_size).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), config.learning_rate)
        # Distributed: wraps this process's layers with the sending and receiving of activations and their gradients.
        stage = PipelineStage(self.model, rank, world_size, device)
        schedule = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}[config.schedule]
        # Distributed: GPipe runs all micro-batches forward, then all backward; 1F1B alternates, and so keeps at most as
        # many activations as there are stages.
        self.schedule = schedule(stage, config.num_microbatches, loss_fn=loss_of)

    def ids(self, order, step):
        # Distributed: every process knows the batch; the first one feeds its inputs in, the last one
        # compares its targets.
        return order[step * self.config.global_batch_size : (step + 1) * self.config.global_batch_size]

    def run_schedule(self, pass_through, rows):
        """One pass of a batch through all stages; returns its mean loss, on every process."""
        inputs, targets = (part.to(self.device) for part in rows)
        # Distributed: the first stage is fed the inputs, the last one compares with the targets.
        losses, last = [], self.rank == self.world_size - 1
        fed = (inputs,) if self.rank == 0 else ()
        pass_through(*fed, **({"target": targets, "losses": losses} if last else {}))
        # Distributed: only the last stage knows the loss.
        loss = torch.stack(losses).mean().detach() if last else torch.zeros((), device=self.device)
        dist.broadcast(loss, src=self.world_size - 1)
        return loss.item()

    def train_step(self, ids):
        loss = self.run_schedule(self.schedule.step, self.train_data.read(ids))
        self.optimizer.step()  # Distributed: no exchange of gradients: each process owns its layers
        self.optimizer.zero_grad()
        return loss

    def evaluate(self):
        batch_size, total = self.config.global_batch_size, 0.0
        with torch.no_grad():
            for start in range(0, len(self.test_data), batch_size):
                rows = self.test_data.read(slice(start, start + batch_size))
                total += self.run_schedule(self.schedule.eval, rows) * len(rows[0])
        return total / len(self.test_data)


def main():
    config = check_settings(load_config())
    with joined_world(config) as (rank, world_size, device):
        check_settings(config, world_size)
        pipeline = Pipeline(config, rank, world_size, device)
        check_rows(len(pipeline.test_data), config, "test")  # the shapes that stages exchange are fixed
        batches = Batches(check_rows(len(pipeline.train_data), config), config.global_batch_size, config.seed)
        num_steps = num_steps_of(config, batches)
        with (
            RunRecord(config.output_dir, rank, world_size, **facts(device)) as run,
            Sharded(
                pipeline.model, pipeline.optimizer, config, len(pipeline.train_data), run, rank, world_size
            ) as checkpoints,
        ):
            start = checkpoints.load()
            # Distributed: rank 0's clock on all ranks.
            run.restore(*divmod(start, batches.steps_per_epoch), generation=shared_now())
            bits_per_byte = train_language_model(
                pipeline, pipeline.optimizer, batches, num_steps, start, checkpoints, config, run
            )
            held = sum(parameter.numel() for parameter in pipeline.model.parameters())
            run.parameters(held=held, total=pipeline.num_parameters)
            if rank == 0:  # Distributed: one writes the table for all.
                report_baselines(config, run, bits_per_byte)
            # Distributed: each process digests its own layers; no process has them all.
            run.digest(parameter.cpu().numpy() for parameter in pipeline.model.state_dict().values())


if __name__ == "__main__":
    main()

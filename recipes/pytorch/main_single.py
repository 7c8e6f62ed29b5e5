"""The language model in one plain process: what the model-parallel modes are compared with.

Run:     make recipe-pytorch ARGS=recipe.mode=single
Read:    this one first; main_fsdp.py, main_tensor_parallel.py and main_pipeline.py have the same functions, and what is
         parallel in them is tagged.
"""

import time

import torch

from checkpoints import Sharded
from data import Batches
from language import TextData, build_model, loss_of, report_baselines, train_language_model
from runrecord import RunRecord, load_config
from settings import check_rows, check_settings, num_steps_of


class Single:
    rank = 0

    def __init__(self, config):
        self.config, self.device = config, torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.train_data = TextData(config.data_dir, "train", config.max_rows)
        self.test_data = TextData(config.data_dir, "test")
        self.model = build_model(config).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), config.learning_rate)

    def ids(self, order, step):
        return order[step * self.config.global_batch_size : (step + 1) * self.config.global_batch_size]

    def train_step(self, ids):
        inputs, targets = (part.to(self.device) for part in self.train_data.read(ids))
        loss = loss_of(self.model(inputs), targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    @torch.no_grad()
    def evaluate(self):
        batch_size, total = self.config.global_batch_size, 0.0
        for start in range(0, len(self.test_data), batch_size):
            inputs, targets = (part.to(self.device) for part in self.test_data.read(slice(start, start + batch_size)))
            total += loss_of(self.model(inputs), targets).item() * len(inputs)
        return total / len(self.test_data)


def main():
    config = check_settings(load_config(), 1)
    single = Single(config)
    batches = Batches(check_rows(len(single.train_data), config), config.global_batch_size, config.seed)
    num_steps = num_steps_of(config, batches)
    with (
        RunRecord(config.output_dir, 0, 1, device=str(single.device), torch=torch.__version__) as run,
        Sharded(single.model, single.optimizer, config, len(single.train_data), run) as checkpoints,
    ):
        start = checkpoints.load()
        run.restore(*divmod(start, batches.steps_per_epoch), generation=time.time())
        bits_per_byte = train_language_model(
            single, single.optimizer, batches, num_steps, start, checkpoints, config, run
        )
        report_baselines(config, run, bits_per_byte)
        run.digest(parameter.cpu().numpy() for parameter in single.model.state_dict().values())


if __name__ == "__main__":
    main()

"""A small decoder-only language model over bytes, its training loop and its baselines.

The model-parallel modes share them.

The model follows Vaswani et al. 2017, "Attention Is All You Need" (decoder only), with root mean square normalisation
(Zhang and Sennrich 2019) and rotary positions (Su et al. 2021). Only its arguments `parallel` and `checkpoints` know
of other processes.
"""

import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from preempt import Notice

NUM_BYTES = 256


class Attention(nn.Module):
    def __init__(self, width, num_heads):
        super().__init__()
        self.head_width = width // num_heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x):
        batch, length, _ = x.shape
        # -1: as many heads as this process has. Tensor parallelism leaves it a share of them.
        query, key, value = (
            layer(x).view(batch, length, -1, self.head_width).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(rotate(query), rotate(key), value, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))


def rotate(x):
    """Rotary positions.

    Turns pairs of features of x (batch, heads, length, head_width) by angles that grow with the position.
    """
    length, half = x.shape[2], x.shape[3] // 2
    frequencies = 10000.0 ** (-torch.arange(half, device=x.device) / half)
    angles = torch.arange(length, device=x.device)[:, None] * frequencies
    cosine, sine, (first, second) = angles.cos(), angles.sin(), x.split(half, dim=3)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=3).to(x.dtype)


class FeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    def __init__(self, width, num_heads):
        super().__init__()
        self.attention_norm, self.attention = nn.RMSNorm(width, eps=1e-5), Attention(width, num_heads)
        self.feed_forward_norm, self.feed_forward = nn.RMSNorm(width, eps=1e-5), FeedForward(width)

    def forward(self, x):
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class LanguageModel(nn.Module):
    """Bytes int64 (batch, length) to logits (batch, length, 256).

    A part that is None is another process's (pipeline stages).
    """

    def __init__(self, width, num_layers, num_heads):
        super().__init__()
        self.embedding = nn.Embedding(NUM_BYTES, width)
        self.layers = nn.ModuleDict({str(n): Block(width, num_heads) for n in range(num_layers)})
        self.norm, self.output = nn.RMSNorm(width, eps=1e-5), nn.Linear(width, NUM_BYTES, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                # Radford et al. 2019 ("GPT-2"): what the layers add to the residual stream shall not grow
                # with their number.
                adds = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * num_layers) if adds else 0.02)

    def forward(self, x):
        x = x if self.embedding is None else self.embedding(x)
        for layer in self.layers.values():
            x = layer(x)
        return x if self.output is None else self.output(self.norm(x))


def build_model(config):
    """The same initial weights in every mode and on every process."""
    torch.manual_seed(config.seed)
    return LanguageModel(config.model_width, config.num_layers, config.num_heads)


def loss_of(logits, targets):
    """Mean cross entropy, in nats a byte, of logits (batch, length, 256) and targets int64 (batch, length)."""
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


class TextData:
    """Windows of text, one row each: `read` gives inputs and targets, int64 (n, context_length).

    A target is the next byte.
    """

    def __init__(self, data_dir, split, max_rows=None):
        try:
            self.rows = np.load(Path(data_dir) / f"{split}_rows.npy", mmap_mode="r")[:max_rows]
        except (OSError, ValueError) as error:
            raise SystemExit(f"data_dir={data_dir} is no text dataset: {error}; try data=python_source") from None

    def __len__(self):
        return len(self.rows)

    def read(self, ids):
        rows = torch.from_numpy(self.rows[ids].astype(np.int64))
        return rows[:, :-1], rows[:, 1:]


def baselines(data_dir):
    """Bits per byte on the test windows of a unigram and a bigram model.

    They are counted on the training windows (add-one smoothing).
    """
    train, test = (TextData(data_dir, split).rows for split in ("train", "test"))
    single = np.bincount(train[:, 1:].ravel(), minlength=NUM_BYTES) + 1.0
    pairs = np.ones((NUM_BYTES, NUM_BYTES))
    np.add.at(pairs, (train[:, :-1].ravel(), train[:, 1:].ravel()), 1)
    unigram = -np.log2(single / single.sum())[test[:, 1:]].mean()
    bigram = -np.log2(pairs / pairs.sum(1, keepdims=True))[test[:, :-1], test[:, 1:]].mean()
    return {"unigram": float(unigram), "bigram": float(bigram)}


def learning_rate_at(step, num_steps, config):
    """The rate at a step: a linear warm-up, then half a cosine down to a tenth of the peak."""
    warmup = max(1, round(config.warmup_share * num_steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    share = (step - warmup) / max(1, num_steps - warmup)
    return config.learning_rate * (0.1 + 0.9 * (1 + math.cos(math.pi * share)) / 2)


def train_language_model(parallel, optimizer, batches, num_steps, start, checkpoints, config, run):
    """Takes `parallel` from step `start` to `num_steps`.

    Returns bits per byte on the test windows, equal on all processes.

    All that is parallel is in that object:

    `ids(order, step)`    the rows of the global batch that this process reads
    `train_step(ids)`     forward, backward, optimizer step; the loss of the whole global batch, equal on all processes
    `evaluate()`          the mean loss on the test windows, equal on all processes
    """
    bits, shown = None, time.perf_counter()
    epoch_began = shown
    first_step = start
    notice = Notice(config.output_dir, config.checkpoint_every_steps, config.checkpoint_every_seconds)
    for step in range(start, num_steps):
        epoch, step_of_epoch = divmod(step, batches.steps_per_epoch)
        if step == start or step_of_epoch == 0:
            order = batches.order(epoch)
        ids = parallel.ids(order, step_of_epoch)
        run.rows(epoch, step_of_epoch, ids)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, num_steps, config)
        run.metric("train/loss", run.finite(parallel.train_step(ids), epoch, step_of_epoch), step + 1, epoch)
        if time.perf_counter() - shown > 2:
            shown = time.perf_counter()
            run.progress(step + 1, num_steps, f"epoch {epoch + 1}, step {step_of_epoch + 1}")
        end_of_epoch = step + 1 == num_steps or step_of_epoch + 1 == batches.steps_per_epoch
        wish = checkpoints.agreed(notice.wish(step + 1, last=end_of_epoch))
        if end_of_epoch:
            # Distributed: the ranks stop their clocks at slightly different times; one of them tells.
            if parallel.rank == 0:
                speed = (step + 1 - first_step) * config.global_batch_size / (time.perf_counter() - epoch_began)
                run.metric("samples_per_second", speed, step + 1, epoch, "samples/s")
            bits = parallel.evaluate() / math.log(2)
            run.metric("eval/bits_per_byte", bits, step + 1, epoch, "bit")
            run.progress(step + 1, num_steps, f"epoch {epoch + 1}  {bits:.3f} bits per byte")
        if end_of_epoch or wish:
            checkpoints.save(step + 1, *divmod(step + 1, batches.steps_per_epoch))
            notice.saved(wish)
        if end_of_epoch:
            epoch_began, first_step = time.perf_counter(), step + 1
    return bits if bits is not None else parallel.evaluate() / math.log(2)  # a resumed run may have nothing left to do


def report_baselines(config, run, bits_per_byte):
    """Leaves the comparison with the counted models in the report."""
    counted = baselines(config.data_dir)
    rows = [{"model": f"{name} counts", "bits per byte": bits} for name, bits in counted.items()]
    rows.append({"model": f"transformer ({config.mode})", "bits per byte": bits_per_byte})
    run.table("bits per byte on held-out files", rows)
    for name, bits in counted.items():
        run.metric(f"eval/{name}_bits_per_byte", bits, 0)

"""What a worker trains on: its shards, and its part of each global batch. Both programs take theirs from here."""

import ray.train


def my_shards(config, split):
    """This worker's shards of a split, each a stream of Ray Data."""
    context = ray.train.get_context()
    # Distributed: a shard belongs to exactly one worker; with one worker, all of them do.
    mine = range(context.get_world_rank(), config.num_shards, context.get_world_size())
    return [ray.train.get_dataset_shard(f"{split}-{shard}") for shard in mine]


def options(config, epoch):
    """How Ray Data is to hand over a shard's rows in this epoch: of equal size from each shard, and shuffled."""
    return {
        "batch_size": config.global_batch_size // config.num_shards,
        "prefetch_batches": config.prefetch_batches,
        "local_shuffle_buffer_size": config.shuffle_rows,
        "local_shuffle_seed": config.seed * 1000 + epoch,
    }


def joined(streams, steps, concatenate):
    """Yields this worker's part of each global batch, {id, label, image}.

    `streams`: batches of each of its shards. `concatenate`: makes one array of several.
    """
    # Distributed: tasks of Ray Data send blocks, and a thread prepares the next batches, while this worker computes.
    streams, batch = [iter(stream) for stream in streams], None
    for step in range(steps.stop):
        parts = [part for stream in streams if (part := next(stream, None)) is not None]
        # Distributed: shards may differ by a row, and a last batch may have none for this worker. It takes part all the
        # same, with nothing to add: the others wait for it in the exchange.
        parts = parts or [{name: values[:0] for name, values in batch.items()}]
        batch = {name: concatenate([part[name] for part in parts]) for name in parts[0]}
        if step >= steps.start:  # the batches before it were taken by an earlier try
            yield batch

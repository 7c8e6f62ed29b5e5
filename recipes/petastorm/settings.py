"""Which settings make no sense.

As a program it checks a config without loading Petastorm: python settings.py CONFIG.yaml NUM_WORKERS
"""

import sys

from runrecord import load_config

CHOICES = {
    "mode": ["flights", "digits", "tensorflow"],
    "reader": ["batch", "row", "converter", "arrow"],
    "pool": ["thread", "process", "dummy"],
    "cache": ["none", "local-disk"],
}
AT_LEAST_ONE = ["num_epochs", "num_shards", "shuffle_rows", "rows_per_chunk", "num_loader_workers", "width"]
AT_LEAST_ONE += ["global_batch_size", "prefetch_chunks", "cache_mb"]


def check_settings(config, num_workers=None):
    """Returns the config, or raises SystemExit with the value, what was expected and what to do."""
    for key, known in CHOICES.items():
        if getattr(config, key) not in known:
            raise SystemExit(f"{key}={getattr(config, key)!r} is unknown; expected one of: {', '.join(known)}")
    for key in AT_LEAST_ONE:
        if getattr(config, key) < 1:
            raise SystemExit(f"{key}={getattr(config, key)}: expected a whole number of at least 1")
    if config.max_restarts < 0:
        raise SystemExit(f"max_restarts={config.max_restarts}: expected a whole number of at least 0")
    if config.learning_rate <= 0:
        raise SystemExit(f"learning_rate={config.learning_rate}: expected a number above 0")
    if config.mode == "digits" and config.reader != "row":
        raise SystemExit(f"reader={config.reader} cannot decode the tensors of the digits store: use recipe.reader=row")
    if config.mode == "tensorflow" and config.reader != "batch":
        raise SystemExit(
            f"reader={config.reader} with mode=tensorflow: only make_batch_reader feeds make_petastorm_dataset here"
        )
    if config.cache == "local-disk" and config.max_rows:
        raise SystemExit(
            f"cache=local-disk with max_rows={config.max_rows}: Petastorm caches no rows that it has to choose; "
            "use recipe.cache=none, or scale.max_rows=null"
        )
    if config.global_batch_size % config.num_shards:
        raise SystemExit(
            f"global_batch_size={config.global_batch_size} cannot be divided among num_shards={config.num_shards}; "
            "choose a multiple"
        )
    if num_workers and config.num_shards % num_workers:
        raise SystemExit(
            f"num_shards={config.num_shards} cannot be divided among {num_workers} workers: each needs as many shards "
            f"as the others. Choose recipe.num_shards={-(-config.num_shards // num_workers) * num_workers}"
        )
    return config


def depends_on(config, manifest):
    """What a position (epoch) depends on: with other values the same position stands for other rows."""
    num_rows = manifest["rows"]["train"]
    return {
        "seed": config.seed,
        "global_batch_size": config.global_batch_size,
        "num_shards": config.num_shards,
        "shuffle_rows": config.shuffle_rows,
        "num_rows": min(num_rows, config.max_rows or num_rows),
    }


if __name__ == "__main__":
    *config_words, num_workers = sys.argv[1:]
    check_settings(load_config(config_words), int(num_workers))

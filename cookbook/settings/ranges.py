"""The numbers that a setting may be, by its name."""

import math

from cookbook import UserError
from cookbook.job import Settings

# (lowest, highest) that a setting of this name may have, in whatever group it stands. The lowest is None where the
# recipe's own settings.py says it, which goes with a copy of the recipe. The highest keeps a slip of the finger (or
# seconds where milliseconds are meant) from dying late, for want of memory, or never: it is far above what anybody
# uses.
BOUNDS: dict[tuple[float | None, float], str] = {
    (0, 10_000): "warmup_epochs gpus_per_worker",
    (0, 10**9): "checkpoint_every_steps max_jitter_minutes",
    (0, 86_400): "image_timeout_seconds stop_grace_seconds notice_grace_seconds checkpoint_every_seconds",
    (0, 65_536): "fusion_threshold_mb",
    (0, 60_000): "cycle_time_ms",
    (0, 1): "warmup_share momentum max_unreadable_share",
    (None, 1): "max_malformed_share",
    (0.001, 0.999): "test_fraction",
    (0, 2**32 - 1): "seed split_seed",
    (None, 1024): "num_loader_workers",
    (None, 65_535): "serve_port",
    (1, 65_535): "port",
    (1, 4096): "num_threads_per_worker size num_hosts",
    (1, 525_600): "time_minutes",
    (None, 525_600): "window_minutes",
    (1, 10_000): "num_copies keep_every num_nodes num_workers min_workers",
    (1, 10**7): "num_hours",
    (1, 10**8): "num_train_rows num_test_rows rows_per_group",
    (1, 10**11): "num_lines max_rows max_steps",
    (1, 10**6): "context_length max_workers bucket_cap_mb",
    (2, 10**9): "malformed_every",
    (2, 1000): "num_classes",
    (1, 31 * 86_400): (
        "start_timeout_seconds stall_timeout_seconds diagnose_after_seconds connect_timeout_seconds silence_seconds"
    ),
    (None, 31 * 86_400): "exchange_timeout_seconds",
    (None, 86_400): "serve_timeout_seconds",
    (0.01, 86_400): "pull_seconds poll_seconds snapshot_seconds every_seconds wait_seconds resize_seconds",
    (0.01, 100_000): "cpus_per_worker",
    (64, 10**8): "memory_mb_per_worker",
    (None, 16_384): "width model_width num_heads num_layers num_microbatches",
    (None, 10_000): (
        "accumulation_steps backward_passes_per_step num_devices num_ps num_envs_per_worker num_shards "
        "num_processes num_learners num_data_cpus cpus_per_trial population prefetch_batches prefetch_chunks num_folds "
        "search_blocks steps_per_execution num_message_sizes num_seeds num_repeats max_restarts num_retries "
        "num_failures max_trial_failures max_shift"
    ),
    (None, 10**6): (
        "num_epochs budget_epochs epochs_per_trial trial_epochs num_iterations evaluation_every evaluation_episodes "
        "checkpoint_every perturb_every num_trees search_candidates num_clusters num_rounds pca_components num_files "
        "num_tasks object_store_mb object_mb"
    ),
    (None, 10**8): (
        "global_batch_size base_batch_size batch_size train_batch_size shuffle_rows rows_per_chunk rows_per_file "
        "rows_per_partition model_rows cache_mb commit_every_steps memory_mb"
    ),
}
RANGES = {name: bounds for bounds, names in BOUNDS.items() for name in names.split()}


WHOLE_OR_NULL = ("port", "num_workers")  # their default is null in some files, which does not show their kind


def check_ranges(values: Settings, prefix: str) -> None:
    """Raises UserError for a number that no such setting can have: out of RANGES, infinite, or none at all."""
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else key
        if isinstance(value, dict):
            if key != "driver":
                check_ranges(value, name)
            continue
        if key in WHOLE_OR_NULL and value is not None and type(value) is not int:
            raise UserError(f"{name}={value!r}: expected a whole number, or null")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            if key in RANGES and value is not None:  # a default of null says nothing of the kind
                low, high = RANGES[key]
                raise UserError(f"{name}={value!r}: expected a number {'' if low is None else f'from {low} '}to {high}")
            continue
        if not math.isfinite(value):
            raise UserError(f"{name}={value}: expected a finite number")
        low, high = RANGES.get(key, (None, math.inf))
        is_out = (low is not None and value < low) or value > high
        if is_out and key.endswith(("_share", "_fraction")):
            example = f"{value / 100:g} for {value:g} %" if 1 < value < 100 else "0.2 for 20 %"
            raise UserError(f"{name}={value}: expected a share between 0 and 1 ({example})")
        if is_out:
            bounds = f"at most {high}" if low is None else f"from {low} to {high}"
            kind = "a whole number" if type(low or high) is int and type(value) is int else "a number"
            raise UserError(f"{name}={value}: expected {kind} {'of ' if low is None else ''}{bounds}")

"""Checkpoints that Ray Train stores: each carries the sums of its files, and a damaged one is passed over.

Ray Train copies what a worker reports to `storage_path`, a folder or an object store, keeps the last two and hands the
last one over. It does not look into them. So storage.py's marker travels with the files.

The two programs share here, too, how a training ends that was preempted.
"""

import contextlib

import ray.train
from ray.train import Checkpoint

from preempt import Preempted
from storage import Damaged, check_seal, seal


def report(position, folder):
    """Called by all workers; `folder`: the checkpoint's files, or None for workers that have written none."""
    if folder:
        seal(folder)
    # Distributed: every worker reports, or all would wait. A checkpoint counts when Ray has copied its folder.
    ray.train.report(position, checkpoint=Checkpoint.from_directory(folder) if folder else None)


@contextlib.contextmanager
def last_whole():
    """Gives a local folder with the files of the last whole checkpoint; None without any.

    Raises SystemExit when there are only damaged ones.
    """
    newest, damaged = ray.train.get_checkpoint(), []
    for checkpoint in [newest, *earlier_than(newest)] if newest else []:
        with checkpoint.as_directory() as folder:
            try:
                check_seal(folder)
            except Damaged as error:
                damaged.append(f"checkpoint {checkpoint.path} is damaged: {error}")
                print(f"{damaged[-1]}; the one before is taken", flush=True)
                continue
            yield folder
            return
    if damaged:
        raise SystemExit(f"{'; '.join(damaged)}: bring back a whole one, or remove them all to begin afresh")
    yield None


def earlier_than(newest):
    """The other checkpoints that Ray Train keeps, newest first; asked for only when they are needed."""
    kept = [reported.checkpoint for reported in ray.train.get_all_reported_checkpoints()]
    yield from (checkpoint for checkpoint in reversed(kept) if checkpoint.path != newest.path)


def with_status(train):
    """The training function as Ray Train is to run it: it returns the exit status for the program that asked."""

    def train_worker(settings):
        try:
            train(settings)
        except Preempted as error:
            return error.code  # an error would have Ray Train start all workers anew
        return 0

    return train_worker


def fit(trainer):
    """Trains; returns the status of the first worker. Raises SystemExit when Ray Train gives up."""
    try:
        return trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        raise SystemExit(f"Ray Train gave up: {str(error).strip().splitlines()[-1]}") from None

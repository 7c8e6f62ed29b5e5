"""Reads this worker's batches ahead of the training, in processes of its own if asked to."""

import numpy as np
import torch


def loader_of(data, batches, epoch, steps, rank, world_size, num_loader_workers, device):
    """An iterator over this worker's shares.

    Each is (ids int64 (n,), rows of the global batch, images (n, c, h, w), labels (n,)), in the host's memory. Where
    `device` is a GPU, that memory is pinned: the GPU copies from it by itself.

    A DataLoader with a batch sampler of our own: `DistributedSampler` pads or drops rows to make all shares equal, and
    cannot begin in the middle of an epoch.
    """
    order = batches.order(epoch)
    shares = [batches.share(order, step, rank, world_size) for step in steps]

    class Rows(torch.utils.data.Dataset):
        def __getitems__(self, ids):
            images, labels = data.read(np.asarray(ids, dtype=np.int64))
            return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)

        def __len__(self):
            return len(data)

    # A generator of its own: the loader draws from it, and a resumed epoch's second loader must not shift the
    # worker's numbers.
    loader = torch.utils.data.DataLoader(
        Rows(),
        batch_sampler=[ids.tolist() for ids, _ in shares],
        collate_fn=lambda rows: rows,
        num_workers=num_loader_workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),
    )
    for (ids, batch_size), (images, labels) in zip(shares, loader, strict=True):
        yield ids, batch_size, images, labels

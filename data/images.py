"""Synthetic images whose classes have a known structure; any number of them, for benchmarks.

Class k of n is a sinusoidal grating at the angle pi*k/n, with random phase, frequency, colours and noise: a network
must look at the direction, no single pixel gives it away. The same seed gives the same bytes,
whatever the number of rows.
"""

import numpy as np
from _common import image_manifest, run_builder

BLOCK_ROWS = 1024  # each block has a random stream of its own: a longer dataset begins like a shorter one


def draw_block(seed, split, block, num_rows, size, num_classes):
    """Images uint8 (num_rows, size, size, 3) and labels int64 (num_rows,) of one block."""
    random = np.random.default_rng([seed, split, block])
    labels = random.integers(num_classes, size=BLOCK_ROWS)
    cycles = random.uniform(2.0, 4.0, BLOCK_ROWS)
    phase = random.uniform(0.0, 2 * np.pi, BLOCK_ROWS)
    colours = random.uniform(0.3, 1.0, (BLOCK_ROWS, 3))
    y, x = np.mgrid[0:size, 0:size] / size
    angle = (np.pi * labels / num_classes)[:, None, None]
    wave = np.sin(2 * np.pi * cycles[:, None, None] * (x * np.cos(angle) + y * np.sin(angle)) + phase[:, None, None])
    noise = random.normal(0.0, 20.0, (BLOCK_ROWS, size, size, 1))
    images = 127.5 + 90.0 * wave[..., None] * colours[:, None, None, :] + noise
    return np.clip(images, 0, 255).astype(np.uint8)[:num_rows], labels[:num_rows]


def build(folder, num_train_rows, num_test_rows, size, num_classes, seed):
    for split, (name, num_rows) in enumerate((("train", num_train_rows), ("test", num_test_rows))):
        images = np.lib.format.open_memmap(
            folder / f"{name}_images.npy", mode="w+", dtype=np.uint8, shape=(num_rows, size, size, 3)
        )
        labels = np.empty(num_rows, np.int64)
        for block, start in enumerate(range(0, num_rows, BLOCK_ROWS)):
            rows = slice(start, min(start + BLOCK_ROWS, num_rows))
            images[rows], labels[rows] = draw_block(seed, split, block, rows.stop - start, size, num_classes)
            if block % 64 == 63:
                print(f"images: {rows.stop:,} of {num_rows:,} {name} rows", flush=True)
        images.flush()
        np.save(folder / f"{name}_labels.npy", labels)
    return image_manifest(
        folder,
        classes=[f"{180 * k / num_classes:.0f} degrees" for k in range(num_classes)],
        max_value=255,
        name="images",
        version="1",
        source=f"generated: gratings of {num_classes} directions, seed {seed}",
        licence="CC0 1.0",
    )


if __name__ == "__main__":
    run_builder(build)

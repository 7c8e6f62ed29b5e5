"""70,000 handwritten digits, 28x28 pixels (MNIST), downloaded and checked against the published checksums.

Source:  LeCun, Cortes, Burges: The MNIST database of handwritten digits. Checksums as in torchvision.
Licence: CC BY-SA 3.0.
"""

import gzip
from pathlib import Path

import numpy as np
from _common import DatasetError, download, image_manifest, run_builder, save_images

DIGITS = [str(digit) for digit in range(10)]
FILES = {"train": "train", "test": "t10k"}


def read_idx(path):
    """Reads a gzipped IDX file of unsigned bytes: an array of the shape that its header gives."""
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\0\0\x08":
        raise DatasetError(f"{path} is no IDX file of bytes: it begins with {content[:4]!r}")
    num_dims = content[3]
    shape = np.frombuffer(content, ">i4", num_dims, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_dims).reshape(shape)


def build_idx(folder, mirrors, md5, download_dir, classes, **facts):
    for split, prefix in FILES.items():
        images, labels = (
            read_idx(download(mirrors, name, md5[name], Path(download_dir)))
            for name in (f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz")
        )
        save_images(folder, split, images[..., None], labels)
    return image_manifest(folder, classes=classes, max_value=255, **facts)


def build(folder, mirrors, md5, download_dir):
    source = "LeCun, Cortes, Burges: The MNIST database"
    facts = {"name": "mnist", "version": "1", "source": source, "licence": "CC BY-SA 3.0"}
    return build_idx(folder, mirrors, md5, download_dir, DIGITS, **facts)


if __name__ == "__main__":
    run_builder(build)

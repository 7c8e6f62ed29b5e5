"""60,000 colour photographs of ten classes, 32x32 pixels (CIFAR-10), checked against the published checksum.

Source:  Krizhevsky 2009: Learning Multiple Layers of Features from Tiny Images. Checksum as in torchvision.
Licence: none stated by the author; free for research by common use.
"""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
from _common import DatasetError, download, image_manifest, run_builder, save_images

BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}


class ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays and plain values, and refuses whatever else a pickle could call."""

    ALLOWED = frozenset(
        {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
        | {(module, "_reconstruct") for module in ("numpy.core.multiarray", "numpy._core.multiarray")}
    )

    def find_class(self, module, name):
        if (module, name) not in self.ALLOWED:
            raise DatasetError(f"the archive wants to load {module}.{name}, which no CIFAR-10 batch does")
        return super().find_class(module, name)


def build(folder, mirrors, md5, download_dir):
    ((archive_name, archive_md5),) = md5.items()
    archive = download(mirrors, archive_name, archive_md5, Path(download_dir))
    with tarfile.open(archive) as tar:

        def read(name):
            content = tar.extractfile(f"cifar-10-batches-py/{name}").read()
            return ArraysOnly(io.BytesIO(content), encoding="latin1").load()

        classes = read("batches.meta")["label_names"]
        for split, names in BATCHES.items():
            batches = [read(name) for name in names]
            images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
            save_images(folder, split, images.transpose(0, 2, 3, 1), np.concatenate([b["labels"] for b in batches]))
    return image_manifest(
        folder,
        classes=classes,
        max_value=255,
        name="cifar10",
        version="python",
        source="Krizhevsky 2009: CIFAR-10",
        licence="none stated by the author",
    )


if __name__ == "__main__":
    run_builder(build)

"""70,000 pictures of clothes, 28x28 pixels (Fashion-MNIST): the files of MNIST's format, harder to tell apart.

Source:  Xiao, Rasul, Vollgraf 2017: Fashion-MNIST, arXiv 1708.07747. Checksums as in torchvision.
Licence: MIT.
"""

from _common import run_builder
from mnist import build_idx

CLASSES = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]


def build(folder, mirrors, md5, download_dir):
    source = "Xiao, Rasul, Vollgraf 2017: Fashion-MNIST"
    facts = {"name": "fashion_mnist", "version": "1", "source": source, "licence": "MIT"}
    return build_idx(folder, mirrors, md5, download_dir, CLASSES, **facts)


if __name__ == "__main__":
    run_builder(build)

"""1,797 handwritten digits, 8x8 pixels: real data that scikit-learn carries, so that no network is needed.

Source:  UCI Machine Learning Repository, "Optical Recognition of Handwritten Digits" (test part), as in scikit-learn.
Licence: CC BY 4.0.
"""

import sklearn
from _common import image_manifest, run_builder, save_images, stratified_split
from sklearn.datasets import load_digits


def build(folder, test_fraction, split_seed):
    digits = load_digits()
    images = digits.images[..., None]  # (1797, 8, 8, 1), whole numbers 0 to 16
    for split, rows in zip(("train", "test"), stratified_split(digits.target, test_fraction, split_seed), strict=True):
        save_images(folder, split, images[rows], digits.target[rows])
    return image_manifest(
        folder,
        classes=[str(name) for name in digits.target_names],
        max_value=16,
        name="digits",
        version=f"scikit-learn {sklearn.__version__}",
        source="UCI Machine Learning Repository: Optical Recognition of Handwritten Digits",
        licence="CC BY 4.0",
    )


if __name__ == "__main__":
    run_builder(build)

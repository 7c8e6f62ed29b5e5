"""The user's own pictures: a folder with a folder of PNG or JPEG files for each class.

    PATH/cat/1.png  PATH/dog/7.jpg ...                 a share of each class becomes the test part, or
    PATH/train/cat/1.png  PATH/test/cat/9.png ...      the parts are given

Files that cannot be read are listed in the manifest and left out; when no file can be read, that is an error.
"""

import os
from pathlib import Path

import numpy as np
from _common import DatasetError, image_manifest, run_builder, save_images, stratified_split
from PIL import Image

ENDINGS = {".png", ".jpg", ".jpeg"}


def find_classes(root):
    """Names of the folders below `root` that hold pictures, sorted."""
    try:
        folders = sorted(path for path in root.iterdir() if path.is_dir())
    except OSError as error:
        raise DatasetError(
            f"{root}: {error.strerror}; data.path must be a readable folder with a folder of pictures for each class"
        ) from None
    for folder in folders:
        if not os.access(folder, os.R_OK | os.X_OK):
            raise DatasetError(f"{folder}: Permission denied; make it readable, or move it away to leave its class out")
    return [folder.name for folder in folders if any(p.suffix.lower() in ENDINGS for p in folder.rglob("*"))]


def read_pictures(root, classes, size, channels, left_out):
    """Images uint8 (n, size, size, channels) and labels int64 (n,) of all pictures that can be read."""
    images, labels = [], []
    for label, name in enumerate(classes):
        paths = sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in ENDINGS)
        for number, path in enumerate(paths, 1):
            try:
                with Image.open(path) as picture:
                    picture = picture.convert("L" if channels == 1 else "RGB").resize((size, size), Image.BILINEAR)
                    images.append(np.asarray(picture, np.uint8).reshape(size, size, channels))
                    labels.append(label)
            except Exception as error:  # decoders raise whatever they stumble over; the file is listed with it
                left_out.append({"file": str(path.relative_to(root)), "reason": str(error)})
            if number % 2000 == 0:
                print(f"image_folder: {name}: {number:,} of {len(paths):,} files", flush=True)
    return np.array(images, np.uint8).reshape(-1, size, size, channels), np.array(labels, np.int64)


def build(folder, path, size, channels, test_fraction, split_seed):
    if not path:
        raise DatasetError("data.path is not set; give the folder that holds a folder of pictures for each class")
    root, left_out, notes = Path(path), [], []
    given = (root / "train").is_dir() and (root / "test").is_dir()
    classes = find_classes(root / "train" if given else root)
    if len(classes) < 2:
        raise DatasetError(
            f"{root} has {len(classes)} folders with {', '.join(sorted(ENDINGS))} files; expected at least 2, one per class"
        )
    if given:
        extra = set(find_classes(root / "test")) - set(classes)
        if extra:
            raise DatasetError(f"{root / 'test'} has classes that {root / 'train'} lacks: {', '.join(sorted(extra))}")
        parts = {part: read_pictures(root / part, classes, size, channels, left_out) for part in ("train", "test")}
    else:
        images, labels = read_pictures(root, classes, size, channels, left_out)
        if len(labels):
            train, test = stratified_split(labels, test_fraction, split_seed)
            parts = {"train": (images[train], labels[train]), "test": (images[test], labels[test])}
            alone = [classes[k] for k in range(len(classes)) if (labels == k).sum() == 1]
            if alone:
                notes.append(f"one picture only, so trained on but not tested: {', '.join(alone)}")
        else:
            parts = {"train": (images, labels), "test": (images, labels)}
    for entry in left_out[:5]:
        print(f"left out: {entry['file']}: {entry['reason']}", flush=True)
    if left_out:
        print(f"left out: {len(left_out)} files that could not be read (all of them: manifest.json)", flush=True)
    for note in notes:
        print(f"note: {note}", flush=True)
    for part, (_, labels) in parts.items():
        if not len(labels):
            raise DatasetError(
                f"{root}: the {part} part has no readable picture ({len(left_out)} files were unreadable)"
            )
    empty = [classes[k] for k in range(len(classes)) if not (parts["train"][1] == k).any()]
    if empty:
        raise DatasetError(f"{root}: no readable training picture in: {', '.join(empty)}")
    for part, (images, labels) in parts.items():
        save_images(folder, part, images, labels)
    return image_manifest(
        folder, classes=classes, max_value=255, name="image_folder", version="1",
        source=str(root.absolute()), licence="the user's own", left_out=left_out, notes=notes,
    )  # fmt: skip


if __name__ == "__main__":
    run_builder(build)

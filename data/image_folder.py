"""The user's own pictures: a folder with a folder of pictures for each class.

    PATH/cat/1.png  PATH/dog/7.jpg ...              a share of each class becomes the test part, or
    PATH/train/cat/1.png  PATH/val/cat/9.png ...    the parts are given: train, and test or val
                                                    (valid, validation, Test, ...)

Every file below PATH is read, or it stands in the manifest (`left_out`) with the reason. Pictures are
turned upright (EXIF), laid on one background where they are transparent, and scaled to 8 bits; of
several frames the first one is taken.
"""

import functools
import hashlib
import os
import re
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
from _common import (
    DatasetError,
    every_file,
    image_manifest,
    pointer_of,
    printable,
    run_builder,
    save_images,
    stratified_split,
)

try:
    from PIL import Image, ImageOps, UnidentifiedImageError
except ImportError:
    raise SystemExit(
        "dataset image_folder: this recipe's environment has no Pillow: add it to requirements.in"
    ) from None

ENDINGS = {
    ".png",
    ".apng",
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".webp",
    ".bmp",
    ".dib",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".jp2",
    ".avif",
}
# Only decoders of these are asked: a file that is called .png and is PostScript would start another program.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
Image.init()  # so that Pillow knows which of them it has
# Pictures too, but of kinds that Pillow does not read, or not to the eye's content.
FOREIGN = {
    ".heic",
    ".heif",
    ".svg",
    ".psd",
    ".raw",
    ".cr2",
    ".cr3",
    ".nef",
    ".arw",
    ".dng",
    ".orf",
    ".rw2",
    ".exr",
    ".hdr",
    ".dcm",
    ".pdf",
    ".eps",
    ".npy",
    ".npz",
    ".jxl",
    ".ico",
}
SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
PARTS = {
    "train": "train",
    "training": "train",
    "trainset": "train",
    "trn": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "valset": "val",
    "dev": "val",
    "devset": "val",
    "eval": "val",
    "evaluation": "val",
    "test": "test",
    "testing": "test",
    "testset": "test",
    "tst": "test",
}
FILLERS = {"set", "data", "dataset", "image", "images", "img", "imgs", "picture", "pictures", "split", "part", "seg"}
# What the pieces of a dataset are called, before their numbers: images_001, HAM10000_images_part_2.
PIECE = re.compile(r"(?i)(.*(?<![a-z])(?:parts?|images?|imgs?|pictures|batch|fold|chunk|shard|piece)[ _-]*)\(?\d+\)?")
MASK = re.compile(r"(?i)(.+)[_-](?:mask|gt|seg|segmentation)(?:_?\d+)?")
MASKS = re.compile(r"(?i)(?<![a-z])(?:masks?|labels?|annotations?|gt|ground[ _-]?truths?)(?![a-z])|segmentation")
BOXES = re.compile(r"(?i)(?:^|/)(?:labels|annotations)/.+\.(?:txt|xml|json)$|coco\.json$|(?:^|/)instances_[^/]*\.json$")
PACKED = {".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"}
SPLITS = ("auto", "none", "val", "test")


def part_of(name):
    """Which part a folder is by its name: train for Train, training_set or train2017; None for any other."""
    words = re.findall(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+", name)
    words = {word.lower() for word in words} - FILLERS
    return PARTS.get(words.pop()) if len(words) == 1 else None


def part_and_rest(name):
    """(part, other words) of a folder whose name has one word for a part among others: train_cats, cats-val."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+|\d+", name)]
    parts = [PARTS[word] for word in words if word in PARTS]
    return (parts[0] if len(parts) == 1 else None), tuple(word for word in words if word not in PARTS)


def sort_files(root):
    """(pictures, left out): the paths below `root` that are to be read, and [{file, reason}] of all others."""
    pictures, left_out, known = [], [], {}
    for path, problem in every_file(root):
        inside = path.relative_to(root)
        if not inside.parts:
            raise DatasetError(f"{printable(root)}: {problem}; data.path must be a readable folder")
        if problem and path.is_dir() and not os.access(path, os.R_OK | os.X_OK) and len(inside.parts) <= 2:
            raise DatasetError(
                f"{printable(path)}: {problem}; make it readable, or move it away to leave its pictures out"
            )
        real = os.path.realpath(path) if path.is_symlink() else os.path.join(real_folder(path.parent), path.name)
        if any(part.startswith(".") for part in inside.parts):
            problem = "hidden (a name that begins with a dot)"
        elif found := SYSTEM_FOLDERS & set(inside.parts):
            problem = f"hidden (in {min(found)}, which a system makes for itself)"
        elif not problem and path.suffix.lower() not in ENDINGS:
            problem = f"its ending, {printable(path.suffix) or 'none'}, is not one of a picture that can be read"
        elif not problem and real in known:
            problem = f"folder link or file link to {printable(known[real])}, which is read already"
        if problem:
            left_out.append({"file": printable(inside), "reason": problem})
        else:
            pictures.append(inside)
            known[real] = inside
    return pictures, left_out


@functools.lru_cache(maxsize=4096)
def real_folder(folder):
    return os.path.realpath(folder)


def find_parts(pictures, split):
    """{"train": folder, "test": folder} where the pictures are divided already, None where the folders are classes.

    Raises DatasetError where the folders could be either: then data.split has to say.
    """
    if split not in SPLITS:
        raise DatasetError(f"data.split={split}: expected one of: {', '.join(SPLITS)}")
    below, flat = {}, set()  # folder -> folders in it that hold pictures; folders that hold pictures themselves
    for inside in pictures:
        if len(inside.parts) > 2:
            below.setdefault(inside.parts[0], set()).add(inside.parts[1])
        elif len(inside.parts) == 2:
            flat.add(inside.parts[0])
    names = sorted(set(below) | flat)
    parts = {}
    for name in names:
        parts.setdefault(part_of(name), []).append(name)
    if split == "none":
        return None
    wanted = ("test", "val") if split == "auto" else (split,)
    usable = [name for part in wanted for name in parts.get(part, ()) if name in below]
    if split != "auto" and not (usable and "train" in parts):
        raise DatasetError(
            f"data.split={split}: there is no train and {split} with folders of classes in them, but: {listed(names)}"
        )
    told = "If they are classes, say data.split=none"
    if "train" in parts and ("val" in parts or "test" in parts):
        for part in ("train", *wanted):
            if len(parts.get(part, ())) > 1:
                raise DatasetError(f"{listed(parts[part])} are all the {part} part by their names: keep one. {told}")
        labelled = below.get(parts["train"][0], ())
        if not labelled or not usable:
            raise DatasetError(
                f"{listed(name for part in ('train', 'val', 'test') for name in parts.get(part, ()))} are called like "
                "the parts of a dataset, but not both of train and test (or val) have a folder of pictures for each "
                f"class. {told}"
                + (f". data.path=.../{parts['train'][0]} draws a test part from it" if len(labelled) > 1 else "")
            )
        if None in parts:
            raise DatasetError(
                f"{listed(parts['train'] + usable)} are called like the parts of a dataset, but beside them are: "
                f"{listed(parts[None])}. Move those away. {told}"
            )
        return {"train": parts["train"][0], "test": usable[0]}
    for name in names:
        if part_of(name) and name not in flat and len(below[name]) > 1 and len(names) > 1:
            raise DatasetError(
                f"{name} is called like a part of a dataset and holds folders of pictures, but there are no train and "
                f"test (or val) beside each other: {listed(names)}. {told}"
            )
    inside = [name for name in names if has_parts(below.get(name, ()))]
    if len(inside) == 1:
        raise DatasetError(
            f"{inside[0]} is a dataset with parts of its own ({listed(sorted(below[inside[0]]))}): did you mean "
            f"data.path=.../{inside[0]}? {told}, to mix the parts and draw a test part anew"
        )
    if inside:
        raise DatasetError(
            f"the parts lie inside the classes ({inside[0]}/{min(below[inside[0]])}): make it the other way round "
            f"(train/{inside[0]}), or say data.split=none to mix them and draw a test part anew"
        )
    deeper = {}  # folder -> all folders below it that hold pictures: amazon/images/bike
    for inside in pictures:
        deeper.setdefault(inside.parts[0], set()).add("/".join(inside.parts[1:-1]))
    for one, other in pairwise(name for name in names if name not in flat):
        inner = below if len(below[one] & below[other]) > 1 else deeper
        same, either = inner[one] & inner[other], inner[one] | inner[other]
        if len(same) > 1 and len(same) * 2 > len(either):
            raise DatasetError(
                f"{one} and {other} hold folders of the same names ({listed(sorted(same))}), "
                "so they look like parts of a dataset, and those like the classes. Parts to train and test on need the "
                "names train and test (or val); other pieces (fold1, batch_2) have to be merged, or one of them is "
                f"data.path. {told}"
            )
    masks = [name for name in names if MASKS.search(name)]
    others = [name for name in names if re.search(r"(?i)im(?:age|g)|picture|photo|input", name)]
    if masks and others:
        raise DatasetError(
            f"{listed(masks)} beside {listed(others)} looks like masks of those pictures, not like classes: this "
            f"dataset needs a folder of pictures for each class. {told}"
        )
    pieces = {found[1] if (found := PIECE.fullmatch(name)) else name for name in names}
    if len(pieces) == 1 < len(names):
        raise DatasetError(
            f"{listed(names)} are called like pieces of one dataset, not like classes: put the pictures into a folder "
            f"for each class (a table of labels is not read). {told}"
        )
    by_rest = {}
    for name in names:
        part, rest = part_and_rest(name)
        if part:
            by_rest.setdefault(rest, {}).setdefault(part == "train", name)
    for alike in by_rest.values():
        if len(alike) == 2:
            raise DatasetError(
                f"{alike[True]} and {alike[False]} are called alike but for the part of a dataset: make folders train "
                f"and test (or val) with a folder for each class in them, such as train/cat and test/cat. {told}"
            )
    return None


def has_parts(names):
    """Whether there are folders to train and to test on among these."""
    parts = {part_of(name) for name in names}
    return "train" in parts and bool(parts & {"val", "test"})


def listed(names, most=10):
    names = [printable(name) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def by_class(pictures, folder):
    """{class: [paths]} of the pictures below `folder`, sorted; and the paths that are in no folder of a class."""
    depth = len(Path(folder).parts)
    found, alone = {}, []
    for inside in pictures:
        if inside.parts[:depth] == Path(folder).parts:
            if len(inside.parts) - depth > 1:
                found.setdefault(inside.parts[depth], []).append(inside)
            else:
                alone.append(inside)
    return dict(sorted(found.items())), alone


def beside(root):
    """A note where data.path is one part of a dataset, and the part to test on lies beside it; or ""."""
    folder = root.absolute()
    try:
        names = sorted(path.name for path in folder.parent.iterdir() if path.is_dir())
    except OSError:
        return ""
    if part_of(folder.name) is None or not has_parts(names):
        return ""
    others = [name for name in names if part_of(name) and name != folder.name]
    return (
        f"beside {printable(folder.name)} lies {listed(others)}, which is not read; "
        f"to train and test on them as they are: data.path={printable(folder.parent)}"
    )


def folders_without_pictures(base, classes, left_out, root):
    """[(name, {ending: number of files})] of the folders beside the classes that hold no picture."""
    found = []
    for path in sorted(base.iterdir()):
        if (
            path.is_dir()
            and path.name not in classes
            and not path.name.startswith(".")
            and path.name not in SYSTEM_FOLDERS
        ):
            start = printable(path.relative_to(root)) + "/"
            inside = [Path(entry["file"]).suffix.lower() for entry in left_out if entry["file"].startswith(start)]
            found.append((printable(path.name), Counter(inside)))
    return found


def decode(path, size, channels, background):
    """(uint8 (size, size, channels), what there is to say of it) of a picture. Decoders raise
    whatever they stumble over."""
    with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as picture:
        remarks = ["of several frames the first one was taken"] if getattr(picture, "is_animated", False) else []
        unscaled_transparency(picture)
        raw_mode = str(picture.tile[0][3]) if picture.tile else ""
        picture.load()
        kind, turned_over = picture.format, white_is_zero(picture)
        if is_dark(picture, raw_mode):
            remarks.append(
                "of 16 bits, but darker than a sixteenth of white, so hardly anything is left of them in 8 bits: if "
                "white is 4095 or so in them, scale them to 16 bits first"
            )
        if picture.mode == "I;16B":  # Pillow turns, and looks at, only those of the other order
            values = Image.fromarray(np.asarray(picture).astype(np.uint16))
            values.info = picture.info | {"exif": picture.getexif().tobytes()}
            picture = values
        try:
            picture = ImageOps.exif_transpose(picture)
        except Exception:
            remarks.append("which side is up cannot be read (EXIF is damaged): taken as it is stored")
        picture = eight_bits(picture, kind)
        picture = ImageOps.invert(picture) if turned_over else picture
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            if not picture.getchannel("A").getbbox():
                remarks.append("wholly transparent, so nothing of them is seen")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, (background,) * 3 + (255,)), picture)
        if picture.mode not in ("L", "1"):
            picture = picture.convert("RGB")
        picture = picture.convert("L" if channels == 1 else "RGB").resize((size, size), Image.BILINEAR)
        return np.asarray(picture, np.uint8).reshape(size, size, channels), remarks


def is_dark(picture, raw_mode):
    """Whether a picture of 16 bits has no value of a sixteenth of white. Pillow reads those with colours as 8 bits."""
    if picture.mode.startswith("I;16"):
        return np.asarray(picture).max() < 1 << 12
    if ";16" not in raw_mode or picture.mode not in ("RGB", "RGBA", "LA"):
        return False
    return max(most for _, most in picture.convert("RGB").getextrema()) < 16


def unscaled_transparency(picture):
    """Scales the grey value that nothing shows of as Pillow scales the values of a PNG of 2 or 4 bits: it leaves that
    one as it is stored."""
    scale = {"L;2": 85, "L;4": 17}.get(picture.tile[0][3]) if picture.format == "PNG" and picture.tile else None
    if scale and isinstance(picture.info.get("transparency"), int):
        picture.info["transparency"] *= scale


def white_is_zero(picture):
    """Whether a TIFF of 16 bits has white as 0, as X-rays may have: Pillow turns over those of 8 bits only."""
    return picture.mode.startswith("I;16") and picture.format == "TIFF" and picture.tag_v2.get(262) == 0


def eight_bits(picture, kind):
    """The picture with values of 0 to 255: Pillow would cut off what is larger. Raises
    ValueError where the range is unknown."""
    if picture.mode.startswith("I;16") or (picture.mode == "I" and kind in ("PPM", "PNG")):
        values = np.asarray(picture).astype(np.int64)
        grey = Image.fromarray(((np.clip(values, 0, 65535) * 255 + 32767) // 65535).astype(np.uint8))
        if "transparency" in picture.info:  # the grey value that nothing shows of
            grey.putalpha(Image.fromarray(np.where(values == picture.info["transparency"], 0, 255).astype(np.uint8)))
        return grey
    if picture.mode in ("I", "F"):
        values = "whole numbers of 32 bits" if picture.mode == "I" else "floating-point numbers"
        raise ValueError(f"its values are {values}, whose black and white are not known: convert it to 8 or 16 bits")
    return picture


def read_pictures(root, chosen, classes, size, channels, background):
    """(images uint8 (n, size, size, channels), labels int64 (n,), [{file, reason}], Counter of remarks) of
    `chosen`, {class: [paths]}."""
    images, labels, unreadable, remarks = [], [], [], Counter()
    for label, name in enumerate(classes):
        paths = chosen.get(name, [])
        for number, inside in enumerate(paths, 1):
            try:
                image, said = decode(root / inside, size, channels, background)
                images.append(image)
                labels.append(label)
                remarks.update(said)
            except Exception as error:
                unreadable.append(
                    {"file": printable(inside), "reason": "unreadable: " + reason_of(error, root / inside)}
                )
            if number % 2000 == 0:
                print(f"image_folder: {printable(name)}: {number:,} of {len(paths):,} files", flush=True)
    images = np.array(images, np.uint8).reshape(-1, size, size, channels)
    return images, np.array(labels, np.int64), unreadable, remarks


def such_as(entries):
    """The first files of [{file, reason}], each on a line."""
    return "".join(
        f"{'' if number else ':'}\n  {entry['file']}: {entry['reason']}" for number, entry in enumerate(entries[:5])
    )


def reason_of(error, path):
    if isinstance(error, UnidentifiedImageError):
        with open(path, "rb") as content:
            begin = content.read(12)
        if re.fullmatch(rb".{4}ftyp(hei|hev|mif|msf).", begin, re.DOTALL):
            return "it is HEIC, which is not read: convert it to PNG or JPEG"
        return pointer_of(path) or "no picture, or damaged at its beginning"
    return getattr(error, "strerror", None) or printable(str(error)) or type(error).__name__


def build(folder, path, split, size, channels, background, test_fraction, split_seed, max_unreadable_share):
    if not path:
        raise DatasetError("data.path is not set; give the folder that holds a folder of pictures for each class")
    check_settings(size, channels, background, test_fraction, max_unreadable_share)
    root = Path(path)
    notes = [note] if (note := beside(root)) else []
    try:
        os.listdir(root)
    except OSError as error:
        raise DatasetError(
            f"{printable(root)}: {error.strerror}; data.path must be a readable folder with a folder of pictures for "
            "each class"
        ) from None
    pictures, left_out = sort_files(root)
    found = len(pictures) + len(left_out)
    try:
        given = find_parts(pictures, split)
    except DatasetError as error:
        raise DatasetError(f"{error}{what_else(left_out)}") from None
    chosen = {part: by_class(pictures, base) for part, base in (given or {"train": "."}).items()}
    taken = {inside for classes, _ in chosen.values() for paths in classes.values() for inside in paths}
    alone = {inside for _, paths in chosen.values() for inside in paths}
    for inside in pictures:
        if inside in alone:
            left_out.append({"file": printable(inside), "reason": "in no folder of a class"})
        elif inside not in taken:
            reason = (
                f"part {printable(inside.parts[0])}: the parts that are used are {listed(given.values())} (data.split)"
            )
            left_out.append({"file": printable(inside), "reason": reason})
    if given:
        unused = sorted({inside.parts[0] for inside in pictures if inside not in taken | alone} - set(given.values()))
        notes.append(
            f"trained on {printable(given['train'])}, tested on {printable(given['test'])}"
            + (f"; {listed(unused)} is left out (data.split)" if unused else "")
        )
    classes = list(chosen["train"][0])
    if masks := masks_of(taken):
        notes.append(f"{masks} pictures are called like masks of others (x_mask.png beside x.png), and are taken, too")
    notes += check_classes(root, root / (given["train"] if given else "."), classes, chosen, left_out)

    read = {
        part: read_pictures(root, those, classes, size, channels, background) for part, (those, _) in chosen.items()
    }
    unreadable = [entry for _, _, entries, _ in read.values() for entry in entries]
    left_out += unreadable
    parts = {part: (images, labels) for part, (images, labels, _, _) in read.items()}
    for remark, number in sum((remarks for *_, remarks in read.values()), Counter()).items():
        notes.append(f"{number} pictures: {remark}")
    for part, (_, labels) in parts.items():
        if not len(labels):
            raise DatasetError(
                f"{root}: the {part} part has no readable picture ({len(unreadable)} files were unreadable)"
                + such_as(unreadable)
            )
    if empty := [classes[k] for k in range(len(classes)) if not (parts["train"][1] == k).any()]:
        names = {printable(inside) for name in empty for inside in chosen["train"][0][name]}
        why = such_as([entry for entry in unreadable if entry["file"] in names])
        raise DatasetError(f"{root}: no readable training picture in: {listed(empty)}{why}")
    if len(unreadable) > max_unreadable_share * len(taken):
        raise DatasetError(
            f"{len(unreadable)} of {len(taken)} pictures cannot be read, more than the share of "
            f"{max_unreadable_share} that may be left out (data.parameters.max_unreadable_share){such_as(unreadable)}"
        )
    if not given:
        images, labels = parts["train"]
        train, test = stratified_split(labels, test_fraction, split_seed)
        parts = {"train": (images[train], labels[train]), "test": (images[test], labels[test])}
        if not len(test):
            raise DatasetError(
                f"{root}: each class has one picture only, so there is none to test on; expected at least 2 of a class"
            )
    untested = [classes[k] for k in range(len(classes)) if not (parts["test"][1] == k).any()]
    if untested:
        why = "no readable picture in the test part" if given else "one picture only"
        notes.append(f"{why}, so trained on but not tested: {listed(untested, 100)}")
    notes += seen_twice(parts)
    for part, (images, labels) in parts.items():
        save_images(folder, part, images, labels)
    good = sum(len(labels) for _, labels in parts.values())
    if good + len(left_out) != found:  # a mistake of this program's
        raise DatasetError(f"{found} files were found, but {good} were read and {len(left_out)} left out")
    say(left_out, notes)
    return image_manifest(
        folder,
        classes=[printable(name) for name in classes],
        max_value=255,
        name="image_folder",
        version="2",
        source=printable(root.absolute()),
        licence="the user's own",
        account={"read": len(taken), "good": good, "quarantined": len(unreadable)},
        left_out=left_out,
        notes=notes,
    )


def what_else(left_out):
    """What to say where the layout is refused, of files that are no pictures: boxes, packed files; or nothing."""
    files = [entry["file"] for entry in left_out]
    if boxes := [file for file in files if BOXES.search(file)]:
        return (
            f". {boxes[0]} looks like boxes or masks of COCO, YOLO or VOC, which are not read: make a folder of "
            "pictures for each class"
        )
    packed = [file for file in files if Path(file).suffix.lower() in PACKED]
    return f". Packed files are not read: unpack {listed(packed, 3)}" if packed else ""


def masks_of(pictures):
    """How many are called like the mask of one that lies in the same folder."""
    known = {path.with_suffix("") for path in pictures}
    return sum(bool(found := MASK.fullmatch(path.name)) and path.with_name(found[1]) in known for path in known)


def seen_twice(parts):
    """Notes on pictures that are the same as others, once they are scaled: in both parts, or in several classes."""
    known = {}  # digest of a picture -> {(part, label)}
    for part, (images, labels) in parts.items():
        for image, label in zip(images, labels, strict=True):
            known.setdefault(hashlib.blake2b(image.tobytes(), digest_size=16).digest(), []).append((part, int(label)))
    leaked = sum(part == "test" for seen in known.values() if len({p for p, _ in seen}) == 2 for part, _ in seen)
    several = sum(len(seen) for seen in known.values() if len({label for _, label in seen}) > 1)
    notes = []
    if leaked:
        notes.append(
            f"{leaked} of {len(parts['test'][1])} test pictures are in the training part, too (the same once they are "
            "scaled): the accuracy says less than it seems to"
        )
    if several:
        notes.append(f"{several} pictures are in more than one class (the same once they are scaled)")
    return notes


def alike_names(classes):
    """A note on classes whose names differ only in case, blanks, zeros in front or the way their letters are written;
    or none."""
    groups = {}
    for name in classes:
        plain = re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name).casefold()).strip()
        groups.setdefault(re.sub(r"\b0+(?=\d)", "", plain), []).append(name)
    alike = [" and ".join(map(repr, map(printable, group))) for group in groups.values() if group[1:]]
    return [f"taken for different classes, though their names are nearly the same: {'; '.join(alike)}"] if alike else []


def check_settings(size, channels, background, test_fraction, max_unreadable_share):
    for name, value, right, expected in (
        ("size", size, size >= 1, "at least 1 pixel"),
        ("channels", channels, channels in (1, 3), "1 (grey) or 3 (colour)"),
        ("background", background, 0 <= background <= 255, "0 (black) to 255 (white)"),
        ("test_fraction", test_fraction, 0 < test_fraction < 1, "a share between 0 and 1"),
        ("max_unreadable_share", max_unreadable_share, 0 <= max_unreadable_share <= 1, "a share of 0 to 1"),
    ):
        if not right:
            raise DatasetError(f"data.parameters.{name}={value}: expected {expected}")


def check_classes(root, base, classes, chosen, left_out):
    """Notes on folders that are no class; raises DatasetError where that, or the classes of
    the parts, cannot be meant."""
    notes, lost = [], []
    for name, endings in folders_without_pictures(base, classes, left_out, root):
        files = (
            ", ".join(f"{number} {ending or 'without ending'}" for ending, number in sorted(endings.items())) or "empty"
        )
        (lost if set(endings) & FOREIGN else notes).append(f"{name} ({files})")
    if lost:
        raise DatasetError(
            f"{printable(base)}: these classes have no picture of a kind that can be read: {listed(lost)}. Convert "
            "them to PNG or JPEG, or move the folders away to leave the classes out"
        )
    if len(classes) < 2:
        paths = [path for found in chosen["train"][0].values() for path in found]
        inner, hint = inner_folders(base.relative_to(root), paths), ""
        if len(inner) > 1:
            place = printable(base / classes[0])
            move = f"move {listed(inner)} from {place} into {printable(base)}"
            hint = f"; did you mean data.path={place}?" if base == root else f"; {move}"
        elif Counter(Path(entry["file"]).suffix.lower() for entry in left_out)[".csv"]:
            hint = " (a table of labels is not read: move the pictures into a folder for each class)"
        hint = f"; {note}" if (note := beside(root)) else hint or what_else(left_out)
        raise DatasetError(
            f"{printable(base)} has {len(classes)} folders with pictures ({listed(classes) or 'none'}); expected at "
            f"least 2, one per class{hint}"
        )
    if extra := set(chosen.get("test", ({},))[0]) - set(classes):
        raise DatasetError(f"the test part has classes that {printable(base)} lacks: {listed(sorted(extra))}")
    notes = [f"no picture, so no class: {listed(notes, 100)}"] if notes else []
    return notes + folders_in_classes(base.relative_to(root), chosen["train"][0]) + alike_names(classes)


def inner_folders(base, paths):
    """The folders in a class of which these are the pictures, sorted. `base`: where the classes are."""
    depth = len(base.parts) + 1
    return sorted({inside.parts[depth] for inside in paths if len(inside.parts) > depth + 1})


def folders_in_classes(base, classes):
    """A note on folders below a class, which are no classes of their own; or none. `classes`: {class: [paths]}."""
    found = {name: inner_folders(base, paths) for name, paths in classes.items()}
    told = [f"{name} ({listed(inner, 5)})" for name, inner in found.items() if len(inner) > 1]
    return [f"all pictures below the folder of a class are of that class: {listed(told)}"] if told else []


def say(left_out, notes):
    for entry in left_out[:5]:
        print(f"left out: {entry['file']}: {entry['reason']}", flush=True)
    if left_out:
        print(f"left out: {len(left_out)} files (all of them, with the reasons: manifest.json)", flush=True)
    for note in notes:
        print(f"note: {note}", flush=True)


if __name__ == "__main__":
    run_builder(build)

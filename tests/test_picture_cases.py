"""Other people's pictures: the layouts and the files that they really have, each with the
right outcome, or a refusal by name."""

import json
import os
import random
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from cookbook import ROOT

sys.path.insert(0, str(ROOT / "data"))
import image_folder
from _common import DatasetError, run_builder

RED, BLUE, GREEN = (230, 30, 30), (30, 30, 230), (30, 230, 30)
PLAIN = {
    "split": "auto",
    "size": 8,
    "channels": 3,
    "background": 255,
    "test_fraction": 0.25,
    "split_seed": 0,
    "max_unreadable_share": 0.2,
}


def fill(folder, colour, number, ending="png", start=0):
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(number):
        picture = Image.new("RGB", (12, 10), tuple(min(255, value + start + k) for value in colour))
        picture.save(folder / f"{start + k:03d}.{ending}", format="JPEG" if ending == "jfif" else None)


@pytest.fixture
def build(tmp_path):
    """Builds from tmp_path/in; returns (manifest, {part: (images, labels)})."""

    def run(**settings):
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        manifest = image_folder.build(out, str(tmp_path / "in"), **PLAIN | settings)
        parts = {
            part: [np.load(out / f"{part}_{what}.npy") for what in ("images", "labels")] for part in ("train", "test")
        }
        return manifest, parts

    return run


def left_out(manifest):
    return {entry["file"]: entry["reason"] for entry in manifest["left_out"]}


# ---- parts that are given ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "val"),
        ("train", "valid"),
        ("Train", "Test"),
        ("training_set", "test_set"),
        ("train2017", "val2017"),
        ("TrainImages", "TestImages"),
    ],
)
def test_parts_are_recognised_by_their_names(tmp_path, build, train, test):
    for part, number in ((train, 5), (test, 2)):
        fill(tmp_path / "in" / part / "cat", RED, number)
        fill(tmp_path / "in" / part / "dog", BLUE, number)
    manifest, parts = build()
    assert manifest["classes"] == ["cat", "dog"]
    assert manifest["rows"] == {"train": 10, "test": 4}
    images, labels = parts["test"]
    assert labels.tolist() == [0, 0, 1, 1]
    assert (images[labels == 1][..., 2] >= 230).all()
    assert manifest["notes"][0] == f"trained on {train}, tested on {test}"
    assert manifest["notes"][1].startswith("4 of 4 test pictures are in the training part, too")


@pytest.mark.parametrize(("split", "used", "unused"), [("auto", "test", "val"), ("val", "val", "test")])
def test_of_three_parts_the_one_that_is_not_used_is_named(tmp_path, build, split, used, unused):
    for part, number in (("train", 5), ("val", 2), ("test", 3)):
        fill(tmp_path / "in" / part / "cat", RED, number)
        fill(tmp_path / "in" / part / "dog", BLUE, number)
    manifest, _ = build(split=split)
    sizes = {"val": 4, "test": 6}
    assert manifest["rows"] == {"train": 10, "test": sizes[used]}
    assert len(manifest["left_out"]) == sizes[unused]
    assert f"{unused}/cat/000.png" in left_out(manifest)
    assert manifest["notes"][0] == f"trained on train, tested on {used}; {unused} is left out (data.split)"


def test_a_test_folder_without_classes_leaves_val(tmp_path, build):
    """ImageNet's layout: the pictures to predict have no label."""
    for part in ("train", "val"):
        fill(tmp_path / "in" / part / "cat", RED, 3)
        fill(tmp_path / "in" / part / "dog", BLUE, 3)
    fill(tmp_path / "in/test", RED, 4)
    manifest, _ = build()
    assert manifest["rows"] == {"train": 6, "test": 6}
    assert sorted(left_out(manifest)) == [f"test/00{k}.png" for k in range(4)]


def test_classes_that_are_called_like_parts_need_to_be_said(tmp_path, build):
    for name in ("train", "test", "car"):
        fill(tmp_path / "in" / name, RED, 4)
    with pytest.raises(DatasetError, match="If they are classes, say data.split=none"):
        build()
    assert build(split="none")[0]["classes"] == ["car", "test", "train"]


@pytest.mark.parametrize(
    ("folders", "text"),
    [
        (["train/cat", "train/dog", "bus"], "train is called like a part of a dataset and holds folders of pictures"),
        (["train/cat", "train/dog", "val/cat", "bus"], "beside them are: bus. Move those away"),
        (
            ["train/cat", "train/dog", "Train/cat", "val/cat"],
            "Train, train are all the train part by their names: keep one",
        ),
        (["cat/train", "cat/val", "dog/train", "dog/val"], "the parts lie inside the classes (cat/train)"),
        (
            ["mine/train/cat", "mine/val/cat", "bus"],
            "mine is a dataset with parts of its own (train, val): did you mean data.path=.../mine?",
        ),
        (
            ["X_train/cat", "X_train/dog", "X_test/cat", "X_test/dog"],
            "X_test and X_train hold folders of the same names (cat, dog)",
        ),
        (
            ["fold1/cat", "fold1/dog", "fold1/bus", "fold2/cat", "fold2/dog"],
            "fold1 and fold2 hold folders of the same names (cat, dog)",
        ),
        (
            ["bounding_box_train/1", "bounding_box_train/2", "bounding_box_test/1", "bounding_box_test/2"],
            "need the names train and test (or val)",
        ),
        (["train_cat", "train_dog", "test_cat", "test_dog"], "train_cat and test_cat are called alike but for"),
        (["cats-val", "dogsTrain", "cats-train"], "cats-train and cats-val are called alike"),
        (["asl_train/asl_train/A", "asl_train/asl_train/B", "asl_test/asl_test"], "asl_train and asl_test are called"),
        (["train_dir/cat", "train_dir/dog", "train_dir/bus", "val_dir/cat"], "train_dir and val_dir are called alike"),
        (["train/cat", "train/dog", "test/cat", "test/bird"], "the test part has classes that"),
        (["val/cat", "val/dog", "test/cat", "test/dog"], "there are no train and test (or val) beside each other"),
        (
            ["pictures/cat", "pictures/dog"],
            "has 1 folders with pictures (pictures); expected at least 2, one per class; did you mean data.path=",
        ),
        (["train/cat", "train/dog", "test"], "data.path=.../train draws a test part from it"),  # no labels to test on
        (["cat"], "has 1 folders with pictures (cat); expected at least 2, one per class"),
        (["images", "masks"], "masks beside images looks like masks of those pictures, not like classes"),
        (["JPEGImages", "SegmentationClass"], "SegmentationClass beside JPEGImages looks like masks"),
        (
            ["amazon/images/bike", "amazon/images/mug", "dslr/images/bike", "dslr/images/mug"],
            "amazon and dslr hold folders of the same names (images/bike, images/mug)",
        ),
    ],
)
def test_layouts_that_are_refused_with_the_reason(tmp_path, build, folders, text):
    for name in folders:
        fill(tmp_path / "in" / name, RED, 3)
    with pytest.raises(DatasetError) as error:
        build()
    assert text in str(error.value)


def test_folders_of_the_same_names_are_classes_where_it_is_said_or_they_differ(tmp_path, build):
    for name in ("kind_1/cat", "kind_1/dog", "kind_2/cat", "kind_2/dog"):
        fill(tmp_path / "in" / name, RED, 3)
    assert build(split="none")[0]["classes"] == ["kind_1", "kind_2"]
    for name in ("kind_1/bus", "kind_1/car", "kind_2/bird", "kind_2/tree"):
        fill(tmp_path / "in" / name, RED, 3)
    assert build()[0]["classes"] == ["kind_1", "kind_2"], "no more than a third of the names is the same"


def test_a_part_of_a_dataset_says_what_lies_beside_it(tmp_path, build):
    for part in ("train", "val"):
        fill(tmp_path / "ds" / part / "cat", RED, 4)
        fill(tmp_path / "ds" / part / "dog", BLUE, 4)
    (tmp_path / "in").symlink_to(tmp_path / "ds")
    out = tmp_path / "out"
    out.mkdir()
    manifest = image_folder.build(out, str(tmp_path / "ds/train"), **PLAIN)
    said = f"beside train lies val, which is not read; to train and test on them as they are: data.path={tmp_path}/ds"
    assert (manifest["rows"], manifest["notes"]) == ({"train": 6, "test": 2}, [said])
    assert build()[0]["notes"][0] == "trained on train, tested on val"


@pytest.mark.parametrize("given", [False, True])
def test_a_class_of_pictures_that_cannot_be_taken_says_why(tmp_path, build, given):
    below = tmp_path / ("in/train" if given else "in")
    fill(below / "cat", RED, 4)
    fill(below / "dog", BLUE, 4)
    (below / "float").mkdir()
    Image.fromarray(np.full((12, 12), 0.5, np.float32)).save(below / "float/x.tif")
    if given:
        fill(tmp_path / "in/test/cat", RED, 4)
    with pytest.raises(DatasetError) as error:
        build()
    assert "no readable training picture in: float:" in str(error.value)
    assert "float/x.tif: unreadable: its values are floating-point numbers, whose black and white" in str(error.value)


@pytest.mark.parametrize("name", ["train", "test tube", "validator", "dev", "Testudo"])
def test_one_class_with_such_a_name_is_a_class(tmp_path, build, name):
    fill(tmp_path / "in" / name, RED, 4)
    fill(tmp_path / "in/bus", BLUE, 4)
    assert set(build()[0]["classes"]) == {name, "bus"}


def test_a_split_that_is_unknown_or_not_there(tmp_path, build):
    fill(tmp_path / "in/cat", RED, 4)
    fill(tmp_path / "in/dog", BLUE, 4)
    with pytest.raises(DatasetError, match="data.split=half: expected one of: auto, none, val, test"):
        build(split="half")
    with pytest.raises(DatasetError, match="data.split=val: there is no train and val .* but: cat, dog"):
        build(split="val")


# ---- files ---------------------------------------------------------------------------------------------------------


def test_every_usual_ending_is_read_with_the_right_colour(tmp_path, build):
    endings = ["png", "PNG", "jpg", "JPEG", "jfif", "webp", "bmp", "gif", "tif", "tiff", "ppm"]
    for number, ending in enumerate(endings):
        fill(tmp_path / "in/dog", BLUE, 1, ending, start=number)
    fill(tmp_path / "in/bird", GREEN, 12, "webp")
    manifest, parts = build()
    assert manifest["left_out"] == []
    assert sum(manifest["rows"].values()) == len(endings) + 12
    for images, labels in parts.values():
        channel = np.where(labels == 1, 2, 1)
        assert (images.mean(axis=(1, 2)).argmax(axis=1) == channel).all()


def test_every_file_that_is_not_read_is_listed_with_its_reason(tmp_path, build):
    root = tmp_path / "in"
    fill(root / "cat", RED, 12)
    fill(root / "dog", BLUE, 12)
    (root / "cat/zero.png").write_bytes(b"")
    (root / "cat/cut.jpg").write_bytes(
        (Image.new("RGB", (200, 200)).save(tmp_path / "x.jpg") or (tmp_path / "x.jpg").read_bytes())[:-600]
    )
    (root / "dog/page.jpg").write_text("<html>404</html>")
    (root / "dog/._001.png").write_bytes(b"\0\x05\x16\x07Mac OS X")
    (root / "dog/labels.csv").write_text("a,b")
    (root / "dog/LICENCE").write_text("own")
    (root / "001.png").write_bytes((root / "cat/001.png").read_bytes())
    (root / "__MACOSX/cat").mkdir(parents=True)
    (root / "__MACOSX/cat/1.png").write_bytes(b"x")
    fill(root / ".ipynb_checkpoints", RED, 1)
    (root / "dog/gone.png").symlink_to(root / "nowhere.png")
    (root / "dog/loop").symlink_to(root)
    (root / "dog/same.png").symlink_to(root / "dog/001.png")
    os.mkfifo(root / "dog/pipe.png")
    (root / "notes").mkdir()
    (root / "notes/read.txt").write_text("x")
    manifest, _ = build()
    assert left_out(manifest) == {
        "cat/zero.png": "unreadable: no picture, or damaged at its beginning",
        "cat/cut.jpg": left_out(manifest)["cat/cut.jpg"],
        "dog/page.jpg": "unreadable: no picture, or damaged at its beginning",
        "dog/._001.png": "hidden (a name that begins with a dot)",
        "dog/labels.csv": "its ending, .csv, is not one of a picture that can be read",
        "dog/LICENCE": "its ending, none, is not one of a picture that can be read",
        "001.png": "in no folder of a class",
        "__MACOSX/cat/1.png": "hidden (in __MACOSX, which a system makes for itself)",
        ".ipynb_checkpoints/000.png": "hidden (a name that begins with a dot)",
        "dog/gone.png": "link to nothing",
        "dog/loop": "folder link that leads back to a folder above it",
        "dog/same.png": "folder link or file link to dog/001.png, which is read already",
        "dog/pipe.png": "no regular file (a pipe, a socket or a device)",
        "notes/read.txt": "its ending, .txt, is not one of a picture that can be read",
    }
    assert "truncated" in left_out(manifest)["cat/cut.jpg"]
    assert manifest["notes"] == ["no picture, so no class: notes (1 .txt)"]
    assert manifest["account"] == {"read": 27, "good": 24, "quarantined": 3}


def test_names_and_linked_folders(tmp_path, build):
    root = tmp_path / "in"
    fill(root / "Große Katze", RED, 10)
    fill(root / "犬 🐶" / "nested one", BLUE, 10)
    fill(tmp_path / "store/bird", GREEN, 10)
    fill(tmp_path / "store/more", RED, 5, start=500)
    (root / "bird").symlink_to(tmp_path / "store/bird")
    (root / "Große Katze/more").symlink_to(tmp_path / "store/more")
    manifest, _ = build()
    assert manifest["classes"] == ["Große Katze", "bird", "犬 🐶"]
    assert sum(manifest["rows"].values()) == 35
    assert manifest["left_out"] == []


def test_names_that_are_no_utf_8(tmp_path, capsys):
    root = os.fsencode(tmp_path / "in")
    for name, colour in ((b"caf\xe9", RED), (b"dog", BLUE)):
        fill(tmp_path / "in/x", colour, 4)
        os.rename(os.path.join(root, b"x"), os.path.join(root, name))
    with open(os.path.join(root, b"dog", b"\xff.txt"), "w") as file:
        file.write("x")
    words = [f"path={tmp_path / 'in'}"] + [f"{key}={value}" for key, value in PLAIN.items()]
    run_builder(image_folder.build, [str(tmp_path / "out"), *words])
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["classes"] == ["caf\\xe9", "dog"]
    assert list(left_out(manifest)) == ["dog/\\xff.txt"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            {"bird": ["1.heic", "2.heic"]},
            "these classes have no picture of a kind that can be read: bird (2 .heic). Convert them",
        ),
        ({"bird": ["1.png", "2.png"]}, "no readable training picture in: bird"),
    ],
)
def test_a_class_that_is_left_with_no_picture_is_named(tmp_path, build, content, text):
    fill(tmp_path / "in/cat", RED, 4)
    fill(tmp_path / "in/dog", BLUE, 4)
    for name, files in content.items():
        (tmp_path / "in" / name).mkdir()
        for file in files:
            (tmp_path / "in" / name / file).write_bytes(b"ftypheic")
    with pytest.raises(DatasetError) as error:
        build()
    assert text in str(error.value)


def test_too_many_unreadable_pictures_are_refused(tmp_path, build):
    fill(tmp_path / "in/cat", RED, 4)
    fill(tmp_path / "in/dog", BLUE, 4)
    for k in range(3):
        (tmp_path / f"in/dog/x{k}.png").write_bytes(b"\x89PNG no picture")
    with pytest.raises(
        DatasetError, match=r"3 of 11 pictures cannot be read, more than the share of 0.2 .*max_unreadable_share"
    ):
        build()
    assert build(max_unreadable_share=0.3)[0]["account"] == {"read": 11, "good": 8, "quarantined": 3}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"size": 0}, "data.parameters.size=0: expected at least 1 pixel"),
        ({"channels": 4}, "expected 1 .grey. or 3"),
        ({"test_fraction": 1.5}, "a share between 0 and 1"),
        ({"background": 300}, "expected 0 .black. to 255"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, build, settings, text):
    with pytest.raises(DatasetError, match=text):
        build(**settings)


def test_pictures_of_which_none_is_left_to_test_on(tmp_path, build):
    fill(tmp_path / "in/cat", RED, 1)
    fill(tmp_path / "in/dog", BLUE, 1)
    with pytest.raises(DatasetError, match="one picture only, so there is none to test on"):
        build()


# ---- pixels --------------------------------------------------------------------------------------------------------


def decoded(path, channels=3, size=24, background=255):
    return image_folder.decode(path, size, channels, background)[0]


def half(top, bottom, mode="RGB"):
    array = np.full((24, 24, 3), bottom, np.uint8)
    array[:12] = top
    return Image.fromarray(array).convert(mode)


TURNED = {
    2: Image.FLIP_LEFT_RIGHT,
    3: Image.ROTATE_180,
    4: Image.FLIP_TOP_BOTTOM,
    5: Image.TRANSPOSE,
    6: Image.ROTATE_90,
    7: Image.TRANSVERSE,
    8: Image.ROTATE_270,
}


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", TURNED)
def test_rotated_pictures_are_upright(tmp_path, orientation, ending):
    """Each orientation of EXIF, checked with the picture itself: stored so, shown as it was."""
    right = half(240, 10)
    right.paste((200, 0, 0), (0, 0, 6, 24))
    exif = Image.Exif()
    exif[0x0112] = orientation
    right.transpose(TURNED[orientation]).save(
        tmp_path / f"x.{ending}", exif=exif, **({"quality": 95, "subsampling": 0} if ending == "jpg" else {})
    )
    assert np.abs(decoded(tmp_path / f"x.{ending}").astype(int) - np.asarray(right, int)).mean() < 6


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_is_counted_and_the_picture_is_read(tmp_path):
    half(240, 10).save(tmp_path / "x.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(20))
    image, _ = image_folder.decode(tmp_path / "x.jpg", 24, 3, 255)
    assert image[0, 0, 0] > 230
    assert image[23, 0, 0] < 20


def hidden_colour(mode):
    """A blue square on a ground of red that is wholly transparent."""
    array = np.zeros((24, 24, 4), np.uint8)
    array[..., 0] = 255
    array[8:16, 8:16] = (0, 0, 255, 255)
    picture = Image.fromarray(array)
    if mode == "RGBA":
        return picture, {}
    if mode == "LA":
        return picture.convert("LA"), {}
    if mode == "P":
        index = np.zeros((24, 24), np.uint8)
        index[8:16, 8:16] = 1
        made = Image.fromarray(index, "P")
        made.putpalette([255, 0, 0, 0, 0, 255])
        return made, {"transparency": 0}
    return picture.convert("RGB"), {"transparency": (255, 0, 0)}  # one colour is the transparent one


@pytest.mark.parametrize("background", [255, 0])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_is_laid_on_one_background(tmp_path, mode, background, channels):
    picture, options = hidden_colour(mode)
    picture.save(tmp_path / "x.png", **options)
    image = decoded(tmp_path / "x.png", channels, background=background)
    assert (image[:7] == background).all(), "the colour below the transparency is not seen"
    blue = [0, 0, 255] if mode != "LA" else [29] * 3
    assert (image[12, 12] == (blue if channels == 3 else 29)).all()


@pytest.mark.parametrize("background", [255, 0])
def test_half_transparent_is_mixed(tmp_path, background):
    Image.new("RGBA", (24, 24), (100, 100, 100, 128)).save(tmp_path / "x.webp", lossless=True)
    assert (
        abs(int(decoded(tmp_path / "x.webp", background=background)[0, 0, 0]) - (100 * 128 + background * 127) / 255)
        <= 1
    )


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_keep_their_brightness(tmp_path, ending, channels):
    values = np.full((24, 24), 32768, np.uint16)
    values[12:] = 65535
    values[:, :4] = 255  # nearly black: 1 of 255
    path = tmp_path / f"x.{ending}"
    if ending == "pgm":
        path.write_bytes(b"P5 24 24 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    image = decoded(path, channels)
    assert (image[4, 12] == 128).all()
    assert (image[20, 12] == 255).all()
    assert (image[4, 1] == 1).all()


@pytest.mark.parametrize(("brightest", "noted"), [(4095, True), (4096, False)])
def test_sixteen_bits_of_which_eight_keep_hardly_anything_are_noted(tmp_path, build, brightest, noted):
    for name in ("a", "b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for k in range(3):
            values = np.full((9, 9), brightest - k, np.uint16)
            values[0] = brightest
            Image.fromarray(values).save(tmp_path / "in" / name / f"{k}.png")
    assert [note[:27] for note in build()[0]["notes"] if "bits" in note] == ["6 pictures: of 16 bits, but"] * noted


@pytest.mark.parametrize("orientation", [1, 6])
def test_sixteen_bits_of_the_other_byte_order(tmp_path, orientation):
    """As ImageJ writes them."""
    tags = [(256, 4), (257, 2), (258, 16), (259, 1), (262, 1), (273, 134), (274, orientation), (277, 1), (278, 2)]
    entries = b"".join(struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in [*tags, (279, 16)])
    head = b"MM\0*" + struct.pack(">IH", 8, len(tags) + 1) + entries + bytes(4)
    (tmp_path / "a.tif").write_bytes(head + struct.pack(">8H", *[65535] * 4, *[0] * 4))
    image, remarks = image_folder.decode(tmp_path / "a.tif", 4, 1, 255)
    upright = image[..., 0] if orientation == 1 else image[..., 0][:, ::-1].T
    assert (upright[0].tolist(), upright[-1].tolist(), remarks) == ([255] * 4, [0] * 4, [])


def write_png(path, head, rows, *more):
    """`head`: width, height, bits, kind of colour (0: grey, 2: RGB, 4: grey and alpha, 6: RGB and alpha)."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    parts = [(b"IHDR", struct.pack(">IIBBBBB", *head, 0, 0, 0)), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


@pytest.mark.parametrize(
    ("kind", "values", "shown", "noted"),
    [
        (2, (4095, 4095, 0), (15, 15, 0), True),  # 12 bits, as cv2.imwrite leaves them
        (2, (4095, 4096, 0), (15, 16, 0), False),
        (6, (900, 900, 900, 65535), (3, 3, 3), True),
        (4, (4000, 65535), (15, 15, 15), True),
        (4, (5000, 65535), (19, 19, 19), False),
    ],
)
def test_sixteen_bits_with_colours_or_alpha_are_noted_too(tmp_path, kind, values, shown, noted):
    row = b"\0" + struct.pack(f">{len(values)}H", *values) * 4
    write_png(tmp_path / "a.png", (4, 4, 16, kind), row * 4)
    image, remarks = image_folder.decode(tmp_path / "a.png", 4, 3, 255)
    assert tuple(image[0, 0]) == shown
    assert [remark[:12] for remark in remarks] == ["of 16 bits, "] * noted


@pytest.mark.parametrize(("bits", "value"), [(1, 1), (2, 2), (4, 7), (8, 7)])
def test_a_grey_value_that_nothing_shows_of(tmp_path, bits, value):
    row = bytes([0, *[sum(value << shift for shift in range(0, 8, bits))] * bits])
    write_png(tmp_path / "a.png", (8, 2, bits, 0), row * 2, (b"tRNS", struct.pack(">H", value)))
    assert set(image_folder.decode(tmp_path / "a.png", 4, 3, 200)[0].ravel()) == {200}


def test_sixteen_bits_of_which_white_is_zero(tmp_path):
    """As X-rays may have it (TIFF's PhotometricInterpretation of 0)."""
    values = np.full((24, 24), 65535, np.uint16)
    values[12:] = 0
    Image.fromarray(values).save(tmp_path / "x.tif", tiffinfo={262: 0})
    image = decoded(tmp_path / "x.tif")
    assert (image[4] == 0).all() and (image[20] == 255).all()


def test_what_is_left_out_or_seen_of_says_why(tmp_path, build):
    fill(tmp_path / "in/cat", RED, 9)
    fill(tmp_path / "in/dog", BLUE, 9)
    (tmp_path / "in/cat/a.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    (tmp_path / "in/dog/a.jpg").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n")
    Image.new("RGBA", (12, 10), (230, 30, 30, 0)).save(tmp_path / "in/dog/b.png")
    manifest, _ = build()
    assert "it is HEIC, which is not read" in left_out(manifest)["cat/a.jpg"]
    assert "it is a pointer of Git LFS" in left_out(manifest)["dog/a.jpg"]
    assert "1 pictures: wholly transparent, so nothing of them is seen" in manifest["notes"]


def test_sixteen_bits_with_a_transparent_value(tmp_path):
    values = np.full((24, 24), 40000, np.uint16)
    values[:8] = 5
    Image.fromarray(values).save(tmp_path / "x.png", transparency=5)
    assert (decoded(tmp_path / "x.png")[:7] == 255).all()
    assert (decoded(tmp_path / "x.png")[12] == 156).all()


@pytest.mark.parametrize(
    ("dtype", "text"), [(np.float32, "floating-point numbers"), (np.int32, "whole numbers of 32 bits")]
)
def test_pictures_whose_range_is_not_known_are_left_out_by_name(tmp_path, build, dtype, text):
    fill(tmp_path / "in/cat", RED, 5)
    fill(tmp_path / "in/dog", BLUE, 5)
    Image.fromarray(np.full((12, 12), 0.5, np.float32).astype(dtype)).save(tmp_path / "in/dog/x.tif")
    manifest, _ = build()
    assert f"its values are {text}, whose black and white are not known" in left_out(manifest)["dog/x.tif"]


@pytest.mark.parametrize(
    ("mode", "ending"),
    [("P", "png"), ("CMYK", "jpg"), ("CMYK", "tif"), ("YCbCr", "jpg"), ("P", "gif"), ("1", "png"), ("L", "png")],
)
def test_other_modes_show_what_a_viewer_shows(tmp_path, mode, ending):
    half((30, 30, 230), (250, 250, 250)).convert(mode).save(tmp_path / f"x.{ending}")
    top, bottom = (decoded(tmp_path / f"x.{ending}")[row].mean(axis=0) for row in (4, 20))
    assert (bottom > 235).all()
    if mode in ("1", "L"):
        assert top.mean() < 80
    else:
        assert top[2] > 190
        assert top[:2].max() < 75


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif"])
def test_of_an_animated_picture_the_first_frame_is_taken_and_counted(tmp_path, build, ending):
    fill(tmp_path / "in/cat", RED, 4)
    fill(tmp_path / "in/dog", BLUE, 4)
    frames = [Image.new("RGB", (12, 12), colour) for colour in (BLUE, RED, GREEN)]
    frames[0].save(tmp_path / f"in/dog/x.{ending}", save_all=True, append_images=frames[1:])
    (tmp_path / f"in/dog/x.{ending}").rename(tmp_path / "in/dog/x.png")
    assert abs(decoded(tmp_path / "in/dog/x.png").astype(int) - BLUE).max() < 12
    assert build()[0]["notes"] == ["1 pictures: of several frames the first one was taken"]


# ---- made inputs ---------------------------------------------------------------------------------------------------


def pictures_of_all_kinds(folder):
    """Bytes of small pictures in each kind and mode that can be written."""
    found = []
    for mode in ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16", "F", "I"):
        picture = (
            Image.fromarray(np.full((5, 4), 1000, np.uint16))
            if mode == "I;16"
            else Image.new("RGB", (4, 5), BLUE).convert("L" if mode in "FI" else "RGB").convert(mode)
        )
        for ending in ("png", "jpg", "webp", "gif", "bmp", "tif", "ppm"):
            path = folder / f"x.{ending}"
            try:
                picture.save(path)
            except (OSError, ValueError, KeyError):
                continue  # this kind has no such mode
            found.append((ending, path.read_bytes()))
    return found


@pytest.mark.filterwarnings("ignore")
def test_whatever_the_files_hold_read_is_good_and_left_out(tmp_path, capsys):
    """5,000 files made by a seeded generator: pictures whole, cut, spoilt, misnamed, hidden, linked,
    nested. All are told of."""
    rng = random.Random(0)
    kinds = pictures_of_all_kinds(tmp_path)
    endings = ["png", "jpg", "webp", "gif", "bmp", "tif", "ppm", "PNG", "txt", ""]
    total = 0
    for number in range(50):
        root = tmp_path / f"in{number}"
        fill(root / "cat", RED, 2)
        fill(root / "dog", BLUE, 2)
        for k in range(100):
            ending, content = rng.choice(kinds)
            how = rng.random()
            if how < 0.3:
                content = content[: rng.randrange(len(content))]
            elif how < 0.7:
                content = bytearray(content)
                for _ in range(rng.randrange(1, 6)):
                    content[rng.randrange(len(content))] = rng.randrange(256)
            if rng.random() < 0.2:
                ending = rng.choice(endings)
            folder = root / rng.choice(["cat", "dog", "cat/below", "dog/.hidden", "dog/[a]*{b}", "."])
            folder.mkdir(exist_ok=True)
            path = folder / f"{rng.choice(['', '.', '_', '%20', 'ü '])}{k}{'.' * bool(ending)}{ending}"
            if rng.random() < 0.05:
                path.symlink_to(rng.choice(["nowhere", "000.png", "../cat/001.png", "." if folder == root else ".."]))
            else:
                path.write_bytes(content)
        out = tmp_path / f"out{number}"
        out.mkdir()
        manifest = image_folder.build(out, str(root), **PLAIN | {"max_unreadable_share": 1.0})
        files = sum(not path.is_dir() or path.is_symlink() for path in root.rglob("*"))
        total += files
        assert files == sum(manifest["rows"].values()) + len(manifest["left_out"])
        assert len(left_out(manifest)) == len(manifest["left_out"]), "each file once"
        assert all(left_out(manifest).values()), "each with a reason"
    assert total == 50 * 104


def noise(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)).save(path)


def test_pictures_of_both_parts_and_of_two_classes_are_named(tmp_path, build):
    for number in range(8):
        noise(tmp_path / f"in/train/{'ab'[number % 2]}/{number}.png", number)
        noise(tmp_path / f"in/val/{'ab'[number % 2]}/{number}.png", number if number < 3 else 100 + number)
    manifest, _ = build()
    told = [note for note in manifest["notes"] if "the same once" in note]
    assert told == [
        "3 of 8 test pictures are in the training part, too (the same once they are scaled): the accuracy says less "
        "than it seems to"
    ]
    noise(tmp_path / "in/train/b/copy.bmp", 0)
    manifest, _ = build()
    assert "3 pictures are in more than one class (the same once they are scaled)" in manifest["notes"]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("Cat", "cat", "dog"), "'Cat' and 'cat'"),
        (("cat ", "cat", "dog"), "'cat' and 'cat '"),
        (("\u00fc", "u\u0308", "dog"), "'u\u0308' and '\u00fc'"),
        (("1", "01", "10"), "'01' and '1'"),
        (("hot-dog", "hot_dog", "dog"), "'hot-dog' and 'hot_dog'"),
        (("test tube", "blood test", "train"), None),
        (("cat", "cats", "dog"), None),
    ],
)
def test_classes_whose_names_are_nearly_the_same_are_named(tmp_path, build, names, told):
    for number, name in enumerate(names):
        for seed in range(4):
            noise(tmp_path / "in" / name / f"{seed}.png", 10 * number + seed)
    manifest, _ = build()
    expected = [f"taken for different classes, though their names are nearly the same: {told}"] if told else []
    assert manifest["notes"] == expected


@pytest.mark.parametrize(
    "folders",
    [
        ["HAM10000_images_part_1", "HAM10000_images_part_2"],
        ["images_001/images", "images_002/images"],
        ["fold1", "fold2"],
    ],
)
def test_pieces_of_a_dataset_are_no_classes(tmp_path, build, folders):
    for folder, colour in zip(folders, (RED, BLUE), strict=True):
        fill(tmp_path / "in" / folder, colour, 4)
    with pytest.raises(DatasetError, match="are called like pieces of one dataset, not like classes"):
        build()
    assert len(build(split="none")[0]["classes"]) == 2


@pytest.mark.parametrize("folders", [["labels", "no_labels"], ["cat/images", "dog/images"], ["sight", "sgt"]])
def test_words_that_only_look_like_masks(tmp_path, build, folders):
    for number, name in enumerate(folders):
        for k in range(4):
            noise(tmp_path / "in" / name / f"{k}.png", 10 * number + k)
    assert len(build()[0]["classes"]) == 2


@pytest.mark.parametrize(
    ("folders", "files", "said"),
    [
        (["train2017", "val2017"], ["annotations/instances_val2017.json"], "annotations/instances_val2017.json looks"),
        (["train/images", "valid/images"], ["train/labels/000.txt"], "train/labels/000.txt looks like boxes"),
        (["JPEGImages"], ["Annotations/000.xml"], "Annotations/000.xml looks like boxes or masks of COCO, YOLO or VOC"),
        ([], ["train.zip", "test.tar"], "Packed files are not read: unpack test.tar, train.zip"),
    ],
)
def test_layouts_of_boxes_and_packed_ones_say_so(tmp_path, build, folders, files, said):
    for name in folders:
        fill(tmp_path / "in" / name, RED, 3)
    for name in files:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text("0 .5 .5 .1 .1\n")
    with pytest.raises(DatasetError) as error:
        build()
    assert said in str(error.value)


def test_masks_beside_their_pictures_are_noted(tmp_path, build):
    fill(tmp_path / "in/benign", RED, 4)
    fill(tmp_path / "in/normal", BLUE, 4)
    for k in range(3):
        Image.new("L", (9, 9)).save(tmp_path / f"in/benign/00{k}_mask.png")
    Image.new("L", (9, 9)).save(tmp_path / "in/normal/death_mask.png")
    assert (
        "3 pictures are called like masks of others (x_mask.png beside x.png), and are taken, too"
        in build()[0]["notes"]
    )


def test_folders_in_a_class_are_noted(tmp_path, build):
    for seed, name in enumerate(("animals/cat", "animals/dog", "plants")):
        for number in range(4):
            noise(tmp_path / "in" / name / f"{number}.png", 10 * seed + number)
    manifest, _ = build()
    assert manifest["classes"] == ["animals", "plants"]
    assert manifest["notes"] == ["all pictures below the folder of a class are of that class: animals (cat, dog)"]


def test_one_folder_too_many_and_labels_in_a_table_say_what_to_do(tmp_path, build):
    for name in ("cat", "dog"):
        fill(tmp_path / "in/train/train" / name, RED, 2)
        fill(tmp_path / "in/test/test" / name, RED, 2)
    with pytest.raises(DatasetError, match="move cat, dog from .*in/train/train into .*in/train$"):
        build()
    (tmp_path / "in").rename(tmp_path / "before")
    fill(tmp_path / "in/pictures", RED, 2)
    (tmp_path / "in/labels.csv").write_text("000.png,cat\n")
    with pytest.raises(DatasetError, match="a table of labels is not read: move the pictures into a folder for each"):
        build()

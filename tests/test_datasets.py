"""Datasets: right values, whole or not at all, and downloads that survive cuts and refuse corrupt files."""

import gzip
import hashlib
import http.server
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import threading

import numpy as np
import pytest
import yaml
from PIL import Image

from cookbook import ROOT, UserError
from cookbook.prepare import datasets

sys.path.insert(0, str(ROOT / "data"))
import _common


def build(name, out, status=0, **parameters):
    words = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in parameters.items()]
    done = subprocess.run([sys.executable, ROOT / f"data/{name}.py", out, *words], capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads((out / "manifest.json").read_text()) if status == 0 else done.stdout + done.stderr


def load(out, split):
    return np.load(out / f"{split}_images.npy"), np.load(out / f"{split}_labels.npy")


IMAGES = {"num_train_rows": 300, "num_test_rows": 40, "size": 16, "num_classes": 4, "seed": 3}


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    first, second = build("images", tmp_path / "a", **IMAGES), build("images", tmp_path / "b", **IMAGES)
    assert first["files"] == second["files"]
    other = build("images", tmp_path / "c", **IMAGES | {"seed": 4})
    assert other["files"]["train_images.npy"] != first["files"]["train_images.npy"]


def test_a_longer_dataset_begins_like_a_shorter_one(tmp_path):
    build("images", tmp_path / "a", **IMAGES)
    build("images", tmp_path / "b", **IMAGES | {"num_train_rows": 1500})
    (short, short_labels), (long, long_labels) = load(tmp_path / "a", "train"), load(tmp_path / "b", "train")
    assert short.shape == (300, 16, 16, 3)
    assert long.shape == (1500, 16, 16, 3)
    assert (long[:300] == short).all()
    assert (long_labels[:300] == short_labels).all()


def test_classes_have_the_structure_that_is_promised(tmp_path):
    """The direction of the strongest frequency tells the class; no single pixel does."""
    build("images", tmp_path / "a", **IMAGES | {"size": 32, "num_train_rows": 400})
    images, labels = load(tmp_path / "a", "train")
    spectrum = np.abs(np.fft.rfft2(images.mean(axis=3) - images.mean(axis=(1, 2, 3))[:, None, None]))
    y, x = np.divmod(spectrum.reshape(len(images), -1).argmax(axis=1), spectrum.shape[2])
    angle = np.arctan2(np.where(y > 16, y - 32, y), x) % np.pi
    found = np.round(angle / (np.pi / 4)).astype(int) % 4
    assert (found == labels).mean() > 0.9
    brightness = [images[labels == k].mean() for k in range(4)]
    assert max(brightness) - min(brightness) < 10


def test_a_manifest_says_what_is_there(tmp_path):
    manifest = build("images", tmp_path / "a", **IMAGES)
    assert manifest["rows"] == {"train": 300, "test": 40}
    assert manifest["schema"]["images"] == {"dtype": "uint8", "shape": ["rows", 16, 16, 3], "max_value": 255}
    assert datasets.check(tmp_path / "a") == manifest


@pytest.mark.parametrize("harm", ["cut", "changed", "missing", "manifest"])
def test_a_damaged_folder_is_refused(tmp_path, harm):
    out = tmp_path / "a"
    build("images", out, **IMAGES)
    path = out / "train_labels.npy"
    content = path.read_bytes()
    if harm == "cut":
        path.write_bytes(content[:10])
    elif harm == "changed":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm == "missing":
        path.unlink()
    else:
        (out / "manifest.json").write_text("{")
    expected = {
        "cut": "has 10 bytes, expected",
        "changed": "has other content",
        "missing": "is missing",
        "manifest": "manifest.json cannot be read",
    }
    with pytest.raises(UserError, match=expected[harm]) as error:
        datasets.check(out)
    assert f"rm -r {out}" in str(error.value)


def test_a_dataset_that_another_user_built_for_himself_is_not_called_damaged(tmp_path, monkeypatch):
    def refused(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(datasets, "check", refused)
    monkeypatch.setattr(datasets, "fingerprint", lambda *args: "x")
    (tmp_path / "images-x").mkdir()
    with pytest.raises(
        UserError, match=r"cannot be used: Permission denied \(.*\); set cache_dir=\.\.\. or COOKBOOK_CACHE"
    ):
        datasets.ensure({"builder": "images", "parameters": {}}, tmp_path, "", None, tmp_path / "log", "x")
    monkeypatch.undo()
    (tmp_path / "manifest.json").touch()
    monkeypatch.setattr(datasets.Path, "read_text", refused)
    with pytest.raises(PermissionError):
        datasets.check(tmp_path)


def test_a_failed_build_leaves_nothing(tmp_path):
    text = build(
        "image_folder",
        tmp_path / "a",
        status=1,
        path=str(tmp_path / "nowhere"),
        **FOLDER,
    )
    assert "No such file or directory" in text
    assert "Traceback" not in text
    assert list(tmp_path.iterdir()) == []


def test_the_fingerprint_follows_code_and_parameters_not_places(monkeypatch):
    one = datasets.fingerprint("images", IMAGES)
    assert datasets.fingerprint("images", IMAGES | {"seed": 9}) != one
    assert datasets.fingerprint("images", IMAGES | {"mirrors": ["x"]}) == one
    assert [path.name for path in datasets.builder_files("fashion_mnist")] == [
        "fashion_mnist.py",
        "_common.py",
        "mnist.py",
    ]


# ---- pictures of the user ------------------------------------------------------------------------------------------

FOLDER = {
    "split": "auto",
    "size": 8,
    "channels": 3,
    "background": 255,
    "test_fraction": 0.25,
    "split_seed": 0,
    "max_unreadable_share": 0.2,
}


def make_pictures(root, counts):
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            colour = {"red": (200, 0, 0), "blue": (0, 0, 200)}.get(name, (0, 200, 0))
            Image.new("RGB", (12, 10), colour).save(root / name / f"{number}.{'jpg' if number % 2 else 'png'}")


def test_pictures_become_arrays(tmp_path):
    make_pictures(tmp_path / "in", {"red": 8, "blue": 4})
    manifest = build("image_folder", tmp_path / "out", path=str(tmp_path / "in"), **FOLDER)
    assert manifest["classes"] == ["blue", "red"]
    assert manifest["rows"] == {"train": 9, "test": 3}
    images, labels = load(tmp_path / "out", "train")
    assert (images[labels == 1].mean(axis=(0, 1, 2)).round() == [200, 0, 0]).sum() >= 2


def test_unreadable_pictures_are_listed_and_left_out(tmp_path):
    make_pictures(tmp_path / "in", {"red": 5, "blue": 5})
    (tmp_path / "in/red/broken.png").write_bytes(b"\x89PNG no picture")
    manifest = build("image_folder", tmp_path / "out", path=str(tmp_path / "in"), **FOLDER)
    assert [entry["file"] for entry in manifest["left_out"]] == ["red/broken.png"]
    assert sum(manifest["rows"].values()) == 10


def test_a_class_with_one_picture_is_trained_on_but_not_tested(tmp_path):
    make_pictures(tmp_path / "in", {"red": 5, "blue": 1})
    manifest = build("image_folder", tmp_path / "out", path=str(tmp_path / "in"), **FOLDER)
    assert manifest["notes"][0] == "one picture only, so trained on but not tested: blue"
    assert 0 in load(tmp_path / "out", "train")[1]
    assert 0 not in load(tmp_path / "out", "test")[1]


def test_given_parts_are_kept(tmp_path):
    make_pictures(tmp_path / "in/train", {"red": 3, "blue": 3})
    make_pictures(tmp_path / "in/test", {"red": 1, "blue": 1})
    assert build("image_folder", tmp_path / "out", path=str(tmp_path / "in"), **FOLDER)["rows"] == {
        "train": 6,
        "test": 2,
    }


@pytest.mark.parametrize(
    ("prepare", "text"),
    [
        (
            lambda root: make_pictures(root, {"red": 3}),
            "has 1 folders with pictures (red); expected at least 2, one per class",
        ),
        (
            lambda root: [(root / n).mkdir(parents=True) or (root / n / "x.png").write_text("x") for n in "ab"],
            "has no readable picture (2 files were unreadable)",
        ),
        (lambda root: root.write_text("a file"), "Not a directory; data.path must be a readable folder"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, prepare, text):
    prepare(tmp_path / "in")
    assert text in build("image_folder", tmp_path / "out", status=1, path=str(tmp_path / "in"), **FOLDER)


# ---- downloads, from a server that misbehaves ----------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; `faults` are used up one per request: cut (half the bytes), corrupt, redirect, gone."""

    def __init__(self, files, faults=()):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.requests = files, list(faults), []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name, wanted = self.path.rpartition("/")[2], self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        fault = self.server.faults.pop(0) if self.server.faults else None
        if fault == "redirect":
            self.send_response(302)
            self.send_header("Location", f"/elsewhere/{name}")
            self.end_headers()
            return
        if fault == "gone" or name not in self.server.files:
            self.send_error(404)
            return
        content = self.server.files[name]
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        body = content[start:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "cut":
            body = body[: len(body) // 2]
        elif fault == "corrupt":
            body = bytes(len(body))
        self.wfile.write(body)

    def log_message(self, *args):
        return


@pytest.fixture
def serve():
    servers = []

    def start(files, faults=()):
        servers.append(Server(files, faults))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


def fetch(server, folder, **options):
    return _common.download([server.url], "file.bin", MD5, folder, **options)


def test_a_cut_download_is_resumed_where_it_broke_off(tmp_path, serve):
    server = serve({"file.bin": CONTENT}, ["cut", "cut"])
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.requests] == [None, "bytes=150000-", "bytes=225000-"]
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]


def test_the_next_run_goes_on_where_the_last_one_was_killed(tmp_path, serve):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    server = serve({"file.bin": CONTENT})
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.requests == [("/file.bin", "bytes=1000-")]


def test_a_corrupt_download_is_fetched_again_from_the_start(tmp_path, serve):
    server = serve({"file.bin": CONTENT}, ["corrupt"])
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.requests] == [None, None]


def test_a_file_that_stays_corrupt_is_an_error_and_never_gets_its_name(tmp_path, serve):
    server = serve({"file.bin": CONTENT[:-1] + b"x"})
    with pytest.raises(_common.DatasetError, match=f"MD5 is .*, expected {MD5}"):
        fetch(server, tmp_path, attempts=2)
    assert not (tmp_path / "file.bin").exists()


def test_a_redirect_is_followed(tmp_path, serve):
    server = serve({"file.bin": CONTENT}, ["redirect"])
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert [path for path, _ in server.requests] == ["/file.bin", "/elsewhere/file.bin"]


def test_the_next_mirror_is_tried(tmp_path, serve):
    bad, good = serve({}), serve({"file.bin": CONTENT})
    assert _common.download([bad.url, good.url], "file.bin", MD5, tmp_path).read_bytes() == CONTENT


def test_a_file_that_is_there_is_not_fetched(tmp_path, serve):
    server = serve({"file.bin": CONTENT})
    (tmp_path / "file.bin").write_bytes(CONTENT)
    fetch(server, tmp_path)
    assert server.requests == []


def test_without_network_the_error_says_what_to_do(tmp_path, serve):
    server = serve({})
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(_common.DatasetError) as error:
        _common.download([url], "file.bin", MD5, tmp_path, attempts=2)
    assert "Connection refused" in str(error.value)
    assert f"put the file at {tmp_path / 'file.bin'} by hand" in str(error.value)


def idx(array):
    header = b"\0\0\x08" + bytes([array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(header + array.tobytes())


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files_become_arrays(tmp_path, serve, name):
    random = np.random.default_rng(1)
    arrays = {
        prefix: (random.integers(256, size=(n, 28, 28), dtype=np.uint8), random.integers(10, size=n, dtype=np.uint8))
        for prefix, n in (("train", 30), ("t10k", 10))
    }
    files = {}
    for prefix, (images, labels) in arrays.items():
        files[f"{prefix}-images-idx3-ubyte.gz"], files[f"{prefix}-labels-idx1-ubyte.gz"] = idx(images), idx(labels)
    md5 = {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
    server = serve(files, ["cut"])
    manifest = build(name, tmp_path / "out", mirrors=[server.url], md5=md5, download_dir=str(tmp_path / "downloads"))
    assert manifest["rows"] == {"train": 30, "test": 10}
    images, labels = load(tmp_path / "out", "train")
    assert (images[..., 0] == arrays["train"][0]).all()
    assert (labels == arrays["train"][1]).all()


def cifar_archive(meta=None):
    random, out = np.random.default_rng(2), io.BytesIO()
    content = {
        f"data_batch_{k}": {"data": random.integers(256, size=(4, 3072), dtype=np.uint8), "labels": [k] * 4}
        for k in range(1, 6)
    }
    content["test_batch"] = {"data": random.integers(256, size=(2, 3072), dtype=np.uint8), "labels": [0, 9]}
    content["batches.meta"] = meta or {"label_names": [f"class {k}" for k in range(10)]}
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, value in content.items():
            data = pickle.dumps(value, protocol=2)
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue(), content


def test_cifar_batches_become_arrays(tmp_path, serve):
    archive, content = cifar_archive()
    server = serve({"cifar-10-python.tar.gz": archive})
    md5 = {"cifar-10-python.tar.gz": hashlib.md5(archive).hexdigest()}
    manifest = build(
        "cifar10", tmp_path / "out", mirrors=[server.url], md5=md5, download_dir=str(tmp_path / "downloads")
    )
    assert manifest["rows"] == {"train": 20, "test": 2}
    images, labels = load(tmp_path / "out", "train")
    assert images[0, 0, 1, 2] == content["data_batch_1"]["data"][0, 2 * 1024 + 1]  # row 0, column 1, channel blue
    assert labels.tolist() == [k for k in range(1, 6) for _ in range(4)]


class Evil:
    def __reduce__(self):
        return os.system, ("touch should-not-exist",)


def test_a_pickle_that_calls_something_is_refused(tmp_path, serve):
    archive, _ = cifar_archive(meta=Evil())
    server = serve({"cifar-10-python.tar.gz": archive})
    md5 = {"cifar-10-python.tar.gz": hashlib.md5(archive).hexdigest()}
    text = build(
        "cifar10", tmp_path / "out", status=1, mirrors=[server.url], md5=md5, download_dir=str(tmp_path / "downloads")
    )
    assert "the archive wants to load posix.system" in text


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_downloads_have_published_checksums(name):
    parameters = yaml.safe_load((ROOT / f"conf/data/{name}.yaml").read_text())["parameters"]
    assert parameters["mirrors"]
    assert parameters["md5"]
    assert all(len(value) == 32 and int(value, 16) for value in parameters["md5"].values())

"""runrecord/storage.py: checkpoints in a folder and in a bucket of an S3 server on loopback, with a proxy between."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from random import Random

import psutil
import pytest

import storage
from cookbook import UserError, systems
from cookbook.access import to_store
from cookbook.settings import compose_recipe
from runrecord import read_records
from storage import Checkpoints, Damaged, File, Retries, StorageError, open_folder
from tests.helpers import CLEAN, ROOT, Driver, free_port, plan, run_cookbook
from tests.object_store import KEYS, Store, s3_server
from tests.test_contracts import SHORT, digests


def state_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def written(checkpoints, number, size=1000):
    with checkpoints.save(0, number) as folder:
        (folder / "sub").mkdir()
        (folder / "sub/.metadata").write_bytes(b"about")
        (folder / "state").write_bytes(bytes([number % 256]) * size)
    checkpoints.wait()


class Told:
    def __init__(self):
        self.found = []

    def checkpoint(self, path, epoch, step):
        self.found.append((str(path), epoch, step))


def test_two_are_kept_and_the_newest_is_read(tmp_path):
    told = Told()
    checkpoints = Checkpoints(tmp_path / "kept", tmp_path, told)
    assert checkpoints.last() is None
    for number in (1, 9, 10):
        written(checkpoints, number)
    assert checkpoints.names() == ["epoch-00000-step-00000009", "epoch-00000-step-00000010"]
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == checkpoints.names()
    assert told.found[-1] == (f"{tmp_path}/kept/epoch-00000-step-00000010", 0, 10)
    content = state_of(checkpoints.last())
    assert content.keys() == {"checkpoint.json", "state", "sub/.metadata"}
    assert content["state"] == b"\n" * 1000
    assert json.loads(content["checkpoint.json"])["parts"]["sub/.metadata"]["bytes"] == 5


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "state").write_bytes(b"\x02" * 999), "state has 999 bytes, expected 1,000"),
        (lambda folder: (folder / "state").write_bytes(b"\x01" * 1000), "state has other content than when"),
        (lambda folder: (folder / "sub/.metadata").unlink(), "sub/.metadata is missing"),
        (lambda folder: (folder / "checkpoint.json").write_text("{"), "checkpoint.json cannot be read"),
        (lambda folder: (folder / "checkpoint.json").write_text("[]"), "checkpoint.json cannot be read"),
    ],
    ids=["cut", "altered", "missing", "marker", "other"],
)
def test_a_damaged_one_is_named_and_the_one_before_is_taken(tmp_path, capfd, spoil, reason):
    checkpoints = Checkpoints(tmp_path / "kept", tmp_path)
    written(checkpoints, 1)
    written(checkpoints, 2)
    spoil(tmp_path / "kept/epoch-00000-step-00000002")
    with pytest.raises(Damaged, match=reason):
        checkpoints.fetch("epoch-00000-step-00000002")
    assert checkpoints.last() == tmp_path / "kept/epoch-00000-step-00000001"
    assert f"epoch-00000-step-00000002 is damaged: {reason}" in capfd.readouterr().out
    written(checkpoints, 2)  # the training comes there again
    assert state_of(checkpoints.last())["state"] == b"\x02" * 1000
    assert checkpoints.names() == ["epoch-00000-step-00000001", "epoch-00000-step-00000002"]


def test_only_damaged_ones_are_no_reason_to_begin_afresh(tmp_path):
    checkpoints = Checkpoints(tmp_path / "kept", tmp_path)
    for number in (1, 2):
        written(checkpoints, number)
        (tmp_path / f"kept/epoch-00000-step-{number:08d}/state").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(StorageError, match="every checkpoint in .* is damaged .*-step-00000002: state has 0 bytes"):
            checkpoints.last()


KILLED = """
import os, sys
from pathlib import Path
import storage
folder, when = Path(sys.argv[1]), sys.argv[2]
checkpoints = storage.Checkpoints(folder, folder)
def put(path, name, put=checkpoints.folder.put):
    if name.endswith(when):
        os.kill(os.getpid(), 9)
    put(path, name)
checkpoints.folder.put = put
with checkpoints.save(0, 2) as made:
    (made / "a").write_bytes(b"2" * 1000)
    (made / "b").write_bytes(b"2" * 1000)
"""


@pytest.mark.parametrize("when", ["/a", "/b", "checkpoint.json"])
def test_killed_between_the_parts_of_a_folder(tmp_path, when):
    checkpoints = Checkpoints(tmp_path / "kept", tmp_path)
    written(checkpoints, 1)
    words = [sys.executable, "-c", KILLED, tmp_path / "kept", when]
    assert subprocess.run(words, env={**CLEAN, "PYTHONPATH": str(ROOT / "runrecord")}).returncode == -9
    assert checkpoints.names() == ["epoch-00000-step-00000001"]
    assert checkpoints.last().name == "epoch-00000-step-00000001"
    written(checkpoints, 2)
    written(checkpoints, 3)
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [
        f"epoch-00000-step-0000000{number}" for number in (2, 3)
    ]


@pytest.mark.parametrize("exchange", [False, True])
def test_several_write_one_together(tmp_path, exchange):
    """Rank 0 comes first and waits; a note of an earlier start does not count. Where all exchange, the disks differ."""
    barrier, all_facts = threading.Barrier(2, timeout=60), {}

    def exchanged(rank):
        def exchange(own):
            all_facts[rank] = own
            barrier.wait()
            return [all_facts[0], all_facts[1]]

        return exchange

    folder = tmp_path / "kept/epoch-00000-step-00000004"
    folder.mkdir(parents=True)
    (folder / ".rank1-before.json").write_text('{"part1": {"bytes": 3, "sha256": "of an earlier start"}}')
    seen = []

    def write(rank):
        one = Checkpoints(
            tmp_path / "kept", tmp_path, None, rank, 2, "now", exchange=exchanged(rank) if exchange else None
        )
        with one.save(0, 4) as partial:
            (partial / f"part{rank}").write_text(f"of {rank}")
            if rank:
                time.sleep(0.3)
                seen.append(one.names())

    threads = [threading.Thread(target=write, args=[rank]) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert seen == [[]], "no marker while a writer is not ready"
    marker = json.loads((folder / "checkpoint.json").read_text())
    assert set(marker["parts"]) == {"part0", "part1"}
    assert Checkpoints(tmp_path / "kept", tmp_path).last() == folder


def test_a_writer_that_does_not_come_is_named(tmp_path):
    alone = Checkpoints(tmp_path / "kept", tmp_path, None, 0, 2, "now", others_seconds=0.2)
    with (
        pytest.raises(StorageError, match=r"1 of 2 writers have not brought their parts .*\.rank1-now.json is missing"),
        alone.save(0, 1) as folder,
    ):
        (folder / "part0").write_text("x")
    assert alone.names() == []


def test_retries_end_and_do_not_hide_bugs():
    tries = []

    def fails(error):
        def work():
            tries.append(error)
            raise error

        return work

    retries = Retries(4, 0.001, 0.002)
    with pytest.raises(StorageError, match="reading x: given up after 4 tries in 0 s: TimeoutError: slow"):
        retries.call("reading x", fails(TimeoutError("slow")))
    assert len(tries) == 4
    for error, text in ((PermissionError("no"), "denies it"), (OSError(28, "full"), "make room")):
        tries.clear()
        with pytest.raises(StorageError, match=text):
            retries.call("reading x", fails(error))
        assert len(tries) == 1
    tries.clear()
    with pytest.raises(ZeroDivisionError):
        retries.call("reading x", fails(ZeroDivisionError()))
    assert len(tries) == 1


@pytest.mark.parametrize("address", ["s3://", "s3://user:secret@bucket/x", "ftp://bucket/x", "s3://bucket:80/x"])
def test_what_is_no_address(address):
    with pytest.raises(StorageError, match="is no address of an object store") as caught:
        open_folder(address)
    assert "secret" not in str(caught.value)


def test_without_its_driver_the_line_that_installs_it_is_named():
    script = "import sys, storage; sys.modules['fsspec'] = None; storage.open_folder('s3://bucket/x')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**CLEAN, "PYTHONPATH": str(ROOT / "runrecord")},
    )
    assert "s3:// needs s3fs, which this Python lacks" in done.stderr
    assert f"uv pip install --python {sys.executable} s3fs" in done.stderr


# ---- an object store


@pytest.fixture(scope="module")
def server(tools, tmp_path_factory):
    with s3_server(tools, tmp_path_factory.mktemp("s3")) as address:
        yield address


@pytest.fixture
def store(server):
    made = Store(server)
    yield made
    made.close()


@pytest.fixture
def bucket(store, request):
    name = "of-" + re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:50].strip("-")
    store.make_bucket(name)
    return name


BESIDE = """
import json, sys, time
from pathlib import Path
import storage
place, local, numbers, size = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
with storage.Checkpoints(place, local, retries=storage.Retries(5, 0.05, 0.2)) as checkpoints:
    last = checkpoints.last()
    print("last", last and last.name, last and (last / "state").read_bytes()[:1])
    for number in numbers:
        with checkpoints.save(0, number) as folder:
            (folder / "a").write_bytes(b"a" * 10)
            (folder / "state").write_bytes(str(number).encode() * size)
        print("saved", number, flush=True)
"""


class Trainer:
    """A program that saves checkpoints in a bucket."""

    def __init__(self, python, store, folder):
        self.python, self.folder = python, folder
        self.environment = {**CLEAN, **store.environment, "PYTHONPATH": str(ROOT / "runrecord")}

    def words(self, place, numbers, size):
        return [self.python, "-c", BESIDE, place, self.folder, json.dumps(numbers), str(size)]

    def run(self, place, numbers=(), size=1000):
        words = self.words(place, list(numbers), size)
        return subprocess.run(words, capture_output=True, text=True, env=self.environment)

    def start(self, place, numbers, size=1000):
        return subprocess.Popen(
            self.words(place, list(numbers), size), stdout=subprocess.PIPE, text=True, env=self.environment
        )


@pytest.fixture
def trainer(recipe_python, store, tmp_path):
    return Trainer(recipe_python("dask"), store, tmp_path / "local")


def test_a_bucket_that_throttles_and_cuts(trainer, store, bucket):
    """Sent all the same, parts first and the marker last; two are kept, and nothing stays on this machine."""
    store.will("busy", r"PUT .*epoch-00000-step-00000001/state", times=2)
    store.will("cut", r"PUT .*epoch-00000-step-00000002/state", times=2)
    store.will("busy", r"GET .*list-type", times=1)
    done = trainer.run(f"s3://{bucket}/run", (1, 2, 3), size=200_000)
    assert done.returncode == 0, done.stderr
    parts = ("a", "checkpoint.json", "state")
    names = [f"run/epoch-00000-step-0000000{number}/{part}" for number in (2, 3) for part in parts]
    assert store.names(bucket) == names
    sent = [line.split("step-")[1] for line in store.asked if line.startswith("PUT ")]
    assert sent == [
        *("00000001/a", *["00000001/state"] * 3, "00000001/checkpoint.json"),
        *("00000002/a", *["00000002/state"] * 3, "00000002/checkpoint.json"),
        *("00000003/a", "00000003/state", "00000003/checkpoint.json"),
    ]
    assert not trainer.folder.exists() or list(trainer.folder.iterdir()) == []
    store.will("cut", r"GET .*state", times=1)
    done = trainer.run(f"s3://{bucket}/run")
    assert "last epoch-00000-step-00000003 b'3'" in done.stdout, done.stderr


@pytest.mark.full
@pytest.mark.parametrize(
    ("how", "text", "most"),
    [("busy", "given up after 5 tries", 5), ("deny", "the storage denies it", 1), ("cut", "given up after 5 tries", 5)],
)
def test_a_bucket_that_takes_nothing(trainer, store, bucket, tmp_path, how, text, most):
    """The trainer is told at its next save; the checkpoint stays here, and the line in the error sends it."""
    assert trainer.run(f"s3://{bucket}/run", [1]).returncode == 0
    fault = store.will(how, r"PUT .*epoch-00000-step-00000002/state")
    done = trainer.run(f"s3://{bucket}/run", [2, 3, 4])
    assert done.returncode == 1
    assert "saved 2" in done.stdout
    assert "saved 4" not in done.stdout
    assert text in done.stderr
    assert most <= fault.seen <= 2 * most, "aiohttp itself sends a request again when a kept connection ends"
    assert "not-a-secret-0815" not in done.stdout + done.stderr
    left, command = re.search(r"It is not lost: it lies on \S+ in (\S+); to send it: (.+)", done.stderr).groups()
    assert left.startswith(str(trainer.folder))
    assert store.names(bucket, "run/epoch-00000-step-00000002/") == ["run/epoch-00000-step-00000002/a"]
    assert "last epoch-00000-step-00000001 b'1'" in trainer.run(f"s3://{bucket}/run").stdout
    store.faults.clear()
    sent = subprocess.run(command.split(), capture_output=True, text=True, env=trainer.environment)
    assert sent.returncode == 0, sent.stderr
    assert "last epoch-00000-step-00000002 b'2'" in trainer.run(f"s3://{bucket}/run").stdout


@pytest.mark.full
def test_no_bucket_and_no_keys(trainer, store):
    done = trainer.run("s3://nobody-has-made-it/run", [1])
    assert "make the bucket" in done.stderr
    trainer.environment |= {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"}
    trainer.environment["HOME"] = str(trainer.folder)
    began = time.monotonic()
    done = trainer.run("s3://nobody-has-made-it/run", [1])
    assert "no keys were found (NoCredentialsError" in done.stderr
    assert time.monotonic() - began < 60


@pytest.mark.full
@pytest.mark.parametrize("part", ["a", "state", "checkpoint.json"])
def test_killed_in_the_middle_of_an_upload(trainer, store, bucket, part):
    assert trainer.run(f"s3://{bucket}/run", [1]).returncode == 0
    fault = store.will("slow", rf"PUT .*epoch-00000-step-00000002/{part}", seconds=5)
    process = trainer.start(f"s3://{bucket}/run", [2, 3])
    deadline = time.monotonic() + 120
    while not fault.seen and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert fault.seen
    store.settle()
    store.faults.clear()
    last = "epoch-00000-step-00000002 b'2'" if part == "checkpoint.json" else "epoch-00000-step-00000001 b'1'"
    done = trainer.run(f"s3://{bucket}/run", [3, 4])
    assert f"last {last}" in done.stdout, done.stderr
    assert {name.split("/")[1] for name in store.names(bucket)} == {
        f"epoch-00000-step-0000000{number}" for number in (3, 4)
    }
    assert not trainer.folder.exists() or list(trainer.folder.iterdir()) == []


@pytest.mark.full
def test_a_damaged_one_in_a_bucket(trainer, store, bucket):
    assert trainer.run(f"s3://{bucket}/run", [1, 2]).returncode == 0
    store.write(bucket, "run/epoch-00000-step-00000002/state", b"3" * 1000)
    done = trainer.run(f"s3://{bucket}/run", [2])
    assert "epoch-00000-step-00000002 is damaged: state has other content than when it was written" in done.stdout
    assert "last epoch-00000-step-00000001 b'1'" in done.stdout
    assert "last epoch-00000-step-00000002 b'2'" in trainer.run(f"s3://{bucket}/run").stdout


@pytest.mark.full
def test_training_goes_on_while_a_checkpoint_is_sent(trainer, store, bucket):
    """A save returns at once; the next one waits for the one before it: never two on their way."""
    store.will("slow", r"PUT .*state", seconds=2)
    process = trainer.start(f"s3://{bucket}/run", [1, 2, 3])
    times = {}
    for line in process.stdout:
        times[line.strip()] = time.monotonic()
    assert process.wait() == 0
    assert times["saved 2"] - times["saved 1"] > 1.5
    assert times["saved 3"] - times["saved 2"] > 1.5
    parts = [line.split("epoch-00000-step-0000000")[1] for line in store.asked if line.startswith("PUT ")]
    assert parts == [f"{number}/{part}" for number in (1, 2, 3) for part in ("a", "state", "checkpoint.json")]


@pytest.mark.full
def test_folders_there_and_back(recipe_python, store, bucket, tmp_path):
    """`put` and `get` as programs: every file, also in subfolders; the target appears whole or not at all."""
    source = tmp_path / "data"
    (source / "a/b").mkdir(parents=True)
    for name in ("a/b/x y.bin", "a/ü.txt", "manifest.json"):
        (source / name).write_bytes(os.urandom(3000))
    environment = {**CLEAN, **store.environment, "PYTHONPATH": str(ROOT / "runrecord")}

    def tool(*words):
        words = [recipe_python("dask"), "-m", "storage", *words]
        return subprocess.run(words, capture_output=True, text=True, env=environment)

    assert tool("put", source, f"s3://{bucket}/data").returncode == 0
    assert [line for line in store.asked if line.startswith("PUT ")][-1].endswith("manifest.json")
    listed = [json.loads(line) for line in tool("list", f"s3://{bucket}/data").stdout.splitlines()]
    assert [(one["name"], one["size"]) for one in listed] == [
        (name, 3000) for name in ("a/b/x y.bin", "a/ü.txt", "manifest.json")
    ]
    store.will("deny", r"GET .*manifest.json")
    assert "the storage denies it" in tool("get", f"s3://{bucket}/data", tmp_path / "copy").stderr
    assert list(tmp_path.glob("*copy*")) == []
    store.faults.clear()
    assert tool("get", f"s3://{bucket}/data", tmp_path / "copy").returncode == 0
    assert state_of(tmp_path / "copy") == state_of(source)
    assert tool("get", f"s3://{bucket}/data/manifest.json", tmp_path / "one").returncode == 0
    assert (tmp_path / "one/manifest.json").read_bytes() == (source / "manifest.json").read_bytes()
    assert "there is nothing" in tool("get", f"s3://{bucket}/nothing", tmp_path / "none").stderr


# ---- recipes

FEW = ("scale.max_rows=256", "recipe.num_epochs=3", "recipe.width=8", "recipe.checkpoint_every_steps=2")
POSITIONS = [(0, 2), (1, 0), (1, 2), (2, 0), (2, 2), (3, 0)]


# The launchers' own networks have nothing but loopback, and no store in it.
HOST_NETWORK = dict.fromkeys(("NETRUN_NETWORK", "TFRUN_NETWORK", "RAYRUN_NETWORK"), "host")


class Torchrun:
    """Two workers of the pytorch recipe without the driver: twenty drivers would take too long."""

    def __init__(self, python, store, like, folder, place):
        program = [ROOT / "recipes/pytorch/main.py", like / "config.yaml", f"output_dir={folder}"]
        self.argv = [python, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
        self.argv += [*program, f"checkpoint_dir={place}"]
        self.environment = {**CLEAN, **store.environment, "OMP_NUM_THREADS": "1"}
        self.folder = folder

    def start(self):
        with open(self.folder / "log", "a") as log:
            return subprocess.Popen(
                self.argv, env=self.environment, stdout=log, stderr=log, start_new_session=True, cwd=self.folder
            )

    def digests(self):
        ends = [events[-1] for events in read_records(self.folder) if events[-1]["event"] == "end"]
        return [end["digest"] for end in ends]


@pytest.mark.full
@pytest.mark.parametrize("seed", range(20))
def test_killed_while_it_sends_and_resumed(seed, recipe_python, undisturbed, store, bucket, tmp_path):
    """SIGKILL for all processes while a checkpoint is on its way, on a network that throttles and cuts."""
    content, folder, _ = undisturbed("recipe=pytorch", *FEW)
    random = Random(seed)
    number, part = random.randrange(len(POSITIONS)), random.choice(["state.pt", "checkpoint.json"])
    name = "epoch-{:05d}-step-{:08d}".format(*POSITIONS[number])
    for how in ("busy", "cut"):
        store.will(how, r"PUT .*state.pt", times=random.randrange(3))
    fault = store.will("slow", f"PUT .*{name}/{part}", seconds=2)
    run = Torchrun(recipe_python("pytorch"), store, folder, tmp_path, f"s3://{bucket}/run")
    process = run.start()
    deadline = time.monotonic() + 300
    while not fault.seen and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert fault.seen, (tmp_path / "log").read_text()
    time.sleep(random.uniform(0, 1))
    # torchrun's workers are in sessions of their own: a signal for its group would not reach them.
    for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        one.kill()
    process.wait()
    store.settle()
    markers = [one.split("/")[1] for one in store.names(bucket) if one.endswith("checkpoint.json")]
    store.faults.clear()
    store.will("busy", r"(PUT|GET) ", times=random.randrange(3))
    again = run.start()
    assert again.wait(300) == 0, (tmp_path / "log").read_text()
    said = re.findall(r"going on from \S+/(\S+): epoch", (tmp_path / "log").read_text())
    assert said == markers[-1:], "the last one that was whole, or from the beginning without any"
    assert set(run.digests()[-2:]) == set(digests(content))
    assert list((tmp_path / "storage").glob("*")) == []


@pytest.mark.full
@pytest.mark.parametrize("recipe", ["horovod", "pytorch", "tensorflow", "dask", "ray_train"])
def test_a_run_whose_driver_is_killed_goes_on_from_the_bucket(recipe, undisturbed, store, bucket, tmp_path):
    words = [f"recipe={recipe}", *SHORT[recipe]]
    expected = undisturbed(*words)[0]
    words += [f"cluster.storage=s3://{bucket}/mine/"]
    environment = {**store.environment, **HOST_NETWORK}
    driver = Driver(*words, output_root=tmp_path, environment=environment)
    driver.wait_until(lambda: any(event["event"] == "checkpoint" for event in driver.events()))
    driver.kill_driver()
    driver.process.wait()
    assert driver.no_process_left()
    content, folder, output = run_cookbook(*words, output_root=tmp_path, environment=environment)
    assert "going on with this run" in output
    assert content["status"] == "ok", output
    assert content["storage"].startswith(f"s3://{bucket}/mine/runs/{recipe}/{folder.name}-")
    assert not (folder / "checkpoints").exists()
    if recipe == "dask":
        assert content["account"] == expected["account"]
    else:
        assert digests(content) == digests(expected)
    for path in folder.rglob("*"):
        assert not path.is_file() or b"not-a-secret-0815" not in path.read_bytes(), path
    assert "not-a-secret-0815" not in output


@pytest.mark.full
def test_pictures_from_a_bucket(undisturbed, store, bucket, tmp_path):
    """The rows of data.path=s3://... are those of the same folder; a changed object is another dataset."""
    pictures(tmp_path / "mine")
    for path in (tmp_path / "mine").rglob("*.*"):
        store.write(bucket, f"pictures/{path.relative_to(tmp_path / 'mine').as_posix()}", path.read_bytes())
    found = []
    for place in (tmp_path / "mine", f"s3://{bucket}/pictures"):
        words = ["recipe=pytorch", "data=image_folder", f"data.path={place}", "scale=smoke", "recipe.num_epochs=1"]
        content, _, output = run_cookbook(*words, output_root=tmp_path / "out", environment=store.environment)
        found.append(content)
    assert found[0]["dataset"]["rows"] == found[1]["dataset"]["rows"]
    assert digests(found[0]) == digests(found[1])
    (left,) = found[1]["dataset"]["left_out"]
    assert left["file"].endswith("notes.txt")
    assert f"s3://{bucket}/pictures: 41 files are copied to" in output
    store.write(bucket, "pictures/0/0.png", (tmp_path / "mine/1/1.png").read_bytes())
    other, _, _ = run_cookbook(*words, output_root=tmp_path / "out", environment=store.environment)
    assert other["dataset"]["folder"] != found[1]["dataset"]["folder"]
    _, _, output = run_cookbook(
        *words[:2], f"data.path=s3://{bucket}/nothing", output_root=tmp_path, environment=store.environment, status=1
    )
    assert "there is nothing; look at the address" in output


def pictures(folder):
    from PIL import Image

    random = Random(0)
    for label in range(4):
        (folder / str(label)).mkdir(parents=True)
        for number in range(10):
            colour = tuple(random.randrange(60) + (60 * label) for _ in range(3))
            Image.new("RGB", (8, 8), colour).save(folder / f"{label}/{number}.png")
    (folder / "0/notes.txt").write_text("no picture")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["recipe=pytorch", "cluster.storage=/tmp/x"], "expected s3://bucket/prefix or gs://bucket/prefix"),
        (["recipe=pytorch", "cluster.storage=s3://me:secret@bucket/x"], "expected s3://bucket/prefix"),
        (
            ["recipe=spark", "cluster.storage=s3://bucket/x"],
            "keeps its checkpoints in a folder; those that can .*: dask, ",
        ),
        (
            ["recipe=ray_train", "recipe.mode=core", "cluster.storage=s3://bucket/x"],
            "keeps its checkpoints in a folder",
        ),
        (
            ["recipe=pytorch", "recipe.mode=collectives", "cluster.storage=s3://bucket/x"],
            "keeps its checkpoints in a folder",
        ),
    ],
)
def test_stores_that_make_no_sense(words, text):
    with pytest.raises(UserError, match=text):
        compose_recipe(words[0].removeprefix("recipe="), words[1:])


def test_keys_go_as_a_file_of_the_run(tmp_path):
    """Settings as environment variables, keys as a file; of all other variables none."""
    given = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "here", "OTHER": "x", "AWS_X": "y"}
    access = to_store("s3://bucket/x", tmp_path, given)
    assert access.environment == {"AWS_REGION": "here", "AWS_SHARED_CREDENTIALS_FILE": f"{tmp_path}/aws"}
    assert access.files == {f"{tmp_path}/aws": "[default]\naws_access_key_id = a\naws_secret_access_key = s\n"}
    (tmp_path / "own").write_text("[work]\naws_access_key_id = w\naws_secret_access_key = %x\n")
    own = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "own"), "AWS_PROFILE": "work"}
    assert "aws_secret_access_key = %x" in to_store("s3://bucket/x", tmp_path, given | own).files[f"{tmp_path}/aws"]
    with pytest.raises(UserError, match="AWS_PROFILE=home: .*own has no keys of that name"):
        to_store("s3://bucket/x", tmp_path, own | {"AWS_PROFILE": "home"})
    assert to_store("s3://bucket/x", tmp_path, {"HOME": "/"} | {"AWS_SHARED_CREDENTIALS_FILE": "/none"}).files == {}
    (tmp_path / "config").write_text(
        "[profile work]\nregion = there\nendpoint_url = https://store.example\n[default]\n"
    )
    named = own | {"AWS_CONFIG_FILE": str(tmp_path / "config")}
    made = to_store("s3://bucket/x", tmp_path, named).environment
    assert (made["AWS_DEFAULT_REGION"], made["AWS_ENDPOINT_URL"]) == ("there", "https://store.example")
    made = to_store(
        "s3://bucket/x", tmp_path, named | {"AWS_REGION": "here", "AWS_ENDPOINT_URL": "https://mine"}
    ).environment
    assert (made["AWS_REGION"], made.get("AWS_DEFAULT_REGION"), made["AWS_ENDPOINT_URL"]) == (
        "here",
        None,
        "https://mine",
    )
    with pytest.raises(UserError, match="GOOGLE_APPLICATION_CREDENTIALS=/none: No such file"):
        to_store("gs://bucket/x", tmp_path, {"GOOGLE_APPLICATION_CREDENTIALS": "/none"})


def test_patterns_and_single_objects_mean_the_same_as_on_a_disk(tmp_path):
    """A name is a pattern only where it begins to be one: the bucket and the folders before it are as they are."""
    asked = []

    class Folder:
        def __init__(self, address, retries=None):
            self.address = address

        def files(self, below=""):
            return {}

        def matching(self, pattern):
            asked.append((self.address, pattern))
            return {"x": File(1, "t")}

    for address, expected in (
        ("s3://bucket/logs/*.gz", ("s3://bucket/logs", "*.gz")),
        ("s3://bucket/a/year=*/part-?.csv", ("s3://bucket/a", "year=*/part-?.csv")),
        ("s3://bucket/a/one.csv", ("s3://bucket/a", "one.csv")),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(storage, "BucketFolder", Folder)
            storage.find(address)
        assert asked.pop() == expected


def test_a_slurm_job_gets_the_keys_by_a_file(monkeypatch, tmp_path):
    """The script has settings and the name of the file of keys, and drops those of the shell that submits it."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    words = ["cluster=slurm", "cluster.storage=s3://bucket/x"]
    config, _ = compose_recipe("pytorch", words)
    (process,) = plan(config, ROOT / "recipes/pytorch", "/venv/bin/python", "/runs/pytorch/x")
    script = process.files["/runs/pytorch/x/job.sh"]
    assert "export AWS_SHARED_CREDENTIALS_FILE=/runs/pytorch/x/scratch/secrets/aws" in script
    assert "unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN" in script
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in script + " ".join(process.argv)
    assert KEYS["AWS_SECRET_ACCESS_KEY"] in process.files["/runs/pytorch/x/scratch/secrets/aws"]


@pytest.mark.parametrize(
    ("system", "switch"),
    [("torchrun", "NETRUN"), ("horovod", "NETRUN"), ("tensorflow", "TFRUN"), ("ray", "RAYRUN"), ("dask", None)],
)
def test_workers_in_a_network_of_their_own_reach_no_store(system, switch):
    one, config = systems.load(system), {"cluster": {"storage": "s3://bucket/x"}, "recipe": {"driver": {}}}
    if switch is None:
        one.check_reaches_store(config, {})
        return
    with pytest.raises(UserError, match=f"{switch}_NETWORK=host in front of the command"):
        one.check_reaches_store(config, {})
    one.check_reaches_store(config, {f"{switch}_NETWORK": "host"})
    one.check_reaches_store(config | {"cluster": {"storage": None}}, {})

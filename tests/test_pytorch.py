"""What only the PyTorch recipe can do, run for real through the driver."""

import json
import re
import socket
import subprocess

import psutil
import pytest

from cookbook.tools import compare
from runrecord import read_records
from tests.helpers import CLEAN, ROOT, Driver, latest, run_cookbook

MODES = ["fsdp", "tensor_parallel", "pipeline"]
SHORT = ("scale.max_steps=12", "recipe.num_layers=2", "recipe.model_width=64", "recipe.checkpoint_every_steps=4")

FT_DDP = ["recipe=pytorch", "recipe.mode=ft_ddp", "recipe.num_epochs=4"]


def curve(content, name="train/loss"):
    return dict(map(tuple, content["curves"][name]))


def digests(content):
    return [worker["digest"] for worker in content["workers"]]


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max(abs(one[step] - other[step]) / one[step] for step in one)


@pytest.fixture(scope="module")
def single(undisturbed):
    """100 steps of the language model in one plain process."""
    return undisturbed("recipe=pytorch", "recipe.mode=single", "scale.max_steps=100")[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.full
def test_a_divided_model_learns_like_a_whole_one(mode, single, tmp_path):
    words = ["recipe=pytorch", f"recipe.mode={mode}", "scale.max_steps=100"]
    content, _, _ = run_cookbook(*words, output_root=tmp_path)
    assert content["world_size"] == 2
    assert len(curve(single)) == 100
    assert largest_difference(curve(single), curve(content)) <= 1e-3
    assert content["metrics"]["eval/bits_per_byte"] == pytest.approx(single["metrics"]["eval/bits_per_byte"], rel=1e-3)
    rows = 100 * 16
    assert [w["samples"] for w in content["workers"]] == ([rows // 2] * 2 if mode == "fsdp" else [rows] * 2)


@pytest.mark.full
def test_a_quorum_before_each_step_changes_no_result(undisturbed):
    ft_ddp, ddp = undisturbed(*FT_DDP)[0], undisturbed("recipe=pytorch", "recipe.num_epochs=4")[0]
    assert largest_difference(curve(ddp), curve(ft_ddp)) <= 1e-3
    assert ft_ddp["worlds"] == [2], "nobody begins before the others are there"
    assert [worker["samples"] for worker in ft_ddp["workers"]] == [4 * 719] * 2
    assert len(set(digests(ft_ddp))) == 1


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.full
def test_a_lost_worker_costs_the_others_one_step_and_gets_its_state_from_them(tmp_path, rank):
    epochs = 30
    words = [*FT_DDP, f"recipe.num_epochs={epochs}", "recipe.width=64", "recipe.max_restarts=3"]
    driver = Driver(*words, output_root=tmp_path)
    driver.wait_until(lambda: any(e["event"] == "rows" and (e["epoch"], e["step"]) >= (2, 8) for e in driver.events()))
    launcher = psutil.Process(driver.pid_of(rank)).parent()
    launcher.suspend()  # it would have another worker there before the first one is missed
    lost = driver.kill(rank)
    driver.wait_until(lambda: any(e["event"] == "world" and e["world_size"] == 1 for e in driver.events()))
    launcher.resume()
    status, output = driver.end(1800)
    assert status == 0, output
    assert driver.no_process_left()
    content, folder = latest(tmp_path, "pytorch")
    assert content["worlds"] == [2, 1, 2]
    assert [worker["pid"] for worker in content["lost_workers"]] == [lost]
    assert content["num_rows"] == epochs * 1438, "every row took effect once in every epoch, whoever was there"
    assert len(digests(content)) == 2
    assert len(set(digests(content))) == 1
    assert content["metrics"]["eval/accuracy"] >= 0.95
    events = [event for record in read_records(folder) for event in record]
    alone, both = sorted({(e["generation"], e["epoch"], e["step"]) for e in events if e["event"] == "restore"})[1:]
    before = max((e["epoch"], e["step"]) for e in events if e["event"] == "rows" and e["time"] < time_of(events, alone))
    assert alone[1:] == before, "the step that was under way, and none before it, is taken again"
    first = min((e["epoch"], e["step"]) for record in read_records(folder) for e in rows_of(record, both))
    assert first == both[1:] > alone[1:], "who came back went on where the other one was"


def time_of(events, generation):
    return min(e["time"] for e in events if e.get("generation") == generation[0])


def rows_of(record, generation):
    """The rows that a worker took in its first generation, if it began with this one."""
    restores = [e["generation"] for e in record if e["event"] == "restore"]
    return [e for e in record if e["event"] == "rows"] if restores[:1] == [generation[0]] else []


@pytest.mark.full
def test_when_all_workers_are_lost_the_same_command_goes_on(undisturbed, tmp_path):
    expected = undisturbed(*FT_DDP)[0]
    driver = Driver(*FT_DDP, output_root=tmp_path)
    driver.wait_until(lambda: any(e["event"] == "rows" and (e["epoch"], e["step"]) >= (2, 8) for e in driver.events()))
    driver.kill_driver()
    driver.end()
    assert driver.no_process_left()
    content, _, _ = run_cookbook(*FT_DDP, output_root=tmp_path)
    assert digests(content) == digests(expected)
    assert content["num_rows"] == expected["num_rows"]


@pytest.mark.full
def test_the_language_model_beats_counting(undisturbed):
    """At the default scale: fewer bits per byte on held-out files than unigram and bigram counts need."""
    content, folder, _ = undisturbed("recipe=pytorch", "recipe.mode=fsdp")
    ours, metrics = content["metrics"]["eval/bits_per_byte"], content["metrics"]
    assert ours < metrics["eval/bigram_bits_per_byte"] < metrics["eval/unigram_bits_per_byte"]
    assert ours < 3.7
    assert "bigram counts" in (folder / "report.html").read_text()


@pytest.mark.full
def test_two_shards_need_little_more_than_half_the_memory(undisturbed, tmp_path):
    two, _, _ = undisturbed("recipe=pytorch", "recipe.mode=fsdp")
    one, _, _ = run_cookbook(
        "recipe=pytorch", "recipe.mode=fsdp", "cluster.num_workers=1", "scale.max_steps=2", output_root=tmp_path
    )
    assert two["metrics"]["memory/kept_mb"] / one["metrics"]["memory/kept_mb"] == pytest.approx(0.5, abs=0.01)
    assert two["metrics"]["memory/peak_mb"] / one["metrics"]["memory/peak_mb"] <= 0.6


@pytest.mark.full
def test_other_ways_through_the_same_steps(tmp_path):
    """GPipe and 1F1B, activations that are kept or computed again: the same losses."""
    words = ["recipe=pytorch", "recipe.mode=pipeline", "scale.max_steps=6", "recipe.model_width=64"]
    plain, _, _ = run_cookbook(*words, output_root=tmp_path / "plain")
    gpipe, _, _ = run_cookbook(*words, "recipe.schedule=gpipe", output_root=tmp_path / "gpipe")
    assert largest_difference(curve(plain), curve(gpipe)) <= 1e-5
    words[1] = "recipe.mode=fsdp"
    again, _, _ = run_cookbook(*words, "recipe.activation_checkpointing=true", output_root=tmp_path / "again")
    assert largest_difference(curve(plain), curve(again)) <= 1e-4
    # Without a GPU the shards stay where they are; the code that moves them runs all the same.
    offloaded, _, _ = run_cookbook(*words, "recipe.cpu_offload=true", output_root=tmp_path / "offloaded")
    assert curve(offloaded) == curve(again)


@pytest.mark.full
def test_half_precision_and_compiled_kernels_learn_the_same(undisturbed, tmp_path):
    """One epoch of DDP: bfloat16 has 8 bits of mantissa; a compiled network adds up float32 numbers
    in another order."""
    plain, _, _ = undisturbed("recipe=pytorch", "recipe.num_epochs=1")
    for words, tolerance in (("recipe.precision=bfloat16", 0.02), ("recipe.compile=true", 1e-3)):
        content, _, _ = run_cookbook("recipe=pytorch", "recipe.num_epochs=1", words, output_root=tmp_path / words[7:12])
        assert largest_difference(curve(plain), curve(content)) <= tolerance, words
        assert curve(plain) != curve(content), f"{words} changed nothing"


@pytest.mark.parametrize("mode", MODES)
def test_a_divided_model_takes_the_steps_of_a_whole_one(mode, undisturbed):
    whole, divided = (undisturbed("recipe=pytorch", f"recipe.mode={one}", *SHORT)[0] for one in ("single", mode))
    assert (whole["world_size"], divided["world_size"]) == (1, 2)
    assert sorted(curve(whole)) == [*range(1, 13)]
    assert largest_difference(curve(whole), curve(divided)) <= 1e-5
    assert divided["metrics"]["eval/bits_per_byte"] == pytest.approx(whole["metrics"]["eval/bits_per_byte"], rel=1e-5)
    assert [worker["samples"] for worker in divided["workers"]] == [96 if mode == "fsdp" else 192] * 2


@pytest.mark.parametrize("mode", ["fsdp", *(pytest.param(one, marks=pytest.mark.full) for one in MODES[1:])])
def test_a_killed_worker_of_a_divided_model(mode, undisturbed, tmp_path):
    """Stopped in the middle of an epoch, the same command goes on from the sharded checkpoint
    to the same parameters."""
    words = ["recipe=pytorch", f"recipe.mode={mode}", *SHORT]
    expected, _, _ = undisturbed(*words)
    driver = Driver(*words, output_root=tmp_path)
    driver.wait_until(lambda: any(e["event"] == "rows" and e["step"] >= 6 for e in driver.events()))
    driver.kill(1)
    assert driver.end()[0] == 1
    content, _, _ = run_cookbook(*words, output_root=tmp_path)
    assert digests(content) == digests(expected)
    assert curve(content) == curve(expected)


@pytest.mark.full
def test_torchrun_starts_all_anew_in_the_middle_of_an_epoch(tmp_path):
    """The checkpoint has the sampler's place and each rank's random numbers: the curve is that of an undisturbed run,
    bit for bit."""
    words = ["recipe=pytorch", "recipe.num_epochs=4", "recipe.checkpoint_every_steps=5", "recipe.max_shift=1"]
    expected, _, _ = run_cookbook(*words, output_root=tmp_path / "undisturbed")
    driver = Driver(*words, "recipe.max_restarts=1", output_root=tmp_path / "killed")
    driver.wait_until(lambda: any(e["event"] == "checkpoint" and e["step"] == 10 for e in driver.events()))
    lost = driver.kill(1)
    status, output = driver.end()
    assert status == 0, output
    assert driver.no_process_left()
    content, folder = latest(tmp_path / "killed", "pytorch")
    assert content["restarts"] == 1
    assert lost in [worker["pid"] for worker in content["lost_workers"]]
    assert digests(content) == digests(expected)
    assert curve(content) == curve(expected)
    assert content["num_rows"] == 4 * 1438, "every row took effect once in every epoch"
    restored = [json.loads(line) for path in folder.glob("workers/rank0-*") for line in path.read_text().splitlines()]
    assert {(e["epoch"], e["step"]) for e in restored if e["event"] == "restore"} > {(0, 0)}


def test_collectives_equal_one_process_and_are_measured(tmp_path):
    words = ["recipe=pytorch", "recipe.mode=collectives", "recipe.num_message_sizes=3", "recipe.num_repeats=3"]
    content, folder, _ = run_cookbook(*words, "cluster.num_workers=3", output_root=tmp_path)
    checks = json.loads((folder / "tables/exchanges against one process.json").read_text())["rows"]
    exchanges = "all_reduce ring_all_reduce broadcast all_gather reduce_scatter all_to_all barrier"
    assert {row["exchange"] for row in checks} == set(exchanges.split())
    assert all(row["largest difference from one process"] == 0 for row in checks)
    table = json.loads((folder / "tables/bus bandwidth in MB per second.json").read_text())
    assert [row["message_bytes"] for row in table["rows"]] == [1024, 4096, 16384]
    assert all(value > 0 for row in table["rows"] for value in row.values())
    assert content["dataset"] is None
    assert "Bus bandwidth" in (folder / "report.html").read_text()


@pytest.mark.full
def test_a_worker_that_hangs_is_named(tmp_path):
    driver = Driver("recipe=pytorch", "cluster.stall_timeout_seconds=8", output_root=tmp_path)
    driver.wait_until(lambda: any(e["event"] == "rows" for e in driver.events()))
    driver.stop(1)
    status, output = driver.end()
    assert status == 1
    assert driver.no_process_left()
    assert "no worker has written anything for 8 s, slowest first: rank 1 (pid" in output
    assert "stopped)" in output
    says = json.loads((tmp_path / "pytorch/latest/diagnosis.json").read_text())["says"]
    assert re.match(r"rank 1 \(pid \d+ on .*\) holds the others up: it is stopped: SIGCONT lets it go on", says)
    assert re.search(r"Who waits: rank 0 in .* at (main|workers)\.py:\d+ in \w+\.$", says)


def test_a_port_that_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        _, _, output = run_cookbook("recipe=pytorch", f"cluster.port={port}", output_root=tmp_path, status=1)
        assert f"cluster.port={port} is taken" in output


def test_a_checkpoint_of_another_mode_is_refused(tmp_path, undisturbed):
    _, folder, _ = undisturbed("recipe=pytorch", "recipe.mode=fsdp", *SHORT)
    words = ["recipe=pytorch", "recipe.mode=tensor_parallel", *SHORT, f"resume={folder}"]
    _, _, output = run_cookbook(*words, output_root=tmp_path, status=1)
    assert "recipe.mode is 'fsdp' there and 'tensor_parallel' here" in output


@pytest.mark.parametrize("words", [[], ["recipe.mode=fsdp", *SHORT]], ids=["ddp", "fsdp"])
@pytest.mark.full
def test_another_number_of_workers_goes_on(words, tmp_path):
    """Full (ddp) and sharded (fsdp) checkpoints fit any number of workers; every row still counts once an epoch."""
    words = ["recipe=pytorch", *(words or ["recipe.num_epochs=4", "recipe.checkpoint_every_steps=5"])]
    driver = Driver(*words, output_root=tmp_path)
    driver.wait_until(lambda: any(e["event"] == "checkpoint" and e["step"] >= 8 for e in driver.events()))
    driver.interrupt()
    assert driver.end()[0] == 130
    _, folder = latest(tmp_path, "pytorch")
    content, again, _ = run_cookbook(*words, "cluster.num_workers=1", f"resume={folder}", output_root=tmp_path)
    assert again == folder
    assert content["world_size"] == 1
    assert content["status"] == "ok"


@pytest.mark.full
def test_compare_lays_runs_side_by_side(tmp_path):
    page, problems = compare.compare(
        ["pytorch:recipe.mode=single", "pytorch:recipe.mode=pipeline"],
        ["scale.max_steps=5", "recipe.model_width=64"],
        tmp_path,
    )
    assert problems == []
    text = page.read_text()
    assert text.count("data:image/svg+xml;base64,") >= 2
    assert "pytorch:mode=pipeline" in text
    assert "train/loss over time" in text


@pytest.mark.full
def test_compare_says_what_is_not_alike(tmp_path):
    _, problems = compare.compare(
        ["pytorch:recipe.mode=single", "pytorch:recipe.mode=single:seed=1"],
        ["scale.max_steps=2", "recipe.model_width=64"],
        tmp_path,
    )
    assert problems == ["not like for like: seed is 0 in pytorch:mode=single, 1 in pytorch:mode=single:seed=1"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["recipe.mode=magic"], "recipe.mode='magic' is unknown; expected one of: ddp, ft_ddp, fsdp"),
        (
            ["recipe.mode=tensor_parallel", "recipe.num_heads=2", "cluster.num_workers=3"],
            "num_heads=2 cannot be divided among 3 workers: 2 = 3 x 0 + 2; try num_heads=3 or 3",
        ),
        (
            ["recipe.mode=pipeline", "recipe.num_layers=5"],
            "num_layers=5 cannot be divided among 2 stages (workers): 5 = 2 x 2 + 1; try num_layers=4 or 6",
        ),
        (["recipe.mode=fsdp", "recipe.global_batch_size=15"], "global_batch_size=15 cannot be divided among 2 workers"),
        (["recipe.mode=pipeline", "recipe.num_microbatches=1"], "num_microbatches=1 is less than the 2 stages"),
        (["recipe.model_width=100"], "model_width=100 is not a multiple of 2 x num_heads=4"),
        (["recipe.global_batch_size=1"], "global_batch_size=1 is less than world_size=2"),
        (["recipe.mode=collectives", "cluster.num_workers=1"], "one has nobody to: start at least 2"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, words, text):
    _, folder, output = run_cookbook("recipe=pytorch", *words, output_root=tmp_path, status=1)
    assert text in output
    assert folder is None, "refused before any work"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["recipe.mode=single", "scale.max_rows=100"],
            "100 train rows are no multiple of global_batch_size=16 (100 = 16 x 6 + 4)",
        ),
        (["recipe.backend=nccl"], "backend=nccl needs a GPU for each worker, and PyTorch sees 0 for the 2 workers of"),
    ],
)
def test_what_only_the_workers_can_see(tmp_path, words, text):
    _, _, output = run_cookbook("recipe=pytorch", *words, output_root=tmp_path, status=1)
    assert text in output


SHARDED = """
import sys
from types import SimpleNamespace
import torch
from checkpoints import Sharded
config = SimpleNamespace(checkpoint_dir=sys.argv[1], output_dir=sys.argv[1], mode="fsdp", seed=0, global_batch_size=8)
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
Sharded(model, optimizer, config, 64).save(3, 0, 3)
print(Sharded(model, optimizer, config, 64).load())
Sharded(model, optimizer, config, 56).load()
"""


MOMENTA = """
import sys
from types import SimpleNamespace
import torch
import torch.distributed as dist
import main
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
network = torch.nn.Linear(2, 2)
checkpoints, run = main.Checkpoints(sys.argv[1], sys.argv[1]), SimpleNamespace(finite=lambda value, *place: value)
for momentum in (0.9, 0.5):
    config = SimpleNamespace(checkpoint_dir=sys.argv[1], mode="ddp", seed=0, global_batch_size=8, momentum=momentum)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum, nesterov=True)
    training = main.Training(network, network, optimizer, checkpoints, 64)
    main.load_checkpoint(training, config, 0, 1)
    print("MOMENTUM", training.epoch, optimizer.param_groups[0]["momentum"])
    training.epoch += 1
    main.save_checkpoint(training, config, run)
"""


def test_a_resumed_training_has_the_momentum_of_the_settings(tmp_path, recipe_python):
    """PyTorch's `load_state_dict` brings back that of the checkpoint."""
    environment = {**CLEAN, "PYTHONPATH": str(ROOT / "recipes/pytorch")}
    argv = [recipe_python("pytorch"), "-c", MOMENTA, tmp_path]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    assert re.findall("MOMENTUM (.*)", done.stdout) == ["0 0.9", "1 0.5"], done.stderr


POSITIONS = """
import sys
from types import SimpleNamespace
import numpy as np, torch
from main_tensor_parallel import TensorParallel
for split in ("train", "test"):
    np.save(f"{sys.argv[1]}/{split}_rows.npy", np.zeros((4, 10), np.uint8))
TensorParallel(SimpleNamespace(data_dir=sys.argv[1], max_rows=None), 0, 2, torch.device("cpu"))
"""


def test_tensor_parallel_refuses_a_sequence_that_cannot_be_divided(tmp_path, recipe_python):
    """PyTorch takes the shares for equal, and the processes would exchange tensors of different sizes."""
    environment = {**CLEAN, "PYTHONPATH": str(ROOT / "recipes/pytorch")}
    argv = [recipe_python("pytorch"), "-c", POSITIONS, tmp_path]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    assert "data.parameters.context_length=9 cannot be divided among 2 workers: 9 = 2 x 4 + 1; try" in done.stderr


def test_a_sharded_checkpoint_of_other_batches_is_refused(tmp_path, recipe_python):
    environment = {**CLEAN, "PYTHONPATH": str(ROOT / "recipes/pytorch")}
    argv = [recipe_python("pytorch"), "-c", SHARDED, tmp_path]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["going", "on", "from", str(tmp_path / "epoch-00000-step-00000003"), "3"]
    assert done.returncode == 1
    assert "epoch-00000-step-00000003 was made with other settings: num_rows=56 (64 there)" in done.stderr

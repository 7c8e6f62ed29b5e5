"""Other people's Parquet stores, and caches in odd places: read right, each file once, or refused with the
reason before training."""

import json
import os
import stat
import subprocess
import sys

import pytest

from cookbook import ROOT, UserError
from cookbook.prepare import datasets
from cookbook.settings import compose_recipe
from tests.helpers import Silent

# Makes each store in the recipe's own environment, checks it, reads it by both column readers,
# and prints what came out.
PROGRAM = """
import json, sys, warnings
warnings.filterwarnings("ignore")
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pandas as pd, pyarrow as pa, pyarrow.parquet as pq
from readers import check_row_groups, chunks_of, leave

def frame(n=70, seed=0):
    random = np.random.default_rng(seed)
    a, b = random.normal(size=n), random.normal(size=n)
    late = (a + b > 0).astype("f4")
    return pd.DataFrame({"id": np.arange(n), "late": late, "a": a.astype("f4"), "b": b.astype("f4")})

def column(values, type=None):
    table = pa.Table.from_pandas(frame(), preserve_index=False)
    return table.set_column(2, "a", pa.array(values, type))

def save(table, folder, name="part-0.parquet", groups=7):
    folder.mkdir(parents=True, exist_ok=True)
    table = table if isinstance(table, pa.Table) else pa.Table.from_pandas(table, preserve_index=False)
    pq.write_table(table, folder / name, row_group_size=max(1, table.num_rows // groups))

root = Path(sys.argv[1])
floats = frame()["a"].to_numpy()
cases = {
    "plain": frame(), "one_group": frame(),
    "ints": column((np.arange(70) % 5).astype("i2")), "bools": column(np.arange(70) % 2 == 0),
    "hidden": frame(), "nulls": column([None if k % 10 == 0 else 1.0 for k in range(70)]),
    "nan": column(np.where(np.arange(70) == 5, np.nan, floats)),
    "infinite": column(np.where(np.arange(70) == 5, np.inf, floats)),
    "decimals": column([Decimal("1.50")] * 70), "lists": column([[1.0]] * 70), "texts": column(["1.5"] * 70),
    "times": column(pd.date_range("2025-01-01", periods=70)), "lacking": frame().drop(columns="a"), "stray": frame(),
    "fewer": frame().iloc[:60], "partitioned": frame(),
}
answers = {}
for name, table in cases.items():
    folder = root / name
    if name == "partitioned":
        for month in (1, 2):
            save(table[table["id"] % 2 == month - 1], folder / f"train/month={month}")
    else:
        save(table, folder / "train", groups=1 if name == "one_group" else 7)
    save(frame(seed=1), folder / "test")
    files = {"train/part-0.parquet": {}, "test/part-0.parquet": {}} if name == "stray" else {}
    if name == "stray":
        save(frame(), folder / "train", "part-1.parquet")
    if name == "hidden":
        (folder / "train/_SUCCESS").write_bytes(b"")
        (folder / "train/.part-0.parquet.crc").write_bytes(b"crc")
        (folder / "train/_temporary").mkdir()
        (folder / "train/notes.txt").write_text("x")
    numbers = {"mean": [0, 0], "std": [1, 1], "rows": {"train": 70, "test": 70}}
    manifest = {"task": "flights", "features": ["a", "b"], **numbers, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for reader in ("batch", "arrow", "row"):
        config = SimpleNamespace(
            data_dir=str(folder), seed=0, reader=reader, pool="thread", num_loader_workers=1, prefetch_chunks=4,
            cache="none", output_dir="", num_shards=2, rows_per_chunk=100,
        )
        try:
            check_row_groups(config)
            ids, total = [], 0.0
            for shard in range(2):
                for chunk in chunks_of(str(folder / "train"), config, manifest, shard, 2, 0):
                    ids += [int(value) for value in chunk["id"]]
                    total += float(np.sum(chunk["a"], dtype="f8"))
            answers[f"{name} {reader}"] = [sorted(ids) == list(range(70)), round(total, 3)]
        except SystemExit as error:
            answers[f"{name} {reader}"] = str(error)
answers["sum"] = round(float(floats.sum(dtype="f8")), 3)
print(json.dumps(answers))
leave()
"""


@pytest.fixture(scope="module")
def answers(recipe_python, tmp_path_factory):
    """What came out of all stores, in one process; they lie below a folder with a blank, an
    umlaut and a percent sign."""
    root = tmp_path_factory.mktemp("stores") / "my cache ü 100%25"
    paths = os.pathsep.join([str(ROOT / "recipes/petastorm"), str(ROOT / "runrecord")])
    done = subprocess.run(
        [recipe_python("petastorm"), "-c", PROGRAM, root],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("reader", ["batch", "arrow"])
def test_stores_that_are_read(answers, reader):
    assert answers[f"plain {reader}"] == [True, answers["sum"]]
    assert answers[f"hidden {reader}"] == [True, answers["sum"]]
    assert answers[f"ints {reader}"] == [True, 140]
    assert answers[f"bools {reader}"] == [True, 35]


@pytest.mark.parametrize("reader", ["batch", "arrow"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nulls", "column 'a' has 1 values that are null; nothing was trained"),
        ("nan", "column 'a' has 1 values that are not a finite number"),
        ("infinite", "column 'a' has 1 values that are not a finite number"),
        ("decimals", "column 'a' is decimal128(3, 2), expected a number"),
        ("lists", "column 'a' is list<"),
        ("texts", "column 'a' is string, expected a number"),
        ("times", "column 'a' is timestamp["),
        ("lacking", "expected one column 'a'; there are: id (int64), late (float), b (float)"),
        ("stray", "other files than its manifest: missing [], too many ['train/part-1.parquet']"),
        ("fewer", "has 60 rows, but its manifest says 70"),
        ("partitioned", "holds folders (month=1, month=2): partitioned stores are not read"),
        ("one_group", "has 1 row groups, too few for num_shards=2"),
    ],
)
def test_stores_that_are_refused_before_training(answers, name, text, reader):
    assert text in answers[f"{name} {reader}"]


def test_the_row_reader_needs_a_store_of_petastorm_s_own(answers):
    assert "was not written by Petastorm: recipe.reader=row cannot read it" in answers["plain row"]


def test_a_row_group_cache_and_a_limit_of_rows_are_refused_together(tmp_path):
    """Petastorm would end in a RuntimeError in mid-training; scale=smoke has such a limit."""
    composed, _ = compose_recipe("petastorm")
    config = tmp_path / "config.yaml"
    recipe = {key: value for key, value in composed["recipe"].items() if key != "driver"}
    config.write_text(json.dumps(recipe | {"cache": "local-disk", "max_rows": 512}))
    done = subprocess.run(
        [sys.executable, ROOT / "recipes/petastorm/settings.py", config, "2"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "runrecord")},
    )
    assert done.returncode == 1
    assert "cache=local-disk with max_rows=512: Petastorm caches no rows that it has to choose" in done.stderr


SCRIPT = """
import sys
from pathlib import Path
from _petastorm import local_spark, scalar_schema, tidy, write_store
folder = Path(sys.argv[1])
folder.mkdir(parents=True)
spark = local_spark(folder, "test")
frame = spark.range(70).selectExpr("id", "cast(id as float) a")
print(write_store(spark, frame, folder / "train", scalar_schema("own", ["a"]), 100))
spark.stop()
tidy(folder)
"""


@pytest.mark.full
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_a_builder_writes_nothing_beside_a_cache_with_a_blank_and_an_umlaut(recipe_python, tmp_path, locale):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "data"), "LC_ALL": locale, "PYTHONUTF8": "1"}
    words = [recipe_python("petastorm"), "-c", SCRIPT, tmp_path / "my cache ü/store"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-1] == "70"
    assert [path.name for path in tmp_path.iterdir()] == ["my cache ü"]
    assert len(list((tmp_path / "my cache ü/store/train").glob("part-*.parquet"))) == 7


# ---- the cache -----------------------------------------------------------------------------------------------------


def test_the_fingerprint_follows_links_sizes_and_times(tmp_path):
    root, store = tmp_path / "in", tmp_path / "store"
    (root / "cat").mkdir(parents=True)
    (store / "more").mkdir(parents=True)
    (store / "1.png").write_bytes(b"a")
    (root / "cat/1.png").symlink_to(store / "1.png")
    (root / "cat/more").symlink_to(store / "more")
    (root / "cat/loop").symlink_to(root)

    def now():
        return datasets.fingerprint("image_folder", {"path": str(root)})

    seen = [now()]
    assert now() == seen[0]
    for change in (
        lambda: (store / "1.png").write_bytes(b"ab"),
        lambda: os.utime(store / "1.png", ns=(0, 10**18)),
        lambda: (store / "more/2.png").write_bytes(b"c"),
        lambda: (root / "cat/gone.png").symlink_to("nowhere"),
    ):
        change()
        seen.append(now())
    assert len(set(seen)) == len(seen)


def test_a_name_with_brackets_is_a_name(tmp_path):
    path = tmp_path / "log[1].txt"
    path.write_text("a")
    first = datasets.fingerprint("log_files", {"path": str(path)})
    path.write_text("ab")
    assert datasets.fingerprint("log_files", {"path": str(path)}) != first


def test_names_that_are_no_utf_8_have_a_fingerprint(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.png", "w"):
        pass
    assert len(datasets.fingerprint("image_folder", {"path": str(tmp_path)})) == 12


def ready_dataset(cache, rows):
    data = {"builder": "images", "parameters": {"seed": 0}}
    folder = cache / f"images-{datasets.fingerprint('images', data['parameters'])}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"name": "images", "rows": rows, "files": {}}))
    return data, folder


def test_a_dataset_that_is_there_needs_no_lock(tmp_path, monkeypatch):
    """A shared cache may be read-only (for root too: whoever asks for the lock fails here)."""
    data, folder = ready_dataset(tmp_path / "cache", {"train": 3, "test": 1})
    before = sorted(path.name for path in folder.parent.iterdir())
    folder.parent.chmod(stat.S_IRUSR | stat.S_IXUSR)
    monkeypatch.setattr(datasets, "FileLock", lambda path: pytest.fail("the lock was asked for"))
    try:
        found, manifest = datasets.ensure(data, tmp_path / "cache", "python", Silent(), tmp_path / "log", "mark")
    finally:
        folder.parent.chmod(stat.S_IRWXU)
    assert (found, manifest["rows"]) == (folder, {"train": 3, "test": 1})
    assert sorted(path.name for path in folder.parent.iterdir()) == before


@pytest.mark.parametrize("rows", [{"train": 0, "test": 0}, {"train": 5, "test": 0}])
def test_a_dataset_without_rows_is_refused(tmp_path, rows):
    data, _ = ready_dataset(tmp_path / "cache", rows)
    with pytest.raises(UserError, match=r"has no rows in: .*test; choose other files or settings"):
        datasets.ensure(data, tmp_path / "cache", "python", Silent(), tmp_path / "log", "mark")


# A store of one's own, by the builder and by the whole recipe.

MINE = """
import json, sys
from decimal import Decimal
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import numpy as np, pandas as pd, pyarrow as pa, pyarrow.parquet as pq
import store_files
from _common import DatasetError

root = Path(sys.argv[2])
random = np.random.default_rng(0)
x = random.normal(size=700)
clicked = x + 0.1 * random.normal(size=700) > 0
rows = pd.DataFrame({"clicked": clicked, "x": x, "visits": np.arange(700) % 7, "name": "n", "id": 7})
stores = {
    "plain": rows, "nulls": rows.assign(x=[None if k % 10 == 0 else 1.0 for k in range(700)]),
    "three": rows.assign(clicked=np.arange(700) % 3), "large": rows.assign(visits=(1 << 24) + 1),
    "infinite": rows.assign(x=1e39), "blank": rows.rename(columns={"x": "my x"}),
    "words": rows.assign(visits=pd.Categorical(np.arange(700) % 7)), "constant": rows.assign(visits=3),
    "one": rows.assign(clicked=1), "texts": rows.assign(visits="7"),
    "decimals": rows.assign(x=[Decimal("1.50")] * 700),
}
more = {
    "keys": rows.assign(x=np.arange(700) + 2**53 + 1), "huge": rows.assign(x=np.full(700, 2**64 - 1, np.uint64)),
    "with_null": rows.assign(x=[None, *[16777217.0] * 699]),
    "decimal_keys": rows.assign(x=[Decimal(16777217)] * 700),
    "moments": rows.assign(x=1743285660.123 + np.arange(700) / 7), "almost": rows.assign(clicked=0.9999999999),
}
for name, table in (stores | more).items():
    for month in (1, 2):
        folder = root / name / f"month={month}"
        folder.mkdir(parents=True)
        table.iloc[month - 1 :: 2].to_parquet(folder / "part-0.parquet", row_group_size=100)
    (root / name / "_SUCCESS").touch()
    (root / name / "notes.txt").touch()
asked = [
    ("plain", {}), ("plain", {"features": ["x"]}), ("nulls", {}), ("nulls", {"nulls": "drop"}),
    ("three", {}), ("one", {}), ("texts", {"features": ["visits"]}), ("plain", {"label": "click"}),
    ("plain", {"features": ["x", "y"]}), ("decimals", {}), ("plain", {"label": None}), ("nothing", {}),
    ("large", {}), ("infinite", {"features": ["x"]}), ("blank", {}), ("words", {}), ("constant", {}),
    ("plain", {"label": "id"}), ("dated", {}), ("dated", {"features": ["day"]}),
    ("plain", {"rows_per_group": 0}), ("cut", {}), *((name, {"features": ["x"]}) for name in more),
    ("days", {}), ("linked", {"features": ["x"]}), ("mixed", {}), ("hive", {}), ("letters", {}), ("shuffled", {}),
    ("twice", {}), ("parts", {}), ("yes", {}), ("bools", {"label": "flag"}), ("empty", {}),
    ("delta/day=1", {}), ("delta/day=1/a.parquet", {}), ("pointer", {}), ("null", {"nulls": "drop"}),
]
(root / "delta/_delta_log").mkdir(parents=True)
(root / "delta/day=1").mkdir()
rows.to_parquet(root / "delta/day=1/a.parquet")
(root / "pointer").mkdir()
(root / "pointer/a.parquet").write_text("version https://git-lfs.github.com/spec/v1\\noid sha256:4d\\nsize 1\\n")
(root / "null").mkdir()
rows.assign(x=pd.Series([None] * 700, dtype=float)).to_parquet(root / "null/a.parquet")
(root / "twice/m=1/m=2").mkdir(parents=True)
rows.to_parquet(root / "twice/m=1/m=2/a.parquet")
for part in ("train", "test"):
    (root / "parts" / part).mkdir(parents=True)
    (rows if part == "train" else -rows[["x", "visits"]].assign(clicked=0)).to_parquet(root / f"parts/{part}/a.parquet")
rows[:0].astype({"x": str}).drop(columns="visits").to_parquet(root / "parts/train/none.parquet")
(root / "yes").mkdir()
rows.assign(clicked="yes").to_parquet(root / "yes/a.parquet")
for flag, sign in (("true", 1), ("false", -1)):
    (root / f"bools/flag={flag}").mkdir(parents=True)
    rows[["x"]].mul(sign).to_parquet(root / f"bools/flag={flag}/a.parquet")
(root / "empty").mkdir()
rows[:0].to_parquet(root / "empty/a.parquet")
(root / "shuffled").mkdir()
rows.to_parquet(root / "shuffled/a.parquet")
rows.sample(frac=1, random_state=1).to_parquet(root / "shuffled/b.parquet", compression="gzip", row_group_size=99)
rows[:19].to_parquet(root / "shuffled/c.parquet")
rows[:19].to_parquet(root / "shuffled/d.parquet", compression="gzip")  # too few to say anything
rows.assign(x=-rows.x).to_parquet(root / "shuffled/e.parquet")
(root / "mixed").mkdir()
mixed = rows.assign(tags=[["a"]] * 700, when=pd.Timestamp("2025-01-01"), visits=[str(k) for k in rows["visits"]])
mixed.to_parquet(root / "mixed/a.parquet")
rows.assign(extra=1.0).to_parquet(root / "mixed/b.parquet")
(root / "hive").mkdir()
rows.to_parquet(root / "hive/000000_0")
(root / "hive/old.csv.xz").write_bytes(b"x")
(root / "hive/old.feather").write_bytes(b"x")
(root / "letters").mkdir()
rows[["clicked", "name"]].to_parquet(root / "letters/a.parquet")
(root / "days/dt=20250329").mkdir(parents=True)
rows.to_parquet(root / "days/dt=20250329/a.parquet")
(root / "linked").mkdir()
rows.to_parquet(root / "linked/a.parquet")
(root / "linked/b.parquet").symlink_to("a.parquet")
(root / "linked/c.parquet").hardlink_to(root / "linked/a.parquet")
(root / "linked/a (1).parquet").write_bytes((root / "linked/a.parquet").read_bytes())
for day in ("2025-01-01", "2025-01-02"):
    (root / f"dated/day={day}").mkdir(parents=True)
    rows.to_parquet(root / f"dated/day={day}/part-0.parquet")
(root / "cut").mkdir()
rows.to_parquet(root / "cut/a.parquet")
content = (root / "cut/a.parquet").read_bytes()
(root / "cut/a.parquet").write_bytes(content[:4] + bytes(2000) + content[2004:])
answers = []
for number, (name, settings) in enumerate(asked):
    out = root / f"out-{number}"
    out.mkdir()
    try:
        made = store_files.build(out, **{"path": str(root / name), "label": "clicked", **settings})
        table = pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("*/*.parquet"))]).to_pandas()
        made["visits"] = float(table["visits"].sum()) if "visits" in table else None
        made["sum"], made["groups"] = float(table["x"].sum()), len(list(out.glob("train/*.parquet")))
        ids = pq.read_table(out / "train").column("id").to_pylist()
        made["ids"] = sorted(ids) == list(range(made["rows"]["train"]))
        answers.append(made)
    except DatasetError as error:
        answers.append(str(error))
(root / "drawn").mkdir()
pd.DataFrame({"clicked": np.random.default_rng(0).random(700) < 0.5, "x": 1.0}).to_parquet(root / "drawn/a.parquet")
(root / "drawn/a.csv").write_text("clicked,x\\n1,2\\n")
more = []
for name in ("drawn", "drawn/*.parquet", "drawn/a.csv"):
    try:
        (root / f"more-{len(more)}").mkdir()
        more.append(store_files.build(root / f"more-{len(more)}", str(root / name), "clicked")["rows"])
    except DatasetError as error:
        more.append(str(error))
print()
print(json.dumps({"answers": answers, "more": more, "sum": float(x.sum()), "root": str(root)}))
"""


@pytest.fixture(scope="module")
def mine(recipe_python, tmp_path_factory):
    words = [recipe_python("petastorm"), "-c", MINE, ROOT / "data", tmp_path_factory.mktemp("mine")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_store_of_ones_own_is_read_as_it_is(mine):
    found, chosen = mine["answers"][:2]
    assert found["features"] == ["x", "visits", "month"], "numbers, without the label and id"
    assert found["account"] == {"read": 700, "good": 700, "quarantined": 0}
    assert sum(found["rows"].values()) == 700 and 100 < found["rows"]["test"] < 180
    assert found["sum"] == pytest.approx(mine["sum"], abs=1e-3)
    assert found["ids"] and found["groups"] >= 7
    assert found["mean"][2] == pytest.approx(1.5, abs=0.1) and found["std"][1] == pytest.approx(2, abs=0.1)
    assert [(os.path.basename(one["file"]), one["reason"]) for one in found["left_out"]] == [
        ("_SUCCESS", "hidden, or a writer's own"),
        ("notes.txt", "its ending is none of .parq, .parquet, .pq"),
    ]
    assert chosen["features"] == ["x"]


def test_labels_that_a_seed_has_drawn_do_not_decide_the_part(mine):
    """A label drawn by default_rng(0), as examples do, and a part drawn by the same numbers would be one thing."""
    assert sum(mine["more"][0].values()) == 700


def test_patterns_and_other_kinds_say_what_to_do(mine):
    assert "there is no such file or folder (a pattern is not taken: name the folder)" in mine["more"][1]
    assert "a.csv cannot be read: it is no Parquet file: convert it to Parquet" in mine["more"][2]


def test_values_that_no_network_can_take_end_the_build_or_are_counted(mine):
    refused, dropped = mine["answers"][2:4]
    assert "column 'x' has" in refused and "data.nulls=drop" in refused
    assert dropped["account"] == {"read": 700, "good": 630, "quarantined": 70}
    assert dropped["sum"] == 630


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (4, "label 'clicked' has the value 2.0; expected 0 or 1"),
        (5, "label 'clicked' is 1 in all"),
        (6, "column 'visits' is string, expected a number"),
        (7, "has no column 'click'; there are: clicked (bool), x (double)"),
        (8, "has no column 'y'"),
        (10, "which column is learnt?"),
        (11, "there is no such file or folder"),
        (12, "column 'visits' has whole numbers that float32 cannot hold (16777217)"),
        (13, "column 'x' has 350 values that are null, not a number or infinite (as float32)"),
        (14, "column 'my x': Petastorm takes only names"),
        (17, "and not `id`, which numbers the rows here"),
        (19, "column 'day' is string, expected a number"),
        (20, "rows_per_group=0: expected"),
        (21, "cut/a.parquet cannot be read"),
        (22, "column 'x' has whole numbers that float32 cannot hold (9007199254740993)"),
        (23, "cannot hold (18446744073709551615)"),
        (24, "cannot hold (16777217)"),
        (25, "cannot hold (16777217)"),
        (26, "column 'x' has numbers that float32 does not tell apart"),
        (27, "label 'clicked' has the value 0.9999999999; expected 0 or 1"),
        (-9, "twice/m=1/m=2/a.parquet lies in two folders that differ: m=1 and m=2"),
        (-7, "column 'clicked' is string, expected 0 or 1, or false or true; there are: "),
        (-5, "the 1 Parquet files have no rows"),
        (-4, "delta is a table of Delta: its files also hold rows"),
        (-3, "delta is a table of Delta: its files also hold rows"),
        (-2, "pointer/a.parquet cannot be read: it is a pointer of Git LFS, not the file itself"),
        (-1, "no row is left by data.nulls=drop: column 'x' has no number in 700 of 700 rows"),
        (28, "the folder dt=20250329 says a whole number that float32 cannot hold"),
    ],
)
def test_stores_of_ones_own_that_are_refused(mine, number, said):
    assert said in mine["answers"][number]


def test_parts_of_another_division_are_noted_and_files_without_rows_left_out(mine):
    found = mine["answers"][-8]
    assert found["notes"][-1].startswith("files or folders are called train and test (or val): their rows are mixed")
    assert (sum(found["rows"].values()), found["features"]) == (1400, ["x", "visits"])
    assert [one["reason"] for one in found["left_out"]] == ["it has no rows"]


def test_folders_named_true_and_false_are_a_label(mine):
    found = mine["answers"][-6]
    assert (sum(found["rows"].values()), found["sum"]) == (1400, pytest.approx(0, abs=1e-3))


def test_columns_that_are_no_features_are_named_with_the_reason(mine):
    found = mine["answers"][30]
    assert found["features"] == ["x"]
    told = [line.replace("(in /", "|").partition("|")[0].partition(" in /")[0].strip() for line in found["notes"][:-1]]
    assert told == [
        "not a feature: visits: it is string, not numbers",
        "not a feature: name: it is string, not numbers",
        "not a feature: id: the rows are numbered here by a column of this name",
        "not a feature: tags: it is list<element: string>, not numbers",
        "not a feature: when: it is timestamp[ms], not numbers",
        "not a feature: extra: it lacks",
    ]
    assert "mixed/b.parquet holds the same rows as " in found["notes"][-1]
    assert mine["answers"][1]["notes"] == [], "the features were named"
    assert "no number column beside the label 'clicked'\n  name: it is string, not numbers" in mine["answers"][32]


def test_a_folder_without_endings_says_what_was_left_out(mine):
    refused = mine["answers"][31]
    assert (
        "000000_0: its ending is none of .parq, .parquet, .pq, but it is Parquet: rename it, or name it in data.path"
        in refused
    )
    assert "old.csv.xz: its ending is none of .parq, .parquet, .pq: unpack it" in refused
    assert "old.feather: its ending is none of .parq, .parquet, .pq: convert it to Parquet" in refused


def test_a_file_of_several_names_is_read_once(mine):
    found = mine["answers"][29]
    assert found["account"]["read"] == 700
    reasons = {os.path.basename(one["file"]): one["reason"].partition(" as /")[0] for one in found["left_out"]}
    assert reasons == {"a (1).parquet": "the same content", "b.parquet": "the same file", "c.parquet": "the same file"}


def test_a_copy_in_other_words_is_read_and_named(mine):
    found = mine["answers"][33]
    assert found["account"]["read"] == 3 * 700 + 2 * 19
    assert found["features"] == ["x", "visits"]
    assert [note for note in found["notes"] if "holds" in note] == [
        f"{mine['root']}/shuffled/b.parquet holds the same rows as {mine['root']}/shuffled/a.parquet: they are counted "
        "twice, unless you leave one of the two out of data.path"
    ]
    assert "not a feature: __index_level_0__: pandas has numbered the rows by it" in found["notes"]


def test_decimals_and_dictionaries_are_numbers_and_a_constant_does_no_harm(mine):
    assert mine["answers"][9]["sum"] == 1.5 * 700
    assert mine["answers"][15]["visits"] == sum(range(7)) * 100
    assert mine["answers"][16]["std"][1] == 1.0
    assert mine["answers"][18]["features"] == ["x", "visits"], "a folder's date is no number"


def test_braces_name_files_whose_changes_count(tmp_path):
    (tmp_path / "a.log").write_text("1")
    before = datasets.fingerprint("log_files", {"path": f"{tmp_path}/{{a,b}}.log"})
    (tmp_path / "b.log").write_text("2")
    after = datasets.fingerprint("log_files", {"path": f"{tmp_path}/{{a,b}}.log"})
    (tmp_path / "{a,b}.log").write_text("3")  # a name is a name
    assert len({before, after, datasets.fingerprint("log_files", {"path": f"{tmp_path}/{{a,b}}.log"})}) == 3
    assert list(datasets.states(f"{tmp_path}/{{a,b}}.log")) == list(datasets.states([f"{tmp_path}/{{a,b}}.log"]))
    assert [line.split()[0] for line in datasets.states(f"{tmp_path}/{{a,b}}.log")] == [bytes(tmp_path / "{a,b}.log")]

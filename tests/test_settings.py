"""Settings: every combination composes, the command line beats the files, and bad values get a clear error."""

import itertools
import json
import os
import re
import runpy
import subprocess
import sys

import pytest
import yaml
from hydra import compose, initialize_config_dir

from cookbook import ROOT, UserError, settings, systems
from cookbook.settings import checks, choices, compose_recipe, files
from cookbook.settings.choices import with_defaults_of_choices
from cookbook.settings.files import CONF
from cookbook.settings.heeded import unheeded
from cookbook.settings.overrides import prepared
from cookbook.settings.ranges import RANGES, check_ranges
from runrecord import load_config, same_kind
from tests.helpers import CLEAN, recipes

GROUPS = {
    group: sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))
    for group in ("recipe", "cluster", "scale", "tracking", "data")
}


def test_no_group_is_empty():
    assert all(GROUPS.values()), GROUPS


def combinations():
    """All of them; with make test those that differ from the defaults in one thing beside the recipe."""
    for recipe, cluster, scale, tracking in itertools.product(
        *map(GROUPS.get, ("recipe", "cluster", "scale", "tracking"))
    ):
        defaults = [cluster == "local", scale == "default", tracking == "none"]
        quick = sum(defaults) >= 2 and (tracking == "none" or recipe == "pytorch")
        choice = (recipe, cluster, scale, tracking)
        yield pytest.param(choice, id="-".join(choice), marks=() if quick else pytest.mark.full)


@pytest.mark.parametrize("choice", list(combinations()))
def test_every_combination_composes(choice):
    words = [f"{group}={name}" for group, name in zip(("recipe", "cluster", "scale", "tracking"), choice, strict=True)]
    with initialize_config_dir(str(files.CONF), version_base="1.3"):
        composed = compose("config", overrides=words, return_hydra_config=True)
    assert composed.recipe.driver.system in systems.names()
    if composed.cluster.kind == "hosts":
        assert composed.cluster.num_workers is None, "as many as the inventory has slots"
    else:
        assert composed.cluster.num_workers >= 2, "distributed by default"
    assert composed.hydra.runtime.choices.tracking == choice[3]


def datasets_for_recipes():
    """(recipe, dataset, whether it fits); with make test those that fit, and one that does not."""
    holds = {name: yaml.safe_load((CONF / f"data/{name}.yaml").read_text())["holds"] for name in GROUPS["data"]}
    for recipe in recipes():
        takes = yaml.safe_load((CONF / f"recipe/{recipe}.yaml").read_text())["driver"]["takes"]
        fitting = [name for name in holds if holds[name] == takes]
        others = [name for name in holds if name not in fitting]
        assert fitting and others, recipe
        for name in [*fitting, *others]:
            quick = name in [*fitting, others[0]]
            yield pytest.param(recipe, name, name in fitting, marks=() if quick else pytest.mark.full)


@pytest.mark.parametrize(("recipe", "data", "fits"), list(datasets_for_recipes()))
def test_data_on_the_command_line_beats_the_recipe_where_it_fits(recipe, data, fits):
    if not fits:
        with pytest.raises(UserError, match=f"data={data} holds .* choose data="):
            compose_recipe(recipe, [f"data={data}"])
        return
    config, choices = compose_recipe(recipe, [f"data={data}"])
    assert choices["data"] == data
    assert config["data"]["builder"] == (None if data == "none" else data)
    assert config["data"]["holds"] == config["recipe"]["driver"]["takes"]


@pytest.mark.parametrize("recipe", recipes())
def test_every_setting_has_a_comment_and_one_home(recipe):
    config, choices = compose_recipe(recipe)
    flat = settings.worker_settings(config, "data", "out")
    text = settings.commented_yaml(flat, choices)
    assert yaml.safe_load(text) == flat
    assert [line for line in text.splitlines() if not re.search(r"  #( |$)", line)] == []


@pytest.mark.parametrize(
    ("recipe", "words", "ignored"),
    [
        ("pytorch", ["recipe.compile=true", "recipe.precision=bf16"], []),
        ("pytorch", ["recipe.mode=fsdp", "recipe.compile=true", "+recipe.momentum=0"], ["compile=true", "momentum=0"]),
        ("pytorch", ["recipe.mode=tensor_parallel", "recipe.precision=bf16", "seed=3"], ["precision=bf16"]),
        ("horovod", ["recipe.mode=tensorflow", "recipe.commit_every_steps=3"], ["commit_every_steps=3"]),
        ("horovod", ["recipe.commit_every_steps=3", "recipe.controller=mpi", "recipe.cycle_time_ms=2"], []),
        ("ray_train", ["recipe.mode=core", "recipe.num_epochs=3", "recipe.num_tasks=4"], ["num_epochs=3"]),
        ("tensorflow", ["recipe.mode=parameter_server", "recipe.auto_shard=own"], ["auto_shard=own"]),
        ("tensorflow", ["recipe.mode=parameter_server", "recipe.clip_norm=5", "recipe.num_ps=2"], []),
        ("spark", ["recipe.memory_mb=900", "recipe.java_options=-Xss9m", "recipe.num_folds=3"], []),
    ],
)
def test_a_setting_that_nothing_reads_in_the_mode_is_named(recipe, words, ignored):
    config, _ = compose_recipe(recipe, [word.lstrip("+") for word in words])
    said = unheeded(recipe, config, words)
    mode = f" recipe.mode={config['recipe']['mode']}" if "mode" in config["recipe"] else ""
    assert said == [f"recipe.{word}: with recipe={recipe}{mode} nothing reads this setting" for word in ignored]


@pytest.mark.parametrize("recipe", recipes())
def test_each_setting_is_read_in_some_mode(recipe):
    own = yaml.safe_load((CONF / f"recipe/{recipe}.yaml").read_text())
    names = own.keys() - {"defaults", "driver", "mode"}
    for mode in own["driver"].get("modes") or [None]:
        config, _ = compose_recipe(recipe, [f"recipe.mode={mode}"] if mode else [])
        said = unheeded(recipe, config, [f"recipe.{name}=x" for name in names])
        names &= {word.partition("=")[0].removeprefix("recipe.") for word in said}
    assert names == set()


@pytest.mark.parametrize(
    ("recipe", "old"), [("horovod", "framework"), ("ray_train", "framework"), ("tensorflow", "strategy")]
)
@pytest.mark.parametrize("sign", ["", "+"])
def test_an_old_name_of_the_mode_is_refused_with_the_new_one(recipe, old, sign):
    with pytest.raises(UserError) as raised:
        compose_recipe(recipe, [f"{sign}recipe.{old}=this"])
    assert str(raised.value) == f"recipe.{old} is called recipe.mode now: recipe.mode=this"


@pytest.mark.parametrize("word", ["recipe.driver.proof=[]", "recipe.driver.nothing=1", "+recipe.driver.short=[]"])
def test_what_a_recipe_says_to_the_driver_is_no_setting(word):
    with pytest.raises(UserError, match="belongs to the recipe and is no setting"):
        compose_recipe("horovod", [word])


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("takes_notice:", "take_notice:", "driver.take_notice means nothing; there are: address, "),
        ("  tools:", "  tool:", "driver lacks tools"),
        ("    ft_ddp:\n", "    ft_ddp:\n      elastc: true\n", "driver.modes.ft_ddp.elastc means nothing"),
    ],
)
def test_a_misspelt_word_to_the_driver_is_refused(tmp_path, monkeypatch, old, new, text):
    content = (CONF / "recipe/pytorch.yaml").read_text()
    assert old in content
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe/pytorch.yaml").write_text(content.replace(old, new, 1))
    monkeypatch.setattr(checks, "CONF", tmp_path)
    with pytest.raises(UserError, match=text):
        checks.check_driver("pytorch")


@pytest.mark.parametrize("recipe", recipes())
def test_what_chooses_between_programs_is_called_mode(recipe):
    own = yaml.safe_load((ROOT / f"conf/recipe/{recipe}.yaml").read_text())
    folder = ROOT / "recipes" / recipe
    programs = {
        path.stem.removeprefix(start)
        for start in ("main_", "requirements-")
        for path in folder.glob(f"{start}*")
        if path.suffix in (".py", ".txt")
    }
    modes = own["driver"].get("modes", {})
    assert programs <= set(modes)
    assert not modes or own["mode"] in modes


def test_overrides_beat_recipe_defaults_and_scale():
    config, _ = compose_recipe(
        "horovod", ["recipe.num_epochs=3", "scale=smoke", "scale.max_rows=100", "cluster.num_workers=4"]
    )
    flat = settings.worker_settings(config, "data", "out")
    assert (flat["num_epochs"], flat["max_rows"], flat["max_steps"]) == (3, 100, 40)
    assert config["cluster"]["num_workers"] == 4


@pytest.mark.parametrize(
    ("override", "text"),
    [
        (
            "recipe.num_epochs=many",
            "recipe.num_epochs='many': expected a whole number, like the default 15 in conf/recipe/horovod.yaml",
        ),
        ("recipe.num_epochs=1.5", "expected a whole number"),
        ("recipe.elastic=1", "expected true or false"),
        ("recipe.learning_rate=fast", "expected a number"),
        (
            "cluster.num_workers=two",
            "cluster.num_workers='two': expected a whole number, like the default 2 in conf/cluster/local.yaml",
        ),
        ("seed=x", "seed='x': expected a whole number"),
        ("cluster.port=abc", "cluster.port='abc': expected a whole number, or null"),
        ("cluster.port=1.5", "cluster.port=1.5: expected a whole number, or null"),
        ("cluster.num_workers=0", "cluster.num_workers=0: expected a whole number from 1 to 10000"),
    ],
)
def test_wrong_kinds_are_refused(override, text):
    with pytest.raises(UserError, match=text.replace("(", r"\(")):
        compose_recipe("horovod", [override])


@pytest.mark.parametrize(("override", "value"), [("recipe.learning_rate=1", 1), ("scale.max_steps=7", 7)])
def test_values_that_fit_are_taken(override, value):
    config, _ = compose_recipe("horovod", [override])
    group, key = override.split("=")[0].split(".")
    assert config[group][key] == value


@pytest.mark.parametrize(
    ("value", "default", "fits"),
    [
        (1, 2, True),
        (1, 2.0, True),
        (True, 2, False),
        (True, 2.0, False),
        (1.0, 2, False),
        ("a", "b", True),
        (None, 1, False),
        (3, None, True),
    ],
)
def test_same_kind(value, default, fits):
    assert same_kind(value, default) is fits


def test_the_nearest_name_is_suggested():
    with pytest.raises(
        UserError, match=r"recipe=horovodd does not exist; did you mean recipe=horovod\? There are: .*horovod"
    ):
        choices.check_choices(["recipe=horovodd"])
    with pytest.raises(UserError, match=r"did you mean scale=smoke\?"):
        choices.check_choices(["recipe=horovod", "scale=smokee"])
    with pytest.raises(UserError, match="which recipe"):
        choices.check_choices(["recipe.num_epochs=3"])
    choices.check_choices(["-m", "recipe=horovod", "data=digits,images"])


@pytest.mark.parametrize(
    ("name", "launcher"), [("RANK", "torchrun"), ("OMPI_COMM_WORLD_RANK", "mpirun"), ("HOROVOD_RANK", "horovodrun")]
)
def test_the_driver_refuses_to_be_a_worker(name, launcher):
    with pytest.raises(UserError, match=f"{name}=1: the driver was started by {launcher}"):
        settings.refuse_to_be_a_worker({name: "1"})
    settings.refuse_to_be_a_worker({})


@pytest.mark.parametrize("word", ["data=", "scale=", "data=mnist,"])
def test_an_empty_choice_is_refused_with_what_there_is(word):
    with pytest.raises(UserError, match=rf"{word.partition('=')[0]}= does not exist. There are: "):
        choices.check_choices(["recipe=pytorch", word])


def test_worker_config_overrides(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("num_epochs: 3\nname: a\nlimit: null\nrate: 0.5\n")
    config = load_config([str(path), "num_epochs=5", "limit=7", "rate=1"])
    assert (config.num_epochs, config.name, config.limit, config.rate) == (5, "a", 7, 1)
    with pytest.raises(SystemExit, match="unknown setting 'epochs=3'; .* has: limit, name, num_epochs, rate"):
        load_config([str(path), "epochs=3"])
    with pytest.raises(SystemExit, match="num_epochs=x is not like the default 3: expected int"):
        load_config([str(path), "num_epochs=x"])
    with pytest.raises(SystemExit, match="no config file at"):
        load_config([str(tmp_path / "missing.yaml")])
    with pytest.raises(SystemExit, match="no config file at"):
        load_config([])


def test_numbers_of_workers():
    config, _ = compose_recipe("horovod", ["cluster.num_workers=9", "scale=smoke"])
    with pytest.raises(UserError, match=r"cluster.num_workers=9 is more than this scale allows \(4\)"):
        checks.check_workers(config, 2)
    config, _ = compose_recipe("horovod", ["cluster.num_workers=4"])
    assert checks.check_workers(config, 2) == "4 worker threads share 2 cores: this runs, but its speed says nothing"
    assert checks.check_workers(config, 4) is None


def test_workers_of_hosts_are_a_whole_number_or_as_many_as_the_inventory_has():
    assert compose_recipe("horovod", ["cluster=hosts"])[0]["cluster"]["num_workers"] is None
    for value in ("abc", "true", "1.5"):
        with pytest.raises(UserError, match="cluster.num_workers=.*: expected a whole number, or null"):
            compose_recipe("horovod", ["cluster=hosts", f"cluster.num_workers={value}"])


def test_settings_of_the_dataset_that_a_mode_brings():
    config, _ = compose_recipe("pytorch", ["recipe.mode=fsdp", "data.parameters.num_train_rows=64"])
    assert config["data"]["parameters"]["num_train_rows"] == 64 and config["data"]["builder"] == "python_source"
    with pytest.raises(UserError, match="there is no setting data.parameters.num_train_rows"):
        compose_recipe("pytorch", ["data.parameters.num_train_rows=64"])


def test_a_scale_changes_what_only_a_dataset_or_a_recipe_has():
    lines = [compose_recipe("spark", words)[0]["data"] for words in ([], ["scale=smoke"], ["scale=bench"])]
    assert [data["parameters"]["num_lines"] for data in lines] == [300_000, 20_000, 5_500_000]
    assert all("scales" not in data for data in lines)
    typed = compose_recipe("spark", ["scale=smoke", "data.parameters.num_lines=12345"])[0]
    assert typed["data"]["parameters"]["num_lines"] == 12345, "the command line wins"
    assert compose_recipe("dask", ["scale=bench"])[0]["data"]["parameters"]["num_copies"] == 10
    assert compose_recipe("petastorm", ["scale=smoke"])[0]["data"]["parameters"]["keep_every"] == 5
    assert compose_recipe("petastorm", ["scale=smoke", "recipe.mode=digits"])[1]["data"] == "digits_store"
    recipe = compose_recipe("ray_rllib", ["scale=smoke"])[0]["recipe"]
    assert (recipe["num_seeds"], recipe["num_iterations"]) == (1, 10)
    sweep = prepared(with_defaults_of_choices(["-m", "recipe=dask", "data=flights,flights_files"]))
    assert "data=flights,flights_files" in sweep
    with pytest.raises(UserError, match="data=flights,flights_files needs different settings at this scale"):
        with_defaults_of_choices(["-m", "recipe=dask", "data=flights,flights_files", "scale=smoke"])


def test_null_and_nothing_in_a_group_that_takes_any_name():
    words = [
        "data=flights_files",
        "data.columns.time_hour=null",
        "data.columns.distance=",
        "data.columns.dest=12",
        "data.columns.origin=#N/A",
    ]
    columns = compose_recipe("dask", words)[0]["data"]["columns"]
    assert (columns["time_hour"], columns["distance"], columns["dest"], columns["origin"]) == (None, "", "12", "#N/A")


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("[null]", ["null"]),
        ("[NULL,NaN,007,1e5,true]", ["NULL", "NaN", "007", "1e5", "true"]),
        ("[#N/A, größe]", ["#N/A", "größe"]),
        ("['a,b',\"c's\", my x ]", ["a,b", "c's", "my x"]),
        ("[]", []),
        ("null", None),
        ("NULL", "NULL"),
        ("-999", "-999"),
        ("größe", "größe"),
        ("['${x}']", ["${x}"]),
        ("['']", [""]),
    ],
)
def test_a_list_of_texts_is_taken_as_it_is_typed(word, value):
    assert compose_recipe("dask", ["data=flights_files", f"data.missing={word}"])[0]["data"]["missing"] == value
    assert compose_recipe("petastorm", ["data=store_files", f"data.features={word}"])[0]["data"]["features"] == value


def test_options_of_sbatch_are_taken_as_the_file_s_own_comment_has_them():
    words = ["cluster=slurm", "cluster.sbatch_options=[--qos=high, --constraint=a100]", "cluster.inherit=[NCCL_*, A_B]"]
    cluster = compose_recipe("pytorch", words)[0]["cluster"]
    assert (cluster["sbatch_options"], cluster["inherit"]) == (["--qos=high", "--constraint=a100"], ["NCCL_*", "A_B"])
    with pytest.raises(UserError, match=r"cluster.sbatch_options='--qos=high': expected a list"):
        compose_recipe("pytorch", ["cluster=slurm", "cluster.sbatch_options=--qos=high"])


def test_a_sweep_over_recipes_takes_settings_that_all_of_them_have():
    """Hydra composes what is not swept first, without any recipe: it would find no such setting."""
    words = ["-m", "recipe=pytorch,horovod", "recipe.num_epochs=1", "recipe.learning_rate=0.1,0.2", "seed=3"]
    made = ["-m", "recipe=pytorch,horovod", "recipe.num_epochs=choice(1)", "recipe.learning_rate=0.1,0.2", "seed=3"]
    assert prepared(words) == made
    words = ["-m", "recipe=spark", "data=web_logs,log_files", "recipe.num_folds=3", "data.parameters.x=1"]
    with pytest.raises(UserError, match="there is no setting data.parameters.x"):
        prepared(words)
    assert prepared(words[:-1])[-1] == "recipe.num_folds=3"
    with pytest.raises(UserError, match="recipe.num_epochs=1: recipe=dask has no such setting; sweep over recipes"):
        prepared(["-m", "recipe=pytorch,dask", "recipe.num_epochs=1"])
    with pytest.raises(UserError, match="recipe=spark,dask needs different settings at this scale"):
        with_defaults_of_choices(["-m", "recipe=spark,dask", "scale=smoke"])
    assert with_defaults_of_choices(["-m", "recipe=pytorch,horovod", "scale=smoke"])[-1] == "scale=smoke"


@pytest.mark.parametrize("word", ["a,b", "[a,,b]", "[a", "[a,[b]]"])
def test_what_is_no_list_of_texts_is_refused(word):
    with pytest.raises(UserError, match=r"data.features=.*: a list is written data.features=\[a,b\]"):
        compose_recipe("petastorm", ["data=store_files", f"data.features={word}"])


@pytest.mark.parametrize("separator", ["\t", " ", ";", ",", "|", "^", "tab"])
def test_a_separator_is_taken_as_it_is(separator):
    assert (
        compose_recipe("dask", ["data=flights_files", f"data.separator={separator}"])[0]["data"]["separator"]
        == separator
    )


@pytest.mark.parametrize(("word", "value"), [("true", "true"), ("1", "1"), ("NaN", "NaN"), ("null", None)])
def test_a_label_is_a_text(word, value):
    assert compose_recipe("petastorm", ["data=store_files", f"data.label={word}"])[0]["data"]["label"] == value


@pytest.mark.parametrize("key", ["output_root", "cache_dir", "data.parameters.download_dir", "cluster.notice_file"])
def test_a_tilde_is_the_home_folder(monkeypatch, key):
    monkeypatch.setenv("HOME", "/home/me")
    found = compose_recipe("pytorch", ["data=mnist", f"{key}=~/my runs"])[0]
    for name in key.split("."):
        found = found[name]
    assert found == "/home/me/my runs"


@pytest.mark.parametrize("quotes", ["", '"'])
def test_a_text_of_infra_is_taken_as_it_is(quotes):
    key = "ssh-ed25519 AAAAC3Nz/aC1+x= me@laptop"
    words = [f"infra.variables.public_key={quotes}{key}{quotes}", "infra.variables.bastion_cidrs=[203.0.113.7/32]"]
    found = settings.compose_infra("aws", [*words, "infra.variables.ttl_hours=4", "infra.state=s3://mine/path"])
    variables = found["variables"]
    assert (variables["public_key"], variables["bastion_cidrs"]) == (key, ["203.0.113.7/32"])
    assert (variables["ttl_hours"], variables["market"], found["state"]) == (4, "on-demand", "s3://mine/path")
    with pytest.raises(UserError, match=r"infra\.variables\.nme.*There are: name, region"):
        settings.compose_infra("aws", ["infra.variables.nme=x"])


def test_null_is_taken_where_the_file_says_what_it_means():
    config, _ = compose_recipe("spark", ["data=log_files", "data.event_start=null"])
    assert config["data"]["parameters"]["event_start"] is None
    with pytest.raises(UserError, match=r"data.epoch_unit=null: expected a text"):
        compose_recipe("spark", ["data=log_files", "data.epoch_unit=null"])


def numbers_of(content):
    for key, value in content.items():
        if isinstance(value, dict):
            yield from numbers_of(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield key


def test_every_number_that_takes_memory_or_time_has_an_upper_bound():
    free = "learning_rate clip_norm gamma min_accuracy target_return threshold common_share test_share validation_share"
    free += " background channels spark.sql.shuffle.partitions"  # checked by their recipe, their builder, or Spark
    found = set()
    for path in CONF.glob("*/*.yaml"):
        if path.parent.name != "infra":  # their limit is the price
            content = yaml.safe_load(path.read_text()) or {}
            for other in ("driver", "scales"):
                content.pop(other, None)
            found |= set(numbers_of(content))
    assert found - set(free.split()) - set(RANGES) == set()
    assert {name for name, (_, high) in RANGES.items() if not high < 2**37} == set()


@pytest.mark.parametrize("recipe", recipes())
def test_the_least_value_of_a_recipe_s_setting_stands_in_one_place(recipe, tmp_path, monkeypatch):
    """In the recipe's settings.py, which goes with a copy of the recipe, or in RANGES: one of them, and not both."""
    config, _ = compose_recipe(recipe)
    flat = settings.worker_settings(config, "data", "out")
    found = {}
    for name in config["recipe"].keys() & RANGES.keys():
        low = RANGES[name][0]
        (tmp_path / "config.yaml").write_text(json.dumps(flat | {name: -(10**9) if low is None else low - 1}))
        monkeypatch.setattr(sys, "argv", ["settings.py", str(tmp_path / "config.yaml"), "2"])
        try:
            runpy.run_path(str(ROOT / f"recipes/{recipe}/settings.py"), run_name="__main__")
            refused = False
        except SystemExit as error:
            refused = str(error).startswith(f"{name}=")
        found[name] = (low is not None, refused)
    assert {name: both for name, both in found.items() if both[0] == both[1]} == {}


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        (
            "fusion_threshold_mb",
            10**9,
            "recipe.fusion_threshold_mb=1000000000: expected a whole number from 0 to 65536",
        ),
        ("cycle_time_ms", 1e12, "expected a number from 0 to 60000"),
        ("bucket_cap_mb", 0, "recipe.bucket_cap_mb=0: expected a whole number from 1 to 1000000"),
        ("width", 10**8, "recipe.width=100000000: expected a whole number of at most 16384"),
        ("size", 16384, "expected a whole number from 1 to 4096"),
        ("num_train_rows", 10**12, "expected a whole number from 1 to 100000000"),
        ("num_epochs", 10**20, "expected a whole number of at most 1000000"),
        ("prefetch_chunks", 10**9, "of at most 10000"),
        ("num_classes", 1, "expected a whole number from 2 to 1000"),
        ("malformed_every", 0, "from 2 to"),
        ("test_fraction", 0, "expected a share between 0 and 1 (0.2 for 20 %)"),
        ("test_fraction", 1, "expected a share between 0 and 1 (0.2 for 20 %)"),
        ("max_malformed_share", 5, "expected a share between 0 and 1 (0.05 for 5 %)"),
        ("port", "http", "recipe.port='http': expected a whole number, or null"),
        ("cycle_time_ms", [1], "recipe.cycle_time_ms=[1]: expected a number"),
    ],
)
def test_values_that_would_die_late_are_refused(name, value, text):
    with pytest.raises(UserError) as caught:
        check_ranges({name: value}, "recipe")
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("spark", ["scale.max_rows=100"]),
        ("dask", ["scale=smoke", "scale.max_steps=3"]),
        ("ray_rllib", ["scale.max_steps=3"]),
        ("pytorch recipe.mode=collectives", ["scale.max_steps=3"]),
        ("ray_train recipe.mode=core", ["scale.max_rows=3"]),
    ],
)
def test_a_cap_that_no_program_heeds_is_refused(recipe, overrides):
    name, *mode = recipe.split()
    with pytest.raises(UserError, match=f"{overrides[-1]}: recipe={recipe}.* knows no such cap, and would take no"):
        compose_recipe(name, [*mode, *overrides])
    compose_recipe(name, [*mode, "scale=smoke", "scale.max_steps=null"])  # no cap at all is always heeded


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["output_root=a", "output_root=b"], "output_root is given twice, as a and as b: say one"),
        (["data=digits", "data=mnist"], "data is given twice, as digits and as mnist"),
        (["recipe=horovod"], "recipe is given twice, as spark and as horovod"),
        (["=1"], "'=1' is no setting"),
        (["recipe@x=1"], "'recipe@x=1' is no setting"),
        (["recipe.window_minutes =1"], "'recipe.window_minutes =1' is no setting"),
        (["recipe/window_minutes=1"], "did you mean recipe.window_minutes?"),
        (["--seed=1"], "--seed=1 is no option; a setting has no dashes in front: seed=1"),
        (["-seed=1"], "a setting has no dashes in front: seed=1"),
        (["--resume"], "--resume is no option"),
        (["data.path=/logs"], "no setting data.path with this choice; data=flights_files and data=image_folder and"),
        (
            ["cluster.inventory=h.yaml"],
            "no setting cluster.inventory with this choice; cluster=hosts and cluster=skypilot have it.",
        ),
        (["data.parameters.num_line=3"], "did you mean data.parameters.num_lines?"),
        (["output_root=s3://mine/runs"], "expected a folder on this machine (checkpoints can be kept in"),
        (["cache_dir=file:///tmp/x"], "expected a folder on this machine"),
        ([r"output_root=C:\Users\me\runs"], "this is a path of Windows; in WSL the folder C:"),
        ([r"output_root=\\server\runs"], "this is a path of Windows"),
        (["output_root=~nobody9/runs"], "there is no such user"),
        (["output_root=$SCRATCH/runs"], "$SCRATCH is filled in by a shell"),
        (["hydra.run.dir=/scratch"], "output_root=FOLDER says where runs are kept"),
        (["hydra.job.chdir=true"], "this says nothing about a run"),
        (["cluster.kind=slurm"], "cluster.kind is what the chosen file says; choose another file: cluster=slurm"),
        (["data.builder=nginx"], "choose another file: data=NAME; there are: cifar10, "),
        (["data.holds=images"], "data.holds is what the chosen file says"),
        (["tracking=mlflow", "tracking.kind=otlp"], "choose another file: tracking=otlp"),
        (["recipe.driver=null"], "recipe.driver belongs to the recipe and is no setting"),
        (["data.parameters={}"], "is no setting, but a group of them; set one: data.parameters.malformed_every, "),
        (["recipe.threshold=6,5"], "takes -m; a decimal point is a dot: recipe.threshold=6.5"),
        (["recipe.threshold=5.5,6.5"], "takes -m; choose one"),
        (["recipe.threshold=interval(0,1)"], "nothing here draws numbers from an interval; list them"),
        (["recipe.lr=1"], "there is no setting recipe.lr. There are: recipe.common_share"),
        (["recipe.start_timeout_seconds=9"], "is what cluster.start_timeout_seconds says; set that one: cluster.start"),
    ],
)
def test_words_that_are_no_settings_or_two(overrides, text):
    with pytest.raises(UserError) as caught:
        prepared(["recipe=spark", *overrides])
    assert text in str(caught.value)
    assert prepared(["-m", "--cfg", "job", "--config-dir=x", "seed=1"])[:2] == ["-m", "--cfg"]
    words = ["recipe=pytorch", "-m", "seed=1,2", "--cfg", "job", "--package", "recipe", "scale.max_steps=3"]
    assert prepared(words) == ["-m", "--cfg", "job", "--package", "recipe", words[0], words[2], words[-1]]
    assert prepared(["recipe=spark", "output_root=/tmp/5$ [a] 100%"])[1:] == ["output_root='/tmp/5$ [a] 100%'"]
    assert prepared(["recipe=spark", "seed=1", "seed=2"])[1:] == ["seed=1", "seed=2"], "the last one counts"


@pytest.mark.parametrize(
    ("recipe", "override", "text"),
    [
        ("spark", "data.parameters.num_lines=1e6", "num_lines=1000000.0: expected a whole number"),
        ("spark", "data.parameters.num_lines=many", "num_lines='many': expected a whole number"),
        ("spark", "data.parameters.num_lines=null", "num_lines=null: expected a whole number"),
        ("ray_tune", "recipe.learning_rates=[a,0.5]", "'a' is not a number, as all of [0.001, 0.5] are"),
    ],
)
def test_a_parameter_of_a_dataset_and_a_list_have_their_kind(recipe, override, text):
    with pytest.raises(UserError) as caught:
        compose_recipe(recipe, [override])
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "key", "value"),
    [
        ("spark", "num_clusters", 1),
        ("spark", "threshold", 0.0),
        ("tensorflow", "clip_norm", 0.0),
        ("ray_rllib", "learning_rate", 0.0),
        ("ray_rllib", "learning_rate", -1e-3),
    ],
)
def test_numbers_with_which_nothing_is_learnt_or_found_are_refused(tmp_path, recipe, key, value):
    config, _ = compose_recipe(recipe, ["scale=smoke"])
    flat = settings.worker_settings(config, tmp_path, tmp_path) | {key: value}
    (tmp_path / "config.yaml").write_text(json.dumps(flat))
    words = [sys.executable, ROOT / f"recipes/{recipe}/settings.py", tmp_path / "config.yaml", "2"]
    path = os.pathsep.join(map(str, (ROOT / "runrecord", ROOT / f"recipes/{recipe}")))
    done = subprocess.run(words, capture_output=True, text=True, env={**CLEAN, "PYTHONPATH": path})
    assert done.returncode == 1
    assert f"{key}={value}: " in done.stderr and "Traceback" not in done.stderr

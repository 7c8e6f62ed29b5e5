"""The processes that a run starts, compared with what the launchers themselves document."""

import re
import socket
import subprocess
from pathlib import Path

import pytest

from cookbook import ROOT, UserError
from cookbook.settings import compose_recipe, files
from cookbook.systems import horovod, spark
from cookbook.tools.eject import eject
from tests.helpers import plan as planned


def plan(*overrides):
    config, _ = compose_recipe("horovod", overrides)
    return planned(config, ROOT / "recipes/horovod", Path("/env/bin/python"), Path("/run"))[0]


def test_the_environment_s_own_libraries_come_before_those_of_a_loaded_module(tmp_path, monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", "/apps/openmpi/4.1/lib:/usr/local/cuda/lib64")
    for place in ("local", "slurm"):
        found = plan("recipe.controller=mpi", f"cluster={place}")
        text = found.environment.get("LD_LIBRARY_PATH") or "".join(found.files.values())
        assert "/env/lib:/apps/openmpi/4.1/lib:/usr/local/cuda/lib64" in text
    assert "LD_LIBRARY_PATH" not in (eject("horovod", tmp_path / "mine") / "Makefile").read_text()
    monkeypatch.delenv("LD_LIBRARY_PATH")
    assert "LD_LIBRARY_PATH" not in plan().environment


def test_horovodrun_over_gloo():
    process = plan(
        "cluster.num_workers=4", "recipe.fusion_threshold_mb=32", "recipe.cycle_time_ms=0.5", "recipe.timeline=true"
    )
    words = " ".join(process.argv)
    # horovodrun's servers listen on all addresses: see runrecord/netrun.py.
    assert process.argv[:4] == ["/env/bin/python", "-m", "netrun", "/env/bin/horovodrun"]
    assert "--disable-cache -np 4" in words, "its cache would lie in the home, which may be read-only"
    assert "-H localhost:4 --gloo --network-interfaces lo" in words
    assert "--fusion-threshold-mb 32 --cycle-time-ms 0.5 --timeline-filename /run/timeline.json" in words
    assert process.argv[-3:] == ["/env/bin/python", str(ROOT / "recipes/horovod/main.py"), "/run/config.yaml"]
    assert process.environment["OMP_NUM_THREADS"] == "1"
    assert process.environment["PATH"].startswith("/env/bin:")
    assert process.files == {}


def test_horovodrun_over_mpi():
    process = plan("recipe.controller=mpi")
    assert "--mpi" in process.argv
    assert "--gloo" not in process.argv
    assert process.environment["OMPI_MCA_btl_tcp_if_include"] == "lo"


def test_horovodrun_elastic():
    process = plan("recipe.elastic=true", "cluster.num_workers=3")
    words = " ".join(process.argv)
    assert "--min-np 1 --max-np 3 --host-discovery-script /run/discover_hosts.sh" in words
    assert "-H " not in words
    assert process.files == {"/run/discover_hosts.sh": "#!/bin/sh\necho localhost:2\necho 127.0.0.1:1\n"}


def test_the_script_of_hosts_lists_those_that_answer(tmp_path):
    script = tmp_path / "discover_hosts.sh"
    with socket.create_server(("127.0.0.1", 0)) as sshd:
        script.write_text(horovod.DISCOVERY.format(slots="127.0.0.1:2 127.0.0.2:1", port=sshd.getsockname()[1]))
        listed = subprocess.run(["sh", script], capture_output=True, text=True, check=True)
    assert (listed.stdout, listed.stderr) == ("127.0.0.1:2\n", "")
    assert subprocess.run(["sh", script], capture_output=True, text=True, check=True).stdout == "", "nobody is left"


def test_horovodrun_gives_the_script_of_hosts_to_a_shell():
    config, _ = compose_recipe("horovod", ["recipe.elastic=true"])
    (process,) = planned(config, ROOT / "recipes/horovod", Path("/env/bin/python"), Path("/my run"))
    assert "--host-discovery-script '/my run/discover_hosts.sh'" in " ".join(process.argv)
    assert list(process.files) == ["/my run/discover_hosts.sh"]


def test_tensorflow_is_a_program_of_its_own():
    assert plan("recipe.mode=tensorflow").argv[-2].endswith("main_tensorflow.py")


def test_every_option_is_one_that_horovodrun_knows(recipe_python):
    python = recipe_python("horovod")
    known = subprocess.run(
        [str(python.parent / "horovodrun"), "--help"], capture_output=True, text=True, check=True
    ).stdout
    for overrides in (
        ["recipe.timeline=true", "recipe.cycle_time_ms=2"],
        ["recipe.controller=mpi"],
        ["recipe.elastic=true"],
    ):
        options = [word.split("=")[0] for word in plan(*overrides).argv[4:-3] if re.match(r"--?[a-zA-Z]", word)]
        assert len(options) >= 3
        assert [option for option in options if not re.search(rf"(^|[\s,]){re.escape(option)}[\s,]", known, re.M)] == []


def test_by_hand_is_ready_to_paste():
    text = plan("recipe.controller=mpi").shell_command
    assert text.startswith("PATH=/env/bin:$PATH OMP_NUM_THREADS=1 ")
    assert "'--binding-args=--bind-to none --map-by slot'" in text


def test_an_unknown_launcher():
    config, _ = compose_recipe("horovod")
    config["recipe"]["driver"]["system"] = "ansible"
    with pytest.raises(UserError, match="driver.system='ansible' is unknown; there are: .*horovod"):
        planned(config, ROOT / "recipes/horovod", "/p/bin/python", "/run")


def test_comments_are_found():
    path = files.CONF / "recipe/horovod.yaml"
    found = files.comments_of(path)
    assert found["num_epochs"] == "passes over the training rows"
    assert found["takes_notice"].endswith("when their machine is taken away (docs/preemption.md)"), "over two lines"


@pytest.mark.parametrize("length", [10, 60, 200])
def test_a_comment_comes_back_from_as_many_lines_as_it_takes(tmp_path, length):
    comment = " ".join(["what", "it", "means;", "null:", "nothing"] * (length // 5))
    for line in ("key: 1", f"key: {'x' * 100}"):
        text = files.commented(line, comment, 40)
        assert max(map(len, text.splitlines())) <= files.LENGTH
        (tmp_path / "x.yaml").write_text(f"{text}\nother: 2  # something else\n")
        assert files.comments_of(tmp_path / "x.yaml") == {"key": comment, "other": "something else"}


def plan_of(recipe, *overrides):
    config, _ = compose_recipe(recipe, overrides)
    return planned(config, ROOT / f"recipes/{recipe}", Path("/env/bin/python"), Path("/run"))[0]


def test_spark_submit():
    process = plan_of("spark", "cluster.num_workers=3", "recipe.memory_mb=700")
    words = " ".join(process.argv)
    assert process.argv[:3] == ["/env/bin/spark-submit", "--master", "local-cluster[3,1,700]"]
    assert "--conf spark.executor.memory=700m" in words
    assert "--conf spark.driver.host=127.0.0.1" in words
    assert "spark.authenticate" not in words
    assert process.environment["SPARK_LOCAL_IP"] == "127.0.0.1"
    assert process.environment["PYSPARK_PYTHON"] == "/env/bin/python"


@pytest.mark.parametrize("writable", [True, False])
def test_spark_of_an_environment_that_cannot_be_written(tmp_path, monkeypatch, writable):
    """Its workers write into SPARK_HOME/work, and no setting says otherwise."""
    installed = tmp_path / "env/lib/python3.11/site-packages/pyspark"
    for name in ("bin", "jars", "work"):
        (installed / name).mkdir(parents=True)
    monkeypatch.setattr(spark.os, "access", lambda path, mode: writable or path != installed)
    (tmp_path / "run").mkdir()
    config, _ = compose_recipe("spark", [])
    (process,) = planned(config, ROOT / "recipes/spark", tmp_path / "env/bin/python", tmp_path / "run")
    links = {path.name: path.resolve() for path in tmp_path.glob("run/spark-home/*")}
    assert links == ({} if writable else {name: installed / name for name in ("bin", "jars")})
    assert process.environment.get("SPARK_HOME") == (None if writable else str(tmp_path / "run/spark-home"))


def test_spark_on_a_cluster_elsewhere_authenticates_itself():
    process = plan_of("spark", "cluster.spark_master=spark://head:7077")
    words = " ".join(process.argv)
    assert process.argv[2] == "spark://head:7077"
    assert "--conf spark.authenticate=true --conf spark.network.crypto.enabled=true" in words
    assert "--conf spark.cores.max=2" in words
    assert "SPARK_LOCAL_IP" not in process.environment
    assert "spark.authenticate" not in " ".join(plan_of("spark", "cluster.spark_master=spark://127.0.0.1:7077").argv)


def test_dask_client():
    process = plan_of("dask", "cluster.num_workers=3")
    assert process.argv == ["/env/bin/python", str(ROOT / "recipes/dask/main.py"), "/run/config.yaml", "num_workers=3"]
    assert "DASK_SCHEDULER_ADDRESS" not in process.environment
    assert (
        plan_of("dask", "cluster.dask_scheduler=tls://head:8786").environment["DASK_SCHEDULER_ADDRESS"]
        == "tls://head:8786"
    )
    with pytest.raises(UserError, match="leaves this machine unencrypted: expected tls://"):
        plan_of("dask", "cluster.dask_scheduler=tcp://head:8786")


def test_rayrun():
    process = plan_of("ray_train", "cluster.num_workers=3", "recipe.num_data_cpus=2")
    words = " ".join(process.argv)
    assert process.argv[:5] == ["/env/bin/python", "-m", "rayrun", "--num-cpus", "5"]
    assert "--temp-dir /run/scratch/ray" in words
    assert words.endswith("/recipes/ray_train/main.py /run/config.yaml num_workers=3")
    assert not [name for name in process.environment if "TOKEN" in name], "the command is printed: no secret in it"


def test_ray_on_a_cluster_elsewhere_shows_its_token():
    process = plan_of("ray_tune", "cluster.ray_address=head:6379")
    assert process.argv[:2] == ["/env/bin/python", str(ROOT / "recipes/ray_tune/main.py")]
    assert process.environment["RAY_ADDRESS"] == "head:6379"
    assert process.environment["RAY_AUTH_MODE"] == "token"
    assert "RAY_AUTH_MODE" not in plan_of("ray_tune", "cluster.ray_address=127.0.0.1:6379").environment


def test_kfp_client():
    process = plan_of("kubeflow", "cluster.num_workers=3")
    program = str(ROOT / "recipes/kubeflow/main.py")
    assert process.argv == ["/env/bin/python", program, "/run/config.yaml", "num_workers=3"]

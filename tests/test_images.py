"""images/: what the Dockerfiles say; and each image built, looked into, and its recipe run in it to its end."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.helpers import ROOT, recipes, run_cookbook, short_words
from tests.image_engine import MISSING, Engine, PodsOfAnImage, build_commands, dockerfiles, option
from tests.requirements import needs
from tests.test_contracts import SHORT
from tests.test_hosts import MISSING as NO_HOSTS
from tests.test_hosts import Place
from tests.test_results import differences


def lock(path):
    return dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / path).read_text(), re.MULTILINE))


def test_readme_builds_each_recipe_and_each_dockerfile():
    commands = build_commands()
    assert sorted(commands) == recipes()
    assert {ROOT / option(words, "-f") for words in commands.values()} == set(dockerfiles())
    for recipe, words in commands.items():
        named = [word for word in words if word.startswith("RECIPE=")]
        assert named in ([], [f"RECIPE={recipe}"])


def test_hadolint(tools):
    """Every RUN that it is told to overlook has its reason above it."""
    done = subprocess.run(
        [tools.with_name("hadolint"), "--failure-threshold", "style", *dockerfiles()], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    for path in dockerfiles():
        for before, _ in re.findall(r"(.*)\n# hadolint ignore=(.*)", path.read_text()):
            assert before.startswith("# "), f"{path.name}: no reason above a hadolint ignore"


def test_dockerfiles():
    for path in dockerfiles():
        text = path.read_text()
        assert re.search(r"^USER 1000:1000$", text, re.MULTILINE), path
        for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
            for word in source.split():
                pattern = word.replace("${RECIPE}", "pytorch")
                assert list(ROOT.glob(pattern)), f"{path.name}: COPY {word}"


@pytest.mark.full
def test_checkov(tools):
    """No finding, and the reasons of what it is told to overlook are true."""
    done = subprocess.run(
        [tools.with_name("checkov"), "--framework", "dockerfile", "-o", "json"]
        + [word for path in dockerfiles() for word in ("-f", path)],
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout)
    assert found["summary"]["failed"] == 0, [check["check_id"] for check in found["results"]["failed_checks"]]
    assert found["summary"]["passed"] > 100
    for check in found["results"]["skipped_checks"]:
        path, reason = Path(check["file_abs_path"]), check["check_result"]["suppress_comment"]
        text = path.read_text()
        if check["check_id"] == "CKV_DOCKER_7":
            assert reason == "each FROM names a stage or an ARG, and each ARG has a tag"
            stages = set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE))
            images = dict(re.findall(r"^ARG (\w+)=(\S+)$", text.partition("\nFROM ")[0], re.MULTILINE))
            assert all(re.search(r":[\d.]+", image) for image in images.values())
            for base in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
                assert base in stages or base.strip("${}") in images
        else:
            assert check["check_id"] == "CKV_DOCKER_2", f"nobody has looked whether this is true: {reason}"
            assert reason.startswith("Kubernetes does not read HEALTHCHECK")
            assert "EXPOSE" not in text
            if "the readinessProbe of the pods" in reason:
                objects = "kubeflow/inference-service" if "kubeflow" in check["file_path"] else "kubernetes/horovodrun"
                assert "readinessProbe" in (ROOT / f"tests/golden/{objects}.yaml").read_text()


def test_images_have_the_versions_of_the_locks():
    extra = lock("images/requirements-ray.txt")
    for recipe in ("ray_train", "ray_tune", "ray_rllib"):
        own = lock(f"recipes/{recipe}/requirements.txt")
        assert {name: own[name] for name in extra if name in own} == {
            name: extra[name] for name in extra if name in own
        }
    spark = (ROOT / "images/spark.Dockerfile").read_text()
    assert f"apache/spark:{lock('recipes/spark/requirements.txt')['pyspark']}" in spark
    uv_version = lock("requirements.txt")["uv"]
    for name, image in (("UV", f"docker.io/astral/uv:{uv_version}"), ("BASE", "docker.io/library/python:3.11")):
        used = {re.search(rf"^ARG {name}=(\S+)", path.read_text(), re.MULTILINE)[1] for path in dockerfiles()}
        assert len(used) == 1 and used.pop().startswith(image)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert "*" in ignored and {"!data", "!recipes"} <= set(ignored)


# ---- built and run


@pytest.fixture(scope="module")
def engine():
    made = Engine()
    made.prepare()
    made.clean()
    yield made
    made.forget_packages()


# Recipes whose pods are run from the image, too. The stand-ins for the other operators start several programs in a pod.
ON_PODS = ("dask", "horovod", "pytorch", "tensorflow")

# What the image itself says of what is in it.
LOOK = """
import importlib.metadata, json, os, pathlib, shutil, subprocess, sys
site = pathlib.Path("/srv/venv/lib/python3.11/site-packages")
def refused(path):
    try:
        open(path, "w")
    except OSError as error:
        return error.strerror
status = pathlib.Path("/var/lib/dpkg/status").read_text()
print(json.dumps({
    "user": [os.getuid(), os.getgid()],
    "network": os.listdir("/sys/class/net"),
    "refused": {path: refused(path) for path in ("/x", "/srv/x", "/home/worker/x", "/var/tmp/x")},
    "compilers": [name for name in ("cc", "gcc", "g++", "c++", "ld", "cmake", "ninja", "nvcc") if shutil.which(name)],
    "ballast": [str(path) for pattern in ("tests", "include") for path in site.rglob(pattern)
           if path.is_dir() and ".dist-info/" not in str(path)]
        + [str(path) for name in ("/var/lib/apt/lists", "/var/cache/apt/archives", "/build") if os.path.exists(name)
           for path in pathlib.Path(name).rglob("*") if path.is_file() and path.name != "lock"],
    "bytecode": os.path.exists(__import__("runrecord").__cached__),
    "python": sys.version.split()[0],
    "packages": {one.metadata["Name"]: one.version for one in importlib.metadata.distributions()},
    "debian": status.count("Status: install ok installed"),
    "sbom": json.loads(pathlib.Path("/srv/sbom.cdx.json").read_text()),
}))
"""


@needs("images", [*MISSING, *NO_HOSTS])
@pytest.mark.full
@pytest.mark.parametrize("recipe", recipes())
def test_an_image_is_built_and_its_recipe_runs_in_it(recipe, engine, recipe_python, tmp_path, monkeypatch):
    try:
        image = engine.build(recipe)
        look_into(engine, image)
        content, folder = engine.run_recipe(image, short_words(recipe), tmp_path, monkeypatch)
        logs = "\n".join(path.read_text(errors="replace")[-4000:] for path in folder.glob("logs/*.log"))
        assert content["status"] == "ok", f"{content['reason']}\n{logs}"
        assert content["world_size"] == 2 and len(content["workers"]) == 2
        assert differences(recipe, folder, recipe_python(recipe)) == {}
        if recipe in ON_PODS:
            run_on_pods(engine, image, tmp_path)
        figures = re.search(rf"^\| {recipe} \| ([\d,]+) \|", (ROOT / "images/README.md").read_text(), re.MULTILINE)
        assert figures, f"images/README.md does not say how large it is: {image.size_mb:,.0f} MB"
        assert float(figures[1].replace(",", "")) == pytest.approx(image.size_mb, rel=0.1), "as images/README.md says"
    finally:
        engine.clean()


def run_on_pods(engine, image, tmp_path):
    """The objects of cluster=kubernetes, on pods that are containers of the image."""
    place = Place(tmp_path / "hosts", num_hosts=3)
    try:
        with PodsOfAnImage(place.hosts, engine, image, tmp_path / "cluster") as cluster:
            words = [
                f"recipe={image.recipe}",
                *SHORT[image.recipe],
                "cluster=kubernetes",
                f"cluster.image={image.name}",
            ]
            content, _, output = run_cookbook(
                *words, output_root=tmp_path / "pods", environment=cluster.environment, status=0
            )
            assert content["status"] == "ok", output
            assert len({worker["host"] for worker in content["workers"]}) == 2, "each worker has a pod of its own"
            assert cluster.objects == {} and cluster.pods == {}, "nothing is left on the cluster"
    finally:
        place.hosts.down()


def look_into(engine, image):
    found = json.loads(engine.output(image, "python", "-c", LOOK))
    assert (
        found["user"] == [1000, 1000]
        and found["network"] == ["lo"]
        and set(found["refused"].values()) == {"Read-only file system"}
    )
    assert found["compilers"] == [] and found["ballast"] == [] and found["bytecode"]
    parts = {kind: {} for kind in ("pypi", "deb", "generic")}
    for part in found["sbom"]["components"]:
        parts[re.match(r"pkg:(\w+)/", part["purl"])[1] if "purl" in part else "pypi"][part["name"]] = part["version"]
    assert parts["pypi"] == found["packages"], "the SBOM lists the packages that Python finds"
    assert "runrecord" in parts["pypi"] and parts["generic"] == {"python": found["python"]}
    assert len(parts["deb"]) == found["debian"] > 50

"""Builds the images and runs recipes in them: podman with runc, in a store of its own in the user's cache.

The build commands are those of images/README.md. The images that come from registries are replaced, because a machine
need not reach one:

- BASE by a Debian 12 with Python 3.11 that debootstrap makes once. Documentation is left out, as in Docker's slim ones.
- UV by the uv of the driver's environment.
- SPARK by one whose entry point only starts its command. So nothing is shown of Spark's own entry point.

IMAGE_BASES=registry takes the real ones.

Run: make image-sizes [RECIPE=dask] (as root) builds the images one after the other, and prints the table's rows.
"""

import contextlib
import hashlib
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from cookbook import bootstrap, certificates, run
from cookbook.bootstrap import uv_environment
from cookbook.job import Process
from cookbook.places.local import Local, run_here
from cookbook.prepare import datasets
from cookbook.prepare.tools import uv
from cookbook.run import Run
from cookbook.run_folder import identity, open_run
from cookbook.settings import compose_recipe
from tests.fake_kubernetes import FakeKubernetes
from tests.helpers import CLEAN, ROOT

PROGRAMS = ("podman", "runc", "debootstrap", "mount")
MISSING = [name for name in PROGRAMS if not shutil.which(name)] + ([] if os.getuid() == 0 else ["root"])
MIRROR = "http://deb.debian.org/debian"
# What python:3.11-slim has and a minimal Debian does not.
IN_BASE = "ca-certificates,python3,python3-venv,libpython3.11-dev"
SLIM = """
path-exclude /usr/share/doc/*
path-exclude /usr/share/man/*
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
"""
ENTRY_POINT = '#!/bin/sh\nexec "$@"\n'
PYTHON = Path("/srv/venv/bin/python")
MB = 1e6


def dockerfiles():
    """All Dockerfiles of images/ and of the recipes."""
    found = sorted(ROOT.glob("images/*.Dockerfile"))
    assert found, "images/ has no Dockerfile"
    return [*found, *sorted(ROOT.glob("recipes/*/Dockerfile"))]


def build_commands():
    """{recipe: the words of its `docker build` in images/README.md, without the first two}."""
    lines = re.findall(r"^    docker build (-f .+)$", (ROOT / "images/README.md").read_text(), re.MULTILINE)
    commands = [shlex.split(line, comments=True) for line in lines]
    return {re.search(r"/cookbook-([\w-]+):", " ".join(words))[1].replace("-", "_"): words for words in commands}


def option(words, name):
    return words[words.index(name) + 1]


@dataclass(frozen=True)
class Image:
    name: str
    recipe: str
    folder: str  # where it has the recipe's program
    size_mb: float
    seconds: float  # that its build took


class Engine:
    def __init__(self, folder=None):
        self.folder = folder or bootstrap.cache_dir() / "images"
        for name in ("store", "run", "tmp"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.kept = {}  # argument -> image that stands for a registry's

    def podman(self, *words, check=True, **options):
        done = subprocess.run(
            [*self.command(), *map(str, words)],
            env={**CLEAN, "TMPDIR": str(self.folder / "tmp")},
            **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **options},
        )
        assert not check or done.returncode == 0, f"podman {words[0]}:\n{(done.stdout or '')[-6000:]}"
        return done.stdout

    def command(self):
        return [
            *("podman", "--root", str(self.folder / "store"), "--runroot", str(self.folder / "run")),
            *("--storage-driver", "overlay", "--runtime", "runc", "--cgroup-manager", "cgroupfs"),
            *("--events-backend", "file"),
        ]

    # The images that stand for those of registries

    def prepare(self):
        if os.environ.get("IMAGE_BASES") == "registry":
            return
        files = {"/etc/uv/uv.toml": "system-certs = true\n", "/etc/dpkg/dpkg.cfg.d/slim": SLIM}
        trusted = certificates.certificates().get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
        files["/etc/ssl/certs/ca-certificates.crt"] = Path(trusted).read_text()
        self.kept["BASE"] = self.imported("base", (IN_BASE, repr(files)), lambda root: debian(root, files))
        self.kept["UV"] = self.imported("uv", (uv(),), lambda root: shutil.copy(uv(), root / "uv"))

        def spark(root):
            (root / "opt").mkdir()
            (root / "opt/entrypoint.sh").write_text(ENTRY_POINT)
            (root / "opt/entrypoint.sh").chmod(0o755)

        self.kept["SPARK"] = self.imported("spark", (ENTRY_POINT,), spark)

    def imported(self, name, sources, make):
        """An image of the files that `make` writes into a folder, unless it is there.

        Its tag is a hash of `sources`.
        """
        tag = hashlib.sha256("\0".join(sources).encode()).hexdigest()[:12]
        image = f"localhost/stand-in-{name}:{tag}"
        if self.podman("images", "--quiet", image).strip():
            return image
        with tempfile.TemporaryDirectory(dir=self.folder / "tmp") as folder:
            root = Path(folder, "root")
            root.mkdir()
            make(root)
            tar = Path(folder, "image.tar")
            subprocess.run(["tar", "-C", root, "-cf", tar, "."], check=True)
            self.podman("import", tar, image)
        return image

    def clean(self):
        """Removes all images but the stand-ins, and what the builds have kept."""
        self.podman("rm", "--all", "--force")
        kept = {self.podman("images", "--quiet", "--no-trunc", image).strip() for image in self.kept.values()}
        listed = self.podman("images", "--all", "--quiet", "--no-trunc").split()
        if others := sorted(set(listed) - kept):
            self.podman("rmi", "--force", *others)

    def forget_packages(self):
        """Removes what uv keeps between builds: gigabytes."""
        for folder in (self.folder / "tmp").glob("buildah-cache*"):
            shutil.rmtree(folder)

    # Building

    def build(self, recipe):
        """Builds a recipe's image by the command of images/README.md."""
        words = build_commands()[recipe]
        file, name = option(words, "-f"), f"localhost/{option(words, '-t').partition('/')[2]}"
        arguments = {key: image for key, image in self.kept.items() if f"ARG {key}=" in (ROOT / file).read_text()}
        links = uv_environment().get("UV_FIND_LINKS", "").split(",")
        folders = [folder for folder in links if folder and Path(folder).is_dir()]
        # A CPU build of torch: a gigabyte instead of five.
        more = [f"--find-links {folder}" for folder in folders] or ["--torch-backend=cpu"]
        if "ARG INSTALL_OPTIONS" in (ROOT / file).read_text():
            arguments["INSTALL_OPTIONS"] = " ".join(more)
        began = time.monotonic()
        self.podman(
            *("build", "--isolation", "chroot", "--network", "host", "--force-rm", "--format", "docker"),
            *(word for folder in folders for word in ("--volume", f"{folder}:{folder}:ro")),
            *words[: words.index("-t")],
            *(word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")),
            *("-t", name, ROOT),
        )
        seconds = time.monotonic() - began
        about = json.loads(self.podman("image", "inspect", name))[0]
        assert about["Config"]["User"] == "1000:1000"
        place = "/recipe" if file == "recipes/kubeflow/Dockerfile" else "/srv/recipe"
        return Image(name, recipe, place, about["Size"] / MB, seconds)

    def packages_mb(self, image):
        """Size of the layer with the recipe's packages: the largest one."""
        layers = json.loads(self.podman("history", "--format", "json", image.name))
        return max(layer["size"] for layer in layers) / MB

    # Running

    def run_words(self, image, options, *, environment=None, shm_mb=256, name=None, entry_point=None):
        """The words that run an image as a pod of the cookbook runs.

        That is: no rights, and nothing that can be written but /tmp, shared memory and volumes. `options`: podman's,
        for user, network and volumes.
        """
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        return [
            *self.command(),
            *("run", "--rm", "--read-only", "--read-only-tmpfs=false", "--cgroups", "no-conmon"),
            *("--cap-drop", "all", "--security-opt", "no-new-privileges", "--shm-size", f"{shm_mb}m"),
            *("--ulimit", f"nofile={descriptors}:{descriptors}", "--ulimit", "nproc=8192:8192"),
            *(() if "--tmpfs" in options else ("--tmpfs", "/tmp:rw,exec,mode=1777")),
            *(("--name", name) if name else ()),
            *(
                word
                for key, value in {"HOME": "/tmp", **(environment or {})}.items()
                for word in ("--env", f"{key}={value}")
            ),
            *(("--entrypoint", json.dumps([entry_point])) if entry_point else ()),
            *options,
            image.name,
        ]

    def alone(self, folders):
        """podman's options for a container without a network, for which these folders are the machine's."""
        folders = [word for folder in folders for word in ("--volume", f"{folder}:{folder}")]
        return ["--network", "none", "--user", "1000:1000", *folders]

    def output(self, image, *argv, folders=()):
        words = [*self.run_words(image, self.alone(folders)), *argv]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-6000:] + done.stdout[-2000:]
        return done.stdout

    def run_recipe(self, image, words, output_root, monkeypatch):
        """A run of the driver whose environment, dataset builder and program are those of the image.

        Returns (run.json's content, the run's folder).
        """
        engine = self

        class Container(Local):
            """All of the run's processes in one container."""

            sees_processes = False  # their ids are those of another namespace

            def plan(self):
                (process,) = self.system.on_local(self.job)
                environment = {key: value for key, value in process.environment.items() if key != "PATH"}
                self.name = f"run-{self.run_id}"
                argv = engine.run_words(
                    image,
                    engine.alone([self.job.run_dir]),
                    environment=environment,
                    shm_mb=max(256, self.job.recipe.get("object_store_mb", 0)),
                    name=self.name,
                )
                own = [word.replace(str(self.job.recipe_dir), image.folder) for word in process.argv]
                assert not process.files
                return [Process(process.name, [*argv, *own])]

            def run(self, planned, watch):
                give(self.job.run_dir)
                try:
                    grace = self.cluster["stop_grace_seconds"]
                    return run_here(planned, self.job.run_dir / "logs", self.run_id, grace, watch)
                finally:
                    engine.podman("rm", "--force", "--ignore", self.name)

        def dataset(data, cache_dir, python, stage, log, run_id):
            target = folder.path / "data"
            target.mkdir()
            give(target)
            if image.folder == "/recipe":  # the image has the dataset, and not its builder
                argv = ["cp", "-r", "/recipe/dataset", str(target / "built")]
            else:
                parameters = datasets.as_arguments(data["parameters"])
                argv = ["python", f"/srv/data/{data['builder']}.py", str(target / "built"), *parameters]
            engine.output(image, *argv, folders=[target])
            return target / "built", datasets.check(target / "built")

        config, choices = compose_recipe(image.recipe, words)
        config["tracking"] = {"kind": "none"}
        folder = open_run(output_root, image.recipe, identity(image.recipe, config), "never")
        monkeypatch.setattr(run.environments, "ensure", lambda *_: (PYTHON, False))
        monkeypatch.setattr(run.datasets, "ensure", dataset)
        monkeypatch.setattr(run.places, "load", lambda kind: Container)
        with contextlib.ExitStack() as stack:
            stack.callback(monkeypatch.undo)
            result = Run(image.recipe, config, choices, [f"recipe={image.recipe}", *words], folder).go()
        return result.as_dict(), folder.path


class PodsOfAnImage(FakeKubernetes):
    """A cluster whose pods are containers of an image, as their objects ask for: user, rights, files, volumes.

    A pod's network is that of one of the `hosts`.
    """

    def __init__(self, hosts, engine, image, folder):
        super().__init__(hosts, PYTHON, image.recipe, folder)
        self.engine, self.image = engine, image
        (self.folder / "shared").chmod(0o777)  # fsGroup

    def __exit__(self, *error):
        super().__exit__(*error)
        for name in self.engine.podman("ps", "--all", "--format", "{{.Names}}").split():
            if name.startswith(f"{self.folder.parent.name}-"):
                self.engine.podman("rm", "--force", "--ignore", name)

    def start_pod(self, name, template, owner, place, words=None, environment=None, mounts=(), alias=None):
        (container,) = template["spec"]["containers"]
        assert container["image"] == self.image.name and alias is None
        security, locked = template["spec"]["securityContext"], container["securityContext"]
        assert locked == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
        options = [*("--network", f"ns:/run/netns/{self.hosts.namespace(place)}", "--hostname", name)]
        options += ["--user", f"{security['runAsUser']}:{security['runAsGroup']}"]
        options += ["--volume", f"{self.folder / 'hosts'}:/etc/hosts:ro"]
        volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", [])}
        own = self.folder / "pods" / name
        own.mkdir(parents=True, exist_ok=True)
        for path, folder in mounts:
            give(folder)
            options += ["--volume", f"{folder}:{path}:ro"]
        for mount in container["volumeMounts"]:
            volume, path = volumes[mount["name"]], mount["mountPath"]
            if "emptyDir" not in volume:
                options += ["--volume", f"{self.volume(volume, own)}:{path}:{'ro' if mount.get('readOnly') else 'rw'}"]
            elif path != "/dev/shm":
                options += ["--tmpfs", f"{path}:rw,exec,mode=1777"]
        index = re.search(r"-(\d+)$", name)
        variables = {entry["name"]: entry["value"] for entry in container.get("env", [])}
        variables |= ({"JOB_COMPLETION_INDEX": index.group(1)} if index else {}) | (environment or {})
        words = words or [*container["command"], *container.get("args", [])]
        unique = f"{self.folder.parent.name}-{name}"
        argv = self.engine.run_words(self.image, options, environment=variables, name=unique, entry_point=words[0])
        return self.start(name, [*argv, *map(str, words[1:])], owner, template, {**CLEAN})


def give(folder):
    """All in the folder belongs to user 1000, who must also find the way to it inside of the container."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 1000, 1000, follow_symlinks=False)


def debian(root, files):
    """Makes a small Debian 12 in a folder. Takes minutes."""
    argv = ["debootstrap", "--variant=minbase", f"--include={IN_BASE}", "bookworm", root, MIRROR]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    for path, text in files.items():
        (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (root / path[1:]).write_text(text)
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    left_out = [line.split()[1].rstrip("/*") for line in SLIM.split("\n") if line]
    for folder in [*left_out, "/var/cache/apt/archives", "/var/lib/apt/lists"]:
        for path in (root / folder[1:]).iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def main(names):
    engine = Engine()
    engine.prepare()
    for recipe in names or sorted(build_commands()):
        engine.clean()
        image = engine.build(recipe)
        print(
            f"| {recipe} | {image.size_mb:,.0f} | {engine.packages_mb(image):,.0f} | {image.seconds / 60:.1f} |",
            flush=True,
        )
    engine.clean()
    engine.forget_packages()


if __name__ == "__main__":
    main(sys.argv[1:])

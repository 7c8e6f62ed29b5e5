"""Runs the steps of a GitHub workflow on this machine, as an unprivileged user `runner` who has sudo and an empty home.

`run:` steps run as they are written, in a mount and a process namespace of their own; the actions that the workflows
use are replaced. What this runner cannot read (an unknown key, action, function or name) raises Unreadable: it guesses
nothing. Run by hand: python -m tests.workflow_runner .github/workflows/ci.yml test
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# How this machine reaches its package registries.
OWN = re.compile(r"(PIP|UV)_\w+|SSL_CERT_FILE|REQUESTS_CA_BUNDLE")

WORKFLOW_KEYS = {"name", "on", "permissions", "concurrency", "jobs", "env"}
JOB_KEYS = {"runs-on", "timeout-minutes", "env", "steps", "needs", "if", "strategy"}
JOB_KEYS |= {"outputs", "permissions", "environment", "concurrency"}
STEP_KEYS = {"name", "id", "if", "run", "uses", "with", "env", "shell", "continue-on-error", "timeout-minutes"}
SHELLS = {None: ["bash", "-e"], "bash": ["bash", "--noprofile", "--norc", "-eo", "pipefail"]}
# The words of `with:` that each action takes here.
ACTIONS = {
    "actions/checkout": {"persist-credentials", "fetch-depth"},
    "actions/setup-python": {"python-version"},
    "hashicorp/setup-terraform": {"terraform_wrapper"},
    "actions/cache": {"path", "key", "restore-keys"},
    "actions/cache/restore": {"path", "key", "restore-keys"},
    "actions/cache/save": {"path", "key"},
    "actions/upload-artifact": {"name", "path", "retention-days"},
    "actions/download-artifact": {"pattern", "path", "merge-multiple"},
    "actions/upload-pages-artifact": {"path"},
    "actions/deploy-pages": set(),
}


class Unreadable(Exception):
    """The workflow says something that this runner does not know."""


# ---- expressions

TOKEN = re.compile(r"\s*('(?:[^']|'')*'|\d+|&&|\|\||==|!=|[!(),]|[A-Za-z_][\w-]*(?:\.[\w-]+)*)")


class Expression:
    """GitHub's expressions, as far as the workflows use them: names, texts, numbers,
    comparisons, and, or, not, functions."""

    def __init__(self, text, names, functions):
        self.text, self.names, self.functions = text, names, functions
        self.tokens, place = [], 0
        while place < len(text.rstrip()):
            found = TOKEN.match(text, place)
            if not found:
                raise Unreadable(f"the expression {text!r} has no meaning from {text[place:]!r} on")
            self.tokens.append(found[1])
            place = found.end()

    def value(self):
        found = self._either()
        if self.tokens:
            raise Unreadable(f"the expression {self.text!r} goes on where it should end: {self.tokens[0]!r}")
        return found

    def _take(self, *wanted):
        if self.tokens and (not wanted or self.tokens[0] in wanted):
            return self.tokens.pop(0)
        return None

    def _either(self):
        found = self._both()
        while self._take("||"):
            other = self._both()
            found = found or other
        return found

    def _both(self):
        found = self._equal()
        while self._take("&&"):
            other = self._equal()
            found = found and other
        return found

    def _equal(self):
        found = self._one()
        while operator := self._take("==", "!="):
            found = (found == self._one()) == (operator == "==")
        return found

    def _one(self):
        token = self._take()
        if token is None:
            raise Unreadable(f"the expression {self.text!r} ends too early")
        if token == "!":
            return not self._one()
        if token == "(":
            found = self._either()
            self._expect(")")
            return found
        if token.startswith("'"):
            return token[1:-1].replace("''", "'")
        if token.isdigit():
            return int(token)
        if self._take("("):
            return self._call(token)
        return self._look_up(token)

    def _expect(self, token):
        if not self._take(token):
            raise Unreadable(f"the expression {self.text!r} lacks {token!r}")

    def _call(self, name):
        if name not in self.functions:
            raise Unreadable(f"the function {name}() of {self.text!r} is not known here")
        arguments = []
        while not self._take(")"):
            arguments.append(self._either())
            if not self._take(","):
                self._expect(")")
                break
        return self.functions[name](*arguments)

    def _look_up(self, name):
        if name in ("true", "false", "null"):
            return {"true": True, "false": False, "null": None}[name]
        found = self.names
        for part in name.split("."):
            if not isinstance(found, dict) or part not in found:
                if name.startswith("vars."):
                    return ""  # a variable of the repository that nobody has set
                raise Unreadable(f"{name} of {self.text!r} is not known here")
            found = found[part]
        return found


def filled(text, names, functions):
    """A text with its expressions replaced; one that is nothing but an expression keeps the value's kind."""
    if not isinstance(text, str):
        return text
    if whole := re.fullmatch(r"\s*\$\{\{((?:(?!\}\}).)*)\}\}\s*", text):
        return Expression(whole[1], names, functions).value()

    def one(found):
        value = Expression(found[1], names, functions).value()
        return json.dumps(value) if isinstance(value, bool | dict | list) else str(value)

    return re.sub(r"\$\{\{(.*?)\}\}", one, text)


# ---- reading


def read(path):
    """A workflow that has nothing which this runner does not know; else Unreadable."""
    workflow = yaml.safe_load(Path(path).read_text())
    workflow["on"] = workflow.pop(True, workflow.get("on"))  # YAML 1.1 takes `on` for a truth value
    _only(workflow, WORKFLOW_KEYS, str(path))
    for name, job in workflow["jobs"].items():
        _only(job, JOB_KEYS, f"job {name}")
        ids = [step["id"] for step in job["steps"] if "id" in step]
        if len(set(ids)) != len(ids):
            raise Unreadable(f"job {name}: an id stands at two steps")
        for step in job["steps"]:
            if ("run" in step) == ("uses" in step):
                raise Unreadable(f"job {name}: a step has {', '.join(step)}: expected either run or uses")
            where = f"job {name}, step {title_of(step)!r}"
            _only(step, STEP_KEYS, where)
            if step.get("shell") not in SHELLS:
                raise Unreadable(f"{where}: the shell {step['shell']} is not known here")
            if "uses" in step:
                action, _, version = step["uses"].partition("@")
                if action not in ACTIONS:
                    raise Unreadable(f"{where}: the action {action} is not known here")
                if not re.fullmatch(r"[0-9a-f]{40}", version):
                    raise Unreadable(f"{where}: {action} is not pinned by a commit")
                _only(step.get("with", {}), ACTIONS[action], where)
    return workflow


def _only(content, known, where):
    if unknown := set(content) - known:
        raise Unreadable(f"{where}: not known here: {', '.join(sorted(map(str, unknown)))}")


def title_of(step):
    return step.get("name") or step.get("uses", "").partition("@")[0] or step.get("run", "").splitlines()[0]


# ---- the machine


class Machine:
    """A user `runner` on this machine: a home and a workspace, sudo without a password, what jobs leave for each other.

    The user exists in the mount namespace of each step only. Needs root, sudo and unshare.
    """

    def __init__(self, workspace="work/cookbook", read_only_home=False, umask="022"):
        self.top = Path(tempfile.mkdtemp(prefix="runner-"))
        self.top.chmod(0o755)
        self.umask, self.read_only_home = umask, read_only_home
        self.uid = next(uid for uid in range(1001, 60000) if f":x:{uid}:" not in Path("/etc/passwd").read_text())
        self.home, self.workspace, self.files = self.top / "home", self.top / workspace, self.top / "files"
        self.caches, self.artifacts, self.etc = self.top / "caches", self.top / "artifacts", self.top / "etc"
        for folder in (self.caches, self.artifacts, self.etc / "sudoers.d"):
            folder.mkdir(parents=True)
        for folder in (self.home, self.files, self.workspace.parent):
            folder.mkdir(parents=True)
            os.chown(folder, self.uid, self.uid)
        lines = {
            "passwd": f"runner:x:{self.uid}:{self.uid}::{self.home}:/bin/bash\n",
            "group": f"runner:x:{self.uid}:\n",
            "shadow": "runner:*:19000:0:99999:7:::\n",
        }
        for name, line in lines.items():
            shutil.copy(f"/etc/{name}", self.etc / name)
            with (self.etc / name).open("a") as file:
                file.write(line)
        rule = self.etc / "sudoers.d/runner"
        rule.write_text("runner ALL=(ALL) NOPASSWD: ALL\n")
        rule.chmod(0o440)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        shutil.rmtree(self.top, ignore_errors=True)

    def run(self, argv, environment, log, timeout=None):
        """Runs a command as `runner` in the workspace; returns its exit status. Nothing that it starts outlives it."""
        environment = {
            **{name: value for name, value in os.environ.items() if OWN.fullmatch(name)},
            "PATH": SYSTEM_PATH,
            "HOME": str(self.home),
            "USER": "runner",
            "LANG": "C.UTF-8",
            "CI": "true",
            "RUNNER_TEMP": str(self.files),
            "GITHUB_WORKSPACE": str(self.workspace),
            **environment,
        }
        script = """
            etc=$1 uid=$2 umask=$3 workspace=$4 home=$5; shift 5
            for name in passwd group shadow sudoers.d; do mount --bind "$etc/$name" "/etc/$name" || exit 125; done
            [ -z "$home" ] || { mount --bind "$home" "$home" && mount -o remount,bind,ro "$home"; } || exit 125
            cd "$workspace" && umask "$umask" || exit
            exec setpriv --pdeathsig KILL --reuid "$uid" --regid "$uid" --clear-groups -- "$@"
        """
        home = str(self.home) if self.read_only_home else ""
        words = ["sh", "-c", script, "sh", self.etc, str(self.uid), self.umask, self.workspace, home, *argv]
        namespaces = [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--propagation",
            "private",
        ]
        return subprocess.run(
            [*namespaces, *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=timeout,
        ).returncode

    def checkout(self, depth=1):
        """What is in this working tree, with the history of its last commit, as the user's own files."""
        shutil.rmtree(self.workspace, ignore_errors=True)
        short = ["--depth", str(depth)] if depth else []
        subprocess.run(["git", "clone", "-q", *short, f"file://{ROOT}", self.workspace], check=True)
        names = ""
        for words in (["diff", "--name-only", "-z", "HEAD"], ["ls-files", "-zo", "--exclude-standard"]):
            names += subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, names.split("\0")):
            (self.workspace / name).unlink(missing_ok=True)
            if (ROOT / name).is_file():
                (self.workspace / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.workspace / name)
        subprocess.run(["chown", "-R", f"{self.uid}:{self.uid}", self.workspace], check=True)


@dataclass
class Job:
    """What came out of one job."""

    name: str
    steps: dict = field(default_factory=dict)  # title: ok, failed or skipped
    outputs: dict = field(default_factory=dict)
    ok: bool = True

    @property
    def result(self):
        return "success" if self.ok else "failure"


class Run:
    """Jobs of one workflow, one after the other, on one machine."""

    def __init__(self, path, machine, variables=None, environment=None, log=sys.stdout):
        self.workflow, self.machine, self.log = read(path), machine, log
        self.environment = environment or {}  # what comes besides the workflow's own
        self.done = {}
        self.names = {
            "github": {"ref": "refs/heads/main", "run_id": "1", "sha": "0" * 40},
            "runner": {"os": "Linux"},
            "vars": variables or {},
            **{name: {} for name in ("needs", "steps", "matrix", "env")},
        }

    def functions(self, ok):
        return {
            "fromJSON": json.loads,
            "hashFiles": self._hash_files,
            "always": lambda: True,
            "success": lambda: ok,
            "failure": lambda: not ok,
            "cancelled": lambda: False,
        }

    def matrix(self, name):
        """All values of a job's matrix, as dictionaries."""
        found = [{}]
        for key, values in self.workflow["jobs"][name].get("strategy", {}).get("matrix", {}).items():
            values = filled(values, self.names, self.functions(True))
            found = [one | {key: value} for one in found for value in values]
        return found

    def job(self, name, matrix=None):
        """Runs one job for one value of its matrix; those that it needs must have run."""
        job, done = self.workflow["jobs"][name], Job(name)
        needs = job.get("needs", [])
        needs = [needs] if isinstance(needs, str) else needs
        if missing := [one for one in needs if one not in self.done]:
            raise Unreadable(f"job {name} needs {', '.join(missing)}, which did not run")
        self.names["needs"] = {
            one: {"outputs": self.done[one].outputs, "result": self.done[one].result} for one in needs
        }
        self.names |= {"steps": {}, "matrix": matrix or {}}
        if not self._wanted(job.get("if"), all(self.done[one].ok for one in needs)):
            return None
        self._environment = self._fill(self.workflow.get("env", {})) | self._fill(job.get("env", {})) | self.environment
        self._later = []
        for step in job["steps"]:
            self._step(step, done)
        for save in self._later if done.ok else []:
            save()
        done.outputs = self._fill(job.get("outputs", {})) if done.ok else {}
        self.done[name] = done
        return done

    def _fill(self, content, ok=True):
        return {key: filled(value, self.names, self.functions(ok)) for key, value in content.items()}

    def _wanted(self, condition, ok):
        if condition is None:
            return ok
        text = re.sub(r"^\s*\$\{\{(.*)\}\}\s*$", r"\1", str(condition))
        asks = re.search(r"\b(always|success|failure|cancelled)\(", text)
        return bool(Expression(text, self.names, self.functions(ok)).value()) and (bool(asks) or ok)

    def _step(self, step, done):
        title, began = title_of(step), time.monotonic()
        if same := sum(re.sub(r" \(\d+\)$", "", one) == title for one in done.steps):
            title = f"{title} ({same + 1})"
        if not self._wanted(step.get("if"), done.ok):
            done.steps[title] = "skipped"
            return
        self.log.write(f"--- {done.name}: {title}\n")
        self.log.flush()
        good = self._run(step) if "run" in step else self._use(step, done)
        done.steps[title] = "ok" if good else "failed"
        self.log.write(f"--- {title}: {done.steps[title]} after {time.monotonic() - began:.0f} s\n")
        done.ok = done.ok and (good or bool(step.get("continue-on-error")))

    def _run(self, step):
        files = self.machine.files
        paths = {name: files / name for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
        for path in paths.values():
            path.write_text("")
            os.chown(path, self.machine.uid, self.machine.uid)
        script = files / "step.sh"
        script.write_text(filled(step["run"], self.names, self.functions(True)))
        script.chmod(0o644)
        environment = self._environment | self._fill(step.get("env", {}))
        environment = {name: str(value) for name, value in environment.items()} | {
            name: str(path) for name, path in paths.items()
        }
        minutes = step.get("timeout-minutes")
        try:
            argv = [*SHELLS[step.get("shell")], script]
            status = self.machine.run(argv, environment, self.log, 60 * minutes if minutes else None)
        except subprocess.TimeoutExpired:
            status = 124
        outputs = dict(
            line.partition("=")[::2] for line in paths["GITHUB_OUTPUT"].read_text().splitlines() if "=" in line
        )
        if "id" in step:
            self.names["steps"][step["id"]] = {"outputs": outputs, "outcome": "failure" if status else "success"}
        return status == 0

    # ---- what stands for the actions

    def _use(self, step, done):
        action, words = step["uses"].partition("@")[0], self._fill(step.get("with", {}), done.ok)
        if action == "actions/checkout":
            self.machine.checkout(words.get("fetch-depth", 1))
        elif action == "actions/setup-python":
            return shutil.which(f"python{words['python-version']}", path=SYSTEM_PATH) is not None
        elif action == "hashicorp/setup-terraform":
            return shutil.which("terraform", path=SYSTEM_PATH) is not None
        elif action.startswith("actions/cache"):
            if action != "actions/cache/save":
                self._restore(words)
            if action == "actions/cache":
                self._later.append(lambda: self._save(words))
            elif action == "actions/cache/save":
                self._save(words)
        elif action == "actions/upload-artifact":
            self._upload(self.machine.artifacts / words["name"], words["path"])
        elif action == "actions/upload-pages-artifact":
            self._upload(self.machine.artifacts / "github-pages", words["path"])
        elif action == "actions/download-artifact":
            target = self.machine.workspace / words["path"]
            for folder in sorted(self.machine.artifacts.glob("*/")):
                if fnmatch(folder.name, words["pattern"]):
                    self._copy(folder, target if words.get("merge-multiple") else target / folder.name)
        return True

    def _place(self, path):
        return self.machine.home / path[2:] if path.startswith("~/") else self.machine.workspace / path

    def _copy(self, source, target):
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
        subprocess.run(["chown", "-R", f"{self.machine.uid}:{self.machine.uid}", target], check=True)

    def _slot(self, key):
        return self.machine.caches / hashlib.sha256(key.encode()).hexdigest()[:16]

    def _restore(self, words):
        wanted = [words["key"], *str(words.get("restore-keys", "")).split()]
        slots = sorted(self.machine.caches.glob("*.key"), key=lambda path: path.stat().st_mtime, reverse=True)
        found = next((slot for key in wanted for slot in slots if slot.read_text().startswith(key)), None)
        if found:
            for place in json.loads((found.with_suffix("") / "places.json").read_text()):
                self._copy(found.with_suffix("") / hashlib.sha256(place.encode()).hexdigest(), Path(place))

    def _save(self, words):
        slot = self._slot(words["key"])
        if slot.exists():
            return
        slot.mkdir()
        places = self._cached(words["path"].split())
        for place in places:
            copy = shutil.copytree if place.is_dir() else shutil.copy
            copy(place, slot / hashlib.sha256(str(place).encode()).hexdigest())
        (slot / "places.json").write_text(json.dumps([str(place) for place in places if place.is_dir()]))
        slot.with_suffix(".key").write_text(words["key"])

    def _cached(self, patterns):
        """What the patterns name. As on GitHub, one that is left out must be named by a pattern itself:
        not something below it."""
        named = [self._place(pattern) for pattern in patterns if not pattern.startswith("!")]
        found = {path for one in named for path in one.parent.glob(one.name)}
        left_out = {self._place(pattern[1:]) for pattern in patterns if pattern.startswith("!")}
        if stray := {path for path in left_out if any(one in path.parents for one in found)}:
            raise Unreadable(
                f"{', '.join(map(str, stray))} lies below a folder that is cached: GitHub caches it all the same"
            )
        return sorted(found - left_out)

    def _upload(self, target, paths):
        for pattern in paths.split():
            for path in (
                [self.machine.workspace / pattern] if "*" not in pattern else self.machine.workspace.glob(pattern)
            ):
                if path.is_dir():
                    shutil.copytree(path, target / (path.name if "*" in pattern else ""), dirs_exist_ok=True)
                elif path.exists():
                    target.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, target)

    def _hash_files(self, *patterns):
        paths = sorted(path for pattern in patterns for path in self.machine.workspace.glob(pattern) if path.is_file())
        return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest() if paths else ""


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workflow")
    parser.add_argument("jobs", nargs="+", metavar="job", help="a name, or name:key=value for one value of its matrix")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    wanted = parser.parse_args(argv)
    with Machine() as machine:
        run = Run(wanted.workflow, machine, environment=dict(word.partition("=")[::2] for word in wanted.env))
        for word in wanted.jobs:
            name, _, value = word.partition(":")
            done = run.job(name, dict([value.partition("=")[::2]]) if value else None)
            print(f"{name}: {done.result if done else 'skipped'} {done.steps if done else ''}")
    sys.exit(0 if all(one.ok for one in run.done.values()) else 1)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main(sys.argv[1:])

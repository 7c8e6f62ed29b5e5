"""Lists every skip at the end with its reason; a skip fails the session where REQUIRE promised what was missing."""

import os

from tests.requirements import broken_promises, required

PROMISED = "REQUIRE"  # as in: REQUIRE=hosts,slurm make test


def pytest_configure(config):
    required(os.environ.get(PROMISED, ""))


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        broken = _broken(skipped)
        title = f"{len(skipped)} tests SKIPPED: this machine did not show everything"
        terminalreporter.section(f"{title}; REQUIRE promised {len(broken)} of them" if broken else title, red=True)
        for report in skipped:
            promised = "PROMISED, so this session fails: " if report.longrepr[2] in broken else ""
            terminalreporter.line(f"{promised}{report.nodeid}: {report.longrepr[2]}")


def pytest_sessionfinish(session, exitstatus):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    # A worker of pytest-xdist has no reporter; its controller has seen all reports. 5: nothing was run at all.
    if reporter and exitstatus in (0, 5) and _broken(reporter.stats.get("skipped", [])):
        session.exitstatus = 1


def _broken(skipped):
    return broken_promises([report.longrepr[2] for report in skipped], required(os.environ.get(PROMISED, "")))

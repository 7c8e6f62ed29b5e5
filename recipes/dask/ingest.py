"""Raw flights to checked flights: a bag of independent tasks, one for each row group or CSV file.

Each task reads its part, keeps the good rows, puts the others into quarantine with file, row and reason, and says what it did.
"""

import json
import os
import shutil
import socket
from pathlib import Path

import dask
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

NUMBERS = ["year", "month", "day", "hour", "minute", "distance", "dep_delay", "arr_delay"]
TEXTS = ["carrier", "tailnum", "origin", "dest"]
TIMES = ["time_hour"]
COLUMNS = [*NUMBERS, *TEXTS, *TIMES]
NEEDED = ["year", "month", "day", "hour", "minute", "carrier", "origin", "dest", "time_hour"]  # no flight without them
LONGEST_TEXT = 16  # characters: a carrier, a tail number or an airport is shorter
MOST_DELAY = 24 * 60  # minutes; features.py relies on it


def ingest(config, run):
    """Writes <output_dir>/flights and <output_dir>/quarantine; returns counts, and the flights of each day for `features`."""
    parts = parts_of(config.data_dir)
    folder = Path(config.output_dir)
    partial = folder / ".ingest.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for name in ("flights", "quarantine"):
        (partial / name).mkdir(parents=True)
    # Distributed: nothing is computed yet; each call is a node of a graph, and `compute` sends the nodes to the workers.
    tasks = [dask.delayed(ingest_part)(number, *part, str(partial)) for number, part in enumerate(parts)]
    try:
        done = dask.compute(*tasks)
    except (OSError, EOFError, ValueError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise SystemExit(
            f"{error}; nothing was written. Mend or remove that file, or leave it out of data.path"
        ) from None
    counts = {key: sum(result[key] for result in done) for key in ("read", "good", "quarantined", "unknown")}
    for name in ("flights", "quarantine"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (partial / name).rename(folder / name)
    partial.rmdir()
    if not counts["good"]:
        raise SystemExit(
            f"{counts['read']:,} rows were read, and none of them is good: see {folder}/quarantine for the reasons"
        )
    reasons = {}
    for result in done:
        for reason, count in result["reasons"].items():
            reasons[reason] = reasons.get(reason, 0) + count
    run.table(
        "rows in quarantine",
        [{"reason": r, "rows": n} for r, n in sorted(reasons.items())] or [{"reason": "none", "rows": 0}],
    )
    places = {}
    for result in done:
        places.setdefault((result["host"], result["pid"]), []).append(result["read"])
    places = [(host, pid, len(rows), sum(rows)) for (host, pid), rows in sorted(places.items())]
    run.table(
        "who read what", [{"worker": f"{host} pid {pid}", "parts": n, "rows": rows} for host, pid, n, rows in places]
    )
    days = pd.concat([pd.Series(result["days"], dtype="int64") for result in done]).groupby(level=0).sum()
    return counts | {
        "parts": len(parts),
        "places": places,
        "days": {day: int(count) for day, count in days.sort_index().items()},
    }


def parts_of(data_dir):
    """[(path, row group or None, its rows or None)]; raises SystemExit where a column is missing."""
    manifest = json.loads((Path(data_dir) / "manifest.json").read_text())
    paths = manifest.get("paths") or sorted(map(str, Path(data_dir).glob("flights-*.parquet")))
    parts = []
    for path in paths:
        if path.endswith(".parquet"):
            footer = pq.read_metadata(path)
            check_columns(path, footer.schema.to_arrow_schema().names)
            for group in range(footer.num_row_groups):
                parts.append((path, group, footer.row_group(group).num_rows))
        elif os.path.getsize(path):  # an empty file has no rows, nor a header
            try:
                header = pd.read_csv(path, nrows=0)
            except (OSError, EOFError, ValueError) as error:
                raise SystemExit(
                    f"{path} cannot be read: {error}. Mend or remove it, or leave it out of data.path"
                ) from None
            check_columns(path, list(header))
            parts.append((path, None, None))
    if not parts:
        raise SystemExit(f"the {len(paths)} files have no rows")
    return parts


def check_columns(path, names):
    if missing := [name for name in COLUMNS if name not in names]:
        raise SystemExit(f"{path} lacks the columns {', '.join(missing)}; it has: {', '.join(names)}")


def ingest_part(number, path, group, num_rows, folder):
    """Runs on a worker. Returns counts, reasons, flights per day, and where it ran."""
    told = {"pid": os.getpid(), "host": socket.gethostname(), "unknown": 0, "reasons": {}, "days": {}}
    try:
        rows = read_part(path, group)
    except EOFError:
        raise ValueError(f"{path} is cut off: its packed content ends too early") from None
    except (pa.ArrowException, OSError) as error:
        if group is None:
            raise ValueError(f"{path} cannot be read: {error}") from None
        reason = "the row group cannot be read"
        lost = pd.DataFrame(
            {
                "file": [path],
                "row": [-1],
                "rows": [num_rows],
                "reason": [f"{reason}: {group}"],
                "content": [str(error)[:200]],
            }
        )
        lost.to_parquet(f"{folder}/quarantine/part-{number:05d}.parquet", index=False)
        return told | {
            "read": num_rows,
            "good": 0,
            "quarantined": num_rows,
            "unknown": num_rows,
            "reasons": {reason: num_rows},
        }
    flights, reason = check(rows)
    bad = reason.notna()
    first = 0 if group is None else sum(pq.read_metadata(path).row_group(n).num_rows for n in range(group))
    if bad.any():
        content = [" ".join(map(str, values))[:200] for values in rows[bad].to_numpy()]
        quarantine = {
            "file": path,
            "row": first + rows.index[bad],
            "rows": 1,
            "reason": reason[bad],
            "content": content,
        }
        pd.DataFrame(quarantine).to_parquet(f"{folder}/quarantine/part-{number:05d}.parquet", index=False)
    # An id that any order of the tasks gives alike.
    flights.insert(0, "id", number * 2**32 + flights.index.to_numpy(dtype="int64"))
    flights = flights[~bad]
    flights.to_parquet(f"{folder}/flights/part-{number:05d}.parquet", index=False)
    days = flights["scheduled"].dt.strftime("%Y-%m-%d").value_counts()
    return told | {
        "read": len(rows), "good": len(flights), "quarantined": int(bad.sum()),
        "reasons": reason[bad].value_counts().to_dict(), "days": days.to_dict(),
    }  # fmt: skip


def read_part(path, group):
    if group is None:
        return pd.read_csv(path, usecols=COLUMNS, dtype=str, encoding_errors="replace")[COLUMNS]
    with pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=COLUMNS).to_pandas()[COLUMNS]


def check(rows):
    """(flights with the right types and `scheduled`, reason of each row: missing where it is good)."""
    flights, reason = pd.DataFrame(index=rows.index), pd.Series(None, index=rows.index, dtype="object")

    def object_to(bad, text):
        reason[bad & reason.isna()] = text

    for name in NUMBERS:
        flights[name] = pd.to_numeric(rows[name], errors="coerce").astype("float64")
        object_to(flights[name].isna() & rows[name].notna() & (rows[name].astype(str) != "NA"), f"{name} is no number")
    for name in TEXTS:
        flights[name] = rows[name].astype("str")
        object_to(flights[name].str.len() > LONGEST_TEXT, f"{name} is longer than {LONGEST_TEXT} characters")
        object_to(flights[name].str.contains("\ufffd", na=False), f"{name} is not UTF-8")
    for name in TIMES:
        flights[name] = (
            pd.to_datetime(rows[name], errors="coerce", utc=True).dt.tz_localize(None).astype("datetime64[us]")
        )
    for name in NEEDED:
        object_to(flights[name].isna(), f"{name} is missing")
    for name in ("dep_delay", "arr_delay"):
        object_to(flights[name].abs() > MOST_DELAY, f"{name} is more than a day")
    days = pd.to_datetime(flights[["year", "month", "day"]], errors="coerce")
    clock = pd.to_timedelta(flights["hour"] * 60 + flights["minute"], unit="min")
    object_to(days.isna() | ~flights["hour"].between(0, 24) | ~flights["minute"].between(0, 59), "no such day or hour")
    flights["scheduled"] = (days + clock).astype("datetime64[us]")
    return flights, reason

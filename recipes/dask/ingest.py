"""Raw flights to checked flights: a bag of independent tasks, one for each row group or CSV file.

Each task reads its part, keeps the good rows, puts the others into quarantine with file, row and reason, and
says what it did.
"""

import json
import os
import socket
import zlib
from pathlib import Path

import dask
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from checking import COLUMNS, check
from reading import plain_reading, read_part
from tables import begin, finish, give_up, place_of, write_table

KEY = ["scheduled", "carrier", "origin", "dest", "tailnum"]  # two flights that share all of these are one
BYTES_COMPARED = 256 << 20  # of files that are larger together, a share of the flights is looked at


def ingest(config, run):
    """Writes the tables flights and quarantine.

    Returns counts, and the flights of each day for `features`.
    """
    manifest = json.loads((Path(config.data_dir) / "manifest.json").read_text())
    parts, values = parts_of(manifest, config.data_dir), manifest.get("values")
    names, folder = ("flights", "quarantine"), place_of(config)
    partial = begin(folder, names)
    sizes = {reading["path"]: os.path.getsize(reading["path"]) for reading, *_ in parts}
    share = min(1.0, BYTES_COMPARED / sum(sizes.values()))
    # Distributed: nothing is computed yet; each call is a node of a graph, and `compute` sends the nodes
    # to the workers.
    tasks = [dask.delayed(ingest_part)(number, *part, values, partial, share) for number, part in enumerate(parts)]
    try:
        done = dask.compute(*tasks)
    except (OSError, EOFError, ValueError) as error:
        give_up(partial)
        raise SystemExit(
            f"{error}; nothing was written. Mend or remove that file, or leave it out of data.path"
        ) from None
    check_files(parts, done)
    counts = {key: sum(result[key] for result in done) for key in ("read", "good", "quarantined", "unknown")}
    finish(folder, partial, names)
    reasons = reasons_of(done)
    run.table("rows in quarantine", reasons or [{"reason": "none", "rows": 0, "example": ""}])
    if problem := too_many(counts, reasons, config.max_malformed_share, folder):
        raise SystemExit(problem)
    if "reading" in manifest:  # flights that were made up may well be copies
        counts["repeated"], twice = repeated(done, share)
        if twice:
            run.table("flights that are there more than once", twice[:100])
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
        "known": {name: sum(result["known"].get(name, 0) for result in done) for name in COLUMNS},
        "days": {day: int(count) for day, count in days.sort_index().items()},
    }


def parts_of(manifest, data_dir):
    """[(how to read a file, row group or None, its rows or None)] of all files of the dataset."""
    readings = manifest.get("reading")
    if readings is None:  # a dataset of our own: Parquet, with our names
        readings = [plain_reading(str(path), COLUMNS) for path in sorted(Path(data_dir).glob("flights-*.parquet"))]
    parts = []
    for reading in readings:
        path = reading["path"]
        if not os.path.exists(path) or os.path.getsize(path) != reading["bytes"]:
            raise SystemExit(
                f"{path} is not the file that it was when the dataset was made; run again, once nobody writes to it"
            )
        if reading["format"] == "parquet":
            footer = pq.read_metadata(path)
            groups = [(group, footer.row_group(group).num_rows) for group in range(footer.num_row_groups)]
            parts += [(reading, group, rows) for group, rows in groups if rows]
        else:
            parts.append((reading, None, None))
    if not parts:
        raise SystemExit(f"the {len(readings)} files have no rows")
    return parts


def check_files(parts, done):
    """Raises SystemExit unless the tasks have read the parts of the manifest's files, each once, and each whole."""
    asked = [(reading["path"], group, rows) for reading, group, rows in parts]
    found = [
        (*result["part"], result["read"] if rows is not None else None)
        for result, (*_, rows) in zip(done, asked, strict=True)
    ]
    if found != asked:
        other = next((f, a) for f, a in zip(found, asked, strict=True) if f != a)
        raise SystemExit(f"what was read is not what the manifest lists: {other[0]} instead of {other[1]}")


def repeated(done, share):
    """(about how many good flights are copies; [{rows, file, the same as in} for each pair of files, most rows first]).

    Copies come from the same data in another form: with other separators, as Parquet besides, or a month beside its
    year.
    """
    paths = list(dict.fromkeys(result["part"][0] for result in done))
    keys = np.concatenate([result["keys"] for result in done])
    files = np.repeat([paths.index(result["part"][0]) for result in done], [len(result["keys"]) for result in done])
    order = np.lexsort((files, keys))
    keys, files = keys[order], files[order]
    again = np.flatnonzero(keys[1:] == keys[:-1]) + 1
    first = np.searchsorted(keys, keys[again])
    pairs, counts = np.unique(np.stack([files[again], files[first]]), axis=1, return_counts=True)
    found = [
        {"rows": round(count / share), "file": paths[file], "the same as in": paths[other]}
        for (file, other), count in zip(pairs.T, counts.tolist(), strict=True)
    ]
    return round(len(again) / share), sorted(found, key=lambda one: -one["rows"])


def reasons_of(done):
    """[{reason, rows, example}], the most frequent first."""
    rows, examples = {}, {}
    for result in done:
        for reason, (count, example) in result["reasons"].items():
            rows[reason] = rows.get(reason, 0) + count
            examples.setdefault(reason, example)
    return [
        {"reason": reason, "rows": rows[reason], "example": examples[reason]}
        for reason in sorted(rows, key=lambda r: (-rows[r], r))
    ]


def too_many(counts, reasons, limit, folder):
    """What is wrong with the shares of good and quarantined rows, or None."""
    if not counts["read"]:
        return "the files have no rows"
    examples = "; ".join(f"{one['rows']:,} rows: {one['reason']} (such as: {one['example']})" for one in reasons[:3])
    if not counts["good"]:
        return f"{counts['read']:,} rows were read, and none of them is good. {examples}. See {folder}/quarantine"
    if counts["quarantined"] > limit * counts["read"]:
        return (
            f"{counts['quarantined']:,} of {counts['read']:,} rows are in quarantine, "
            f"more than max_malformed_share={limit:g} allows. "
            f"{examples}. See {folder}/quarantine; settings of the dataset (data.*) say how values are to be read"
        )
    return None


def ingest_part(number, reading, group, num_rows, values, folder, share=1.0):
    """Runs on a worker. Returns counts, reasons, flights per day, values per column, a key (uint64) of each flight, or
    of that share of them, and where it ran."""
    path = reading["path"]
    found = {"pid": os.getpid(), "host": socket.gethostname(), "part": (path, group)}
    found |= {"unknown": 0, "reasons": {}, "days": {}, "known": {}, "keys": np.empty(0, np.uint64)}
    try:
        rows, broken = read_part(reading, group)
    except EOFError:
        raise ValueError(f"{path} is cut off: its packed content ends too early") from None
    except (pa.ArrowException, OSError, zlib.error) as error:
        if group is None:
            raise ValueError(f"{path} cannot be read: {error}") from None
        reason = "the row group cannot be read"
        lost = {
            "file": [path],
            "row": [-1],
            "rows": [num_rows],
            "reason": [f"{reason}: {group}"],
            "content": [str(error)[:200]],
        }
        write_table(pd.DataFrame(lost), f"{folder}/quarantine/part-{number:05d}.parquet")
        lost = {"read": num_rows, "good": 0, "quarantined": num_rows, "unknown": num_rows}
        return found | lost | {"reasons": {reason: (num_rows, f"{path}, row group {group}")}}
    has_nulls = reading["format"] == "parquet"
    flights, reason = check(rows, broken, reading["folder"], values, has_nulls, reading.get("named"))
    bad = reason.notna()
    if bad.any():
        footer = pq.read_metadata(path) if group else None
        first = sum(footer.row_group(number).num_rows for number in range(group or 0))  # rows of the file before these
        content = [
            broken[number][1] if number in broken else " ".join(map(str, line))[:200]
            for number, line in zip(rows.index[bad], rows[bad].to_numpy(), strict=True)
        ]
        quarantine = pd.DataFrame(
            {"file": path, "row": first + rows.index[bad], "rows": 1, "reason": reason[bad], "content": content}
        )
        write_table(quarantine, f"{folder}/quarantine/part-{number:05d}.parquet")
        examples = quarantine.groupby("reason")["content"].agg(["size", "first"])
        found["reasons"] = {name: (int(row["size"]), f"{row['first'][:100]}") for name, row in examples.iterrows()}
    # An id that does not depend on the order of the tasks.
    flights.insert(0, "id", number * 2**32 + flights.index.to_numpy(dtype="int64"))
    flights = flights[~bad]
    write_table(flights, f"{folder}/flights/part-{number:05d}.parquet")
    days = flights["scheduled"].dt.strftime("%Y-%m-%d").value_counts()
    keys = pd.util.hash_pandas_object(flights[KEY], index=False).to_numpy()
    return found | {
        "keys": keys[keys <= share * float(2**64 - 1)],
        "read": len(rows),
        "good": len(flights),
        "quarantined": int(bad.sum()),
        "days": days.to_dict(),
        "known": {name: int(flights[name].notna().sum()) for name in COLUMNS},
    }

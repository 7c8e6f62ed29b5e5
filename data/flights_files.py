"""Flights of your own: Parquet or delimited text, plain or packed. Lists the files and how to
read each; copies nothing.

Looks at the beginning of each file before any work: its columns, its separator, its encoding. What is below `path` and
not read is listed in the manifest's `left_out`, with the reason. Folders named `year=2013` give a column.

Weather, planes and airports are those of the flights dataset; what they do not know is missing in the features.
Licence: the user's own.
"""

import bz2
import codecs
import csv
import gzip
import hashlib
import io
import json
import os
import re
import zlib
from datetime import UTC, datetime
from glob import glob, has_magic
from itertools import islice
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from _common import DatasetError, every_file, pointer_of, printable, refuse_tables, run_builder, same_bytes, same_file
from flights import build as build_tables

NUMBERS = ["year", "month", "day", "hour", "minute", "distance", "dep_delay", "arr_delay"]
TEXTS = ["carrier", "tailnum", "origin", "dest"]
COLUMNS = [*NUMBERS, *TEXTS, "time_hour"]
DATE, CLOCK = ("year", "month", "day"), ("hour", "minute")
SHARED = [DATE, CLOCK, (*DATE, *CLOCK)]  # what one column of a file may be at once: a date, a clock, or both
REQUIRED = ["year", "month", "day", "hour", "minute", "carrier", "origin", "dest"]  # the others may lack in all files
KINDS = {".parquet", ".parq", ".pq", ".csv", ".tsv"}  # endings that are read in a folder, in any case
PACKED = {".gz", ".bz2", ".zst", ".lz4"}  # may follow them; .gz, .bz2 and .zst also stand alone
TO_UNPACK = {".zip", ".xz", ".7z", ".rar", ".tar", ".tgz", ".tbz2", ".txz", ".z", ".br", ".snappy"}
TO_CONVERT = {
    ".feather",
    ".arrow",
    ".ipc",
    ".orc",
    ".avro",
    ".xlsx",
    ".xls",
    ".ods",
    ".json",
    ".jsonl",
    ".xml",
    ".sql",
    ".db",
    ".sqlite",
}
OTHER_KINDS = {".tar", ".log", ".txt", ".json", ".jsonl", ".xml", ".sql"}  # before .gz: no flights
MAGIC = {
    b"PAR1": "parquet",
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x50\x2a\x4d\x18": "zstd",  # as pzstd begins
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
    b"\xd0\xcf\x11\xe0": "an old Office file",
    b"\xfd7zXZ": "xz",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "rar",
    b"SQLite": "SQLite",
    b"ARROW1": "Arrow's IPC format",
    b"ORC": "ORC",
    b"Obj\x01": "Avro",
}
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|", "\\t": "\t"}
FOUND_SEPARATORS = [",", ";", "\t", "|", "^", "~", "\x01"]  # that a header may show
DECIMALS = {"point": ".", "comma": ",", ".": ".", ",": ","}
BEGINNING = 1 << 18  # bytes of a file that are looked at
OTHER_NAMES = {  # what such columns are called elsewhere: only to say which setting to use
    "year": "yyyy flightyear",
    "month": "mm flightmonth",
    "day": "dayofmonth dd",
    "hour": "dephour scheduledhour",
    "minute": "depminute scheduledminute",
    "distance": "dist miles",
    "carrier": "opcarrier opuniquecarrier uniquecarrier reportingairline airline airlinecode marketingairline",
    "tailnum": "tailnumber tail registration",
    "origin": "originairport from orig departureairport",
    "dest": "destination destinationairport destairport to arrivalairport",
    "dep_delay": "departuredelay",
    "arr_delay": "arrivaldelay",
    "time_hour": "timestamp",
}


ONE_COLUMN = {  # what one column with a date, or with a clock, is called elsewhere
    DATE: "fldate flightdate dateofflight date",
    CLOCK: "crsdeptime scheddeptime scheduleddeparture scheduleddeparturetime schdeptime std",
}


class CannotBeRead(Exception):
    """What keeps a file from being read."""


def build(
    folder,
    path,
    columns=None,
    separator=None,
    decimal=None,
    encoding=None,
    time_format=None,
    day_first=None,
    missing=None,
):
    if not path:
        raise DatasetError("which files? Say data.path=/my/flights (a file, a folder or a glob)")
    names = wanted_names(columns or {})
    settings = check_settings(separator, decimal, encoding, time_format, day_first, missing)
    files, left_out = found_files(path)
    readings, problems = [], []
    for file, folder_columns in files:
        try:
            if reading := how_to_read(file, names, folder_columns, settings):
                readings.append(reading)
            else:
                left_out.append({"file": printable(file), "reason": "empty"})
        except (OSError, CannotBeRead) as error:
            problems.append(f"{file}: {getattr(error, 'strerror', None) or error}")
    if problems:
        listed = "\n  ".join(problems[:20])
        raise DatasetError(
            f"{len(problems)} of {len(files)} files cannot be read:\n  {listed}\n"
            "Mend or remove them, or leave them out of data.path"
        )
    check_columns(readings, names)
    check_scheduled(readings, columns or {})
    rows = [reading["rows"] for reading in readings]
    if None not in rows and not sum(rows):
        raise DatasetError(f"path={path}: the {len(files)} files have no rows")
    made = build_tables(folder, num_copies=1, keep_every=1, max_jitter_minutes=0, seed=0)
    for file in folder.glob("flights-*.parquet"):
        file.unlink()
    own = {"name": "flights_files", "source": f"{len(readings)} files of the user", "licence": "the user's own"}
    found = {
        "rows": {} if None in rows else {"flights": sum(rows)},
        "malformed": None,
        "schema": {name: "of the user" for name in COLUMNS if name in readings[0]["columns"] | readings[0]["folder"]},
        "paths": [reading["path"] for reading in readings],
        "reading": [{key: value for key, value in reading.items() if key != "names"} for reading in readings],
        "values": settings,
        "left_out": sorted(left_out, key=lambda one: one["file"]),
    }
    return made | own | found


def wanted_names(columns):
    """{column of ours: its name in the files, or "" where the user does without it}."""
    if unknown := sorted(set(columns) - set(COLUMNS)):
        raise DatasetError(f"data.columns.{unknown[0]} is unknown; there are: {', '.join(COLUMNS)}")
    names = {name: name if columns.get(name) is None else str(columns[name]).strip() for name in COLUMNS}
    if without := [name for name in REQUIRED if not names[name]]:
        raise DatasetError(f"data.columns.{without[0]}='': no flight can do without it")
    given = [name for name in names.values() if name]
    for twice in sorted({name for name in given if given.count(name) > 1}):
        ours = tuple(name for name in names if names[name] == twice)
        if ours not in SHARED:
            raise DatasetError(
                f"{' and '.join(f'data.columns.{name}' for name in ours)} are both {twice!r}; expected a column of its "
                "own for each (year, month and day may be one with a date, hour and minute one with a clock: 1330 or "
                "13:30)"
            )
    return names


def check_settings(separator, decimal, encoding, time_format, day_first, missing):
    """The settings that say how text is read, as the recipe needs them; None: found out for each file."""
    if separator is not None:
        separator = SEPARATORS.get(separator, str(separator))
        if len(separator) != 1 or separator in '"\r\n' or separator.isalnum():
            raise DatasetError(
                f"data.separator={separator!r}: expected one character, or one of: {', '.join(SEPARATORS)}"
            )
    if decimal is not None:
        if decimal not in DECIMALS:
            raise DatasetError(f"data.decimal={decimal!r}: expected point or comma")
        decimal = DECIMALS[decimal]
    if encoding is not None:
        try:
            "".encode(encoding)
        except (LookupError, TypeError):
            raise DatasetError(
                f"data.encoding={encoding!r} is unknown; for example utf-8, utf-16, latin-1, cp1252"
            ) from None
    if time_format is not None and "%" not in str(time_format):
        raise DatasetError(f"data.time_format={time_format!r}: expected a format such as '%d.%m.%Y %H:%M' (strptime's)")
    if time_format is not None:
        check_time_format(str(time_format))
    if day_first not in (None, True, False):
        raise DatasetError(f"data.day_first={day_first!r}: expected true (31/12/2013), false (12/31/2013) or null")
    if isinstance(missing, str) and missing.startswith("["):
        raise DatasetError(
            f"data.missing={missing}: expected a list; words with other characters than letters, digits and -_./ need "
            "quotes: data.missing='[\"#N/A\"]'"
        )
    if missing is not None:
        words = missing if isinstance(missing, (list, tuple)) else [missing]
        missing = [word if isinstance(word, str) else json.dumps(word) for word in words]  # null: the word
    return {
        "separator": separator,
        "decimal": decimal,
        "encoding": encoding,
        "time_format": time_format,
        "day_first": day_first,
        "missing": missing,
    }


def check_time_format(time_format):
    """Raises DatasetError for a format that strptime does not know, or that leaves out the date or the hour."""
    moment = datetime(2003, 11, 24, 16, tzinfo=UTC)
    try:
        got = datetime.strptime(moment.strftime(time_format), time_format)
    except ValueError as error:
        raise DatasetError(f"data.time_format={time_format!r}: {error}") from None
    if got.replace(tzinfo=None) != moment.replace(tzinfo=None):
        raise DatasetError(
            f"data.time_format={time_format!r} does not say year, month, day and hour (24 hours, or with %p); "
            "expected one such as '%d.%m.%Y %H:%M'"
        )


def found_files(path):
    """([(file, {column: text} that the names of its folders give)], [{file, reason} of each that is not read])."""
    given = Path(os.path.abspath(Path(path).expanduser()))  # a link stays a link
    below = len(given.parts)  # folders from here on are the dataset's own
    if os.path.lexists(given):
        roots, any_ending = [given], True
    else:
        below = next((number for number, part in enumerate(given.parts) if has_magic(part)), below)
        roots, any_ending = sorted(map(Path, glob(str(given), recursive=True))), not has_magic(given.suffix or "*")
        if not roots:
            what = "nothing matches it" if has_magic(str(given)) else "there is no such file or folder"
            raise DatasetError(f"data.path={path}: {what}")
    files, left_out, seen = [], {}, {}
    for root in roots:
        is_folder = root.is_dir()
        refuse_tables(root)
        named = any_ending and not is_folder
        for file, problem in every_file(root) if is_folder else [(root, None)]:
            reason = (None if named else why_not(file, root)) or problem
            if not reason and not file.is_file():
                reason = "no regular file" if file.exists() else "link to nothing"
            real = None if reason else same_file(file)
            if not reason and real in seen and seen[real] != file:
                reason = f"the same file as {printable(seen[real])}"
            if reason:
                left_out[printable(file)] = reason
            elif real not in seen:
                seen[real] = file
                files.append((file, folder_columns(file, below)))
    for file, reason in written_twice(files).items():
        files = [one for one in files if one[0] != file]
        left_out[printable(file)] = reason
        seen = {real: one for real, one in seen.items() if one != file}
    left_out = [
        {"file": file, "reason": left_out[file]} for file in left_out.keys() - set(map(printable, seen.values()))
    ]
    if not files:
        why = "; ".join(f"{one['file']}: {one['reason']}" for one in left_out[:5])
        raise DatasetError(
            f"data.path={path}: there are no flights (files that end in {', '.join(sorted(KINDS))}, "
            f"plain or packed: {', '.join(sorted(PACKED))})" + (f". Left out: {why}" if why else "")
        )
    return files, left_out


def written_twice(files):
    """{file: reason} of those that hold what another one holds.

    Raises DatasetError where that cannot be told: f.csv and f.parquet.
    """
    by_columns, found = {}, {}
    for file, columns in files:  # a folder month=2 makes other rows of the same bytes
        by_columns.setdefault(tuple(sorted(columns.items())), []).append(file)
    for alike in by_columns.values():
        found |= {file: f"the same content as {printable(first)}" for file, first in same_bytes(alike).items()}
    by_stem = {}
    for file, _ in files:
        if file not in found:
            by_stem.setdefault(stem_of(file), []).append(file)
    for alike in by_stem.values():
        first, *others = sorted(alike, key=lambda file: file.suffix.lower() in PACKED)
        for file in others:
            if not same_content(file, first):
                raise DatasetError(
                    f"{printable(first)} and {printable(file)} hold the same stem, so probably the same flights: "
                    "name the one that is to be read in data.path (such as *.csv, for all of a kind), or rename one"
                )
            found[file] = f"the same content as {printable(first)}, packed"
    return found


def stem_of(file):
    """The path without the endings that say how it is written: of f.csv, f.csv.gz and f.parquet."""
    stem = file.with_suffix("") if file.suffix.lower() in PACKED else file
    return stem.with_suffix("") if stem.suffix.lower() in KINDS else stem


def why_not(file, root):
    """Why a file that was not named in full is not read, or None."""
    inside = file.relative_to(root) if file != root else Path(file.name)
    if hidden := next((part for part in inside.parts if part[0] in "._" and "=" not in part), None):
        return f"{hidden} begins with {hidden[0]}, which hides it; name the file in data.path to have it read"
    *_, before, last = ["", "", *(ending.lower() for ending in file.suffixes)]
    if last in KINDS or (last in PACKED and before not in OTHER_KINDS):
        return None
    ending = before + last if last in PACKED else last or "(none)"
    if last in TO_UNPACK or before == ".tar":
        return f"the ending {ending} is not read: unpack it"
    if last in TO_CONVERT or before in TO_CONVERT:
        return f"the ending {ending} is not read: convert it to CSV or Parquet"
    return f"the ending {ending} is not known; name the file in data.path to have it read"


def folder_columns(file, below):
    """{name: (text, whether the folder is one of the dataset's own)} of the folders named name=text around a file.

    Raises DatasetError where two of them say different things.
    """
    found, said = {}, {}
    for number, part in enumerate(file.parts[:-1]):
        name, equals, text = part.partition("=")
        if equals and name:
            if (first := said.setdefault(unquote(name), text)) != text:
                raise DatasetError(f"{printable(file)} lies in two folders that differ: {name}={first} and {part}")
            found[unquote(name)] = None if text == "__HIVE_DEFAULT_PARTITION__" else unquote(text), number >= below
    return found


def how_to_read(file, names, folder_columns, settings):
    """How the recipe shall read a file: a dictionary for the manifest. None for an empty file; raises CannotBeRead."""
    with open(file, "rb") as content:
        begin = content.read(16)
    kind = next((kind for magic, kind in MAGIC.items() if begin.startswith(magic)), "text")
    size = file.stat().st_size
    if not size:
        return None
    if pointer := pointer_of(file):
        raise CannotBeRead(pointer)
    made = {
        "path": str(file),
        "bytes": size,
        "format": "csv",
        "packed": None,
        "encoding": None,
        "separator": None,
        "rows": None,
    }
    if kind == "parquet" or (kind == "text" and file.suffix.lower() in (".parquet", ".parq", ".pq")):
        made |= {"format": "parquet"} | parquet_facts(file, {name for name in names.values() if name})
    elif kind in ("text", "gzip", "bz2", "zstd", "lz4"):
        made["packed"] = None if kind == "text" else kind
        facts = text_facts(beginning(file, made["packed"]), names, settings)
        if facts is None:
            return None
        made |= facts
    else:
        if kind in ("xz", "7z", "rar"):
            raise CannotBeRead(f"it is packed as {kind}, which is not read; unpack it")
        raise CannotBeRead(
            "it is a zip archive (or an .xlsx sheet); unpack it, or export it as CSV or Parquet"
            if kind == "zip"
            else f"it is {kind}; export it as CSV or Parquet"
        )
    twice = sorted({name for name in made["names"] if name in names.values() and made["names"].count(name) > 1})
    if twice:
        raise CannotBeRead(f"it has the column {twice[0]} {made['names'].count(twice[0])} times; expected each once")
    made["folders"] = list(folder_columns)
    made["columns"] = {ours: theirs for ours, theirs in names.items() if theirs in made["names"]}
    # A folder above data.path gives what the file lacks; one of the dataset's own must agree with the file.
    made["folder"] = {
        ours: folder_columns[theirs][0]
        for ours, theirs in names.items()
        if theirs in folder_columns and (folder_columns[theirs][1] or ours not in made["columns"])
    }
    made["named"] = {ours: names[ours] for ours in made["columns"] | made["folder"]}
    return made


def same_content(file, other):
    """Whether two files, packed or not, hold the same bytes; not, where one cannot be read."""
    try:
        return unpacked_digest(file) == unpacked_digest(other)
    except Exception:  # what decoders raise
        return False


def unpacked_digest(file):
    digest = hashlib.sha256()
    packed = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}.get(file.suffix.lower())
    with opened(file, packed) as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.digest()


def beginning(file, packed):
    """The first bytes of a file, unpacked."""
    try:
        with opened(file, packed) as content:
            return content.read(BEGINNING)
    except (EOFError, OSError, zlib.error, ValueError) as error:
        if getattr(error, "strerror", None):
            raise
        raise CannotBeRead(f"its packed content ({packed}) is damaged: {error}") from None


def opened(file, packed):
    """A binary stream of the unpacked content."""
    if packed in ("zstd", "lz4"):
        return pa.CompressedInputStream(pa.OSFile(str(file)), packed)
    return {"gzip": gzip.open, "bz2": bz2.open, None: open}[packed](file, "rb")


def text_facts(begin, names, settings):
    """Encoding, separator and column names of a text file. None for a file without anything in it."""
    if not begin:
        return None
    if inner := next((kind for magic, kind in MAGIC.items() if begin.startswith(magic)), None):
        raise CannotBeRead(f"there is {inner} inside: unpack it once")
    encoding = settings["encoding"] or next((found for mark, found in MARKS.items() if begin.startswith(mark)), None)
    zeros = [begin[start:4096:2].count(0) for start in (0, 1)]
    if encoding is None and sum(zeros) * 10 > len(begin[:4096]):  # of fewer ones, the rows are refused
        if max(zeros) > 10 * min(zeros):
            order = "le" if zeros[1] > zeros[0] else "be"
            raise CannotBeRead(
                f"it looks like UTF-16 without its mark at the beginning; say data.encoding=utf-16-{order}"
            )
        raise CannotBeRead("it is no text: it has zero bytes")
    encoding = encoding or "utf-8"
    try:
        text = codecs.getincrementaldecoder(encoding)("replace").decode(begin).removeprefix("\ufeff")
    except UnicodeError as error:
        raise CannotBeRead(
            f"it is not {encoding} ({error}); data.encoding says another one, null finds it out"
        ) from None
    if not text.strip():
        return None
    if found := re.match(r"\s*(?:(\[\s*)?\{\s*\"|(<))", text):
        raise CannotBeRead(f"it is {'HTML or XML' if found[2] else 'JSON'}; export it as CSV or Parquet")
    csv.field_size_limit(1 << 30)
    wanted = {name for name in names.values() if name}
    skip, said = lines_before(text)
    known = settings["separator"] or said
    headers = {}
    for separator in [known] if known else FOUND_SEPARATORS:
        lines = islice(io.StringIO(text, newline=""), skip, None)
        rows = csv.reader(lines, delimiter=separator, skipinitialspace=separator != " ")
        headers[separator] = [name.strip() for name in next((row for row in rows if row), [])]
    # Where no column has a name that is wanted, the separator that gives the most columns is shown.
    best = max(headers, key=lambda one: (len(wanted & set(headers[one])), len(headers[one])))
    if odd := next((name for name in headers[best] if "\0" in name), None):
        raise CannotBeRead(f"its header has a zero byte, in {odd!r}")
    if not wanted & set(headers[best]) and (number := later_header(text, skip + 1, wanted, list(headers))):
        raise CannotBeRead(f"its header is in line {number}: take the lines above away (tail -n +{number} FILE > NEW)")
    return {"encoding": encoding, "separator": best, "names": headers[best], "skip": skip}


def later_header(text, first, wanted, separators):
    """The number of a line behind the `first` that has the names of wanted columns, or None. It looks at 50 lines."""
    for number, line in enumerate(islice(io.StringIO(text), first, first + 50), first + 1):
        if any(len(wanted & {name.strip('" \n') for name in line.split(one)}) > 2 for one in separators):
            return number
    return None


def lines_before(text):
    """(lines before the header: empty ones, comments, Excel's `sep=;`; the separator that this says, or None)."""
    number, said = 0, None
    for line in io.StringIO(text, newline=""):
        excel = re.fullmatch(r'"?sep=(.)"?\s*', line, re.IGNORECASE)
        if line.strip() and not excel and not line.startswith("#"):
            break
        number, said = number + 1, excel[1] if excel else said
    return number, said


def parquet_facts(file, wanted):
    """Rows and column names of a Parquet file, which ends with its schema: so a cut one shows here."""
    try:
        with pq.ParquetFile(file) as content:
            schema, rows = content.schema_arrow, content.metadata.num_rows
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's errors are ValueErrors
        raise CannotBeRead(str(error).splitlines()[0]) from None
    return {"rows": rows, "names": schema.names, "types": {f.name: str(f.type) for f in schema if f.name in wanted}}


def check_columns(readings, names):
    """Raises DatasetError where a column is missing, or is of a kind that no such value has."""
    used = {name for reading in readings for name in reading["columns"] | reading["folder"]}
    problems = []
    for reading in readings:
        there = reading["columns"] | reading["folder"]
        lacking = [name for name in COLUMNS if name not in there and (name in REQUIRED or name in used)]
        # A column of another name is a mapping that was forgotten, not a column that the user does without.
        around = [*reading["names"], *reading["folders"]]
        near = {name: near_name(name, around, names) for name in COLUMNS if name not in there and names[name]}
        for shared in (DATE, CLOCK):
            if all(name in near and not near[name] for name in shared):
                near |= dict.fromkeys(shared, one_column(around, shared))
        lacking += [name for name in near if near[name] and name not in lacking]
        if lacking:
            said = " ".join(f"data.columns.{name}={quoted(near.get(name) or '...')}" for name in lacking)
            without = [name for name in lacking if name not in REQUIRED]
            problems.append(
                f"{reading['path']} lacks the columns {', '.join(names[name] or name for name in lacking)}; it has: "
                f"{', '.join(around[:60])}. Say which they are: {said}"
                + (f" (without one: data.columns.{without[0]}='')" if without else "")
                + (" (it has one column: data.separator says what is between them)" if not around[1:] else "")
            )
        for ours, theirs in reading["columns"].items():
            is_shared = list(reading["columns"].values()).count(theirs) > 1
            if (kind := reading.get("types", {}).get(theirs)) and (reason := wrong_type(ours, kind, is_shared)):
                problems.append(f"{reading['path']}: {theirs} is of type {kind}, {reason}")
    problems = list(dict.fromkeys(problems))
    if problems:
        raise DatasetError("\n  ".join(problems[:5]) + (f"\n  and {len(problems) - 5} more" if problems[5:] else ""))


def check_scheduled(readings, columns):
    """Raises DatasetError for a table like nycflights13's before 2016, whose hour and minute are those of the actual
    departure, unless the user says which they are."""
    for reading in readings:
        there = reading["names"]
        if "dep_time" in there and "sched_dep_time" not in there and not columns.get("hour"):
            raise DatasetError(
                f"{reading['path']} has dep_time and no sched_dep_time: hour and minute may be those of the actual "
                "departure, as in older copies of nycflights13; the scheduled ones are wanted. Say data.columns.hour="
                "hour data.columns.minute=minute if they are"
            )


def near_name(ours, there, names):
    """A column of the file that is probably meant, or None."""
    taken = set(names.values())
    free = [name for name in reversed(there) if name not in taken]
    alike = {letters(re.sub(r"\s*[\[(].*", "", name), r"(minutes|mins?|miles|mi|km|new)$"): name for name in free}
    alike |= {letters(name): name for name in free}
    for candidate in [ours.replace("_", ""), *OTHER_NAMES[ours].split()]:
        if candidate in alike:
            return alike[candidate]
    return None


def one_column(there, shared):
    """A column of the file that probably has a date, or a clock, or None."""
    alike = {letters(name): name for name in reversed(there)}
    return next((alike[name] for name in ONE_COLUMN[shared].split() if name in alike), None)


def letters(name, unit="$"):
    """A column's name without marks between its words and without capitals; and without a unit behind it."""
    return re.sub(unit, "", re.sub(r"[^a-z0-9]", "", name.lower()))


def quoted(name):
    return name if re.fullmatch(r"[\w.-]+", name) else f'"{name}"'


def wrong_type(ours, kind, is_shared=False):
    """Why a column of a Parquet file cannot be what it is taken for, or None. `is_shared`: it is a date or a clock."""
    if is_shared and kind.startswith(("date", "time")):
        return "which has a zone; expected the airport's own clock, without one" if "tz=" in kind else None
    kind = re.sub(r"^dictionary<values=(.+?), indices=.*$", r"\1", kind)
    number = re.fullmatch(r"u?int\d+|float|double|halffloat|decimal\d*\(.*\)", kind)
    text = kind in (
        "string",
        "large_string",
        "string_view",
        "binary",
        "large_binary",
        "binary_view",
    ) or kind.startswith("fixed_size_binary")
    if kind == "null" or text:
        return None
    if ours == "time_hour":
        if kind.startswith("date"):
            return "which has no hour; expected a timestamp"
        return None if kind.startswith("timestamp") or number else "expected a timestamp"
    if number:
        return None
    return f"expected {'a number' if ours in NUMBERS else 'a text'}"


if __name__ == "__main__":
    run_builder(build)

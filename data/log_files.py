"""The user's own logs: a list of files, nothing copied. Plain, .gz, .bz2 or .zst; a file, a folder or a glob;
also object stores.

Says before any work which files cannot be read, which are left out and why, in which format their first lines are,
and which file does not fit.
Object-store addresses (s3a://, gs://, hdfs://) are handed to Spark as they are. Licence: the user's own.
"""

import bz2
import calendar
import contextlib
import gzip
import io
import itertools
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from glob import glob, has_magic
from pathlib import Path

import numpy as np
from _common import DatasetError, pointer_of, run_builder, same_bytes, same_file

HERE = Path(__file__).resolve().parent
# Reads: recipes/spark/formats.yaml recipes/spark/logformat.py
# Formats are the recipe's; in an ejected copy its files lie one folder up.
sys.path[:0] = [
    str(folder)
    for folder in (HERE.parent / "recipes/spark", HERE.parent / "recipe", HERE.parent)
    if (folder / "formats.yaml").exists()
]

import logformat  # noqa: E402 (found by the line above)

PACKED = (".gz", ".bz2", ".zst")
KNOWN = (".log", ".txt", ".json", ".jsonl", ".ndjson", ".out", ".err", ".gz", ".bz2", ".zst", "")
# What logrotate and others put behind a name: .1, -20250327, .2025-03-27_22-00-00, -202503, .2025-W13, .Mon, .old;
# glog: .INFO.20250327-220000.123
ROTATED = re.compile(
    r"(?i)(?:\.\d{1,10}|[-._]\d{4}[-.]?\d{2}(?:[-.]?\d{2})?(?:[-T_.]?\d{2}(?:[-_:.]\d{2}){0,2}Z?|[-T_.]?\d{2,10}Z?)?"
    r"|[-._]\d{2}-\d{2}-\d{4}|[-._]\d{4}-?W\d{2}"
    r"|\.(?:mon|tue|wed|thu|fri|sat|sun|old|info|warning|error|fatal))$"
)
# A date in the name of a file, or as the whole name of the folders around it: 2025/03/27/messages.
DATE = re.compile(
    r"(?:(?<![\d/])|/)((?:19|20)\d\d)([-._/]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])(?!\d)(?:[^/]*|/[^/]*)$"
)
FOREIGN = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\x28\xb5\x2f\xfd": ".zst", b"\xfd7zXZ": ".xz", b"PK\x03\x04": ".zip"}
_MONTH = f"(?:{'|'.join(logformat.MONTHS)})"
STAMP = re.compile(rf"(?m)^(?:<\d{{1,3}}>)?(?:\S{{1,20}} \d{{1,2}} )?({_MONTH}) (?: ?\d{{1,2}} )?\d\d:".encode())
DATED = re.compile(rb"\d\d:\d\d:\d\d|\d{9}")
SAMPLE_LINES, SAMPLE_BYTES, BLOCK = 1000, 4 << 20, 1 << 18
LINES_IN_ALL = 200_000  # of more than 200 files fewer lines are looked at, but never fewer than 50 each
SLOW_SECONDS = 30  # of processor time, for the first 10,000 lines of all files: usual expressions take less than one
OVERLAP_BYTES, OVERLAP_FILES = 256 << 20, 200  # beyond that nobody looks whether files overlap: it takes all lines
ALIKE_LINES = 20  # files that have as many lines in common at the beginning are compared to their ends
COLOURS = "They hold colours of a terminal: sed 's/\\x1b\\[[0-9;]*m//g' FILE > NEW takes those away\n"
MARK = b"\xef\xbb\xbf"
SURROGATE = re.compile("[\ud800-\udfff]")  # stands for a byte that is no UTF-8
SECOND_1981, DAY = 347_155_200, 86_400


def build(folder, path, format, year=None, time_format=None, epoch_unit="auto", event_start="auto", request_unit=None):
    if not path:
        raise DatasetError(
            "which files? Say data.path=/var/log/nginx (a file, a folder or a glob) and data.format=auto, or =combined"
        )
    options = {
        "year": year,
        "time_format": time_format,
        "epoch_unit": epoch_unit,
        "event_start": event_start,
        "request_unit": request_unit,
    }
    try:
        wanted = logformat.resolve(
            "combined" if format == "auto" else format, **options
        )  # also says what is wrong with the options
        wanted = None if format == "auto" else wanted
    except logformat.FormatError as error:
        raise DatasetError(str(error)) from None
    if "://" in str(path):
        if wanted is None:
            raise DatasetError(
                f"path={path}: format=auto cannot look into object stores; name the format: data.format=combined"
            )
        return manifest([path] if isinstance(path, str) else path, wanted, "as the store has it", [])
    found = [find(one) for one in ([path] if isinstance(path, str) else path)]
    files, copies = without_copies(list(dict.fromkeys(file for files, _ in found for file in files)))
    left_out = [one for _, others in found for one in others] + copies
    if not files:
        listed = "".join(f"\n  {entry['file']}: {entry['reason']}" for entry in left_out[:20])
        endings = ", ".join(filter(None, KNOWN))
        raise DatasetError(f"path={path}: there are no log files (with an ending of: {endings}, or none){listed}")
    problems = [f"{file}: {problem}" for file in files if (problem := problem_of(file))]
    if problems:
        listed = "\n  ".join(problems[:20])
        raise DatasetError(
            f"{len(problems)} of {len(files)} log files cannot be read:\n  {listed}\n"
            "Mend or remove them, or leave them out of path="
        )
    first = first_of(files)
    if not any(first.values()):
        raise DatasetError(f"path={path}: there are no lines: all {len(files)} files are empty")
    twins = copies_by_lines(first)
    notes = [
        f"{file}: {reason}: they are counted twice, unless you leave one of the two out of data.path"
        for file, reason in twins.items()
    ]
    others = {file: lines for file, lines in first.items() if file not in twins}
    in_order = overlaps(others)
    notes += in_order + shared_lines(others, in_order)
    say_not_utf8(first)
    wanted = choose(first, options) if wanted is None else wanted
    try:
        logformat.check_effect(wanted, options)
    except logformat.FormatError as error:
        raise DatasetError(str(error)) from None
    with slow_expressions_refused(wanted, sum(map(len, first.values()))):
        wanted = looked_at(wanted, first, event_start)
    notes += parts_of_lines(wanted, first) + others_without_time(wanted, first)
    for line in [f"left out: {one['file']}: {one['reason']}" for one in left_out[:5]] + notes[:5]:
        print(line, flush=True)
    size = f"{sum(file.stat().st_size for file in files):,} bytes"
    return manifest([str(file) for file in files], wanted, size, left_out, notes)


def looked_at(wanted, first, event_start):
    """The format, with what only the files can tell: keys, numbers, the start of an event, years."""
    sample = [line for lines in first.values() for line in lines[: max(20, SAMPLE_LINES // len(first))]]
    wanted = logformat.with_keys(wanted, sample)
    wanted = logformat.with_numbers(wanted, sample)
    try:
        logformat.check_unit(wanted, sample)
        logformat.check_whole_time(wanted, sample)
    except logformat.FormatError as error:
        raise DatasetError(str(error)) from None
    wanted = logformat.with_start(wanted, sample) if event_start == "auto" else wanted
    check_fit(wanted, first)
    if note := logformat.without_time(wanted, sample):
        print(note, flush=True)
    return replace(wanted, years=years_of(wanted, first))


@contextlib.contextmanager
def slow_expressions_refused(fmt, num_lines):
    """Raises DatasetError when a user's expression needs far more processor time than so many lines ever take.

    Some, like (a+)+$, take twice as long for each further letter of a line: they would never end.
    """
    limit = SLOW_SECONDS * max(1, num_lines / 10_000)

    def give_up(*_):
        raise DatasetError(
            f"format={fmt.pattern!r} takes more than {limit:.0f} s for the first {num_lines:,} lines: is a part "
            "repeated that is a repetition itself, as in (a+)+ or (.*)*? Say it with one repetition"
        )

    if fmt.name != "regex":
        yield
        return
    before = signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def find(path):
    """(files to read, [{file, reason}] of those that are not): a name that is there is a name;
    only what is not there is taken as a pattern."""
    given = Path(path).expanduser()
    if given.is_file():
        return [given.resolve()], []
    left_out, found = [], []
    if given.is_dir():
        for folder, folders, names in os.walk(
            given, onerror=lambda error: left_out.append(entry(error.filename, error.strerror))
        ):
            for name in sorted(folders):
                if name.startswith("."):
                    left_out.append(entry(Path(folder, name), "a hidden folder"))
                elif Path(folder, name).is_symlink():
                    left_out.append(
                        entry(Path(folder, name), "a link to a folder; name the folder itself in data.path")
                    )
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            found += [Path(folder, name) for name in sorted(names)]
    else:
        for pattern in braces(str(given)):
            names = sorted(glob(pattern, recursive=True))
            if not names:
                what = "nothing matches it" if has_magic(pattern) else "there is no such file or folder"
                raise DatasetError(f"path={pattern}: {what} (on this machine)")
            found += map(Path, names)
        left_out += [
            entry(file, "a folder that the pattern matches; name it in data.path, or write ** to look into it")
            for file in found
            if file.is_dir()
        ]
        found = [file for file in found if not file.is_dir()]
    files = []
    for file in sorted(found):
        if file.name.startswith("."):
            left_out.append(entry(file, "hidden; name it in data.path to have it read"))
        elif file.exists() and not file.is_file():
            left_out.append(entry(file, "no regular file"))
        elif is_binary(beginning(file)):
            left_out.append(entry(file, "binary, no lines of text"))
        elif (kind := unreadable_kind(file.name)) is not None:
            left_out.append(entry(file, kind))
        elif not is_log(file.name):
            left_out.append(
                entry(
                    file, f"its ending ({ending(file.name)}) is not that of a log; name it in data.path to have it read"
                )
            )
        else:
            files.append(file.resolve())
    return files, left_out


def without_copies(files):
    """(files that are read, [{file, reason}] of those that hold what another one holds): nothing is counted twice."""
    left_out, seen = [], {}  # a file that is named twice (by a link, say) is read once
    for file in files:
        if (first := seen.setdefault(same_file(file), file)) != file:
            left_out.append(entry(file, f"the same file as {first.name}"))
    files = list(seen.values())
    copies = same_bytes(files)
    left_out += [entry(file, f"the same content as {first}") for file, first in copies.items()]
    plain = {}  # name without the packing's ending -> files: the plain one first
    for file in sorted(set(files) - set(copies), key=lambda file: (ending(file.name) in PACKED, file)):
        plain.setdefault(file.with_suffix("") if ending(file.name) in PACKED else file, []).append(file)
    for group in plain.values():
        for number, file in enumerate(group):
            if twin := next((one for one in group[:number] if one not in copies and same_lines(file, one)), None):
                copies[file] = twin
                left_out.append(entry(file, f"the lines of {twin.name}, packed"))
    return [file for file in files if file not in copies], left_out


def same_lines(one, other):
    """Whether two files hold the same, unpacked; not, where one cannot be read (which is said later)."""
    with contextlib.suppress(Exception), opener(one)(one, "rb") as left, opener(other)(other, "rb") as right:
        while (block := left.read(1 << 20)) == right.read(1 << 20):
            if not block:
                return True
    return False


def copies_by_lines(first):
    """{file: what is said of it} for those whose lines another file has, too: packed otherwise, with other line ends,
    or as a part of it.

    `first`: {file: its first lines}. Files that begin with the same lines are compared to their ends, and unpacked
    ones that end with the same bytes to their beginnings. Of few lines, only those that are all the same are copies.
    """
    found, begins, ends = {}, {}, {}
    in_order = sorted(first, key=lambda file: (ending(file.name) in PACKED, len(os.fsencode(file)), file))
    for file in in_order:
        if first[file]:
            begins.setdefault(tuple(first[file][:ALIKE_LINES]), []).append(file)
    for one, other in (pair for group in begins.values() for pair in itertools.combinations(group, 2)):
        if one in found or other in found:
            continue
        shorter = which_ends_first(one, other)
        if shorter == "both":
            found[other] = f"the same lines as {one}"
        elif shorter is not None:
            longer = other if shorter == one else one
            found[shorter] = f"its lines are the beginning of {longer}"
    for file in in_order:
        if file not in found and ending(file.name) not in PACKED and file.stat().st_size >= 4096:
            with open(file, "rb") as content:
                content.seek(-4096, os.SEEK_END)
                ends.setdefault(content.read(), []).append(file)
    for group in ends.values():
        for file, longer in itertools.permutations(group, 2):
            if file not in found and longer not in found and is_end_of(file, longer):
                found[file] = f"its lines are the end of {longer}"
    return found


def overlaps(first):
    """Notes on files whose first lines are the last ones of another, or whose lines all lie within another.

    `first`: {file: its first lines}. A file that was rotated while it was copied goes on where another one ends.
    """
    if too_large(first):
        return []
    begins, notes = {}, []
    for file, lines in first.items():
        if len(lines) >= ALIKE_LINES:
            begins.setdefault(lines[0].encode(errors="surrogateescape"), []).append(file)
    for file in first:
        running = {}  # another file -> (its next lines, how many were alike)
        with contextlib.suppress(Exception):  # of one that is damaged the reason is told elsewhere
            for line in itertools.chain(lines_of(file), [None]):
                for other, (lines, count) in list(running.items()):
                    expected = next(lines, None)
                    if expected == line is not None:
                        running[other] = lines, count + 1
                        continue
                    del running[other]
                    if count >= ALIKE_LINES and None in (expected, line):
                        what = "its lines lie within"
                        if expected is not None:
                            what = f"its first {count:,} lines are the last ones of"
                        notes.append(
                            f"{other}: {what} {file}: they are counted twice, unless you take them out of one of the "
                            "two"
                        )
                for other in begins.get(line, ()):
                    if other != file and other not in running:
                        running[other] = lines_of(other), 1
                        next(running[other][0])
    return notes


def shared_lines(first, in_order):
    """Notes on files of which a tenth of the lines or more stand in another one, too, in whatever order: a part that
    somebody has cut out, files that were merged. Only lines with a clock or an epoch count.

    `first`: {file: its first lines}. `in_order`: the notes on files that overlap, which need no second one.
    """
    if len(first) < 2 or too_large(first):
        return []
    files, hashes = list(first), []
    for file in files:
        mine = np.empty(0, np.int64)
        with contextlib.suppress(Exception):  # of one that is damaged the reason is told elsewhere
            mine = np.unique(
                np.fromiter((hash(line.rstrip()) for line in lines_of(file) if DATED.search(line)), np.int64)
            )
        hashes.append(mine)
    numbers, places = np.concatenate(hashes), np.repeat(np.arange(len(files)), [len(one) for one in hashes])
    order = np.lexsort((places, numbers))
    numbers, places = numbers[order], places[order]
    again = np.flatnonzero(numbers[1:] == numbers[:-1]) + 1
    pairs = Counter(zip(places[again], places[np.searchsorted(numbers, numbers[again])], strict=True))
    return [
        f"{files[file]}: {count:,} of its {len(hashes[file]):,} different lines stand in {files[other]}, too: they are "
        "counted twice, unless you take them out of one of the two"
        for (file, other), count in sorted(pairs.items())
        if count >= max(ALIKE_LINES, min(len(hashes[file]), len(hashes[other])) / 10)
        and not any(f"{files[file]}:" in note and f" {files[other]}:" in f" {note}" for note in in_order)
    ]


def too_large(first):
    """Whether nobody looks at all lines of these files, since they are too many or too large."""
    unpacked = (file.stat().st_size * (10 if ending(file.name) in PACKED else 1) for file in first)
    return len(first) > OVERLAP_FILES or sum(unpacked) > OVERLAP_BYTES


def parts_of_lines(fmt, first):
    """A note on lines that a container's runtime has cut into parts, each of which is an event here; or none."""
    lines = [line for lines in first.values() for line in lines]
    if fmt.name == "json_lines":  # Docker's: a whole line ends with its line end
        number = sum(bool(re.match(r'\{"log":"(?:[^"\\]|\\.)*(?<!\\n)","stream":"std', line)) for line in lines)
        number = 0 if number > len(lines) / 2 else number  # of a program that leaves the line ends out
    else:
        parsed = (logformat.parse(fmt, line)[0] for line in lines if fmt.name == "cri")
        number = sum(fields is not None and fields["tag"] == "P" for fields in parsed)
    said = f"{number:,} of the first lines are parts of longer ones: each of them is counted as an event of its own"
    return [said] if number else []


def others_without_time(fmt, first):
    """Notes on files of JSON of which no line has a time, where other files have: Docker's config.v2.json."""
    if not fmt.json or len(first) < 2:
        return []
    timed = {
        file: any((logformat.parse(fmt, line)[0] or {}).get("time") for line in lines[:50])
        for file, lines in first.items()
        if lines
    }
    said = "none of its first lines has a time, as those of other files have: is it a log?"
    return [f"{file}: {said}" for file, has_time in timed.items() if not has_time and any(timed.values())]


def which_ends_first(one, other):
    """Of two files the one whose lines are the first of the other's, "both" where all are the same, else None."""
    with contextlib.suppress(Exception):  # of one that is damaged the reason is told elsewhere
        for left, right in itertools.zip_longest(lines_of(one), lines_of(other)):
            if left is None or right is None:
                return one if left is None else other
            if left != right:
                return None
        return "both"
    return None


def lines_of(file):
    with opener(file)(file, "rb") as content:
        for number, line in enumerate(content):
            yield (line if number else line.removeprefix(MARK)).rstrip(b"\r\n")


def is_end_of(file, longer):
    """Whether an unpacked file's bytes are the last ones of a longer one, from the beginning of a line on."""
    before = longer.stat().st_size - file.stat().st_size
    if before <= 0:
        return False
    with open(file, "rb") as short, open(longer, "rb") as long:
        long.seek(before - 1)
        if long.read(1) != b"\n":
            return False
        while block := short.read(1 << 20):
            if block != long.read(len(block)):
                return False
    return True


def entry(file, reason):
    return {"file": str(file), "reason": reason}


def braces(pattern):
    """/logs/{a,b}.log as /logs/a.log and /logs/b.log, as shells do it."""
    found = re.search(r"\{([^{}]*,[^{}]*)\}", pattern)
    if not found:
        return [pattern]
    return [
        one for word in found[1].split(",") for one in braces(pattern[: found.start()] + word + pattern[found.end() :])
    ]


def ending(name):
    return Path(name).suffix.lower()


def unreadable_kind(name):
    """What a file is that would have no lines of text even if it were named, by its ending; else None."""
    if found := re.search(r"(?i)(\.tar)?\.(?:gz|bz2|zst)$|\.(?:zip|xz|7z|rar|lz4|tar|tgz|lzma|Z)$", name):
        return f"packed ({found[0]}): unpack it" if found[1] or ending(name) not in PACKED else None
    if ending(name) in (".parquet", ".feather", ".orc", ".avro", ".arrow", ".xlsx", ".sqlite", ".db"):
        return f"a table ({ending(name)}), no lines of text"
    return None


def is_log(name):
    plain = name
    while (shorter := ROTATED.sub("", plain)) != plain:
        plain = shorter
    if Path(plain).suffix.lower() in PACKED and Path(Path(plain).stem).suffix.lower() == ".tar":
        return False
    return ending(plain) in KNOWN or ending(name) in KNOWN


def open_zst(path, mode):
    """All frames of a .zst, by lines: zstandard.open ends with the first one, and knows no lines."""
    import zstandard

    return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(open(path, mode), read_across_frames=True))


def opener(file):
    if ending(file.name) == ".zst":
        return open_zst
    return {".gz": gzip.open, ".bz2": bz2.open}.get(ending(file.name), open)


def problem_of(file):
    """What keeps the file from being read, or None.

    Only its beginning is looked at; Spark finds out when a packed file is cut off.
    """
    try:
        with open(file, "rb") as content:
            begin = content.read(6)
        if not begin or (pointer := pointer_of(file)):
            return pointer if begin else None
        for magic, suffix in FOREIGN.items():
            if begin.startswith(magic) and (ending(file.name) != suffix or suffix not in PACKED):
                how = (
                    "unpack it"
                    if suffix in (".xz", ".zip")
                    else "give it that ending, which Spark goes by, or unpack it"
                )
                return f"is packed as {suffix}: {how}"
        with opener(file)(file, "rb") as content:
            begin = content.read(400)
    except Exception as error:  # zstandard has errors of its own
        return reason_of(error)
    if ending(file.name) in PACKED and (inner := next((kind for kind in FOREIGN if begin.startswith(kind)), None)):
        return f"is packed twice (there is {FOREIGN[inner]} in it): unpack it once"
    if begin.startswith(bytes(4)) and not is_binary(begin):
        return "begins with zeros, as logrotate's copytruncate leaves them: tr -d '\\000' < FILE > NEW"
    if begin[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff"):
        return "is UTF-32, which Spark does not read as lines: iconv -f UTF-32 -t UTF-8 FILE > NEW"
    if begin[:2] in (b"\xff\xfe", b"\xfe\xff") or begin.count(b"\0") > len(begin) // 4:
        if is_binary(begin):
            return "is binary, and has no lines of text"
        return "is UTF-16, which Spark does not read as lines: iconv -f UTF-16 -t UTF-8 FILE > NEW"
    return None


def reason_of(error):
    """Why a file cannot be read, in words."""
    if isinstance(error, EOFError):
        return "is cut off: its packed content ends too early"
    return getattr(error, "strerror", None) or f"{error} (damaged, or not packed as its ending says)"


def is_binary(begin):
    """Whether bytes have zeros among them, and not those of UTF-16 (every other one),
    nor only before all else (a file that was cut while written) or behind lines (what a crash leaves)."""
    begin = begin.lstrip(b"\0")
    lines = begin.partition(bytes(4))[0].rpartition(b"\n")[0]
    if len(lines) >= 20 and not re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]", lines):
        return False
    if any(begin.startswith(magic) for magic in (*FOREIGN, b"\xff\xfe", b"\xfe\xff")):
        return False
    zeros = [begin[half::2].count(0) for half in (0, 1)]
    return sum(zeros) > len(begin) // 20 and min(zeros) > 0.1 * max(zeros)


def beginning(file):
    """The first bytes; none of a file that cannot be read, of which `problem_of` says why."""
    with contextlib.suppress(OSError), open(file, "rb") as content:
        return content.read(1 << 16)
    return b""


def first_of(files):
    """{file: its first lines}. Raises DatasetError, with all of them, where files cannot be read that far."""
    first, problems, most = {}, [], min(SAMPLE_LINES, max(50, LINES_IN_ALL // len(files)))
    for file in files:
        try:
            first[file] = first_lines(file, most)
            if problem := no_lines(first[file]):
                problems.append(f"{file}: {problem}")
        except Exception as error:  # zstandard has errors of its own
            problems.append(f"{file}: {reason_of(error)}")
    if problems:
        listed = "\n  ".join(problems[:20])
        raise DatasetError(
            f"{len(problems)} of {len(files)} log files cannot be read:\n  {listed}\n"
            "Mend or remove them, or leave them out of path="
        )
    return first


def first_lines(file, most=SAMPLE_LINES):
    with opener(file)(file, "rb") as content:
        text = more = content.read(BLOCK)
        ends = text.count(b"\n") or text.count(b"\r")
        # A line that is longer than all that was read: on to the lines behind it.
        while len(more) == BLOCK and ends <= most and len(text) < (SAMPLE_BYTES if ends else 64 << 20):
            more = content.read(BLOCK)
            ends += more.count(b"\n") or more.count(b"\r")
            text += more
        whole = len(more) < BLOCK
    lines = re.split("\r\n|\n|\r", text.removeprefix(MARK).decode("utf-8", "surrogateescape"))
    lines = lines[:-1] if len(lines) > 1 and (not whole or not lines[-1]) else lines
    return lines[:most] if lines != [""] else []


def no_lines(lines):
    """What is wrong with a file that is one JSON document instead of an object in each line, or None."""
    begin = next((line.strip() for line in lines if line.strip()), "")
    try:
        made = json.loads(begin) if begin.startswith(("[{", "{")) and begin.endswith(("]", "}")) else None
    except (ValueError, RecursionError):
        made = None
    inner = next(iter(made.values())) if isinstance(made, dict) and len(made) == 1 else None
    several = [one for one in (made, inner) if isinstance(one, list) and one and isinstance(one[0], dict)]
    if several or begin in ("[", "[{", "{"):
        how = "jq -c ." if begin == "{" else "jq -c '.[]'" if inner is None else "jq -c '.[][]'"
        return f"is one JSON document, not an object in each line: {how} FILE > NEW.json"
    return None


def say_not_utf8(first):
    for file, lines in first.items():
        if wrong := sum(SURROGATE.search(line) is not None for line in lines):
            said = (
                f"{file}: {wrong:,} of its first {len(lines):,} lines are not UTF-8, and will be malformed. "
                "Where it is Latin-1 or Windows-1252: iconv -f LATIN1 -t UTF-8 FILE > NEW (or -f WINDOWS-1252)"
            )
            if wrong > len(lines) / 2:
                raise DatasetError(said)
            print(said, flush=True)


def choose(first, options):
    """The format that fits all files; says so. Blank lines and headers alone are of any format that skips them."""
    chosen, without_events = {}, {}
    for file, lines in first.items():
        if not lines:
            continue
        # Of a thousand files of one format the others are not tried each time.
        likely = max(chosen, key=lambda name: len(chosen[name]), default=None)
        share, name = logformat.fit(logformat.entries()[likely], lines)[0] if likely else 0, likely
        if share < 1:
            share, name = logformat.choose(lines)[0]
        if share >= 0.5:
            print(f"format: {file}: {name} fits {100 * share:.1f} % of the first {len(lines):,} lines", flush=True)
            chosen.setdefault(name, []).append(file)
            continue
        without_events[file] = {one for one, fmt in logformat.entries().items() if not logformat.has_events(fmt, lines)}
        if not without_events[file]:
            raise DatasetError(no_format_fits(file, lines, share, name))
    for file, formats in without_events.items():
        if not formats & chosen.keys():
            raise DatasetError(no_format_fits(file, first[file], 0, None))
    if len(chosen) > 1:
        # combined and nginx differ in what may stand behind: where one of them fits all files, it is taken.
        for name in sorted(chosen, key=lambda name: -len(chosen[name])):
            fmt = logformat.entries()[name]
            files = [lines for file, lines in first.items() if lines and file not in without_events]
            named = {bool(fmt.w3c) == any(line.startswith("#Fields:") for line in lines) for lines in files}
            if named == {True} and all(logformat.fit(fmt, lines)[0] >= 0.9 for lines in files):
                chosen = {name: list(first)}
                break
    if len(chosen) > 1:
        told = "; ".join(
            f"{name}: {', '.join(file.name for file in files[:3])}{' ...' if files[3:] else ''}"
            for name, files in chosen.items()
        )
        raise DatasetError(
            f"the files have different formats ({told}): a run reads one; name those of one format in data.path"
        )
    return logformat.resolve(next(iter(chosen)), **options)


def no_format_fits(file, lines, share, name):
    """What is wrong with a file that no named format fits."""
    if not any(line.strip() for line in lines):
        return f"{file}: it has blank lines only; leave it out of data.path"
    shown = "\n  ".join(repr(line[:200]) for line in lines[:3])
    colours = COLOURS if any("\x1b[" in line for line in lines) else ""
    near = f"the nearest is {name}, with {100 * share:.0f} % of the lines" if share else "no line fits any of them"
    return (
        f"{file}: no named format fits its first {len(lines):,} lines ({near}). They begin with:\n  {shown}\n"
        f"{logformat.unknown_zone(lines)}{colours}"
        "Give a regular expression with named groups: data.format='(?<time>\\S+ \\S+) (?<message>.*)'"
    )


def check_fit(fmt, first):
    """Refuses a file of which no line fits; with the format that would."""
    for file, lines in first.items():
        share = logformat.fit(fmt, lines[:50])[0]
        share, _, bad = (share, (), None) if share else logformat.fit(fmt, lines)
        lines = [line for line in lines if line]
        if len(lines) >= 5 and share == 0 and bad:
            best, name = logformat.choose(lines)[0]
            said = "time_format says how a time is written"
            if "epoch" in fmt.names():
                said = "epoch_unit says what an epoch counts"
            how = f" data.{said}." if bad[1] == "no time" else ""
            near = f" It looks like data.format={name} ({100 * best:.0f} % of them fit)." if best >= 0.5 else ""
            given = fmt.name if fmt.name != "regex" else fmt.pattern
            raise DatasetError(
                f"{file}: none of its first {len(lines):,} lines fits data.format={given} "
                f"({bad[1]}): {bad[0][:120]!r}.{near}{how} Leave the file out of data.path, or name the right format"
            )


def years_of(fmt, first):
    """file -> (year, last month * 100 + day in it), for files whose lines have no year."""
    if not fmt.may_lack_year():
        return {}
    found = {}
    for file, lines in first.items():
        if not lacks_year(fmt, lines[:50]):
            continue
        last, leap, months = None, False, []
        with opener(file)(file, "rb") as content:
            tail = b""
            while block := content.read(1 << 20):
                leap = leap or re.search(b"Feb 29 |29 Feb ", tail[-8:] + block) is not None
                months += [month.decode() for month, _ in itertools.groupby(STAMP.findall(block))]
                tail = (tail + block)[-(64 << 10) :]
        days = [
            month_day(fmt, line)
            for line in itertools.chain(lines[:50], tail.decode(errors="replace").splitlines()[-50:])
        ]
        days = [day for day in days if day]
        begin, last = (days[0], days[-1]) if days else (None, None)
        if (turns := new_years(months)) > (begin is not None and last is not None and begin > last):
            raise DatasetError(
                f"{file}: its lines have no year, and go on for more than one (over {turns} New Years): "
                "cut it into files of a year each"
            )
        over, modified = begin is not None and last is not None and begin > last, file.stat().st_mtime
        year = fmt.year if fmt.year is not None else year_by_name(file, begin, last)
        if fmt.year is None and leap and year is not None and not calendar.isleap(year + over):
            year = None  # the date in the name is another one
        if year is None and not SECOND_1981 < modified < time.time() + 2 * DAY:
            day = datetime.fromtimestamp(modified, UTC).date()
            raise DatasetError(
                f"{file}: its lines have no year, and the file's own date ({day}) cannot tell it: say data.year, in "
                "which the files begin"
            )
        if leap and fmt.year is not None and not calendar.isleap(fmt.year + over):
            raise DatasetError(
                f"{file}: it has a 29 February, and there is none in {fmt.year + over}: data.year={fmt.year}"
            )
        found[str(file)] = logformat.dated_of(begin, last, leap, year, modified)
    return found


def year_by_name(file, first, last):
    """The year in which a file begins, by the date in its name (DATE); None where there is none. A file's own date is
    that of the copy, where it was copied.

    `first`, `last`: month * 100 + day of its first and last line. Of the years in which the last one may lie, it is the
    one in which that day is nearest to the date of the name.
    """
    if last is None or not (date := DATE.search(str(file))):
        return None
    named, last_day = ((month - 1) * 30.4 + day for month, day in (map(int, date.groups()[2:]), divmod(last, 100)))
    return int(date[1]) + (last_day - named < -183) - (last_day - named > 183) - (first > last)


def new_years(months):
    """How many New Years lie between the months of lines.

    From January back to December are lines that are not quite in order.
    """
    numbers, turns, most = [logformat.MONTHS.index(month) for month in months], 0, 0
    for before, after in itertools.pairwise(numbers):
        turns += (before - after > 1) - (after - before == 11)
        most = max(most, turns)
    return most


def lacks_year(fmt, lines):
    """Whether the year of one of the lines depends on what is taken for the file's."""
    times = [
        [(logformat.parse(fmt, line, (year, 1231))[0] or {}).get("time") for line in lines] for year in (2024, 2020)
    ]
    return times[0] != times[1]


def month_day(fmt, line):
    found, _ = logformat.parse(fmt, line, (2024, 1231))
    return found["time"].month * 100 + found["time"].day if found and found["time"] else None


def manifest(paths, fmt, size, left_out, notes=()):
    return {
        "name": "log_files",
        "version": "2",
        "source": f"{len(paths)} files of the user, {size}",
        "licence": "the user's own",
        "format": fmt.name,
        "entry": fmt.as_dict(),
        "paths": paths,
        "left_out": left_out,
        "notes": list(notes),
        "rows": {},
        "schema": {"lines": fmt.name},
    }


if __name__ == "__main__":
    run_builder(build)

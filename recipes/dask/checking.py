"""What a value of the flights table may be. A row is right as it is, or it goes into quarantine with the reason.

Nothing is guessed. What a decimal comma or NA means, the whole part shows; where it does not show it, the row is
refused and the reason names the setting of the dataset that decides.
"""

import numpy as np
import pandas as pd

from departure import is_text, stripped, taken_apart

NUMBERS = ["year", "month", "day", "hour", "minute", "distance", "dep_delay", "arr_delay"]
TEXTS = ["carrier", "tailnum", "origin", "dest"]
COLUMNS = [*NUMBERS, *TEXTS, "time_hour"]
NEEDED = ["year", "month", "day", "hour", "minute", "carrier", "origin", "dest"]  # no flight without them
WHOLE = ["year", "month", "day", "hour", "minute"]
LONGEST_TEXT = 16  # characters: a carrier, a tail number or an airport is shorter
MOST_DELAY = 24 * 60  # minutes; features.py relies on it
MOST_DISTANCE = 1e8  # of any unit: half of the way round the earth is 66 million feet
MOST_APART = pd.Timedelta(days=2)  # of time_hour (UTC) and the flight's own date (local)
NEW_YORK = ["EWR", "JFK", "LGA"]  # the airports of the weather, four or five hours behind UTC
MISSING = [
    "",
    "NA",
    "N/A",
    "n/a",
    "#N/A",
    "<NA>",
    "NaN",
    "nan",
    "NaT",
    "NULL",
    "Null",
    "null",
    "None",
    "none",
    "-",
    ".",
    "?",
    "\\N",
]
OF_PYTHON = [
    "",
    "nan",
    "NaN",
    "None",
    "<NA>",
    "NaT",
]  # in a Parquet file, which has real nulls, only these mean "no value"
NO_SETTINGS = {"decimal": None, "missing": None, "time_format": None, "day_first": None}
POINT, COMMA = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", r"[+-]?(\d+,?\d*|,\d+)([eE][+-]?\d+)?"
THOUSANDS = {".": r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?", ",": r"[+-]?[1-9]\d{0,2}(\.\d{3})+(,\d*)?"}
UNSEEN = "[\x01-\x1f\x7f\xad\u200b-\u200f\u202a-\u202e\u2060\ufeff]"  # a text with one is no other's equal
INFINITE = r"[+-]?(inf|infinity)"
ISO = r"\d{4}-\d\d-\d\d([T ]\d\d(:?\d\d(:?\d\d([.,]\d+)?)?)?\s*(Z|UTC|GMT|[+-]\d\d(:?\d\d)?)?)?"
DAY_OR_MONTH = r"\d{1,2}[./-]\d{1,2}[./-]\d{4}([T ]+\d{1,2}:\d\d(:\d\d(\.\d+)?)?\s*(Z|[+-]\d\d:?\d\d)?)?"
PACKED_DATE = r"20\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:[01]\d|2[0-3])(?:[0-5]\d)?"
EPOCHS = {
    "s": (1e8, 1e10),
    "ms": (1e11, 1e13),
    "us": (1e14, 1e16),
    "ns": (1e17, 9.2e18),
}  # sizes of moments from 1973 to 2262


class Judge:
    """The reason of each row; the first one counts."""

    def __init__(self, index):
        self.reason = pd.Series(None, index=index, dtype="object")

    def object_to(self, bad, text):
        self.reason[np.asarray(bad, dtype=bool) & self.reason.isna().to_numpy()] = text


def check(rows, broken=None, folder=None, values=None, has_nulls=True, named=None):
    """(flights with the right types and `scheduled`, reason of each row: missing where it is good).

    `rows`: raw columns, as reading.py gives them. `broken`: {row: (reason, content)}. `folder`: {column: text in
    folders' names}. `values`: the settings of the dataset. `has_nulls`: the file has a "no value" of its own (Parquet).
    `named`: {column: its name in the file or among the folders}; several of one name are taken apart.
    """
    settings, folder = NO_SETTINGS | (values or {}), folder or {}
    flights, judge = pd.DataFrame(index=rows.index), Judge(rows.index)
    for number, (reason, _) in (broken or {}).items():
        judge.reason[number] = reason
    rows = taken_apart(rows, named or {}, settings["day_first"], judge)
    texts = {name: stripped(rows[name]) for name in rows if is_text(rows[name]) or name in TEXTS}
    missing = meaning_of_words(texts, settings["missing"], has_nulls)
    decimal = settings["decimal"] or decimal_of([texts[name] for name in NUMBERS if name in texts])
    constants = {name: pd.Series(text, index=rows.index, dtype="str").str.strip() for name, text in folder.items()}
    constants = dict(taken_apart(pd.DataFrame(constants), named or {}, settings["day_first"], judge).items())
    in_folders = dict.fromkeys(TEXTS, (["", *(settings["missing"] or [])], []))  # Hive has a "no value" of its own
    for name in NUMBERS:
        flights[name] = number_column(name, rows, texts, missing, decimal, settings, judge)
        if name in constants:
            said = number_column(name, constants, constants, missing, ".", settings, judge)
            if name in rows:
                judge.object_to(flights[name] != said, f"{name} is not what the name of its folder says")
            flights[name] = said
    for name in TEXTS:
        flights[name] = text_column(name, texts, missing, judge, rows.index)
        if name in constants:
            said = text_column(name, constants, in_folders, judge, rows.index)
            if name in texts:
                judge.object_to(flights[name] != said, f"{name} is not what the name of its folder says")
            flights[name] = said
    for name in NEEDED:
        judge.object_to(flights[name].isna(), f"{name} is missing")
    for name in ("dep_delay", "arr_delay"):
        judge.object_to(flights[name].abs() > MOST_DELAY, f"{name} is more than a day")
    judge.object_to(flights["distance"] < 0, "distance is negative")
    judge.object_to(flights["distance"] > MOST_DISTANCE, f"distance is more than {MOST_DISTANCE:,.0f}")
    for name in WHOLE:
        judge.object_to(flights[name] % 1 != 0, f"{name} is no whole number")
    known = flights[["year", "month", "day"]].where(flights["year"].between(1900, 2200))
    days = pd.to_datetime(known, errors="coerce")
    clock = pd.to_timedelta(
        (flights["hour"] * 60 + flights["minute"]).where(flights["hour"].between(0, 24)), unit="min"
    )
    judge.object_to(
        days.isna() | ~flights["hour"].between(0, 24) | ~flights["minute"].between(0, 59), "no such day or hour"
    )
    judge.object_to(
        (flights["hour"] == 24) & (flights["minute"] > 0), "no such hour: 24 is midnight, and has no minutes"
    )
    flights["scheduled"] = (days + clock).astype("datetime64[us]")
    raw = rows["time_hour"] if "time_hour" in rows else constants.get("time_hour")
    flights["time_hour"] = moments(raw, missing["time_hour"], settings, judge, rows.index)
    judge.object_to(
        (flights["time_hour"] - flights["scheduled"]).abs() > MOST_APART,
        "time_hour is more than two days from the flight's own date",
    )
    judge.object_to(
        flights["origin"].isin(NEW_YORK) & (flights["time_hour"] == flights["scheduled"].dt.floor("h")),
        "time_hour is New York's own clock, expected UTC or a zone: data.columns.time_hour='' does without it",
    )
    return flights, judge.reason


def meaning_of_words(texts, said, has_nulls):
    """{column: (words that mean "no value", words that may mean it)}.

    NA is an airline too. A file in which numbers are missing as NA means "no value" by it. A file in which something is
    missing as an empty field means the airline. A file that lacks nothing does not say.
    """
    names = [*COLUMNS]
    if said is not None:
        return dict.fromkeys(names, (["", *said], []))
    numbers = [texts[name] for name in NUMBERS if name in texts]
    used = {word for column in numbers for word in column[column.isin(MISSING)].unique()} - {""}
    made = dict.fromkeys(names, (MISSING, []))
    others = [word for word in MISSING if word and word not in used]
    if has_nulls:
        made |= dict.fromkeys(TEXTS, ([*OF_PYTHON, *used], []))
    elif any((column == "").any() for column in texts.values()):
        made |= dict.fromkeys(TEXTS, (["", *used], []))
    else:
        made |= dict.fromkeys(TEXTS, (["", *used], others))
    if made["tailnum"][1]:
        made["tailnum"] = (MISSING, [])  # no plane has such a number
    return made


def decimal_of(columns):
    """ "," or "." as the numbers of a part show it, or None where a comma, "" where a point could be either."""
    with_comma = [found for column in columns if len(found := column[column.str.contains(",", na=False)])]
    if not with_comma:
        with_point = [
            found for column in columns if len(found := column[column.str.contains(".", regex=False, na=False)])
        ]
        thousands = with_point and pd.concat(with_point).str.fullmatch(THOUSANDS[","]).all()
        return "" if thousands else "."
    texts = pd.concat(with_comma)
    if texts.str.fullmatch(THOUSANDS["."]).all():
        return None
    return "," if texts.str.fullmatch(COMMA + "|" + THOUSANDS[","]).any() and not has_point(columns) else None


def has_point(columns):
    return any(column.str.fullmatch(r"[+-]?\d+\.\d+").any() for column in columns)


def number_column(name, rows, texts, missing, decimal, settings, judge):
    """A column as float64, NaN where there is no number; objects to what is there and is none."""
    if name not in rows:
        return np.nan
    if name not in texts:
        numbers = pd.to_numeric(rows[name]).astype("float64")
        numbers = numbers.mask(numbers.isin(numbers_of(settings["missing"])))
    else:
        text = texts[name]
        text = text.mask(text.isin(missing[name][0]))
        if decimal is None:
            judge.object_to(
                text.str.contains(",", na=False),
                f"{name} has a comma, which may be decimal or not: say data.decimal=comma or point",
            )
        if decimal == "":
            judge.object_to(
                text.str.contains(".", regex=False, na=False),
                f"{name} has a point, which may be decimal or not: say data.decimal=point or comma",
            )
        pattern = COMMA if decimal == "," else POINT
        plain = text.str.fullmatch(pattern, na=False)
        if settings["decimal"] or decimal == ",":
            grouped = text.str.fullmatch(THOUSANDS[decimal], na=False)
            text = text.mask(grouped, text.str.replace("." if decimal == "," else ",", "", regex=False))
            plain |= grouped
        infinite = text.str.fullmatch(INFINITE, case=False, na=False)
        judge.object_to(text.notna() & ~plain & ~infinite, f"{name} is no number")
        if decimal == ",":
            text = text.str.replace(",", ".", regex=False)
        numbers = pd.to_numeric(text.where(plain), errors="coerce").astype("float64")
        judge.object_to(plain & numbers.isna(), f"{name} is no number")  # digits of another script
        numbers = numbers.mask(infinite, np.inf)
        numbers = numbers.mask(numbers.isin(numbers_of(settings["missing"])))  # 999 is 999.0 in a file of floats
    judge.object_to(np.isinf(numbers), f"{name} is infinite")
    return numbers.where(~np.isinf(numbers))


def numbers_of(words):
    """Those of data.missing that are numbers."""
    return pd.to_numeric(pd.Series(words or [], dtype="str"), errors="coerce").dropna()


def text_column(name, texts, missing, judge, index):
    if name not in texts:
        return pd.Series(None, index=index, dtype="str")
    text = texts[name].str.replace(r"^(\d+)\.0+$", r"\1", regex=True)
    sure, perhaps = missing[name]
    judge.object_to(
        text.isin(perhaps),
        f'{name} is a word that may mean "no value": say data.missing=[NA], or data.missing=[] if it is a name',
    )
    judge.object_to(text.str.len() > LONGEST_TEXT, f"{name} is longer than {LONGEST_TEXT} characters")
    judge.object_to(text.str.contains("\ufffd", na=False), f"{name} is not UTF-8")
    judge.object_to(text.str.contains(UNSEEN, na=False), f"{name} has a character that nobody sees, such as U+200B")
    judge.object_to(text.str.fullmatch("'.*'|\".*\"", na=False), f"{name} has quotes around it: take them away")
    return text.mask(text.isin(sure)).astype("str")


def moments(raw, missing, settings, judge, index):
    """time_hour in UTC, without a zone. All may be missing; where only some are, those rows are refused."""
    if raw is None or not len(index):
        return pd.Series(pd.NaT, index=index, dtype="datetime64[us]")
    if pd.api.types.is_datetime64_any_dtype(raw.dtype):
        there, found = raw.notna(), pd.to_datetime(raw, utc=True)
    else:
        text = stripped(raw)
        text = text.mask(text.isin(missing[0]))
        there, found = text.notna(), parsed(text, settings, judge)
    found = found.dt.tz_localize(None).astype("datetime64[us]")
    judge.object_to(there & found.isna(), "time_hour is no such moment")
    if there.any():
        judge.object_to(~there, "time_hour is missing")
    return found


def parsed(text, settings, judge):
    """Texts as moments in UTC, by the dataset's settings, else as ISO 8601 or as a count since 1970."""
    if settings["time_format"]:
        found = pd.to_datetime(text, format=settings["time_format"], errors="coerce", utc=True)
        judge.object_to(text.notna() & found.isna(), "time_hour is not as data.time_format says")
        return found
    found = pd.Series(pd.NaT, index=text.index, dtype="datetime64[us, UTC]")
    iso = text.str.fullmatch(ISO, na=False)
    short = iso & (text.str.len() == len("2013-01-31"))
    judge.object_to(short, "time_hour has no hour")
    found = found.mask(
        iso & ~short,
        pd.to_datetime(
            text.where(iso & ~short).str.replace(",", ".", regex=False).str.replace(r"\s*(UTC|GMT)$", "Z", regex=True),
            format="ISO8601",
            errors="coerce",
            utc=True,
        ),
    )
    count = pd.to_numeric(
        text.where(text.str.fullmatch(r"\d+(\.\d+)?([eE]\+?\d+)?", na=False)), errors="coerce"
    ).astype("float64")
    packed = text.str.fullmatch(PACKED_DATE, na=False)
    judge.object_to(
        packed, "time_hour is a date without marks between its parts: say data.time_format, such as %Y%m%d%H"
    )
    counted = count.notna()
    for unit, (least, most) in EPOCHS.items():
        inside = count.between(least, most)
        if inside.any():
            # By whole microseconds: a float of nanoseconds has no more.
            per_unit = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}[unit]
            found = found.mask(
                inside, pd.to_datetime((count.where(inside, 0) * per_unit).round().astype("int64"), unit="us", utc=True)
            )
    judge.object_to(
        counted & found.isna(),
        "time_hour is a number, but no count since 1970 (seconds, milli-, micro- or nanoseconds)",
    )
    either = text.str.fullmatch(DAY_OR_MONTH, na=False)
    if settings["day_first"] is None:
        judge.object_to(either, "time_hour may have the day or the month first: say data.day_first=true or false")
    elif either.any():
        order = r"\3-\2-\1" if settings["day_first"] else r"\3-\1-\2"
        turned = text.where(either).str.replace(r"^(\d{1,2})[./-](\d{1,2})[./-](\d{4})", order, regex=True)
        turned = turned.str.replace(r"-(\d)(?=[-T ]|$)", r"-0\1", regex=True).str.replace(
            r"[T ]+(\d):", r" 0\1:", regex=True
        )
        judge.object_to(either & turned.str.fullmatch(r"\d{4}-\d\d-\d\d", na=False), "time_hour has no hour")
        found = found.mask(either, pd.to_datetime(turned, format="ISO8601", errors="coerce", utc=True))
    other = text.notna() & ~iso & ~counted & ~either
    judge.object_to(other, "time_hour is no ISO 8601 time: say data.time_format or data.day_first")
    return found

"""A scheduled departure whose date, or whose clock, is one column of the file: taken apart into numbers.

The Bureau of Transportation has FL_DATE and CRS_DEP_TIME: 2013-01-20 and 0730. What cannot be taken apart stays as it
is, and is judged as a number that is none.
"""

import pandas as pd

DATE, CLOCK = ("year", "month", "day"), ("hour", "minute")
BEHIND = r"(?:[T ]+(?P<clock>\d{1,2}:\d\d(?::\d\d(?:\.\d+)?)?(?: ?[AP]M)?))?\Z"
YEAR_FIRST = r"^(?P<year>\d{4})[-/.](?P<month>\d{1,2})[-/.](?P<day>\d{1,2})" + BEHIND
PACKED = r"^(?P<year>(?:19|20)\d\d)(?P<month>\d\d)(?P<day>\d\d)(?:\.0)?\Z"
YEAR_LAST = r"^(?P<one>\d{1,2})[-/.](?P<other>\d{1,2})[-/.](?P<year>\d{4})" + BEHIND
HOURS_MINUTES = r"^(?P<hour>\d{1,2}):(?P<minute>\d\d)(?::00(?:\.0+)?)?(?: ?(?P<half>[AaPp])\.?[Mm]\.?)?\Z"


def taken_apart(rows, named, day_first, judge):
    """The raw columns of a part, with numbers where year, month and day, or hour and minute, are one column.

    `named`: {column: its name in the file}. `judge` objects to dates whose order only `day_first` could tell.
    """
    is_date, is_clock = (
        names[0] in rows and len({named.get(name, name) for name in names}) == 1 for names in (DATE, CLOCK)
    )
    made = dates(stripped(rows["year"]), day_first, judge) if is_date else {}
    moments = made.pop("clock", None)
    if is_clock:
        made |= clocks(stripped(rows["hour"]) if named["hour"] != named.get("year") else moments)
    return rows.assign(**made)


def dates(text, day_first, judge):
    """{year, month, day, clock: texts} of a column of dates; where there is no date, the text."""
    found = text.str.extract(YEAR_FIRST).combine_first(text.str.extract(PACKED))
    last = text.str.extract(YEAR_LAST)
    if day_first is None:
        judge.object_to(
            last["year"].notna(), "the date may have the day or the month first: say data.day_first=true or false"
        )
    last = last.rename(columns={"one": "day", "other": "month"} if day_first else {"one": "month", "other": "day"})
    found = found.combine_first(last)
    return {name: found[name].fillna(text) for name in (*DATE, "clock")}


def clocks(text):
    """{hour, minute: texts} of 730, 0730, 730.0, 7:30 or 7:30 AM; where there is none, the text. 2400 is midnight."""
    number = text.str.extract(r"^(\d{1,4})(?:\.0*)?\Z")[0].str.zfill(4)
    found = text.str.extract(HOURS_MINUTES)
    hour, half = pd.to_numeric(found["hour"]), found["half"].str.upper()
    of_day = (hour % 12 + 12 * (half == "P")).where(hour.between(1, 12))  # 12 AM is midnight, 12 PM is noon
    of_day = of_day.map("{:.0f}".format, na_action="ignore").fillna(text)
    return {
        "hour": found["hour"].where(half.isna(), of_day).fillna(number.str[:2]).fillna(text),
        "minute": found["minute"].fillna(number.str[2:]).fillna(text),
    }


def is_text(column):
    return column.dtype == object or isinstance(column.dtype, pd.StringDtype)


def stripped(column):
    """A column as texts: whole numbers without a point, no blanks around."""
    if pd.api.types.is_float_dtype(column):
        whole = column.notna() & (column % 1 == 0) & (column.abs() < 2**53)
        text = column.astype("str")
        text[whole] = column[whole].astype("int64").astype("str")
        return text.where(column.notna())
    return column.astype("str").str.strip()

"""Log lines to columns, with native Spark expressions only: no Python sees a line, and each line is taken apart once.

What a format is stands in formats.yaml, what it means in logformat.py. Web formats are split at the blanks, and what
stands in quotes behind them at the quotes; only lines that do not fit so are given to the format's pattern. For all
others one regular expression puts a separator between its groups and the result is split there, instead of one
`regexp_extract` for each field, which would match once per field.
"""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from pyspark.sql import Window
from pyspark.sql import functions as F

from logformat import (
    BACKSLASH,
    CLOCK_ALONE,
    EXPONENT,
    FIRST_TIME,
    LONGEST_LINE,
    MONTH,
    MONTHS,
    PACKED_DATE,
    PIECES,
    QUOTE,
    QUOTED_WORD,
    QUOTED_WORDS,
    REQUEST,
    REQUEST_TIMES,
    SEPARATOR,
    TIME_GROUPS,
    UNITS,
    FormatError,
    first_place,
    java,
    resolve,
)

# Of a line that is split at the blanks: client, ident, stamp, zone, method, protocol, status, bytes;
# what stands around the quoted texts.
SHORT_WORDS = (
    r"[A-Za-z0-9_][A-Za-z0-9_.-]*\n-\n\[\d\d/[A-Z][a-z][a-z]/\d\d\d\d:\d\d:\d\d:\d\d\n[+-]\d\d\d\d\]\n"
    r'"[A-Za-z]{1,32}\nHTTP/\d(?:\.\d)?"\n\d\d\d\n(?:\d{1,18}|-)'
)
SHORT_REST = r"\n\n \n(?: (?:\d+(?:\.\d+)?|-))?"
CONTROLS, CONTROL = "[\x01\x02\x03]", "holds a control character (U+0001 to U+0003)"


def parse(lines, fmt, columns=None):
    """Adds to `lines` (column `value`) the fields of the format, and `reason`: null for a good line,
    else what is wrong with it.

    `fmt`: a Format, or what names one. `columns`: for W3C files {tuple of the columns: [files]}; needs `file` in the
    lines then. A column `dated` (year * 10,000 + month * 100 + day of the file's last line) gives years to formats
    without one; without it they are those of today.
    Fields of web formats: time, client, method, path, status, bytes, referrer, agent, request_time (seconds,
    where the line has it). Others: time and the named groups, `message` among them.
    Raises SystemExit for a format that is neither known nor a regular expression with the named group `message`.
    """
    if isinstance(fmt, str):
        try:
            fmt = resolve(fmt)
        except FormatError as error:
            raise SystemExit(str(error)) from None
    if fmt.may_lack_year() and "dated" not in lines.columns:
        today = datetime.now(UTC) + timedelta(days=1)
        number = fmt.year * 10_000 + 1231 if fmt.year else today.year * 10_000 + today.month * 100 + today.day
        lines = lines.withColumn("dated", F.lit(number))
    if fmt.fast:
        parsed = parse_web(lines, fmt)
    elif fmt.json:
        parsed = parse_json(lines, fmt)
    elif fmt.w3c:
        parsed = parse_w3c(lines, fmt, columns or {})
    else:
        parsed = parse_by_pattern(lines, fmt)
    known = F.col("time").between(*[F.lit(str(time)).cast("timestamp") for time in (FIRST_TIME, datetime.max)])
    reason = (
        F.when(F.octet_length("value") > LONGEST_LINE, f"longer than {LONGEST_LINE:,} bytes")
        .when(~F.is_valid_utf8("value"), "not UTF-8")
        .when(~known, "no time")
        .otherwise(F.col("reason"))
    )
    return parsed.withColumns({"reason": reason, "time": F.when(known, F.col("time"))}).drop("dated")


def parse_web(lines, fmt):
    """client - user [time zone] "METHOD path protocol" status bytes "referrer" "agent" seconds: ten words,
    and the quoted rest.

    Lines of which `fmt.fast` is not sure (no request, blanks in it or in the user, \\" in an agent,
    one more quoted field) are left to the pattern.
    """
    with_agent = fmt.name != "common"
    words = lines.withColumn("words", F.split("value", " ", 11))
    words = words.withColumn("rest", F.split(F.get("words", F.lit(10)), '"')) if with_agent else words

    def part(column, number):
        return F.get(column, F.lit(number))

    stamp = part("words", 3)
    texts = {
        "client": part("words", 0),
        "day": F.substring(stamp, 2, 2),
        "month": F.substring(stamp, 5, 3),
        "year": F.substring(stamp, 9, 4),
        "clock": F.substring(stamp, 14, 8),
        "zone": part("words", 4),
        "method": F.substring(part("words", 5), 2, 32),
        "path": part("words", 6),
        "status": part("words", 8),
        "bytes": part("words", 9),
    }
    if with_agent:
        texts |= {"referrer": part("rest", 1), "agent": part("rest", 3), "request_time": F.trim(part("rest", 4))}
    # What is certain to be the same as the pattern's, by a look at the short words:
    # one at the whole line takes much longer, and many single ones make methods that Java leaves uncompiled.
    short, shape = [part("words", number) for number in (0, 1, 3, 4, 5, 7, 8, 9)], SHORT_WORDS
    whole = F.size("words") == 10
    if with_agent:
        short, shape = [*short, *[part("rest", number) for number in (0, 2, 4)]], SHORT_WORDS + SHORT_REST
        whole = F.size("rest") == 5
    certain = whole & F.concat_ws("\n", *short).rlike(f"^{shape}$") & ~part("words", 6).contains('"')
    for text in ("\\", SEPARATOR, BACKSLASH, QUOTE, "  ", '""'):
        certain &= ~F.col("value").contains(text)
    certain = F.coalesce(certain, F.lit(False))
    # Only lines that are not so are given to the pattern; what does not match has one piece,
    # and what is plain has none.
    slow = F.when(~F.col("value").rlike(CONTROLS), pieces_of(fmt))
    found = words.withColumn("pieces", F.when(certain, F.array().cast("array<string>")).otherwise(slow))
    hit = F.coalesce(F.size("pieces") == num_pieces(fmt), F.lit(False))
    plain = F.coalesce(F.size("pieces") == 0, F.lit(False))
    # Texts first, numbers behind them: Java leaves methods of more than 8,000 bytes uncompiled, and the second half,
    # written out once for the words and once more for the pieces, made one of 22,000: three times as slow.
    slow = texts_of(fmt)
    slow |= {name: F.nullif(slow[name], F.lit("")) for name in ("method", "path", "referrer", "agent") if name in slow}
    raw = {name: F.when(F.col("hit"), value).otherwise(texts[name]) for name, value in slow.items()}
    found = found.withColumn("hit", hit).select(
        *lines.columns,
        (plain | F.col("hit")).alias("whole"),
        *[value.alias(f"_{name}") for name, value in raw.items()],
    )
    text = {name: F.col(f"_{name}") for name in raw}
    # Put together as a text that a cast understands, without its zone: faster than a pattern for `to_timestamp`,
    # and several times faster than a cast that has to look for a zone in each line.
    day = [text["year"], F.lit("-"), month_number(text["month"]), F.lit("-"), text["day"]]
    found = found.withColumn("local", F.concat(*day, F.lit(" "), text["clock"]).try_cast("timestamp"))
    local = F.col("local")
    size = F.when(text["bytes"] == "-", F.lit(0)).otherwise(text["bytes"].try_cast("bigint"))
    fields = {
        "time": F.when(F.substring(text["zone"], 1, 5) == "+0000", local).otherwise(local - zone_offset(text["zone"])),
        "client": text["client"],
        "method": text["method"],
        "path": text["path"],
        "status": text["status"].try_cast("int"),
        "bytes": size,
    }
    if with_agent:
        seconds = text["request_time"].try_cast("double")
        fields |= {"referrer": text["referrer"], "agent": text["agent"], "request_time": seconds}
    found = found.select(*lines.columns, "whole", *[value.alias(name) for name, value in fields.items()])
    wrong = F.when(F.col("value").rlike(CONTROLS), CONTROL).otherwise("does not match the format")
    reason = F.when(~F.col("whole"), wrong).when(F.col("time").isNull(), "no time")
    return found.withColumn("reason", reason).drop("whole")


def pieces_of(fmt):
    """A column: the groups of the format's pattern in `value`; one piece, the line itself, where it does not match."""
    value = F.col("value")
    if fmt.escapes:
        value = F.replace(F.replace(value, F.lit("\\\\"), F.lit(BACKSLASH)), F.lit('\\"'), F.lit(QUOTE))
    # What a user's expression leaves out, before it and behind it, belongs to no group.
    pattern = rf"^.*?(?:{fmt.pattern}).*\z" if fmt.name == "regex" else fmt.pattern
    joined = SEPARATOR.join(f"${number + 1}" for number in range(len(fmt.groups())))
    joined += SEPARATOR * (num_pieces(fmt) - len(fmt.groups()))
    found = F.regexp_replace(value, F.lit(java(pattern)), F.lit(joined))
    if fmt.escapes:
        found = F.replace(F.replace(found, F.lit(BACKSLASH), F.lit("\\")), F.lit(QUOTE), F.lit('"'))
    return F.split(found, SEPARATOR)


def num_pieces(fmt):
    """Pieces of a line that matches: one for each group, and an empty second one behind a single group,
    since one piece means no match."""
    return max(len(fmt.groups()), 2)


def texts_of(fmt):
    """group -> its text, from the column `pieces`."""
    return {name: F.get("pieces", F.lit(number)) for number, name in enumerate(fmt.groups())}


def finished(fmt, raw):
    """The raw texts as fields: empty ones null, second places filled in, numbers as numbers, the time put together.

    One field more, `_wrong`: the name of one that is to be a number and is none, or null.
    """
    raw = {name: value if name == "message" else F.nullif(value, F.lit("")) for name, value in raw.items()}
    for name in [name for name in raw if first_place(name, raw) != name]:
        second = raw.pop(name)
        first = raw[name[:-1]]  # a message may be empty, and is taken then only where the second one is, too
        raw[name[:-1]] = F.coalesce(F.nullif(first, F.lit("")), second, first)
    time = time_of(fmt, raw)
    wrong = F.lit(None).cast("string")
    for name in [name for name in reversed(fmt.numbers) if name in raw]:
        text, raw[name] = raw[name], number(name, raw[name], EXPONENT if fmt.json else "")
        wrong = F.when((text != "-") & raw[name].isNull(), REQUEST_TIMES.get(name, name)).otherwise(wrong)
    for name, unit in (("request_ms", 1000.0), ("request_us", 1_000_000.0), ("taken", 1.0)):
        if name in raw:
            raw["request_time"] = raw.pop(name) / unit
    return {"time": time, "_wrong": wrong} | {name: value for name, value in raw.items() if name not in TIME_GROUPS}


def number(name, text, exponent=""):
    if name == "status":
        return F.when(text.rlike(r"^\d{1,9}$"), text.try_cast("int"))
    if name == "bytes":
        return F.when(text == "-", F.lit(0)).otherwise(F.when(text.rlike(r"^\d{1,18}$"), text.try_cast("bigint")))
    value = F.when(text.rlike(rf"^(\d+(\.\d*)?|\.\d+){exponent}$"), text.try_cast("double"))
    return F.when(text.contains("."), value).otherwise(value / 1000) if name == "taken" else value


def parse_by_pattern(lines, fmt):
    fields, raw = lines.withColumn("pieces", pieces_of(fmt)), texts_of(fmt)
    if "time2" in raw:  # a column of its own: written out once per pattern of a time, it is more than Java compiles
        fields = fields.withColumn("stamp", F.coalesce(F.nullif(raw["time"], F.lit("")), raw.pop("time2")))
        raw["time"] = F.col("stamp")
    fields = fields.select(*lines.columns, "pieces", *[value.alias(name) for name, value in finished(fmt, raw).items()])
    reason = F.when(F.col("value").rlike(CONTROLS), CONTROL).when(
        F.size("pieces") != num_pieces(fmt), "does not match the format"
    )
    if fmt.has_time():
        reason = reason.when(F.col("time").isNull(), "no time")
    return with_reason(fields, reason, "pieces")


def parse_json(lines, fmt):
    keys = list(dict.fromkeys(key for keys in fmt.json.values() for key in keys))
    keys = list(dict.fromkeys([*keys, *(key.partition(".")[0] for key in keys)]))
    schema = ", ".join(f"`{key}` STRING" for key in [*keys, "_corrupt"])
    strict = {"allowSingleQuotes": "false", "columnNameOfCorruptRecord": "_corrupt"}
    whole = F.trim("value").startswith("{") & F.trim("value").endswith("}")
    # Spark reads the first object of a line and forgets what follows: where one may follow,
    # the line must be a list of one.
    as_list = F.from_json(F.concat(F.lit("["), "value", F.lit("]")), "array<string>")
    several = F.col("value").rlike(r"\}\s*,?\s*\{")
    whole &= F.when(several, F.coalesce(F.size(as_list), F.lit(0)) == 1).otherwise(F.lit(True))
    fields = lines.withColumn("object", F.when(whole, F.from_json("value", schema, strict)))
    raw = {
        name: F.coalesce(*[F.nullif(found, F.lit("")) for key in keys for found in values_of(key)])
        for name, keys in fmt.json.items()
    }
    if "time" in raw:  # a column of its own: many patterns look at it
        digits = without_exponent(F.regexp_replace(raw["time"], r'^\{"\$date":"?([^"{}]*)"?\}$', "$1"))  # MongoDB's
        if "date" in keys:
            day = F.col("object").getField("date")
            digits = F.when(digits.rlike(java(CLOCK_ALONE)), F.concat_ws(" ", day, digits)).otherwise(digits)
        fields, raw["time"] = fields.withColumn("stamp", digits), F.col("stamp")
    if "epoch" in raw:
        raw["epoch"] = without_exponent(raw["epoch"])
    if "request" in raw:
        request = raw.pop("request")
        for place, name in ((1, "method"), (2, "path")):
            of_request = F.nullif(F.regexp_extract(request, java(REQUEST), place), F.lit(""))
            raw[name] = F.coalesce(raw[name], of_request) if name in raw else of_request
    if "message" in raw:
        message = raw["message"]
        if fmt.name == "journald":  # which writes a message with colours or odd bytes as a list of its bytes
            each = F.transform(F.split(F.translate(message, "[]", ""), ","), lambda byte: F.hex(byte.try_cast("int")))
            text = F.unhex(F.array_join(F.transform(each, lambda byte: F.lpad(byte, 2, "0")), "")).cast("string")
            is_list = F.col("value").rlike(r'"MESSAGE" *: *\[') & message.rlike(r"^\[\d{1,3}(,\d{1,3})*+\]$")
            message = F.when(is_list, F.make_valid_utf8(text)).otherwise(message)
        raw["message"] = F.coalesce(message, F.col("value"))
    has_time = F.coalesce(
        *[F.nullif(raw[name], F.lit("")) for name in TIME_GROUPS if name in raw], F.lit(None).cast("string")
    ).isNotNull()
    fields = fields.select(
        *lines.columns,
        "object",
        has_time.alias("has_time"),
        *[value.alias(name) for name, value in finished(fmt, raw).items()],
    )
    reason = (
        F.when(F.col("value").rlike(CONTROLS), CONTROL)
        .when(F.col("object").isNull() | F.col("object").getField("_corrupt").isNotNull(), "no JSON object")
        .when(F.col("has_time") & F.col("time").isNull(), "no time")
    )
    return with_reason(fields, reason, "object", "has_time")


def without_exponent(text):
    """A number with a point, which Spark writes as 1.7432856605E9, as it stands in the line."""
    plain = text.try_cast("decimal(28,9)").cast("string")
    return F.when(text.rlike(r"^\d\.\d+[eE]\+?\d{1,2}$"), plain).otherwise(text)


def values_of(key):
    """The value of a key of the column `object`; of `host.name` also the name in the object `host`."""
    outer, dot, inner = key.partition(".")
    value = F.col("object").getField(key)
    return [value, F.get_json_object(F.col("object").getField(outer), f"$.{inner}")] if dot else [value]


def parse_w3c(lines, fmt, columns):
    """Lines of files with several lists of columns: {tuple of columns: [files]}."""
    value = F.regexp_replace("value", "[ \t]+$", "")
    tabs = value.contains("\t")
    fields = lines.withColumn("pieces", F.when(tabs, F.split(value, "\t")).otherwise(F.split(value, " ")))
    wanted = {name for names in columns for column in names if (name := fmt.w3c.get(column))}
    places, size = {name: F.lit(None).cast("string") for name in fmt.names() if name in wanted}, F.lit(0)
    heres = [
        (names, F.col("file").isin(files) if len(columns) > 1 else F.lit(True)) for names, files in columns.items()
    ]
    for names, here in heres:
        size = F.when(here, len(names)).otherwise(size)
    quoted = F.regexp_extract_all(value, F.lit(java(QUOTED_WORDS)), F.lit(1))
    pieces = F.when(~tabs & (F.size("pieces") > size), quoted).otherwise(F.col("pieces"))
    fields = fields.withColumn("pieces", F.transform(pieces, lambda word: F.regexp_replace(word, QUOTED_WORD, "$1")))
    for names, here in heres:
        for place, column in enumerate(names):
            if column in fmt.w3c:
                places[fmt.w3c[column]] = F.when(here, F.get("pieces", F.lit(place))).otherwise(places[fmt.w3c[column]])
    found = finished(fmt, places)
    fields = fields.select(
        *lines.columns, "pieces", size.alias("size"), *[value.alias(name) for name, value in found.items()]
    )
    reason = (
        F.when(F.col("value").rlike(CONTROLS), CONTROL)
        .when(F.col("size") == 0, "there is no '#Fields:' line before it")
        .when(F.size("pieces") > F.col("size"), "has more columns than the '#Fields:' line")
        .when(F.size("pieces") < F.col("size"), "has fewer columns than the '#Fields:' line")
        .when(F.col("time").isNull(), "no time")
    )
    return with_reason(fields, reason, "pieces", "size")


def with_reason(fields, reason, *dropped):
    reason = reason.otherwise(F.concat("_wrong", F.lit(" is no number")))
    return fields.withColumn("reason", reason).drop("_wrong", *dropped)


def is_blank(fmt):
    """Whether a line has nothing in it but blanks and tabs, or is one that the format skips: it is no event."""
    blank = F.trim(F.col("value"), F.lit(" \t")) == ""
    return blank | F.col("value").rlike(java(fmt.skip)) if fmt.skip else blank


def events_of(lines, start):
    """Joins the lines of each event, where only lines that match `start` begin one: stack traces.

    Columns: value, file, block, and dated where it is there.
    """
    # Distributed: all lines of a file meet on one executor, in their order: that of the splits,
    # and that of the lines within each.
    numbered = lines.withColumn("n", F.monotonically_increasing_id())
    begins = F.col("value").rlike(java(start))
    order = Window.partitionBy("file").orderBy("block", "n")
    numbered = numbered.withColumn(
        "event", F.sum(begins.cast("long")).over(order.rowsBetween(Window.unboundedPreceding, 0))
    )
    # Lines before the first event belong to none: each of them is looked at by itself.
    numbered = numbered.withColumn("event", F.when(F.col("event") > 0, F.col("event")).otherwise(-F.col("n") - 1))
    kept = [name for name in ("dated",) if name in lines.columns]
    joined = numbered.groupBy("file", "event").agg(
        F.array_sort(F.collect_list(F.struct("block", "n", "value"))).alias("parts"),
        *[F.first(name).alias(name) for name in kept],
    )
    return joined.select(F.array_join(F.col("parts.value"), "\n").alias("value"), "file", *kept)


def window_start(minutes):
    """The beginning of the window of so many minutes that `time` falls into."""
    return F.timestamp_seconds(F.floor(F.unix_timestamp("time") / (60 * minutes)) * (60 * minutes))


def zone_offset(zone):
    """The interval that a text like +0130] stands for, 18:59 at most; null for anything else."""
    hours, minutes = F.substring(zone, 2, 2).try_cast("int"), F.substring(zone, 4, 2).try_cast("int")
    sign = F.when(F.substring(zone, 1, 1) == "-", -1).when(F.substring(zone, 1, 1) == "+", 1)
    return F.make_dt_interval(mins=F.when((hours <= 18) & (minutes <= 59), sign * (60 * hours + minutes)))


def month_number(name):
    """1 to 12 as a text, null for anything else."""
    return F.try_element_at(F.create_map(*[F.lit(v) for n, m in enumerate(MONTHS) for v in (m, str(n + 1))]), name)


def time_of(fmt, raw):
    """The time that the fields hold, UTC, or null."""
    if "epoch" in raw:
        return from_epoch(raw["epoch"], fmt.epoch_unit)
    if {"month", "day", "clock"} <= raw.keys():
        month = F.initcap(raw["month"]) if fmt.name == "regex" else raw["month"]
        return from_pieces(raw.get("year"), month, raw["day"], raw["clock"], raw.get("zone"), fmt)
    if "time" in raw or "date" in raw:
        names = ("date", "time", "zone") if "time" in raw else ("date", "clock", "zone")
        given = [raw["time"]] if fmt.json else [raw[name] for name in names if name in raw]
        text = given[0] if len(given) == 1 else F.concat_ws(" ", *given)
        found = []
        for pattern in fmt.kinds():
            joined = SEPARATOR.join(f"${place_of(pattern, name)}" for name in PIECES)
            pieces = F.split(F.regexp_replace(text, F.lit(java(pattern)), F.lit(joined)), SEPARATOR)
            parts = [F.nullif(F.get(pieces, F.lit(number)), F.lit("")) for number in range(len(PIECES))]
            parts[0] = None if "(?<y>)" in pattern else parts[0]
            parts[1] = F.initcap(parts[1]) if MONTH in pattern else parts[1]
            found.append(F.when(F.size(pieces) == len(PIECES), from_pieces(*parts, fmt)))
        if fmt.may_be_epoch():
            found.append(F.when(text.rlike(r"^\d{9,19}(\.\d+)?$"), from_epoch(text, fmt.epoch_unit)))
        return F.coalesce(*found) if len(found) > 1 else found[0]
    return F.lit(None).cast("timestamp")


def place_of(pattern, name):
    return re.findall(r"\(\?<([A-Za-z]\w*)>", pattern).index(name) + 1


def from_pieces(year, month, day, clock, zone, fmt):
    month = F.coalesce(month_number(month), month)
    if year is None:
        year = year_of(month, day)
    else:
        century = F.when(year.try_cast("int") >= 70, F.lit("19")).otherwise(F.lit("20"))
        year = F.when(F.length(year) == 2, F.concat(century, year)).otherwise(year)
    clock = F.coalesce(F.translate(clock, ",", "."), F.lit("0:0:0"))
    if fmt.time in ("", "any", "short", "compact") or fmt.time_format:  # 203615
        clock = F.regexp_replace(clock, r"^(\d{2})(\d{2})(\d{2})(?=$|\.)", "$1:$2:$3")
    local = F.concat(year, F.lit("-"), month, F.lit("-"), day, F.lit(" "), clock).try_cast("timestamp")
    if zone is None:
        return local
    there = F.rpad(F.translate(zone, ":", ""), 5, "0")
    utc = zone.isNull() | zone.isin("Z", "z", "UTC", "GMT")
    return F.when(utc, local).otherwise(local - zone_offset(there))


def year_of(month, day):
    """The year of a line without one, as a text, from the column `dated` (see `parse`)."""
    here = month.try_cast("int") * 100 + day.try_cast("int")
    dated = F.col("dated")
    return F.when(here <= dated % 10_000, F.floor(dated / 10_000)).otherwise(F.floor(dated / 10_000) - 1).cast("string")


def from_epoch(text, unit):
    """Seconds, milliseconds, microseconds or nanoseconds, told apart by their size; null for what is between."""
    value = F.when(text.rlike(r"^\d{1,19}(\.\d*)?$"), text.try_cast("decimal(38,9)"))
    found = F.lit(None).cast("timestamp")
    for name, (low, high, factor) in UNITS.items():
        if unit in ("auto", name):
            low = low if unit == "auto" else 0
            micros = (
                (value * F.lit(1_000_000 // factor)) if factor <= 1_000_000 else (value / F.lit(factor // 1_000_000))
            )
            found = F.when(
                (value >= F.lit(Decimal(low))) & (value < F.lit(Decimal(high))),
                F.timestamp_micros(F.floor(micros).cast("bigint")),
            ).otherwise(found)
    return F.when(~text.rlike(f"^{PACKED_DATE}$"), found) if unit == "auto" else found

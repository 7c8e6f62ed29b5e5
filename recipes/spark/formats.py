"""Log lines to columns, with native Spark expressions only: no Python sees a line, and each line is taken apart once.

Web formats are split at the blanks, and what stands in quotes behind them at the quotes. For all others one regular expression puts a separator between its
groups and the result is split there, instead of one `regexp_extract` for each field, which would match once per field.
"""

import re

from pyspark.sql import functions as F

WEB = ("combined", "common", "nginx")
LONGEST_LINE = 1 << 20  # bytes: no log has a longer line on purpose
SEPARATOR = "\x01"
MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
PATTERNS = {
    "syslog": r"^(?<month>[A-Z][a-z]{2}) +(?<day>\d{1,2}) (?<clock>[\d:]{8}) (?<host>\S+) (?<component>[^:\[]+)(?:\[(?<pid>\d+)\])?: ?(?<message>.*)$",
    "hdfs": r"^(?<date>\d{6}) (?<clock>\d{6}) (?<pid>\d+) (?<level>[A-Z]+) (?<component>[^:]+): (?<message>.*)$",
    "bgl": r"^(?<label>\S+) (?<epoch>\d+) \S+ (?<host>\S+) \S+ \S+ \S+ (?<component>\S+) (?<level>\S+) ?(?<message>.*)$",
    "apache": r"^\[\w{3} (?<month>\w{3}) +(?<day>\d+) (?<clock>[\d:]{8}) (?<year>\d{4})\] \[(?<level>\w+)\] (?<message>.*)$",
}


def parse(lines, name):
    """Adds to `lines` (column `value`) the fields of the format, and `reason`: null for a good line, else what is wrong with it.

    Fields of web formats: time, client, method, path, status, bytes, referrer, agent, request_time (seconds, where the line
    has it). Others: time (where the format has a date) and the named groups, `message` among them.
    Raises SystemExit for a format that is neither known nor a regular expression with the named group `message`.
    """
    parsed = parse_web(lines, name) if name in WEB else parse_by_pattern(lines, name)
    reason = (
        F.when(F.octet_length("value") > LONGEST_LINE, f"longer than {LONGEST_LINE:,} bytes")
        .when(~F.is_valid_utf8("value"), "not UTF-8")
        .otherwise(F.col("reason"))
    )
    return parsed.withColumn("reason", reason)


def parse_web(lines, name):
    """client - user [time zone] "METHOD path protocol" status bytes "referrer" "agent" seconds: ten words, and the quoted rest."""
    with_agent = name != "common"
    words = lines.withColumn("words", F.split("value", " ", 11))
    words = words.withColumn("rest", F.split(F.get("words", F.lit(10)), '"')) if with_agent else words

    def part(column, number):
        return F.get(column, F.lit(number))

    stamp, zone, method = part("words", 3), part("words", 4), part("words", 5)
    # Put together as a text that a cast understands, without its zone: faster than a pattern for `to_timestamp`, and several
    # times faster than a cast that has to look for a zone in each line.
    local = F.concat(
        F.substring(stamp, 9, 4), F.lit("-"), month_number(F.substring(stamp, 5, 3)), F.lit("-"), F.substring(stamp, 2, 2),
        F.lit(" "), F.substring(stamp, 14, 8),
    ).try_cast("timestamp")  # fmt: skip
    fields = words.select(
        *lines.columns,
        (F.size("rest") == 5 if with_agent else F.size("words") == 10).alias("whole"),
        (method.startswith('"') & part("words", 7).endswith('"')).alias("requested"),
        F.when(zone == "+0000]", local).otherwise(local - zone_offset(zone)).alias("time"),
        part("words", 0).alias("client"),
        F.substring(method, 2, 32).alias("method"),
        part("words", 6).alias("path"),
        part("words", 8).try_cast("int").alias("status"),
        F.when(part("words", 9) == "-", F.lit(0)).otherwise(part("words", 9).try_cast("bigint")).alias("bytes"),
        *([part("rest", 1).alias("referrer"), part("rest", 3).alias("agent")] if with_agent else []),
        *([F.trim(part("rest", 4)).try_cast("double").alias("request_time")] if with_agent else []),
    )
    reason = (
        F.when(~F.coalesce("requested", F.lit(False)), "no request line in quotes")
        .when(F.col("time").isNull(), "no time")
        .when(F.col("status").isNull() | F.col("bytes").isNull(), "status or size is no number")
        .when(~F.col("whole"), "fields are missing or too many")
    )
    return fields.withColumn("reason", reason).drop("whole", "requested")


def parse_by_pattern(lines, name):
    pattern = pattern_of(name)
    names = re.findall(r"\(\?<([A-Za-z]\w*)>", pattern)
    joined = SEPARATOR.join(f"${number + 1}" for number in range(len(names)))
    # What does not match stays as it is, and has no separator.
    fields = lines.withColumn("fields", F.split(F.regexp_replace("value", pattern, joined), SEPARATOR))
    fields = fields.withColumns({name: F.get("fields", F.lit(number)) for number, name in enumerate(names)})
    fields = fields.withColumn("time", time_of(names))
    reason = F.when(F.size("fields") != len(names), "does not match the format")
    if any(given in names for given in ("clock", "epoch")):
        reason = reason.when(F.col("time").isNull(), "no time")
    return fields.withColumn("reason", reason).drop("fields", "month", "day", "clock", "year", "date", "epoch")


def pattern_of(name):
    """The regular expression of a format, in Java's dialect; Python's named groups are understood, too."""
    if name in PATTERNS:
        return PATTERNS[name]
    pattern = name.replace("(?P<", "(?<")
    if "(?<message>" not in pattern:
        raise SystemExit(
            f"format={name!r} is unknown; expected one of {', '.join([*WEB, *PATTERNS])}, or a regular expression with named "
            "groups, (?<message>...) among them"
        )
    if re.search(r"(?<!\\)\((?!\?)", pattern):
        raise SystemExit(f"format={name!r} has groups without a name: name them, (?<host>...), or say (?:...)")
    try:
        re.compile(pattern.replace("(?<", "(?P<"))
    except re.error as error:
        raise SystemExit(f"format={name!r} is no regular expression: {error}") from None
    return pattern


def window_start(minutes):
    """The beginning of the window of so many minutes that `time` falls into."""
    return F.timestamp_seconds(F.floor(F.unix_timestamp("time") / (60 * minutes)) * (60 * minutes))


def zone_offset(zone):
    """The interval that a text like +0130] stands for; null for anything else."""
    minutes = F.substring(zone, 2, 2).try_cast("int") * 60 + F.substring(zone, 4, 2).try_cast("int")
    sign = F.when(F.substring(zone, 1, 1) == "-", -1).when(F.substring(zone, 1, 1) == "+", 1)
    return F.make_dt_interval(mins=sign * minutes)


def month_number(name):
    """1 to 12 as a text, null for anything else."""
    return F.try_element_at(F.create_map(*[F.lit(v) for n, m in enumerate(MONTHS) for v in (m, str(n + 1))]), name)


def time_of(names):
    """The time that the named groups hold, UTC; syslog leaves the year out: 1970 then stands for all years."""
    names = set(names)
    if "epoch" in names:
        return F.timestamp_seconds(F.col("epoch").try_cast("bigint"))
    if {"month", "day", "clock"} <= names:
        year = F.col("year") if "year" in names else F.lit("1970")
        return F.concat_ws(" ", F.concat_ws("-", year, month_number(F.col("month")), "day"), "clock").try_cast(
            "timestamp"
        )
    if {"date", "clock"} <= names:  # 081109 203615
        pairs = [F.substring("date", n, 2) for n in (1, 3, 5)] + [F.substring("clock", n, 2) for n in (1, 3, 5)]
        return F.concat(F.lit("20"), F.format_string("%s-%s-%s %s:%s:%s", *pairs)).try_cast("timestamp")
    return F.lit(None).cast("timestamp")

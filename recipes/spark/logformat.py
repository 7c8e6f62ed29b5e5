"""What a log format is, and how one line is read by it: the reference
that the Spark expressions in formats.py must agree with.

A format is data: an entry of formats.yaml, a regular expression of your own, or nginx's `log_format` line.
Needs no Spark, so the dataset's builder uses it to look at the first lines of each file before a cluster starts.
"""

import calendar
import contextlib
import functools
import json
import re
import statistics
import warnings
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import yaml

SEPARATOR, BACKSLASH, QUOTE = (
    "\x01",
    "\x02",
    "\x03",
)  # stand between fields, and for \\ and \" while a line is taken apart
LONGEST_LINE = 1 << 20  # bytes: no log has a longer line on purpose
MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
TIME_GROUPS = ("time", "epoch", "date", "month", "day", "clock", "year", "zone")
NUMBERS = ("status", "bytes", "request_time", "request_ms", "request_us", "taken")
REQUEST_TIMES = {
    "request_ms": "request_time",
    "request_us": "request_time",
    "taken": "request_time",
}  # what they become
OWN = ("value", "file", "line", "reason", "quality", "pieces", "dated", "blank")  # columns that are no fields
PIECES = ("y", "m", "d", "clock", "zone")  # of a time, as the patterns below name them
CLOCK = r"(?<clock>\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?)"
ZONE = r"(?<zone>[Zz]|UTC|GMT|[+-]\d{2}(?::?\d{2})?)"
CLOCK_ALONE = rf"^{CLOCK} ?{ZONE}?$"
MONTH = r"(?<m>[A-Za-z]{3})"  # in any case: MAR, as Oracle has it
TIMES = {  # how a time may be written; all pieces are groups, those that it lacks are empty
    "iso": rf"^(?<y>\d{{4}})[-/](?<m>\d{{1,2}})[-/](?<d>\d{{1,2}})(?:[Tt_ ]+{CLOCK} ?{ZONE}?)?$",
    "clf": rf"^(?<d>\d{{1,2}})/{MONTH}/(?<y>\d{{4}})[: ]{CLOCK} ?{ZONE}?$",
    "ctime": rf"^(?:[A-Z][a-z]{{2}},? )?{MONTH} +(?<d>\d{{1,2}}) {CLOCK} ?{ZONE}? (?<y>\d{{4}})$",
    "mail": rf"^(?:[A-Z][a-z]{{2}}, )?(?<d>\d{{1,2}})[- ]{MONTH}[- ](?<y>\d{{4}}) {CLOCK} ?{ZONE}?$",
    "syslog": rf"^{MONTH} +(?<d>\d{{1,2}}) {CLOCK}(?<y>)(?<zone>)$",
    "compact": rf"^(?<y>\d{{4}})(?<m>\d{{2}})(?<d>\d{{2}})[Tt ](?<clock>\d{{6}}(?:[.,]\d+)?){ZONE}?$",
    "short": r"^(?<y>\d{2})(?<m>\d{2})(?<d>\d{2}) (?<clock>\d{6})(?<zone>)$",
}
ALL_TIMES = TIMES | {"day_month": rf"^(?<d>\d{{1,2}}) {MONTH} {CLOCK}(?<y>)(?<zone>)$"}  # `any` does not try the last
# Dates that are written without marks: 2025032922 is no second of 2034, 2503292201 none of 2049,
# and 250329220100 no millisecond of 1977.
_DAY_HOUR = r"(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:[01]\d|2[0-3])"
# Counts of 100 ns since 1601 (Windows) or since year 1 (.NET) of this century are no nanoseconds of 1974 or 1990.
_TICKS = r"1[2-5]\d{16}|6[34]\d{16}"
QUOTED_WORDS = r'(?:^| )("[^"]*"(?= |$)|[^ ]*)'  # of W3C lines, where texts with blanks may be quoted
QUOTED_WORD = r'^"([^"]*)"$'
PACKED_DATE = (
    rf"(?:20\d\d{_DAY_HOUR}(?:[0-5]\d)?|[2-9]\d{_DAY_HOUR}[0-5]\d|\d\d{_DAY_HOUR}[0-5]\d[0-5]\d|{_TICKS})(?:\.\d*)?"
)
EXPONENT = r"([eE][+-]?\d{1,3})?"  # numbers of JSON may have one: Caddy's 9.3e-05
EPOCH = r"^\d{9,19}(?:\.\d+)?$"
# Which unit a number has is seen from its size; what lies between has none, and is refused.
UNITS = {
    "s": (10**8, 10**10, 1),
    "ms": (10**11, 10**13, 10**3),
    "us": (10**14, 10**16, 10**6),
    "ns": (10**17, 10**19, 10**9),
}
FIRST_TIME = datetime(1, 1, 2)  # a day later than Python's, so that no zone leads from the year 0 into it
CONTINUES = re.compile(
    r"^(\s|$|Caused by:|Suppressed:|\.\.\. |\}|\)|Traceback |[\w.$]+(Exception|Error|Throwable|Warning)\b)"
)


def first_place(name, names):
    """The field that a group fills: `thread2` is a second place of `thread` where there is such a group."""
    return name[:-1] if name.endswith("2") and name[:-1] in names else name


class FormatError(Exception):
    """Something is wrong with the format that was asked for; the text says what to do."""


@dataclass(frozen=True)
class Format:
    """How lines become fields. `pattern`, `json` or `w3c` says how;
    the comments of formats.yaml explain them and the rest."""

    name: str
    about: str = ""
    pattern: str = ""
    json: dict = field(default_factory=dict)
    w3c: dict = field(default_factory=dict)
    time: str = ""
    start: str = ""
    skip: str = ""
    escapes: bool = False
    fast: str = ""
    only_with: tuple = ()
    numbers: tuple = (
        NUMBERS  # fields that are numbers; of a regular expression of the user's only those that its lines show to be
    )
    time_format: str = ""  # like %d.%m.%Y %H:%M:%S
    epoch_unit: str = "auto"
    request_unit: str = ""  # s, ms or us: what stands behind an access log's lines; without it, seconds
    year: int | None = None  # in which the files begin, for formats without one
    years: dict = field(
        default_factory=dict
    )  # file -> (year, last month * 100 + day in it): where year and date of the file do not say it

    def groups(self):
        return re.findall(r"\(\?P?<([A-Za-z]\w*)>", self.pattern)

    def names(self):
        """The groups, or the fields of JSON or W3C lines, without the second places."""
        given = self.groups() or list(self.json) or list(dict.fromkeys(self.w3c.values()))
        if self.json and "request" in given:  # which has the two
            given = [name for name in given if name != "request"] + ["method", "path"]
        return list(dict.fromkeys(first_place(name, given) for name in given))

    def has_time(self):
        names = set(self.names())
        return bool(names & {"time", "epoch"}) or {"date", "clock"} <= names or {"month", "day", "clock"} <= names

    def kinds(self):
        """The patterns of times that are tried, in order."""
        if self.time_format:
            return [time_pattern(self.time_format)]
        if self.time in ("", "any"):
            return list(TIMES.values())
        return [ALL_TIMES[name] for name in self.time.split() if name in ALL_TIMES]

    def may_be_epoch(self):
        """Whether the group `time` may be a number."""
        return bool({"any", "epoch"} & {*(self.time or "any").split()}) and not self.time_format

    def may_lack_year(self):
        """Whether a line's time may have no year, so that the file's date is needed."""
        names = set(self.names())
        if "month" in names:
            return "year" not in names
        return bool(names & {"time", "date"}) and any(r"(?<y>)" in pattern for pattern in self.kinds())

    def as_dict(self):
        return asdict(self)


def from_dict(entry):
    return Format(
        **{**entry, "only_with": tuple(entry.get("only_with", ())), "numbers": tuple(entry.get("numbers", NUMBERS))}
    )


@functools.lru_cache
def entries():
    """name -> Format of formats.yaml, in its order."""
    table = yaml.safe_load(Path(__file__).with_name("formats.yaml").read_text())
    parts = table["parts"]

    def whole(pattern):
        while found := re.search(r"%\{(\w+)\}", pattern):
            pattern = pattern.replace(found[0], parts[found[1]])
        return pattern

    found = {}
    for name, entry in table["formats"].items():
        known = {key: value for key, value in entry.items() if key != "samples"}
        known = {key: whole(value) if key in ("pattern", "start", "skip") else value for key, value in known.items()}
        found[name] = from_dict({"name": name, **known})
    return found


def samples():
    """[(Format, header or None, line, fields expected)] of formats.yaml."""
    table = yaml.safe_load(Path(__file__).with_name("formats.yaml").read_text())["formats"]
    return [
        (entries()[name], sample.get("header"), sample["line"], sample["fields"])
        for name, entry in table.items()
        for sample in entry["samples"]
    ]


def resolve(text, time_format=None, epoch_unit=None, year=None, event_start=None, request_unit=None):
    """The Format that a setting names.

    Raises FormatError for one that is neither known nor a usable regular expression.
    """
    text = str(text).strip()
    if text in entries():
        found = entries()[text]
    elif re.match(r"log_format\s|.*\$(remote_addr|request|status|time_local|time_iso8601|msec)\b", text, re.S):
        found = from_log_format(text)
    else:
        found = from_regex(text)
    if epoch_unit not in (None, "auto", *UNITS):
        raise FormatError(f"epoch_unit={epoch_unit!r}: expected auto, {', '.join(UNITS)}")
    if year is not None and (type(year) is not int or not 1970 <= year <= 2200):
        raise FormatError(f"year={year!r}: expected a year from 1970 to 2200, in which the files begin")
    if time_format:
        time_format = str(time_format)
        time_pattern(time_format)
    if event_start not in (None, "", "auto"):
        check_regex(event_start, "event_start")
        found = replace(found, start=with_names(event_start).replace("(?P<", "(?<"))
    if request_unit not in (None, "s", "ms", "us"):
        raise FormatError(f"request_unit={request_unit!r}: expected s, ms or us")
    if request_unit and "request_time" in found.names():
        group = "request_time" if request_unit == "s" else f"request_{request_unit}"
        pattern = found.pattern.replace("(?<request_time>", f"(?<{group}>")
        keys = {group if name == "request_time" else name: keys for name, keys in found.json.items()}
        # Split at the blanks, a line's number would be seconds.
        fast = found.fast if request_unit == "s" else ""
        found = replace(found, pattern=pattern, json=keys, fast=fast, request_unit=request_unit)
    return replace(found, time_format=time_format or "", epoch_unit=epoch_unit or "auto", year=year)


def check_effect(fmt, options):
    """Raises FormatError for an option of which the format makes no use."""
    names = set(fmt.names())
    timed = bool(names & {"time", "date"})
    for name, used, why in (
        ("time_format", timed, "it has no group `time` (or `date` and `clock`) whose writing could be told"),
        ("epoch_unit", bool(names & {"epoch", "time"}), "it has no group `epoch`"),
        ("request_unit", bool(fmt.request_unit), "it has no request time, or one whose unit is known"),
        ("year", fmt.may_lack_year(), "its lines have a year"),
    ):
        if options.get(name) not in (None, "", "auto") and not used:
            called = "the regular expression" if fmt.name == "regex" else f"format={fmt.name}"
            raise FormatError(f"{name}={options[name]!r} has no effect with {called}: {why}. Leave data.{name} out")


# What Python's regular expressions have and Java's, with which Spark reads, have not, or read otherwise.
PYTHONS_OWN = {
    r"\(\?\(": "a condition",
    r"\(\?#": "a comment",
    r"\(\?[a-z]*[aLu]": "a flag a, L or u",
    r"\(\?[a-z]*x[a-z]*(?:-[a-z]+)?[:)]": "the flag x",
    r"\\N\{": "\\N{...}",
}


def from_regex(text):
    pattern = text.replace("(?P<", "(?<")
    if "(?<" not in re.sub(r"\(\?<[=!]", "", pattern):
        raise FormatError(
            f"format={text!r} is unknown; expected auto, one of {', '.join(entries())}, nginx's log_format line, "
            "or a regular expression with named groups, (?<message>...) or (?<path>...) among them"
        )
    check_regex(pattern, "format")
    if named := re.search(r"\(\?P=(\w+)\)", pattern):
        raise FormatError(
            f"format={text!r}: {named[0]} refers to a group by its name, which Java and Python write differently: "
            "repeat what it stands for"
        )
    if compiled(pattern).groups != len(re.findall(r"\(\?P?<[A-Za-z]", pattern)):
        raise FormatError(f"format={text!r} has groups without a name: name them, (?<host>...), or say (?:...)")
    found = Format(
        "regex",
        "a regular expression of the user's",
        pattern,
        time="any",
        numbers=("request_time", "request_ms", "request_us"),
    )
    check_names(text, found)
    if not {"message", "path"} & set(found.names()):
        raise FormatError(
            f"format={text!r} has the groups {', '.join(found.names())}: one must be (?<message>...), "
            "the text of the event, or (?<path>...)"
        )
    return found


def check_names(text, found):
    """Raises FormatError for names of fields that Spark, or this recipe, could not tell apart."""
    twice = [name for name, count in Counter(found.groups()).items() if count > 1]
    if twice:
        raise FormatError(
            f"format={text!r} has two groups with the name {twice[0]!r}; the second place of a field is {twice[0]}2"
        )
    if third := [name for name in found.groups() if name.endswith("22") and name[:-1] in found.groups()]:
        raise FormatError(
            f"format={text!r} has a third place of a field, {third[0]!r}: a field has two, as in host and host2"
        )
    alike = Counter(name.lower() for name in {*found.names(), "time"})
    if double := [name for name in sorted(found.names()) if alike[name.lower()] > 1]:
        raise FormatError(
            f"format={text!r}: the group {double[0]!r} differs only in case from another field "
            f"({double[1] if double[1:] else 'time'!r}): Spark takes both for one; choose another name"
        )
    taken = [name for name in found.names() if name.lower() in OWN]
    if taken:
        raise FormatError(
            f"format={text!r}: a group cannot be called {taken[0]!r}, which is a column of the table itself; "
            "choose another name"
        )


def check_regex(pattern, setting):
    try:
        with warnings.catch_warnings(action="ignore"):  # of sets that other languages read otherwise: see java()
            re.compile(python(pattern))
    except re.error as error:
        raise FormatError(f"{setting}={pattern!r} is no regular expression: {error}") from None
    for foreign, called in PYTHONS_OWN.items():
        if re.search(foreign, pattern.replace("\\\\", "")):
            raise FormatError(
                f"{setting}={pattern!r} has {called}, which Java, in which Spark is written, lacks or reads otherwise"
            )


VARIABLES = {
    "remote_addr": "%{ip}",
    "remote_user": r".*?",
    "time_local": "%{clf}",
    "time_iso8601": r'(?<time>[^\s|,;"\]]+)',
    "msec": r"(?<epoch>[\d.]+)",
    "status": r"(?<status>\d{3})",
    "body_bytes_sent": r"(?<bytes>\d+|-)",
    "bytes_sent": r"(?<bytes>\d+|-)",
    "http_referer": "(?<referrer>%{text})",
    "http_user_agent": r'(?<agent>[^"]*)',
    "request_time": r"(?<request_time>[\d.]+|-)",
    "host": "%{host}",
    "server_name": "%{host}",
    "http_host": "%{host}",
    "request": r'(?:(?<method>[A-Za-z][A-Za-z_-]*) (?<path>[^"]*?)(?: HTTP/\d(?:\.\d)?)?|[^"]*)',
    "request_method": r'(?<method>[^\s|,;"]*)',
    "request_uri": "(?<path>%{text})",
    "uri": "(?<path>%{text})",
}
# What the fields are called that a format of JSON takes from these variables.
JSON_FIELDS = {
    "time_iso8601": "time",
    "time_local": "time",
    "msec": "epoch",
    "remote_addr": "client",
    "request_method": "method",
    "request_uri": "path",
    "uri": "path",
    "http_referer": "referrer",
    "http_user_agent": "agent",
    "body_bytes_sent": "bytes",
    "bytes_sent": "bytes",
}
REQUEST = r"^([A-Za-z][A-Za-z_-]*) ([^\r\n]*?)(?: HTTP/\d(?:\.\d)?)?$"  # under a key of JSON
WHOLE_REQUEST = r"\$\{?request_method\}? \$\{?(?:request_)?uri\}? \$\{?server_protocol\}?"
WHOLE_URI = r"\$\{?uri\}?\$\{?is_args\}?\$\{?(?:args|query_string)\}?"
ESCAPED = {"t": "\t", '"': '"', "'": "'", "\\": "\\"}  # what nginx reads \\t and others as
CLF = r"(?<day>\d{1,2})/(?<month>[A-Z][a-z]{2})/(?<year>\d{4}):(?<clock>[\d:]{8}) (?<zone>[+-]\d{4})"


def from_log_format(text):
    """nginx's `log_format name 'string' 'string';`, or the string alone."""
    string = re.sub(r"^log_format\s+\S+\s+(?:escape=\w+\s+)?|;$", "", text)
    if text.startswith("log_format") and string[:1] in ("'", '"'):
        quoted = re.findall(r"""'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)\"""", string, re.S)
        string = "".join(map("".join, quoted))
    if unknown := [found for found in re.findall(r"\\(.)", string, re.S) if found not in ESCAPED]:
        raise FormatError(f"format={text!r}: \\{unknown[0]} is not understood; nginx knows " + r"\t \" \' and \\")
    string = re.sub(r"\\(.)", lambda found: ESCAPED[found[1]], string, flags=re.S)
    string = re.sub(WHOLE_URI, "$request_uri", string)
    if odd := re.search(r"\$\{?([_\d]\w*)", string):
        raise FormatError(
            f"format={text!r}: ${odd[1]} cannot be a field, whose name begins with a letter; rename it there"
        )
    if re.match(r"\s*\{\s*\"", string):
        return from_json_format(text, re.sub(WHOLE_REQUEST, "$request", string))
    pattern, seen, end = "", set(), 0
    for found in re.finditer(r"\$(?:\{(\w+)\}|(\w+))", string):
        pattern += re.escape(string[end : found.start()]).replace("\\ ", " ")
        variable, end = found[1] or found[2], found.end()
        part = part_of_log_format(variable, pattern.endswith('"'), string[end : end + 1])
        for name in re.findall(r"\(\?<(\w+)>", part):
            if name in seen:
                part = part.replace(f"(?<{name}>", "(?:")
            seen.add(name)
        pattern += part
    pattern += re.escape(string[end:]).replace("\\ ", " ")
    check_log_format(text, seen)
    kind = "iso" if "time" in seen else ""
    made = Format("log_format", "nginx's log_format", rf"^{pattern}\s*$", time=kind, escapes=True)
    check_names(text, made)
    return made


def part_of_log_format(variable, is_quoted, behind):
    """The expression for one of nginx's variables. `behind`: the character that stands behind it."""
    mark = re.escape(behind) if behind and behind in "]),;|\t" else ""
    text = r"\S*"
    if is_quoted and behind != "$":
        text = '[^"]*'
    elif mark or (variable == "uri" and behind != "$"):  # which is decoded, and may have blanks
        text = ".*?"
    if variable in VARIABLES:
        part = VARIABLES[variable].replace("%{text}", text).replace("%{clf}", CLF)
        return part.replace("%{ip}", r'(?<client>[^\s|,;"\]]+)').replace("%{host}", r'(?<host>[^\s/|,;"]*)')
    if is_quoted:
        return rf'(?<{variable}>[^"]*)'
    if variable.startswith("upstream_") or variable == "http_x_forwarded_for":
        return rf"(?<{variable}>[^\s\"]*(?: ?[,:] +[^\s\"]+)*)"  # 0.1, 0.2 : 0.3
    return rf"(?<{variable}>[^{mark}]*)" if mark else rf"(?<{variable}>\S*)"


def from_json_format(text, string):
    """A log_format that writes a JSON object. A key whose value is more than one variable is no field."""
    fields, inside = {}, []
    string = string.strip().removeprefix("{")
    string = re.sub(r"\$\{(\w+)\}", r"$\1", string)
    for key, variable, ends in re.findall(r'"([^"]+)"\s*:\s*(?:\{|"?\$(\w+)"?(?=\s*[,}]))|(\})', string):
        if ends:
            inside = inside[:-1]
        elif not variable:
            inside = [*inside, key]
        else:
            fields.setdefault(JSON_FIELDS.get(variable, variable), [".".join([*inside, key])])
        if len(inside) > 1:
            raise FormatError(f"format={text!r} has an object in an object ({'.'.join(inside)}), which is not read")
    check_log_format(text, {"path" if name == "request" else name for name in fields})
    made = Format("log_format", "nginx's log_format, JSON", json=fields, time="any")
    check_names(text, made)
    return made


def check_log_format(text, seen):
    if not {"path", "message"} & seen or not seen & {"time", "epoch", "clock"}:
        raise FormatError(
            f"format={text!r} reads like nginx's log_format, but has no $request (or $request_uri) "
            "or no $time_local, $time_iso8601 or $msec"
        )


def time_pattern(time_format):
    """The pattern of a format like %d.%m.%Y %H:%M:%S, or dd.MM.yyyy HH:mm:ss.

    Raises FormatError where it cannot be read.
    """
    time_format = str(time_format)
    java = {
        "yyyy": "%Y",
        "yy": "%y",
        "MMM": "%b",
        "MM": "%m",
        "dd": "%d",
        "HH": "%H",
        "mm": "%M",
        "ss": "%S",
        "SSSSSS": "%f",
        "SSS": "%f",
        "XXX": "%z",
        "Z": "%z",
    }
    text = time_format
    if "%" not in text:
        text = re.sub("|".join(java), lambda found: java[found[0]], text).replace("'", "")
    parts = {
        "%Y": r"(?<y>\d{4})",
        "%y": r"(?<y>\d{2})",
        "%b": MONTH,
        "%m": r"(?<m>\d{1,2})",
        "%d": r"(?<d>\d{1,2})",
        "%e": r" *(?<d>\d{1,2})",
        "%z": ZONE,
        "%a": r"[A-Za-z]+",
        "%%": "%",
    }
    text = text.replace("%F", "%Y-%m-%d").replace("%T", "%H:%M:%S")
    clock = re.search(r"%H(:?)%M(?:\1%S(?:[.,]%f)?)?", text)
    made, given = "", set()
    digits = r"\d{6}(?:[.,]\d+)?" if clock and not clock[1] else r"\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?"
    pieces = (
        [*re.split(r"(%.)", text[: clock.start()]), None, *re.split(r"(%.)", text[clock.end() :])]
        if clock
        else re.split(r"(%.)", text)
    )
    for piece in pieces:
        if piece is None:
            made, given = f"{made}(?<clock>{digits})", given | {"clock"}
        elif piece.startswith("%"):
            if piece not in parts:
                raise FormatError(
                    f"time_format={time_format!r}: {piece} is not understood; "
                    "expected %Y %y %m %b %d %e %H:%M:%S %f %z %a %F %T in an order of your own, "
                    "with hours, minutes and seconds together"
                )
            made += parts[piece]
            new = set(re.findall(r"\(\?<(\w+)>", parts[piece]))
            if new & given:
                raise FormatError(f"time_format={time_format!r} says the same piece twice ({piece})")
            given |= new
        else:
            made += re.escape(piece)
    if not {"m", "d"} <= given:
        raise FormatError(f"time_format={time_format!r} has no month and day: expected one like %d.%m.%Y %H:%M:%S")
    return "^" + made + "".join(f"(?<{name}>)" for name in PIECES if name not in given) + "$"


def python(pattern):
    """The pattern for Python."""
    return atomic(with_names(pattern))


def with_names(pattern):
    return re.sub(r"\(\?<([A-Za-z]\w*)>", r"(?P<\1>", pattern)


PIECE_OF_PATTERN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(|\)([*+?]\+)?", re.DOTALL)


def atomic(pattern):
    """The same pattern with (?>(...)*) for each (...)*+: before 3.11.5 Python loses matches of groups that are repeated
    possessively (CPython's issue 106052). Java gets them as they are, for it repeats those without a stack."""
    made, begins = [], []
    end = 0
    for piece in PIECE_OF_PATTERN.finditer(pattern):
        made.append(pattern[end : piece.start()])
        end = piece.end()
        if piece[0] == "(":
            begins.append(len(made))
        elif piece[0].startswith(")") and begins:
            begin = begins.pop()
            if piece[1]:
                made[begin] = "(?>" + made[begin]
                made.append(f"){piece[1][0]})")
                continue
        made.append(piece[0])
    return "".join([*made, pattern[end:]])


@functools.lru_cache(maxsize=256)
def compiled(pattern):
    with warnings.catch_warnings(action="ignore"):
        return re.compile(python(pattern), re.ASCII | re.DOTALL)


def java(pattern):
    """The pattern for Java: groups by number (their names may have no underscore there), and only \\n ends a line.

    In a set of characters Java takes [ and && for a set in the set, Python for themselves; and a { that begins no count
    is an error in Java. For \\b the letters of all scripts are Java's words, but not for its \\w.
    """
    return "(?sd)" + re.sub(r"\(\?P?<[A-Za-z]\w*>", "(", PIECE_FOR_JAVA.sub(_piece_for_java, pattern))


ESCAPE = r"\\(?:U[0-9A-Fa-f]{8}|[0-3][0-7]{2}|0[0-7]?|.)"
PIECE_FOR_JAVA = re.compile(ESCAPE + r"|\[\^?\]?(?:\\.|[^\]\\])*\]|\{(?:\d+(?:,\d*)?|,\d*)\}|\{", re.DOTALL)
ESCAPES_FOR_JAVA = {
    r"\b": r"(?:(?<=\w)(?!\w)|(?<!\w)(?=\w))",
    r"\B": r"(?:(?<=\w)(?=\w)|(?<!\w)(?!\w))",
    r"\Z": r"\z",
    r"\v": r"\x0B",
}


def _piece_for_java(found):
    text = found[0]
    if text.startswith("\\"):
        return ESCAPES_FOR_JAVA.get(text) or _escape_for_java(text)
    if text.startswith("{"):
        return r"\{" if text == "{" else text.replace("{,", "{0,")
    begin = re.match(r"\[\^?\]?", text)[0]
    inner = re.sub(
        rf"({ESCAPE})|\[|&&",
        lambda one: _escape_for_java(one[1]) if one[1] else one[0].replace("[", "\\[").replace("&&", "&\\&"),
        text[len(begin) : -1],
        flags=re.S,
    )
    return begin.replace("]", "\\]") + inner + "]"


def _escape_for_java(text):
    """What stands for the same character: \\U0001F600, \\0 and \\101 are Python's own, \\b and \\v those of a set."""
    if text[1] == "U" and len(text) > 2:
        return rf"\x{{{text[2:].lstrip('0') or '0'}}}"
    if text[1:].isdigit() and (text[1] == "0" or len(text) == 4):
        return rf"\x{{{int(text[1:], 8):x}}}"
    return {r"\b": r"\x08", r"\v": r"\x0B"}.get(text, text)


def parse(fmt, line, dated=None, columns=()):
    """(fields, None) of a good line, or (None, reason).

    `dated`: (year, last month * 100 + day in it) of its file; `columns`: of a W3C file.
    """
    try:
        size = len(line.encode())
    except UnicodeEncodeError:  # a byte that is no UTF-8 was read as a surrogate
        size, is_utf8 = len(line.encode(errors="surrogatepass")), False
    else:
        is_utf8 = True
    if size > LONGEST_LINE:
        return None, f"longer than {LONGEST_LINE:,} bytes"
    if not is_utf8:
        return None, "not UTF-8"
    if any(mark in line for mark in (SEPARATOR, BACKSLASH, QUOTE)):
        return None, "holds a control character (U+0001 to U+0003)"
    raw, reason = (_json if fmt.json else _w3c if fmt.w3c else _pattern)(fmt, line, columns)
    if raw is None:
        return None, reason
    for name in [name for name in raw if first_place(name, raw) != name]:
        second = raw.pop(name)
        raw[name[:-1]] = raw[name[:-1]] or second
    fields = {name: value if value or name == "message" else None for name, value in raw.items()}
    text = any(fields.get(name) for name in TIME_GROUPS)
    fields["time"] = time_of(fmt, fields, dated)
    if fmt.has_time() and fields["time"] is None and (text or not fmt.json):
        return None, "no time"
    for name in [name for name in fmt.numbers if name in fields]:
        text, fields[name] = fields[name], number(name, fields[name], EXPONENT if fmt.json else "")
        if text not in (None, "-") and fields[name] is None:
            return None, f"{REQUEST_TIMES.get(name, name)} is no number"
    taken = fields.pop("taken", None)
    for name, unit in (("request_ms", 1000), ("request_us", 1_000_000)):
        if name in fields:
            value = fields.pop(name)
            fields["request_time"] = None if value is None else value / unit
    if taken is not None:
        fields["request_time"] = taken
    return {name: value for name, value in fields.items() if name == "time" or name not in TIME_GROUPS}, None


def number(name, text, exponent=""):
    if text is None:
        return None
    if name == "bytes" and text == "-":
        return 0
    if name in ("status", "bytes"):
        return int(text) if re.fullmatch(r"\d{1,9}" if name == "status" else r"\d{1,18}", text, re.ASCII) else None
    value = float(text) if re.fullmatch(rf"(\d+(\.\d*)?|\.\d+){exponent}", text, re.ASCII) else None
    # IIS writes milliseconds, CloudFront seconds with a point.
    return value / 1000 if name == "taken" and value is not None and "." not in text else value


def _pattern(fmt, line, columns):
    text = line.replace("\\\\", BACKSLASH).replace('\\"', QUOTE) if fmt.escapes else line
    found = compiled(fmt.pattern).search(text)
    if not found:
        return None, "does not match the format"
    fields = {name: found[name] or "" for name in fmt.groups()}
    if fmt.escapes:
        fields = {name: value.replace(BACKSLASH, "\\").replace(QUOTE, '"') for name, value in fields.items()}
    return fields, None


def _object(line):
    try:
        made = json.loads(line, parse_float=str, parse_int=str) if line.lstrip().startswith("{") else None
    except (ValueError, RecursionError):
        made = None
    return (made, None) if isinstance(made, dict) else (None, "no JSON object")


def _json(fmt, line, columns):
    made, reason = _object(line)
    if made is None:
        return None, reason
    fields = {}
    for name, keys in fmt.json.items():
        values = [value for key in keys if (value := value_of(made, key)) not in (None, "")]
        value = values[0] if values else ""
        if isinstance(value, bool):
            value = str(value).lower()
        if name == "time" and isinstance(value, dict) and value.keys() == {"$date"}:  # MongoDB's
            value = value["$date"]
        is_time = name in ("time", "epoch") and isinstance(value, str)
        if is_time and re.fullmatch(r"\d\.\d+[eE]\+?\d{1,2}", value, re.ASCII):
            value = f"{Decimal(value):f}"
        if fmt.name == "journald" and isinstance(value, list) and value:  # a message with colours or odd bytes
            with contextlib.suppress(TypeError, ValueError):
                value = bytes(map(int, value)).decode(errors="replace")
        day = made.get("date") if name == "time" and "date" in keys else None
        if isinstance(value, str) and isinstance(day, str) and re.search(python(CLOCK_ALONE), value, re.ASCII):
            value = f"{day} {value}"
        fields[name] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if "request" in fields:
        found = re.search(REQUEST, fields.pop("request"), re.ASCII) or ("", "", "")
        fields |= {name: fields.get(name) or found[place] for place, name in ((1, "method"), (2, "path"))}
    if "message" in fields and not fields["message"]:
        fields["message"] = line  # what it says is under another key
    return fields, None


def value_of(made, key):
    """What a JSON object has under a key; `host.name` may also be the name in the object `host`."""
    if key in made or "." not in key:
        return made.get(key)
    outer, _, inner = key.partition(".")
    return made[outer].get(inner) if isinstance(made.get(outer), dict) else None


def with_keys(fmt, lines):
    """A format of JSON with the keys spelt as the lines have them: Time and MESSAGE where there is no time and message.

    Spark does not tell such keys apart, so it must be given one of them.
    """
    if not fmt.json:
        return fmt
    there = set()
    for line in lines:
        made, _ = _object(line)
        there |= set(made or {})
    spelt = {name.lower(): name for name in sorted(there, reverse=True)}

    def spell(key):
        outer, dot, inner = key.partition(".")
        if key in there or outer in there:
            return key
        return spelt.get(key.lower()) or spelt.get(outer.lower(), outer) + dot + inner

    # A number under a key of another case counts something else: Traefik's Duration, nanoseconds.
    spelt_keys = {
        name: keys if name in NUMBERS else list(dict.fromkeys(map(spell, keys))) for name, keys in fmt.json.items()
    }
    return replace(fmt, json=spelt_keys)


def without_time(fmt, lines):
    """What to say where lines of JSON have no time under a key that is known, or None."""
    if not fmt.json or any((parse(fmt, line)[0] or {}).get("time") for line in lines):
        return None
    made = next((made for line in lines if (made := _object(line)[0])), {})
    return (
        f"no line has a time under a key that format={fmt.name} knows; the keys are: {', '.join(made)}. Steps that "
        'need one are skipped. A regular expression takes any: data.format=\'(?<message>.*"KEY":"(?<time>[^"]+)".*)\''
    )


def _w3c(fmt, line, columns):
    line = line.rstrip(" \t")
    words = re.split("\t" if "\t" in line else " ", line)
    if not columns:
        return None, "there is no '#Fields:' line before it"
    if len(words) > len(columns) and "\t" not in line:
        words = re.findall(QUOTED_WORDS, line)
    words = [re.sub(QUOTED_WORD, r"\1", word) for word in words]
    if len(words) != len(columns):
        return None, f"has {'more' if len(words) > len(columns) else 'fewer'} columns than the '#Fields:' line"
    return {fmt.w3c[column]: word for column, word in zip(columns, words, strict=True) if column in fmt.w3c}, None


def w3c_columns(line):
    """The columns that a `#Fields:` line names, or None for another line."""
    return line.partition(":")[2].split() if line.startswith("#Fields:") else None


def time_of(fmt, fields, dated):
    """The time (UTC, without a zone) that the fields hold, or None."""
    if fields.get("epoch"):
        return _from_epoch(fields["epoch"], fmt.epoch_unit)
    if fields.get("month") and fields.get("clock"):
        return _from_pieces(
            fields.get("year"), fields["month"], fields["day"], fields["clock"], fields.get("zone"), fmt, dated
        )
    names = ("date", "time", "zone") if "time" in fields and not fmt.json else ("date", "clock", "zone")
    text = fields.get("time") if fmt.json else " ".join(fields[name] for name in names if fields.get(name))
    if not text:
        return None
    for pattern in fmt.kinds():
        if found := compiled(pattern).search(text):
            return _from_pieces(*[found[name] for name in PIECES], fmt, dated)
    if fmt.may_be_epoch() and re.search(EPOCH, text, re.ASCII):
        return _from_epoch(text, fmt.epoch_unit)
    return None


def _from_pieces(year, month, day, clock, zone, fmt, dated):
    name = month.capitalize()
    month = str(MONTHS.index(name) + 1) if name in MONTHS else month
    found = re.fullmatch(r"(\d{1,2}):(\d{1,2})(?::(\d{1,2})(?:[.,](\d+))?)?", clock or "0:0", re.ASCII)
    packed = re.fullmatch(r"(\d{2})(\d{2})(\d{2})(?:[.,](\d+))?", clock or "", re.ASCII)
    digits = (str(month), str(day), str(year or 0))
    if not (found or packed) or not all(re.fullmatch(r"\d+", text, re.ASCII) for text in digits):
        return None
    hour, minute, second, fraction = (found or packed).groups()
    if not year:
        year = year_of(int(month) * 100 + int(day), fmt.year, dated)
    elif len(str(year)) == 2:
        year = int(year) + (1900 if int(year) >= 70 else 2000)
    try:
        local = datetime(
            int(year),
            int(month),
            int(day),
            int(hour),
            int(minute),
            int(second or 0),
            int((fraction or "0")[:6].ljust(6, "0")),
        )
        time = local - _offset(zone)
        return time if time >= FIRST_TIME else None
    except (ValueError, OverflowError):
        return None


def _offset(zone):
    if not zone or zone in ("Z", "z", "UTC", "GMT"):
        return timedelta(0)
    digits = zone[1:].replace(":", "").ljust(4, "0")
    if int(digits[:2]) > 18 or int(digits[2:]) > 59:
        raise ValueError(zone)
    return (-1 if zone[0] == "-" else 1) * timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))


def _from_epoch(text, unit):
    if not re.fullmatch(r"\d{1,19}(\.\d*)?", text, re.ASCII):
        return None
    value = Decimal(text)
    if unit == "auto":
        if re.fullmatch(PACKED_DATE, text, re.ASCII):
            return None
        units = [factor for low, high, factor in UNITS.values() if low <= value < high]
    else:
        units = [UNITS[unit][2]] if value < UNITS[unit][1] else []
    return datetime(1970, 1, 1) + timedelta(microseconds=int(value * 1_000_000 / units[0])) if units else None


def year_of(month_day, year, dated):
    """The year of a line that has none.

    Lines up to `dated` (year, month * 100 + day) are of that year, later ones of the one before.
    """
    if dated:
        return dated[0] if month_day <= dated[1] else dated[0] - 1
    return year or datetime.now(UTC).year


def dated_by(modified):
    """(year, month * 100 + day) for a file that was last written at `modified` (seconds since 1970); a day more,
    for zones."""
    last = datetime.fromtimestamp(modified, UTC) + timedelta(days=1)
    return last.year, last.month * 100 + last.day


def dated_of(first, last, leap_day, year, modified):
    """(year, month * 100 + day) of a file by its first and last line (month * 100 + day each, or None),
    whether it has a 29 February, data.year (of its first line, or None) and when it was last written."""
    over = first is not None and last is not None and first > last  # over New Year
    if year is not None:
        return (year + 1, first - 1) if over else (year, 1231)
    dated = dated_by(modified)
    while leap_day and not calendar.isleap(dated[0] if dated[1] >= 229 else dated[0] - 1):
        dated = dated[0] - 1, dated[1]
    return dated


def events_of(fmt, lines):
    """Joins the lines of each event, for formats whose events have several.

    A line of blanks and tabs is no event, nor one that the format skips.
    """
    lines = [line for line in lines if line.strip(" \t") and not (fmt.skip and compiled(fmt.skip).search(line))]
    if not fmt.start:
        return lines
    start, events, begun = compiled(fmt.start), [], False
    for line in lines:
        begins = bool(start.search(line))
        if begun and not begins:
            events[-1] += "\n" + line
        else:
            events.append(line)
        begun = begun or begins
    return events


def has_events(fmt, lines):
    """Whether lines are more than blank ones, headers and what else the format skips."""
    return any(not (fmt.w3c and event.startswith("#")) for event in events_of(fmt, lines))


def fit(fmt, lines):
    """(share of the events that are good, the fields that some of them fill, an event that is not good with its reason)
    of a file's first lines."""
    columns, good, filled, bad, count = [], 0, set(), None, 0
    for event in events_of(fmt, lines):
        if fmt.w3c and event.startswith("#"):
            columns = w3c_columns(event) or columns
            continue
        count += 1
        fields, reason = parse(fmt, event, (2024, 1231), columns)
        if fields is None:
            bad = bad or (event, reason)
        else:
            good += 1
            filled |= {name for name, value in fields.items() if value is not None}
    return (good / count if count else 0.0), filled, bad


def choose(lines):
    """[(share, name)] of all named formats, the best first; of equal ones the first in formats.yaml."""
    found, has_columns = [], any(line.startswith("#Fields:") for line in lines)
    for name, fmt in entries().items():
        share, filled, _ = fit(fmt, lines) if bool(fmt.w3c) == has_columns else (0.0, set(), None)
        if 0 < share < 1 and (started := with_start(fmt, lines)).start != fmt.start:
            share, filled, _ = fit(started, lines)
        # Stack traces in another format's file are no events of several lines, unless those begin as they should.
        if fmt.start and sum(bool(compiled(fmt.start).search(line)) for line in lines) == 0:
            share = 0.0
        if (
            not fmt.only_with
            or set(fmt.only_with) & filled
            or (name == "nginx" and share and fit(entries()["combined"], lines)[0] < share)
        ):
            found.append((share, name))
    return sorted(found, key=lambda pair: -pair[0])


def with_numbers(fmt, lines):
    """A regular expression's fields `status` and `bytes` are numbers where all that the lines have are:
    a status may well be OK."""
    if fmt.name != "regex":
        return fmt
    values = {name: set() for name in ("status", "bytes")}
    for event in events_of(fmt, lines):
        fields, _ = parse(replace(fmt, numbers=()), event, (2024, 1231))
        for name in values.keys() & (fields or {}).keys():
            values[name].add(fields[name])
    looks = {"status": r"[1-5]\d\d", "bytes": r"\d{1,18}|-"}
    given = [
        name
        for name, found in values.items()
        if found - {None} and all(re.fullmatch(looks[name], v, re.ASCII) for v in found - {None})
    ]
    return replace(fmt, numbers=(*fmt.numbers, *given))


def check_unit(fmt, lines):
    """Raises FormatError where the numbers behind an access log's lines are whole: nobody can tell whether they are
    seconds (Apache's %T), milliseconds or microseconds (%D). nginx writes seconds, always with a point."""
    if fmt.name in ("regex", "log_format") or "request_time" not in fmt.names() or fmt.request_unit:
        return
    found = [_json(fmt, line, ())[0] if fmt.json else compiled(fmt.pattern).search(line) for line in lines]
    texts = [one["request_time"] for one in found if one and one["request_time"] not in (None, "", "-")]
    if any(text.strip("0") for text in texts) and all(text.isdigit() for text in texts):
        half = statistics.median(map(int, texts))
        raise FormatError(
            f"the request times are whole numbers (half of them above {half:g}), and may be "
            "seconds, milliseconds or microseconds: say data.request_unit=us for Apache's %D, =ms for %{ms}T, =s for %T"
        )


# What may stand behind a time and changes it: a zone, AM or PM; behind a date: a clock.
REST_OF_A_TIME = re.compile(
    r"\]?,? ?([+-](?:0\d|1[0-4]):?(?:00|15|30|45)\b|[AaPp]\.?[Mm]\b|(?:CE|E|C|M|P|B|J|I|AE|MS|WE|EE)[SD]?T\b|MSK\b"
    r"|(?:Africa|America|Antarctica|Asia|Atlantic|Australia|Europe|Indian|Pacific)/\w+)"
)
UNKNOWN_ZONE = re.compile(r"\d\d:\d\d(?:[.,]\d+)?" + REST_OF_A_TIME.pattern)
REST_OF_A_DATE = re.compile(r"\]?[,T_]? ?(\d{1,2}:\d\d(?::\d\d)?)\b")


def unknown_zone(lines):
    """What to say where most times have AM, PM or the name of a zone behind them, or nothing."""
    found = [one[1] for line in lines if (one := UNKNOWN_ZONE.search(line)) and one[1][0] not in "+-"]
    if len(found) <= len(lines) / 10:
        return ""
    return f"{found[0]!r} behind a time is not read: write the times anew, of 24 hours, in UTC or with an offset\n"


def check_whole_time(fmt, lines):
    """Raises FormatError where a regular expression leaves out what stands behind the time: a zone, AM or PM, or the
    clock of a date."""
    groups = set(fmt.groups()) if fmt.name == "regex" else set()
    last = next((name for name in ("clock", "time", "date") if name in groups), None)
    if last is None or "zone" in groups:
        return
    matches = [found for line in lines if (found := compiled(fmt.pattern).search(line)) and found[last]]
    rests = [
        rest[1]
        for found in matches
        if (rest := (REST_OF_A_TIME if ":" in found[last] else REST_OF_A_DATE).match(found.string, found.end(last)))
    ]
    if len(rests) > len(matches) / 2:
        raise FormatError(
            f"behind the group `{last}` stands {rests[0]!r}, which says another time than `{last}` alone: take it into "
            r"the group `time`, as in (?<time>\S+ \S+), or a zone into one of its own, (?<zone>...). Times with AM and "
            "PM, or with the name of a zone, are not read: write them anew"
        )


def with_start(fmt, lines):
    """Events of several lines where a pattern leaves lines over that continue others:
    indented, or an exception's name."""
    has_text = fmt.pattern and "message" in fmt.names() and not fmt.start
    over = [line for line in lines if not compiled(fmt.pattern).search(line)] if has_text else []
    if not over or len(over) == len(lines) or sum(bool(CONTINUES.match(line)) for line in over) < 0.9 * len(over):
        return fmt
    return replace(fmt, start=fmt.pattern)

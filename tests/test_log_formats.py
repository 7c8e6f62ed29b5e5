"""Log formats: each entry's samples, what `auto` says, times and years; what Spark makes of the same lines,
in one session."""

import bz2
import gzip
import json
import lzma
import os
import random
import re._parser as sre  # the only one that says what a regular expression consists of
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from cookbook import ROOT
from tests.helpers import CLEAN

sys.path[:0] = FOLDERS = [str(ROOT / "recipes/spark"), str(ROOT / "data")]
try:
    import log_files
    from _common import DatasetError

    import logformat
finally:  # other recipes have modules of the same names
    sys.path[:] = [folder for folder in sys.path if folder not in FOLDERS]

UA = "Mozilla/5.0 (X11; Linux x86_64) Firefox/128.0"
DATED = (2024, 1231)
ONE_LETTER = (sre.LITERAL, sre.NOT_LITERAL, sre.IN, sre.ANY)


def access(
    count, extra="", request="GET /product/{k} HTTP/1.1", status=200, agent=UA, user="-", client="192.0.2.{k}", front=""
):
    made = []
    for k in range(count):
        front_of_request = f"{front}{client.format(k=k % 60)} - {user} [29/Mar/2025:22:{k % 60:02d}:00 +0000]"
        made.append(f'{front_of_request} "{request.format(k=k)}" {status} {k} "-" "{agent}"{extra}')
    return made


def each(*texts, count=60):
    """These lines, `count` times, with its number for each {k}."""
    return [text.format(k=k) for k in range(count) for text in texts]


def without_agent(lines):
    return [line.split(' "-"')[0] for line in lines]


# Files as people have them, and the name that `auto` must say.
FILES = {
    "combined": access(60),
    "common": without_agent(access(60)),
    "nginx": access(60, ' "203.0.113.7"'),
    "vhost_combined": access(60, front="www.example.org:443 "),
    "vhost_common": without_agent(access(60, front="www.example.org:443 ")),
    "nginx_timed": access(60, ' "-" urt="0.1, 0.2" rt=0.3'),
    "apache": [
        f"[Wed Oct {1 + k:02d} 14:32:00.00{k:04d} 2024] [core:error] [pid 3:tid 4] [client 192.0.2.9:40] no file {k}"
        for k in range(30)
    ],
    "nginx_error": each("2025/03/29 22:{k:02d}:00 [error] 12#12: *{k} open() failed"),
    "syslog": each("Mar 29 22:{k:02d}:00 web01 sshd[{k}]: session opened"),
    "syslog_iso": each("2025-03-01T22:{k:02d}:02.000123+01:00 web01 cron[{k}]: (root) CMD (true)"),
    "syslog_5424": each("<34>1 2025-03-01T22:{k:02d}:02.003Z web01 app {k} ID47 - signed in"),
    "json_lines": [
        json.dumps({"time": f"2025-03-29T22:{k:02d}:00Z", "level": "info", "msg": f"request {k}"}) for k in range(60)
    ],
    "journald": [
        json.dumps({"__REALTIME_TIMESTAMP": str(1743285660000000 + k), "MESSAGE": f"m {k}", "_HOSTNAME": "a"})
        for k in range(60)
    ],
    "w3c": [
        "#Version: 1.0",
        "#Fields: date time c-ip cs-method cs-uri-stem sc-status",
        *each("2025-03-29 22:{k:02d}:00 192.0.2.1 GET /a 200"),
    ],
    "squid": [
        f"{1743285600 + k}.007 {k:6d} 192.0.2.1 TCP_MISS/200 1046 GET http://example.org/{k} - "
        "HIER_DIRECT/198.51.100.9 text/html"
        for k in range(60)
    ],
    "cri": each("2025-03-29T22:{k:02d}:00.123456789Z stdout F line {k}"),
    "log4j": each(
        "2025-03-29 22:{k:02d}:00,003 ERROR [main] com.example.App: request {k}",
        "java.lang.IllegalStateException: no",
        "\tat com.example.App.run(App.java:1)",
    ),
    "bgl": [
        f"- {1117838570 + k} 2005.06.03 R02 2005-06-03-15.42.50.675872 R02 RAS KERNEL INFO corrected {k}"
        for k in range(60)
    ],
    "elb": each(
        "2015-05-13T23:{k:02d}:43.945958Z lb 192.0.2.1:2817 10.0.0.1:80 0.000073 0.001048 0.000057 200 200 0 {k} "
        '"GET http://www.example.com:80/ HTTP/1.1" "curl/7.38.0" - -'
    ),
    "python_logging": each(
        "2025-03-29 22:{k:02d}:00,123 - app.db - INFO - request {k}",
        "Traceback (most recent call last):",
        "ValueError: no",
    ),
    "hdfs": each("081109 2036{k:02d} 148 INFO dfs.DataNode: block {k}"),
    "python_http": each('192.0.2.1 - - [29/Mar/2025 22:{k:02d}:00] "GET /{k} HTTP/1.1" 200 -'),
    "uwsgi": each(
        "[pid: 12|app: 0|req: 1/1] 192.0.2.1 () {{40 vars in 600 bytes}} [Sat Mar 29 22:{k:02d}:00 2025] GET /{k} => "
        "generated 120 bytes in 3 msecs (HTTP/1.1 200) 2 headers in 80 bytes (1 switches on core 0)"
    ),
    "vpc_flow": [
        "version account-id interface-id srcaddr dstaddr srcport dstport protocol packets bytes start end action x",
        *each("2 123456789010 eni-1 10.0.0.1 10.0.0.2 206 22 6 20 42{k} 1743285600 17432856{k:02d} ACCEPT OK"),
    ],
    "php": each("[29-Mar-2025 22:{k:02d}:00 UTC] PHP Fatal error:  Uncaught Error: no", "Stack trace:", "#0 {{main}}"),
    "redis": [" `-._ Redis 7 `-._ ", *each("{k}:M 29 Mar 2025 22:{k:02d}:00.123 * Ready to accept connections")],
    "mysql_slow": each(
        "# Time: 2025-03-29T22:{k:02d}:00Z",
        "# User@Host: a[a] @  [10.0.0.1]  Id: 1",
        "# Query_time: 0.{k:02d}  Lock_time: 0",
        "SELECT {k};",
    ),
    "rails": each("I, [2025-03-29T22:{k:02d}:00.123456 #12]  INFO -- : request {k}"),
    "audit": each("type=SYSCALL msg=audit(17432856{k:02d}.123:{k}): arch=c000003e"),
    "iso_lines": each("2025-03-29T22:{k:02d}:00.003Z ERROR web01 request {k} done"),
    "ctime_lines": each("[Sat Mar 29 22:{k:02d}:00 2025] usb 1-1: new device {k}"),
    "epoch_lines": [f"{1743285600007 + k} INFO web01 request {k} done" for k in range(60)],
}


def write(path, lines, end="\n", encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((end.join(lines) + end).encode(encoding))
    return path


def built(path, name="auto", **options):
    return log_files.build(path, str(path), name, **options)


@pytest.mark.parametrize("sample", logformat.samples(), ids=lambda sample: f"{sample[0].name}-{sample[2][:20]}")
def test_each_sample_of_each_format(sample):
    fmt, header, line, expected = sample
    got, reason = logformat.parse(fmt, line, DATED, logformat.w3c_columns(header) if header else ())
    assert reason is None
    for name, value in expected.items():
        if name == "time":
            value = datetime.fromisoformat(
                f"{str(value).replace('????', '2024'):0<26}"
                if "." in str(value)
                else str(value).replace("????", "2024")
            )
        assert got.get(name) == value, name


def unbounded(parsed):
    """The bodies of a regular expression's repetitions without an end, but those of one letter and possessive ones."""
    for op, value in parsed:
        endless = op in (sre.MAX_REPEAT, sre.MIN_REPEAT) and value[1] == sre.MAXREPEAT
        if endless and (len(value[2]) != 1 or value[2][0][0] not in ONE_LETTER):
            yield value[2]
        for inner in value if isinstance(value, tuple) else [value]:
            for one in inner if isinstance(inner, list) else [inner]:
                yield from unbounded(one) if isinstance(one, sre.SubPattern) else ()


@pytest.mark.parametrize("name", logformat.entries())
def test_no_pattern_needs_a_stack_that_grows_with_the_line(name):
    """Java needs some for each repetition of a group; (...)*+ needs none."""
    assert list(unbounded(sre.parse(logformat.with_names(logformat.entries()[name].pattern)))) == []


def test_every_format_has_three_samples():
    names = [fmt.name for fmt, *_ in logformat.samples()]
    assert {name: names.count(name) for name in logformat.entries() if names.count(name) < 3} == {}


@pytest.mark.parametrize("name", FILES)
def test_auto_names_the_right_format(tmp_path, name):
    path = write(tmp_path / "a.log", FILES[name])
    found = built(path)
    assert found["format"] == name
    assert logformat.fit(logformat.from_dict(found["entry"]), FILES[name])[0] == 1.0


def test_auto_shows_lines_and_the_nearest_format_where_none_fits(tmp_path):
    write(tmp_path / "a.log", access(4) + [f"quite another line {k}" for k in range(16)])
    with pytest.raises(
        DatasetError, match=r"(?s)no named format fits .*the nearest is combined, with 20 % of the lines.*quite|192"
    ):
        built(tmp_path)


def test_awkward_lines_are_requests_too():
    lines = [
        *access(1, request="-", status=408),
        *access(1, request=r"\x16\x03\x01\x02\x00", status=400),
        *access(1, agent=r"Foo \"bar\" 1.0"),
        *access(1, request="GET /my file.html HTTP/1.1"),
        *access(1, user="john doe"),
        *access(1, client="2001:db8::1"),
        *access(1, request="GET /"),
    ]
    got = [logformat.parse(logformat.entries()["combined"], line)[0] for line in lines]
    assert [row["status"] for row in got] == [408, 400, 200, 200, 200, 200, 200]
    assert [row["path"] for row in got] == [None, None, "/product/0", "/my file.html", "/product/0", "/product/0", "/"]
    assert got[2]["agent"] == 'Foo "bar" 1.0'
    assert got[5]["client"] == "2001:db8::1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2025-03-29T22:01:00.001Z", datetime(2025, 3, 29, 22, 1, 0, 1000)),
        ("2025-03-29T22:01:00.123456789+01:00", datetime(2025, 3, 29, 21, 1, 0, 123456)),
        ("2025-03-29T22:01:00-0430", datetime(2025, 3, 30, 2, 31)),
        ("20250329T220100Z", datetime(2025, 3, 29, 22, 1)),
        ("2025-03-29", datetime(2025, 3, 29)),
        ("1743285660", datetime(2025, 3, 29, 22, 1)),
        ("2025-02-30T00:00:00Z", None),
        ("2025032922", None),  # a date and an hour, no second of the year 2034
        ("250329220100", None),  # a date and a time, no millisecond of the year 1977
        ("20250329220100", None),
        ("2503292201", None),
        ("1712312359", datetime(2024, 4, 5, 10, 19, 19)),
        ("0001-01-01T00:00:00+01:00", None),  # in the year 0
        ("9999-12-31T23:59:59-01:00", None),
        ("03/04/2025", None),  # day or month first? nobody knows
    ],
)
def test_a_time_in_a_users_own_regex(text, expected):
    fmt = logformat.resolve(r"^(?<time>\S+) (?<message>.*)$")
    got, reason = logformat.parse(fmt, f"{text} x")
    assert (got["time"], reason) == (expected, None) if expected else (got, reason) == (None, "no time")


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        ("1743285660", "auto", datetime(2025, 3, 29, 22, 1)),
        ("1743285660.007", "auto", datetime(2025, 3, 29, 22, 1, 0, 7000)),
        ("1743285660007", "auto", datetime(2025, 3, 29, 22, 1, 0, 7000)),
        ("1743285660000007", "auto", datetime(2025, 3, 29, 22, 1, 0, 7)),
        ("1743285660000000007", "auto", datetime(2025, 3, 29, 22, 1)),
        ("50000000000", "auto", None),  # the year 3554, or August 1971
        ("50000000000", "ms", datetime(1971, 8, 2, 16, 53, 20)),
    ],
)
def test_epochs_of_any_unit(text, unit, expected):
    fmt = logformat.resolve(r"(?<epoch>\S+) (?<message>.*)", epoch_unit=unit)
    got, reason = logformat.parse(fmt, f"{text} x")
    assert (got and got["time"], reason) == (expected, None if expected else "no time")


def test_a_time_format_of_ones_own():
    for time_format in ("%d.%m.%Y %H:%M:%S", "dd.MM.yyyy HH:mm:ss"):
        fmt = logformat.resolve(r"(?<time>\S+ \S+) (?<message>.*)", time_format=time_format)
        assert logformat.parse(fmt, "29.03.2025 22:00:01 x")[0]["time"] == datetime(2025, 3, 29, 22, 0, 1)
        assert logformat.parse(fmt, "2025-03-29 22:00:01 x") == (None, "no time")
    fmt = logformat.resolve(r"(?<time>\S+ \S+) (?<message>.*)", time_format="%d-%b-%Y %H:%M:%S")
    for month in ("Mar", "MAR", "mar"):
        assert logformat.parse(fmt, f"29-{month}-2025 22:00:01 x")[0]["time"] == datetime(2025, 3, 29, 22, 0, 1)
    assert logformat.parse(fmt, "29-Mai-2025 22:00:01 x") == (None, "no time")
    with pytest.raises(logformat.FormatError, match="%I is not understood"):
        logformat.resolve(r"(?<time>\S+) (?<message>.*)", time_format="%I:%M %p")


@pytest.mark.parametrize("packed", [False, True])
def test_files_that_overlap_are_named(tmp_path, packed):
    """As where a log is copied while it is rotated: `a.log` has the first lines of what comes after it."""
    later = content(access(80)[25:])
    (tmp_path / "a.log").write_bytes(content(access(80)[:60]))
    (tmp_path / f"b.log{'.gz' * packed}").write_bytes(gzip.compress(later) if packed else later)
    found = built(tmp_path, "combined")
    (note,) = found["notes"]
    second = f"{tmp_path}/b.log{'.gz' * packed}"
    assert note.startswith(f"{second}: its first 35 lines are the last ones of {tmp_path}/a.log")
    (tmp_path / "a.log").write_bytes(content([*access(80)[:60], "x"]))  # goes on otherwise
    (note,) = built(tmp_path, "combined")["notes"]
    assert note.startswith(f"{second}: 35 of its 55 different lines stand in {tmp_path}/a.log, too")


def test_parts_of_lines_are_noted(tmp_path):
    lines = [f"2025-03-29T22:00:{k % 60:02d}.1Z stdout {'FP'[k % 3 == 0]} text {k}" for k in range(30)]
    (tmp_path / "a.log").write_bytes(content(lines))
    assert built(tmp_path, "auto")["notes"] == [
        "10 of the first lines are parts of longer ones: each of them is counted as an event of its own"
    ]


def test_parts_of_docker_s_lines_are_noted(tmp_path):
    lines = [
        {"log": f"text {k}" + "\n" * (k % 3 > 0), "stream": "stdout", "time": "2025-03-29T22:00:00Z"} for k in range(30)
    ]
    (tmp_path / "a.log").write_bytes(content([json.dumps(line, separators=(",", ":")) for line in lines]))
    (note,) = built(tmp_path, "auto")["notes"]
    assert note.startswith("10 of the first lines are parts of longer ones")


def test_a_file_with_w3c_columns_is_of_no_other_format(tmp_path):
    row = "2025-03-29 22:00:00 /a Moz illa 200"
    (tmp_path / "a.log").write_bytes(content(["#Fields: date time cs-uri-stem cs(User-Agent) sc-status", *[row] * 9]))
    with pytest.raises(DatasetError, match="no named format fits"):
        built(tmp_path, "auto")


def test_several_upstreams_of_a_log_format():
    line = 'log_format x \'$remote_addr [$time_local] "$request" $status '
    line += "$upstream_response_time $upstream_status $pipe';"
    text = '192.0.2.1 [29/Mar/2025:22:00:00 +0000] "GET /a HTTP/1.1" 200 0.1, 0.2 : 0.3 502, 504 : 200 .'
    got, reason = logformat.parse(logformat.resolve(line), text)
    assert reason is None
    assert (got["upstream_response_time"], got["upstream_status"]) == ("0.1, 0.2 : 0.3", "502, 504 : 200")
    assert got["pipe"] == "."


def test_the_request_under_a_key_of_json():
    line = """log_format j escape=json '{"t":"$time_iso8601","r":"$request","s":$status}';"""
    fmt = logformat.resolve(line)
    assert {"method", "path"} < set(fmt.names()) and "request" not in fmt.names()
    for request, wanted in (("GET /a?b=1 HTTP/2.0", ("GET", "/a?b=1")), ("", (None, None)), ("GET", (None, None))):
        got, reason = logformat.parse(fmt, json.dumps({"t": "2025-03-29T22:00:00Z", "r": request, "s": 200}))
        assert (reason, got["method"], got["path"], got["status"]) == (None, *wanted, 200)


def test_nginxs_own_log_format_line():
    line = """log_format main '$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent '
        '"$http_referer" "$http_user_agent" rt=$request_time urt="$upstream_response_time" $host';"""
    text = '192.0.2.1 - - [29/Mar/2025:22:00:00 +0100] "GET /a HTTP/1.1" 200 5 "-" "curl" '
    text += 'rt=0.3 urt="0.1, 0.2" shop.example'
    got, reason = logformat.parse(logformat.resolve(line), text)
    assert reason is None
    assert (got["time"], got["path"], got["request_time"], got["host"]) == (
        datetime(2025, 3, 29, 21),
        "/a",
        0.3,
        "shop.example",
    )
    assert got["upstream_response_time"] == "0.1, 0.2"


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        (
            """log_format j '{"t":"$time_iso8601","http":{"u":"${request_uri}","s":$status},"h":"$host"}';""",
            '{"t":"2025-03-29T22:00:00Z","http":{"u":"/a","s":404},"h":"shop"}',
            {"path": "/a", "status": 404, "host": "shop"},
        ),
        (
            """log_format j '{"t":"$msec","r":"$request_method $uri $server_protocol","url":"$host$request_uri"}';""",
            '{"t":"1743285660.5","r":"GET /a HTTP/1.1","url":"shop/a"}',
            {"path": "/a", "method": "GET", "host": None},  # the host and the path together are no host
        ),
        (
            'log_format x "$remote_addr [$time_local] \\"$request\\" " "$status";',
            '192.0.2.1 [29/Mar/2025:22:00:00 +0000] "GET /a HTTP/1.1" 200',
            {"client": "192.0.2.1", "path": "/a", "status": 200},
        ),
        (
            "$http_x_forwarded_for $remote_addr [$time_local] $request_uri",
            "203.0.113.7, 10.0.0.1 192.0.2.1 [29/Mar/2025:22:00:00 +0000] /a",
            {"client": "192.0.2.1", "http_x_forwarded_for": "203.0.113.7, 10.0.0.1", "path": "/a"},
        ),
        (  # the text before a mark may have blanks, commas and the mark itself
            "$host|$server_name|$request_method|$uri|$status|$sent_http_content_type|$msec",
            "shop|srv|GET|/a b|c,d|200|text/html; charset=utf-8|1743285660.5",
            {"host": "shop", "method": "GET", "path": "/a b|c,d", "sent_http_content_type": "text/html; charset=utf-8"},
        ),
        (
            "$remote_addr,$time_iso8601,$request_uri,$status,$request_time",
            "192.0.2.1,2025-03-29T22:00:00+00:00,/a,b,200,0.5",
            {"client": "192.0.2.1", "time": datetime(2025, 3, 29, 22), "path": "/a,b", "request_time": 0.5},
        ),
        (
            """log_format x '$time_iso8601 $uri $status $http_referer $http_user_agent';""",
            "2025-03-29T22:00:00Z /a b 200 https://a/ Mozilla/5.0 (X11; Linux)",
            {"path": "/a b", "referrer": "https://a/", "agent": "Mozilla/5.0 (X11; Linux)"},
        ),
        (
            """log_format x '$msec "$request_method $uri$is_args$args $server_protocol" $status';""",
            '1743285660.5 "GET /a?b=1 HTTP/1.1" 200',
            {"method": "GET", "path": "/a?b=1", "server_protocol": "HTTP/1.1", "status": 200},
        ),
        (
            """log_format j '{"t":$msec,"u":"$uri$is_args$args","s":$status}';""",
            '{"t":1.743285660007e9,"u":"/a?b=1","s":200}',
            {"path": "/a?b=1", "status": 200, "time": datetime(2025, 3, 29, 22, 1, 0, 7000)},
        ),
        (
            """log_format x '$msec $scheme://$host$uri?$args $status "$uri$is_args$args"';""",
            '1743285660.5 https://shop/a?b=1 200 "/a?b=1"',
            {"scheme": "https", "host": "shop", "path": "/a", "args": "b=1", "status": 200},
        ),
        (
            """log_format x '{$remote_addr} [$time_local] "$request_uri" $status';""",  # no JSON
            '{192.0.2.1} [29/Mar/2025:22:00:00 +0000] "/a b" 200',
            {"client": "192.0.2.1", "path": "/a b", "status": 200},
        ),
    ],
)
def test_log_formats_as_people_write_them(text, line, expected):
    got, reason = logformat.parse(logformat.resolve(text), line)
    assert (reason, {name: got.get(name) for name in expected}) == (None, expected)


def test_a_log_format_of_json_that_lacks_what_is_needed():
    for text, said in (
        ("""log_format j '{"t":"$time_iso8601","s":$status}';""", "but has no $request"),
        ("""log_format j '{"a":{"b":{"u":"$request_uri"}},"t":"$msec"}';""", "an object in an object (a.b)"),
    ):
        with pytest.raises(logformat.FormatError) as error:
            logformat.resolve(text)
        assert said in str(error.value)


def test_adjoining_variables_and_tabs_of_a_log_format():
    line = "shop.example/a/b?c=1\t200\t2025-03-29T22:01:00Z"
    for tab in ("\\t", "\t"):
        got, reason = logformat.parse(logformat.resolve(f"$host$request_uri{tab}$status{tab}$time_iso8601"), line)
        assert reason is None
        assert (got["host"], got["path"], got["status"]) == ("shop.example", "/a/b?c=1", 200)
        assert got["time"] == datetime(2025, 3, 29, 22, 1)
    quoted = logformat.resolve(r"$remote_addr [$time_local] \"$request\" $status")
    got, _ = logformat.parse(quoted, '192.0.2.1 [29/Mar/2025:22:00:00 +0000] "GET /a HTTP/1.1" 200')
    assert got["path"] == "/a"
    with pytest.raises(logformat.FormatError, match=r"\\q is not understood"):
        logformat.resolve(r"$request_uri\q$time_iso8601")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("combind", "format='combind' is unknown; expected auto, one of"),
        (r"(\S+) (?<message>.*)", "has groups without a name"),
        (r"(?<host>\S+)", "one must be"),
        (r"(?<line>\d+) (?<message>.*)", "a group cannot be called 'line'"),
        (r"(?<host>\S+) (?P=host) (?<message>.*)", "(?P=host) refers to a group by its name"),
        (r"\[(\d+)\] (?<host>[a-z]+) (?<message>.*)", "has groups without a name"),
        (r"(?<a>x)(?<a2>y)(?<a22>z) (?<message>.*)", "has a third place of a field, 'a22'"),
        (r"(?<host>\S+ (?<message>.*)", "is no regular expression"),
        (r"(?<blank>\S+) (?<message>.*)", "a group cannot be called 'blank'"),
        ("$request_uri $msec $quality", "a group cannot be called 'quality'"),
        ("""log_format j '{"t":"$msec","u":"$uri","l":"$line"}';""", "a group cannot be called 'line'"),
        ("$request_uri $msec $_mine", "$_mine cannot be a field, whose name begins with a letter"),
    ],
)
def test_formats_that_make_no_sense(text, message):
    with pytest.raises(logformat.FormatError) as caught:
        logformat.resolve(text)
    assert message in str(caught.value)


def test_years_come_from_the_file_or_the_setting():
    assert logformat.dated_of(227, 302, True, None, datetime(2026, 11, 25).timestamp()) == (
        2024,
        1126,
    )  # the last leap year
    assert logformat.dated_of(1230, 105, False, None, datetime(2025, 1, 5).timestamp()) == (2025, 106)
    assert logformat.dated_of(1230, 105, False, 2022, 0) == (2023, 1229)
    assert [logformat.year_of(day, None, (2023, 1229)) for day in (1230, 1231, 101, 105)] == [2022, 2022, 2023, 2023]
    assert [logformat.year_of(day, None, (2025, 106)) for day in (1230, 101, 105)] == [2024, 2025, 2025]


def test_leap_day_and_new_year_of_syslog(tmp_path):
    lines = [f"Feb {day} 12:00:00 web01 sshd[1]: x" for day in (28, 29)] + ["Mar  1 12:00:00 web01 sshd[1]: x"]
    path = write(tmp_path / "messages", lines)
    found = built(path, "syslog")
    fmt, dated = logformat.from_dict(found["entry"]), found["entry"]["years"][str(path)]
    times = [logformat.parse(fmt, line, dated)[0]["time"] for line in lines]
    assert [(time.month, time.day) for time in times] == [(2, 28), (2, 29), (3, 1)]
    assert len({time.year for time in times}) == 1
    over = write(tmp_path / "over", ["Dec 31 23:59:00 web01 a: x", "Jan  1 00:01:00 web01 a: x"])
    found = built(over, "syslog", year=2022)
    got = [
        logformat.parse(fmt, line, found["entry"]["years"][str(over)])[0]["time"].year
        for line in over.read_text().splitlines()
    ]
    assert got == [2022, 2023]


def test_stack_traces_belong_to_their_event(tmp_path):
    pattern = r"^(?<date>\S+) (?<clock>\S+) (?<level>\w+) +\[(?<thread>[^\]]+)\] (?<component>[^:]+): (?<message>.*)$"
    write(tmp_path / "app.log", FILES["log4j"])
    fmt = logformat.from_dict(built(tmp_path, pattern)["entry"])
    events = logformat.events_of(fmt, FILES["log4j"])
    assert len(events) == 60
    got = logformat.parse(fmt, events[0])[0]
    assert got["time"] == datetime(2025, 3, 29, 22, 0, 0, 3000)
    assert got["message"].endswith("App.java:1)")


def test_a_status_may_be_a_text(tmp_path):
    pattern = r"(?<time>\S+) (?<status>\w+) (?<message>.*)"
    write(tmp_path / "a/a.log", ["2025-03-29T22:00:00Z OK fine"] * 9)
    write(tmp_path / "b/b.log", ["2025-03-29T22:00:00Z 404 fine"] * 9)
    assert "status" not in built(tmp_path / "a", pattern)["entry"]["numbers"]
    assert "status" in built(tmp_path / "b", pattern)["entry"]["numbers"]


# Lines of all kinds, cut, joined and spoilt: nothing crashes, each is good or has a reason,
# and a good one has a time where the format has.
def check_any_line(chance: random.Random, name, noise):
    line = chance.choice(FILES[name])
    place, end = sorted(chance.choices(range(len(line) + 1), k=2))
    line = chance.choice([line, line[:place], line[:place] + noise + line[end:], noise, line + noise]).replace(
        "\n", " "
    )
    fmt = logformat.entries()[chance.choice([name, chance.choice(list(logformat.entries()))])]
    fields, reason = logformat.parse(
        fmt, line, DATED, ["date", "time", "c-ip", "cs-method", "cs-uri-stem", "sc-status"]
    )
    assert (fields is None) != (reason is None)
    if fields and fmt.has_time() and not fmt.json:
        assert isinstance(fields["time"], datetime)
    if fields and fields.get("status") is not None:
        assert 0 <= fields["status"] <= 999


ANY_LINE = (st.randoms(use_true_random=False), st.sampled_from(sorted(FILES)), st.text(max_size=20))
test_any_line_is_good_or_has_a_reason = seed(0)(
    settings(max_examples=300, deadline=None, database=None)(given(*ANY_LINE)(check_any_line))
)
test_any_of_5000_lines_is_good_or_has_a_reason = pytest.mark.full(
    seed(1)(settings(max_examples=5000, deadline=None, database=None)(given(*ANY_LINE)(check_any_line)))
)


def replaced(old, *news):
    """The first access line, once for each text, which stands there for `old`."""
    return [access(1)[0].replace(old, new) for new in news]


def varied(name, *values):
    """The first access line, once for each value of this argument of `access`."""
    return [access(1, **{name: value})[0] for value in values]


def behind(*texts, rest=" x"):
    return [text + rest for text in texts]


STAMP = "29/Mar/2025:22:00:00"
# [format, options, lines]: of awkward lines, what Spark and the reference make of them is compared.
REPEATED = 8000  # letters, or repetitions: Java keeps some on its stack
MORE = [
    [
        "logfmt",
        {},
        [f'ts=2025-03-29T22:00:00Z msg="{"a b " * REPEATED}" level=info', 'ts=2025-03-29T22:00:00Z msg="a level=x"'],
    ],
    [
        "python_http",
        {},
        [
            f"{who}[29/Mar/2025 22:00:00] {what}"
            for who in ("", "a - - ", "INFO:werkzeug:::1 - - ")
            for what in (
                '"\x1b[35mGET /a\x1b[0m" 404 -',
                '"GET /a" 200 5\x1b[0m',
                '"" 400 -',
                "code 404, message x",
                "",
            )
        ],
    ],
    ["iso_lines", {}, [f"2025-03-29T22:00:00{zone}" for zone in ("", "+05:30", "+05", "+0530", "+05:3", "\nx")]],
    [
        "redis",
        {},
        ["[1] 14 Nov 07:01:22.119 # x", "1:M 14 Nov 2025 07:01:22.119 # x", "1:M 31 Feb 2025 07:01:22.1 # x"],
    ],
    ["mysql_slow", {}, ["# Time: 2025-03-29T22:00:00Z\n" + "# a\n" * REPEATED + "# Query_time: 1"]],
    [
        "php",
        {},
        [f"[29-Mar-2025 22:00:00{z}] PHP {'Parse ' * REPEATED}error:  x" for z in (" UTC", " CET", " -03:30", "")],
    ],
    ["forwarded", {}, access(1, front=f"{', '.join(['203.0.113.7'] * 900)} ")],
    ["combined", {}, access(1, client=", ".join(["203.0.113.7"] * 900))],
    ["nginx_timed", {}, access(1, f' "-" urt=0.1, 0.2 a=1,b=2 ua="x, y" {"k=1 " * REPEATED}rt=0.3')],
    ["json_access", {}, ['{"request": {"uri": "/a"}, "status": 99999999999}']],
    [
        """log_format j escape=json '{"t":"$time_iso8601","r":"$request","u":"$request_uri","s":$status}';""",
        {},
        [
            json.dumps({"t": "2025-03-29T22:00:00Z", "r": request, "u": uri, "s": 200})
            for request in ("GET /a b HTTP/2.0", "GET /a", "GET", "", "\x16\x03", "-", " / HTTP/1.1", "M-X * HTTP/1.1")
            for uri in ("", "/u")
        ],
    ],
    [
        "$remote_addr [$time_local] $request_uri $upstream_response_time $upstream_status $pipe",
        {},
        [
            f"192.0.2.1 [29/Mar/2025:22:00:00 +0000] /a {value} ."
            for value in ("0.1 200", "0.1, 0.2 : 0.3 502, 504 : 200", "- -", "0.1, - 502, 502", "0.1, " * 899 + "0.1 1")
        ],
    ],
    [
        "syslog",
        {},
        ["Mar 29 22:00:01 w last message repeated 3 times", "Mar 29 22:00:01 w last words", "Mar 29 22:00:01 ::1 a: x"],
    ],
    [
        "apache",
        {},
        ["[Wed Oct 01 14:32:01 2014] [error] [client ::1] x", "[Wed Oct 01 14:32:01 2014] [error] (2)x: [client a] x"],
    ],
    [
        r"^(?<time>\S+) (?<level>\w+) (?<host>\S+) (?<message>.*)$",
        {},
        behind(
            *("2025-03-29T22:01:00.001Z", "2025-03-29T22:01:00.123456789+01:00", "20250329T220100Z", "2025-03-29"),
            *("2025-02-30T00:00:00Z", "2025-03-29T22:01", "2025-03-29T25:01:00", "1743285660", "20000000000"),
            *("29/Mar/2025:22:00:00+0100", "2025-03-29T22:01:00+99:00", "2025/3/9"),
            rest=" INFO w x",
        ),
    ],
    [
        r"(?<time>\S+ \S+) (?<message>.*)",
        {"time_format": "%d-%b-%Y %H:%M:%S"},
        ["29-MAR-2025 22:00:01 x", "29-mar-2025 22:00:01 x", "29-Mai-2025 22:00:01 x"],
    ],
    [
        r"(?<day>\d+)(?<month>\w{3})(?<year>\d+) (?<clock>\S+) (?<message>.*)",
        {},
        ["29MAR2025 22:00:01 x", "29Mar2025 22:00:01 x", "29032025 22:00:01 x"],
    ],
    [
        r"(?<time>\S+ \S+) (?<message>.*)",
        {"time_format": "%d.%m.%Y %H:%M:%S"},
        ["29.03.2025 22:00:01 x", "31.04.2025 22:00:01 x"],
    ],
    [
        r"(?<epoch>\S+) (?<message>.*)",
        {},
        behind(
            *("1743285660007", "1743285660.5", "1743285660000007", "50000000000", "2025032922", "202503292201"),
            *("-5", "0", "x"),
        ),
    ],
    [r"(?<epoch>\d+) (?<message>.*)", {"epoch_unit": "ms"}, ["50000000000 x", "1743285660007 x"]],
    [r"(?<host>\S+) (?<message>.*)", {}, ["web01 a b", "w "]],
    [r"(?<message>\bfoo\b.*)", {}, ["foo", "a foo b", "food", "bar"]],
    [r"(?<host>[^[&&]+)\[(?<pid>[\]\d]+) (?<message>.*)", {}, ["web01[9 x", "a&&b[]1 x", "[9 x"]],
    [r"(?<clock>\S+) (?<message>.*)", {}, ["22:00:01 x", "late x"]],
    [r"user=(?<host>\w+) .*: (?<message>\w+)", {}, ["a user=b c: d e", "user=b c: d"]],
    [
        r"(?<date>\S+) (?<time>\S+) (?<md52>\S+) (?<message>.*)",
        {},
        ["2025-03-29 22:00:01 0fe x", "03/29/2025 22:00:01 0fe x"],
    ],
    [
        r"(?<time>\S+) (?<zone>\S+) (?<message>.*)",
        {},
        ["2025-03-29T22:00:01 +0100 x", "2025-03-29T22:00:01 CET x"],
    ],
    [r"(?<host>[a-z]{,3})[ ](?<message>.{2,})", {}, ["abc xyz", "abcd xyz", " xy", "a{,3} x"]],
    [
        r"(?<epoch>\S+) (?<message>.*)",
        {},
        behind("133877592000000000", "638789256600000000", "12345", "99999999", "100000000"),
    ],
    [
        "json_lines",
        {},
        [
            '{"host": {"name": "web01"}, "log": {"level": "info"}, "message": "x"}',
            '{"host.name": "web02", "host": "web03", "message": "x"}',
            '{"host": "web03", "log": {"other": 1}, "message": "x"}',
        ],
    ],
    [
        "json_access",
        {},
        [
            '{"request": {"uri": "/a"}, "status": "ok"}',
            '{"request": {"uri": "/a"}, "duration": "3s"}',
            '{"request": {"uri": "/a"}, "duration": 9.29675e-05, "ts": 1.7432856605e9}',
        ],
    ],
    [
        """log_format j '{"t":"$time_iso8601","http":{"u":"$request_uri","s":$status},"h":"$host"}';""",
        {},
        ['{"t":"2025-03-29T22:00:00Z","http":{"u":"/a","s":404},"h":"x"}', '{"t":"2025-03-29T22:00:00Z","http":1}'],
    ],
    [
        "iso_lines",
        {},
        [
            "2025/03/29 22:00:00.123|ERROR|a|b",
            "[2025-03-29 22:00:00][ info ]: x",
            "2025-03-29 22:00:00:123 x",
            "2025-03-29 22:00:00,5,x",
            "2025-03-29 22:00:00.5, INFO | x",
            "2025-03-29  7:00:00\tWARN\tx",
            "2025-03-29 22:00:00:INFO:x",
            "2025-03-29 22:00:00,123 CEST x",
            "2025-03-29T22:00:00Z | DEBUG    | a:b:1 - x",
        ],
    ],
    [
        "journald",
        {},
        [
            '{"MESSAGE":[104,105]}',
            '{"MESSAGE":[]}',
            '{"MESSAGE":["a"]}',
            '{"MESSAGE":[195,188,10]}',
            '{"MESSAGE":"[1]"}',
        ],
    ],
    ["combined", {"request_unit": "us"}, [*access(1, " 1500"), *access(1, " -"), *access(1)]],
    ["vhost_combined", {}, access(1, front="www.example.org ", client="192.0.2.1, 10.0.0.1")],
    [
        "json_lines",
        {},
        [
            '{"time": "", "timestamp": 1743285660.1234567}',
            '{"t": {"$date": 1743285660123}}',
            '{"t": {"$date": {"x": 1}}}',
            '{"ts": "1.7432856605e9"}',
        ],
    ],
    [
        "iso_lines",
        {},
        [
            "[2025-03-29 22:00:00 -0500][INFO] x",
            "2025-03-29 22:00:00 -1234 left",
            "2025-03-29 22:00:00 UTC, x",
            "2025-03-29 22:00:00 CET [1] x",
            "2025-03-29 22:00:00 -0500",
            "2025-03-29 22:00:00 GMTx",
        ],
    ],
    [
        "combined",
        {},
        [
            *access(1, request="-", status=408),
            *access(1, request=r"\x16\x03", status=400),
            *access(1, agent=r"a \"b\" c"),
            *access(1, user="john doe"),
            *access(1, request="GET /"),
            *varied("extra", " junk", " 0.5"),
            *access(1, front="www.example.org:80 "),
            *varied("client", "2001:db8::1", "192.0.2.1, 10.0.0.1"),
            *replaced("+0000", "+9900", "-1860", "+1859", "+0560", "x0100"),
        ],
    ],
    [
        "combined",
        {},
        [
            *varied("request", r"GET /a\"b\\c HTTP/1.1", 'GET /a"b HTTP/1.1'),
            *access(1, agent=""),
            *varied("request", f"{'A' * 40} / HTTP/1.1", "get / HTTP/1.1", "GET  HTTP/1.1", "X-Y / HTTP/1.1"),
            *access(1, request="GET /\x02a HTTP/1.1"),
            *varied("status", 99, 1000, "+20", "+99", "1e2", "099", "000"),
            *replaced(" 0 ", " +5 ", " 5. ", " -5 ", " 007 ", f" {'9' * 18} ", f" {'9' * 19} ", "  "),
            *varied("extra", " NaN", " Infinity", " 1d", " -1", " 1e3", " 1.", " .5", "  0.5", " 0.5 ", " +1"),
            *replaced(STAMP, "29/Mar/2025:2:00:00", "29/Mar/2025:2:00:000", "29-Mar-2025:22:00:00"),
            *replaced(STAMP, "9/Mar/2025:22:00:00", "29/Mär/2025:22:00:00", "29/MAR/2025:22:00:00"),
            *replaced(STAMP, "29/Mar/2025:2:00:00Z"),
            *varied("client", "192.0.2.1:44", "192.0.2.1,10.0.0.1", "[2001:db8::1]:443", "::1", "unix:", "-"),
            *varied("client", "a.log:192.0.2.1", "", "a/b", "fe80::1%eth0"),
            *replaced(" - - ", "  - ", " -  ", " x y ", " - a\tb ", " x y z "),
        ],
    ],
    ["common", {}, [*without_agent(access(2)), *[without_agent(access(1))[0] + more for more in (" ", " x", "x")]]],
    [
        "combined",
        {},
        [
            *replaced(f"{STAMP} +0000", "01/Jan/0000:00:00:00 +0000", "01/Jan/0001:00:00:00 +0000"),
            *replaced(f"{STAMP} +0000", "01/Jan/0001:00:00:00 +0100", "31/Dec/0000:23:59:59 -0100"),
            *replaced(f"{STAMP} +0000", "31/Dec/9999:23:59:59 -0100", "31/Dec/9999:23:59:59 +0100"),
        ],
    ],
    [
        "iso_lines",
        {},
        behind(
            "0000-12-31T23:59:59-01:00",
            "0001-01-01T00:00:00+01:00",
            "9999-12-31T23:59:59.999999Z",
            "9999-12-31T23:59:59-01:00",
        ),
    ],
    [
        r"(?<epoch>\S+) (?<message>.*)",
        {},
        behind("250329220100", "20250329220100", "2503292201", "1712312359", "999999999999", "250329220100.5"),
    ],
    [
        r"(?<time>\S+) (?<message>.*)",
        {},
        behind("250329220100", "20250329220100", "2503292201", "1712312359"),
    ],
    [
        "$host$request_uri\\t$status\\t$time_iso8601",
        {},
        ["shop.example/a/b?c=1\t200\t2025-03-29T22:01:00Z", "/a\t200\t2025-03-29T22:01:00Z"],
    ],
    [
        r"^(?<host>\S+) (?<request_ms>\S+) (?<message>.*)",
        {},
        ["w 12 x", "w - x", "w 12ms x", "w 1.5 x", "w 1e3 x"],
    ],
    [
        "syslog",
        {},
        [
            "Feb 29 12:00:00 web01 sshd[900]: x",
            "Feb 30 12:00:00 web01 sshd[900]: x",
            "Dec 31 23:59:59 web01 a: x\u2028y\x85z",
        ],
    ],
    [
        "json_lines",
        {},
        [
            '{"date": "2025-03-29", "time": "22:01", "msg": "x"}',
            '{"date": 5, "time": "22:01Z"}',
            '{"date": {"a": 1}, "time": "22:01"}',
            '{"time": "22:01", "msg": "x"}',
            '{"date": "2025-03-29", "time": "x"}',
            '{"date": "22:01"}',
        ],
    ],
    [r'^{"t":"(?<time>[^"]+)","m":{(?<message>[^}]*)}}$', {}, ['{"t":"2025-03-29T22:00:00Z","m":{x}}']],
    [r"^(?<host>\w+)\b(?<message>.*)\Z", {}, ["web\u00fc01 x", "web x", "web"]],
    [r"^(?<host>\w+) (?<message>\U0001F600[\v\0b]*.*)", {}, ["web \U0001f600b x"]],
    [
        """log_format j '{"t":$msec,"u":"$uri$is_args$args","s":$status,"rt":$request_time}';""",
        {},
        [f'{{"t":{t},"u":"/a?b=1","s":200,"rt":0.004}}' for t in ("1743285660.007", "1743285660", "1.743285660007e9")],
    ],
    ["$host|$uri|$status|$http_referer|$msec", {}, ["shop|/a b|c|200|-|1743285660.5", "shop|/a|200||1743285660.5"]],
    ["$remote_addr,$time_iso8601,$request_uri,$status", {}, ["192.0.2.1,2025-03-29T22:00:00Z,/a,b,200"]],
    [
        "json_lines",
        {},
        [
            '{"msg": "a"}{"b": 1}',
            '{"msg": "a"}, {"b": 1}',
            '{"msg": "a } { b"}',
            '{"msg": "x", "list": [{"a": 1}, {"b": 2}]}',
        ],
    ],
    [
        "json_lines",
        {},
        [
            '{"time": 1743285660, "msg": "x"}',
            '{"time": "yesterday", "msg": "x"}',
            '{"msg": "x"}',
            "[1]",
            '{"a": 1',
        ],
    ],
]

PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pyspark.sql import SparkSession, functions as F
import logformat
from formats import parse
settings = {"spark.ui.enabled": False, "spark.driver.host": "127.0.0.1"}
settings |= {"spark.sql.session.timeZone": "UTC", "spark.sql.shuffle.partitions": 1}
spark = SparkSession.builder.master("local[1]").config(map=settings).getOrCreate()
jobs = {}
for fmt, header, line, _ in logformat.samples():
    jobs.setdefault((fmt.name, header), (fmt, header, []))[2].append(line)
more = json.load(sys.stdin)
jobs = list(jobs.values()) + [(logformat.resolve(text, **options), None, lines) for text, options, lines in more]
different, compared = [], 0
for fmt, header, lines in jobs:
    lines = [*lines, "", "x", "a\\x01b"]
    columns = tuple(logformat.w3c_columns(header)) if header else ()
    rows = [(line, "f", number) for number, line in enumerate(lines)]
    table = spark.createDataFrame(rows, "value string, file string, number int").withColumn("dated", F.lit(20241231))
    for line, row in zip(lines, parse(table, fmt, {columns: ["f"]} if columns else None).orderBy("number").collect()):
        fields, reason = logformat.parse(fmt, line, (2024, 1231), columns)
        row = row.asDict()
        if (fields is None) != (row["reason"] is not None):
            different.append([fmt.name, line, str(reason), str(row["reason"])])
        for name, value in (fields or {}).items():
            if name in row:
                compared += 1
                near = isinstance(value, float) and row[name] is not None and abs(value - row[name]) < 1e-9
                if row[name] != value and not near:
                    different.append([fmt.name, line, name, str(row[name]), str(value)])
            elif value is not None:
                different.append([fmt.name, line, name, "lacking"])
print("FOUND", json.dumps([len(jobs), compared, different]))
"""


@pytest.mark.full
def test_spark_makes_the_same_of_every_line(recipe_python):
    done = subprocess.run(
        [recipe_python("spark"), "-c", PROGRAM, ROOT / "recipes/spark"],
        input=json.dumps(MORE),
        capture_output=True,
        text=True,
        env={**CLEAN, "SPARK_LOCAL_IP": "127.0.0.1", "TZ": "UTC"},
    )
    found = [line.removeprefix("FOUND ") for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert found, done.stderr[-3000:]
    jobs, compared, different = json.loads(found[0])
    assert different == []
    assert jobs == len({(fmt.name, header) for fmt, header, *_ in logformat.samples()}) + len(MORE)
    assert compared > 400


INNER = access(60)


@pytest.mark.parametrize(
    ("front", "name"),
    [
        ("Mar 29 22:00:01 web01 nginx: ", "syslog"),
        ("2025-03-29T22:00:00Z stdout F ", "cri"),
        ("access.log:", None),
        ("access.log.1:12:", None),
        ("web-1  | ", None),
        ("web_1 | ", None),
        ("Mar 29 22:00:01 web01 nginx[9]: ", "syslog"),
        ("2025-03-29T22:00:00+01:00 web01 nginx: ", "syslog_iso"),
    ],
)
def test_access_lines_behind_a_prefix_get_no_wrong_client(tmp_path, front, name):
    write(tmp_path / "a.log", [front + line for line in INNER])
    for fmt in ("combined", "nginx", "vhost_combined"):
        assert logformat.parse(logformat.entries()[fmt], front + INNER[0]) == (None, "does not match the format")
    if name:
        assert built(tmp_path)["format"] == name
    else:
        with pytest.raises(DatasetError, match="no named format fits"):
            built(tmp_path)


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:4433", "192.0.2.1"),
        ("192.0.2.1,10.0.0.1", "192.0.2.1"),
        ("192.0.2.1, 10.0.0.1,10.0.0.2", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::1", "::1"),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("-", "-"),
        ("unix:", "unix:"),
        ("host-1.example.org", "host-1.example.org"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_clients(client, expected):
    fields, reason = logformat.parse(logformat.entries()["combined"], access(1, client=client)[0])
    assert (fields and fields["client"], reason) == (expected, None)


# Which files are read, and what becomes of the others.


def test_rotated_and_dated_names_are_logs_and_others_are_listed(tmp_path):
    for number, name in enumerate(
        (
            "access.log",
            "access.log.1",
            "access.log-20250327",
            "access.log.2025-03-28",
            "_odd.log",
            "messages",
            "a [b] {c}*?.log",
            "10:00:00.log",
            "UP.LOG",
        )
    ):
        write(tmp_path / name, access(5 + number))
    (tmp_path / "access.log.2.gz").write_bytes(gzip.compress(("\n".join(access(50)) + "\n").encode()))
    for name in ("notes.pdf", ".hidden.log", ".git/x.log"):
        write(tmp_path / name, ["x"])
    (tmp_path / "elsewhere").symlink_to("/")
    found = built(tmp_path, "combined")
    assert len(found["paths"]) == 10
    reasons = {one["file"].removeprefix(f"{tmp_path}/"): one["reason"] for one in found["left_out"]}
    assert reasons.keys() == {"notes.pdf", ".hidden.log", ".git", "elsewhere"}
    assert "its ending (.pdf)" in reasons["notes.pdf"]
    assert "hidden" in reasons[".hidden.log"]
    assert "a link to a folder" in reasons["elsewhere"]


@pytest.mark.parametrize("name", ["app.weird", "access [prod].log", ".hidden", "a{b,c}.log"])
def test_a_file_named_in_full_is_read(tmp_path, name):
    path = write(tmp_path / name, access(5))
    assert built(path)["paths"] == [str(path)]


def test_braces_as_shells_have_them(tmp_path):
    paths = [write(tmp_path / name, access(5 + len(name))) for name in ("a.log", "bb.log", "c.log")]
    assert built(tmp_path / "{a,bb}.log")["paths"] == [str(path) for path in paths[:2]]


TWO = {"access.log": FILES["combined"], "error.log": FILES["nginx_error"]}


@pytest.mark.parametrize(
    ("files", "name", "text"),
    [
        ({"access.log": []}, "combined", "there are no lines"),
        (TWO, "combined", "error.log: none of its first 60 lines fits data.format=combined"),
        (TWO, "combined", "It looks like data.format=nginx_error (100 % of them fit)"),
        (TWO, "auto", "the files have different formats (combined: access.log; nginx_error: error.log)"),
    ],
)
def test_what_the_builder_refuses(tmp_path, files, name, text):
    for file, lines in files.items():
        (tmp_path / file).write_text("".join(line + "\n" for line in lines))
    with pytest.raises(DatasetError) as caught:
        built(tmp_path, name)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.log", "\n".join(access(5)).encode("utf-16"), "a.log: is UTF-16"),
        ("a.log", "\n".join(access(5)).encode("utf-16-be"), "a.log: is UTF-16"),
        ("a.log", bytes(3000) + "\n".join(access(5)).encode(), "a.log: begins with zeros"),
        ("a.log", gzip.compress(b"x\n", mtime=0), "a.log: is packed as .gz"),
        ("a.log.gz", b"plain text\n", "a.log.gz: Not a gzipped file"),
        ("a.log", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", "a.log: it is a pointer of Git LFS"),
    ],
)
def test_files_that_spark_would_misread_are_refused_by_name(tmp_path, name, content, text):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        built(tmp_path, "combined")
    assert text in str(caught.value)


def test_a_binary_file_among_logs_is_left_out_by_name(tmp_path):
    write(tmp_path / "a.log", access(5))
    (tmp_path / "wtmp").write_bytes(b"\x07\0\0\0~\0\0\0" + bytes(300) + b"reboot")
    found = built(tmp_path, "combined")
    assert found["paths"] == [str(tmp_path / "a.log")]
    assert found["left_out"] == [{"file": str(tmp_path / "wtmp"), "reason": "binary, no lines of text"}]
    with pytest.raises(DatasetError, match="wtmp: is binary"):
        built(tmp_path / "wtmp", "combined")


def test_what_is_there_plain_and_packed_is_read_once(tmp_path):
    write(tmp_path / "access.log.1", access(5))
    (tmp_path / "access.log.1.gz").write_bytes(gzip.compress((tmp_path / "access.log.1").read_bytes()))
    write(tmp_path / "access.log.2", access(6))
    (tmp_path / "access.log.2.gz").write_bytes(gzip.compress(b"\n".join(line.encode() for line in access(7))))
    os.link(tmp_path / "access.log.2", tmp_path / "access.log.3")
    found = built(tmp_path, "combined")
    assert [Path(path).name for path in found["paths"]] == ["access.log.1", "access.log.2", "access.log.2.gz"]
    reasons = [one["reason"] for one in found["left_out"]]
    assert sorted(reasons) == ["the lines of access.log.1, packed", "the same file as access.log.2"]


def test_copies_of_the_same_content_are_read_once(tmp_path):
    content = "\n".join(access(50)).encode()
    for name in ("a.log", "a (1).log", "b/a.log"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "c.log.gz").write_bytes(gzip.compress(content + b"x\n"))
    (tmp_path / "c.log.bz2").write_bytes(bz2.compress(content + b"x\n"))
    (tmp_path / "a.log.1").write_bytes(
        content.replace(b"192.0.2.30", b"192.0.2.31")
    )  # as long, and different in the middle
    (tmp_path / "d.log").write_bytes(b"")
    (tmp_path / "e.log").write_bytes(b"")
    found = built(tmp_path, "combined")
    assert len(found["paths"]) == 5
    reasons = {one["file"].removeprefix(f"{tmp_path}/"): one["reason"] for one in found["left_out"]}
    assert reasons == {
        "a (1).log": f"the same content as {tmp_path}/a.log",
        "b/a.log": f"the same content as {tmp_path}/a.log",
        "c.log.gz": "the lines of c.log.bz2, packed",
    }
    several = log_files.build(tmp_path, [str(tmp_path / "a.log"), str(tmp_path / "b")], "combined")
    assert len(several["paths"]) == 1
    assert len(several["left_out"]) == 1


def test_what_is_no_utf8_is_named_with_what_to_do(tmp_path, capsys):
    write(tmp_path / "a.log", [*access(20), *access(2, agent="Käse")], encoding="latin-1")
    built(tmp_path, "combined")
    assert "a.log: 2 of its first 22 lines are not UTF-8" in (said := capsys.readouterr().out)
    assert "iconv -f LATIN1 -t UTF-8" in said
    write(tmp_path / "a.log", access(20, agent="Käse"), encoding="latin-1")
    for name in ("auto", "combined"):
        with pytest.raises(DatasetError, match="20 of its first 20 lines are not UTF-8.*iconv"):
            built(tmp_path, name)


def test_packed_files_and_tables_are_left_out_with_the_right_advice(tmp_path):
    write(tmp_path / "a.log", access(5))
    for name, content in (
        ("b.zip", b"PK\x03\x04xx"),
        ("c.log.xz", b"\xfd7zXZ\0x"),
        ("d.feather", b"ARROW1 x"),
        ("e.tar.gz", b"x"),
    ):
        (tmp_path / name).write_bytes(content)
    reasons = {Path(one["file"]).name: one["reason"] for one in built(tmp_path, "combined")["left_out"]}
    assert reasons == {
        "b.zip": "packed (.zip): unpack it",
        "c.log.xz": "packed (.xz): unpack it",
        "d.feather": "a table (.feather), no lines of text",
        "e.tar.gz": "packed (.tar.gz): unpack it",
    }


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(DatasetError, match=r"path=.*/nowhere: there is no such file or folder"):
        built(tmp_path / "nowhere")


def test_a_syslog_file_of_more_than_a_year_is_refused(tmp_path):
    lines = [f"{month}  1 12:00:00 web01 a: x" for month in ("Nov", "Dec", "Jan", "Jun", "Dec", "Jan", "Feb")]
    write(tmp_path / "a.log", lines)
    with pytest.raises(DatasetError, match="over 2 New Years"):
        built(tmp_path, "syslog")
    write(tmp_path / "a.log", [lines[0], lines[1], lines[2], lines[3], lines[0]])  # one New Year, and more than a year
    with pytest.raises(DatasetError, match="over 1 New Years"):
        built(tmp_path, "syslog")
    write(tmp_path / "a.log", ["Dec 31 23:59:59 web01 a: x", "Jan  1 00:00:00 web01 a: x"] * 3)  # not quite in order
    assert built(tmp_path, "syslog")["paths"]


def test_clients_behind_proxies(tmp_path):
    write(tmp_path / "a.log", access(60, client="192.0.2.1, 10.0.0.1"))
    found = built(tmp_path)
    assert found["format"] == "combined"
    fields, _ = logformat.parse(logformat.from_dict(found["entry"]), access(1, client="192.0.2.1, 10.0.0.1")[0])
    assert (fields["client"], fields["status"]) == ("192.0.2.1", 200)


@pytest.mark.parametrize("name", ["auto", "combined"])
@pytest.mark.parametrize(
    ("behind", "unit", "seconds"),
    [
        (" 0", None, 0.0),
        (" 2", "s", 2.0),
        (" 0.250", None, 0.25),
        (" 150", "us", 0.00015),
        (" 150", "ms", 0.15),
        (" 150", "s", 150.0),
    ],
)
def test_the_unit_of_what_stands_behind(tmp_path, name, behind, unit, seconds):
    write(tmp_path / "a.log", access(60, behind))
    fmt = logformat.from_dict(built(tmp_path, name, request_unit=unit)["entry"])
    assert logformat.parse(fmt, access(1, behind)[0])[0]["request_time"] == pytest.approx(seconds)


def test_a_number_that_is_none_is_refused():
    fmt = logformat.resolve(r"^(?<host>\S+) (?<request_ms>\S+) (?<message>.*)")
    assert logformat.parse(fmt, "web01 12 x")[0]["request_time"] == 0.012
    assert logformat.parse(fmt, "web01 - x")[0]["request_time"] is None
    assert logformat.parse(fmt, "web01 12ms x") == (None, "request_time is no number")


def test_whole_numbers_of_an_unknown_unit_are_refused(tmp_path):
    write(tmp_path / "a.log", access(60, " 150"))
    with pytest.raises(DatasetError, match=r"half of them above 150.* say data.request_unit=us for Apache's %D"):
        built(tmp_path)


@pytest.mark.parametrize(
    ("front", "behind", "name"),
    [("", " 2", "combined"), ("", " 2", "nginx"), ("www.a.org:80 ", " 9", "auto"), ("", " rt=150", "auto")],
)
def test_small_whole_numbers_have_no_unit_either(tmp_path, front, behind, name):
    write(tmp_path / "a.log", access(60, behind, front=front))
    with pytest.raises(DatasetError, match="may be seconds, milliseconds or microseconds"):
        built(tmp_path, name)
    unit = "ms" if name != "combined" else "s"
    fmt = logformat.from_dict(built(tmp_path, name, request_unit=unit)["entry"])
    seconds = logformat.parse(fmt, access(1, behind, front=front)[0])[0]["request_time"]
    assert seconds == float(behind.removeprefix(" rt=")) / (1000 if unit == "ms" else 1)


@pytest.mark.parametrize("name", ["auto", "combined"])
def test_a_time_format_that_nobody_understands_is_refused_at_once(tmp_path, name):
    write(tmp_path / "a.log", access(60))
    with pytest.raises(DatasetError, match="%Q is not understood; expected %Y"):
        built(tmp_path, name, time_format="%Q")


def test_a_line_with_zeros_before_it_is_text(tmp_path):
    """What `copytruncate` leaves where a program goes on writing at its old place."""
    assert not log_files.is_binary(bytes(400) + b"\n".join(line.encode() for line in access(5)))


def test_a_time_of_which_nobody_knows_how_it_is_written(tmp_path):
    write(tmp_path / "a.log", [f"03/29/2025 22:00:{n:02d} x" for n in range(60)])
    with pytest.raises(DatasetError, match="data.time_format says how a time is written"):
        built(tmp_path, r"(?<time>\S+ \S+) (?<message>.*)")


def test_a_name_that_ends_in_2_is_a_name():
    got, _ = logformat.parse(logformat.resolve(r"(?<md52>\S+) (?<message>.*)"), "0fe x")
    assert got == {"md52": "0fe", "message": "x", "time": None}


def test_a_bom_and_windows_line_ends_and_letters_that_end_no_line(tmp_path):
    write(tmp_path / "a.log", access(9), end="\r\n", encoding="utf-8-sig")
    assert built(tmp_path)["format"] == "combined"
    line = "Mar 29 22:00:00 web01 app[1]: grüße\u2028zweite \x85 Zeile"
    assert logformat.parse(logformat.entries()["syslog"], line, DATED)[0]["message"] == "grüße\u2028zweite \x85 Zeile"


def test_a_link_to_nothing_is_named(tmp_path):
    write(tmp_path / "a.log", access(5))
    (tmp_path / "b.log").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"1 of 2 log files cannot be read:\n  .*nowhere: No such file"):
        built(tmp_path, "combined")


# ---- what other people's logs are like: each with what must come out

LINES = access(60)
LONG = [line + " " + "x" * 100 for line in FILES["iso_lines"]]


def content(lines, end="\n"):
    return (end.join(lines) + end).encode()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("thunderbird", "- 1131566461 2005.11.09 dn228 Nov 9 12:01:{k:02d} dn228/dn228 crond[9]: session {k}"),
        ("forwarded", '"203.0.113.7" 192.0.2.1 - - [29/Mar/2025:22:00:{k:02d} +0000] "GET /a HTTP/1.1" 200 5 "-" "x"'),
        (None, "2025-03-29 10:00:{k:02d} PM INFO request {k}"),
        (None, "2025-03-29T22:00:{k:02d} Europe/Berlin request {k}"),
        ("log4j", "2025-03-29 22:00:{k:02d},001 INFO org.apache.hadoop.hdfs.DFSClient: request {k}"),
        ("iso_lines", "2025-03-29T22:00:{k:02d}Z info worker: request {k}"),
        (
            "vhost_combined",
            '192.0.2.9:80 192.0.2.1 - - [29/Mar/2025:22:00:{k:02d} +0000] "GET / HTTP/1.1" 200 5 "-" "x"',
        ),
        ("json_access", '{{"ts":17432856{k:02d}.5,"request":{{"uri":"/{k}","method":"GET"}},"status":200}}'),
        ("klog", "I0329 22:00:{k:02d}.123456   12345 main.cc:42] hello {k}"),
        ("spark", "25/03/29 22:00:{k:02d} INFO SparkContext: Running {k}"),
        (
            "haproxy",
            "Feb  6 12:14:14 lb haproxy[9]: 10.0.1.2:33317 [06/Feb/2009:12:14:{k:02d}.655] http-in static/srv1 "
            '10/0/30/69/109 200 2750 - - ---- 1/1/1/1/0 0/0 "GET /index{k}.html HTTP/1.1"',
        ),
        ("logfmt", 'time="2025-03-29T22:00:{k:02d}Z" level=info msg="hello {k}"'),
        ("nginx_timed", '192.0.2.1 - - [29/Mar/2025:22:00:{k:02d} +0000] "GET /a HTTP/1.1" 200 5 "-" "c" rt=0.{k:02d}'),
    ],
)
def test_auto_takes_no_format_that_only_looks_alike(tmp_path, name, line):
    write(tmp_path / "a.log", [line.format(k=k) for k in range(60)])
    if name:
        assert built(tmp_path)["format"] == name
    else:
        with pytest.raises(DatasetError, match="no named format fits"):
            built(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("133877592000000000", None),  # Windows' 100 ns since 1601, no nanoseconds of 1974
        ("638789256600000000", None),  # .NET's ticks, no nanoseconds of 1990
        ("12345", None),  # seconds since the start of a machine
        ("1743285660123456789", datetime(2025, 3, 29, 22, 1, 0, 123456)),
    ],
)
def test_counts_that_are_none_since_1970(text, expected):
    got, reason = logformat.parse(logformat.resolve(r"(?<epoch>\S+) (?<message>.*)"), f"{text} x")
    assert (got and got["time"], reason) == (expected, None if expected else "no time")


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"(?<time>\S+) (?<Host>\S+) (?<host>\S+) (?<message>.*)", "differs only in case"),
        (r"(?<Time>\S+) (?<message>.*)", "differs only in case from another field ('time')"),
        (r"(?<time>\S+)(?(time) )(?<message>.*)", "has a condition, which Java"),
        (r"(?<time>\S+) (?#rest)(?<message>.*)", "has a comment, which Java"),
        (r"(?a)(?<time>\S+) (?<message>.*)", "has a flag a, L or u, which Java"),
        (r"(?ix)(?<time>\S+) (?<message>.*)", "has the flag x, which Java"),
    ],
)
def test_regular_expressions_that_only_python_takes(pattern, text):
    with pytest.raises(logformat.FormatError) as caught:
        logformat.resolve(pattern)
    assert text in str(caught.value)
    if "which Java" in text:
        with pytest.raises(logformat.FormatError, match="^event_start=.* which Java"):
            logformat.resolve("(?<message>.*)", event_start=pattern)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a{,3}", "a{0,3}"),
        ("x{2}y{2,}z{2,3}?[{]{,}", "x{2}y{2,}z{2,3}?[{]{0,}"),
        (r'{"t":{(?<time>\d+)}{1}\{', r'\{"t":\{(\d+)}{1}\{'),
        (r"\\b\bx", r"\\b(?:(?<=\w)(?!\w)|(?<!\w)(?=\w))x"),
        (r"\B\Z", r"(?:(?<=\w)(?=\w)|(?<!\w)(?!\w))\z"),
        (r"\U0001F600\0\101\1\v[\b\v\0[]", r"\x{1F600}\x{0}\x{41}\1\x0B[\x08\x0B\x{0}\[]"),
    ],
)
def test_what_python_takes_is_put_into_java_s_words(pattern, expected):
    """Java refuses a { that begins no count, in the middle of a run; its \\b knows other words than its \\w."""
    assert logformat.java(pattern) == f"(?sd){expected}"


def test_an_expression_that_would_never_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(log_files, "SLOW_SECONDS", 0.5)
    (tmp_path / "a.log").write_text("a" * 60 + "b\n")
    with pytest.raises(DatasetError, match="is a part repeated that is a repetition itself"):
        log_files.build(tmp_path / "out", str(tmp_path / "a.log"), "^(?<message>(?:a+)+)$")


def test_a_blank_line_is_no_event():
    lines = ["x 1", "", "  ", " \t", "x 2", "", "\tat a"]
    assert logformat.events_of(logformat.resolve(r"(?<message>.*)"), lines) == ["x 1", "x 2", "\tat a"]
    with_start = logformat.resolve(r"(?<message>.*)", event_start="^x")
    assert logformat.events_of(with_start, lines) == ["x 1", "x 2\n\tat a"]
    assert logformat.fit(logformat.resolve(r"(?<message>x.*)"), lines[:6])[0] == 1.0


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("syslog", {"time_format": "%b %d"}, "time_format='%b %d' has no effect with format=syslog"),
        (r"(?<a>\S+) (?<message>.*)", {"time_format": "%Y-%m-%d"}, "has no effect with the regular expression"),
        ("combined", {"year": 2024}, "year=2024 has no effect with format=combined: its lines have a year"),
        ("common", {"request_unit": "ms"}, "request_unit='ms' has no effect with format=common"),
        ("combined", {"epoch_unit": "ms"}, "epoch_unit='ms' has no effect"),
        (r"(?<time>\S+) (?<message>.*)", {"time_format": "%Y %Y-%m-%d"}, "says the same piece twice (%Y)"),
    ],
)
def test_an_option_without_effect_is_refused(tmp_path, name, options, text):
    write(tmp_path / "a.log", ["Mar 29 22:00:00 a b: x"] if name == "syslog" else LINES)
    with pytest.raises(DatasetError) as caught:
        built(tmp_path, name, **options)
    assert text in str(caught.value)


COPIES = {
    "crlf": ("b.log", content(LINES, "\r\n"), "the same lines as {}a.log"),
    "no last line end": ("b.log", content(LINES)[:-1], "the same lines as {}a.log"),
    "mark": ("b.log", b"\xef\xbb\xbf" + content(LINES), "the same lines as {}a.log"),
    "packed": ("b.log.gz", gzip.compress(content(LINES)), "the same lines as {}a.log"),
    "rotated": ("a.log.2.bz2", bz2.compress(content(LINES)), "the same lines as {}a.log"),
    "beginning": ("b.log", content(LINES[:40]), "its lines are the beginning of {}a.log"),
    "beginning, packed": (
        "b.log.gz",
        gzip.compress(content(LINES[:30], "\r\n")),
        "its lines are the beginning of {}a.log",
    ),
    "end": ("b.log", content(LINES[-50:]), "its lines are the end of {}a.log"),
    "middle": ("b.log", content(LINES[10:40]), "its lines lie within {}a.log"),
    "end, packed": ("b.log.gz", gzip.compress(content(LINES[-30:])), "its lines lie within {}a.log"),
    "short middle": ("b.log", content(LINES[10:25]), None),
    "other lines": ("b.log", content([*LINES[:20], *without_agent(LINES[20:])]), 20),
    "one is lacking": ("b.log", content([*LINES[:30], *LINES[31:]]), 59),
    "every second": ("b.log", content(LINES[::2]), 30),
    "from behind": ("b.log", content(LINES[::-1]), 60),
    "blanks at the ends, packed": ("b.log.gz", gzip.compress(content(LINES, " \n")), 60),
    "few lines": ("b.log", content(LINES[:3]), None),
}


@pytest.mark.parametrize("case", COPIES)
def test_a_copy_in_other_words_is_read_and_named(tmp_path, case):
    """Whoever asks for both gets both: one may have been wanted, so nothing is left out by a guess."""
    name, bytes_of_it, reason = COPIES[case]
    (tmp_path / "a.log").write_bytes(content(LINES))
    (tmp_path / name).write_bytes(bytes_of_it)
    found = built(tmp_path, "combined")
    assert (found["left_out"], len(found["paths"])) == ([], 2)
    twice = "they are counted twice, unless you leave one of the two out of data.path"
    if type(reason) is int:
        lines = len(set(gzip.decompress(bytes_of_it).splitlines() if name.endswith("gz") else bytes_of_it.splitlines()))
        reason = f"{reason} of its {lines} different lines stand in {{}}a.log, too"
    if "within" in (reason or "") or "stand in" in (reason or ""):
        twice = "they are counted twice, unless you take them out of one of the two"
    expected = [] if reason is None else [f"{tmp_path / name}: {reason.format(f'{tmp_path}/')}: {twice}"]
    assert found["notes"] == expected


@pytest.mark.parametrize(
    ("name", "bytes_of_it", "text"),
    [
        ("a.log.gz", gzip.compress(content(LINES))[:-20], "a.log.gz: is cut off: its packed content ends too early"),
        ("a.log.gz", gzip.compress(content(LINES)) + b"rest", "a.log.gz: Not a gzipped file"),
        ("a.log.gz", gzip.compress(gzip.compress(content(LINES))), "is packed twice (there is .gz in it)"),
        ("a.log", "\n".join(LINES).encode("utf-32"), "is UTF-32, which Spark does not read"),
        ("a.json", b'[\n{"time":"2025-03-29T22:00:00Z","msg":"x"},\n{"msg":"y"}\n]\n', "is one JSON document"),
        ("a.json", b'{"Records":[{"eventTime":"2025-03-29T22:00:00Z"}]}\n', "jq -c '.[][]' FILE"),
        ("a.json", b'{\n  "time": "2025-03-29T22:00:00Z"\n}\n', "jq -c . FILE"),
    ],
)
def test_files_that_hold_no_lines_say_why(tmp_path, name, bytes_of_it, text):
    (tmp_path / name).write_bytes(bytes_of_it)
    with pytest.raises(DatasetError) as caught:
        built(tmp_path)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("bytes_of_it", "good"),
    [
        (content(LINES) + bytes(1 << 16), 60),  # what a crash leaves
        (content(LINES[:30]) + bytes(5000) + content(LINES[30:]), 59),
        (b"x" * (5 << 20) + b"\n" + content(LINES), 60),
        (content(LINES, "\r"), 60),
    ],
)
def test_a_log_with_a_hole_or_a_line_without_end_is_a_log(tmp_path, bytes_of_it, good):
    path = tmp_path / "a.log"
    path.write_bytes(bytes_of_it)
    found = built(tmp_path, "combined")
    assert (found["paths"], found["left_out"]) == ([str(path)], [])
    read = [logformat.parse(logformat.from_dict(found["entry"]), line) for line in log_files.first_lines(path)]
    assert sum(reason is None for _, reason in read) == good


def test_two_files_of_parts_and_the_whole(tmp_path):
    write(tmp_path / "a.log", [*LINES[::2], *FILES["log4j"]])
    write(
        tmp_path / "b.log", [*access(60, status=404)[::2], *FILES["log4j"][1::3]]
    )  # the same stack traces are no lines
    write(tmp_path / "c.log", sorted([*LINES[::2], *access(60, status=404)[::2]]))
    notes = built(tmp_path, "(?<message>.*)")["notes"]
    assert [note.partition(" different")[0].rpartition("/")[2] for note in notes] == ["c.log: 30 of its 60"] * 2


def test_a_file_of_json_without_times_among_others_is_noted(tmp_path):
    write(tmp_path / "a-json.log", ['{"log":"x\\n","stream":"stdout","time":"2025-03-29T22:00:00Z"}'] * 30)
    write(tmp_path / "config.v2.json", ['{"ID":"a","Name":"/b"}'])
    (note,) = built(tmp_path)["notes"]
    assert note.startswith(f"{tmp_path}/config.v2.json: none of its first lines has a time")


def test_a_file_without_w3c_columns_beside_one_with_them(tmp_path):
    write(tmp_path / "a.log", FILES["w3c"])
    write(tmp_path / "b.log", FILES["w3c"][2:])
    with pytest.raises(DatasetError, match=r"different formats \(w3c: a.log; iso_lines: b.log\)"):
        built(tmp_path)


def test_colours_and_a_kind_of_packing_that_is_not_read_are_named(tmp_path):
    write(tmp_path / "a.log", ["\x1b[32m2025-03-29 22:00:00\x1b[0m x"] * 30)
    with pytest.raises(DatasetError, match="They hold colours of a terminal: sed"):
        built(tmp_path)
    (tmp_path / "b.log.xz").write_bytes(lzma.compress(content(LINES)))
    with pytest.raises(DatasetError, match=r"b.log.xz: is packed as .xz: unpack it"):
        built(tmp_path / "b.log.xz")


@pytest.mark.parametrize("order", ["ab", "ba"])
@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("w3c", FILES["w3c"][:2]),  # IIS makes such files where nobody came
        ("vpc_flow", FILES["vpc_flow"][:1]),
        ("redis", FILES["redis"][:1]),
        ("combined", ["", "  ", "\t", ""]),
    ],
)
def test_a_file_of_headers_or_blank_lines_alone_is_of_the_others_format(tmp_path, name, without, order):
    write(tmp_path / f"{order[0]}.log", FILES[name])
    write(tmp_path / f"{order[1]}.log", without)
    found = built(tmp_path)
    assert (found["format"], len(found["paths"])) == (name, 2)
    (tmp_path / f"{order[0]}.log").unlink()
    with pytest.raises(DatasetError, match=rf"{order[1]}.log: (?:no named format fits|it has blank lines only)"):
        built(tmp_path)


def test_a_folder_that_a_pattern_matches_is_named(tmp_path):
    write(tmp_path / "a.log", LINES)
    write(tmp_path / "old/b.log", LINES[:30])
    found = built(tmp_path / "*", "combined")
    assert [Path(one["file"]).name for one in found["left_out"]] == ["old"]
    assert "a folder that the pattern matches" in found["left_out"][0]["reason"]


@pytest.mark.parametrize("modified", [1, 4_000_000_000])
def test_a_date_of_a_file_that_cannot_tell_the_year_is_refused(tmp_path, modified):
    path = write(tmp_path / "messages", FILES["syslog"])
    os.utime(path, (modified, modified))
    with pytest.raises(DatasetError, match="cannot tell it: say data.year"):
        built(tmp_path, "syslog")
    assert built(tmp_path, "syslog", year=2024)["entry"]["years"] == {str(path): (2024, 1231)}


def test_a_year_without_29_february_is_refused(tmp_path):
    write(tmp_path / "messages", ["Feb 29 12:00:00 web01 a: x"] * 9)
    with pytest.raises(DatasetError, match="there is none in 2023: data.year=2023"):
        built(tmp_path, "syslog", year=2023)


@pytest.mark.parametrize(
    ("pattern", "time_format", "line"),
    [
        (r"(?<time>\w+ +\d+ \S+) (?<message>.*)", None, "{} 12:00:00 x"),
        (r"(?<time>\S+ \S+) (?<message>.*)", "%b-%d %H:%M:%S", "{} 12:00:00 x"),
    ],
)
def test_years_of_a_users_own_regex(tmp_path, pattern, time_format, line):
    days = ["Dec 31", "Jan 01"] if time_format is None else ["Dec-31", "Jan-01"]
    path = write(tmp_path / "a.log", [line.format(day) for day in days])
    entry = built(tmp_path, pattern, time_format=time_format, year=2022)["entry"]
    fmt = logformat.from_dict(entry)
    got = [
        logformat.parse(fmt, text, entry["years"][str(path)])[0]["time"].year for text in path.read_text().splitlines()
    ]
    assert got == [2022, 2023]


def test_keys_of_json_in_any_case_and_a_note_where_no_time_is_known(tmp_path, capsys):
    line = {"Time": "2025-03-29T22:00:00Z", "LEVEL": "INFO", "Message": "a", "Host": {"name": "web01"}}
    path = write(tmp_path / "a/a.log", [json.dumps(line)] * 30)
    fmt = logformat.from_dict(built(tmp_path / "a")["entry"])
    got, _ = logformat.parse(fmt, path.read_text().splitlines()[0])
    assert (got["time"], got["level"], got["message"], got["host"]) == (datetime(2025, 3, 29, 22), "INFO", "a", "web01")
    write(tmp_path / "b/a.log", ['{"when": "2025-03-29T22:00:00Z", "msg": "a"}'] * 30)
    built(tmp_path / "b")
    assert (
        "no line has a time under a key that format=json_lines knows; the keys are: when, msg"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("name", "first", "year"),
    [
        ("messages-20230402", "Mar", 2023),
        ("messages-20240101", "Dec", 2023),  # of the day before
        ("2023/04/02/messages", "Mar", 2023),
        ("2023-04-02/messages", "Mar", 2023),
        ("app-20230101.log", "May", 2023),  # of the day on which the program was started
        ("20200101_project/messages", "Mar", 2025),  # by the file's own date
        ("messages-20230431", "Mar", 2023),
    ],
)
def test_the_date_in_a_name_tells_the_year_of_a_copied_file(tmp_path, name, first, year):
    file = write(tmp_path / name, [f"{first} {day:2d} 22:00:00 web01 sshd[{day}]: opened" for day in range(1, 29)])
    os.utime(file, (1757000000, 1757000000))  # September 2025
    assert built(tmp_path, "syslog")["entry"]["years"] == {str(file): (year, 1231 if year < 2025 else 905)}


def test_the_date_in_a_name_tells_both_years_of_a_file_over_new_year(tmp_path):
    file = write(tmp_path / "messages-20230108", [f"{day} 22:00:00 web01 a: x" for day in ("Dec 30", "Jan  7")])
    assert built(tmp_path, "syslog")["entry"]["years"] == {str(file): (2023, 1229)}


@pytest.mark.parametrize(
    ("path", "text"), [("{a,c}.log", "c.log: there is no such file"), ("{a,c*}.log", "c*.log: nothing")]
)
def test_what_was_asked_for_and_is_not_there_is_named(tmp_path, path, text):
    write(tmp_path / "a.log", access(30))
    with pytest.raises(DatasetError) as error:
        built(tmp_path / path)
    assert text in str(error.value)
    with pytest.raises(DatasetError, match="nothing matches it"):
        log_files.build(tmp_path, [str(tmp_path / "a.log"), str(tmp_path / "*.txt")], "auto")


@pytest.mark.parametrize(
    ("pattern", "rest", "refused"),
    [
        (r"^(?<time>\S+ \S+) (?<message>.*)$", "+0200 x", "'+0200'"),
        (r"^(?<time>\S+ \S+) (?<message>.*)$", "PM x", "'PM'"),
        (r"^(?<date>\S+) (?<clock>\S+) (?<message>.*)$", "CEST x", "'CEST'"),
        (r"^(?<time>\S+) (?<message>.*)$", "x", "'10:00:00'"),  # what the error proposes where no format fits
        (r"^(?<date>\S+) (?<message>.*)$", "x", "'10:00:00'"),
        (r"^(?<time>\S+ \S+) \S+ (?<message>.*)$", "Europe/Berlin x", "'Europe/Berlin'"),
        (r"^(?<time>\S+ \S+ \S+) (?<message>.*)$", "+0200 x", None),
        (r"^(?<time>\S+ \S+) (?<zone>\S+) (?<message>.*)$", "+0200 x", None),
        (r"^(?<time>\S+ \S+) (?<message>.*)$", "POST /a", None),
        (r"^(?<time>\S+ \S+) (?<message>.*)$", "+0233 degrees", None),
        (r"^(?<time>\S+ \S+) (?<message>.*)$", "UTC x", None),
    ],
)
def test_a_zone_that_an_expression_leaves_out_is_refused(tmp_path, pattern, rest, refused):
    write(tmp_path / "a.log", [f"2025-03-29 10:00:{k:02d} {rest}" for k in range(30)])
    if refused is None:
        assert built(tmp_path, pattern)["format"] == "regex"
        return
    with pytest.raises(DatasetError, match="says another time") as error:
        built(tmp_path, pattern)
    assert refused in str(error.value)


def test_digits_of_other_scripts_are_no_time():
    fmt = logformat.resolve(r"(?<year>\S+) (?<month>\S+) (?<day>\S+) (?<clock>\S+) (?<message>.*)")
    for line in ("ab 3 9 10:00 x", "2025 ² 9 10:00 x", "2025 3 ٣ 10:00 x"):
        assert logformat.parse(fmt, line) == (None, "no time")


def test_of_many_files_fewer_lines_are_looked_at_and_the_likely_format_is_tried_first(tmp_path, monkeypatch, capsys):
    asked, real = [], logformat.choose
    monkeypatch.setattr(log_files, "LINES_IN_ALL", 800)
    monkeypatch.setattr(logformat, "choose", lambda lines: asked.append(len(lines)) or real(lines))
    for k in range(10):
        write(tmp_path / f"{k}.log", access(200, request=f"GET /{k}-{{k}} HTTP/1.1"))
    write(tmp_path / "last.log", access(200, ' "203.0.113.7"'))
    assert built(tmp_path)["format"] == "nginx", "which fits the others, too"
    assert asked == [72, 72]
    assert capsys.readouterr().out.count("combined fits 100.0 % of the first 72 lines") == 10


@pytest.mark.parametrize(
    "stamp", ["[2025-03-29 22:{k:02d}:00,001]", "2025-03-29T22:{k:02d}:00.5Z", "17432856{k:02d}.25"]
)
def test_stack_traces_below_lines_that_only_begin_with_a_time(tmp_path, stamp):
    trace = ("java.lang.Error: no", "\tat a.B.c(D.java:1)", "\tat a.B.d(D.java:2)")
    lines = each(stamp + " ERROR request {k}", *trace)
    write(tmp_path / "a.log", lines)
    entry = built(tmp_path)["entry"]
    fmt = logformat.from_dict(entry)
    assert entry["name"] == ("epoch_lines" if stamp.startswith("17") else "iso_lines")
    fields, _ = logformat.parse(fmt, logformat.events_of(fmt, lines)[1])
    assert (fields["level"], fields["message"]) == ("ERROR", "\n".join(["request 1", *trace]))
    assert logformat.fit(fmt, lines)[0] == 1.0
    assert not built(tmp_path, entry["name"], event_start=None)["entry"]["start"]


def test_a_number_under_a_key_of_another_case_counts_something_else(tmp_path):
    """Traefik's Duration is in nanoseconds."""
    line = {"RequestPath": "/a", "DownstreamStatus": 200, "Duration": 1463000, "StartUTC": "2025-03-29T22:00:00Z"}
    write(tmp_path / "a.log", [json.dumps(line)] * 30)
    entry = built(tmp_path)["entry"]
    got, _ = logformat.parse(logformat.from_dict(entry), json.dumps(line))
    assert (entry["name"], got["path"], got["request_time"]) == ("json_access", "/a", None)


@pytest.mark.parametrize(
    ("lines", "zone"),
    [
        (["[29-Mar-2025 22:00:{k:02d} Europe/Berlin] PHP Error:  x", *["#{k} {{main}}"] * 4], "'Europe/Berlin' behind"),
        (["2025-03-29 22:00:{k:02d}.123 CEST [1234] LOG:  x"], "'CEST' behind a time is not read"),
        (["Mar 29, 2025 10:00:{k:02d} PM a.b.C start", "INFO: Starting"], "'PM' behind a time is not read"),
        (["x {k} y"], None),
    ],
)
def test_a_zone_that_no_format_reads_is_named(tmp_path, lines, zone):
    write(tmp_path / "a.log", each(*lines))
    with pytest.raises(DatasetError, match="no named format fits") as caught:
        built(tmp_path)
    assert (zone or "Give a regular expression") in str(caught.value)
    assert ("behind a time" in str(caught.value)) is (zone is not None)


def test_a_banner_and_a_header_are_no_events():
    redis = logformat.entries()["redis"]
    lines = ["   _.-``    `-._ ", " |`-._`-...-` Port: 6379", "1:M 29 Mar 2025 22:00:00.123 * a", "rest"]
    assert logformat.events_of(redis, lines) == lines[2:]
    assert logformat.events_of(logformat.entries()["php"], lines) == lines


def test_the_year_of_old_redis(tmp_path):
    days = ["30 Dec", "31 Dec", "01 Jan"]
    path = write(tmp_path / "a.log", [f"[4018] {day} 07:01:22.119 # x" for day in days for _ in range(9)])
    entry = built(tmp_path, year=2023)["entry"]
    times = [
        logformat.parse(logformat.from_dict(entry), line, entry["years"][str(path)])
        for line in path.read_text().splitlines()
    ]
    assert [fields["time"].isoformat()[:10] for fields, _ in times if fields][::9] == [
        "2023-12-30",
        "2023-12-31",
        "2024-01-01",
    ]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("2025-03-29T22:{k:02d}:00+01:00 ERR github.com/a/x.go:54 > no", "iso_lines"),  # ERR is no host, 54 no message
        ("Mar 29 22:{k:02d}:00 CEST web01 app[1]: x", None),  # nor is CEST
        ("2025-03-29 22:{k:02d}:00,123 CEST [1] x", None),
        ("2025-03-29T22:{k:02d}:00.123456789Z I0329 22:00:00.123456 1 a.go:1] x", "iso_lines"),  # kubectl --timestamps
        ("Mar 29 22:{k:02d}:00 I0329 22:00:00.123456 1 a.go:1] x", None),
        ("2025-03-29 22:{k:02d}:00 INFO     app.py:12 x", "iso_lines"),  # 12 is no message
        ("2025-03-29 22:{k:02d}:00 INFO     app: 12 x", "log4j"),
        ("2025-03-29 22:{k:02d}:00,5,7,x", None),  # a table: 5 is no fraction
        ("2025-03-29 22:{k:02d}:00:123 x", None),
        ("2025-03-29 22:{k:02d}:00.12|CEST x", "iso_lines"),
        ('192.0.2.1 - - [29/Mar/2025:22:{k:02d}:00 +0000] "GET /a HTTP/1.1" 200 5 "-" "curl" 51 78', "combinedio"),
    ],
)
def test_words_that_look_like_other_things(tmp_path, line, name):
    write(tmp_path / "a.log", each(line))
    if name:
        assert built(tmp_path)["format"] == name
    else:
        with pytest.raises(DatasetError, match="no named format fits"):
            built(tmp_path)


def test_whole_request_times_of_json_have_no_unit_either(tmp_path):
    lines = [f'{{"ts":17432856{k:02d},"request_uri":"/a","status":200,"request_time":{k}}}' for k in range(10, 40)]
    write(tmp_path / "a.log", lines)
    with pytest.raises(DatasetError, match="may be seconds, milliseconds or microseconds"):
        built(tmp_path)
    fmt = logformat.from_dict(built(tmp_path, request_unit="ms")["entry"])
    assert logformat.parse(fmt, lines[5])[0]["request_time"] == 0.015
    write(tmp_path / "a.log", [*lines, lines[0].replace(":10}", ":0.25}")])
    assert built(tmp_path)["format"] == "json_access"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("(?:a|b)*+c", "(?>(?:a|b)*)c"),
        ("((x)?+y)++", "(?>((?>(x)?)y)+)"),
        (r"[^()]*+\)*+(?<day>\d)?", r"[^()]*+\)*+(?P<day>\d)?"),
        (r"[]()]++(a[)]*+)*+", r"[]()]++(?>(a[)]*+)*)"),
    ],
)
def test_groups_repeated_possessively_are_atomic_in_python(pattern, expected):
    assert logformat.python(pattern) == expected

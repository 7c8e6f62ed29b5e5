"""Requests by team and hour out of access logs, in DuckDB: parse, filter, join, window, aggregate. Threads."""

from pathlib import Path

import duckdb
from meter import Meter

PATTERN = r'^(\S+) \S+ \S+ \[([^\]]+)\] "\S+ /(\w*)(\S*) [^"]*" (\d+) (\d+) "[^"]*" "[^"]*" \S+$'
QUERY = """
WITH fields AS (
    SELECT regexp_extract(line, '{pattern}', ['client', 'time', 'section', 'rest', 'status', 'bytes']) AS f
    FROM read_csv('{folder}/*.log', header=false, sep='\x01', quote='', escape='', columns={{'line': 'VARCHAR'}})
), requests AS (
    SELECT f.client, team, f.section, f.rest, f.status::INT AS status, f.bytes::BIGINT AS bytes,
        epoch(strptime(f.time, '%d/%b/%Y:%H:%M:%S %z'))::BIGINT AS time
    FROM fields JOIN '{sections}' AS teams ON f.section = teams.section WHERE f.status <> ''
), marked AS (
    SELECT *, time - lag(time) OVER (PARTITION BY client ORDER BY time, section, rest) AS gap FROM requests
)
SELECT team, time // 3600 AS hour, count(*), count(*) FILTER (WHERE status >= 500), sum(bytes)::BIGINT,
    count(*) FILTER (WHERE gap IS NULL OR gap > 1800)
FROM marked GROUP BY ALL ORDER BY team, hour
"""


if __name__ == "__main__":
    meter = Meter()
    database = duckdb.connect()
    database.execute(f"SET threads = {meter.workers}")
    sections = Path(__file__).with_name("sections.csv")
    query = QUERY.format(folder=meter.folder, pattern=PATTERN, sections=sections)
    meter.ready()
    meter.measure(lambda: {"table": database.execute(query).fetchall()})

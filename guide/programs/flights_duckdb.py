"""Flights by carrier and airport, in DuckDB: filter, join, window, aggregate. One process, `workers` threads."""

import duckdb
from meter import Meter

QUERY = """
WITH flown AS (
    SELECT carrier, origin, seats, arr_delay, dep_delay, lag(arr_delay) OVER plane AS before
    FROM '{folder}/flights-*.parquet' JOIN '{folder}/planes.parquet' AS planes USING (tailnum)
    WHERE arr_delay IS NOT NULL
    WINDOW plane AS (PARTITION BY tailnum ORDER BY time_hour, minute, flight, dep_delay, arr_delay)
)
SELECT carrier, origin, count(*), sum(arr_delay)::BIGINT, sum(seats)::BIGINT,
    count(*) FILTER (WHERE dep_delay > 15 AND before > 15)
FROM flown GROUP BY ALL ORDER BY carrier, origin
"""


if __name__ == "__main__":
    meter = Meter()
    database = duckdb.connect()
    database.execute(f"SET threads = {meter.workers}")
    meter.ready()
    meter.measure(lambda: {"table": database.execute(QUERY.format(folder=meter.folder)).fetchall()})

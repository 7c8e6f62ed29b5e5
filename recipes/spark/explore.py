"""What is in the logs: traffic, errors, the busiest clients and paths, request times. Plain Spark SQL."""

from ingest import facts_of, good_events, is_web

TRAFFIC = {
    "lines": "count(*)",
    "clients": "count(DISTINCT client)",
    "server_errors": "count_if(status >= 500)",
    "mb": "round(sum(bytes) / 1e6, 1)",
}
# Name of the table -> the fields that it needs, and the query; %s stands for what else the logs have.
QUERIES = {
    "status": (
        ["status"],
        "SELECT status, count(*) AS lines, round(100 * count(*) / sum(count(*)) OVER (), 2) AS percent "
        "FROM events GROUP BY status ORDER BY lines DESC",
    ),
    "busiest paths": (
        ["status", "path"],
        """
        SELECT concat('/', split(path, '[/?]')[1]) AS section, count(*) AS lines, count_if(status >= 400) AS errors %s
        FROM events GROUP BY ALL ORDER BY lines DESC LIMIT 10""",
    ),
    "busiest clients": (
        ["status", "client", "path"],
        """
        SELECT client, count(*) AS lines, count_if(status >= 400) AS errors, count(DISTINCT path) AS paths
        FROM events GROUP BY client ORDER BY lines DESC LIMIT 10""",
    ),
    "request time": (
        ["request_time"],
        """
        SELECT array(50, 90, 95, 99)[place] AS percentile, round(value, 3) AS seconds
        FROM (
            SELECT posexplode(percentile_approx(request_time, array(0.5, 0.9, 0.95, 0.99))) AS (place, value)
            FROM events
        )""",
    ),
    "level": (["level"], "SELECT level, count(*) AS lines FROM events GROUP BY level ORDER BY lines DESC LIMIT 10"),
    "component": (
        ["component"],
        "SELECT component, count(*) AS lines FROM events GROUP BY component ORDER BY lines DESC LIMIT 10",
    ),
    "host": (["host"], "SELECT host, count(*) AS lines FROM events GROUP BY host ORDER BY lines DESC LIMIT 10"),
}


def explore(spark, config, run):
    """Leaves the tables in the report, traffic with a plot; those that need a field which the
    logs lack are left out."""
    # Distributed: Spark plans each query into stages; between two of them rows with one key
    # meet on one executor (a shuffle).
    events, there = good_events(spark, config), set(facts_of(spark, config).columns)
    there -= {"status"} if "status" in there and not is_web(events) else set()
    events.createOrReplaceTempView("events")
    needs = {"clients": "client", "server_errors": "status", "mb": "bytes"}
    result, left_out = {}, {}
    if "time" in there:
        kept = {name: query for name, query in TRAFFIC.items() if needs.get(name, "time") in there}
        columns = ", ".join(f"{query} AS {name}" for name, query in kept.items())
        query = f"""
            SELECT date_format(date_trunc('hour', time), 'yyyy-MM-dd HH') AS hour, {columns}
            FROM events WHERE time IS NOT NULL GROUP BY ALL ORDER BY hour"""
        rows = [{"hours": number, **row.asDict()} for number, row in enumerate(spark.sql(query).collect())]
        run.table(
            "traffic", rows, x="hours", y=[name for name in ("lines", "clients", "server_errors") if name in kept]
        )
        result["hours"] = len(rows)
    else:
        left_out["traffic"] = "no line has a time"
    for name, (fields, query) in QUERIES.items():
        if set(fields) <= there:
            more = ", round(percentile_approx(request_time, 0.95), 3) AS p95_seconds" if "request_time" in there else ""
            run.table(name, [row.asDict() for row in spark.sql(query.replace("%s", more)).collect()])
        elif "status" in there and "request_time" in fields:
            left_out[name] = "no line has a request time"
    return result | {"left_out": left_out}

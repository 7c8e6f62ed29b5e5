"""What is in the logs: traffic, errors, who and what, how long. Plain Spark SQL."""

from ingest import good_events

WEB = {
    "traffic": """
        SELECT date_format(date_trunc('hour', time), 'MM-dd HH') AS hour, count(*) AS lines, count(DISTINCT client) AS clients,
               count_if(status >= 500) AS server_errors, round(sum(bytes) / 1e6, 1) AS mb
        FROM events GROUP BY ALL ORDER BY hour""",
    "status": "SELECT status, count(*) AS lines, round(100 * count(*) / sum(count(*)) OVER (), 2) AS percent FROM events GROUP BY status ORDER BY lines DESC",
    "busiest paths": """
        SELECT concat('/', split(path, '[/?]')[1]) AS section, count(*) AS lines, count_if(status >= 400) AS errors,
               round(percentile_approx(request_time, 0.95), 3) AS p95_seconds
        FROM events GROUP BY ALL ORDER BY lines DESC LIMIT 10""",
    "busiest clients": """
        SELECT client, count(*) AS lines, count_if(status >= 400) AS errors, count(DISTINCT path) AS paths
        FROM events GROUP BY client ORDER BY lines DESC LIMIT 10""",
    "request time": """
        SELECT array(50, 90, 95, 99)[place] AS percentile, round(value, 3) AS seconds
        FROM (SELECT posexplode(percentile_approx(request_time, array(0.5, 0.9, 0.95, 0.99))) AS (place, value) FROM events)""",
}

# Other logs have a message, and what else their format names.
TEXT = {
    "traffic": "SELECT date_format(date_trunc('hour', time), 'MM-dd HH') AS hour, count(*) AS lines FROM events GROUP BY ALL ORDER BY hour",
    "level": "SELECT level, count(*) AS lines FROM events GROUP BY level ORDER BY lines DESC LIMIT 10",
    "component": "SELECT component, count(*) AS lines FROM events GROUP BY component ORDER BY lines DESC LIMIT 10",
    "host": "SELECT host, count(*) AS lines FROM events GROUP BY host ORDER BY lines DESC LIMIT 10",
}


def explore(spark, config, run):
    """Leaves the tables in the report, traffic with a plot."""
    # Distributed: Spark plans each query into stages; between two of them rows with one key meet on one executor (a shuffle).
    events = good_events(spark, config)
    events.createOrReplaceTempView("events")
    queries = (
        WEB if "status" in events.columns else {k: v for k, v in TEXT.items() if k == "traffic" or k in events.columns}
    )
    for name, query in queries.items():
        rows = [row.asDict() for row in spark.sql(query).collect()]
        if name == "traffic":
            rows = [{"hours": number, **row} for number, row in enumerate(rows)]
            hours = len(rows)
            run.table(name, rows, x="hours", y=[key for key in ("lines", "clients", "server_errors") if key in rows[0]])
        else:
            run.table(name, rows)
    return {"hours": hours}

"""Free-text messages to templates: what varies (numbers, addresses, paths) becomes <*>, and
equal templates are one event.

Masking works on distinct messages only, and with native expressions. It is the fixed-rule part of what log parsers do
(Zhu et al. 2019, "Tools and Benchmarks for Automated Log Parsing" compares those that learn more from the data).
"""

from pyspark.sql import functions as F

from formats import window_start
from ingest import good_events, literal

# In this order: what comes first is part of nothing that comes later. <*> stands for what was there.
MASKS = [
    (r"(?i)\b(?:https?|ftp)://\S+", "<*>"),  # addresses of pages
    (r"\bblk_-?\d+", "<*>"),  # HDFS blocks
    (r"/?\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b", "<*>"),  # IPv4 addresses, with a port
    (r"(?:/[\w.@:+-]+){2,}/?", "<*>"),  # paths
    (r"\b0[xX][0-9a-fA-F]+\b", "<*>"),
    (r"\b[\w-]+(?:\.[\w-]+){2,}\b", "<*>"),  # host names
    (r"\b(?=[0-9a-fA-F]*\d)[0-9a-fA-F]{6,}\b", "<*>"),  # hexadecimal numbers
    (r"(?<=[=:\[( ,])[-+]?\d+(?:\.\d+)?(?=[\])\s,;:.]|$)", "<*>"),  # numbers that stand alone
    (
        r"(?<=\b(?:user|for|rhost|user=|rhost=)[ =]?)(?!invalid\b|user\b|illegal\b)"
        r"[\w.@-]+(?= from|\s*$| \[| by| user)",
        "<*>",
    ),  # names of users and hosts
    (r"\b(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) (?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\b", "<*>"),  # dates
    (r"\d+", "<*>"),  # digits inside words
    (r"<\*>(?:[\s,:.-]*<\*>)+", "<*>"),  # several in a row are one
]


def template_of(message):
    for pattern, replacement in MASKS:
        message = F.regexp_replace(message, pattern, replacement)
    return F.trim(message)


def templates(spark, config, run):
    """Writes <output_dir>/templates; returns how many there are."""
    events = good_events(spark, config)
    message = "message" if "message" in events.columns else "path"
    window = window_start(config.window_minutes).alias("window")
    # Distributed: counted before masking: messages repeat, and only the distinct ones are masked.
    counted = events.where(F.col(message).isNotNull()).groupBy(window, F.col(message).alias("message")).count()
    masked = counted.select("window", "message", "count", template_of(F.col("message")).alias("template"))
    per_window = masked.groupBy("template", "window").agg(
        F.sum("count").alias("lines"), F.min("message").alias("example")
    )
    per_window.write.mode("overwrite").parquet(f"{config.output_dir}/templates")
    found = (
        spark.read.parquet(literal(f"{config.output_dir}/templates"))
        .groupBy("template")
        .agg(F.sum("lines").alias("lines"), F.count("window").alias("windows"), F.min("example").alias("example"))
    )
    rows = [row.asDict() for row in found.orderBy(F.desc("lines"), "template").limit(25).collect()]
    run.table("templates", rows)
    return {"templates": found.count()}

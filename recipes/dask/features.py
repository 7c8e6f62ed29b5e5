"""Checked flights to features: sort by time, look back without looking ahead, join, encode.

Whether a flight arrives late is predicted at the moment of its scheduled departure (horizon=before_departure) or when
it has left (after_departure). A feature may use only what is known then: a delay counts from the moment the delayed
flight really left.
"""

from pathlib import Path

import dask.dataframe as dd
import numpy as np
import pandas as pd

from tables import parquet_files, place_of, read_table

LATE_MINUTES = 15  # arriving later than this counts as late
WINDOW = pd.Timedelta(hours=2)  # how far the recent delays look back
LONGEST = pd.Timedelta(hours=24)  # no departure delay is longer: ingest.py sees to it
SMOOTHING = 50.0  # flights that the overall share weighs in a target encoding
MOST_PARTITIONS = 500  # that flights are read as
NUM_FOLDS = 5  # parts of the training flights for target encoding
ENCODED = ["carrier", "dest", "tailnum"]  # encoded by their share of late flights
CATEGORIES = ["origin", "carrier"]  # also as they are: few values
WEATHER = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]
CALENDAR = ["time_sine", "time_cosine", "year_sine", "year_cosine", "hour", "weekday", "month", "weekend"]
RECENT = ["origin_delay_2h", "carrier_delay_2h", "origin_flights_2h", "carrier_flights_2h"]
PLANES = ["plane_age", "seats"]
AIRPORTS = ["dest_lat", "dest_lon", "dest_alt"]
SHARES = [f"{name}_late_share" for name in ENCODED]
NUMERIC = ["distance", *CALENDAR, *RECENT, *WEATHER, *PLANES, *AIRPORTS, *SHARES]


def features(config, days):
    """Writes the table features (Parquet, one file a partition, in time order); `days`: flights of each day.

    Returns the moment at which the test part begins, and the numbers of rows.
    """
    divisions, split = calendar_of(days, config.rows_per_partition, config.test_share)
    flights = read_folder(f"{place_of(config)}/flights")
    if flights.npartitions == 1:  # of a single one Dask forgets the divisions that set_index is given
        flights = flights.repartition(npartitions=2)
    # Distributed: rows travel to the partition that has their day (a shuffle); from here on partitions follow each
    # other in time.
    flights = flights.set_index("scheduled", divisions=divisions, shuffle_method="tasks")
    meta = recent_delays(flights._meta)
    # Distributed: each partition also gets the last rows of the one before it: flights that left in these two hours may
    # have been scheduled a day before.
    flights = flights.map_overlap(recent_delays, LONGEST + WINDOW, 0, meta=meta, align_dataframes=False)
    flights = flights.reset_index()
    # Distributed: the small tables have one partition, which goes to every worker; the flights stay where they are.
    flights = flights.merge(
        small(config, "weather", ["origin", "time_hour", *WEATHER]), on=["origin", "time_hour"], how="left"
    )
    flights = flights.merge(
        small(config, "planes", ["tailnum", "year", "seats"], {"year": "built"}), on="tailnum", how="left"
    )
    airports = small(
        config,
        "airports",
        ["faa", "lat", "lon", "alt"],
        {"faa": "dest", "lat": "dest_lat", "lon": "dest_lon", "alt": "dest_alt"},
    )
    flights = flights.merge(airports, on="dest", how="left")
    flights = flights.map_partitions(calendar_features, split)
    # Distributed: partial sums in each partition, added up in a tree; the result is small, and comes back here.
    prior, tables = encodings(*dd.compute(*late_counts(flights[flights["part"] == "train"])))
    columns = [
        "id",
        "scheduled",
        "part",
        "late",
        *CATEGORIES,
        *NUMERIC,
        *(["dep_delay"] if config.horizon == "after_departure" else []),
    ]
    flights = flights.map_partitions(encode, prior, tables)[columns]
    folder = f"{place_of(config)}/features"
    flights.to_parquet(folder, write_index=False, overwrite=True, name_function=lambda n: f"part-{n:05d}.parquet")
    table = read_folder(folder, ["part", "late"])
    known = table["late"].notnull()
    train, test, labelled, rows = dd.compute(
        *[((table["part"] == part) & known).sum() for part in ("train", "test")], known.sum(), table["part"].count()
    )
    return {
        "split": str(split),
        "rows": int(rows),
        "labelled": int(labelled),
        "train_rows": int(train),
        "test_rows": int(test),
    }


def read_folder(folder, columns=None):
    """The Parquet files of a folder as a Dask frame.

    It has a partition for each file, or for several where there are very many.

    Not by `dd.read_parquet`, which joins small files as it sees fit, another way for each choice of columns, and takes
    * and [ in the folder's name for a pattern.
    """
    files = parquet_files(folder)
    together = -(-len(files) // MOST_PARTITIONS)
    groups = [files[start : start + together] for start in range(0, len(files), together)]
    return dd.from_map(read_files, groups, columns=columns, meta=read_files(files[:1], columns).iloc[:0])


def read_files(paths, columns):
    return pd.concat([read_table(path, columns) for path in paths])


def small(config, name, columns, names=None):
    table = pd.read_parquet(Path(config.data_dir) / f"{name}.parquet", columns=columns)
    return dd.from_pandas(table.rename(columns=names or {}), npartitions=1)


def calendar_of(days, rows_per_partition, test_share):
    """(divisions: the days at which partitions begin, and the end; the day at which the test part begins)."""
    counts = pd.Series(days)
    counts.index = pd.to_datetime(counts.index)
    before = counts.cumsum() - counts
    starts = counts.index[(before // rows_per_partition).diff().fillna(1) > 0]
    split = before[before >= (1 - test_share) * counts.sum()]
    return [*starts, counts.index[-1] + pd.Timedelta(days=1)], (split.index[0] if len(split) else counts.index[-1])


def recent_delays(flights):
    """Adds for each flight what its airport, and its carrier, did in the two hours before its scheduled departure.

    That is: the mean departure delay (minutes) and the number of the flights that really left then. `flights`: indexed
    by scheduled departure, with all flights that may have left then.
    """
    flights = flights.sort_values("id", kind="stable").sort_index(kind="stable")
    added = {}
    for who in ("origin", "carrier"):
        delays, numbers = np.full(len(flights), np.nan), np.zeros(len(flights))
        for places in flights.groupby(who, sort=True).indices.values():
            group = flights.iloc[places]
            delay = group["dep_delay"].to_numpy()
            left = (group.index + pd.to_timedelta(group["dep_delay"], unit="min")).to_numpy()
            order = np.argsort(left[flown := ~np.isnan(delay)], kind="stable")
            moments = left[flown][order]
            # The sum over any stretch of time is the difference of two running sums. Whole minutes: the sums are exact.
            sums = np.concatenate([[0.0], np.cumsum(delay[flown][order])])
            now = group.index.to_numpy()
            first, last = np.searchsorted(moments, now - WINDOW.to_timedelta64()), np.searchsorted(moments, now)
            numbers[places] = last - first
            with np.errstate(invalid="ignore"):
                delays[places] = (sums[last] - sums[first]) / (last - first)
        added |= {f"{who}_delay_2h": delays, f"{who}_flights_2h": numbers}
    return flights.assign(**added)


def calendar_features(flights, split):
    """Adds what the calendar says, `late` and `part`.

    `late`: 1.0, 0.0, or missing for a flight that never arrived. `part`: train or test, by time.
    """
    moment = flights["scheduled"].dt
    hours, day = moment.hour + moment.minute / 60, moment.dayofyear
    return flights.assign(
        time_sine=np.sin(2 * np.pi * hours / 24),
        time_cosine=np.cos(2 * np.pi * hours / 24),
        year_sine=np.sin(2 * np.pi * day / 365.25),
        year_cosine=np.cos(2 * np.pi * day / 365.25),
        hour=moment.hour.astype("float64"),
        weekday=moment.dayofweek.astype("float64"),
        month=moment.month.astype("float64"),
        weekend=(moment.dayofweek >= 5).astype("float64"),
        plane_age=moment.year - flights["built"],
        late=(flights["arr_delay"] > LATE_MINUTES).astype("float64").where(flights["arr_delay"].notna()),
        part=pd.Series(np.where(flights["scheduled"] < split, "train", "test"), index=flights.index).astype("str"),
        fold=flights["id"] % NUM_FOLDS,
    )


def late_counts(train):
    """Late flights and flights, lazy.

    (for each value and fold, a frame: column, value, fold, sum, count; all late ones; all).
    """
    train = train[train["late"].notnull()]
    found = []
    for name in ENCODED:
        grouped = train.groupby([name, "fold"])["late"].agg(["sum", "count"]).reset_index()
        found.append(grouped.rename(columns={name: "value"}).assign(column=name))
    return dd.concat(found), train["late"].sum(), train["late"].count()


def encodings(counts, num_late, num_flights):
    """(share of late flights, {column: table of value and fold -> share}).

    A row of the training part is encoded without its own fold: its own label must not be in its features. Fold -1, all
    of them, is for the test part. Smoothed (Micci-Barreca 2001).
    """
    tables, prior = {}, num_late / num_flights if num_flights else np.nan
    for name, own in counts.groupby("column"):
        by_fold = own.pivot_table(index="value", columns="fold", values=["sum", "count"], fill_value=0.0)
        by_fold = by_fold.reindex(
            columns=pd.MultiIndex.from_product([["sum", "count"], range(NUM_FOLDS)]), fill_value=0.0
        )
        late, flights = by_fold["sum"], by_fold["count"]
        late, flights = (
            late.rsub(late.sum(axis=1), axis=0).assign(**{"-1": late.sum(axis=1)}),
            flights.rsub(flights.sum(axis=1), axis=0).assign(**{"-1": flights.sum(axis=1)}),
        )
        share = (late + SMOOTHING * prior) / (flights + SMOOTHING)
        share.columns = share.columns.astype("int64")
        tables[name] = share.stack()
    return prior, tables


def encode(flights, prior, tables):
    fold = flights["fold"].where(flights["part"] == "train", -1)
    for name in ENCODED:
        keys = pd.MultiIndex.from_arrays([flights[name], fold])
        share = tables[name].reindex(keys).fillna(prior).to_numpy() if name in tables else np.nan
        flights = flights.assign(**{f"{name}_late_share": share})
    return flights

"""The features once more, by plain pandas, one flight after the other.

It is slow and short, and features.py is checked against it.

Nothing of features.py is used. Each value is computed from the whole table, by asking which flights count.
"""

import math

import numpy as np
import pandas as pd


def features_of(flights, data_dir, ids, test_share=0.2):
    """Features of the flights with these ids, indexed by id. `flights`: all flights, as `ingest` has written them."""
    weather, planes, airports = (
        pd.read_parquet(f"{data_dir}/{name}.parquet") for name in ("weather", "planes", "airports")
    )
    per_day = flights.groupby(flights["scheduled"].dt.normalize()).size().sort_index()
    earlier = 0
    for day, count in per_day.items():
        if earlier >= (1 - test_share) * len(flights):
            split = day
            break
        earlier += count
    left = flights["scheduled"] + pd.to_timedelta(flights["dep_delay"], unit="min")
    late = (flights["arr_delay"] > 15).astype(float).where(flights["arr_delay"].notna())
    training = (flights["scheduled"] < split) & late.notna()
    prior = late[training].mean()
    rows = []
    for number in ids:
        place = flights.index[flights["id"] == number][0]
        own, now = flights.loc[place], flights.at[place, "scheduled"]
        row = {
            "part": "train" if now < split else "test",
            "late": late[place],
            "origin": own["origin"],
            "carrier": own["carrier"],
        }
        hours, day = now.hour + now.minute / 60, now.dayofyear
        row |= {
            "distance": own["distance"],
            "hour": float(now.hour),
            "weekday": float(now.weekday()),
            "month": float(now.month),
            "weekend": float(now.weekday() > 4),
            "time_sine": math.sin(hours / 24 * math.tau),
            "time_cosine": math.cos(hours / 24 * math.tau),
            "year_sine": math.sin(day / 365.25 * math.tau),
            "year_cosine": math.cos(day / 365.25 * math.tau),
        }
        for who in ("origin", "carrier"):
            recent = flights[(flights[who] == own[who]) & (left < now) & (left >= now - pd.Timedelta(hours=2))]
            row |= {f"{who}_delay_2h": recent["dep_delay"].mean(), f"{who}_flights_2h": float(len(recent))}
        there = weather[(weather["origin"] == own["origin"]) & (weather["time_hour"] == own["time_hour"])]
        for name in ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"):
            row[name] = float(there[name].iloc[0]) if len(there) else np.nan
        plane = planes[planes["tailnum"] == own["tailnum"]]
        row["plane_age"] = now.year - plane["year"].iloc[0] if len(plane) else np.nan
        row["seats"] = float(plane["seats"].iloc[0]) if len(plane) else np.nan
        airport = airports[airports["faa"] == own["dest"]]
        for name in ("lat", "lon", "alt"):
            row[f"dest_{name}"] = float(airport[name].iloc[0]) if len(airport) else np.nan
        for name in ("carrier", "dest", "tailnum"):
            others = training & (flights[name] == own[name])
            if now < split:
                others &= flights["id"] % 5 != own["id"] % 5  # without the fold that has this flight's own label
            row[f"{name}_late_share"] = (late[others].sum() + 50 * prior) / (others.sum() + 50)
        rows.append(row)
    return pd.DataFrame(rows, index=ids)

"""Measures what it costs a run to send its metrics while it goes: make bench RECIPE=tracking

Runs of the recipe pytorch, in turns: without a tracker, without one again (what the machine itself varies by), and with
TensorBoard and Prometheus. The first sixth of the steps is left out.
"""

import os
import statistics
import tempfile

from benchmarks.measure import print_table, run_recipe, say, steady, times_of_steps

BATCH = 256
SINKS = ["tracking=several", "tracking.sinks=[tensorboard,prometheus]", "tracking.prometheus.port=null"]
BEST = {"off": 0.99, "on": 0.95}


def main() -> None:
    repeats, steps = int(os.environ.get("REPEATS", "5")), int(os.environ.get("STEPS", "60"))
    words = [
        "scale=bench",
        "data=images",
        f"scale.max_steps={steps}",
        f"recipe.global_batch_size={BATCH}",
        f"recipe.base_batch_size={BATCH}",
        "recipe.width=32",
    ]
    ways = {"none": [], "off": [], "on": SINKS}
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as root:
        for number in range(repeats):
            say(f"repetition {number + 1} of {repeats}: {', '.join(ways)}")
            order = list(ways) if number % 2 == 0 else list(reversed(ways))  # what comes first may be slower
            for way in order:
                content = run_recipe("pytorch", 2, *words, *ways[way], root=root)
                speeds[way].append(steady(times_of_steps(content), BATCH))
    rows, bounds = [f"| no tracker | {statistics.median(speeds['none']):,.0f} samples/s | |"], {}
    for way, says in (("off", "no tracker, once more"), ("on", "TensorBoard and Prometheus")):
        ratios = [one / base for one, base in zip(speeds[way], speeds["none"], strict=True)]
        ratio = statistics.median(ratios)
        rows.append(
            f"| {says} | {statistics.median(speeds[way]):,.0f} samples/s | "
            f"{way} / none = {ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f}) |"
        )
        bounds[f"{way} / none >= {BEST[way]}"] = ratio >= BEST[way]
    print_table("tracking", content["machine"], rows, bounds)


if __name__ == "__main__":
    main()

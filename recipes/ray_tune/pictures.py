"""The comparison of the searches, and how population based training changed its settings on the way."""

from pathlib import Path

COLOURS = {"grid": "#6b7280", "random": "#2563a8", "bayesian": "#4f9d69", "asha": "#d97706", "pbt": "#a83279"}


def draw_comparison(config, found):
    """<output_dir>/pictures/best so far.svg: over epochs of training, and over seconds; a line for each seed."""
    pyplot = plotting()
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="constrained")
    for content in found:
        epochs, seconds, best = zip(*content["history"], strict=True)
        label = content["search"] if content["seed"] == 0 else None
        for axis, x in zip(axes, (epochs, seconds), strict=True):
            axis.step(x, best, where="post", color=COLOURS[content["search"]], label=label, linewidth=1.5, alpha=0.8)
    axes[0].set(xlabel="epochs of training, over all trials", ylabel="best validation accuracy so far")
    axes[1].set(xlabel="seconds")
    # What is of interest is at the top.
    lowest = min(content["history"][len(content["history"]) // 4][2] for content in found)
    axes[0].set_ylim(bottom=max(0.0, lowest - 0.02), top=1.002)
    axes[0].legend(fontsize=8, loc="lower right")
    save(config, figure, "best so far")


def draw_schedule(config, content):
    """<output_dir>/pictures/population based training.svg: each trial's settings and accuracy over its epochs.

    A jump is a take-over.
    """
    pyplot = plotting()
    figure, axes = pyplot.subplots(1, 4, figsize=(12, 3), layout="constrained")
    best = max(content["trials"], key=lambda trial: max(result["accuracy"] for result in trial["results"]))
    for trial in content["trials"]:
        look = {"color": "#6b7280", "linewidth": 1, "alpha": 0.6}
        look = {"color": "#a83279", "linewidth": 2, "zorder": 3} if trial is best else look
        epochs = [result["epoch"] for result in trial["results"]]
        axes[0].plot(epochs, [result["accuracy"] for result in trial["results"]], **look)
        for axis, key in zip(axes[1:], ("learning_rate", "momentum", "weight_decay"), strict=True):
            axis.step(epochs, [result["settings"][key] for result in trial["results"]], where="mid", **look)
    for axis, title in zip(axes, ("validation accuracy", "learning rate", "momentum", "weight decay"), strict=True):
        axis.set(title=title, xlabel="epoch of the trial")
    axes[1].set_yscale("log")
    axes[3].set_yscale("log")
    save(config, figure, "population based training")


def plotting():
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    return pyplot


def save(config, figure, name):
    folder = Path(config.output_dir) / "pictures"
    folder.mkdir(exist_ok=True)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    plotting().close(figure)

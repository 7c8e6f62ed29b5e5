"""Pictures: learning curves with their spread over the seeds, and an episode of the final policy."""

import os
from pathlib import Path

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.utils.spaces.space_utils import unsquash_action

from environments import make_environment

MOST_FRAMES = 150


def draw_curves(config, results, baselines):
    """Draws <output_dir>/pictures/learning curve.svg.

    It shows the mean over the seeds, with its 95 % confidence interval where there are several.
    """
    import matplotlib
    from scipy import stats

    matplotlib.use("svg")
    from matplotlib import pyplot

    curves = [[point for point in result["curve"] if point[1] is not None] for result in results]
    curves = [curve for curve in curves if curve]
    if not curves:
        return  # not one episode has ended
    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    for number, curve in enumerate(curves):
        axes.plot(
            *zip(*curve, strict=True),
            color="#2563a8",
            alpha=0.35,
            linewidth=1,
            label="one seed" if number == 0 else None,
        )
    # A seed that has reached its goal stays there: its last value stands for what would have followed.
    steps = sorted({step for curve in curves for step, _ in curve})
    values = np.array([np.interp(steps, *zip(*curve, strict=True)) for curve in curves])
    axes.plot(steps, values.mean(0), color="#2563a8", linewidth=2, label=f"mean of {len(curves)}")
    if len(curves) > 1:
        half = stats.t.ppf(0.975, len(curves) - 1) * stats.sem(values)  # Student's t: the seeds are few
        axes.fill_between(
            steps, values.mean(0) - half, values.mean(0) + half, color="#2563a8", alpha=0.15, label="95 % confidence"
        )
    for (name, value), colour in zip(baselines.items(), ("#6b7280", "#d97706"), strict=False):
        axes.axhline(value, color=colour, linestyle="--", linewidth=1, label=name)
    axes.set(
        xlabel="environment steps",
        ylabel="mean return, last 100 episodes",
        title=f"{config.algorithm} on {config.environment}",
    )
    axes.legend(fontsize=8)
    folder = Path(config.output_dir) / "pictures"
    folder.mkdir(exist_ok=True)
    figure.savefig(folder / "learning curve.svg", metadata={"Date": None})
    pyplot.close(figure)


def film(algorithm, config, number):
    """<output_dir>/pictures/episode.gif: the first seed's final policy, without exploration.

    Not for environments that draw no pictures.
    """
    if number > 0:
        return
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")  # Gymnasium draws with pygame, which looks for a sound card too
    try:
        environment = make_environment(config.environment, render_mode="rgb_array")
        observation, _ = environment.reset(seed=config.seed)
        frames, total, over = [environment.render()], 0.0, False
        module = algorithm.get_module()
        while not over and len(frames) < 2000:
            action = unsquash_action(best_action(module, observation), environment.action_space)
            observation, reward, ended, cut, _ = environment.step(action)
            total, over = total + float(reward), ended or cut
            frames.append(environment.render())
        environment.close()
        path = Path(config.output_dir) / "pictures" / f"episode, return {total:.0f}.gif"
        write_gif(frames[:: -(-len(frames) // MOST_FRAMES)], path)
    except Exception as error:
        # Whatever an environment's own drawing needs and does not find: the training is worth more than its picture.
        print(f"no picture of an episode: {type(error).__name__}: {error}", flush=True)
        return


def best_action(module, observation):
    """The likeliest action; a continuous one is in [-1, 1], as the policy has learnt it."""
    batch = {Columns.OBS: torch.from_numpy(np.asarray(observation, np.float32))[None]}
    with torch.no_grad():
        found = module.forward_inference(batch)
    if Columns.ACTIONS in found:
        return int(found[Columns.ACTIONS][0])
    return (
        module.get_inference_action_dist_cls()
        .from_logits(found[Columns.ACTION_DIST_INPUTS])
        .to_deterministic()
        .sample()[0]
        .numpy()
    )


def write_gif(frames, path):
    from PIL import Image

    path.parent.mkdir(exist_ok=True)
    pictures = [Image.fromarray(frame).convert("P", palette=Image.Palette.ADAPTIVE, colors=32) for frame in frames]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=60, loop=0, optimize=True)

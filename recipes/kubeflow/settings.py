"""Which settings make no sense.

As a program it checks a config without loading kfp: python settings.py CONFIG.yaml NUM_WORKERS
"""

import re
import sys

from runrecord import load_config

NON_ROOT = 1000  # the user of every container
TRAINERS = ["trainjob", "pytorchjob", "tfjob"]
AT_LEAST_ONE = ["num_workers", "num_epochs", "trial_epochs", "global_batch_size"]
NOT_NEGATIVE = ["num_retries", "max_restarts", "num_failures", "serve_port"]


def check_settings(config):
    """Returns the config, or raises SystemExit with the value, what was expected and what to do."""
    for key in AT_LEAST_ONE + NOT_NEGATIVE:
        least = 1 if key in AT_LEAST_ONE else 0
        if getattr(config, key) < least:
            raise SystemExit(f"{key}={getattr(config, key)}: expected a whole number of at least {least}")
    if config.width < 8 or config.width % 8:
        raise SystemExit(f"width={config.width}: expected a multiple of 8 (the network normalises in 8 groups)")
    try:
        config.learning_rates = [float(rate) for rate in config.learning_rates]  # YAML reads 1e-6 as a text
    except (TypeError, ValueError):
        raise SystemExit(f"learning_rates={config.learning_rates}: expected numbers") from None
    if not config.learning_rates or min(config.learning_rates) <= 0:
        raise SystemExit(f"learning_rates={config.learning_rates}: expected at least one number, all above 0")
    if len(set(config.learning_rates)) < len(config.learning_rates):
        raise SystemExit(f"learning_rates={config.learning_rates}: one of them is there twice")
    if not 0 <= config.min_accuracy <= 1:
        raise SystemExit(f"min_accuracy={config.min_accuracy}: expected a share between 0 and 1")
    if config.serve_timeout_seconds <= 0:
        raise SystemExit(f"serve_timeout_seconds={config.serve_timeout_seconds}: expected more than 0")
    if config.trainer not in TRAINERS:
        raise SystemExit(f"trainer={config.trainer!r} is unknown; expected one of: {', '.join(TRAINERS)}")
    for key in ("model_name", "namespace", "claim", "service_account"):
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", getattr(config, key)):
            raise SystemExit(
                f"{key}={getattr(config, key)!r}: Kubernetes takes small letters, digits and dashes, and here at most "
                "40 of them"
            )
    if config.use_gpu and not config.kubeflow_host:
        raise SystemExit(
            "use_gpu=true is for pods with GPUs (cluster=kubernetes): the steps on this machine train on its CPU"
        )
    if config.kubeflow_host and not re.search(r"@sha256:[0-9a-f]{64}$|:[\w][\w.-]*$", config.image):
        raise SystemExit(f"image={config.image}: expected a tag or a digest, so that every pod runs the same program")
    if config.kubeflow_host and config.image.startswith("registry.example/"):
        raise SystemExit(
            f"image={config.image} is an example: build this folder's Dockerfile, push the image, and say "
            "recipe.image=YOUR/IMAGE:TAG"
        )
    return config


if __name__ == "__main__":
    *config_words, num_workers = sys.argv[1:]
    check_settings(load_config([*config_words, f"num_workers={num_workers}"]))

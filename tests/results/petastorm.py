"""The network of the last checkpoint on the test rows: pyarrow reads the store, NumPy does the rest."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import torch
from sklearn.metrics import roc_auc_score

from storage import Checkpoints

TOLERANCE = 1e-5  # logits of float32 order a few nearly equal rows otherwise
EXCEPT = {}
BREAK = (
    "main.py",
    'for chunk in chunks_of(f"{config.data_dir}/test"',
    'for chunk in chunks_of(f"{config.data_dir}/train"',
)
BROKEN = ["eval/auc"]
SMALLEST = ["scale=smoke", "recipe.num_epochs=1"]
MODES = [
    (["digits"], ["recipe.num_epochs=6"]),
    (["tensorflow"], ["data.parameters.keep_every=5", "recipe.num_epochs=2"]),
]


def recomputed(run, dataset):
    manifest = json.loads((dataset / "manifest.json").read_text())
    rows = pq.ParquetDataset(sorted(map(str, (dataset / "test").glob("*.parquet")))).read().to_pandas()
    assert len(set(rows["id"])) == len(rows) == manifest["rows"]["test"]
    layers = layers_of(Checkpoints(run / "checkpoints", run).last())
    if manifest["task"] == "digits":
        # A tensor in a cell is a file of NumPy's.
        pictures = np.stack([np.load(io.BytesIO(cell)).ravel() for cell in rows["image"]])
        return {"eval/accuracy": float(np.mean(passed_through(layers, pictures).argmax(1) == rows["label"]))}
    x = (rows[manifest["features"]].to_numpy(np.float64) - manifest["mean"]) / manifest["std"]
    return {"eval/auc": float(roc_auc_score(rows["late"], passed_through(layers, x)[:, 0]))}


def layers_of(folder):
    """[matrix (in, out), shift (out,), matrix, ...] of the last checkpoint, PyTorch's or TensorFlow's."""
    if (folder / "state.npz").exists():
        with np.load(folder / "state.npz") as content:
            return [content[f"arr_{number}"] for number in range(6)]
    state = torch.load(folder / "state.pt", weights_only=True, map_location="cpu")["network"]
    return [tensor.numpy().T for name, tensor in state.items() if name.endswith(("weight", "bias"))]


def passed_through(layers, x):
    """The last layer's sums, float64 (n, out)."""
    for number, (matrix, shift) in enumerate(zip(layers[::2], layers[1::2], strict=True)):
        x = (np.maximum(x, 0) if number else x.astype(np.float64)) @ matrix + shift
    return x

"""The network of the last checkpoint on the test rows: pyarrow reads the store, NumPy does the rest."""

import json

import numpy as np
import pyarrow.parquet as pq
import torch
from sklearn.metrics import roc_auc_score

TOLERANCE = 1e-5  # logits of float32 order a few nearly equal rows otherwise
EXCEPT = {}
BREAK = (
    "main.py",
    'for chunk in chunks_of(f"{config.data_dir}/test"',
    'for chunk in chunks_of(f"{config.data_dir}/train"',
)
BROKEN = ["eval/auc"]
SMALLEST = ["scale=smoke", "recipe.num_epochs=1"]


def recomputed(run, dataset):
    manifest = json.loads((dataset / "manifest.json").read_text())
    rows = pq.ParquetDataset(sorted(map(str, (dataset / "test").glob("*.parquet")))).read().to_pandas()
    assert len(set(rows["id"])) == len(rows) == manifest["rows"]["test"]
    state = torch.load(run / "checkpoints/last.pt", weights_only=True, map_location="cpu")["network"]
    mean, std, *layers = [tensor.double().numpy() for tensor in state.values()]
    assert np.allclose(mean, manifest["mean"]) and np.allclose(std, manifest["std"])
    x = (rows[manifest["features"]].to_numpy(np.float64) - mean) / std
    for number, (matrix, shift) in enumerate(zip(layers[::2], layers[1::2], strict=True)):
        x = (np.maximum(x, 0) if number else x) @ matrix.T + shift
    return {"eval/auc": float(roc_auc_score(rows["late"], x[:, 0]))}

"""Measures the recipe against a bare TensorFlow script: make bench RECIPE=tensorflow

Prints the tables of the recipe's README.
"""

import tempfile

from benchmarks.measure import print_table, run_bare, run_recipe, say, steady, steady_table, times_of_steps
from cookbook import ROOT

HERE, PYTHON = ROOT / "recipes/tensorflow", ROOT / ".venvs/tensorflow/bin/python"
REPEATS, ROWS, BATCH, STEPS, WIDTH = 5, 16384, 256, 18, 32

BARE = """
import json, os, sys, time
os.environ.update(TF_USE_LEGACY_KERAS="1", TF_CPP_MIN_LOG_LEVEL="2")
import numpy as np, tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(1); tf.config.threading.set_inter_op_parallelism_threads(1)
kinds = tf.distribute.experimental
options = kinds.CommunicationOptions(implementation=kinds.CommunicationImplementation.AUTO)
strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
sys.path.insert(0, sys.argv[1])
from model import build
folder, batch, steps = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
images, labels = (np.load(f"{folder}/train_{name}.npy") for name in ("images", "labels"))
order = np.random.default_rng(0).permutation(len(labels))[: batch * steps]
data = tf.data.Dataset.from_tensor_slices((images[order], labels[order])).batch(batch)
data = data.map(lambda x, y: (tf.cast(x, tf.float32) / 255, y)).prefetch(2)
with strategy.scope():
    model = build(images.shape[1:], 10, int(sys.argv[5]))
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf.keras.optimizers.SGD(0.03, 0.9, nesterov=True), loss)
times = []
class Clock(tf.keras.callbacks.Callback):
    def on_train_batch_begin(self, step, logs=None):
        times.append(time.time())
model.fit(data, epochs=1, verbose=0, callbacks=[Clock()])
if json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 0:
    print("RESULT", json.dumps(times), flush=True)
"""


def main():
    words = [
        "scale=bench",
        "data=images",
        f"scale.max_steps={STEPS}",
        f"recipe.global_batch_size={BATCH}",
        f"recipe.base_batch_size={BATCH}",
        f"recipe.width={WIDTH}",
    ]
    launcher, ours, bare, one = [PYTHON, "-m", "tfrun", "--num-workers", 2], [], [], []
    with tempfile.TemporaryDirectory() as root:
        for number in range(REPEATS):
            say(f"repetition {number + 1} of {REPEATS}: recipe, bare script, one worker")
            content = run_recipe("tensorflow", 2, *words, root=root)
            ours.append(steady(times_of_steps(content), BATCH))
            arguments = [HERE, content["dataset"]["folder"], BATCH, STEPS, WIDTH]
            bare.append(steady(run_bare(BARE, launcher, arguments), BATCH))
            one.append(steady(times_of_steps(run_recipe("tensorflow", 1, *words, root=root)), BATCH))
        rows, bounds = steady_table("TensorFlow", ours, bare, one, f"{ROWS:,} images 32x32x3, global batch {BATCH}")
    print_table("tensorflow", content["machine"], rows, bounds)


if __name__ == "__main__":
    main()

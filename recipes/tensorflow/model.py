"""A small residual network, its training step, and the Keras model that `fit` trains with that step.

Group normalisation instead of batch normalisation: it looks at one sample at a time, so the result does not
depend on how a batch is divided among the replicas (Wu and He 2018, "Group Normalization"), and one worker and
many can be compared.
"""

import math

from runtime import tf

NUM_GROUPS = 8


def build(image_shape, num_classes, width, kind=tf.keras.Model):
    """A Keras model of class `kind`.

    It takes images float32 (batch, height, width, channels) to logits float32 (batch, num_classes).

    Layout: 3x3 stem, residual block, 3x3 convolution of stride 2, residual block, mean over the picture, linear layer.
    """
    layers = tf.keras.layers

    def convolution(x, features, strides=1):
        # One pixel on each side, as PyTorch pads; "same" would pad on the right only when the stride is 2.
        x = layers.Conv2D(features, 3, strides, use_bias=False)(layers.ZeroPadding2D(1)(x))
        return layers.GroupNormalization(NUM_GROUPS, epsilon=1e-5)(x)

    def residual(x, features):
        inner = convolution(layers.ReLU()(convolution(x, features)), features)
        return layers.ReLU()(layers.Add()([x, inner]))

    inputs = tf.keras.Input(image_shape)
    x = residual(layers.ReLU()(convolution(inputs, width)), width)
    x = residual(layers.ReLU()(convolution(x, 2 * width, strides=2)), 2 * width)
    # float32 also under a bfloat16 policy: a softmax of rounded logits loses too much.
    return kind(inputs, layers.Dense(num_classes, dtype="float32")(layers.GlobalAveragePooling2D()(x)))


def train_step(model, optimizer, batch):
    """One step on one replica's share; returns the loss of each row, float32 (n,). Every strategy runs this function.

    Static shapes and no Python in it: XLA compiles it as it is.
    """
    with tf.GradientTape() as tape:
        logits = model(batch["image"], training=True)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits)
        # Distributed: the optimizer adds up the gradients of all replicas. A row weighs 1 / rows of the whole batch, so
        # the sum is the gradient of the batch's mean, however unequal the shares are.
        loss = tf.reduce_sum(losses * batch["weight"])
    # Distributed: `minimize` exchanges the gradients (all-reduce) before it applies them.
    optimizer.minimize(loss, model.trainable_variables, tape=tape)
    return losses


class Classifier(tf.keras.Model):
    """A model that `fit` trains with `train_step`, and that reports which rows it takes."""

    # (epoch, step, row numbers) -> the worker's wish (see preempt.py); None under XLA, where no Python can be called.
    record_rows = None

    def compile(self, **options):
        super().compile(**options)
        # Distributed: each replica keeps its own sums, which are added up when the metric is read: exact means
        # over all rows.
        self.loss_per_row, self.accuracy = tf.keras.metrics.Mean("loss"), tf.keras.metrics.Mean("accuracy")
        self.wishes = tf.keras.metrics.Sum("wishes")
        # Distributed: Keras adds up what the workers' steps return, for the callbacks after each batch. But a metric's
        # result is that of all workers already: any one of them will do.
        self.distribute_reduction_method = "first"

    @property
    def metrics(self):
        # Both steps return all of them: of any other dictionary Keras adds up the replicas' values, though
        # each is the total.
        return [self.loss_per_row, self.accuracy, self.wishes]

    def train_step(self, batch):
        before = []
        if self.record_rows:
            # Distributed: the rows as they arrive on this replica, written down before the gradients are exchanged.
            before = [tf.numpy_function(self.record_rows, [batch["epoch"], batch["step"], batch["row"]], tf.int64)]
        with tf.control_dependencies(before):
            losses = train_step(self, self.optimizer, batch)
        self.loss_per_row.update_state(losses, sample_weight=tf.cast(batch["row"] >= 0, tf.float32))
        if before:
            self.wishes.update_state(before[0])
        return {metric.name: metric.result() for metric in self.metrics}

    def test_step(self, batch):
        right = tf.argmax(self(batch["image"], training=False), 1) == batch["label"]
        self.accuracy.update_state(tf.cast(right, tf.float32), sample_weight=tf.cast(batch["row"] >= 0, tf.float32))
        return {metric.name: metric.result() for metric in self.metrics}


class WarmupThenCosine(tf.keras.optimizers.schedules.LearningRateSchedule):
    """`settings.learning_rate_at` as a function of the optimizer's step counter: it needs only that to resume."""

    def __init__(self, config, steps_per_epoch):
        self.peak = config.learning_rate * config.global_batch_size / config.base_batch_size
        self.warmup, self.num_epochs, self.steps_per_epoch = config.warmup_epochs, config.num_epochs, steps_per_epoch

    def __call__(self, step):
        epoch = tf.cast(step, tf.float32) / self.steps_per_epoch
        share = (epoch - self.warmup) / max(self.num_epochs - self.warmup, 1e-9)
        falling = self.peak * (1 + tf.cos(math.pi * tf.minimum(share, 1.0))) / 2
        return tf.where(epoch < self.warmup, self.peak * epoch / max(self.warmup, 1e-9), falling)

    def get_config(self):
        return {}


def make_optimizer(config, rate, clip_norm=None):
    """SGD with Nesterov momentum.

    `rate` is a number or a schedule. `clip_norm`: longer gradients are shortened to it.
    """
    return tf.keras.optimizers.SGD(rate, config.momentum, nesterov=config.momentum > 0, global_clipnorm=clip_norm)

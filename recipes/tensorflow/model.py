"""A small residual network, for square images of 8 pixels and up.

Group normalisation instead of batch normalisation: it looks at one sample at a time, so the result does not depend on
how a batch is divided among the workers (Wu and He 2018, "Group Normalization"), and one worker and many can be compared.
Layout: 3x3 stem, residual block, 3x3 convolution of stride 2, residual block, mean over the picture, linear layer.
"""

from tf_keras import Input, Model, layers

NUM_GROUPS = 8


def network(image_shape, num_classes, width):
    """A Keras model: images float32 (batch, height, width, channels) to logits (batch, num_classes)."""

    def convolution(x, features, strides=1):
        # PyTorch pads one pixel on each side; "same" would pad on the right only when the stride is 2.
        x = layers.Conv2D(features, 3, strides, use_bias=False)(layers.ZeroPadding2D(1)(x))
        return layers.GroupNormalization(NUM_GROUPS, epsilon=1e-5)(x)

    def residual(x, features):
        inner = convolution(layers.ReLU()(convolution(x, features)), features)
        return layers.ReLU()(layers.Add()([x, inner]))

    inputs = Input(image_shape)
    x = residual(layers.ReLU()(convolution(inputs, width)), width)
    x = residual(layers.ReLU()(convolution(x, 2 * width, strides=2)), 2 * width)
    return Model(inputs, layers.Dense(num_classes)(layers.GlobalAveragePooling2D()(x)))

"""model.py's network in Keras."""

NUM_GROUPS = 8


def build(keras, image_shape, num_classes, width):
    """model.py's network in Keras: images float32 (batch, height, width, channels) to logits (batch, num_classes)."""
    layers = keras.layers

    def convolution(x, features, strides=1):
        # One pixel on each side, as PyTorch pads.
        x = layers.Conv2D(features, 3, strides, use_bias=False)(layers.ZeroPadding2D(1)(x))
        return layers.GroupNormalization(NUM_GROUPS, epsilon=1e-5)(x)

    def residual(x, features):
        inner = convolution(layers.ReLU()(convolution(x, features)), features)
        return layers.ReLU()(layers.Add()([x, inner]))

    inputs = keras.Input(image_shape)
    x = residual(layers.ReLU()(convolution(inputs, width)), width)
    x = residual(layers.ReLU()(convolution(x, 2 * width, strides=2)), 2 * width)
    return keras.Model(inputs, layers.Dense(num_classes)(layers.GlobalAveragePooling2D()(x)))

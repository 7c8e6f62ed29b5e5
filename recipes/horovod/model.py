"""A small residual network, the same shape in PyTorch and TensorFlow, for square images of 8 pixels and up.

Group normalisation instead of batch normalisation: it looks at one sample at a time, so the result does not
depend on how a batch is divided among the workers (Wu and He 2018, "Group Normalization"), and one worker and
many can be compared.
Layout: 3x3 stem, residual block, 3x3 convolution of stride 2, residual block, mean over the picture, linear layer.
"""

NUM_GROUPS = 8


def torch_network(num_channels, num_classes, width):
    """A torch module: images float32 (batch, channels, height, width) to logits (batch, num_classes)."""
    from torch import nn

    class Residual(nn.Module):
        def __init__(self, features):
            super().__init__()
            self.inner = nn.Sequential(
                nn.Conv2d(features, features, 3, padding=1, bias=False),
                nn.GroupNorm(NUM_GROUPS, features),
                nn.ReLU(),
                nn.Conv2d(features, features, 3, padding=1, bias=False),
                nn.GroupNorm(NUM_GROUPS, features),
            )

        def forward(self, x):
            return nn.functional.relu(x + self.inner(x))

    return nn.Sequential(
        nn.Conv2d(num_channels, width, 3, padding=1, bias=False),
        nn.GroupNorm(NUM_GROUPS, width),
        nn.ReLU(),
        Residual(width),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
        nn.GroupNorm(NUM_GROUPS, 2 * width),
        nn.ReLU(),
        Residual(2 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, num_classes),
    )


def tensorflow_network(image_shape, num_classes, width):
    """A Keras model: images float32 (batch, height, width, channels) to logits (batch, num_classes)."""
    from keras import Input, Model, layers

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

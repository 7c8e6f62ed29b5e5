"""A small residual network, for square images of 8 pixels and up.

Group normalisation instead of batch normalisation: it looks at one sample at a time, so the result does not
depend on how a batch is divided among the workers (Wu and He 2018, "Group Normalization"), and one worker and
many can be compared.
Layout: 3x3 stem, residual block, 3x3 convolution of stride 2, residual block, mean over the picture, linear layer.
"""

from torch import nn

NUM_GROUPS = 8


def torch_network(num_channels, num_classes, width):
    """A module: images float32 (batch, channels, height, width) to logits (batch, num_classes)."""

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

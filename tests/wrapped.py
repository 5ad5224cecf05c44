"""A network whose outputs are wrapped, as other people's networks do, for the tests of what takes any network."""

from torch import nn


class Wrapped(nn.Module):
    def __init__(self, model, wrap):
        super().__init__()
        self.model, self.wrap = model, wrap

    def forward(self, images):
        return self.wrap(self.model(images))

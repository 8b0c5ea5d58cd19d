"""Activations much larger than the weights; the last line is the largest memory that the process held, in MiB."""

import resource

import torch
from torch import nn


class Widening(nn.Module):
    def __init__(self):
        super().__init__()
        self.widen, self.narrow = nn.Linear(16, 512), nn.Linear(512, 1)

    def forward(self, x):
        return self.narrow(torch.tanh(torch.relu(self.widen(x)).transpose(0, 1).contiguous().transpose(0, 1)))


def train():
    model = Widening()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(3):
        inputs = torch.randn(30_000, 16)
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()


torch.manual_seed(0)
train()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)

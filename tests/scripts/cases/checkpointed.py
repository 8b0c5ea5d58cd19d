"""Activation checkpointing, reentrant and not; modules that return tuples and dicts."""

import hashlib

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), nn.Sigmoid(), nn.Dropout(0.1))

    def forward(self, x):
        return {"value": x + torch.tanh(self.inner(x)), "extra": (x, [x.sum()])}


class Pair(nn.Module):
    """A leaf module that returns a nest."""

    def forward(self, x):
        return [{"name": "pair", "first": 2 * x}, (x, None)]


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.plain, self.kept, self.entered = Block(16), Block(16), Block(16)
        self.pair = Pair()
        self.stack = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.GELU())
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.plain(self.first(x))["value"]
        x = checkpoint(self.kept, x, use_reentrant=False)["value"]
        x = checkpoint(lambda x: self.entered(x)["value"], x, use_reentrant=True)
        x = self.pair(x)[0]["first"]
        x = checkpoint_sequential(self.stack, 2, x, use_reentrant=False)
        return {"logits": self.head(x), "features": x}


torch.manual_seed(0)
inputs, labels = torch.randn(24, 8), torch.randint(0, 4, (24,))
model = Network()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
for step in range(5):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(inputs)["logits"], labels)
    loss.backward()
    optimizer.step()
    print(step, loss.item())
digest = hashlib.sha256()
for value in model.state_dict().values():
    digest.update(value.numpy().tobytes())
print(digest.hexdigest(), torch.rand(1).item())

"""Weight norm, spectral norm (a power iteration in each forward pass) and lazy modules."""

import hashlib

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm, weight_norm


class Positive(nn.Module):
    """Keeps a weight positive, and counts how often it is asked for."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, weight):
        self.calls += 1
        return F.softplus(weight)


torch.manual_seed(0)
inputs, labels = torch.randn(24, 3, 8), torch.randint(0, 4, (24,))
positive = Positive()
class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(6, 6)
        spectral_norm(self.cell, "weight_hh")

    def forward(self, x):
        hidden = None
        for step in range(x.shape[2]):
            hidden = self.cell(x[:, :, step], hidden)
        return hidden[0]


model = nn.Sequential(
    weight_norm(nn.Conv1d(3, 6, 3)),
    nn.ReLU(),
    nn.LazyBatchNorm1d(),
    spectral_norm(nn.Conv1d(6, 6, 3)),
    Recurrent(),
    nn.LazyLinear(12),
    nn.Tanh(),
    nn.LayerNorm(12),
    nn.Linear(12, 4),
)
parametrize.register_parametrization(model[7], "weight", positive)
model(inputs)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for step in range(4):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(inputs), labels)
    loss.backward()
    optimizer.step()
    print(step, loss.item(), positive.calls)
digest = hashlib.sha256()
for value in model.state_dict().values():
    digest.update(value.numpy().tobytes())
print(digest.hexdigest(), torch.rand(1).item())

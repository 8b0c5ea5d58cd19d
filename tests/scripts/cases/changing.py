"""A network that changes while it is trained: its precision, an activation, a layer replaced, a layer added."""

import hashlib

import torch
from torch import nn
from torch.nn import functional as F


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Sigmoid(), nn.Linear(16, 16), nn.Tanh())
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.body(x))


def train(steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        print(loss.item())


torch.manual_seed(0)
inputs, labels = torch.randn(24, 8), torch.randint(0, 4, (24,))
model = Network()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
train(3)
model.body[1] = nn.ReLU()
train(3)
model.double()
inputs = inputs.double()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
train(3)
model.head = nn.Sequential(nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 4)).double()
optimizer.add_param_group({"params": model.head.parameters()})
train(3)
digest = hashlib.sha256()
for value in model.state_dict().values():
    digest.update(value.numpy().tobytes())
print(digest.hexdigest(), torch.rand(1).item())

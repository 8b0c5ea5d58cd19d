"""The plainest style: a Sequential and a loop at the top level of the file."""

import torch
from torch import nn

torch.manual_seed(0)
inputs, labels = torch.randn(256, 16), torch.randint(0, 4, (256,))
model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(60):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(inputs), labels)
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.12f} weights {sum(p.double().sum().item() for p in model.parameters()):.12f}")

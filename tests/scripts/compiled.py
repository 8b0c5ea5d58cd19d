"""A compiled model; the backend counts how often it compiles."""

import torch
from torch import nn

compilations = 0


def counting(graph, example_inputs):
    global compilations
    compilations += 1
    return graph.forward


torch.manual_seed(0)
inputs, labels = torch.randn(256, 16), torch.randint(0, 4, (256,))
network = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
model = torch.compile(network, backend=counting, fullgraph=True)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(60):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(inputs), labels)
    loss.backward()
    optimizer.step()
print(f"compilations {compilations}")
print(f"loss {loss.item():.12f} weights {sum(p.double().sum().item() for p in model.parameters()):.12f}")

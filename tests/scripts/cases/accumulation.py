"""Gradient accumulation, parameter groups, and validations with and without no_grad between the steps."""

import hashlib

import torch
from torch import nn
from torch.nn import functional as F


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Dropout(0.1))
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        return self.head(self.body(x))


def weights_hash(*models):
    digest = hashlib.sha256()
    for model in models:
        for value in model.state_dict().values():
            digest.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


torch.manual_seed(0)
inputs, labels = torch.randn(240, 16), torch.randint(0, 4, (240,))
model = Classifier()
optimizer = torch.optim.SGD(
    [{"params": model.body.parameters()}, {"params": model.head.parameters(), "lr": 0.5, "weight_decay": 0.1}],
    lr=0.05,
    momentum=0.9,
)
for step in range(6):
    model.train()
    for micro in range(4):
        at = slice((step * 4 + micro) * 10, (step * 4 + micro + 1) * 10)
        loss = F.cross_entropy(model(inputs[at]), labels[at]) / 4
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        quiet = F.cross_entropy(model(1000 * inputs[:50]), labels[:50])
    loud = F.cross_entropy(model(1000 * inputs[:50]), labels[:50])
    print(step, loss.item(), quiet.item(), loud.item())
print(weights_hash(model), torch.rand(1).item())

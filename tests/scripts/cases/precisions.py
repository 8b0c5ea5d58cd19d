"""One training after the other: double, half and bfloat16 networks, channels last; an empty batch at each end."""

import hashlib

import torch
from torch import nn
from torch.nn import functional as F


def train(dtype, memory_format):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 4),
    ).to(dtype=dtype, memory_format=memory_format)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    inputs = torch.randn(16, 3, 8, 8).to(dtype=dtype, memory_format=memory_format)
    labels = torch.randint(0, 4, (16,))
    for step in range(4):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
    model.eval()
    optimizer.zero_grad()
    empty = F.cross_entropy(model(inputs[:0]), labels[:0], reduction="sum")
    empty.backward()
    optimizer.step()
    print(dtype, loss.item(), empty.item())
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    print(digest.hexdigest(), torch.rand(1).item())


train(torch.float64, torch.contiguous_format)
train(torch.float16, torch.contiguous_format)
train(torch.bfloat16, torch.channels_last)
train(torch.float32, torch.channels_last)

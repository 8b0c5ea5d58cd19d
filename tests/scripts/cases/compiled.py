"""Compiled networks, losses, optimizers and whole steps; what the compiler did is printed."""

import hashlib
import sys

import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.nn import functional as F


def make():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    return network, torch.optim.SGD(network.parameters(), lr=0.1)


def train(name, network, step):
    torch._dynamo.reset()
    counters.clear()
    for _ in range(6):
        loss = step(inputs, labels)
    digest = hashlib.sha256()
    for value in network.state_dict().values():
        digest.update(value.numpy().tobytes())
    breaks = sum(counters["graph_break"].values())
    print(name, f"{loss.item():.6f}", "breaks", breaks, dict(counters["stats"]), digest.hexdigest())


torch.manual_seed(0)
inputs, labels = torch.randn(24, 8), torch.randint(0, 4, (24,))
torch._dynamo.config.error_on_recompile = True

network, optimizer = make()
model = torch.compile(network, backend="aot_eager" if "--inductor" in sys.argv else "eager", fullgraph=True)


def step_of_model(x, y):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss


train("model", network, step_of_model)

network, optimizer = make()


@torch.compile(backend="eager", fullgraph=True)
def compute_loss(x, y):
    return F.cross_entropy(network(x), y)


def step_of_loss(x, y):
    optimizer.zero_grad()
    loss = compute_loss(x, y)
    loss.backward()
    optimizer.step()
    return loss


train("loss", network, step_of_loss)

network, optimizer = make()
optimizer_step = torch.compile(optimizer.step, backend="eager")


def step_of_optimizer(x, y):
    optimizer.zero_grad()
    loss = F.cross_entropy(network(x), y)
    loss.backward()
    optimizer_step()
    return loss


train("optimizer", network, step_of_optimizer)

network, optimizer = make()


@torch.compile(backend="eager")
def whole_step(x, y):
    optimizer.zero_grad()
    loss = F.cross_entropy(network(x), y)
    loss.backward()
    optimizer.step()
    return loss


train("whole", network, whole_step)

if "--inductor" in sys.argv:
    network, optimizer = make()
    model = torch.compile(network, mode="reduce-overhead")
    train("inductor", network, step_of_model)

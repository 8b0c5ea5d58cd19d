"""A class with the loop in it, inside main(), with arguments from the command line."""

import argparse

import torch
from torch import nn


class Trainer:
    def __init__(self, width):
        self.net = nn.Sequential(nn.Linear(16, width), nn.Sigmoid(), nn.Linear(width, 4))
        self.optimizer = torch.optim.RMSprop(self.net.parameters(), lr=0.01)
        self.inputs, self.labels = torch.randn(256, 16), torch.randint(0, 4, (256,))

    def step(self):
        loss = nn.functional.cross_entropy(self.net(self.inputs), self.labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def fit(self, steps):
        for _ in range(steps):
            loss = self.step()
        return loss


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("steps", type=int)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    trainer = Trainer(arguments.width)
    loss = trainer.fit(arguments.steps)
    print(f"loss {loss:.12f} weights {sum(p.double().sum().item() for p in trainer.net.parameters()):.12f}")


if __name__ == "__main__":
    main()

"""A deep plain network on MNIST, as sick as it is asked to be: the patient of benchmarks/ablation.py."""

import argparse
import gzip
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.set_num_threads(1)


def read_idx(path, header):
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=header)


def load(folder):
    images = read_idx(folder / "t10k-images-idx3-ubyte.gz", 16).reshape(-1, 784).astype(np.float32) / 255.0
    labels = read_idx(folder / "t10k-labels-idx1-ubyte.gz", 8).astype(np.int64)
    order = np.random.default_rng(0).permutation(len(images))
    train, valid = order[:6000], order[6000:8000]
    images, labels = torch.tensor(images), torch.tensor(labels)
    return images[train], labels[train], images[valid], labels[valid]


class Recurrent(nn.Module):
    """Reads an image row by row and decides from the last one."""

    def __init__(self, hidden):
        super().__init__()
        self.recurrent = nn.LSTM(28, hidden, batch_first=True)
        self.output = nn.Linear(hidden, 10)

    def forward(self, x):
        states, _ = self.recurrent(x.view(-1, 28, 28))
        return self.output(states[:, -1])


def build(kind, depth, width=64):
    if kind == "lstm":
        return Recurrent(width)
    activation = nn.Sigmoid if kind == "sigmoid" else nn.ReLU
    layers = [nn.Linear(784, width), activation()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), activation()]
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    if kind == "exploding":
        for layer in model:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=3.0 / layer.in_features**0.5)
    return model


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--kind", choices=("sigmoid", "relu", "exploding", "lstm"), default="sigmoid")
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    train_x, train_y, valid_x, valid_y = load(options.data)
    loader = DataLoader(TensorDataset(train_x, train_y), 64, shuffle=True, drop_last=True)
    model = build(options.kind, options.depth)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(options.epochs):
        model.train()
        total = 0.0
        for inputs, targets in loader:
            loss = F.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        print(f"epoch {epoch + 1}  training loss {total / len(loader):.4f}")
    model.eval()
    with torch.no_grad():
        accuracy = (model(valid_x).argmax(1) == valid_y).float().mean().item()
    print(f"validation accuracy: {accuracy:.4f}")


if __name__ == "__main__":
    main()

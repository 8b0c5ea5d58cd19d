"""The healthy twin of sick_digits.py: rectifiers instead of sigmoids, weights drawn for them (He et al. 2015)."""

import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.set_num_threads(1)  # a network this small is slower on more threads

DEPTH = 8
WIDTH = 64


def load(seed):
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16.0, labels, test_size=0.25, random_state=seed, stratify=labels)
    train_x, test_x, train_y, test_y = (torch.tensor(part) for part in parts)
    return (train_x.float(), train_y), (test_x.float(), test_y)


def linear(inputs, outputs):
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer


def build():
    layers = [linear(64, WIDTH), nn.ReLU()]
    for _ in range(DEPTH - 1):
        layers += [linear(WIDTH, WIDTH), nn.ReLU()]
    return nn.Sequential(*layers, linear(WIDTH, 10))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    train, test = load(options.seed)
    loader = DataLoader(TensorDataset(*train), batch_size=32, shuffle=True)
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    criterion = nn.CrossEntropyLoss()

    for epoch in range(1, options.epochs + 1):
        total = 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)
        if epoch % 5 == 0 or epoch == 1:
            print(f"epoch {epoch:3d}  training loss {total / len(train[1]):.4f}")

    with torch.no_grad():
        accuracy = (model(test[0]).argmax(1) == test[1]).float().mean().item()
    print(f"test accuracy: {accuracy:.3f}")


if __name__ == "__main__":
    main()

"""A DataLoader with forked workers that use torch, a thread that evaluates another network, and a trainer thread."""

import hashlib
import threading

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset


class Prepared(Dataset):
    """Each sample goes through a small network, in the worker."""

    def __init__(self):
        self.inputs, self.labels = torch.randn(64, 8), torch.randint(0, 4, (64,))
        self.prepare = nn.Sequential(nn.Linear(8, 8), nn.Softplus())
        self.adapt = torch.optim.SGD(self.prepare.parameters(), lr=0.0)

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        value = self.prepare(self.inputs[index])
        value.sum().backward()
        self.adapt.step()
        return value.detach(), self.labels[index]


class Evaluator(threading.Thread):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(8, 8), nn.Softsign(), nn.Linear(8, 2))
        self.stopped = threading.Event()
        self.rounds = 0

    def run(self):
        first_step.wait()
        while not self.stopped.is_set() or self.rounds < 20:
            self.network(torch.ones(500, 8)).sum()
            self.rounds += 1


def train():
    for epoch in range(2):
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()
            first_step.set()
        print(epoch, loss.item())


if __name__ == "__main__":
    torch.manual_seed(0)
    first_step = threading.Event()
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    loader = DataLoader(Prepared(), batch_size=16, shuffle=True, num_workers=2, multiprocessing_context="fork")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    evaluator = Evaluator()
    trainer = threading.Thread(target=train)
    trainer.start()
    evaluator.start()
    trainer.join()
    evaluator.stopped.set()
    evaluator.join()
    digest = hashlib.sha256()
    for value in [*model.state_dict().values(), *evaluator.network.state_dict().values()]:
        digest.update(value.numpy().tobytes())
    print(digest.hexdigest(), torch.rand(1).item())

"""A GAN: two networks, two optimizers that take turns, the discriminator three times as often at first."""

import hashlib

import torch
from torch import nn


def weights_hash(*models):
    digest = hashlib.sha256()
    for model in models:
        for value in model.state_dict().values():
            digest.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


torch.manual_seed(0)
generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8), nn.Tanh())
discriminator = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(0.2), nn.Dropout(0.1), nn.Linear(16, 1))
generator_optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999))
discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.999))
criterion = nn.BCEWithLogitsLoss()
ones, zeros = torch.ones(32, 1), torch.zeros(32, 1)
for step in range(8):
    discriminator_optimizer.zero_grad()
    real = criterion(discriminator(torch.randn(32, 8)), ones)
    real.backward()
    fake_images = generator(torch.randn(32, 4))
    fake = criterion(discriminator(fake_images.detach()), zeros)
    fake.backward()
    discriminator_optimizer.step()

    generator_optimizer.zero_grad()
    fooled = criterion(discriminator(fake_images), ones)
    fooled.backward()
    generator_optimizer.step()
    print(step, real.item(), fake.item(), fooled.item())
print(weights_hash(generator, discriminator), torch.rand(1).item())

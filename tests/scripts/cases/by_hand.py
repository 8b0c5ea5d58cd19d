"""No optimizer: the update is written out. Shared weights, a cell that runs five times, operations in place."""

import atexit
import hashlib

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer


@atexit.register
def what_is_left():
    print(
        len(torch_module._global_forward_hooks),
        len(torch_module._global_forward_pre_hooks),
        len(torch_module._global_forward_hooks_always_called),
        len(torch_optimizer._global_optimizer_pre_hooks),
        len(torch_optimizer._global_optimizer_post_hooks),
        len(torch.overrides._get_current_function_mode_stack()),
        torch_module._has_any_global_hook.__module__,
        torch.Tensor.backward.__code__.co_filename.endswith("_tensor.py"),
        torch.compile.__code__.co_filename.endswith("torch/__init__.py"),
        hidden._backward_hooks or None,
    )


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.inward = nn.Linear(12, 20)
        self.cell = nn.Linear(20, 20)
        self.rectifier = nn.ReLU(inplace=True)
        self.outward = nn.Linear(20, 12)
        self.inward.weight = self.mirror = nn.Parameter(0.3 * torch.randn(20, 12))

    def forward(self, x):
        h = self.rectifier(self.inward(x))
        for _ in range(5):
            h = torch.tanh(self.cell(h))
        skip = h * 0.5
        h = F.linear(h @ self.mirror, self.mirror)
        h += skip
        h = h.relu_()
        return self.outward(h), h


torch.manual_seed(0)
inputs = torch.randn(40, 12)
model = Autoencoder()
for step in range(6):
    output, hidden = model(inputs)
    loss = F.mse_loss(output, inputs)
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.05 * parameter.grad
            parameter.grad = None
    print(step, loss.item())
digest = hashlib.sha256()
for value in model.state_dict().values():
    digest.update(value.numpy().tobytes())
print(digest.hexdigest(), torch.rand(1).item())

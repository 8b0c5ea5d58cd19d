"""Short trainings that have a disease get its finding, and their healthy twins do not."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import desat
from desat.diagnose.finding import Finding

STEPS = 100

Batch = tuple[Tensor, Tensor]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def digits(steps: int = STEPS, batch: int = 64) -> Iterable[Batch]:
    """Batches of points around ten centres: as easy as handwritten digits, and made in no time."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(10, 32, generator=generator)
    for _ in range(steps):
        labels = torch.randint(0, 10, (batch,), generator=generator)
        yield centres[labels] + 0.5 * torch.randn(batch, 32, generator=generator), labels


def first_words(steps: int = STEPS, batch: int = 16, length: int = 8) -> Iterable[Batch]:
    """Sequences whose label stands at their beginning."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        inputs = torch.randn(batch, length, 4, generator=generator)
        labels = (inputs[:, :3].mean(dim=(1, 2)) > 0).long()
        yield inputs + labels[:, None, None], labels


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 16, batch_first=True)
        self.output = nn.Linear(16, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.output(self.lstm(inputs)[0][:, -1])


def set_gate(model: Reader, gate: int, bias: float) -> None:
    """Add to the biases of the input (0), forget (1), cell (2) or output gate (3)."""
    biases = model.lstm.get_parameter("bias_ih_l0").data
    biases[16 * gate : 16 * (gate + 1)] += bias


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10))


def findings(
    directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[Batch], *,
    before_step: Callable[[], object] = lambda: None, curvature: bool = False,
) -> dict[str, Finding]:  # fmt: skip
    with desat.watch(model, optimizer, every=1, run_dir=directory, curvature=curvature) as run:
        for inputs, labels in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            before_step()
            optimizer.step()
    return {finding.code: finding for finding in run.diagnose().findings}


def assert_sound(found: dict[str, Finding], code: str) -> None:
    assert code not in found or found[code].severity == "note"
    assert not [finding for finding in found.values() if finding.severity == "error"]


def test_an_input_gate_that_is_shut(tmp_path: Path) -> None:
    def train(name: str, bias: float) -> dict[str, Finding]:
        torch.manual_seed(0)
        model = Reader()
        set_gate(model, 0, bias)
        return findings(tmp_path / name, model, torch.optim.Adam(model.parameters(), 1e-2), first_words())

    found = train("sick", -20.0)["saturated-gate"]
    assert (found.severity, found.site, found.first_step) == ("error", "lstm.l0.input", 0)
    assert "biases hold it there since initialization" in found.cause
    assert_sound(train("healthy", 0.0), "saturated-gate")


def test_a_forget_gate_that_stands_open_is_meant_to(tmp_path: Path) -> None:
    model = Reader()
    set_gate(model, 1, 8.0)
    found = findings(tmp_path / "run", model, torch.optim.Adam(model.parameters(), 1e-2), first_words())
    assert "saturated-gate" not in found
    assert_sound(found, "saturated-gate")


def test_steps_that_bfloat16_rounds_off(tmp_path: Path) -> None:
    def train(name: str, dtype: torch.dtype) -> dict[str, Finding]:
        torch.manual_seed(0)
        model = perceptron().to(dtype)
        batches = ((inputs.to(dtype), labels) for inputs, labels in digits())
        return findings(tmp_path / name, model, torch.optim.Adam(model.parameters(), rate), batches)

    rate = 3e-6
    found = train("sick", torch.bfloat16)["low-precision-range"]
    assert found.severity == "error"
    assert found.evidence["unchanged_share"] > 0.8
    assert "rounded off" in found.cause
    assert "low-precision-range" not in train("float32", torch.float32)
    rate = 1e-2
    assert_sound(train("healthy", torch.bfloat16), "low-precision-range")


def test_adam_on_float16_weights(tmp_path: Path) -> None:
    model = perceptron().half()
    batches = ((inputs.half(), labels) for inputs, labels in digits(30))
    found = findings(tmp_path / "run", model, torch.optim.Adam(model.parameters(), 1e-2), batches)
    assert found["low-precision-range"].severity == "error"
    assert "divides by zero" in found["low-precision-range"].cause
    assert found["non-finite"].cause == "a consequence of low-precision-range"


def test_a_clipping_limit_far_below_the_gradient(tmp_path: Path) -> None:
    def train(name: str, limit: float) -> dict[str, Finding]:
        torch.manual_seed(0)
        model = perceptron()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        return findings(
            tmp_path / name, model, optimizer, digits(),
            before_step=lambda: nn.utils.clip_grad_norm_(model.parameters(), limit),
        )  # fmt: skip

    found = train("sick", 1e-4)["clipping-dominates"]
    assert found.severity == "error"
    assert found.evidence["clip_limit"] == pytest.approx(1e-4, rel=0.01)
    assert_sound(train("healthy", 1.0), "clipping-dominates")


def test_an_epsilon_that_outweighs_every_gradient(tmp_path: Path) -> None:
    def train(name: str, epsilon: float) -> dict[str, Finding]:
        torch.manual_seed(0)
        model = perceptron()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2, eps=epsilon)
        return findings(tmp_path / name, model, optimizer, digits())

    found = train("sick", 100.0)["degenerate-optimizer"]
    assert found.severity == "error"
    assert found.evidence["epsilon"] == pytest.approx(100.0, rel=0.3)
    assert_sound(train("healthy", 1e-8), "degenerate-optimizer")


def test_a_learning_rate_that_decays_before_anything_is_learned(tmp_path: Path) -> None:
    def train(name: str, decay: float) -> dict[str, Finding]:
        torch.manual_seed(0)
        model = perceptron()
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, decay)
        hook = optimizer.register_step_post_hook(lambda *_: schedule.step())
        try:
            return findings(tmp_path / name, model, optimizer, digits())
        finally:
            hook.remove()

    found = train("sick", 0.2)["degenerate-optimizer"]
    assert found.severity == "error"
    assert "had decayed" in found.cause
    assert found.first_step <= 5
    assert_sound(train("healthy", 0.99), "degenerate-optimizer")


def test_a_learning_rate_of_zero(tmp_path: Path) -> None:
    model = perceptron()
    found = findings(tmp_path / "run", model, torch.optim.SGD(model.parameters(), 0.0), digits(15))
    assert found["degenerate-optimizer"].severity == "error"
    assert found["degenerate-optimizer"].cause == "the learning rate is zero"


def test_a_learning_rate_too_large_for_the_curvature(tmp_path: Path) -> None:
    def train(name: str, rate: float) -> dict[str, Finding]:
        torch.manual_seed(0)
        model = perceptron()
        optimizer = torch.optim.SGD(model.parameters(), rate)
        return findings(tmp_path / name, model, optimizer, digits(80), curvature=True)

    sick = train("sick", 10.0)
    found = sick["sharp-curvature"]
    assert [each.code for each in sick.values() if each.severity == "error"] == ["sharp-curvature"]
    assert found.evidence["sharpness_over_limit"] > 1.5
    assert found.evidence["fitting_learning_rate"] < 10.0
    assert_sound(train("healthy", 0.1), "sharp-curvature")

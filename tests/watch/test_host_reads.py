"""Nothing that watching does on the training's thread reads a tensor back, for which an accelerator would be waited."""

import functools
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import desat
from desat.watch import watcher

PACKAGE = str(Path(desat.__file__).parent)
TORCH = str(Path(torch.__file__).parent)

ON_THE_HOST = ("nonlinearity.py", "loss.py")
"""Files that read tensors which always lie on the host: the grid of a curve, and the loss on the CPU."""

READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__")

SYNCHRONIZING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.is_nonzero.default,
}


class Everything(nn.Module):
    """A network with a site of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.pool, self.embed, self.norm = nn.AdaptiveAvgPool2d(2), nn.Linear(4, 8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.query, self.soft, self.prelu = nn.Linear(8, 8), nn.Softmax(-1), nn.PReLU()
        self.lstm, self.gru = nn.LSTM(8, 8, batch_first=True), nn.GRU(8, 8, batch_first=True, bidirectional=True)
        self.rnn, self.cell = nn.RNN(16, 8, batch_first=True), nn.LSTMCell(8, 8)
        self.words, self.head = nn.Embedding(10, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn(self.conv(x)))
        x = x + self.block(x)
        x = self.embed(F.gelu(self.pool(x)).flatten(2).transpose(1, 2))
        x = x + self.words(torch.zeros(x.shape[0], 4, dtype=torch.long, device=x.device))
        x = self.norm(x + self.attention(x, x, x)[0])
        query = self.query(x)
        x = x + (query @ x.transpose(1, 2) / 8**0.5).softmax(-1) @ x
        x = x + self.soft(query @ x.transpose(1, 2)) @ x
        x = x + F.scaled_dot_product_attention(query, x, x, is_causal=True)
        x = self.rnn(self.gru(self.lstm(x)[0])[0])[0]
        state = self.cell(x[:, 1], self.cell(x[:, 0]))
        return self.head(torch.tanh(self.prelu(state[0])))


def train(device: str, run_dir: Path, optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam) -> None:
    torch.manual_seed(0)
    model = Everything().to(device)
    turns = optimizer(model.parameters(), lr=0.01)
    with desat.watch(model, turns, every=1, run_dir=run_dir):
        for _ in range(3):
            turns.zero_grad()
            inputs, labels = torch.randn(8, 1, 8, 8, device=device), torch.zeros(8, dtype=torch.long, device=device)
            F.cross_entropy(model(inputs), labels).backward()
            turns.step()


def guilty() -> str | None:
    """File and line of desat's that is reading, if it is one and not a place that may."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (frame.f_code.co_filename.startswith(TORCH) or frame.f_code.co_filename == __file__):
        frame = frame.f_back
    if frame is None or not frame.f_code.co_filename.startswith(PACKAGE):
        return None
    return None if frame.f_code.co_filename.endswith(ON_THE_HOST) else f"{frame.f_code.co_filename}:{frame.f_lineno}"


class Guard(TorchDispatchMode):
    """Notes the operations that wait for a device; it serves the thread in which it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.copies: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in SYNCHRONIZING and (place := guilty()):
            self.reads.append(f"{place} {func}")
        result = func(*args, **kwargs)
        source = {torch.ops.aten._to_copy.default: 0, torch.ops.aten.copy_.default: 1}.get(func)
        if source is not None and args[source].device != result.device and not kwargs.get("non_blocking"):
            self.copies.append(f"{guilty()} {func}")
        return result


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where desat calls a method that reads a tensor, on this thread."""
    reads: list[str] = []
    thread = threading.get_ident()

    def noting(name: str, original: Any) -> Any:
        @functools.wraps(original)
        def method(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == thread and (place := guilty()):
                reads.append(f"{place} {name}")
            return original(*args, **kwargs)

        return method

    for name in READS:
        monkeypatch.setattr(Tensor, name, noting(name, getattr(Tensor, name)))
    return reads


def test_no_tensor_is_read_back_on_the_training_thread(
    tmp_path: Path, methods: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with Guard() as guard:
        train("cpu", tmp_path / "run")
    assert not methods
    assert not guard.reads
    assert not caplog.messages
    with desat.open(tmp_path / "run") as record:
        assert record.steps(sampled=True)["step"].tolist() == [0, 1, 2]
        kinds = {site.kind for site in record.sites()}
        assert kinds >= {"module", "nonlinearity", "parameter", "attention", "gate", "recurrent", "residual", "input"}


def test_the_guard_sees_a_read(tmp_path: Path, methods: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from desat.watch import normalization

    plain = normalization.measure_normalization
    source = "def faulty(plain, module, values):\n    bool(values.sum() > 0)\n    return plain(module, values)\n"
    names: dict[str, Any] = {}
    exec(compile(source, str(Path(PACKAGE) / "watch" / "faulty.py"), "exec"), names)
    monkeypatch.setattr(normalization, "measure_normalization", functools.partial(names["faulty"], plain))
    with Guard() as guard:
        train("cpu", tmp_path / "run")
    assert any("faulty.py:2 __bool__" in read for read in methods)
    assert any("_local_scalar_dense" in read for read in guard.reads)


@pytest.fixture
def meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the meta device have no values: nothing can be shipped, and what is read raises."""
    monkeypatch.setattr(watcher, "ship", lambda parcels: list)
    monkeypatch.setattr(watcher, "mean_loss", lambda losses: None)
    asked = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device="cpu": device != "meta" and asked(device))


@pytest.mark.usefixtures("meta")
def test_a_network_without_values_can_be_watched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train("meta", tmp_path / "run")
    assert not caplog.messages
    with desat.open(tmp_path / "run") as record:
        assert record.steps(sampled=True)["step"].tolist() == [0, 1, 2]
        assert {site.kind for site in record.sites()} >= {"module", "nonlinearity", "attention", "gate", "residual"}


@pytest.mark.usefixtures("meta")
def test_nothing_is_copied_to_the_device_in_a_way_that_waits_for_it(tmp_path: Path) -> None:
    with Guard() as guard:
        train("meta", tmp_path / "run")
    assert not [copy for copy in guard.copies if PACKAGE in copy]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_is_never_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train("cuda", tmp_path / "first")  # what is made once, such as handles of libraries, may synchronize
    torch.cuda.set_sync_debug_mode("error")
    try:
        train("cuda", tmp_path / "run")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not caplog.messages
    with desat.open(tmp_path / "run") as record:
        assert record.steps(sampled=True)["step"].tolist() == [0, 1, 2]

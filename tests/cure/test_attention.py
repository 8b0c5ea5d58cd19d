import copy
import math
import textwrap
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import desat
from desat.cure.attention_layers import NormalizedAttention
from desat.cure.patient import Batch
from desat.cure.query_key import logit_deviations, pairs
from tests.warm import desat as run_desat


class ByHand(nn.Module):
    """Attention of two heads, without 1 / sqrt(d), or with torch's function."""

    def __init__(self, width: int = 32, heads: int | None = 2, fused: bool = False) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.fused, self.parts = fused, heads or 1
        if heads is not None:
            self.num_heads = heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (one(x).unflatten(-1, (self.parts, -1)).transpose(1, 2) for one in (self.query, self.key, self.value))
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).flatten(2)


def rms_norm(heads: torch.Tensor) -> torch.Tensor:
    return heads / (heads.square().mean(-1, keepdim=True) + torch.finfo(heads.dtype).eps).sqrt()


def test_queries_and_keys_are_normed_for_each_head() -> None:
    net = nn.Sequential(ByHand(), nn.Linear(32, 2))
    inputs = torch.randn(4, 5, 32)
    plain = net[0].query(inputs)
    changes = desat.apply(net, None, "attention=qk-norm")
    assert [change.site for change in changes] == ["0.query", "0.key"]
    assert all(change.after == "Linear, then RMSNorm(16) of each head" for change in changes)
    torch.testing.assert_close(net[0].query(inputs), rms_norm(plain.unflatten(-1, (2, 16))).flatten(-2))


def test_logits_stay_bounded_however_large_the_weights_become() -> None:
    net, inputs = ByHand(fused=True), torch.randn(4, 5, 32)
    desat.apply(net, None, "attention=qk-norm")
    expected = net(inputs)
    with torch.no_grad():
        net.query.weight.mul_(1e3), net.query.bias.mul_(1e3)
    torch.testing.assert_close(net(inputs), expected)


def test_without_a_number_of_heads_all_features_are_normed_together() -> None:
    net, inputs = ByHand(heads=None), torch.randn(4, 5, 32)
    plain = net.query(inputs)
    (change, _) = desat.apply(net, None, "attention=qk-norm")
    assert "not known" in change.after
    torch.testing.assert_close(net.query(inputs), rms_norm(plain))


def test_a_second_time_is_refused() -> None:
    net = nn.Sequential(ByHand(), nn.MultiheadAttention(8, 2))
    desat.apply(net, None, "attention=qk-norm")
    assert all(change.refused for change in desat.apply(net, None, "attention=qk-norm"))


def test_an_attention_that_cannot_be_normed_is_left() -> None:
    class Own(nn.MultiheadAttention):
        pass

    net = nn.ModuleList([nn.MultiheadAttention(8, 2, add_bias_kv=True), Own(8, 2)])
    changes = desat.apply(net, None, "attention=qk-norm")
    assert ["add_bias_kv" in (changes[0].refused or ""), "forward" in (changes[1].refused or "")] == [True, True]


def without_norms(attention: nn.MultiheadAttention) -> nn.MultiheadAttention:
    """The fused layer of desat with norms that do nothing."""
    desat.apply(attention, None, "attention=qk-norm")
    assert isinstance(attention, NormalizedAttention)
    attention.desat_attention.query = attention.desat_attention.key = nn.Identity()
    return attention


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("mask", ["none", "bool", "float", "heads", "padding", "both"])
def test_but_for_its_norms_the_fused_layer_is_torchs(batch_first: bool, need_weights: bool, mask: str) -> None:
    plain = nn.MultiheadAttention(8, 2, batch_first=batch_first, kdim=6, vdim=4)
    mine = without_norms(copy.deepcopy(plain))
    inputs: tuple[torch.Tensor, ...] = torch.randn(3, 5, 8), torch.randn(3, 7, 6), torch.randn(3, 7, 4)
    if not batch_first:
        inputs = tuple(one.transpose(0, 1) for one in inputs)
    causal = torch.ones(5, 7, dtype=torch.bool).triu(1)
    padding = torch.zeros(3, 7, dtype=torch.bool)
    padding[1, 5:] = True
    given = {
        "none": {},
        "bool": {"attn_mask": causal},
        "float": {"attn_mask": torch.randn(5, 7)},
        "heads": {"attn_mask": torch.randn(6, 5, 7)},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": causal, "key_padding_mask": padding},
    }[mask]
    expected, expected_weights = plain(*inputs, need_weights=need_weights, **given)
    found, weights = mine(*inputs, need_weights=need_weights, **given)
    torch.testing.assert_close(found, expected)
    assert (weights is None) == (expected_weights is None)
    if weights is not None:
        torch.testing.assert_close(weights, expected_weights)


def test_one_sequence_without_a_batch_is_attended_to_as_torch_does() -> None:
    plain = nn.MultiheadAttention(8, 2)
    inputs = torch.randn(5, 8)
    expected = plain(inputs, inputs, inputs)
    torch.testing.assert_close(without_norms(plain)(inputs, inputs, inputs), expected)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor:UserWarning")
def test_a_transformer_encoder_uses_the_norms_in_evaluation_too() -> None:
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0), 2)
    inputs, padding = torch.randn(3, 5, 16), torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    changes = desat.apply(net, None, "attention=qk-norm")
    assert [change.site for change in changes] == ["layers.0.self_attn", "layers.1.self_attn"]
    trained = net(inputs, src_key_padding_mask=padding)
    with torch.no_grad():
        evaluated = net.eval()(inputs, src_key_padding_mask=padding)
    torch.testing.assert_close(evaluated[~padding], trained[~padding])


@pytest.mark.parametrize("make", [ByHand, lambda: nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, dropout=0.0)])
def test_norms_are_trained_saved_copied_and_compiled(make, tmp_path) -> None:
    net, inputs = make(), torch.randn(4, 5, 32)
    optimizer, state = torch.optim.SGD(net.parameters(), lr=0.5), torch.get_rng_state()
    old = dict(net.named_parameters())
    desat.apply(net, optimizer, "attention=qk-norm")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(net.get_parameter(name) is parameter for name, parameter in old.items())
    (net(inputs).square().sum() * 10).backward()
    optimizer.step()
    fresh = {name: one for name, one in net.named_parameters() if "desat_attention" in name}
    assert len(fresh) == 2
    assert all(not torch.equal(one, torch.ones_like(one)) for one in fresh.values())
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    twin = make()
    desat.apply(twin, None, "attention=qk-norm")
    twin.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    expected = net(inputs)
    torch.testing.assert_close(twin(inputs), expected)
    torch.testing.assert_close(copy.deepcopy(net)(inputs), expected)
    torch.testing.assert_close(torch.compile(net, backend="eager")(inputs), expected)
    torch.save(net, tmp_path / "net.pt")
    torch.testing.assert_close(torch.load(tmp_path / "net.pt", weights_only=False)(inputs), expected)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("size", [0.1, 30.0])
def test_scale_gives_logits_a_deviation_of_one(fused: bool, size: float) -> None:
    net, inputs = nn.Sequential(ByHand(fused=fused), ByHand(fused=fused)), size * torch.randn(8, 6, 32)
    changes = desat.apply(net, None, "attention=scale", batch=inputs)
    assert [change.refused for change in changes] == [None, None]
    q, k = (one(inputs).unflatten(-1, (2, 16)).transpose(1, 2) for one in (net[0].query, net[0].key))
    logits = q @ k.transpose(-2, -1) / (4 if fused else 1)
    assert logits.var(-1, correction=0).mean().sqrt().item() == pytest.approx(1.0, abs=0.05)


def test_scale_of_a_fused_layer_leaves_keys_and_values() -> None:
    net, inputs = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 10 * torch.randn(8, 6, 32)
    attention = net.self_attn
    before = attention.in_proj_weight.detach().clone()
    desat.apply(net, None, "attention=scale", batch=inputs)
    assert torch.equal(before[32:], attention.in_proj_weight[32:])
    q, k, _ = F.linear(inputs, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
    q, k = (one.unflatten(-1, (4, 8)).transpose(1, 2) for one in (q, k))
    logits = q @ k.transpose(-2, -1) / math.sqrt(8)
    assert logits.var(-1, correction=0).mean().sqrt().item() == pytest.approx(1.0, abs=0.05)


def test_masked_logits_do_not_count() -> None:
    class Causal(ByHand):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = self.query(x) @ self.key(x).transpose(-2, -1)
            return logits.masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), -math.inf).softmax(-1) @ self.value(x)

    net, inputs = Causal(), torch.randn(8, 6, 32)
    found = logit_deviations(net, Batch((inputs,)), {""})[""]
    logits = net.query(inputs) @ net.key(inputs).transpose(-2, -1)
    rows = [logits[:, row, : row + 1].var(-1, correction=0).mean().item() for row in range(1, 6)]
    assert found == pytest.approx(math.sqrt(sum(rows) / 5), rel=1e-4)


def test_scale_needs_a_batch_and_a_softmax() -> None:
    net = ByHand()
    assert "batch" in (desat.apply(net, None, "attention=scale")[0].refused or "")
    net.forward = lambda x: net.query(x) + net.key(x)
    (change,) = desat.apply(net, None, "attention=scale", batch=torch.randn(2, 3, 32))
    assert "no softmax" in (change.refused or "")


def test_queries_are_known_by_name() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W_q, self.W_k, self.heads = nn.Linear(8, 8), nn.Linear(8, 4), 4

    (pair,) = pairs(Named())
    assert (pair.query_path, pair.key_path, pair.head_size) == ("W_q", "W_k", 2)


@pytest.mark.parametrize("remedy", ["attention=qk-norm", "attention=scale"])
def test_a_layer_that_makes_all_three_in_one_is_left(remedy: str) -> None:
    net = nn.ModuleDict({"c_attn": nn.Linear(8, 24), "other": nn.Linear(8, 24)})
    (change,) = desat.apply(net, None, remedy)
    assert (change.site, "in one" in (change.refused or "")) == ("c_attn", True)


class Reader(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], read: str = "last", **settings: object) -> None:
        super().__init__()
        self.rnn, self.read = kind(6, 8, **settings), read
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs, state = self.rnn(x)
        hidden = state[0] if isinstance(state, tuple) else state
        time = 1 if self.rnn.batch_first else 0
        read = {
            "last": outputs.select(time, -1),
            "hidden": hidden[-1],
            "mean": outputs.mean(time),
            "all": outputs,
            "first": hidden[0],
        }
        return self.head(read[self.read])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("read", ["last", "hidden"])
@pytest.mark.parametrize("settings", [{"batch_first": True}, {"num_layers": 2}])
def test_pooling_begins_as_the_mean_over_time(kind, read: str, settings) -> None:
    net, inputs = Reader(kind, read, **settings), torch.randn(4, 5, 6)
    outputs, _ = net.rnn(inputs)
    (change,) = desat.apply(net, None, "attention=pooling", batch=inputs)
    assert change.refused is None
    mean = outputs.mean(1 if net.rnn.batch_first else 0)
    torch.testing.assert_close(net(inputs), net.head(mean))


def test_a_learned_query_weighs_the_steps() -> None:
    net, inputs = Reader(nn.GRU, batch_first=True), torch.randn(4, 5, 6)
    outputs, _ = net.rnn(inputs)
    desat.apply(net, None, "attention=pooling", batch=inputs)
    query = torch.randn(8)
    with torch.no_grad():
        net.rnn.desat_attention.query.copy_(query)
    shares = torch.softmax(torch.einsum("bth,h->bt", outputs, query), 1)
    torch.testing.assert_close(net(inputs), net.head(torch.einsum("bt,bth->bh", shares, outputs)))


@pytest.mark.parametrize("read", ["mean", "all", "first"])
def test_a_network_that_reads_more_than_the_last_step_is_left(read: str) -> None:
    net, inputs = Reader(nn.LSTM, read, batch_first=True, num_layers=2), torch.randn(4, 5, 6)
    (change,) = desat.apply(net, None, "attention=pooling", batch=inputs)
    assert "more of its output" in (change.refused or "")
    assert not net.rnn._forward_hooks


def test_both_directions_packed_sequences_and_blindness_are_refused() -> None:
    class Packed(Reader):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            _, (hidden, _) = self.rnn(pack_padded_sequence(x, [5, 4, 3, 2], batch_first=True))
            return self.head(hidden[-1])

    inputs = torch.randn(4, 5, 6)

    def reason(net: nn.Module, batch: object = inputs) -> str:
        (change,) = desat.apply(net, None, "attention=pooling", batch=batch)
        return change.refused or ""

    assert "packed" in reason(Packed(nn.LSTM, batch_first=True))
    assert "batch" in reason(Reader(nn.LSTM), None)
    assert "both directions" in reason(nn.LSTM(6, 4, bidirectional=True))


def test_of_stacked_layers_only_the_last_is_pooled() -> None:
    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.GRU(6, 8), nn.GRU(8, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.second(self.first(x)[0])[0][-1])

    changes = desat.apply(Stacked(), None, "attention=pooling", batch=torch.randn(5, 4, 6))
    assert [(change.site, change.refused is None) for change in changes] == [("first", False), ("second", True)]


# torch.compile itself looks at the gradient of what a recurrent layer returns.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_pooling_is_trained_saved_copied_and_compiled(tmp_path) -> None:
    net, inputs = Reader(nn.GRU, batch_first=True), torch.randn(4, 5, 6)
    optimizer, state = torch.optim.SGD(net.parameters(), lr=1.0), torch.get_rng_state()
    desat.apply(net, optimizer, "attention=pooling", batch=inputs)
    assert torch.equal(torch.get_rng_state(), state)
    net(inputs).square().sum().backward()
    optimizer.step()
    assert net.rnn.desat_attention.query.any()
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    twin = Reader(nn.GRU, batch_first=True)
    desat.apply(twin, None, "attention=pooling", batch=inputs)
    twin.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    expected = net(inputs)
    torch.testing.assert_close(twin(inputs), expected)
    torch.testing.assert_close(copy.deepcopy(net)(inputs), expected)
    torch.testing.assert_close(torch.compile(net, backend="eager")(inputs), expected)
    assert all(change.refused for change in desat.apply(net, None, "attention=pooling", batch=inputs))


SCRIPT = """
    import torch
    from torch import nn

    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.RNN(4, 16, batch_first=True), nn.Linear(16, 2)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    inputs = torch.randn(128, 40, 4)
    labels = (inputs[:, 0, 0] + inputs[:, 1, 0] > 0).long()
    inputs[:, 2:] = 0
    for _ in range(60):
        loss = nn.functional.cross_entropy(net(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"loss {loss.item():.4f}")
"""


def test_a_script_that_forgets_the_beginning_learns_with_pooling(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(textwrap.dedent(SCRIPT))

    def loss(*options: str) -> float:
        done = run_desat("run", *options, "train.py", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return float(next(line for line in done.stdout.splitlines() if line.startswith("loss")).split()[1])

    assert loss("--apply", "attention=pooling") < 0.3 < 0.5 < loss()

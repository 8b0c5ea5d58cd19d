import copy
import itertools
import math
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import lr_scheduler

import desat
from desat.cure import origins
from desat.cure.edit import edited
from desat.cure.family import Change
from desat.cure.patient import Patient
from desat.cure.range_test import SAFETY, suggested_rate
from desat.cure.remedies.optimizer_class import CLASSES, RATES
from desat.cure.remedies.rate import RANGE_STEPS, RANGE_WIDTH
from desat.cure.remedy import apply, parse
from desat.record.reader import Record
from tests.warm import desat as run_desat

Schedule = Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]

SCHEDULES: dict[str, Schedule] = {
    "step": lambda optimizer: lr_scheduler.StepLR(optimizer, 3, 0.1),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 10),
    "warmup": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 4)),
}


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def train(
    net: nn.Module, optimizer: torch.optim.Optimizer, schedule: lr_scheduler.LRScheduler | None = None, steps: int = 8
) -> list[float]:
    """Losses of some steps on batches that are always the same."""
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        inputs, labels = torch.randn(16, 6, generator=generator), torch.randint(0, 3, (16,), generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(inputs), labels)
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        losses.append(loss.item())
    return losses


def refused(changes: tuple[Change, ...]) -> str:
    (change,) = changes
    assert change.refused is not None
    return change.refused


@pytest.mark.parametrize("name", CLASSES)
def test_the_optimizer_becomes_the_one_that_torch_would_make(name: str) -> None:
    net, twin = network(), network()
    optimizer = torch.optim.SGD(net.parameters(), lr=RATES[name], momentum=0.9, weight_decay=0.1)
    if name == "sgd":
        optimizer = torch.optim.Adam(net.parameters(), lr=RATES[name])
    parameters = optimizer.param_groups[0]["params"]
    (change,) = desat.apply(net, optimizer, f"optimizer={name}")
    assert type(optimizer) is CLASSES[name]
    assert change.refused is None
    assert type(optimizer).__name__ in change.after
    assert optimizer.param_groups[0]["params"] is parameters
    assert train(net, optimizer) == train(twin, CLASSES[name](twin.parameters(), lr=RATES[name]))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("after", [False, True])
def test_a_schedule_goes_on_to_act_relatively(schedule: str, after: bool) -> None:
    net, twin = network(), network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    scheduler = None if after else SCHEDULES[schedule](optimizer)
    desat.apply(net, optimizer, "optimizer=adam:0.01")
    scheduler = scheduler or SCHEDULES[schedule](optimizer)
    reference = torch.optim.Adam(twin.parameters(), lr=0.01)
    expected = train(twin, reference, SCHEDULES[schedule](reference))
    assert train(net, optimizer, scheduler) == pytest.approx(expected, rel=1e-5)


def test_the_top_of_a_one_cycle_schedule_is_what_was_asked_for() -> None:
    rates: list[float] = []
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    scheduler = lr_scheduler.OneCycleLR(optimizer, max_lr=2.0, total_steps=12)
    desat.apply(net, optimizer, "optimizer=adam:0.01")
    optimizer.register_step_post_hook(lambda one, args, kwargs: rates.append(one.param_groups[0]["lr"]))
    train(net, optimizer, scheduler, steps=11)
    assert max(rates) == pytest.approx(0.01, rel=0.05)


def test_a_scheduler_sees_that_the_step_it_wrapped_is_made_by_the_new_class() -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    scheduler = SCHEDULES["step"](optimizer)
    desat.apply(net, optimizer, "optimizer=adam")
    train(net, optimizer, scheduler, steps=2)  # a warning that no step was made would be an error
    assert optimizer.state[net[0].weight].keys() >= {"exp_avg", "exp_avg_sq"}


def test_the_ratio_of_the_groups_stays() -> None:
    rates: list[list[float]] = []
    net = network()
    optimizer = torch.optim.SGD([{"params": net[0].parameters()}, {"params": net[2].parameters(), "lr": 0.2}], lr=0.1)
    desat.apply(net, optimizer, "optimizer=adam:0.01")
    optimizer.register_step_post_hook(lambda one, a, k: rates.append([group["lr"] for group in one.param_groups]))
    train(net, optimizer, steps=1)
    assert rates == [pytest.approx([0.01, 0.02])]
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]


def test_a_script_that_sets_rates_goes_on_to_do_so() -> None:
    net, twin = network(), network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    reference = torch.optim.SGD(twin.parameters(), lr=0.25)
    desat.apply(net, optimizer, "optimizer=rate:0.5")
    assert train(net, optimizer) == train(twin, reference)
    optimizer.param_groups[0]["lr"], reference.param_groups[0]["lr"] = 0.1, 0.05
    assert train(net, optimizer) == train(twin, reference)


def test_a_rate_that_is_a_tensor_stays_the_tensor_it_is() -> None:
    net, twin = network(), network()
    rate = torch.tensor(0.5)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate, foreach=False)
    desat.apply(net, optimizer, "optimizer=rate:0.5")
    assert train(net, optimizer) == pytest.approx(train(twin, torch.optim.Adam(twin.parameters(), lr=0.25)), rel=1e-4)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate == 0.5


def test_a_step_that_ends_in_an_error_leaves_the_rate_as_it_was_for_the_next() -> None:
    net, used = network(), list[float]()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    desat.apply(net, optimizer, "optimizer=rate:0.5")

    def broken() -> Tensor:
        raise ValueError("no loss")

    with pytest.raises(ValueError, match="no loss"):
        optimizer.step(broken)
    optimizer.register_step_post_hook(lambda one, args, kwargs: used.append(one.param_groups[0]["lr"]))
    train(net, optimizer, steps=2)
    assert used == [0.25, 0.25]
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_warmup_rises_linearly_to_the_scripts_rate() -> None:
    net, twin = network(), network()
    optimizer, reference = torch.optim.SGD(net.parameters(), lr=0.5), torch.optim.SGD(twin.parameters(), lr=0.5)
    desat.apply(net, optimizer, "optimizer=warmup:4")
    rises = lr_scheduler.LambdaLR(reference, lambda step: min(1.0, (step + 1) / 4))
    assert train(net, optimizer) == pytest.approx(train(twin, reference, rises), rel=1e-6)


def test_hold_keeps_the_rate_of_the_first_step() -> None:
    net, twin = network(), network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    desat.apply(net, optimizer, "optimizer=hold")
    losses = train(net, optimizer, lr_scheduler.StepLR(optimizer, 1, 0.1))
    assert losses == train(twin, torch.optim.SGD(twin.parameters(), lr=0.5))


def test_a_ramp_covers_six_orders_of_magnitude_whatever_the_schedule_does() -> None:
    net, used = network(), list[float]()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    desat.apply(net, optimizer, "optimizer=range")
    optimizer.register_step_post_hook(lambda one, args, kwargs: used.append(one.param_groups[0]["lr"]))
    train(net, optimizer, lr_scheduler.StepLR(optimizer, 1, 0.5), steps=RANGE_STEPS + 2)
    growth = [after / before for before, after in itertools.pairwise(used[:RANGE_STEPS])]
    assert (used[0], used[RANGE_STEPS - 1], used[-1]) == pytest.approx((1e-6, 1.0, 1.0))
    assert growth == pytest.approx([RANGE_WIDTH ** (1 / (RANGE_STEPS - 1))] * len(growth))


def test_a_ramp_of_adam_is_made_by_adam() -> None:
    net, twin = network(), network()
    optimizer, reference = torch.optim.SGD(net.parameters(), lr=0.5), torch.optim.Adam(twin.parameters(), lr=0.5)
    desat.apply(net, optimizer, "optimizer=adam-range:30")
    desat.apply(twin, reference, "optimizer=range:30")
    assert train(net, optimizer) == train(twin, reference)


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # within torch
def test_a_compiled_step_is_made_with_the_rate_of_the_remedy() -> None:
    losses = []
    for compiled in (False, True):
        net = network()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        desat.apply(net, optimizer, "optimizer=warmup:4", "clipping=0.1")
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        losses.append([])
        for _ in range(4):
            optimizer.zero_grad()
            loss = net(torch.ones(4, 6)).square().mean()
            loss.backward()
            step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0][-1] < losses[0][0]


def test_the_record_has_the_rate_that_was_used(tmp_path: Path) -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    desat.apply(net, optimizer, "optimizer=rate:0.5")
    with desat.watch(net, optimizer, run_dir=tmp_path / "run") as run:
        train(net, optimizer)
    assert run.record().steps()["learning_rate"] == pytest.approx([0.25] * 8)


def test_momentum_and_defaults() -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.99, weight_decay=3.0)
    desat.apply(net, optimizer, "optimizer=momentum:0.9")
    assert optimizer.param_groups[0]["momentum"] == 0.9
    (change,) = desat.apply(net, optimizer, "optimizer=defaults")
    assert "weight_decay 3.0 -> 0" in change.after
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.5, 0, 0)
    assert "defaults" in refused(desat.apply(net, optimizer, "optimizer=defaults"))
    adam = torch.optim.Adam(net.parameters(), betas=(0.5, 0.9))
    desat.apply(net, adam, "optimizer=momentum:0.8")
    assert adam.param_groups[0]["betas"] == (0.8, 0.9)


def test_missing_parameters_are_trained_and_frozen_ones_stay_frozen() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    net[0].requires_grad_(False)
    groups = [{"params": net[2].parameters()}, {"params": [net[4].weight], "lr": 0.2}]
    optimizer = torch.optim.Adagrad(groups, lr=0.1)  # its state is there before the first step
    adopted, frozen = desat.apply(net, optimizer, "optimizer=missing")
    assert (adopted.site, frozen.site) == ("4", "0")
    assert frozen.refused is not None
    assert optimizer.param_groups[1]["params"][1] is net[4].bias
    before = [parameter.clone() for parameter in net.parameters()]
    train(net, optimizer)
    assert [torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True)] == [True] * 2 + [
        False
    ] * 4
    assert "already" in str(desat.apply(net, optimizer, "optimizer=missing")[0].refused)


def test_missing_parameters_get_their_names_and_several_optimizers_are_not_chosen_from() -> None:
    net = network()
    named = torch.optim.Adam(net[0].named_parameters(prefix="0"))
    desat.apply(net, named, "optimizer=missing")
    assert named.param_groups[0]["param_names"] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    train(net, named)
    other = network()
    two = [torch.optim.SGD([parameter], lr=0.1) for parameter in other[0].parameters()]
    (change,) = apply(Patient(other, two), [parse("optimizer=missing")])
    assert "several" in str(change.refused)


class Own(torch.optim.SGD):
    pass


@pytest.mark.parametrize(
    ("make", "remedy", "reason"),
    [
        (lambda net: torch.optim.LBFGS(net.parameters()), "optimizer=adam", "line"),
        (lambda net: torch.optim.LBFGS(net.parameters()), "optimizer=rate:0.1", "line"),
        (lambda net: Own(net.parameters(), lr=0.1), "optimizer=adam", "torch's"),
        (lambda net: torch.optim.SGD(net.parameters(), lr=0.0), "optimizer=adam", "0"),
        (lambda net: torch.optim.Adagrad(net.parameters()), "optimizer=momentum:0.5", "no momentum"),
        (lambda net: torch.optim.Adam(net.parameters(), capturable=True), "optimizer=warmup:5", "captured"),
    ],
)
def test_what_is_unsafe_is_refused(make: Callable, remedy: str, reason: str) -> None:
    net = network()
    optimizer = make(net)
    kind, groups = type(optimizer), copy.deepcopy(optimizer.param_groups)
    assert reason in refused(desat.apply(net, optimizer, remedy))
    assert type(optimizer) is kind
    assert str(optimizer.param_groups) == str(groups)


def test_sparse_gradients_other_optimizers_and_second_changes_are_refused() -> None:
    sparse = nn.Sequential(nn.Embedding(5, 3, sparse=True))
    assert "sparse" in refused(desat.apply(sparse, torch.optim.SGD(sparse.parameters(), lr=1.0), "optimizer=adam"))
    net = network()
    first, second = torch.optim.SGD(net.parameters(), lr=0.1), torch.optim.SGD(net[0].parameters(), lr=0.1)
    changes = apply(Patient(net, [first, second]), [parse("optimizer=adam")])
    assert all("another optimizer" in str(change.refused) for change in changes)
    assert "hand it over" in refused(desat.apply(net, None, "optimizer=adam"))
    desat.apply(net, first, "optimizer=rate:0.5")
    assert "already" in refused(desat.apply(net, first, "optimizer=rate:0.5"))


def test_a_step_that_something_else_replaced_is_left_alone() -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    optimizer.step = lambda: None
    assert "replaced" in refused(desat.apply(net, optimizer, "optimizer=adam"))


def test_flags_stay_where_the_new_class_knows_them_and_a_scaler_unscales_where_it_does_not() -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=True, maximize=True)
    desat.apply(net, optimizer, "optimizer=rmsprop")
    assert optimizer.param_groups[0]["maximize"]
    assert not getattr(optimizer, "_step_supports_amp_scaling", False)
    other = torch.optim.SGD(net.parameters(), lr=0.1, fused=True)
    desat.apply(net, other, "optimizer=adam")
    assert other.param_groups[0]["fused"]
    assert other._step_supports_amp_scaling
    train(net, other)


def test_the_state_of_a_changed_optimizer_is_saved_and_loaded(tmp_path: Path) -> None:
    net, twin = network(), network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    desat.apply(net, optimizer, "optimizer=adam:0.01")
    train(net, optimizer)
    torch.save([net.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
    again = torch.optim.SGD(twin.parameters(), lr=0.5)
    desat.apply(twin, again, "optimizer=adam:0.01")
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    twin.load_state_dict(weights)
    again.load_state_dict(state)
    assert train(net, optimizer) == train(twin, again)


def test_random_numbers_stay_and_compiled_networks_train() -> None:
    net = network()
    compiled = torch.compile(net, backend="eager")
    optimizer, state = torch.optim.SGD(net.parameters(), lr=0.5), torch.get_rng_state()
    desat.apply(compiled, optimizer, "optimizer=adamw")
    assert torch.equal(torch.get_rng_state(), state)
    twin = network()
    expected = train(twin, torch.optim.AdamW(twin.parameters(), lr=1e-3))
    assert train(compiled, optimizer) == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def noted() -> Iterator[None]:
    origins.install()
    yield
    origins.uninstall()


@pytest.mark.usefixtures("noted")
@pytest.mark.parametrize(
    ("imports", "written", "remedy", "expected"),
    [
        ("import torch", "torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)", "optimizer=adam",
         "torch.optim.Adam(net.parameters(), lr=0.001)"),
        ("from torch import optim", "optim.SGD(params=net.parameters(), lr=0.1, maximize=True)", "optimizer=adamw:0.01",
         "optim.AdamW(params=net.parameters(), lr=0.01, maximize=True)"),
        ("import torch\nfrom torch.optim import SGD", "SGD(\n    net.parameters(),  # all\n    lr=0.1,\n)",
         "optimizer=rmsprop", "torch.optim.RMSprop(net.parameters(), lr=0.01)"),
        ("import torch", "torch.optim.SGD(net.parameters(), lr=rate)", "optimizer=rate:0.1",
         "torch.optim.SGD(net.parameters(), lr=0.1 * (rate))"),
        ("import torch", "torch.optim.Adam(net.parameters())", "optimizer=rate:0.1",
         "torch.optim.Adam(net.parameters(), lr=0.0001)"),
        ("import torch", "torch.optim.SGD(net.parameters(), lr=0.1)", "optimizer=momentum:0.5",
         "torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.5)"),
        ("import torch", "torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=2)", "optimizer=defaults",
         "torch.optim.SGD(net.parameters(), lr=0.1)"),
        ("import torch", "torch.optim.SGD(net[2].parameters(), lr=0.1)", "optimizer=rate:0.5",
         "torch.optim.SGD(net[2].parameters(), lr=0.05)"),
        ("from torch.optim import SGD", "SGD(net.parameters(), lr=0.1)", "optimizer=adam", None),
        ("import torch", "torch.optim.SGD([{'params': net[0].parameters(), 'lr': 1.0}, {'params': net[2].parameters()}]"
         ", lr=0.1)", "optimizer=adam", None),
    ],
)  # fmt: skip
def test_the_constructor_is_written_anew(
    tmp_path: Path, imports: str, written: str, remedy: str, expected: str | None
) -> None:
    script = tmp_path / "train.py"
    script.write_text(f"{imports}\nrate = 0.2\noptimizer = {written}\n")
    net = network()
    made = runpy.run_path(str(script), {"net": net})["optimizer"]
    (change,) = desat.apply(net, made, remedy)
    assert change.refused is None
    result = edited(script.read_text(), change.edits)
    assert result == f"{imports}\nrate = 0.2\noptimizer = {written if expected is None else expected}\n"
    again = runpy.run_path(str(script), {"net": net})["optimizer"]  # what is written can be run
    assert len(again.param_groups) == len(made.param_groups)


@pytest.mark.usefixtures("noted")
def test_an_optimizer_of_a_part_is_written_as_one_of_the_whole(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    script = tmp_path / "train.py"
    script.write_text("import torch\noptimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)\n")
    net = Net()
    optimizer = runpy.run_path(str(script), {"model": net})["optimizer"]
    (change,) = desat.apply(net, optimizer, "optimizer=missing")
    assert change.refused is None
    assert edited(script.read_text(), change.edits) == script.read_text().replace("model.head.", "model.")


def test_a_whole_script_is_run_with_another_optimizer(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import torch\n"
        "from torch import nn\n"
        "model = nn.Linear(3, 2)\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)\n"
        "for _ in range(4):\n"
        "    model(torch.ones(4, 3)).square().mean().backward()\n"
        "    optimizer.step()\n"
        "    schedule.step()\n"
    )
    ended = run_desat("run", "--run-dir", "run", "--apply", "optimizer=adam:0.01", "train.py", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    record = Record(tmp_path / "run")
    assert record.steps()["learning_rate"] == pytest.approx([0.01, 0.01, 0.001, 0.001])
    assert record.information["applied"] == ["the optimizer: SGD with a rate of 0.1 -> Adam with a rate of 0.01"]
    (edit,) = record.information["edits"]
    assert edit["text"] == "torch.optim.Adam(model.parameters(), lr=0.01)"


@given(st.floats(-4, 0), st.integers(0, 2**31))
def test_the_range_test_finds_a_tenth_of_where_the_loss_is_lowest(best: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.linspace(-6, 1, 120, dtype=torch.float64)
    # Falls to its lowest value at the best rate, and is ever steeper beyond it.
    falling = 2.3 - 1.5 * torch.sigmoid(3 * (exponents - best + 1))
    losses = falling + 5 * (exponents - best).clamp(min=0) ** 2 + 0.02 * torch.randn(120, generator=generator)
    rates = (10**exponents).tolist()
    found = suggested_rate(rates, losses.tolist())
    assert found is not None
    assert abs(math.log10(found / SAFETY) - best) < 0.6


@pytest.mark.parametrize("losses", [[], [2.3] * 100, [2.3 + 0.01 * step for step in range(100)], [math.nan] * 100])
def test_where_no_rate_lowers_the_loss_none_is_suggested(losses: list[float]) -> None:
    assert suggested_rate([1e-6 * 1.15**step for step in range(len(losses))], losses) is None


def test_what_comes_after_the_loss_has_exploded_does_not_count() -> None:
    losses = [2.0 - 0.01 * step for step in range(60)] + [50.0] * 10 + [0.1] * 30
    rates = [1e-6 * 1.15**step for step in range(100)]
    assert suggested_rate(rates, losses) == pytest.approx(rates[59] * SAFETY, rel=0.2)
    assert suggested_rate(rates, [*losses[:60], math.inf, *losses[61:]]) == pytest.approx(rates[59] * SAFETY, rel=0.2)
    with pytest.raises(ValueError, match="one loss for each rate"):
        suggested_rate([0.1], [])

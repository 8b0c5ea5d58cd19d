import gzip
import math
import struct

import numpy as np
import pytest
import torch
from torch import nn

from desat.deck.cliff import TARGET, Recurrence, loss_and_slopes
from desat.deck.papers import adam, clipping_at_a_cliff, residual_learning, saturation_by_layer, scaled_attention
from desat.deck.papers.digit_images import FOLDER, IMAGES, LABELS, digit_images, has_mnist
from desat.deck.papers.experiment import estimate
from desat.deck.papers.glorot import draw_standard
from desat.deck.papers.signed_percentiles import signed_percentiles
from desat.deck.slide import MissingNeedError, Statement
from desat.deck.slides.resources import PAPERS, SLIDE
from desat.deck.training import batches, digits, stack, trained
from desat.reference.attention import attention_logits, softmax
from desat.reference.optimizers import AdamState, adam_step


def _statements(fast_page, words: str) -> list[Statement]:
    """The statements whose claim has these words in it, in the order of the page."""
    return [statement for statement in fast_page(SLIDE).statements if words in statement.claim]


def test_each_paper_has_its_picture_its_statements_and_where_to_read_it(fast_page) -> None:
    page = fast_page(SLIDE)
    assert len(page.figures) == len(PAPERS) == len({figure.name for figure in page.figures})
    assert {reading.citation for reading in page.readings} == {paper.reading.citation for paper in PAPERS}
    assert len(page.readings) == len(set(page.readings))
    for paper in PAPERS:
        told = [statement for statement in page.statements if statement.claim.startswith(f"{paper.name}: ")]
        assert told
        assert all(type(statement.holds) is bool for statement in told)  # the cache keeps pages as JSON
    for figure in page.figures:
        assert len(figure.alt) > 60
        assert figure.caption


def test_the_top_layer_of_sigmoids_falls_to_zero_alone_and_recovers_late(fast_page) -> None:
    falls, recovers = (_statements(fast_page, words)[0] for words in ("falls to zero", "out of saturation"))
    assert falls.holds
    assert recovers.holds
    lowest = falls.values["lowest"]
    # The slope s (1 - s) is concave, so that its mean is below that of the mean output (Jensen).
    steepest_possible = 4.0 * lowest * (1.0 - lowest)
    assert 0.5 * steepest_possible < falls.values["slope_percent"] / 100.0 <= steepest_possible + 0.005
    assert falls.values["lowest_below"] > 0.4
    assert recovers.values["loss_before"] == pytest.approx(math.log(10.0), abs=0.06)
    assert recovers.values["last"] > 2.0 * recovers.values["lowest"]
    assert recovers.values["escape"] > 50.0


def test_the_first_layer_of_tanh_saturates_first_and_softsign_saturates_less(fast_page) -> None:
    first, less, together = _statements(fast_page, "Glorot and Bengio 2010")[2:5]
    assert first.holds
    assert less.holds
    layers = range(1, saturation_by_layer.DEPTH + 1)
    shares = [first.values[f"share_{layer}"] for layer in layers]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[1] + 0.05
    assert first.values["filled_1"] < min(first.values[f"filled_{layer}"] for layer in layers[1:])
    for layer in layers:
        assert less.values[f"tanh_{layer}"] > less.values[f"softsign_{layer}"] + 0.2
    reached = [together.values[f"reached_{layer}"] for layer in layers]
    assert together.values["apart"] == max(reached) - min(reached)
    assert ("the first is ahead" in together.sentence) != together.holds


@pytest.mark.parametrize("name", ["tanh", "softsign"])
def test_percentiles_deviations_and_shares_by_layer_are_numpy_s_at_the_first_step(name: str) -> None:
    run = saturation_by_layer.train(name, 0, True)
    kind = saturation_by_layer.KINDS[name]
    torch.manual_seed(0)
    data = digits(0)
    model = stack([64, *[saturation_by_layer.WIDTH] * saturation_by_layer.DEPTH, 10], kind.module)
    draw_standard(model)
    inputs, _ = next(batches(data.inputs, data.labels, saturation_by_layer.BATCH, 0))
    signal = inputs.double().numpy()
    slope = {"tanh": lambda z: 1.0 - np.tanh(z) ** 2, "softsign": lambda z: (1.0 + np.abs(z)) ** -2.0}[name]
    for layer in range(saturation_by_layer.DEPTH):
        argument = signal @ model[2 * layer].get_parameter("weight").detach().double().numpy().T
        signal = np.asarray(kind.reference(argument))
        assert run.deviations[layer, 0] == pytest.approx(signal.std(), rel=1e-4)
        assert run.saturated[layer, 0] == pytest.approx((slope(argument) < 0.05).mean(), abs=1e-6)
        # Read from bins by powers of two; the batch's magnitudes are about, and not quite, those of a normal draw.
        assert run.percentiles[layer, 0] == pytest.approx(np.quantile(np.abs(signal), 0.98), rel=0.08)


def test_normalized_initialization_keeps_gradients_and_standard_takes_a_third_of_their_variance(fast_page) -> None:
    gradients, outputs = _statements(fast_page, "Glorot and Bengio 2010")[-2:]
    assert gradients.holds
    assert outputs.holds
    by_equation = 4.0 * 10.0 * math.log10(1.0 / 3.0)
    assert gradients.values["expected_db"] == pytest.approx(by_equation)
    assert gradients.values["standard_db"] == pytest.approx(by_equation, abs=2.0)
    assert outputs.values["standard_db"] == pytest.approx(by_equation, abs=2.0)
    for statement in (gradients, outputs):
        assert -6.0 < statement.values["normalized_db"] < 1.0


def test_rectifiers_take_half_of_the_variance_at_each_layer_from_xavier_s_weights(fast_page) -> None:
    converges, levels = _statements(fast_page, "He et al. 2015")
    assert converges.holds
    assert levels.holds
    assert converges.values["xavier"] == pytest.approx(math.log(10.0), abs=0.02)
    assert converges.values["he"] < converges.values["xavier"] - 0.05
    halved = 29 * 10.0 * math.log10(0.5)
    assert levels.values["xavier_db"] == pytest.approx(halved, abs=8.0)
    # The same draws times root 2 at each layer, which rectifiers pass on as a factor.
    assert levels.values["he_db"] - levels.values["xavier_db"] == pytest.approx(-halved, abs=8.0)


def test_batch_normalization_speeds_up_and_keeps_the_percentiles(fast_page) -> None:
    faster, stable = _statements(fast_page, "Ioffe and Szegedy 2015")
    assert faster.holds
    assert stable.holds
    assert faster.values["steps_with"] < 0.5 * faster.values["steps_without"]
    assert faster.values["accuracy_with"] > faster.values["accuracy_without"] + 10.0
    assert stable.values["move_with"] < 1.0 < stable.values["move_without"]


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (-0.5, 0.4), (2.0, 1.0), (-3.0, 2.0), (0.0, 5.0)])
def test_signed_percentiles_are_read_from_the_histograms_of_a_record(mean: float, deviation: float) -> None:
    torch.manual_seed(0)
    inputs = mean + deviation * torch.randn(60, 30)
    layer = nn.Linear(30, 30, bias=False)
    nn.init.eye_(layer.weight)
    model = nn.Sequential(layer, nn.Sigmoid())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batch = (inputs, torch.zeros(60, 30))
    with trained(model, optimizer, [batch], 1, criterion=nn.functional.mse_loss) as record:
        steps, percentiles = signed_percentiles(record, record.sites("nonlinearity")[0], (0.15, 0.5, 0.85))
    assert steps.tolist() == [0]
    assert percentiles[0] == pytest.approx(np.percentile(inputs.numpy(), [15.0, 50.0, 85.0]), abs=0.6)
    assert percentiles[0, 1] == pytest.approx(float(inputs.median()), abs=0.15)


def test_adam_s_losses_are_those_of_its_formula_in_numpy(fast_page) -> None:
    faster, alike, others = _statements(fast_page, "Kingma and Ba 2015")
    assert faster.holds
    assert others.holds
    rate, steps = faster.values["adam_rate"], adam.STEPS[True]
    assert rate in adam.RATES[True]
    assert faster.values["adam"] == pytest.approx(_mean_loss_by_formula(rate, steps), rel=1e-3)
    by_share = 100.0 * (faster.values["adam"] / faster.values["sgd"] - 1.0)
    assert alike.values["percent"] == pytest.approx(by_share)
    assert alike.holds == (abs(by_share) < adam.ALIKE)
    assert ("not alike" in alike.sentence) != alike.holds


def _mean_loss_by_formula(rate: float, steps: int) -> float:
    """The mean loss of logistic regression by Adam with rate / root(step), seed 0."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 10)
    data = digits(0)
    # One array: the weights with the biases as their last column.
    parameter = np.concatenate([layer.weight.detach().numpy(), layer.bias.detach().numpy()[:, None]], axis=1)
    state: AdamState | None = None
    losses = []
    source = batches(data.inputs, data.labels, adam.BATCH, 0)
    for step, (inputs, labels) in zip(range(1, steps + 1), source, strict=False):
        given = np.concatenate([inputs.double().numpy(), np.ones((len(inputs), 1))], axis=1)
        probabilities = softmax(given @ parameter.T)
        chosen = np.eye(10)[labels.numpy()]
        losses.append(-np.log((probabilities * chosen).sum(axis=1)).mean())
        gradient = (probabilities - chosen).T @ given / len(given)
        parameter, state = adam_step(parameter, gradient, state, learning_rate=rate / math.sqrt(step))
    return float(np.mean(losses))


def test_a_deep_plain_network_trains_worse_and_its_residual_twin_does_not(fast_page) -> None:
    degraded, restored, deeper = _statements(fast_page, "He et al. 2016")
    assert degraded.holds
    assert restored.holds
    assert degraded.values["plain_deep"] > math.log(10.0) - 0.1  # it has learned nothing
    assert restored.values["residual_deep"] < degraded.values["plain_shallow"]
    assert deeper.values["residual_deep"] == restored.values["residual_deep"]
    lead = deeper.values["residual_shallow"] - deeper.values["residual_deep"]
    assert deeper.holds == (lead > 0.0)
    assert ("here it is not" in deeper.sentence) != deeper.holds


@pytest.mark.parametrize("depth", residual_learning.DEPTHS)
def test_plain_and_residual_networks_are_twins_of_as_many_layers_as_the_paper_s(depth: int) -> None:
    twins = []
    for has_shortcut in (False, True):
        torch.manual_seed(3)
        twins.append(residual_learning.network(depth, has_shortcut=has_shortcut))
    assert sum(isinstance(module, nn.Linear) for module in twins[0].modules()) == depth
    for plain, residual in zip(twins[0].parameters(), twins[1].parameters(), strict=True):
        assert torch.equal(plain, residual)
    inputs = torch.randn(32, 64)
    assert not torch.equal(twins[0](inputs), twins[1](inputs))


def test_the_descent_that_desat_watched_is_thrown_as_far_as_the_formula_says(fast_page) -> None:
    thrown, ends = _statements(fast_page, "Goodfellow et al. 2016")
    assert thrown.holds
    assert ends.holds
    assert thrown.values["longest"] == pytest.approx(thrown.values["longest_computed"], rel=1e-4)
    assert thrown.values["longest"] == pytest.approx(
        clipping_at_a_cliff.LEARNING_RATE * thrown.values["largest_norm"], rel=1e-4
    )
    assert thrown.values["longest_clipped"] == pytest.approx(
        clipping_at_a_cliff.LEARNING_RATE * clipping_at_a_cliff.LARGEST_NORM, rel=1e-4
    )
    assert ends.values["late"] - ends.values["late_clipped"] == pytest.approx(ends.values["gained"])


def test_the_gradient_of_the_recurrence_is_autograd_s() -> None:
    for weight, bias in ((5.0, -2.4), (4.2, -2.0), (5.5, -2.9)):
        time, begin = clipping_at_a_cliff.STEPS_IN_TIME, clipping_at_a_cliff.FIRST_STATE
        loss, *gradient = loss_and_slopes(np.array([weight]), np.array([bias]), time, begin)
        model = Recurrence(weight, bias, time)
        output = model(torch.tensor(begin, dtype=torch.float64))
        expected = (output - TARGET) ** 2
        expected.backward()
        assert loss[0] == pytest.approx(expected.item(), rel=1e-9)
        for slope, parameter in zip(gradient, (model.weight, model.bias), strict=True):
            assert parameter.grad is not None
            assert slope == pytest.approx(parameter.grad.numpy(), rel=1e-6)


def test_the_softmax_of_unscaled_products_loses_its_gradient_as_numpy_says(fast_page) -> None:
    variance, gradient = _statements(fast_page, "Vaswani et al. 2017")
    assert variance.holds
    assert gradient.holds
    for width in scaled_attention.WIDTHS:
        assert variance.values[f"variance_over_d_{width}"] == pytest.approx(1.0, abs=0.2)
    narrow, wide = (_median_gradient(width, None) for width in (4, 128))
    assert gradient.values["scaled_db"] == pytest.approx(20.0 * math.log10(wide / narrow), abs=3.0)
    narrow, wide = (_median_gradient(width, 1.0) for width in (4, 128))
    assert gradient.values["unscaled_db"] == pytest.approx(20.0 * math.log10(wide / narrow), abs=20.0)
    assert gradient.values["unscaled_db"] < -100.0


def _median_gradient(width: int, scale: float | None) -> float:
    """Median magnitude of p (r - sum of p r), the gradient at the logits for a normal gradient r at the weights."""
    generator = np.random.default_rng(7)
    query, key = generator.standard_normal((64, width)), generator.standard_normal((64, width))
    weights = softmax(attention_logits(query, key, scale=scale))
    given = generator.standard_normal(weights.shape)
    return float(np.median(np.abs(weights * (given - (weights * given).sum(axis=1, keepdims=True)))))


def test_an_estimate_has_student_s_interval_from_three_seeds_on() -> None:
    one = estimate([1.0, 2.0, 3.0])
    assert one.interval == pytest.approx((2.0 - 4.302653 / math.sqrt(3.0), 2.0 + 4.302653 / math.sqrt(3.0)), rel=1e-5)
    assert f"{one:.1f}" == "2.0 (-0.5 to 4.5)"
    assert not one.is_positive
    assert estimate([2.0, 2.1, 2.2]).is_positive
    assert estimate([1.0, 3.0]).interval is None
    assert f"{estimate([1.5]):.1f}" == "1.5"
    with pytest.raises(ValueError, match="finite"):
        estimate([1.0, math.nan])


def test_mnist_is_read_where_it_is_there(tmp_path) -> None:
    assert not has_mnist(None)
    assert not has_mnist(tmp_path)
    assert digit_images(tmp_path, 0).inputs.shape[1] == 64
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    labels = np.arange(20, dtype=np.uint8) % 10
    _write(tmp_path, images, labels)
    assert has_mnist(tmp_path)
    data = digit_images(tmp_path, 0)
    assert data.inputs.shape == (15, 784)
    assert data.test_inputs.shape == (5, 784)
    order = np.random.default_rng(0).permutation(20)
    assert data.test_labels.tolist() == labels[order[:5]].tolist()
    first = images[order[5]].reshape(-1).astype(np.float64)
    assert np.corrcoef(first, data.inputs[0].numpy())[0, 1] == pytest.approx(1.0)
    assert float(data.inputs.mean()) == pytest.approx(0.0, abs=1e-5)


def test_mnist_that_cannot_be_read_is_said_in_one_line(tmp_path) -> None:
    _write(tmp_path, np.zeros((3, 28, 28), np.uint8), np.zeros(2, np.uint8))
    with pytest.raises(MissingNeedError, match="as many labels as images"):
        digit_images(tmp_path, 0)
    (tmp_path / FOLDER / IMAGES).write_bytes(b"not gzip")
    with pytest.raises(MissingNeedError, match="needs a whole t10k-images"):
        digit_images(tmp_path, 0)
    (tmp_path / FOLDER / IMAGES).write_bytes(gzip.compress(b"\0\0\x08\x03\0\0\0\x09"))
    with pytest.raises(MissingNeedError, match="needs a whole t10k-images"):
        digit_images(tmp_path, 0)


def _write(folder, images: np.ndarray, labels: np.ndarray) -> None:
    (folder / FOLDER).mkdir(exist_ok=True)
    for name, array in ((IMAGES, images), (LABELS, labels)):
        head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        (folder / FOLDER / name).write_bytes(gzip.compress(head + array.tobytes()))

import numpy as np
import pytest
import torch

from desat.deck import training
from desat.deck.training import digits


@pytest.mark.parametrize("is_at_its_place", [True, False])
def test_digits_are_scikit_learn_s_wherever_their_file_lies(monkeypatch, tmp_path, is_at_its_place: bool) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    if not is_at_its_place:
        monkeypatch.setattr(training, "DIGITS", tmp_path / "elsewhere")
    training._drawn_digits.cache_clear()
    images, labels = datasets.load_digits(return_X_y=True)
    data = digits(3)
    training._drawn_digits.cache_clear()
    order = np.random.default_rng(3).permutation(len(labels))
    held = len(data.test_labels)
    assert torch.cat([data.test_labels, data.labels]).tolist() == labels[order].tolist()
    expected = images[order] - images[order][held:].mean()
    assert torch.cat([data.test_inputs, data.inputs]).numpy() == pytest.approx(
        expected / expected[held:].std(), abs=1e-3
    )
    assert data.inputs.dtype == torch.float32
    assert data.labels.dtype == torch.int64

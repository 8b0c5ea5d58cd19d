import contextlib
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from desat.cure.seeding import seeded
from tests.cli.test_run import desat

SCRIPT = """
import random
import numpy as np, torch
{seeds}
print(random.random(), np.random.rand(), torch.rand(1).item())
"""


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(1).item()


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.mark.parametrize("seed", [0, 3])
def test_python_numpy_and_torch_are_seeded_before_anything_is_drawn(seed: int) -> None:
    with seeded(seed):
        drawn = draw()
    seed_all(seed)
    assert drawn == draw()


def test_with_seed_0_a_script_that_seeds_draws_what_it_draws_alone() -> None:
    seed_all(7)
    alone = draw()
    with seeded(0):
        seed_all(7)
        assert draw() == alone


def test_another_seed_is_added_to_those_of_the_script() -> None:
    seed_all(12)
    expected = draw()
    with seeded(5):
        seed_all(7)
        assert draw() == expected
        assert torch.initial_seed() == 12
        torch.random.manual_seed(seed=1)
        assert torch.initial_seed() == 6


def test_the_seeds_of_devices_are_shifted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", asked.append)
    with seeded(5):
        torch.manual_seed(1)
        torch.cuda.manual_seed_all(2)
    assert asked == [5, 6, 7]


def test_generators_are_shifted_and_stay_generators() -> None:
    with seeded(5):
        generator = torch.Generator().manual_seed(7)
        assert generator.initial_seed() == 12
        assert isinstance(generator, torch.Generator)
        assert isinstance(torch.default_generator, torch.Generator)
        order = [batch.item() for batch in DataLoader(range(20), shuffle=True, generator=generator)]  # pyright: ignore
    assert order == [
        batch.item()
        for batch in DataLoader(range(20), shuffle=True, generator=torch.Generator().manual_seed(12))  # pyright: ignore
    ]


def test_seeds_that_are_no_integers_are_left_alone() -> None:
    random.seed("a")
    alone = random.random()
    with seeded(5):
        random.seed("a")
        assert random.random() == alone
        random.seed(None)
        np.random.seed([1, 2])


def test_a_seed_at_the_upper_end_does_not_overflow() -> None:
    with seeded(5):
        np.random.seed(2**32 - 1)
        torch.manual_seed(2**63 - 1)
        random.seed(2**70)


def test_everything_is_put_back() -> None:
    before = random.seed, np.random.seed, torch.manual_seed, torch.cuda.manual_seed_all, torch.Generator
    with contextlib.suppress(ZeroDivisionError), seeded(5):
        assert torch.Generator is not before[-1]
        raise ZeroDivisionError
    after = random.seed, np.random.seed, torch.manual_seed, torch.cuda.manual_seed_all, torch.Generator
    assert after == before
    assert not [finder for finder in sys.meta_path if getattr(finder, "_name", "") == "torch"]


def test_without_a_seed_nothing_is_done() -> None:
    random.seed(1)
    expected = random.random()
    random.seed(1)
    with seeded(None):
        assert random.random() == expected


def test_desat_run_seeds_a_script_before_it_imports_torch(tmp_path: Path) -> None:
    drawn = {}
    for seeds, option in (("", 4), ("torch.manual_seed(3); np.random.seed(3); random.seed(3)", 1)):
        (tmp_path / "train.py").write_text(SCRIPT.format(seeds=seeds))
        done = desat("run", "--quiet", "--run-dir", f"run-{option}", "--seed", option, "train.py", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        drawn[option] = done.stdout
    seed_all(4)
    expected = " ".join(map(str, draw())) + "\n"
    assert drawn == {4: expected, 1: expected}

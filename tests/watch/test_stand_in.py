"""Methods of others are there again afterwards, in whatever order those that stood in for them have left."""

import itertools
from typing import Any

import pytest
import torch
from torch import nn

import desat
from desat.watch.stand_in import StandIn


class Owner:
    def act(self, number: int) -> list[Any]:
        """What is done."""
        return [number]


ORIGINAL = Owner.act


def marked(mark: str) -> StandIn:
    return StandIn(Owner, "act", lambda original, owner, number: [mark, *original(owner, number)])


@pytest.mark.parametrize("order", list(itertools.permutations("abc")), ids="".join)
def test_they_leave_in_any_order_and_only_they(order: tuple[str, ...]) -> None:
    standing = {mark: marked(mark) for mark in "abc"}
    for one in standing.values():
        one.install()
    left = ["c", "b", "a"]
    assert Owner().act(1) == [*left, 1]
    for mark in order:
        standing[mark].uninstall()
        left.remove(mark)
        assert Owner().act(1) == [*left, 1]
    assert Owner.act is ORIGINAL


def test_what_the_user_put_over_it_stays_and_ours_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = marked("ours")
    ours.install()
    below = Owner.act
    monkeypatch.setattr(Owner, "act", lambda owner, number: ["user", *below(owner, number)])
    assert Owner().act(1) == ["user", "ours", 1]
    theirs = Owner.act
    ours.uninstall()
    ours.uninstall()
    assert Owner.act is theirs
    assert Owner().act(1) == ["user", 1]
    monkeypatch.undo()
    assert Owner().act(1) == [1]
    Owner.act = ORIGINAL


def test_it_can_stand_again_and_looks_like_the_original() -> None:
    one = marked("one")
    for _ in range(2):
        one.install()
        assert Owner.act.__doc__ == ORIGINAL.__doc__
        assert Owner().act(2) == ["one", 2]
        one.uninstall()
        assert Owner.act is ORIGINAL


def test_two_watches_that_overlap_leave_nothing_behind(tmp_path) -> None:
    backward, scale, compile = torch.Tensor.backward, torch.amp.GradScaler.scale, torch.compile
    watches = []
    for name in ("first", "second"):
        model = nn.Linear(2, 1)
        watches.append(desat.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), run_dir=tmp_path / name))
        watches[-1].__enter__()
    for watch in watches:
        watch.__exit__(None, None, None)
    assert torch.Tensor.backward is backward
    assert torch.amp.GradScaler.scale is scale
    assert torch.compile is compile

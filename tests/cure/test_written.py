from desat.cure.edit import Edit, Span
from desat.cure.family import Change
from desat.cure.written import written


def edit(column: int, text: str = "new()", end: int | None = None, file: str = "/home/me/train.py") -> Edit:
    return Edit(Span(file, 1, column, 1, column + 4 if end is None else end), text)


def change(remedy: str, *edits: Edit, refused: str | None = None) -> Change:
    return Change(remedy, "net", "old", "new", refused, edits)


def test_what_has_an_edit_is_written_and_the_rest_is_by_hand() -> None:
    changes = [change("activation=relu", edit(0)), change("initialization=he"), change("initialization=he")]
    assert written(changes) == ([edit(0)], ["initialization=he"])


def test_what_was_refused_is_neither_written_nor_by_hand() -> None:
    assert written([change("activation=relu", refused="it is a gate")]) == ([], [])


def test_a_remedy_may_be_both() -> None:
    assert written([change("activation=relu", edit(0)), change("activation=relu")]) == ([edit(0)], ["activation=relu"])


def test_the_optimizer_is_written_as_a_whole_or_not_at_all() -> None:
    """Applied by hand to what is written in part, a rate would change twice."""
    changes = [change("optimizer=rate:0.1", edit(0)), change("optimizer=rate:0.1"), change("activation=relu", edit(9))]
    assert written(changes) == ([edit(9)], ["optimizer=rate:0.1"])


def test_of_edits_that_overlap_one_is_written_and_the_other_by_hand() -> None:
    outer, inner = edit(0, end=20), edit(5)
    changes = [change("activation=relu", inner), change("normalization=batch", outer)]
    assert written(changes) == ([outer], ["activation=relu"])


def test_an_installed_package_is_not_written_to() -> None:
    library = edit(0, file="/home/me/.venv/lib/python3.13/site-packages/nets/blocks.py")
    assert written([change("activation=relu", library)]) == ([], ["activation=relu"])


def test_an_edit_that_stands_for_two_places_is_made_once() -> None:
    assert written([change("activation=relu", edit(0)), change("activation=relu", edit(0))]) == ([edit(0)], [])

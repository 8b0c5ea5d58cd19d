from hypothesis import given
from hypothesis import strategies as st

from desat.diagnose.episode import find_episode


def test_an_episode_that_lasts_is_told_with_its_beginning() -> None:
    episode = find_episode([0, 10, 20, 30, 40], [False, False, True, True, True])
    assert episode is not None
    assert (episode.first_step, episode.last_step, episode.ongoing, episode.from_start) == (20, 40, True, False)
    assert episode.previous_step == 10
    assert episode.since == "since step 20"


def test_an_episode_that_is_over_says_so() -> None:
    episode = find_episode(range(8), [True, True, True, False, False, False, False, False])
    assert episode is not None
    assert not episode.ongoing
    assert "not since" in episode.since


def test_a_lone_sample_that_is_over_is_none() -> None:
    assert find_episode(range(5), [False, True, False, False, False]) is None


@given(st.lists(st.booleans(), max_size=30))
def test_an_episode_lies_within_the_samples_and_more_margin_is_more_confidence(held: list[bool]) -> None:
    steps = [7 * index for index in range(len(held))]
    episode = find_episode(steps, held)
    if not any(held):
        assert episode is None
    if episode is not None:
        assert 0 <= episode.first_step <= episode.last_step <= steps[-1]
        assert 0 < episode.confidence(0.0) <= episode.confidence(1.0) <= 1

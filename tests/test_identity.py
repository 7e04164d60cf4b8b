"""Random numbers and sides by source_id: the stars of 0.1.0, and streams that have nothing in common."""

from itertools import combinations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from xpbayes.identity import Side, Split, Stream, seeds_from_id, uniform_from_id

IDS = np.arange(20_000, dtype=np.int64) * 4_398_046_511_104 + 17
PAIRS = list(combinations(Stream, 2))


def by_hand(source_id: int, number: int) -> float:
    """Splitmix64 with Python's integers, as 0.1.0 used it."""
    z = (source_id + (number + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return (((z ^ (z >> 31)) >> 11) + 0.5) / 2**53


@pytest.mark.parametrize("seed", [0, 3])
def test_sides_and_draws_are_those_of_0_1_0(seed):
    few = IDS[:2000]
    held, aside = (np.array([by_hand(i, n + seed) for i in few.tolist()]) for n in (0, 1000))
    split = Split(0.2, 0.15, seed)
    assert_array_equal(split.on(Side.HELD_OUT, few), held < 0.2)
    assert_array_equal(split.on(Side.KEPT_ASIDE, few), (held >= 0.2) & (aside < 0.15))
    assert_array_equal(seeds_from_id(few, Stream.DRAWS), [int(by_hand(i, 17) * 2**32) for i in few.tolist()])


def test_every_star_is_on_one_side():
    split = Split(0.2, 0.15, 3)
    assert_array_equal(sum(split.on(side, IDS).astype(int) for side in Side), 1)
    for side, share in zip(Side, (0.68, 0.12, 0.2), strict=True):
        # 4 sigma of a binomial share
        assert abs(split.on(side, IDS).mean() - share) < 4 * np.sqrt(share * (1 - share) / len(IDS))


def test_sides_belong_to_the_star_not_the_table():
    order = np.random.default_rng(0).permutation(len(IDS))
    for side in Side:
        assert_array_equal(Split(0.2, 0.15).on(side, IDS)[order], Split(0.2, 0.15).on(side, IDS[order]))


def test_another_seed_is_an_independent_split():
    both = (Split(0.2, seed=0).on(Side.HELD_OUT, IDS) & Split(0.2, seed=1).on(Side.HELD_OUT, IDS)).mean()
    assert abs(both - 0.04) < 4 * np.sqrt(0.04 * 0.96 / len(IDS))


def test_a_larger_fraction_contains_the_smaller():
    small, large = (Split(fraction).on(Side.HELD_OUT, IDS) for fraction in (0.1, 0.3))
    assert np.all(large[small])


def test_cards_without_calibration_kept_nothing_aside():
    split = Split.of({"split": {"fraction": 0.2, "seed": 4}, "settings": {}})
    assert split == Split(0.2, 0.0, 4) and not split.on(Side.KEPT_ASIDE, IDS).any()


def test_no_two_streams_or_seeds_coincide():
    """But for the keys of draws, which are where 0.1.0 had them: see `Stream`."""
    seeds = range(101)
    numbers = {(stream, seed): stream.number(seed) for stream in Stream for seed in seeds if stream != Stream.DRAWS}
    assert len(set(numbers.values())) == len(numbers)
    assert [key for key, number in numbers.items() if number == Stream.DRAWS.number(0)] == [(Stream.HELD_OUT, 17)]


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=[f"{a.name}-{b.name}" for a, b in PAIRS])
def test_streams_are_uncorrelated(one, other):
    a, b = (uniform_from_id(IDS, stream, 0) for stream in (one, other))
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(len(IDS))

"""Programs for few stars and for many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xpbayes import device
from xpbayes.device import FEW_STARS, hasty_programs, is_hasty, program, suited_programs


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """A process that has solved no star yet, whose user has no say in how programs are compiled."""
    monkeypatch.setattr(device, "_few_left", [FEW_STARS])
    monkeypatch.setattr(device, "_users_level", [False])


def test_few_stars_get_hasty_programs_until_they_are_many():
    for n, hasty in ((10, True), (FEW_STARS - 10, True), (1, False), (1, False)):
        with suited_programs(n):
            assert is_hasty() is hasty
        assert not is_hasty()


def test_many_stars_at_once_leave_the_process_with_fast_programs():
    with suited_programs(FEW_STARS + 1):
        assert not is_hasty()
    with suited_programs(1):
        assert not is_hasty()


def test_slow_work_gets_fast_programs():
    with suited_programs(1, slow=True):
        assert not is_hasty()


def test_a_user_s_own_level_stays(monkeypatch):
    monkeypatch.setattr(device, "_users_level", [True])
    with hasty_programs(True):
        assert not is_hasty()


def test_both_kinds_of_program_are_compiled_once_each_and_agree():
    traced = []

    @program
    def double(x):
        traced.append(x)
        return 2.0 * x

    results = []
    for hasty in (False, True, False, True):
        with hasty_programs(hasty):
            results.append(np.asarray(double(jnp.arange(3.0))))
    assert 1 <= len(traced) <= 2  # JAX may share the trace, not the program
    assert all((found == results[0]).all() for found in results)


def test_a_program_can_be_part_of_another():
    """JAX compiles the outermost alone, and refuses options of those within."""

    @program
    def inner(x):
        return x + 1.0

    with hasty_programs(True):
        assert jax.jit(lambda x: 2.0 * inner(x))(1.0) == 4.0

"""The test of the tests: every wrong loss of mutants*.py fails, every right one passes (I7, I8).

A mutant counts as rejected only when a check says so by an AssertionError; a mutant that merely
crashes proves nothing about the checks.
"""

import re
from collections import Counter
from functools import partial
from pathlib import Path

import mutants_gae  # noqa: F401  (each fills MUTANTS)
import mutants_head  # noqa: F401
import mutants_pairs  # noqa: F401
import mutants_ppo  # noqa: F401
import pytest
import test_dpo
import test_gae
import test_kl
import test_logprobs
import test_masked
import test_orpo
import test_ppo
import test_reward
import test_sft
import test_whiten
from bugs import BUGS
from cases import CASES
from mutants import MUTANTS
from test_identities import CONTRACT

import losses

VALUES = {
    "masked_sum": test_masked.SUM_CHECKS,
    "masked_mean": test_masked.MEAN_CHECKS,
    "sft_loss": test_sft.CHECKS,
    "reward_loss": test_reward.CHECKS,
    "dpo_loss": test_dpo.CHECKS,
    "orpo_loss": test_orpo.CHECKS,
    "kl_estimate": test_kl.CHECKS,
    "gae": test_gae.CHECKS,
    "masked_whiten": test_whiten.CHECKS,
    "ppo_policy_loss": test_ppo.POLICY_CHECKS,
    "ppo_value_loss": test_ppo.VALUE_CHECKS,
    "token_logprobs": test_logprobs.CHECKS,
}


def suite(name):
    """All checks of a function, by name."""
    checks = {check.__name__: check for check in VALUES[name]}
    for case in CASES:
        if case.name == name:
            checks |= {f"{check.__name__}-{case}": partial(check, case=case) for check in CONTRACT}
    return checks


def rejections(fn, name, forgive=()):
    """Names of the checks that reject fn, one after the other."""
    for label, check in suite(name).items():
        try:
            check(fn)
        except AssertionError:
            yield label
        except forgive:
            pass


@pytest.mark.parametrize("name", VALUES)
def test_the_right_function_passes(name):
    assert list(rejections(getattr(losses, name), name)) == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_mutant_is_rejected(mutant):
    assert next(rejections(mutant, mutant.of), None), f"no check notices: {mutant.fn.__doc__}"


def test_every_function_has_mutants():
    count = Counter(m.of for m in MUTANTS)
    assert set(count) == set(VALUES)
    assert len(MUTANTS) >= 40 and len({str(m) for m in MUTANTS}) == len(MUTANTS)


def test_bugs_have_a_source():
    """Every number in these files is in bugs.py, and every bug there has its test."""
    mine = [p for p in Path(__file__).parent.glob("*.py") if p.name != "bugs.py"]
    used = {m for p in mine for m in re.findall(r"\b[A-J]\d{1,2}(?=[:,.)])", p.read_text())}
    assert BUGS.keys() - used == set()
    stories = {m for x in MUTANTS for m in re.findall(r"\b[A-J]\d{1,2}\b", x.fn.__doc__ or "")}
    assert stories - BUGS.keys() == set()


@pytest.mark.slow
def test_every_check_rejects_some_mutant():
    """The other way round: a check that every mutant passes is not known to check anything."""
    idle = {f"{name}: {check.__name__}" for name in VALUES for check in VALUES[name]}
    idle |= {f"contract: {check.__name__}" for check in CONTRACT}
    for mutant in MUTANTS:
        for label in rejections(mutant, mutant.of, forgive=Exception):
            idle.discard(f"{mutant.of}: {label}")
            idle.discard(f"contract: {label.split('-')[0]}")
    assert not idle

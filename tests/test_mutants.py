"""The test of the tests: every wrong loss of the catalogue fails, every right one passes (I7, I8).

A mutant counts as rejected only when a check says so by an AssertionError; a mutant that merely
crashes proves nothing about the checks.
"""

import re
from collections import Counter
from functools import partial
from pathlib import Path

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
from cases import CASES
from test_identities import CONTRACT

import losses
from benchmarks.conformance.catalogue import functions, loop  # noqa: F401  (fill the lists)
from benchmarks.conformance.catalogue.bugs import BUGS
from benchmarks.conformance.catalogue.loop.base import LOOP_MUTANTS
from benchmarks.conformance.catalogue.mutant import MUTANTS

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


def test_every_bug_has_a_test_and_every_number_a_bug():
    """Numbers like B8, in the files beside this one and of the mutants."""
    texts = [p.read_text("utf-8") for p in Path(__file__).parent.glob("*.py")]
    texts += [str(m.bug) for m in MUTANTS] + [str(m.bug) for m in LOOP_MUTANTS]
    assert {m for text in texts for m in re.findall(r"\b[A-J]\d{1,2}\b", text)} == BUGS.keys()


@pytest.mark.parametrize("letter, last", dict(D=10, E=12, F=15, G=15, H=14, I=8).items())
def test_no_bug_of_the_catalogue_is_left_out(letter, last):
    assert {f"{letter}{n}" for n in range(1, last + 1)} <= BUGS.keys()


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

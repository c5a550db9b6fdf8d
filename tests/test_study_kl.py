"""The study's KL to the base: its sign, its tokens, and that its mean is the divergence."""

from math import exp, log, sqrt
from statistics import fmean, pstdev

import pytest
import torch
from constant_models import log_ratio, make_constant
from tolerances import loose

from benchmarks.study.measure import Bench
from benchmarks.study.plan import Study

LONGEST, SAMPLES = 6, 384
END = log(600.0)  # of 1144 tokens: the policy ends at about every third token


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(policy, base, the bench, answers of the policy)."""
    folder = tmp_path_factory.mktemp("kl")
    policy, base = make_constant(folder / "policy", END), make_constant(folder / "base", 0.0)
    study = Study(model=str(folder / "base"), samples=SAMPLES, max_new_tokens=LONGEST)
    bench = Bench(study, 0, None)
    return policy, base, bench, bench.answers(bench.load(str(folder / "policy")))


def test_an_answers_kl_is_log_policy_minus_log_base_with_its_end_token(both):
    policy, base, _, answers = both
    assert len(answers["kl"]) >= SAMPLES
    assert 0.1 < fmean(answers["finished"]) < 0.95  # some end by themselves, and some are cut
    expected = [
        log_ratio(policy, base, tokens, finished)
        for tokens, finished in zip(answers["tokens"], answers["finished"], strict=True)
    ]
    assert min(expected) < -1 and max(expected) > 1
    largest = LONGEST * max(abs(policy.end), abs(base.other))  # of the sums that are subtracted
    assert answers["kl"] == pytest.approx(expected, abs=largest * loose(torch.float32))


def test_the_mean_over_answers_is_the_kl_divergence(both):
    """KL(π || base) of a token, times the tokens that are expected: one, and one more for every
    token so far that was not the end."""
    policy, base, _, answers = both
    ends = exp(policy.end)
    token = ends * (policy.end - base.end) + (1 - ends) * (policy.other - base.other)
    divergence = token * sum((1 - ends) ** t for t in range(LONGEST))
    assert divergence > 1
    error = pstdev(answers["kl"]) / sqrt(len(answers["kl"]))
    assert abs(fmean(answers["kl"]) - divergence) < 4 * error < divergence / 2


def test_the_base_has_no_kl_to_itself(both):
    bench = both[2]
    assert set(bench.answers(bench.base)["kl"]) == {0.0}

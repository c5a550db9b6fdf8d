"""A tie is no preference: where chosen and rejected come out the same, the pair is not right."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from benchmarks.study.measure import score_pairs
from data.row_table import Row
from data.splits import Split
from losses import LOSSES
from runtime.sources.heldout import evaluate_rows

CPU = torch.device("cpu")
# Every token has log-prob -1 and the last of each response is the end token, which accuracy does
# not count: a response of n tokens and c characters has -(n - 1), and -(n - 1) / c a character.
PAIRS = [  # (tokens, characters) of chosen, of rejected
    ((4, 6), (4, 8)),  # sum: a tie    a character: -3/6 < -3/8
    ((3, 4), (5, 8)),  # -2 > -4       -2/4 = -4/8, a tie
    ((5, 16), (3, 4)),  # -4 < -2      -4/16 > -2/4
    ((4, 6), (4, 6)),  # a tie         a tie
    ((3, 8), (4, 6)),  # -2 > -3       -2/8 > -3/6
    ((6, 8), (3, 8)),  # -5 < -2       -5/8 < -2/8
    ((4, 9), (4, 9)),  # a tie         a tie
]
SUM_RIGHT = [0, 1, 0, 0, 1, 0, 0]
NORM_RIGHT = [0, 0, 1, 0, 1, 0, 0]


class SameLogprob(nn.Module):
    """Every token has log-prob -1."""

    def forward(self, batch):
        return torch.where(batch.mask, -1.0, 0.0)


class ScoreByLength(nn.Module):
    """A response's score is minus its number of tokens: the pairs above tie where they tie."""

    def forward(self, batch):
        return -batch.mask.sum(-1).float()


def rows():
    """Tokens all different, so that nothing but the lengths is alike."""
    made = []
    for index, pair in enumerate(PAIRS):
        responses = [
            [*range(10 * side + 10, 10 * side + 9 + n), 2] for side, (n, _) in enumerate(pair)
        ]
        made.append(Row(index, [3, 4], responses, [True, True], [c for _, c in pair]))
    return made


def evaluated(name, policy, reference=None, **options):
    loss = LOSSES[name]
    config = loss.config(**options)
    columns = {"margin": torch.zeros(2 * len(PAIRS))}
    if reference is not None:
        columns["ref_seq_logps"] = reference.flatten()
    data = Split(rows(), "tree", loss.packing(config), columns)
    return evaluate_rows(Accelerator(cpu=True), policy, loss, config, data, 4096)


def share(right):
    return pytest.approx(sum(right) / len(right))


@pytest.mark.parametrize("name", ["sft", "dpo", "orpo", "simpo"])
def test_held_out_accuracy_counts_no_tie(name):
    reference = torch.zeros(len(PAIRS), 2) if name == "dpo" else None
    found = evaluated(name, SameLogprob(), reference)
    assert found["accuracy"] == share(SUM_RIGHT)
    assert found["accuracy_norm"] == share(NORM_RIGHT)


def test_a_reward_models_accuracy_counts_no_tie():
    assert evaluated("reward", ScoreByLength())["accuracy"] == share(SUM_RIGHT)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("variant", ["sigmoid", "robust", "ipo", "hinge"])
def test_dpos_rewards_that_are_alike_are_not_accurate(variant, reduction):
    """Where the policy is the reference all are: none is right, as before any update."""
    lengths = torch.tensor([[-float(n) for n, _ in pair] for pair in PAIRS])
    options = {"variant": variant, "logp_reduction": reduction}
    assert evaluated("dpo", SameLogprob(), lengths, **options)["rewards/accuracies"] == 0
    lengths[1, 1] += 1  # the reference likes this one's rejected response better
    lengths[2, 0] += 1  # and this one's chosen
    found = evaluated("dpo", SameLogprob(), lengths, **options)
    assert found["rewards/accuracies"] == share([0, 1, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("name", ["orpo", "simpo"])
def test_rewards_that_are_alike_are_not_accurate(name):
    """Means over the response, which are -1 for all."""
    assert evaluated(name, SameLogprob())["rewards/accuracies"] == 0


def test_the_studys_accuracy_counts_no_tie():
    """Rows that are not worded as PIQA's, and so not scored by lm-eval."""
    subject = SimpleNamespace(policy=SameLogprob(), layout="tree")
    scored = score_pairs(subject, rows(), CPU)
    assert [row[:2] for row in scored] == [[1.0 - n for n, _ in pair] for pair in PAIRS]
    assert [row[2] for row in scored] == SUM_RIGHT
    assert [row[3] for row in scored] == NORM_RIGHT

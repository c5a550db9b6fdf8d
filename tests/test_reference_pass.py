"""The pass that gives a reference's log-probs: over the rows that are trained, packed as they are.

In bfloat16 a response's log-prob moves by what else is in its batch. Packed alike, the policy that
still is the reference has its very log-probs.
"""

import math
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from runs import QUICK, metrics, run
from thread_ranks import on_ranks
from tiny_models import make_model
from tolerances import TIGHT

from data.errors import InputError
from data.row_table import Row
from data.splits import Split, StepRows
from losses.base import masked_sum
from models.forward import Policy
from runtime.sources.reference import reference_logps, training_batches


def rows_of(count):
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 9, (count, 3), generator=draw).tolist()

    def text(n, first):
        return [first, *torch.randint(3, 12, (n,), generator=draw).tolist()]

    return [
        Row(i, text(a, 3), [text(b, 4), text(c, 5)], [True, True], [1, 1])
        for i, (a, b, c) in enumerate(lengths)
    ]


def policy_of(dtype=torch.float32):
    policy = Policy(make_model("llama").to(dtype))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(3)
    return policy


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_before_the_first_update_policy_and_reference_are_the_same_to_the_last_bit(
    tmp_path, precision
):
    flags = ("--mixed_precision", precision, "--data", "pocket", "--batch_size", 24)
    done = run("--loss", "dpo", *QUICK, *flags, "--max_tokens", 200, "--output_dir", tmp_path)
    assert done.code == 0, done.err
    first = metrics(tmp_path)[0][0]
    assert first["rewards/margins"] == first["rewards/chosen"] == first["rewards/accuracies"] == 0
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-7)


def test_every_row_of_a_step_is_packed_as_in_the_step_that_has_it_first():
    rows, steps = rows_of(9), [[0, 3, 5], [3, 1, 8], [5, 0, 3]]
    split, policy = Split(rows), policy_of(torch.bfloat16)

    def reference(rank):
        return reference_logps(rank, policy, split, training_batches(rank, split, steps, 30))

    def first_forwards(rank):
        found = {}
        for number, step in reversed([*enumerate(steps)]):  # the first overwrites the later ones
            share = StepRows(split, step, rank.num_processes, rank.process_index)
            for batch in share.batches(30, torch.device("cpu")):
                with torch.no_grad():
                    sums = masked_sum(policy(batch), batch.mask).view(-1, 2).tolist()
                found |= {i: (number, s) for i, s in zip(batch.index.tolist(), sums, strict=True)}
        return found

    for ranks in (1, 2):
        (found, *_), forwards = on_ranks(reference, ranks), on_ranks(first_forwards, ranks)
        for row, pair in enumerate(found.view(9, 2).tolist()):
            first = min((by[row] for by in forwards if row in by), default=None)
            assert all(map(math.isnan, pair)) if first is None else pair == first[1], row


def test_a_row_that_a_step_has_twice_is_counted_once():
    split, policy = Split(rows_of(3)), policy_of(torch.float64)

    def reference(steps, rank):
        return reference_logps(rank, policy, split, training_batches(rank, split, steps, 10))

    alone = reference([[0], [1], [2]], Accelerator(cpu=True))
    for ranks in (1, 2):
        for found in on_ranks(lambda rank: reference([[0, 1, 2, 0, 1, 2, 0]], rank), ranks):
            torch.testing.assert_close(found, alone, rtol=TIGHT, atol=TIGHT)


def test_rows_of_no_step_are_not_computed():
    seen = []

    def policy(batch):
        seen.extend(batch.index.tolist())
        return torch.zeros(batch.mask.shape)

    split, accelerator = Split(rows_of(9)), Accelerator(cpu=True)
    batches = training_batches(accelerator, split, [[4, 7], [7, 4], [4, 2], [2, 7]], 1000)
    reference_logps(accelerator, policy, split, batches)
    assert sorted(seen) == [2, 4, 4, 7]  # the third step's whole micro-batch, for its new row


def test_a_row_without_a_finite_log_prob_is_named():
    rows = [replace(row, where=f"x:{row.index}") for row in rows_of(3)]
    split, accelerator = Split(rows), Accelerator(cpu=True)

    def policy(batch):
        bad = (batch.index == 1).repeat_interleave(2)[:, None]
        return torch.zeros(batch.mask.shape).masked_fill(bad & batch.mask, math.nan)

    batches = training_batches(accelerator, split, [[0, 1]], 1000)
    with pytest.raises(InputError, match="^x:1: --ref_model m gives it a log-prob of nan$"):
        reference_logps(accelerator, policy, split, batches, "--ref_model m")

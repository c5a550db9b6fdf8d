"""A rollout as one of several ranks makes it, in one process."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from rollouts import SMALL, make_rollouts, near, prompts_of, ragged
from thread_ranks import on_ranks

from losses.advantages import masked_whiten
from rollout import experience
from rollout.experience import rollout
from rollout.state import RolloutState
from runtime.metrics import Totals


@pytest.mark.parametrize("shift_mean", [True, False])
def test_a_rank_whitens_by_the_moments_of_all_ranks(shift_mean):
    """G10: whatever the width of the longest response on either."""
    values = torch.linspace(-1, 2, 20, dtype=torch.float64).sin().view(4, 5)
    lengths = torch.tensor([[5], [2], [3], [1]])
    mask = torch.arange(5) < lengths
    whole = masked_whiten(values, mask, shift_mean=shift_mean)
    cut = [(values[:2], mask[:2]), (values[2:, :3], mask[2:, :3])]

    def work(rank):
        x, inside = cut[rank.process_index]
        return experience.whiten_everywhere(rank, x, inside, shift_mean=shift_mean)

    for rank, ((x, inside), part) in enumerate(zip(cut, on_ranks(work), strict=True)):
        assert part.shape == x.shape
        assert torch.equal(part[inside], whole[2 * rank : 2 * rank + 2, : x.shape[1]][inside])
    alone = SimpleNamespace(num_processes=1, process_index=0)  # has nobody to ask
    assert torch.equal(
        experience.whiten_everywhere(alone, values, mask, shift_mean=shift_mean), whole
    )


def test_what_is_sampled_for_a_prompt_follows_from_its_number():
    """E11: a rank that holds every other prompt samples for those what one process would."""
    made, prompts = make_rollouts(SMALL), prompts_of(16)
    whole = experience.respond(made, prompts, range(16), 3)
    rows = rollout(made, prompts[1::2], range(1, 16, 2), 3, RolloutState(0.0)).split.rows
    assert [row.responses for row in rows] == [row.responses for row in whole.rows[1::2]]
    assert whole.prompts == [prompt.text for prompt in prompts]
    words = [made.tokenizer.decode(row.responses[0]).split() for row in whole.rows]
    cut = [w[:-1] if end else w for w, end in zip(words, whole.finished.tolist(), strict=True)]
    assert whole.texts == [" ".join(w) for w in cut]


def test_ranks_make_the_rollout_of_one_process():
    """E11, G10: one mean and deviation of the scores, one whitening, whoever sampled what."""
    config, count = replace(SMALL, score_norm=True), SMALL.rollout_size

    prepared = [make_rollouts(config) for _ in range(3)]  # before the ranks share torch's seed

    def make(accelerator, numbers):
        def reduce(metrics):
            totals = Totals()
            totals.add(metrics)
            return totals.reduce(accelerator)

        made = replace(prepared.pop(), accelerator=accelerator, reduce=reduce)
        state, prompts = RolloutState(kl_coef=config.kl_coef), prompts_of(count)
        found = rollout(made, [prompts[i] for i in numbers], numbers, 7, state)
        moments = [state.scores_seen, state.score_mean, state.score_m2]
        advantages = ragged(found.split.rows, found.split.columns["advantages"])
        return advantages, moments, found.metrics

    def of_rank(rank):
        return make(rank, list(range(rank.process_index, count, 2)))

    advantages, moments, metrics = make(prepared[0].accelerator, list(range(count)))
    for rank, found in enumerate(on_ranks(of_rank)):
        assert found[1] == near(moments) and found[2] == near(metrics)
        for mine, right in zip(found[0], advantages[rank::2], strict=True):
            assert mine == near(right)

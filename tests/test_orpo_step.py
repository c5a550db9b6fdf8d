"""ORPO in the loop: its masks, the conventions of its likelihood term, what it logs (D3 to D10)."""

import math

import pytest
import small_tokenizers as small
import torch
from accelerate import Accelerator
from tiny_models import flat_grad, make_model, make_rows, relative_error
from tolerances import TIGHT

from data.encode import encode_records
from data.row_table import Row
from data.rows import Record
from data.splits import Split
from data.trees import pack
from losses import LOSSES
from losses.orpo import ORPOConfig, step
from models.forward import Policy
from train import optimizer_step

LOSS = LOSSES["orpo"]


def batch_with_logps(rows, prompt_nll, nll, **packing):
    """A batch and made-up log-probs: -nll[s][t] on responses, -prompt_nll on prompts."""
    batch = pack(rows, prompts=True)
    logps = torch.zeros(batch.mask.shape, dtype=torch.float64)
    logps[batch.prompt_mask] = -prompt_nll
    for s, values in enumerate(nll):
        logps[s, batch.mask[s]] = -torch.tensor(values, dtype=torch.float64)
    return batch, logps


def likelihood(config, batch, logps):
    """The likelihood term as the loop divides it."""
    output, units = step(logps, batch, config), LOSS.units(batch, config)
    return sum(total / units[unit] for unit, total in output.totals.items()).item()


def test_scope_response_or_full():
    """D3: prompt of 2, completion of 3, NLLs 1 | 2, 3, 4: mean 3.0 of the response, 2.5 of all."""
    row = Row(0, [5, 6], [[7, 8, 2], [9, 2]], [True, True], [1, 1])
    batch, logps = batch_with_logps([row], 1.0, [[2, 3, 4], [1, 1]])
    assert likelihood(ORPOConfig(lam=0.0), batch, logps) == pytest.approx(3.0, rel=TIGHT)
    full = ORPOConfig(lam=0.0, nll_scope="full")
    assert likelihood(full, batch, logps) == pytest.approx((1 + 2 + 3 + 4) / 4, rel=TIGHT)


def test_mean_of_pairs_or_of_tokens():
    """D7: chosen lengths 1 and 4 with NLLs 1 and 4: pairs give 2.5, tokens 17/5 = 3.4."""
    rows = [
        Row(0, [5], [[2], [6, 2]], [True, True], [1, 1]),
        Row(1, [5], [[6, 7, 8, 2], [9, 2]], [True, True], [1, 1]),
    ]
    batch, logps = batch_with_logps(rows, 0.0, [[1], [1, 1], [4, 4, 4, 4], [1, 1]])
    assert likelihood(ORPOConfig(lam=0.0), batch, logps) == pytest.approx(2.5, rel=TIGHT)
    by_token = ORPOConfig(lam=0.0, nll_reduction="token")
    assert likelihood(by_token, batch, logps) == pytest.approx(3.4, rel=TIGHT)


@pytest.mark.parametrize("layout", ["tree", "rectangle"])
def test_padding_is_in_no_mean_even_where_the_pad_is_the_end_token(layout):
    """D4, D5: prompt 2, response 3, padded to 7: three tokens of -1, of the -9 after them none."""
    short, long = [7, 8, 2], [9, 9, 9, 9, 2]
    rows = [Row(0, [5, 6], [short, long], [True, True], [1, 1])]
    batch = pack(rows, layout=layout)
    assert batch.mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert [batch.targets[g].tolist() for g in batch.gather[0, batch.mask[0]]] == short
    logps = torch.where(batch.mask, -1.0, -9.0).double()
    metrics = {k: (s / n).item() for k, (s, n) in step(logps, batch, ORPOConfig()).metrics.items()}
    assert metrics["mean_logps/chosen"] == metrics["mean_logps/rejected"] == -1.0
    assert metrics["nll_loss"] == 1.0 and metrics["log_odds_ratio"] == 0.0


def test_a_merge_that_shortens_the_prompt_of_one_response_is_a_pair_like_others():
    """D10: ` newspaper` is one token, so ` new`, the prompt's last, is not one of `rejected`."""
    tokenizer = small.gpt2()
    (row,) = encode_records([Record("The new", ": good", "spaper")], tokenizer).rows
    ends = [tokenizer.eos_token_id]
    chosen, rejected = (tokenizer(f"The new{r}").input_ids + ends for r in (": good", "spaper"))
    prompt = tokenizer("The new").input_ids
    assert chosen[: len(prompt)] == prompt != rejected[: len(prompt)]
    model = make_model("gpt_neox", vocab_size=len(tokenizer))
    batch = pack([row], prompts=True)
    output = step(Policy(model)(batch), batch, ORPOConfig(nll_scope="full"))
    logps = [logps_alone(model, ids) for ids in (chosen, rejected)]
    start = len(row.prompt) - 1
    means = [x[start:].mean().item() for x in logps]
    metrics = {k: (s / n).item() for k, (s, n) in output.metrics.items()}
    near = {"rel": 100 * TIGHT}
    assert metrics["nll_loss"] == pytest.approx(-logps[0].mean().item(), **near)
    assert metrics["mean_logps/chosen"] == pytest.approx(means[0], **near)
    assert metrics["mean_logps/rejected"] == pytest.approx(means[1], **near)


def logps_alone(model, ids):
    """Of every token but the first, without padding or mask."""
    logps = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return logps.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].detach()


def test_the_whole_step_written_out():
    """nll - λ log σ(log-odds), from two probabilities: p_w = e^-0.5, p_l = e^-1.5.

    D8: what is logged as `log_odds_ratio` is that, here above 0; its log-sigmoid never could be.
    """
    row = Row(0, [5], [[6, 2], [7, 8, 2]], [True, True], [1, 1])
    batch, logps = batch_with_logps([row], 0.0, [[0.25, 0.75], [1, 1.5, 2]])
    odds = [math.exp(a) / (1 - math.exp(a)) for a in (-0.5, -1.5)]
    expected = 0.5 + 0.1 * math.log(1 + odds[1] / odds[0])  # -log σ(log x) = log(1 + 1/x)
    assert likelihood(ORPOConfig(), batch, logps) == pytest.approx(expected, rel=TIGHT)
    metrics = {k: (s / n).item() for k, (s, n) in step(logps, batch, ORPOConfig()).metrics.items()}
    assert metrics["log_odds_ratio"] == pytest.approx(math.log(odds[0] / odds[1]), rel=TIGHT)
    assert metrics["odds_ratio_loss"] == pytest.approx(math.log(1 + odds[1] / odds[0]), rel=TIGHT)
    assert metrics["nll_loss"] == pytest.approx(0.5, rel=TIGHT)
    assert metrics["rewards/margins"] == pytest.approx(0.1 * (1.5 - 0.5), rel=TIGHT)
    assert metrics["rewards/accuracies"] == 1


@pytest.mark.parametrize("scope", ["response", "full"])
@pytest.mark.parametrize("reduction", ["pair", "token"])
def test_no_convention_depends_on_micro_batches(scope, reduction):
    """A1 for two denominators at once: pairs for the odds, tokens for the likelihood."""
    config = ORPOConfig(nll_scope=scope, nll_reduction=reduction)
    data = Split(make_rows(8, seed=11), packing=LOSS.packing(config))
    found = []
    for split in ([[0, 1, 2, 3, 4, 5, 6, 7]], [[0], [3, 1, 2, 4], [7, 5, 6], []]):
        model = make_model("gpt_neox")
        batches = [data.batch(members, torch.device("cpu")) for members in split]
        _, metrics = optimizer_step(Accelerator(cpu=True), Policy(model), LOSS, config, batches)
        found.append((flat_grad(model), metrics))
    (whole, whole_metrics), (parts, metrics) = found
    assert relative_error(parts, whole) < TIGHT
    assert metrics == pytest.approx(whole_metrics, rel=8 * TIGHT)
    together = metrics["nll_loss"] + config.lam * metrics["odds_ratio_loss"]
    assert metrics["loss"] == pytest.approx(together, rel=8 * TIGHT)


def test_prompt_log_probs_are_the_models():
    model, rows = make_model("gpt_neox"), make_rows(3, seed=4)
    for layout in ("tree", "rectangle"):
        batch = pack(rows, layout=layout, prompts=True)
        logps = Policy(model)(batch)
        for s in range(batch.num_sequences):
            row = rows[s // 2]
            ids = torch.tensor([row.prompt + row.responses[s % 2]])
            all_logps = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
            counted = batch.mask[s] | batch.prompt_mask[s]
            assert relative_error(logps[s][counted], all_logps) < 100 * TIGHT
            assert batch.prompt_mask[s].sum() == len(row.prompt) - 1


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="lam"):
        ORPOConfig(lam=-1)

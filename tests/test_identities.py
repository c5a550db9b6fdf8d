"""The contract that all pure functions share, and laws that tie one function to another.

One value a token or a pair, nothing reduced, nothing detached, nothing read under a False mask,
no input changed, the dtype kept.
"""

import inspect

import pytest
import torch
from cases import CASES, MASK, B, T
from compare import gradients, random, weights_like
from tolerances import assert_close, assert_same

import losses

SUMS = "masked_sum", "masked_mean"  # one value a row; the other masked ones give one a token
POOLED = "masked_whiten"  # the one function whose rows know of each other
NAN, INF = float("nan"), float("inf")


def run(fn, case, tensors=None, fixed=None, weights=None):
    """(outputs, gradients) of the case, with other inputs where given."""
    tensors, fixed = tensors or case.tensors, fixed or case.fixed
    return gradients(fn, tensors, weights=weights, **fixed, **case.options)


def assert_alike(case, actual, expected):
    """Bit for bit; to the last digits for sums, whose order a different width may change."""
    if case.name in (*SUMS, POOLED):
        # (1 / sqrt(variance) is about 1, so 10 bounds the terms of each)
        assert_close(actual, expected, scale=torch.full(expected.shape, 10.0))
    else:
        assert_same(actual, expected)


def check_shape_and_dtype(fn, case):
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        tensors = {k: t.to(dtype) for k, t in case.tensors.items()}
        outs, _ = run(fn, case, tensors)
        first = next(iter(tensors.values()))
        assert all(o.shape == (first.shape[:1] if case.name in SUMS else first.shape) for o in outs)
        assert all(o.dtype == dtype and o.device == first.device for o in outs)


def check_inputs_untouched(fn, case):
    before = {k: t.clone() for k, t in (case.tensors | case.fixed).items()}
    # without a graph: nothing but manners keeps a function from working in place
    with torch.no_grad():
        fn(**case.tensors, **case.fixed, **case.options)
    for k, t in (case.tensors | case.fixed).items():
        assert_same(t, before[k])
        t.copy_(before[k])


def check_nothing_detached(fn, case):
    _, grads = run(fn, case)
    assert all(grad.abs().max() > 1e-3 for grad in grads.values())


def check_rows_permute(fn, case):
    order = torch.tensor([2, 0, 3, 1])
    weights = random(B, T) if case.tensors and case.name not in SUMS else random(B)
    weights = weights.view(B, -1)[:, 0] if next(iter(case.tensors.values())).ndim == 1 else weights
    outs, grads = run(fn, case, weights=weights)
    moved = {k: t[order] for k, t in case.tensors.items()}
    fixed = {k: t[order] for k, t in case.fixed.items()}
    outs_moved, grads_moved = run(fn, case, moved, fixed, weights[order])
    for actual, expected in zip(outs_moved, outs, strict=True):
        assert_alike(case, actual, expected[order])
    for k, grad in grads.items():
        assert_alike(case, grads_moved[k], grad[order])


def check_rows_alone(fn, case):
    """A row in a batch is worth what it is worth alone."""
    if case.name == POOLED:
        return
    outs, _ = run(fn, case)
    for i in range(B):
        alone, _ = run(
            fn,
            case,
            {k: t[i : i + 1] for k, t in case.tensors.items()},
            {k: t[i : i + 1] for k, t in case.fixed.items()},
        )
        for actual, expected in zip(alone, outs, strict=True):
            assert_alike(case, actual, expected[i : i + 1])


def padded(t, fill):
    """Two columns more on the left, three on the right, and a row more at the bottom."""
    pads = (2, 3, 0, 1) if t.ndim == 2 else (0, 1)
    return torch.nn.functional.pad(t, pads, value=fill)


def check_padding(fn, case):
    """Width and empty rows are the batch's business, not the loss's."""
    if case.mask is None:
        return
    weights = random(B, T, seed=5) if case.name not in SUMS else random(B, seed=5)
    outs, grads = run(fn, case, weights=weights)
    wide = {k: padded(t, 3.0) for k, t in case.tensors.items()}
    outs_wide, grads_wide = run(
        fn, case, wide, {"mask": padded(case.mask, False)}, padded(weights, 1.0)
    )
    for actual, expected in zip(outs_wide, outs, strict=True):
        assert_alike(case, actual, padded(expected, 0.0))
    for k, grad in grads.items():
        assert_alike(case, grads_wide[k], padded(grad, 0.0))


def check_garbage(fn, case):
    """NaN, infinities and overflow under a False mask: no value notices, and no gradient."""
    if case.mask is None:
        return
    outs, grads = run(fn, case)
    for fill in (NAN, INF, -INF, 1e300):
        dirty = {
            k: torch.where(MASK, t, fill) if t.ndim == 2 else t for k, t in case.tensors.items()
        }
        outs_dirty, grads_dirty = run(fn, case, dirty)
        for actual, expected in zip(outs_dirty, outs, strict=True):
            assert_same(actual, expected)
            assert case.name in SUMS or (actual[~MASK] == 0).all()
        for k, grad in grads.items():
            assert_same(grads_dirty[k], grad)
            assert grad.ndim == 1 or (grad[~MASK] == 0).all()


def check_all_masked(fn, case):
    """A batch without a single response token: zeros, with a graph to run backward through."""
    if case.mask is None:
        return
    outs, grads = run(fn, case, fixed={"mask": torch.zeros_like(MASK)})
    for zero in (*outs, *grads.values()):
        assert (zero == 0).all()


CONTRACT = [
    check_shape_and_dtype,
    check_inputs_untouched,
    check_nothing_detached,
    check_rows_permute,
    check_rows_alone,
    check_padding,
    check_garbage,
    check_all_masked,
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("check", CONTRACT, ids=lambda c: c.__name__)
def test_contract(check, case):
    check(case.fn, case)


@pytest.mark.parametrize("case", [c for c in CASES if c.name not in SUMS], ids=str)
def test_shapes_that_differ_are_refused(case):
    """(B, 1) beside (B,) would broadcast to (B, B), and average over the wrong thing."""
    inputs = case.tensors | case.fixed
    for k, t in inputs.items() if len(inputs) > 1 else ():
        with pytest.raises(ValueError, match="shape"):
            case.fn(**inputs | {k: t[:, None]}, **case.options)
        with pytest.raises(ValueError, match="shape"):
            case.fn(**inputs | {k: t[:1]}, **case.options)


SIGNATURES = {
    "sft_loss": "logps, mask",
    "reward_loss": "chosen_scores, rejected_scores, *, margin=None, center_coef=0.0",
    "dpo_loss": "policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, "
    "ref_rejected_logps, *, beta=0.1, label_smoothing=0.0, variant='sigmoid'",
    "orpo_loss": "chosen_mean_logps, rejected_mean_logps, *, lam=0.1",
    "simpo_loss": "chosen_mean_logps, rejected_mean_logps, *, beta=2.0, gamma=1.0",
    "kl_estimate": "logps, ref_logps, *, kind='k1'",
    "gae": "rewards, values, mask, *, gamma=1.0, lam=0.95, last_values=None",
    "masked_whiten": "x, mask, *, shift_mean=True",
    "ppo_policy_loss": "logps, old_logps, advantages, mask, *, clip=0.2",
    "ppo_value_loss": "values, old_values, returns, mask, *, clip=0.2",
    "masked_sum": "x, mask, dim=-1",
    "masked_mean": "x, mask, dim=-1",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    """Names, order and defaults are the public interface: the checks call by name only."""
    signature = inspect.signature(getattr(losses, name))
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    assert str(inspect.Signature(bare)) == f"({SIGNATURES[name]})"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_option_left_out_is_what_the_signature_says(case):
    parameters = inspect.signature(case.fn).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    given = case.tensors | case.fixed
    left_out, spelled_out = case.fn(**given), case.fn(**defaults | given)
    for a, b in zip(_tuple(left_out), _tuple(spelled_out), strict=True):
        assert_same(a, b)


def _tuple(out):
    return out if isinstance(out, tuple) else (out,)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_rows(case):
    outs, _ = run(
        case.fn,
        case,
        {k: t[:0] for k, t in case.tensors.items()},
        {k: t[:0] for k, t in case.fixed.items()},
    )
    assert all(o.shape[0] == 0 for o in outs)


# ------------------------------------------------------- one function through another


def test_dpo_is_a_reward_model():
    """DPO eq. 7 is Bradley-Terry on the implicit rewards beta (log pi - log ref)."""
    pc, pr, rc, rr = (random(6, low=-30, high=0, seed=s) for s in range(4))
    reward = losses.reward_loss(0.1 * (pc - rc), 0.1 * (pr - rr))
    assert_close(losses.dpo_loss(pc, pr, rc, rr, beta=0.1), reward)


def test_simpo_is_a_reward_model_with_a_margin():
    """SimPO eq. 6 is Bradley-Terry on beta times the means, with gamma as Llama 2's margin."""
    chosen, rejected = random(6, low=-3, high=0), random(6, low=-3, high=0, seed=1)
    margin = torch.full((6,), 0.75, dtype=torch.float64)
    reward = losses.reward_loss(2.5 * chosen, 2.5 * rejected, margin=margin)
    assert_close(losses.simpo_loss(chosen, rejected, beta=2.5, gamma=0.75), reward)
    plain = losses.simpo_loss(chosen, rejected, beta=1.0, gamma=0.0)
    assert_same(plain, losses.reward_loss(chosen, rejected))


def test_simpo_without_a_margin_is_dpo_on_means_without_a_reference():
    chosen, rejected = random(6, low=-3, high=0), random(6, low=-3, high=0, seed=1)
    zero = torch.zeros_like(chosen)
    dpo = losses.dpo_loss(chosen, rejected, zero, zero, beta=2.5)
    assert_same(losses.simpo_loss(chosen, rejected, beta=2.5, gamma=0.0), dpo)


def test_orpo_without_odds_is_sft():
    """lam = 0 leaves the mean negative log-likelihood of the chosen response."""
    chosen, rejected = random(B, T, low=-3, high=0), random(B, low=-3, high=0, seed=1)
    mean_logps = losses.masked_mean(chosen, MASK)
    sft = losses.masked_mean(losses.sft_loss(chosen, MASK), MASK)
    assert_close(losses.orpo_loss(mean_logps, rejected, lam=0.0), sft)


def test_ppo_without_clip_is_reinforce_at_the_first_step():
    """Advantages of 1 and old = new: the gradient by the log-probs is that of sft."""
    logps, ones = random(B, T, low=-3, high=0), torch.ones(B, T, dtype=torch.float64)
    _, sft = gradients(losses.sft_loss, {"logps": logps}, mask=MASK)
    _, ppo = gradients(
        losses.ppo_policy_loss,
        {"logps": logps},
        mask=MASK,
        advantages=ones,
        old_logps=logps,
        clip=INF,
    )
    assert_same(ppo["logps"], sft["logps"])


def test_critic_at_its_target_has_nothing_to_learn():
    rewards, values = random(B, T), random(B, T, seed=1)
    _, returns = losses.gae(rewards, values, MASK)
    loss = losses.ppo_value_loss(returns, values, returns, MASK, clip=INF)
    assert_same(loss, torch.zeros_like(loss))


def test_log_odds_are_what_bradley_terry_sees():
    """orpo's penalty is reward_loss on the log-odds."""
    a, b = random(6, low=-3, high=0), random(6, low=-3, high=0, seed=1)
    penalty = losses.orpo_loss(a, b, lam=1.0) + a
    assert_close(
        penalty,
        losses.reward_loss(losses.log_odds(a), losses.log_odds(b)),
        scale=torch.full((6,), 4.0),
    )


def test_weights_of_the_gradients_are_not_all_alike():
    """(or a gradient that lands on the wrong token would go unseen)"""
    assert weights_like(random(5)).unique().numel() == 5

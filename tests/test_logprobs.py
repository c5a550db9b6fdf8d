"""token_logprobs: log-softmax of a linear head at the targets, never holding all logits."""

from math import exp, log

import pytest
import torch
from compare import WEIGHTS, agree, column, flatten, gradients, known, random
from reference import token_logprobs as exact_logprobs
from tolerances import assert_close, assert_same, loose
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from losses import token_logprobs

N, D, V = 5, 3, 4
TARGETS = torch.tensor([0, 3, 1, 1, 2])


def head(seed=0, n=N, d=D, v=V):
    return {
        "hidden": random(n, d, low=-2, high=2, seed=seed),
        "bias": random(v, seed=seed + 2),
        "weight": random(v, d, low=-2, high=2, seed=seed + 1),
    }


def logits_in(*rows):
    """A head that passes its hidden states through as logits."""
    hidden = torch.tensor(rows, dtype=torch.float64)
    return {"hidden": hidden, "weight": torch.eye(hidden.shape[1], dtype=torch.float64)}


def naive(hidden, weight, targets, bias=None, temperature=1.0):
    """What the function replaces, with all of its N x V logits."""
    logits = torch.nn.functional.linear(hidden, weight, bias) / temperature
    return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]


def check_goldens(fn):
    # uniform over three; then odds 1 : 2 : 5
    rows = logits_in([7.0, 7.0, 7.0], [0.0, log(2), log(5)])
    assert_close(
        fn(**rows, targets=torch.tensor([1, 2])),
        [known(-log(3), -1.0986122886681098), known(log(5 / 8), -0.4700036292457356)],
    )
    assert_close(fn(**rows, targets=torch.tensor([0, 0])), [-log(3), -log(8)])
    # F2: at temperature 1/2 the odds of [2, 0] are exp(4) : 1
    two = logits_in([2.0, 0.0])
    first = torch.tensor([0])
    assert_close(fn(**two, targets=first), [known(-log(1 + exp(-2)), -0.1269280110429725)])
    assert_close(
        fn(**two, targets=first, temperature=0.5), [known(-log(1 + exp(-4)), -0.01814992791780978)]
    )
    # a bias of log 3 on one of two equal logits
    assert_close(fn(**logits_in([1.0, 1.0]), bias=column(log(3), 0), targets=first), [log(3 / 4)])


def check_temperature(fn):
    """Dividing the logits, the bias too: the same as a head that is that much smaller."""
    cold = head()
    warm = {k: t / 4 if k != "hidden" else t for k, t in cold.items()}
    assert_close(fn(**cold, targets=TARGETS, temperature=4.0), fn(**warm, targets=TARGETS))


def check_gradient(fn):
    """(onehot - p) / temperature on the logits, and nothing else. p = 1/8, 2/8, 5/8."""
    rows = logits_in([0.0, log(2), log(5)])
    _, grads = gradients(fn, rows, targets=torch.tensor([1]), temperature=1.0)
    assert_close(grads["hidden"], [[-1 / 8, 1 - 2 / 8, -5 / 8]])
    rows["hidden"] = rows["hidden"] * 2
    _, grads = gradients(fn, rows, targets=torch.tensor([1]), temperature=2.0)
    assert_close(grads["hidden"], [[-1 / 16, (1 - 2 / 8) / 2, -5 / 16]])


def check_reference(fn):
    def twin(hidden, weight, targets, bias=(0.0,) * V, temperature=1, chunk_size=None):
        return [
            exact_logprobs(h, weight, bias, t, temperature)
            for h, t in zip(hidden, targets, strict=True)
        ]

    full = head()
    bare = {k: full[k] for k in ("hidden", "weight")}
    dtypes = torch.float64, torch.float32
    for chunk_size in (2, 99):
        for tensors, temperature in ((full, 0.7), (bare, 1.0)):
            agree(
                fn,
                twin,
                tensors,
                units=0,
                fixed={"targets": TARGETS},
                dtypes=dtypes,
                temperature=temperature,
                chunk_size=chunk_size,
            )


def check_chunks(fn):
    """One row at a time, three, all, more than all: one answer, in value and every gradient."""
    big, targets = head(n=23, d=8, v=50), torch.arange(23) * 2
    (expected,), slopes = gradients(naive, big, targets=targets, temperature=0.8)
    for chunk_size in (1, 3, 22, 23, 1000):
        (out,), grads = gradients(fn, big, targets=targets, temperature=0.8, chunk_size=chunk_size)
        assert_close(out, expected)
        for name, slope in slopes.items():  # a sum of 23 terms of size about 1
            assert_close(grads[name], slope, scale=torch.full_like(slope, 10.0))


def check_extremes(fn):
    """Logits of ±1e4: no overflow, and the gap itself where the target is hopeless."""
    rows = logits_in([1e4, -1e4, 0.0], [1e4, 1e4, -1e4], [-1e4, -1e4, -1e4])
    for chunk_size in (1, 3):
        (out,), grads = gradients(fn, rows, targets=torch.tensor([1, 0, 2]), chunk_size=chunk_size)
        assert_close(out, [-2e4, -log(2), -log(3)], scale=[1e4] * 3)
        a, b, c = WEIGHTS[:3]
        third = c / 3
        assert_close(grads["hidden"], [[-a, a, 0], [b / 2, -b / 2, 0], [-third, -third, 2 * third]])
    certain = fn(**logits_in([1e4, 0.0]), targets=torch.tensor([0]))
    assert_same(certain, torch.zeros(1, dtype=torch.float64))


def check_half_precision(fn):
    """C18: a 16-bit head, a 32-bit softmax. Inputs are quarters, so that the products are exact
    in any order of summation and only the softmax is judged."""
    for dtype in (torch.bfloat16, torch.float16):
        big = {k: (4 * t).round().to(dtype) / 4 for k, t in head(n=9, d=4, v=30).items()}
        targets = torch.arange(9) * 3
        wide = {k: t.double() for k, t in big.items()}
        (expected,), slopes = gradients(naive, wide, targets=targets, temperature=0.7)
        for chunk_size in (4, 9):
            (out,), grads = gradients(
                fn, big, targets=targets, temperature=0.7, chunk_size=chunk_size
            )
            assert out.dtype == torch.float32
            assert_close(out, expected, scale=expected.abs() + 10)  # logits up to 10
            for name, slope in slopes.items():
                assert grads[name].dtype == dtype
                error = (grads[name].double() - slope).abs().max()
                assert error <= loose(dtype) * slope.abs().max()


def check_no_rows(fn):
    """A micro-batch without a response token: no rows, no gradient, no error."""
    nobody = head(n=0)
    (out,), grads = gradients(fn, nobody, targets=torch.empty(0, dtype=torch.long))
    assert out.shape == (0,) and grads["hidden"].shape == (0, D)
    assert (grads["weight"] == 0).all() and (grads["bias"] == 0).all()


def check_some_gradients(fn):
    """A frozen head, or a head alone (and one that is asked twice): the same as all together."""
    tensors = head()
    _, expected = gradients(fn, tensors, targets=TARGETS, chunk_size=2)
    for chunk_size in (2, 9):
        for name in tensors:
            leaf = tensors[name].clone().requires_grad_()
            out = fn(**tensors | {name: leaf}, targets=TARGETS, chunk_size=chunk_size)
            weights = torch.tensor(WEIGHTS, dtype=torch.float64)
            assert out.requires_grad
            for _ in range(2):
                (grad,) = torch.autograd.grad(out, leaf, weights, retain_graph=True)
                assert_close(grad, expected[name], scale=torch.full_like(grad, 10.0))
    assert not fn(**tensors, targets=TARGETS).requires_grad


def check_strides(fn):
    """Transposed, sliced, expanded: what is read is the numbers, not the memory."""
    tensors = head()
    (expected,), slopes = gradients(fn, tensors, targets=TARGETS)
    odd = {
        "hidden": tensors["hidden"].T.contiguous().T,
        "bias": tensors["bias"],
        "weight": tensors["weight"].repeat_interleave(2, dim=1)[:, ::2],
    }
    leaves = {k: t.detach().requires_grad_() for k, t in odd.items()}
    assert not leaves["hidden"].is_contiguous() and not leaves["weight"].is_contiguous()
    out = fn(**leaves, targets=TARGETS.repeat_interleave(2)[::2], chunk_size=2)
    assert_close(out, expected)
    out.backward(torch.tensor(WEIGHTS, dtype=torch.float64))
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        assert_close(leaf.grad, slopes[name], scale=torch.full_like(leaf, 10.0))
    # an upstream gradient that is one number, expanded, as .sum() sends it
    again = {k: t.clone().requires_grad_() for k, t in tensors.items()}
    fn(**again, targets=TARGETS, chunk_size=2).sum().backward()
    assert_close(again["bias"].grad.sum(), 0.0, scale=10.0)


def check_untouched(fn):
    tensors = head()
    before = {k: t.clone() for k, t in tensors.items()}
    leaves = {k: t.requires_grad_() for k, t in tensors.items()}
    fn(**leaves, targets=TARGETS, temperature=0.5).sum().backward()
    for name, tensor in tensors.items():
        assert_same(tensor.detach(), before[name])


class Logits(TorchDispatchMode):
    """Watches every tensor with an axis of length v that is not shaped like the head."""

    def __init__(self, v, d):
        super().__init__()
        self.v, self.head = v, {(v,), (v, d), (d, v), (1, v)}
        self.largest, self.most, self.alive = 0, 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        self.alive = {k: x for k, x in self.alive.items() if not x[0].expired()}
        for t in flatten([result]):
            if torch.is_tensor(t) and t.is_floating_point() and self.v in t.shape:
                if tuple(t.shape) not in self.head:
                    self.largest = max(self.largest, t.numel())
                    storage = StorageWeakRef(t.untyped_storage())
                    self.alive[storage.cdata] = storage, t.numel()
        self.most = max(self.most, sum(n for _, n in self.alive.values()))
        return result


def check_memory(fn):
    """No tensor of logits exceeds chunk_size rows; all that live at one time stay below N / 2."""
    n, d, v, chunk_size = 40, 5, 101, 4
    leaves = {k: t.requires_grad_() for k, t in head(n=n, d=d, v=v).items()}
    with Logits(v, d) as seen:
        out = fn(**leaves, targets=torch.arange(n), chunk_size=chunk_size)
        forward = seen.largest
        assert out.requires_grad
        out.sum().backward()
    assert 0 < forward <= chunk_size * v and seen.largest <= chunk_size * v
    assert seen.most <= n * v / 2


CHECKS = [
    check_goldens,
    check_temperature,
    check_gradient,
    check_reference,
    check_chunks,
    check_extremes,
    check_half_precision,
    check_no_rows,
    check_some_gradients,
    check_strides,
    check_untouched,
    check_memory,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_token_logprobs(check):
    check(token_logprobs)


@pytest.mark.parametrize(
    "wrong",
    [
        {"targets": TARGETS[:-1]},
        {"weight": random(V, D + 1)},
        {"bias": random(V + 1)},
        {"temperature": 0.0},
        {"chunk_size": 0},
    ],
    ids=lambda w: next(iter(w)),
)
def test_what_does_not_fit_is_refused(wrong):
    with pytest.raises(ValueError):
        token_logprobs(**{**head(), "targets": TARGETS, **wrong})


def test_autocast():
    """Under autocast the head runs in bfloat16, as torch's own linear would, and nothing else."""
    tensors = {k: t.float() for k, t in head().items()}
    half = {k: t.bfloat16() for k, t in tensors.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (out,), grads = gradients(token_logprobs, tensors, targets=TARGETS, temperature=0.7)
    (expected,), slopes = gradients(token_logprobs, half, targets=TARGETS, temperature=0.7)
    assert_same(out, expected)
    for name, slope in slopes.items():
        assert_same(grads[name], slope.float())


def test_logits_that_are_neighbours_in_bfloat16_keep_their_distance():
    """C18: 1.0 and 1.0078125; log-probs in bfloat16 would be equal, and a log-ratio 0."""
    hidden = torch.ones(2, 1, dtype=torch.bfloat16)
    weight = torch.tensor([[1.0], [1.0078125], [6.0]], dtype=torch.bfloat16)
    first, second = token_logprobs(hidden, weight, torch.tensor([1, 0])).tolist()
    assert first - second == pytest.approx(0.0078125, abs=loose(torch.float32))


@pytest.mark.parametrize("chunk_size", [64, 16])  # kept for backward, or computed again
def test_a_temperature_costs_a_16_bit_gradient_no_digit(chunk_size):
    """Two words, the first with weight 1: the gradient is (1 - p) / T, rounded once, so off by half
    an epsilon at most. Divided after it was rounded it is off by up to one and a half."""
    hidden = torch.linspace(-2, 2, 64)[:, None].bfloat16().requires_grad_()
    weight = torch.tensor([[1.0], [0.0]]).bfloat16()
    targets = torch.zeros(64, dtype=torch.long)
    token_logprobs(hidden, weight, targets, temperature=0.7, chunk_size=chunk_size).sum().backward()
    expected = torch.sigmoid(-hidden.detach().double() / 0.7) / 0.7
    error = (hidden.grad.double() - expected).abs() / expected
    assert error.max() < 0.5 * torch.finfo(torch.bfloat16).eps * 1.001

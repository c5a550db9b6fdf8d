"""Every public loss refuses a wrong rank as well as unequal shapes, and says what it expected."""

import inspect
import re

import pytest
import torch
from cases import CASES

import losses
from losses.base import check_shapes

BY_NAME = {case.name: case for case in CASES}  # one case of each function
ANY_SHAPE = {"kl_estimate", "masked_whiten", "masked_sum", "masked_mean"}
FIXED_RANK = sorted(BY_NAME.keys() - ANY_SHAPE - {"token_logprobs"})


def arguments(case):
    return case.tensors | case.fixed


@pytest.mark.parametrize("name", FIXED_RANK)
def test_a_wrong_rank_is_refused_by_name_with_what_was_expected(name):
    """Token log-probs (2, 5) where sums (2,) are meant once gave (2, 5) losses without a word."""
    case = BY_NAME[name]
    rank = next(iter(case.tensors.values())).ndim
    wrong = {k: x[None] for k, x in arguments(case).items()}  # all alike, one axis too many
    expected = {1: r"\(B,\)", 2: r"\(B, T\)"}[rank]
    message = rf"^\w+ has shape \([\d, ]+\), expected {expected}$"
    with pytest.raises(ValueError, match=message) as error:
        case.fn(**wrong, **case.options)
    assert str(error.value).split()[0] in inspect.signature(case.fn).parameters


@pytest.mark.parametrize("name", sorted(BY_NAME.keys() - {"token_logprobs"}))
def test_unequal_shapes_are_refused_with_all_of_them(name):
    """(4, 1) against (4, 6) would broadcast."""
    case = BY_NAME[name]
    for changed in arguments(case):
        given = dict(arguments(case))
        given[changed] = given[changed][..., :1]
        if len(given) == 1:
            continue
        with pytest.raises(ValueError, match=r"^shapes differ: ") as error:
            case.fn(**given, **case.options)
        shape = re.escape(str(tuple(given[changed].shape)))
        assert re.search(rf"\b{changed} {shape}", str(error.value))


@pytest.mark.parametrize("name", sorted(n for n, case in BY_NAME.items() if "mask" in case.fixed))
@pytest.mark.parametrize("dtype", [torch.long, torch.float32])
def test_a_mask_that_is_not_bool_is_refused(name, dtype):
    """Hugging Face's attention masks are integers."""
    case = BY_NAME[name]
    given = arguments(case) | {"mask": case.mask.to(dtype)}
    with pytest.raises(ValueError, match=rf"^mask is {dtype}, expected torch.bool"):
        case.fn(**given, **case.options)


def test_the_bootstrap_values_of_gae_are_one_a_row():
    x = torch.zeros(2, 3)
    for wrong in (torch.zeros(2, 3), torch.zeros(3), torch.zeros(2, 1), torch.tensor(0.0)):
        with pytest.raises(ValueError, match="last_values"):
            losses.gae(x, x, x == 0, last_values=wrong)


def test_the_margin_of_reward_is_one_a_pair():
    x = torch.zeros(2)
    for wrong in (torch.zeros(2, 1), torch.zeros(3), torch.tensor(0.0)):
        with pytest.raises(ValueError, match="margin"):
            losses.reward_loss(x, x, margin=wrong)


def test_functions_of_any_shape_take_any():
    for shape in ((), (3,), (2, 3), (2, 3, 4)):
        x, mask = torch.ones(shape), torch.ones(shape, dtype=torch.bool)
        assert losses.kl_estimate(x, x).shape == losses.masked_whiten(x, mask).shape == shape


def test_letters_name_axes():
    a, b = torch.zeros(2, 3), torch.zeros(2)
    check_shapes(a=(a, "B T"), b=(b, "B"), c=(a, "..."), d=(a, "..."))
    with pytest.raises(ValueError, match=r"^b has shape \(2,\), expected \(B, T\)$"):
        check_shapes(a=(a, "B T"), b=(b, "B T"))
    wrong = r"^shapes differ: a \(2, 3\) as \(B, T\), b \(3,\) as \(B,\)$"
    with pytest.raises(ValueError, match=wrong):
        check_shapes(a=(a, "B T"), b=(a[0], "B"))
    with pytest.raises(ValueError, match=r"^shapes differ: a \(2, 3\), b \(2,\)$"):
        check_shapes(a=(a, "..."), b=(b, "..."))

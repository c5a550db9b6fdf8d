"""rlax 0.1.9 on JAX: its GAE, λ-returns and clipped surrogate, gradients by `jax.vjp`.

rlax knows sequences, not padding: it gets the tokens of a response, one response a call. It takes
probability ratios, so exp is taken before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..peer_code import module, versions

ARRAYS = "numpy"
VERSIONS = versions("rlax==0.1.9", "jax", "numpy")
Array = NDArray[Any]


def _jax() -> Any:
    jax = module("jax")
    jax.config.update("jax_enable_x64", True)
    return jax


def _rows(
    rewards: Array, values: Array, mask: Array, gamma: float, lam: float, last: Array | None
) -> Iterator[tuple[Any, Callable[[Any, Any], tuple[Any, Any]], tuple[Array, Array]]]:
    """For each row its place in the table, the function of its rewards and values, and those."""
    jnp, rlax = _jax().numpy, module("rlax")
    for row, keep in enumerate(mask):
        at = row, np.nonzero(keep)[0]
        if not keep.any():
            continue
        after = np.zeros(1, values.dtype) if last is None else last[row : row + 1]
        discount = np.full(int(keep.sum()), gamma, values.dtype)

        def both(r: Any, v: Any, after: Any = after, discount: Any = discount) -> tuple[Any, Any]:
            v = jnp.concatenate([v, after])
            advantages = rlax.truncated_generalized_advantage_estimation(r, discount, lam, v)
            return advantages, rlax.lambda_returns(r, discount, v[1:], lam)

        yield at, both, (rewards[at], values[at])


def gae(
    rewards: Array,
    values: Array,
    mask: Array,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    last_values: Array | None = None,
) -> tuple[Array, Array]:
    advantages, returns = np.zeros_like(values), np.zeros_like(values)
    for at, both, row in _rows(rewards, values, mask, gamma, lam, last_values):
        with _jax().disable_jit(values.shape[1] < 100):  # a loop is quicker than to compile one
            advantages[at], returns[at] = both(*row)
    return advantages, returns


def gae_grad(
    cotangent: tuple[Array, Array],
    rewards: Array,
    values: Array,
    mask: Array,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    last_values: Array | None = None,
) -> dict[str, Array]:
    found = {"rewards": np.zeros_like(values), "values": np.zeros_like(values)}
    for at, both, row in _rows(rewards, values, mask, gamma, lam, last_values):
        with _jax().disable_jit(values.shape[1] < 100):
            _, back = _jax().vjp(both, *row)
            found["rewards"][at], found["values"][at] = back(
                (_jax().numpy.asarray(cotangent[0][at]), _jax().numpy.asarray(cotangent[1][at]))
            )
    return found


def _surrogate(clip: float) -> Callable[[Any, Any, Any], Any]:
    jax, rlax = _jax(), module("rlax")

    def one(ratio: Any, advantage: Any) -> Any:  # its mean over one token
        return rlax.clipped_surrogate_pg_loss(ratio[None], advantage[None], clip)

    return lambda new, old, advantages: jax.vmap(one)(jax.numpy.exp(new - old), advantages)


def _tokens(mask: Array, *tables: Array) -> list[Any]:
    """What stands on the mask, and zeros up to a multiple of 16: JAX compiles once a length."""
    empty = -int(mask.sum()) % 16
    return [_jax().numpy.asarray(np.pad(table[mask], (0, empty))) for table in tables]


def ppo_policy_loss(
    logps: Array, old_logps: Array, advantages: Array, mask: Array, *, clip: float = 0.2
) -> Array:
    out = np.zeros_like(logps)
    loss = _surrogate(clip)(*_tokens(mask, logps, old_logps, advantages))
    out[mask] = np.asarray(loss)[: mask.sum()]
    return out


def ppo_policy_loss_grad(
    cotangent: Array,
    logps: Array,
    old_logps: Array,
    advantages: Array,
    mask: Array,
    *,
    clip: float = 0.2,
) -> dict[str, Array]:
    _, back = _jax().vjp(_surrogate(clip), *_tokens(mask, logps, old_logps, advantages))
    found = {"logps": np.zeros_like(logps), "old_logps": np.zeros_like(logps)}
    # rlax takes advantages as constants
    for name, gradient in zip(found, back(*_tokens(mask, cotangent)), strict=False):
        found[name][mask] = np.asarray(gradient)[: mask.sum()]
    return found

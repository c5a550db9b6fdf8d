"""From a model and a batch to log-probabilities, scores or values: one forward for every loss.

The modules here are what the optimizer trains: Hugging Face models as functions from token-tree
batches. `Policy` gives the log-probability of every response token, (S, T), each distinct token
computed once; `Scorer` a score a sequence; `ActorCritic` log-probabilities and values.

`body` and `head` are the one way into a Hugging Face model, whatever wraps it.

Shapes: d hidden size, V vocabulary; R, L, S, T, M as in data/trees.py.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from data.trees import TreeBatch, tree_mask
from losses.base import ActorCriticOutput
from losses.logprobs import softmax_dtype, token_entropy, token_logprobs


def _language_model(model: Any) -> PreTrainedModel:
    """The model below a PEFT wrapper: the same layers, adapters in them."""
    wrapped = hasattr(model, "get_base_model")
    return cast(PreTrainedModel, model.get_base_model() if wrapped else model)


def body(model: PreTrainedModel) -> nn.Module:
    """The layers below the head: from tokens to hidden states.

    Raises:
        ValueError: the model does not keep them apart from its head.
    """
    inner = _language_model(model)
    layers = inner.base_model
    if layers is inner:
        raise ValueError(f"{type(inner).__name__} has no layers apart from its head")
    return layers


def head(model: PreTrainedModel) -> nn.Linear:
    """The linear map from hidden states to logits, or to the scores or values of a classifier.

    Raises:
        ValueError: it has none under a name that transformers' families use.
    """
    inner = _language_model(model)
    names = ("score", "classifier")  # of sequence and token classifiers, by family
    found = [inner.get_output_embeddings(), *(getattr(inner, name, None) for name in names)]
    for module in found:
        if module is not None:
            return cast(nn.Linear, module)
    raise ValueError(f"{type(inner).__name__} has no head: neither output embeddings nor {names}")


def hidden_states(model: PreTrainedModel, batch: TreeBatch) -> Tensor:
    """(R L, d) of the last layer, for every token of the batch."""
    states: Tensor = body(model)(**model_inputs(model, batch)).last_hidden_state
    return states.flatten(0, 1)


class Policy(nn.Module):
    """A causal LM as a function from batches to log-probabilities; what the optimizer trains.

    Wrapped in one module so that DDP and autocast see one forward. `fused` takes the head apart
    from the body and goes through `token_logprobs`; for models that do more to their logits than a
    linear map (soft-capping, say) it must be False: logits as the model gives them.
    """

    def __init__(self, model: PreTrainedModel, *, fused: bool = True) -> None:
        super().__init__()
        self.model = model
        self.fused = fused

    def forward(self, batch: TreeBatch, temperature: float = 1.0) -> Tensor:
        """(S, T) log-probability of every response token of every sequence; 0 outside the mask."""
        return self.with_entropy(batch, temperature, entropy=False)[0]

    def with_entropy(
        self, batch: TreeBatch, temperature: float, *, entropy: bool = True
    ) -> tuple[Tensor, Tensor]:
        """The log-probs, and (S, T) entropy of the distribution each token was drawn from."""
        entropies = None
        if self.fused:
            output = head(self.model)
            options: Any = {"bias": getattr(output, "bias", None), "temperature": temperature}
            parents = hidden_states(self.model, batch).index_select(0, batch.parents)  # (M, d)
            logps = token_logprobs(parents, output.weight, batch.targets, **options)
            if entropy:
                entropies = token_entropy(parents, output.weight, **options)
        else:
            logits = self.model(**model_inputs(self.model, batch)).logits  # (R, L, V)
            logits = logits.flatten(0, 1).index_select(0, batch.parents)
            logits = logits.to(softmax_dtype(logits)) / temperature
            all_logps = logits.log_softmax(-1)  # (M, V)
            logps = all_logps.gather(1, batch.targets[:, None])[:, 0]
            if entropy:
                entropies = -(all_logps.exp() * all_logps).sum(-1)
        if entropies is None:
            entropies = torch.zeros_like(logps)
        return batch.sequences(logps), batch.sequences(entropies)


class ActorCritic(nn.Module):
    """A policy and a critic over the same batches: what PPO trains, as one module."""

    def __init__(
        self,
        policy: Policy,
        critic: PreTrainedModel,
        *,
        temperature: float,
        entropy: bool = False,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.critic = critic
        self.temperature = temperature
        self.entropy = entropy

    def forward(self, batch: TreeBatch) -> ActorCriticOutput:
        """The value of a token is the critic's at the token before: the state it was chosen in."""
        logps, entropies = self.policy.with_entropy(batch, self.temperature, entropy=self.entropy)
        everywhere = head(self.critic)(hidden_states(self.critic, batch))[:, 0]  # (R L,)
        values = batch.sequences(everywhere.index_select(0, batch.parents))
        last_values = torch.zeros_like(values[:, 0])
        if batch.include_last_token:
            last_values = everywhere.index_select(0, batch.last)
        return ActorCriticOutput(logps, values, last_values, entropies)


class Scorer(nn.Module):
    """A classifier with one label as a function from batches to scores.

    The score is read at the last token of each sequence, found from the layout: never by looking
    for a pad or end token, which may stand anywhere in a text. So batches are packed with
    include_last_token=True.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: TreeBatch) -> Tensor:
        """(S,) score of every sequence."""
        last = hidden_states(self.model, batch).index_select(0, batch.last)  # (S, d)
        return cast(Tensor, head(self.model)(last)[:, 0])


def model_inputs(model: PreTrainedModel, batch: TreeBatch) -> dict[str, Any]:
    """What a batch is to a Hugging Face model."""
    return {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "attention_mask": attention_mask(model, batch),
        "use_cache": False,
    }


def attention_mask(model: PreTrainedModel, batch: TreeBatch) -> Tensor | dict[str, Tensor]:
    """The mask in the form this model takes it.

    A rectangle needs the usual (S, L) mask. A tree gives the whole (R, 1, L, L) pattern: boolean
    for SDPA, additive for eager attention. Because a given mask replaces the model's own, a sliding
    window must be in it, and models that mix layer types take one mask a type.
    """
    if batch.layout == "rectangle":
        return (batch.example >= 0).long()

    def build(window: int | None = None) -> Tensor:
        seen = tree_mask(batch.example, batch.branch, batch.position_ids, window=window)
        if config._attn_implementation == "sdpa":
            return seen
        blocked = torch.zeros(seen.shape, dtype=model.dtype, device=seen.device)
        return blocked.masked_fill_(~seen, torch.finfo(model.dtype).min)

    config = model.config.get_text_config()
    window: int | None = getattr(config, "sliding_window", None)
    types = set(getattr(config, "layer_types", None) or ())
    if "sliding_attention" in types:
        return {t: build(window if t == "sliding_attention" else None) for t in types}
    return build(None if types else window)

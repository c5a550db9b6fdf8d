"""Models and what is read from them: dropout, the reference, the precision, the score's place."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import train
from benchmarks.conformance.catalogue.loop.base import Seen, in_the_loop
from benchmarks.conformance.catalogue.loop.words import tokenizer
from benchmarks.conformance.catalogue.loop.world import CPU, END, alone, one_process, rows, tiny
from data.errors import InputError
from data.trees import pack
from losses import LOSSES, masked_sum
from losses.forward import Policy, Scorer, model_inputs
from losses.logprobs import token_logprobs
from rollout.score import ModelReward
from runtime import models, reference
from runtime.inputs import Rows

# ---------------------------------------------------------------- DPO and its reference


@cache
def _saved() -> tempfile.TemporaryDirectory[str]:
    path = tempfile.TemporaryDirectory(prefix="tiny-")
    tiny().save_pretrained(path.name)
    return path


def directory() -> str:
    """The tiny model as a user gives it; gone when Python ends."""
    return _saved().name


def two_steps_of_dpo() -> list[Seen]:
    """The reference's log-probs taken from the policy as it is loaded, then two steps of SGD."""
    loss, accelerator, rate = LOSSES["dpo"], one_process(), 0.05
    policy = Policy(models.load_causal_lm(directory(), dtype="float64"))
    data = Rows(rows(responses=2))
    ref = reference.reference_logps(accelerator, policy, data, max_tokens=1000)
    data = replace(data, ref_logps=ref)
    told = []
    for _ in range(2):
        batches = [data.batch(range(5), CPU)]
        told.append(train.optimizer_step(accelerator, policy, loss, loss.config(), batches)[1])
        _descend(policy, rate)

    twin = tiny()
    start = _sums(twin)
    h = start - start.detach()
    torch.nn.functional.softplus(-0.1 * (h[:, 0] - h[:, 1])).mean().backward()
    _descend(twin, rate)
    h = _sums(twin) - start
    second = torch.nn.functional.softplus(-0.1 * (h[:, 0] - h[:, 1])).mean().item()
    return [
        Seen("loss of the first step", math.log(2), told[0]["loss"]),
        Seen("rewards/margins of the first step", 0.0, told[0]["rewards/margins"]),
        Seen("loss of the second step", second, told[1]["loss"]),
    ]


def _sums(model: nn.Module) -> Tensor:
    """(pairs, 2) summed log-probs, each response alone."""
    found = [[alone(model, row.prompt, a).sum() for a in row.responses] for row in rows(2)]
    return torch.stack([torch.stack(pair) for pair in found])


def _descend(model: nn.Module, rate: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(rate * parameter.grad)
                parameter.grad = None


@in_the_loop("C1", "runtime.models:_ready", two_steps_of_dpo)
def dropout_left_on(right: Any, model: nn.Module, checkpointing: bool) -> Any:
    """The model trains with its dropout on: policy and reference differ by noise before anything
    is learnt, and the first loss is not ln 2."""
    torch.manual_seed(1)
    return right(model, checkpointing).train()


@in_the_loop("C10", "losses.dpo:LOSS.step", two_steps_of_dpo)
def no_reference_at_all(right: Any, logps: Tensor, batch: Any, config: Any) -> Any:
    """A kernel called DPO that never subtracts the reference: the loss is another one, CPO's."""
    return right(logps, replace(batch, ref_logps=torch.zeros_like(batch.ref_logps)), config)


@in_the_loop("C13", "losses.dpo:LOSS.step", two_steps_of_dpo)
def one_object_for_both(right: Any, logps: Tensor, batch: Any, config: Any) -> Any:
    """Policy and reference are the same object: their difference is 0, the gradient too, and the
    loss stays ln 2 for ever."""
    return right(logps, replace(batch, ref_logps=masked_sum(logps, batch.mask)), config)


@in_the_loop("B22", "losses.dpo:LOSS.step", two_steps_of_dpo)
def reference_of_the_moment(right: Any, logps: Tensor, batch: Any, config: Any) -> Any:
    """The precomputed log-probs are lost on the way and the reference is computed from the policy
    in training: 0.6931 at every step, while the weights do move."""
    moving = masked_sum(logps.detach(), batch.mask)
    return right(logps, replace(batch, ref_logps=moving), config)


def cache_keys() -> list[Seen]:
    """Reference log-probs are kept on disk: are they taken for those of other token ids?"""
    model, data = tiny(), rows(responses=2)
    other = [replace(data[0], prompt=[5, 6, 8]), *data[1:]]
    keys = [reference.cache_key(model, [Rows(part)], 4096) for part in (data, data, other)]
    return [
        Seen("the same rows have the same key", True, keys[0] == keys[1]),
        Seen("other token ids have another key", True, keys[0] != keys[2]),
    ]


@in_the_loop("J3", "runtime.reference:cache_key", cache_keys)
def key_without_the_tokens(right: Any, model: Any, splits: Any, *settings: Any) -> Any:
    """The cache is not keyed by what the tokenizer and template made of the data: a new template
    gets the old numbers."""
    return right(model, [replace(part, rows=[]) for part in splits], *settings)


# ---------------------------------------------------------------- precision


def head_in_bfloat16() -> list[Seen]:
    """Two tokens whose logits, 1.0 and 1.0078125, are neighbours in bfloat16."""
    hidden = torch.ones(2, 1, dtype=torch.bfloat16)
    weight = torch.tensor([[1.0], [1.0078125], [6.0]], dtype=torch.bfloat16)
    found = token_logprobs(hidden, weight, torch.tensor([1, 0]))
    gap = float(found[0] - found[1])
    return [Seen("difference of their log-probs", 0.0078125, gap, within=2.0**-20)]


@in_the_loop("C18", "losses.logprobs:softmax_dtype", head_in_bfloat16)
def softmax_in_bfloat16(right: Any, x: Tensor) -> torch.dtype:
    """The log-softmax is computed in the dtype of the head: two log-probs that differ become equal,
    and a log-ratio 0."""
    return x.dtype


# ---------------------------------------------------------------- reward model


def scores_of_texts() -> list[Seen]:
    """Scores of responses with the end token in their middle, against each text by itself."""
    model, data = tiny("sequence"), rows(responses=2)[2:4]
    batch = pack(data, layout="rectangle", include_last_token=True)
    found = Scorer(model)(batch).tolist()
    head: Any = model.score
    right = []
    for row in data:
        for answer in row.responses:
            hidden = model.base_model(torch.tensor([row.prompt + answer])).last_hidden_state
            right.append(head(hidden)[0, -1, 0].item())
    return [Seen("scores", right, found)]


def read_at(scorer: Any, batch: Any, place: Any) -> Tensor:
    """Scores read at `place` (S,) of each row of the rectangle."""
    hidden = scorer.model.base_model(**model_inputs(scorer.model, batch)).last_hidden_state
    scores: Tensor = scorer.model.score(hidden)[..., 0]
    return scores.gather(1, place[:, None])[:, 0]


@in_the_loop("E1", "losses.forward:Scorer.forward", scores_of_texts)
def before_the_first_pad_token(right: Any, self: Any, batch: Any) -> Tensor:
    """The end of the text is looked for by the pad id, which is the end token's: the score is read
    at the last token that is not one."""
    real = (batch.input_ids != END) & (batch.example >= 0)
    columns = torch.arange(real.shape[1])
    return read_at(self, batch, torch.where(real, columns, 0).max(-1).values)


@in_the_loop("E2", "losses.forward:Scorer.forward", scores_of_texts)
def shifted_like_a_label(right: Any, self: Any, batch: Any) -> Any:
    """The mask is shifted as for labels, so the score is read one token before the end."""
    return right(self, replace(batch, last=batch.last - 1))


@in_the_loop("E4", "losses.forward:Scorer.forward", scores_of_texts)
def at_the_first_end_token(right: Any, self: Any, batch: Any) -> Tensor:
    """The score is read at the first end token: in a conversation that is inside the prompt."""
    ends = (batch.input_ids == END) & (batch.example >= 0)
    return read_at(self, batch, ends.long().argmax(-1))


@in_the_loop("E8", "losses.forward:Scorer.forward", scores_of_texts)
def at_the_longest_ones_end(right: Any, self: Any, batch: Any) -> Tensor:
    """The score is read where the longest response ends: in the others that is padding."""
    width = batch.input_ids.shape[1]
    return read_at(self, batch, torch.full((len(batch.input_ids),), width - 1))


def reward_model(labels: int = 1) -> ModelReward:
    words = tokenizer()
    model = tiny(
        "sequence",
        vocab_size=len(words),
        eos_token_id=0,
        bos_token_id=0,
        pad_token_id=0,
        num_labels=labels,
    )
    return ModelReward(model, words, max_tokens=512, max_length=64, layout="tree")


def score_in_a_rollout() -> list[Seen]:
    """The score of a response in a rollout, and of the tokens that the reward model was trained
    on."""
    reward = reward_model()
    found = reward(["Answer:"], [" A bowl"])
    words = tokenizer()
    trained = words("Answer: A bowl")["input_ids"] + [words.eos_token_id]
    hidden = reward.model.base_model(torch.tensor([trained])).last_hidden_state
    head: Any = reward.model.score
    return [Seen("score", [head(hidden)[0, -1, 0].item()], found)]


@in_the_loop("E3", "rollout.score:ModelReward._rows", score_in_a_rollout)
def scored_without_the_end_token(right: Any, self: Any, *texts: Any) -> Any:
    """Training put an end token behind every response and scoring does not: the head reads a place
    that it was never trained at."""
    return [replace(row, responses=[a[:-1] for a in row.responses]) for row in right(self, *texts)]


def two_outputs() -> list[Seen]:
    """A classifier with two labels offered as a reward model."""
    try:
        scores: Any = reward_model(labels=2)(["Answer:"], [" A bowl"])
    except InputError as error:
        scores = str(error).split(";")[0]
    refusal = (
        "reward model: GPT2ForSequenceClassification has num_labels 2, and a score is one number"
    )
    return [Seen("what it says", refusal, scores)]


@in_the_loop("E5", "rollout.score:ModelReward.__init__", two_outputs)
def two_labels_accepted(right: Any, self: Any, model: Any, *rest: Any, **options: Any) -> None:
    """num_labels is 2 by default and nobody looks: the first of two outputs is taken for the
    score."""
    model.config.num_labels = 1
    right(self, model, *rest, **options)


def head_from_the_seed() -> list[Seen]:
    """The new head of a reward model, drawn twice with one seed."""
    heads = []
    for _ in range(2):
        model = models.load_scorer(directory(), tokenizer(), dtype="float64", seed=3)
        heads.append(model.get_parameter("score.weight").flatten()[:3].tolist())
    return [Seen("first weights of the head, again", heads[0], heads[1])]


@in_the_loop("E6", "runtime.models:load_scorer", head_from_the_seed)
def drawn_before_the_seed(right: Any, *args: Any, seed: int = 0, **options: Any) -> Any:
    """The head is drawn before the seed is set: no run can be done again."""
    return right(*args, seed=int(torch.seed() % 2**31), **options)

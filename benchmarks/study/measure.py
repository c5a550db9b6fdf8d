"""What each model of the study does: lm-eval's accuracy row by row, and the answers it samples.

One JSON a model, kept as long as the weights it was made from are the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.record import commit
from benchmarks.study.plan import Study
from benchmarks.study.runner import Outcome, Outcomes, fingerprint
from data.encode import encode_records
from data.errors import NOT_FINITE, InputError
from data.messages import Text
from data.piqa import piqa_rows
from data.pocket import pocket_reward
from data.prompts import encode_prompts, load_prompts
from data.records import load_data
from data.row_table import Row
from data.rows import Record
from data.splits import Split
from data.trees import Layout
from losses.base import masked_sum
from models.inference import forward_pass
from models.layout import choose_layout
from models.load import load_causal_lm, load_tokenizer
from rollout.answers import without_turn_ends
from rollout.experience import as_rows
from rollout.reward_model import ModelReward, load_reward_model
from rollout.sample import Sampling, sample
from runtime.files import read_json, write_json
from runtime.sources.lm_harness import piqa_scores

MAX_TOKENS = 4096  # of a forward; nothing is kept for a backward


@dataclass(frozen=True)
class Subject:
    """A model to measure, as the token-tree forward and as the sampler take it."""

    model: PreTrainedModel
    policy: nn.Module
    layout: Layout


class Bench:
    """What all models of one seed are measured with; each part is loaded when first asked for."""

    def __init__(self, study: Study, seed: int, reward: Path | None) -> None:
        self.study, self.seed, self.reward_path = study, seed, reward
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = load_tokenizer(study.model)
        self.max_length = int(study.shared("max_length") or 1024)

    def load(self, name: str) -> Subject:
        model: PreTrainedModel = load_causal_lm(name, dtype="float32").requires_grad_(False)
        cast(nn.Module, model).to(self.device)
        layout, policy, _ = choose_layout(model, "auto")
        return Subject(model, policy, layout)

    @cached_property
    def base(self) -> Subject:
        return self.load(self.study.model)

    @cached_property
    def reward(self) -> ModelReward | None:
        if self.reward_path is None:
            return None
        name = str(self.reward_path)
        return load_reward_model(
            name,
            load_tokenizer(name),
            dtype="float32",
            device=self.device,
            max_length=self.max_length,
        )

    @cached_property
    def records(self) -> list[Record]:
        study = self.study
        return load_data(
            study.data, study.eval_data, pairs=True, options=study.reading, seed=self.seed
        )[1]

    @cached_property
    def prompts(self) -> list[tuple[Text, list[int]]]:
        """Held-out prompts: (text or messages, token ids)."""
        study = self.study
        found = load_prompts(
            study.data, self.seed, eval_data=study.eval_data, options=study.reading
        )[1]
        encoded = encode_prompts(found, self.tokenizer, self.max_length, study.reading)
        return [(record.prompt, ids) for record, ids in encoded.prompts]

    def key(self, weights: str) -> dict[str, Any]:
        """All that a measurement depends on; another key means measure again."""
        study = self.study
        return {
            "weights": fingerprint(weights),
            "base": fingerprint(study.model),
            "reward": fingerprint(self.reward_path) if self.reward_path else None,
            "data": [fingerprint(d) for d in (study.data, study.eval_data) if d and d != "pocket"],
            "seed": self.seed,
            "samples": study.samples,
            "max_new_tokens": study.max_new_tokens,
            "max_length": self.max_length,
            "columns": study.shared("columns"),
            "lm_eval": version("lm-eval"),
        }

    def weights(self, name: str) -> str:
        """Where a model of the study lies."""
        return (
            self.study.model if name == "base" else f"{self.study.directory(self.seed, name)}/final"
        )

    def measure(self, name: str) -> dict[str, Any]:
        """Raises InputError or FloatingPointError for a model that cannot be measured."""
        subject = self.base if name == self.study.model else self.load(name)
        found = self.accuracy(subject)
        if not all(math.isfinite(logp) for row in found["rows"] for logp in row[:2]):
            raise FloatingPointError("its log-probabilities of held-out pairs are not finite")
        return found | {"answers": self.answers(subject)}

    # ---------------------------------------------------------------- accuracy

    def accuracy(self, subject: Subject) -> dict[str, Any]:
        """`rows`: a held-out pair's (log p chosen, log p rejected, acc, acc_norm)."""
        try:
            docs = piqa_rows(self.records)
        except InputError:  # worded otherwise: not a task of lm-eval's
            encoded = encode_records(self.records, self.tokenizer, max_length=self.max_length)
            return {
                "scored_by": "this project's own forward, by lm-eval's rules for acc and acc_norm",
                "rows": score_pairs(subject, encoded.rows, self.device),
            }
        scores = piqa_scores(subject.model, self.tokenizer, docs, batch_size=16)
        rows = []
        for doc, score in zip(docs, scores, strict=True):
            chosen, rejected = (score.logp1, score.logp2)[:: -1 if doc["label"] else 1]
            rows.append([chosen, rejected, score.acc, score.acc_norm])
        return {"scored_by": f"lm-eval {version('lm-eval')}, its own task piqa", "rows": rows}

    # ---------------------------------------------------------------- answers

    def answers(self, subject: Subject) -> dict[str, list[Any]]:
        """Answers to the held-out prompts, at temperature 1 with the same random numbers for all.

        `kl`: an answer's sum over tokens of log π - log base, in nats; its mean over answers
        drawn from π is an unbiased estimate of the KL divergence from the base.
        """
        times = -(-self.study.samples // len(self.prompts))
        asked = self.prompts * times
        stops = (int(cast(int, self.tokenizer.eos_token_id)),)
        sampled = sample(
            subject.model,
            [tokens for _, tokens in asked],
            Sampling(self.study.max_new_tokens, stops),
            torch.Generator().manual_seed(self.seed),
            max_tokens=4 * MAX_TOKENS,
        )
        rows, texts = as_rows([tokens for _, tokens in asked], sampled, self.tokenizer)
        ours, base = (sequence_logps(who, rows, self.device) for who in (subject, self.base))
        prompts = [text for text, _ in asked]
        texts = without_turn_ends(prompts, texts, self.tokenizer)
        found: dict[str, list[Any]] = {
            "prompts": prompts,
            "texts": texts,
            "tokens": [len(s.tokens) for s in sampled],
            "finished": [s.finished for s in sampled],
            "kl": (ours - base).tolist(),
        }
        if self.reward is not None:
            found["reward"] = self.reward(prompts, texts)
        if self.study.data == "pocket":
            found["right"] = pocket_reward([str(prompt) for prompt in prompts], texts)
        return found


def score_pairs(subject: Subject, rows: Sequence[Row], device: torch.device) -> list[list[float]]:
    """(log p chosen, log p rejected, acc, acc_norm) of each pair, end tokens not counted."""
    scores: list[list[float]] = [[] for _ in rows]
    split = Split(rows, subject.layout)
    for members, batch, token_logps in forward_pass(
        subject.policy, split, max_tokens=MAX_TOKENS, device=device
    ):
        logps = masked_sum(token_logps, batch.text_mask())
        each = (logps / batch.characters).view(-1, 2).tolist()
        for i, pair, norm in zip(members, logps.view(-1, 2).tolist(), each, strict=True):
            scores[i] = [*pair, float(pair[0] > pair[1]), float(norm[0] > norm[1])]
    return scores


def sequence_logps(subject: Subject, rows: Sequence[Row], device: torch.device) -> Tensor:
    """(rows,) log-probability of each row's one response, its end token counted."""
    seq_logps = torch.zeros(len(rows), dtype=torch.float64)
    split = Split(rows, subject.layout)
    for members, batch, logps in forward_pass(
        subject.policy, split, max_tokens=MAX_TOKENS, device=device
    ):
        seq_logps[members] = masked_sum(logps, batch.mask).double().cpu()
    return seq_logps


def measure_all(study: Study, outcomes: Outcomes, tell: Callable[[str], None]) -> Outcomes:
    """Write answers/seedS/MODEL.json for the base and every model that there is.

    Returns those that cannot be measured, each with the reason; the rest goes on.

    Raises:
        InputError: the base model, which all are compared with, cannot be.
    """
    names = ["base", *(stage.name for stage in study.stages if stage.loss != "reward")]
    todo: list[tuple[int, str]] = []
    for seed in study.seeds:
        bench = bench_of(study, outcomes, seed)
        for name in names:
            if name == "base" or outcomes[seed, name].state == "finished":
                if read_json(study.answers(seed, name)).get("key") != bench.key(
                    bench.weights(name)
                ):
                    todo.append((seed, name))
    began, unmeasured = time.monotonic(), Outcomes()
    for number, (seed, name) in enumerate(todo, 1):
        if bench.seed != seed or number == 1:  # one seed's base and judge in memory at a time
            bench = bench_of(study, outcomes, seed)
        weights = bench.weights(name)
        try:
            found = {"key": bench.key(weights), "commit": commit()} | bench.measure(weights)
        except (InputError, FloatingPointError) as error:
            if name == "base":
                code = getattr(error, "exit_code", NOT_FINITE)
                raise InputError(f"the base model cannot be measured: {error}", code) from error
            unmeasured[seed, name] = Outcome("failed", f"cannot be measured: {error}")
            tell(f"seed {seed} {name}: cannot be measured: {error}")
            continue
        study.answers(seed, name).parent.mkdir(parents=True, exist_ok=True)
        write_json(study.answers(seed, name), found)
        seconds = (time.monotonic() - began) / number * (len(todo) - number)
        later = f"; about {seconds / 60:.1f} min left" if seconds else ""
        tell(f"[{number}/{len(todo)}] seed {seed} {name}: measured{later}")
    return unmeasured


def bench_of(study: Study, outcomes: Outcomes, seed: int) -> Bench:
    judges = [s.name for s in study.stages if s.loss == "reward"]
    there = [name for name in judges if outcomes[seed, name].state == "finished"]
    return Bench(study, seed, study.directory(seed, there[0]) / "final" if there else None)

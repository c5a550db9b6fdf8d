"""The report's tables: results, costs, and the sampled answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.record import machine
from benchmarks.study.collect import BASE, sample_answers
from benchmarks.study.page import Block, Heading, Table, plain
from benchmarks.study.plan import Stage, Study

Noted = Callable[[str], str]  # a caption with the note that must stand below every table
MISSING = "–"


def spread_name(study: Study) -> str:
    if len(study.seeds) > 1:
        return "standard deviation over seeds"
    return "standard error over rows or answers"


def quality(study: Study, results: dict[str, Any], noted: Noted) -> Table:
    """One row a model."""
    columns = [
        ("acc, %", "acc", 100, 1),
        ("acc_norm, %", "acc_norm", 100, 1),
        ("p, acc", "p_acc", 0, 0),
        ("p, acc_norm", "p_acc_norm", 0, 0),
        ("KL to base, nats", "kl", 1, 2),
        ("reward", "reward", 1, 2),
        ("right answers, %", "right", 100, 1),
        ("tokens an answer", "tokens", 1, 1),
        ("cut, %", "truncated", 100, 1),
        ("log p chosen", "logp_chosen", 1, 2),
        ("log p rejected", "logp_rejected", 1, 2),
    ]
    models = results["models"]
    columns = [c for c in columns if any(c[1] in model for model in models.values())]
    rows = []
    for name, model in models.items():
        cells = [
            name if len(model["seeds"]) == len(study.seeds) else f"{name} (seeds {_seeds(model)})"
        ]
        for _, key, scale, digits in columns:
            if key not in model or (name == BASE and key.startswith("p_")):
                cells.append(MISSING)
            elif key.startswith("p_"):
                cells.append(p_value(model[key]))
            else:
                mean, spread = model[key]
                around = "" if spread is None else f" ± {scale * spread:.{digits}f}"
                cells.append(f"{scale * mean:.{digits}f}{around}")
        rows.append(cells)
    caption = (
        f"± is the {spread_name(study)}. p: exact two-sided McNemar test against base on the same"
        f" rows{', the largest of the seeds' if len(study.seeds) > 1 else ''}. KL, reward, length"
        f" and the share cut at {study.max_new_tokens} tokens: of answers sampled at temperature 1"
        " to held-out prompts; the reward model is that seed's. log p: nats, held-out pairs, end"
        " token not counted."
    )
    return Table(["model", *(title for title, *_ in columns)], rows, noted(caption))


def _seeds(model: dict[str, Any]) -> str:
    return ", ".join(map(str, model["seeds"]))


def p_value(p: float) -> str:
    return f"{p:.1e}" if p < 0.001 else f"{p:.3f}"


def expense(study: Study, results: dict[str, Any], noted: Noted) -> Table:
    rows = []
    for name, by_seed in results["costs"].items():
        each = list(by_seed.values())
        stage = study.stage(name)
        seconds = [one["seconds"] for one in each]
        memory = [one["peak_memory_bytes"] for one in each]
        after = [one["after"] for one in each]
        ranked = 100 * sum(a.get("accuracy", 0) for a in after) / len(after)
        rows.append(
            [
                name,
                stage.start or BASE,
                f"{each[0]['pairs']:,}",
                f"{in_all(study, results, stage):,}",
                f"{each[0]['steps']:,}",
                f"{sum(seconds) / len(seconds):.0f}",
                f"{max(memory) / 2**20:,.0f}",
                f"{ranked:.1f}" if stage.loss == "reward" else MISSING,
            ]
        )
    header = [
        "stage", "starts from", "pairs (ppo: responses)", "with those before", "steps", "seconds",
        "peak memory, MiB", "reward model's accuracy, %",
    ]  # fmt: skip
    side = "one stage at a time" if study.jobs == 1 else f"{study.jobs} stages side by side"
    caption = (
        f"Seconds of training without held-out evaluations, mean over seeds, {side} on"
        f" {machine()['cores']} cores ({machine()['cpu']}); they and the memory differ from run to"
        " run, nothing else does. Peak memory: the process's RAM, or the GPU's where it computes on"
        " one; the largest of the seeds."
    )
    return Table(header, rows, noted(caption))


def in_all(study: Study, results: dict[str, Any], stage: Stage) -> int:
    """Pairs and responses of the stage and of all it is built on."""
    own = next(iter(results["costs"].get(stage.name, {}).values()), {"pairs": 0})["pairs"]
    return int(own) + sum(in_all(study, results, study.stage(name)) for name in stage.needs)


def answers(study: Study, results: dict[str, Any], noted: Noted) -> list[Block]:
    """The same ten prompts for every model, from the first seed that has it."""
    blocks: list[Block] = []
    for name, model in results["models"].items():
        seed = int(model["seeds"][0])
        samples = sample_answers(study, seed, name)
        keys = [k for k in ("reward", "right", "kl") if k in samples[0]]
        rows = []
        for one in samples:
            cells = [f"{one['reward']:.2f}"] if "reward" in keys else []
            cells += ["yes" if one["right"] else "no"] if "right" in keys else []
            rows.append([plain(one["prompt"]), plain(one["texts"]), *cells, f"{one['kl']:.1f}"])
        titles = {"reward": "reward", "right": "right?", "kl": "log π - log base"}
        header = ["prompt", "answer", *(titles[key] for key in keys)]
        caption = noted(f"{name}, seed {seed}: sampled at temperature 1, not chosen.")
        blocks += [Heading(name, 3), Table(header, rows, caption, numbers=False)]
    return blocks

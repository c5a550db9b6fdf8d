"""From run directories and answers to numbers: one object that tables, figures and page share.

Everything is read back from files, so a report depends on what is on disk and nothing else.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.paired import mcnemar, mean_and_stderr, one_sided
from benchmarks.record import hide
from benchmarks.study.plan import Stage, Study
from benchmarks.study.runner import Outcomes
from runtime.files import read_json

BASE = "base"


def describe(measured: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """One model of one seed: name -> (value, standard error over rows or answers), and p-values."""
    rows, answers = measured["rows"], measured["answers"]
    columns: dict[str, list[float]] = {
        "logp_chosen": [row[0] for row in rows],
        "logp_rejected": [row[1] for row in rows],
        "acc": [row[2] for row in rows],
        "acc_norm": [row[3] for row in rows],
        "kl": answers["kl"],
        "tokens": answers["tokens"],
        "truncated": [float(not finished) for finished in answers["finished"]],
    }
    for name in ("reward", "right"):
        if name in answers:
            columns[name] = [float(value) for value in answers[name]]
    found: dict[str, Any] = {}
    for name, values in columns.items():
        mean, stderr = mean_and_stderr(values)
        found[name] = (mean, stderr or 0.0)
    for i, name in ((2, "acc"), (3, "acc_norm")):
        lost, won = one_sided([r[i] for r in base["rows"]], [r[i] for r in rows])
        found[f"p_{name}"] = {"base_only": lost, "only": won, "p": mcnemar(lost, won)}
    return found


def over_seeds(each: Sequence[dict[str, Any]], several: bool = False) -> dict[str, Any]:
    """Means, with the standard deviation over seeds, or of one seed its own standard error.

    Where `several` seeds were asked for and one is there, its spread is None.

    A p-value of several seeds is the largest: it bounds every seed's.
    """
    found: dict[str, Any] = {}
    for name in each[0]:
        if name.startswith("p_"):
            found[name] = max(one[name]["p"] for one in each)
            continue
        values = [one[name][0] for one in each if name in one]
        spread = None if several else each[0][name][1]
        if len(values) > 1:
            spread = statistics.stdev(values)
        found[name] = (statistics.fmean(values), spread)
    return found


def cost(study: Study, stage: Stage, seed: int) -> dict[str, Any]:
    """What a finished run took."""
    run = study.directory(seed, stage.name)
    summary, config = read_json(run / "summary.json"), read_json(run / "config.json")
    rows = summary["rows"]  # ppo's steps see each response --ppo_epochs times
    return {
        "pairs": rows // config["loss"]["ppo_epochs"] if stage.loss == "ppo" else rows,
        "steps": summary["steps"],
        "seconds": rows / summary["rows_per_second"],
        "peak_memory_bytes": summary["peak_memory_bytes"],
        "before": summary["before"],
        "after": summary["after"],
        "data": hide(summary["data"]),
        "versions": summary["versions"],
    }


def collect(study: Study, outcomes: Outcomes, unmeasured: Outcomes) -> dict[str, Any]:
    """`models`: name -> its numbers over seeds and of each; `costs`: stage -> those of each seed.

    A seed whose stage did not finish, or whose model could not be measured, is left out of that
    model's means; `seeds` of each model says which are in. `commits`: what trained and measured.
    """
    models: dict[str, Any] = {}
    costs: dict[str, Any] = {}
    for name in [BASE, *(stage.name for stage in study.stages)]:
        done = [s for s in study.seeds if name == BASE or outcomes[s, name].state == "finished"]
        if name != BASE and done:
            costs[name] = {seed: cost(study, study.stage(name), seed) for seed in done}
        done = [seed for seed in done if (seed, name) not in unmeasured]
        if name != BASE and study.stage(name).loss == "reward" or not done:
            continue
        each = {
            seed: describe(
                read_json(study.answers(seed, name)), read_json(study.answers(seed, BASE))
            )
            for seed in done
        }
        models[name] = {
            "seeds": done,
            "each": each,
            **over_seeds(list(each.values()), len(study.seeds) > 1),
        }
    first = read_json(study.answers(study.seeds[0], BASE))
    return {
        "models": models,
        "costs": costs,
        "commits": commits(study, costs, models),
        "rows": len(first["rows"]),
        "answers": len(first["answers"]["texts"]),
        "scored_by": first["scored_by"],
        "failures": [
            {"seed": seed, "stage": name, "state": o.state, "reason": o.reason}
            for (seed, name), o in [*outcomes.items(), *unmeasured.items()]
            if o.state != "finished"
        ],
    }


def commits(study: Study, costs: dict[str, Any], models: dict[str, Any]) -> list[str]:
    """Those of the code that made the runs and the answers."""
    files = [study.directory(s, name) / "stage.json" for name in costs for s in costs[name]]
    files += [study.answers(s, name) for name in models for s in models[name]["seeds"]]
    return sorted({str(read_json(file).get("commit")) for file in files})


def sample_answers(study: Study, seed: int, name: str, count: int = 10) -> list[dict[str, Any]]:
    """The first answers to `count` different prompts, the same prompts for every model."""
    answers = read_json(study.answers(seed, name))["answers"]
    first: dict[str, int] = {}
    for i, prompt in enumerate(answers["prompts"]):
        first.setdefault(prompt, i)
    keys = [key for key in ("texts", "reward", "right", "kl") if key in answers]
    return [
        {"prompt": prompt} | {key: answers[key][i] for key in keys}
        for prompt, i in list(first.items())[:count]
    ]

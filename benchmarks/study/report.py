"""What the page says, from the collected numbers: tables, figures and the sentences between."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from benchmarks.record import commit, hide, machine
from benchmarks.study.collect import BASE
from benchmarks.study.page import (
    Block,
    Bullets,
    Code,
    Heading,
    Picture,
    Text,
    plain,
    to_html,
    to_markdown,
)
from benchmarks.study.plan import STAGES, Study
from benchmarks.study.tables import answers, expense, quality, spread_name
from runtime.files import write_json

TITLE = "SFT, PPO, DPO and ORPO from one base model"
POCKET_NOTE = "Pocket's generated questions, not PIQA."


def write(study: Study, results: dict[str, Any], pictures: dict[str, Path]) -> None:
    """report.md, report.html and results.json in the output directory."""
    blocks = make_blocks(study, results, pictures)
    about = {
        "command": hide(study.command),
        "commit": commit(),
        "machine": machine(),
        "note": note(study),
        "pairs": study.budget,
    }
    write_json(study.output_dir / "results.json", about | results)
    for name, text in (
        ("report.md", to_markdown(blocks, study.output_dir)),
        ("report.html", to_html(blocks, TITLE)),
    ):
        (study.output_dir / name).write_text(text, "utf-8")


def note(study: Study) -> str:
    return study.note or (POCKET_NOTE if study.data == "pocket" else "")


def make_blocks(study: Study, results: dict[str, Any], pictures: dict[str, Path]) -> list[Block]:
    """The page from top to bottom."""
    said = note(study)

    def noted(caption: str) -> str:
        return f"{caption.strip()} {said}".strip()

    def picture(name: str, caption: str, alt: str) -> list[Block]:
        return [Picture(pictures[name], noted(caption), alt)] if name in pictures else []

    blocks: list[Block] = [Heading(TITLE, 1), *setting(study, results), *failures(results)]
    blocks += [Heading("Results"), Text(verdict(results)), quality(study, results, noted)]
    blocks += picture(
        "accuracy",
        f"Held-out accuracy; error bars: {spread_name(study)}.",
        "Bars of acc and acc_norm by method",
    )
    blocks += [Heading("Curves")]
    over = "Lines are means over seeds, shades their range." if len(study.seeds) > 1 else ""
    blocks += picture(
        "heldout", f"Held-out pair accuracy during training. {over}", "Held-out accuracy curves"
    )
    of_ppo = (
        "At first most of ppo's is the critic's error, which falls as the critic learns; there is"
        " no held-out one. "
    ) * ("ppo" in results["costs"])
    blocks += picture(
        "losses",
        f"Each stage's own loss, in units of its own. {of_ppo}{over}",
        "Training and held-out losses",
    )
    blocks += picture("margins", f"Margins on held-out pairs. {over}", "Held-out margins")
    if "logps" in pictures:
        blocks += [Heading("Does the chosen log-prob fall?"), Text(falls(results))]
        blocks += picture(
            "logps",
            "Log-probs of the chosen and the rejected response on held-out pairs, each panel from"
            f" where its stage started; orpo's are a token's. {over}",
            "Chosen and rejected log-prob curves",
        )
    if "ppo" in pictures:
        blocks += [Heading("PPO: reward against KL")]
        blocks += picture(
            "ppo",
            "Dots are rollouts on training prompts, lines the held-out prompts. A reward that rises"
            " while KL runs away is bought with odd answers: read the samples below.",
            "PPO reward against KL",
        )
    blocks += [Heading("What it took"), expense(study, results, noted)]
    blocks += [Heading("Ten answers each"), *answers(study, results, noted)]
    return [*blocks, *method(study, results)]


def setting(study: Study, results: dict[str, Any]) -> list[Block]:
    seeds = ", ".join(map(str, study.seeds))
    told = [one["data"] for by_seed in results["costs"].values() for one in by_seed.values()]
    data = told[0] if told else study.data
    lines = [
        f"Base model: `{Path(study.model).name}`. Data: {hide(data)}.",
        f"Seed{'s' * (len(study.seeds) > 1)}: {seeds}. Accuracy on {results['rows']:,} held-out"
        f" pairs, scored by {results['scored_by']}. {results['answers']:,} sampled answers a"
        " model.",
        f"Budget: every stage sees {study.budget:,} pairs, and ppo samples {study.budget:,}"
        " responses (and goes over each --ppo_epochs times). What starts from sft has seen sft's"
        " pairs before, and ppo the reward model's too; the table of costs adds them up.",
    ]
    if study.on_pocket:
        lines.append(
            "Learning rates, dpo's β and ppo's weight of the KL were chosen on this world: the"
            " numbers say that each method works, not which is better."
        )
    if note(study):
        lines.insert(0, note(study))
    uneven = {
        name: one["pairs"]
        for name, by_seed in results["costs"].items()
        for one in by_seed.values()
        if one["pairs"] != study.budget
    }
    if uneven:
        those = ", ".join(f"{name} {pairs:,}" for name, pairs in uneven.items())
        lines.append(f"Not at this budget, by `--set`: {those} pairs.")
    return [Bullets(lines)]


def failures(results: dict[str, Any]) -> list[Block]:
    if not results["failures"]:
        return []
    lines = [
        f"seed {f['seed']} {f['stage']} {f['state']}: {plain(f['reason'])}"
        for f in results["failures"]
    ]
    return [Heading("Not finished"), Bullets(lines)]


def verdict(results: dict[str, Any]) -> str:
    """Which methods beat base, by acc, on the same rows."""
    models = results["models"]
    if BASE not in models or len(models) == 1:
        return "Nothing was trained."
    said: dict[str, list[str]] = {"better": [], "worse": [], "not told apart": []}
    for name, model in models.items():
        if name == BASE:
            continue
        signs = {one["acc"][0] > models[BASE]["each"][s]["acc"][0] for s, one in _each(model)}
        sure = model["p_acc"] < 0.01 and len(signs) == 1
        kind = ("better" if signs == {True} else "worse") if sure else "not told apart"
        said[kind].append(name)
    parts = [f"{kind}: {', '.join(names)}" for kind, names in said.items() if names]
    return f"Against base by acc, with p < 0.01 for every seed: {'; '.join(parts)}."


def _each(model: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    return list(model["each"].items())


def falls(results: dict[str, Any]) -> str:
    """The answer in numbers, for every model with a log-prob of its own."""
    models = results["models"]
    base = models[BASE]["logp_chosen"][0]
    told = []
    for name, model in models.items():
        if name != BASE:
            now = model["logp_chosen"][0]
            start = next((s.start for s in STAGES if s.name == name), None) or BASE
            if start in models and start != BASE:
                before = models[start]["logp_chosen"][0]
                since = f"{'falls' if now < before else 'rises'} from {start}'s {before:.2f}"
            else:
                since = "falls" if now < base else "rises"
            told.append(f"{name} {now:.2f} ({since})")
    return (
        f"The chosen response's log-prob on held-out pairs is {base:.2f} nats under base; after "
        + ", ".join(told)
        + "."
    )


def method(study: Study, results: dict[str, Any]) -> list[Block]:
    """How to make it again."""
    commands = []
    for stage in study.stages:
        argv = study.argv(stage, study.seeds[0])
        command = shlex.join(["python", "train.py", *argv])
        commands.append(hide(command.replace(str(study.output_dir), study.output_dir.name)))
    costs = [one for by_seed in results["costs"].values() for one in by_seed.values()]
    versions = costs[0]["versions"] if costs else {}
    told = ", ".join(f"{name} {number}" for name, number in versions.items())
    return [
        Heading("How it was made"),
        Text(
            f"By commit {', '.join(results['commits'])}; {told}. Trained as its command says,"
            " measured in float32. The whole study:"
        ),
        Code(hide(study.command)),
        Text(
            f"The stages of seed {study.seeds[0]}; those of other seeds differ in `--seed` alone."
        ),
        Code("\n\n".join(commands)),
    ]

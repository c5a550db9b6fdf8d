"""What a finished run leaves: final/ and summary.json, then pictures, which it can do without."""

from __future__ import annotations

from functools import partial
from typing import Any

from accelerate import Accelerator

from losses import LOSSES
from models.save import Final, final_of
from runtime.card import model_card
from runtime.config import Run
from runtime.curves import draw_curves
from runtime.directory import RunDirectory
from runtime.guards.outputs import say, warned
from runtime.report import peak_memory, table, versions
from runtime.sources.base import Models, Plan
from runtime.sources.heldout import check_finite
from runtime.state import TrainState


def finish(
    run: Run,
    accelerator: Accelerator,
    directory: RunDirectory,
    plan: Plan,
    models: Models,
    final: Final,
    state: TrainState,
) -> None:
    """Save the model; with the summary the run is finished, and what comes after can only warn."""
    check_finite(state.heldout, f"after step {state.step}; try a lower --learning_rate")
    accelerator.wait_for_everyone()
    summary = summarize(run, accelerator, state, plan.data)
    for name, model in models.beside.items():
        beside = final_of(model, run.train.model, plan.tokenizer, (), run.train.save_dtype)
        directory.save(name, beside.save)
    directory.save("final", final.save)
    directory.finish(summary)
    if accelerator.is_main_process:
        card = model_card(run, accelerator.num_processes, summary)
        for name in ("final", *(["best"] if run.train.keep_best else [])):
            directory.own(f"{name}/README.md")
            path = directory.path / name / "README.md"
            warned("the model card", partial(path.write_text, card, "utf-8"))
        directory.own("curves.png")
        title = f"{summary['loss']}, {summary['model']}, {summary['data']}"
        drawn = directory.path / "metrics.jsonl", directory.path / "curves.png", title
        warned("curves.png", lambda: draw_curves(*drawn))
    say(table(summary))
    made = f"final/ ({final.description}), metrics.jsonl, summary.json, curves.png"
    say(f"{directory.path}: {made}")


def summarize(run: Run, accelerator: Accelerator, state: TrainState, data: str) -> dict[str, Any]:
    """What summary.json holds."""
    loss, rows = LOSSES[run.train.loss], state.step * run.train.batch_size
    best = (
        {}
        if run.train.keep_best is None
        else {"best": {run.train.keep_best: state.best, "step": state.best_step}}
    )
    return {
        "loss": loss.name,
        "model": run.train.model,
        "before": state.before,
        "after": state.heldout,
        **best,
        "steps": state.step,
        "skipped_steps": state.skipped,
        "rows": rows,
        "unit": "pairs" if loss.responses_per_row == 2 else "rows",
        "tokens": state.tokens,
        "rows_per_second": rows / max(state.seconds, 1e-9),
        "peak_memory_bytes": peak_memory(accelerator.device),
        "data": data,
        "versions": versions(),
        "seconds": state.elapsed,
    }

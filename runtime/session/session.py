"""All of a run that is not a step: it begins or goes on, evaluates, saves, and finishes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from data.errors import NO_INPUT, InputError
from data.splits import StepRows
from data.trees import TreeBatch
from losses import LOSSES
from losses.base import Loss
from models.save import Final, final_of
from runtime.checkpoints.content import restore
from runtime.checkpoints.saver import Saver
from runtime.config import Run
from runtime.directory import RunDirectory
from runtime.files import read_json
from runtime.guards.best import check_metric, note_evaluation
from runtime.guards.outputs import Trackers, say
from runtime.process.signals import SIGNALLED, Interrupted
from runtime.report import Progress, command
from runtime.session.finish import finish
from runtime.session.preflight import identity_of
from runtime.sources.base import Evaluation, Feed, Models, Plan
from runtime.sources.heldout import check_start
from runtime.state import TrainState


@dataclass
class Session:
    """One process's part of a run; `state` is what changes."""

    run: Run
    accelerator: Accelerator
    directory: RunDirectory
    plan: Plan
    models: Models
    optimizer: torch.optim.Optimizer
    feed: Feed
    state: TrainState

    def __post_init__(self) -> None:
        config, plan = self.run.train, self.plan
        self.loss: Loss = LOSSES[config.loss]
        ends = plan.end_tokens
        self.final: Final = final_of(
            self.models.saved, config.model, plan.tokenizer, ends, config.save_dtype
        )
        self.saver = Saver(
            self.directory,
            self.models.trained,
            self.optimizer,
            self.accelerator.scaler,
            keep=config.keep,
            every=config.save_every,
        )
        self.trackers = Trackers(self.accelerator, config)
        self.progress = Progress(
            plan.steps, self.loss.name, enabled=self.accelerator.is_main_process
        )
        self.began = time.perf_counter()
        self._lap = self.began  # since the last step ended, evaluations left out
        self._tokens, self._stop = 0, False

    # ---- the beginning

    def begin(self) -> bool:
        """Begin, or go on from the newest checkpoint; from here on the directory is this run's.

        False: a model was to be exported, and has been.

        Raises:
            InputError: there is none to go on with.
        """
        config, state = self.run.train, self.state
        if not self._go_on():
            if config.resume or config.export:
                flag = "--resume" if config.resume else f"--export {config.export}"
                raise InputError(f"{flag}: {self.directory.path} has no checkpoint", NO_INPUT)
            before = self.feed.evaluate()
            expected = self.loss.expected_initial_metrics(self.run.loss)
            check_start(before.metrics, expected, config)
            if config.keep_best is not None:
                check_metric(config.keep_best, before.metrics)
            if self.directory.writes:
                self.saver.store.remove()  # of the run before
            self.directory.begin(self._config)
            state.before = before.metrics
            self._record(before)
        if config.export:
            self.directory.save("export", self.final.save)
            path = self.directory.path / "export"
            say(f"{path}: {self.final.description} after step {state.step}")
            return False
        self.directory.rescue = self.saver.rescue
        self.saver.note(state)
        self.trackers.start()
        SIGNALLED.enter("training")
        self._lap = time.perf_counter()
        return True

    def _go_on(self) -> bool:
        """Go on with the run that is here, if there is one: all is as after its last step."""
        directory, config, state = self.directory, self.run.train, self.state
        there, checkpoint = False, None
        if directory.unfinished:
            checkpoint = self.saver.newest()
            there = checkpoint is not None
            if not there:
                say(f"{directory.path}: a run that saved nothing ({directory.earlier}); begun anew")
        [there] = self._everywhere([there])
        if not there:
            return False
        restore(checkpoint, self.models.trained, self.optimizer, state, self.accelerator)
        if config.max_tokens != self._earlier_max_tokens():
            state.max_tokens = config.max_tokens
        say(f"goes on after step {state.step} of {self.plan.steps} ({directory.earlier})")
        if not config.export:
            directory.resume(self._config, state.logged)
        self.progress.start(state.step)
        self.began -= state.elapsed
        return True

    def _earlier_max_tokens(self) -> object:
        earlier = read_json(self.directory.path / "config.json") if self.directory.writes else {}
        [value] = self._everywhere([earlier.get("train", {}).get("max_tokens")])
        return value

    def _everywhere(self, values: list[Any]) -> list[Any]:
        """What the first rank knows."""
        if self.accelerator.num_processes > 1:
            broadcast_object_list(values)
        return values

    @cached_property
    def _config(self) -> dict[str, Any]:
        """What config.json holds."""
        plan, models = self.plan, self.models
        return {
            "command": command(),
            "started_in": os.getcwd(),
            "origin": self.run.origin,
            "data": plan.data,
            "steps": plan.steps,
            "model": models.description,
            "layout": models.layout,
            **identity_of(self.run, plan, self.accelerator.num_processes),
        }

    # ---- around the steps

    def steps(self) -> Iterator[StepRows]:
        """The rows of every step that is left to make, and what is due between two steps.

        Raises:
            Interrupted: a signal asked some rank to stop; the step before it is whole.
        """
        ends = self._settle()  # what was due when the run was interrupted
        for rows in self.feed.steps(start=self.state.step) if not ends else ():
            yield rows
            alone = self.accelerator.num_processes == 1  # or the ranks have to agree: `meet`
            if self._stop or (alone and SIGNALLED.requested):
                raise Interrupted
            if self._settle():
                break
            self._lap = time.perf_counter()
        self.progress.close()

    def meet(self, batches: Sequence[TreeBatch]) -> None:
        """Where all ranks come together in a step: tokens are counted, signals are told."""
        tokens = sum(batch.num_tokens for batch in batches if not batch.dummy)
        local = [tokens, int(SIGNALLED.requested is not None)]
        together = self.accelerator.reduce(
            torch.tensor(local, device=self.accelerator.device), "sum"
        )
        self._tokens, self._stop = together[0].item(), together[1].item() > 0

    def changing(self) -> AbstractContextManager[None]:
        """Weights, state and logs change together, or the run goes on from before all of them."""
        return self.saver.changing(self.state)

    def log_step(
        self, metrics: dict[str, float], numbers: dict[str, float], units: dict[str, int]
    ) -> None:
        """Write the line of the step just made; metrics are means over all ranks."""
        state, now = self.state, time.perf_counter()
        of_rollout = self.feed.after_step(metrics)
        state.tokens += self._tokens
        state.seconds += now - self._lap
        state.elapsed = now - self.began
        epoch = {"step": state.step, "epoch": self.feed.epoch(state.step)}
        record = {**epoch, **metrics, **of_rollout, **numbers, **units, "seconds": state.elapsed}
        self.directory.log(record)
        self._shown = record

    def _settle(self) -> bool:
        """Do what is due between two steps: evaluate, save. Whether that was the last step."""
        state, config, steps = self.state, self.run.train, self.plan.steps
        record = self.__dict__.pop("_shown", None)
        if record is not None:
            self.trackers.log(record, state.step)
        every = config.eval_every
        due = state.step > 0 and ((every and state.step % every == 0) or state.step == steps)
        if due and state.evaluated < state.step:
            found = self._record(self.feed.evaluate())
            self.trackers.log(found, state.step)
            record = (record or {}) | found
        if record is not None:
            self.progress.show(state.step, record)
        self.saver.save_if_due(state)
        patience = config.patience
        if patience is not None and state.not_better >= patience and state.step < steps:
            say(
                f"stopped after step {state.step}: {config.keep_best} has not been better than"
                f" {state.best} (step {state.best_step}) for {patience} evaluations"
            )
            return True
        return False

    def _record(self, evaluation: Evaluation) -> dict[str, float]:
        """Log an evaluation after the present step; returns it by the names that were logged."""
        state, name = self.state, self.run.train.keep_best
        state.evaluated, state.heldout = state.step, evaluation.metrics
        found = {f"eval/{name}": value for name, value in evaluation.metrics.items()}
        self.directory.log({"step": state.step} | found)
        self.directory.log_samples(state.step, evaluation.samples)
        if name is not None and note_evaluation(state, name):
            self.directory.save("best", self.final.save)
        self.saver.note(state)
        return found

    # ---- the end

    def finish(self) -> None:
        """The last evaluation, final/, summary.json; then what a run can do without."""
        state = self.state
        if state.evaluated < state.step:  # fewer steps than planned: PPO's --target_kl
            self.trackers.log(self._record(self.feed.evaluate()), state.step)
        self.saver.join()  # what is called finished has its last checkpoint
        finish(
            self.run, self.accelerator, self.directory, self.plan, self.models, self.final, state
        )
        self.saver.remove()
        self.trackers.end()

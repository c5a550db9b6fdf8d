"""How a run begins and ends: every error that a user can mend is one line and an exit code."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from data.errors import INTERRUPTED, IO_ERROR, LOST, NO_MEMORY, NOT_FINITE, USAGE, InputError
from data.pocket import DEFAULTS
from losses import LOSSES
from runtime.config import Args, Run, check_paths, resolve
from runtime.directory import RunDirectory
from runtime.guards.limits import check_numbers
from runtime.guards.memory import is_out_of_memory
from runtime.guards.outputs import say
from runtime.launch import check_launch, make_accelerator
from runtime.process.peers import PEERS, Failure
from runtime.process.signals import SIGNALLED, Interrupted

DEFECT = 1  # of this program, or of a reward function: the traceback is printed


def launch(train: Callable[[Run, Accelerator, RunDirectory], None], args: Args) -> int:
    """Call `train` with everything resolved and the directory taken; the exit code."""
    directory, code = None, DEFECT
    SIGNALLED.listen()
    try:
        SIGNALLED.enter("preparing")
        if args.started_in is not None and os.path.isdir(args.started_in):
            os.chdir(args.started_in)
        loss = LOSSES[args.train.loss]
        run = resolve(args, loss.config, loss.learning_rate, DEFAULTS)
        check_flags(run)
        check_numbers(run)
        check_paths(run)
        accelerator = make_accelerator(run.train)
        run = replace(run, train=replace(run.train, mixed_precision=accelerator.mixed_precision))
        check_launch(accelerator)
        # DDP's destructor holds the GIL. With DDP the last owner of a gloo group it also waits for
        # gloo's thread, which may wait for the GIL (torch 2.13): the group must go after it.
        group = torch.distributed.group.WORLD
        directory = RunDirectory(
            Path(run.output_dir),
            overwrite=run.train.overwrite or run.train.dry_run,
            writes=accelerator.is_main_process and not run.train.dry_run,
        )
        PEERS.join(
            accelerator.process_index,
            accelerator.num_processes,
            partial(give_up, directory),
        )
        train(run, accelerator, directory)
        directory.rescue = None  # it holds the DDP module too, and so do frames in cycles
        gc.collect()
        del accelerator, group  # in this order: the accelerator owns the DDP module
        code = 0
    except BaseException as error:
        SIGNALLED.enter("ending")
        failure = failure_of(error)
        if failure is None:  # a defect: the traceback is needed
            mine = f"{type(error).__name__}: {error}"
            give_up(directory, PEERS.fail(mine, DEFECT), silent=PEERS.rank == 0)
            raise
        interrupted = failure[1] == INTERRUPTED
        code = give_up(directory, PEERS.fail(*failure), interrupted=interrupted)
    finally:
        PEERS.leave()
        SIGNALLED.close(code)
    if directory is not None:
        directory.close()
    return code


def failure_of(error: BaseException) -> tuple[str, int] | None:
    """What to say of the error that ends a run, and the exit code; None for a defect."""
    if isinstance(error, InputError):
        return str(error), error.exit_code
    if isinstance(error, FloatingPointError):  # of the sampler
        return str(error), NOT_FINITE
    if isinstance(error, (Interrupted, KeyboardInterrupt)):
        return f"stopped by {SIGNALLED.requested or 'Ctrl-C'}", INTERRUPTED
    if is_out_of_memory(error):
        what = "try --gradient_checkpointing, a lower --max_tokens or --max_length"
        return f"out of memory ({str(error).splitlines()[0][:200]}); {what}", NO_MEMORY
    if isinstance(error, (OSError, SafetensorError)):  # a full disk, most of the time
        return f"reading or writing failed: {error}", IO_ERROR
    if isinstance(error, SystemExit):
        return f"sys.exit({error.code!r}) was called, by a reward function perhaps", DEFECT
    if isinstance(error, RuntimeError) and (cause := PEERS.cause()):  # of a collective
        return cause.reason, cause.exit_code
    return None


def give_up(
    directory: RunDirectory | None,
    failure: Failure,
    *,
    interrupted: bool = False,
    silent: bool = False,
) -> int:
    """Save what can be saved, record why the run ends, and print it in one line, once."""
    reason = failure.reason
    first_lost = failure.exit_code == LOST and failure.rank == 0 != PEERS.rank
    of_all = failure.exit_code in (LOST, INTERRUPTED)
    if failure.rank not in (PEERS.rank, 0) and not of_all:
        reason = f"process {failure.rank}: {reason}"
    if directory is not None:
        if directory.rescue is not None and directory.writes:
            reason += f"; {directory.rescue()}"
        if PEERS.rank == 0:
            PEERS.saved()
        elif not first_lost:
            PEERS.wait_for_saved()
        directory.fail(reason, failure.exit_code, "stopped" if interrupted else "failed")
    if first_lost and PEERS.rank == 1:
        reason += "; the same command goes on from the newest checkpoint"
        if directory is not None:  # its own process cannot say it any more
            directory.report_lost(reason, failure.exit_code)
        print(f"train.py: {reason}", file=sys.stderr)
    if not silent:
        say(f"train.py: {reason}", error=True)
    return failure.exit_code


def check_flags(run: Run) -> None:
    """Raise InputError for shared flags that the loss does not read."""
    name = run.train.loss
    loss = LOSSES[name]
    rollouts = "rollouts" in loss.needs(run.loss)
    if rollouts and "overlong" in run.origin:
        why = "responses end at --max_new_tokens, and prompts are never cut"
        raise InputError(f"--overlong has no effect with --loss {name}: {why}", USAGE)
    if (rollouts or loss.responses_per_row == 2) and "train_on" in run.origin:
        why = "only conversations of --loss sft have several answers to choose from"
        raise InputError(f"--train_on has no effect with --loss {name}: {why}", USAGE)
    if run.train.lm_eval and (rollouts or loss.task != "causal_lm"):
        why = "it scores held-out responses by their log-probs"
        raise InputError(f"--lm_eval does not go with --loss {name}: {why}", USAGE)

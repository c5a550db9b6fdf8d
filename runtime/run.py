"""How a run begins and ends: every error that a user can mend is one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from data.errors import INTERRUPTED, IO_ERROR, NOT_FINITE, USAGE, InputError
from data.pocket import DEFAULTS
from losses import LOSSES
from runtime.config import Args, Run, resolve
from runtime.directory import RunDirectory
from runtime.launch import check_launch, make_accelerator


def launch(train: Callable[[Run, Accelerator, RunDirectory], None], args: Args) -> int:
    """Call `train` with everything resolved and the directory taken; the exit code."""
    directory = None
    try:
        loss = LOSSES[args.train.loss]
        run = resolve(args, loss.config, loss.learning_rate, DEFAULTS)
        check_flags(run)
        accelerator = make_accelerator(run.train)
        check_launch(accelerator)
        # DDP's destructor holds the GIL. With DDP the last owner of a gloo group it also waits for
        # gloo's thread, which may wait for the GIL (torch 2.13): the group must go after it.
        group = torch.distributed.group.WORLD
        directory = RunDirectory(
            Path(run.output_dir),
            overwrite=run.train.overwrite or run.train.dry_run,
            writes=accelerator.is_main_process and not run.train.dry_run,
        )
        train(run, accelerator, directory)
        del accelerator, group  # in this order: the accelerator owns the DDP module
    except InputError as error:
        return give_up(directory, str(error), error.exit_code)
    except FloatingPointError as error:  # of the sampler
        return give_up(directory, str(error), NOT_FINITE)
    except KeyboardInterrupt:
        return give_up(directory, "interrupted", INTERRUPTED)
    except (OSError, SafetensorError) as error:  # a full disk, most of the time
        return give_up(directory, f"reading or writing failed: {error}", IO_ERROR)
    except Exception as error:  # a defect of this program: the traceback is needed
        if directory:
            directory.fail(f"{type(error).__name__}: {error}", 1)
        raise
    directory.close()
    return 0


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


def give_up(directory: RunDirectory | None, reason: str, exit_code: int) -> int:
    """Record why the run ends, and print it in one line, once."""
    if directory:
        directory.fail(reason, exit_code)
    if os.environ.get("RANK", "0") == "0":
        print(f"train.py: {reason}", file=sys.stderr)
    return exit_code

"""Start train.py as a user does: a process of its own, without paying its imports every time.

A fork server imports `train` once; every run is forked from it, so that it has its own exit code,
its own stdout and stderr (those of libraries too), and nothing left over from the run before.
"""

import importlib
import json
import multiprocessing
import multiprocessing.util
import os
import shutil
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "data" / "pocket" / "base"
OFFLINE = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
# a few steps, for rows and models that have no defaults of their own
QUICK = ("--max_steps", 3, "--batch_size", 8, "--learning_rate", 1e-3)

# Under mutmut, runs are forked from the tests' own process, which alone knows the mutant.
MUTATED = "MUTANT_UNDER_TEST" in os.environ
PRELOAD = ["train", "typeguard", "matplotlib.pyplot", "transformers.models.llama.modeling_llama"]

_start = "fork" if MUTATED else "forkserver" if sys.platform == "linux" else "spawn"
_forks: Any = multiprocessing.get_context(_start)
_forks.set_forkserver_preload(PRELOAD)
if MUTATED:
    for name in PRELOAD:
        importlib.import_module(name)


@dataclass(frozen=True)
class Run:
    code: int | None
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line that a user sees of an error; everything else on stderr is too much."""
        assert self.err.startswith("train.py: ") and self.err.count("\n") == 1, self.err
        return self.err.removeprefix("train.py: ").removesuffix("\n")


def run(*flags, cwd=None, env=None, before=None, draw=False) -> Run:
    """`python train.py FLAGS`; `before`, a function of a module of this folder, is called first.

    A flag replaces the same flag before it, one of QUICK's say: train.py would refuse it.
    The curves are drawn only with `draw`: that takes longer than the rest of a small run.
    """
    with tempfile.TemporaryDirectory() as folder:
        inherited = dict(os.environ)
        os.environ |= OFFLINE | {"PYTHONPATH": str(ROOT)}
        try:
            job = (folder, last_of_each(flags), cwd, env or {}, before, draw)
            process = _forks.Process(target=_train, args=job)
            process.start()
        finally:
            os.environ.clear()
            os.environ.update(inherited)
        process.join(300)
        if process.is_alive():
            process.kill()
        if MUTATED:
            _note_calls(Path(folder, "calls"))
        out, err = (Path(folder, name).read_text("utf-8") for name in ("out", "err"))
        return Run(process.exitcode, out, err)


def last_of_each(flags):
    """The command line with the last value alone of a flag that is there more than once."""
    groups = {}
    for word in map(str, flags):
        if word.startswith("--"):
            groups[word] = group = [word]
        else:
            group.append(word)
    return [word for group in groups.values() for word in group]


def _train(folder, flags, cwd, env, before, draw):
    for fd, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT), fd)
    if MUTATED:
        _forget_the_tests(folder)
    os.environ.update(env)
    os.chdir(cwd or folder)
    sys.argv = ["train.py", *flags]
    import train
    from runtime.cli import parse_or_exit
    from runtime.session import finish

    if not draw:
        finish.draw_curves = lambda *_: None
    if before is not None:
        before()
    sys.exit(train.main(parse_or_exit(flags)))


def _forget_the_tests(folder):
    """What a process of its own would not have: pytest's streams and Accelerate's state."""
    from accelerate.state import AcceleratorState, GradientState
    from mutmut.state import state

    sys.stdout, sys.stderr = (os.fdopen(fd, "w", closefd=False) for fd in (1, 2))
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    state()._stats.clear()
    multiprocessing.util.Finalize(
        None, lambda: Path(folder, "calls").write_text("\n".join(state()._stats)), exitpriority=0
    )


def _note_calls(file):
    """Functions that a run called: mutmut lets it judge those for which it is the natural test."""
    from mutmut.state import state

    called = file.read_text().split() if file.exists() else []
    state()._stats.update(name for name in called if name.startswith(("train.", "runtime.")))


def no_model():
    """Loading a model ends the test: what is wrong must be found before."""
    from runtime.sources import prompts, rows

    def load(*_, **__):
        raise AssertionError("the model was loaded")

    for module in (rows, prompts):
        for name in ("load_causal_lm", "load_scorer"):
            setattr(module, name, load)


def saves_are_done():
    """In a run: wait for what is written beside the training."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()


# ---------------------------------------------------------------- what a run left


def read(out, name):
    return json.loads((out / name).read_text("utf-8"))


def metrics(out):
    """(the training lines, the held-out lines) of metrics.jsonl; NaN would not be JSON."""

    def refuse(constant):
        raise AssertionError(f"{constant} in metrics.jsonl")

    lines = (out / "metrics.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    return [r for r in rows if "loss" in r], [r for r in rows if "loss" not in r]


def timeless(out):
    """metrics.jsonl without what the clock wrote."""
    rows = [row for part in metrics(out) for row in part]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def weights(out):
    return (out / "final" / "model.safetensors").read_bytes()


# ---------------------------------------------------------------- small data and models


def pocket_rows(train=48, heldout=16):
    """Rows of the pocket world, evenly taken: (training, held out)."""
    from data import pocket

    rows = pocket.train_rows(), pocket.heldout_rows()
    return [part[:: len(part) // n][:n] for part, n in zip(rows, (train, heldout), strict=True)]


def write_rows(folder, train, valid):
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("valid", valid)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, "utf-8")
    return folder


def copy_base(folder):
    """A model directory to spoil."""
    return Path(shutil.copytree(BASE, folder, copy_function=shutil.copyfile))


def random_llama(folder, tokenizer):
    """A two-layer Llama with random weights, for the given tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

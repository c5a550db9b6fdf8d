"""README.md of a saved model: what it is, how it was made, what it scored.

It goes to the hub with the model, so of this machine it names no folder and no command line, and
what a user named is text in it, whatever characters it has.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from runtime.config import READ_FLAGS, READ_LOSS_FLAGS, Run
from runtime.report import settings, table


def model_card(run: Run, processes: int, summary: dict[str, Any]) -> str:
    """The card of a run's model; `summary` is what summary.json holds."""
    from huggingface_hub import ModelCard, ModelCardData

    loss, base = summary["loss"], run.train.model
    is_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base) and base != "pocket"
    on_hub = is_id and not Path(os.path.expanduser(base)).exists()
    data = ModelCardData(
        base_model=base if on_hub else None,
        library_name="transformers",
        tags=["alignment-losses", loss],
    )
    versions = ", ".join(f"{k} {v}" for k, v in summary["versions"].items())
    start = base if on_hub else Path(base).name
    how = f"{summary['steps']} steps of {run.train.batch_size}, {settings(run, processes)}"
    title = re.sub(r"[^\w.@+ -]", "_", Path(base).name)
    text = f"""# {title}, trained with {loss}

Started from {_code(start)} and trained with the `{loss}` loss of alignment-losses.

- Settings: {_code(without_folders(how, run))}
- Data: {_code(without_folders(summary["data"], run))}
- Versions: {versions}

On the held-out rows:

```
{table(summary)}
```
"""
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))


def without_folders(text: str, run: Run) -> str:
    """A text with the last part alone of the local paths in it."""
    flags = [getattr(run.train, name) for name in READ_FLAGS]
    flags += [getattr(run.loss, name, None) for name in READ_LOSS_FLAGS]
    for flag in flags:
        for part in (flag or "").split(","):
            folder = os.path.dirname(part)
            if os.path.isdir(os.path.expanduser(folder)):  # not the org of a hub id
                for one in (folder, os.path.realpath(os.path.expanduser(folder))):
                    text = text.replace(f"{one.rstrip('/')}/", "")
    return re.sub(r"(?<![\w.~])[.~]{0,2}/(?:[^\s,;'\"()]*/)?(?=[^\s,;'\"()/])", "", text)


def _code(text: str) -> str:
    """Markdown's code span, in which nothing is markup, on one line."""
    line = "".join(c if c.isprintable() else " " for c in text)
    runs = {len(run) for run in re.findall("`+", line)}
    fence = "`" * next(n for n in range(1, len(runs) + 2) if n not in runs)
    pad = " " if line[:1] == "`" or line[-1:] == "`" else ""
    return f"{fence}{pad}{line}{pad}{fence}"

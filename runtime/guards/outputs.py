"""What a run shows or sends elsewhere: it can fail, and a run goes on all the same."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from accelerate import Accelerator

from runtime.config import TrainConfig


def say(*lines: str, error: bool = False) -> None:
    """Print lines, of the first rank alone; a closed pipe or a terminal's encoding ends no run."""
    alone = os.environ.get("WORLD_SIZE", "1") == "1"  # whatever RANK was left over
    if os.environ.get("RANK", "0") != "0" and not alone:
        return
    stream = sys.stderr if error else sys.stdout
    text = "".join(f"{line}\n" for line in lines)
    try:
        stream.write(text)
        stream.flush()
    except UnicodeEncodeError:
        stream.write(text.encode("ascii", "backslashreplace").decode())
    except (OSError, ValueError, AttributeError):  # closed, broken, or there is none
        if error:
            sys.stderr = open(os.devnull, "w", encoding="utf-8")
        else:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")


def warned(what: str, action: Callable[[], object]) -> bool:
    """Do what is not needed for the result; if it fails, say so and go on. Whether it worked."""
    try:
        action()
        return True
    except Exception as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        say(f"train.py: warning: {what} failed, and the run goes on: {reason}", error=True)
        return False


@dataclass
class Trackers:
    """Accelerate's trackers (--report_to); the first that fails is the last that is tried."""

    accelerator: Accelerator
    config: TrainConfig
    on: bool = field(init=False, default=False)

    def start(self) -> None:
        """They write into the run directory: this comes when it is this run's."""
        if self.config.report_to:
            values: dict[str, Any] = {k: v for k, v in asdict(self.config).items() if v is not None}
            self.on = warned(
                f"--report_to {self.config.report_to}",
                lambda: self.accelerator.init_trackers("alignment-losses", values),
            )

    def log(self, values: dict[str, float], step: int) -> None:
        if self.on:
            self.on = warned("a tracker", lambda: self.accelerator.log(values, step=step))

    def end(self) -> None:
        """Close them; with the last one the process group is destroyed."""
        for tracker in self.accelerator.trackers if self.on else ():
            warned("a tracker", tracker.finish)
        self.accelerator.trackers = []
        self.accelerator.end_training()

"""bugs.txt, read: bugs that shipped, where to read about them, what was wrong and what is right.

A source is owner/name#issue, or name@commit of the fix.  trl = huggingface/trl, tf =
huggingface/transformers, OR = OpenRLHF/OpenRLHF, verl = volcengine/verl, tt = pytorch/torchtune,
HALOs = ContextualAI/HALOs, OI = allenai/open-instruct, LF = hiyouga/LLaMA-Factory, orpo =
xfactlab/orpo, dpo = eric-mitchell/direct-preference-optimization.

A reduction, B encoding, C DPO, D ORPO, E reward, F rollouts, G advantages, H PPO's loss, I metrics,
J saving.  Of D to I the whole survey is here; of the others, what has a test or a mutant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ENTRY = re.compile(r"([A-J]\d+)  (.+)\n    wrong: (.+)\n    right: (.+)\n")


@dataclass(frozen=True)
class Bug:
    id: str
    source: str
    wrong: str
    right: str

    @property
    def order(self) -> tuple[str, int]:
        """D2 before D10."""
        return self.id[0], int(self.id[1:])


def read(path: Path) -> dict[str, Bug]:
    """Bugs by id; ValueError where a line of the file is not understood."""
    text = path.read_text("utf-8")
    bugs = [Bug(*entry) for entry in ENTRY.findall(text)]
    if len(ENTRY.sub("", text)) or len({bug.id for bug in bugs}) < len(bugs):
        raise ValueError(f"{path.name}: not entries of three lines, or an id twice")
    return {bug.id: bug for bug in bugs}


BUGS = read(Path(__file__).with_name("bugs.txt"))

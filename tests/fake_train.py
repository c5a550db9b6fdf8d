"""A stand-in for train.py, for tests of what the comparison study does with its stages.

It leaves what a run leaves, in no time. Its weights follow from the weights it starts from and from
its flags; FAKE_TRAIN, a JSON file, holds the losses that fail and how long a stage takes.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

STEPS = 4
CURVES = {
    "sft": {},
    "reward": {"margin": 1.0},
    "dpo": {"rewards/margins": 0.1, "logps/chosen": -1.0, "logps/rejected": -2.0},
    "orpo": {"log_odds_ratio": 0.2, "mean_logps/chosen": -0.1, "mean_logps/rejected": -0.2},
    "ppo": {},
}


def main(argv):
    flags = dict(zip(argv[::2], argv[1::2], strict=True))
    loss, out = flags["--loss"], Path(flags["--output_dir"])
    how = json.loads(Path(os.environ["FAKE_TRAIN"]).read_text("utf-8"))
    name = f"seed{flags['--seed']} {out.name}"
    with open(how["log"], "a", encoding="utf-8") as log:
        log.write(f"start {name} {os.getpid()}\n")
    time.sleep(how["seconds"])
    if loss in how["fail"]:
        print("this goes wrong")
        print(f"train.py: {loss} does not want to", file=sys.stderr)
        return 65
    out.mkdir(parents=True, exist_ok=True)
    base = Path(how["base"])
    start = base if flags["--model"] == "pocket" else Path(flags["--model"])
    shutil.copytree(base, out / "final", dirs_exist_ok=True)
    if how["real"] and loss == "reward":
        give_head(out / "final")
    if not how["real"]:
        told = (start / "model.safetensors").read_bytes() + repr(argv).encode()
        (out / "final" / "model.safetensors").write_text(hashlib.sha256(told).hexdigest())
    batch = int(flags["--batch_size"])
    about = {"loss": {"ppo_epochs": 4}, "train": {"batch_size": batch}, "steps": STEPS}
    rows = [{"step": 0} | evaluated(loss, 0)]
    for step in range(1, STEPS + 1):
        rows.append({"step": step, "loss": 1 / step, "seconds": float(step)})
        if loss == "ppo":
            rows[-1] |= {"objective/kl": step / 2, "objective/scores": step / 3}
        rows.append({"step": step} | evaluated(loss, step))
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    after = {"loss": 0.1, "accuracy": 0.75}
    summary = {"steps": STEPS, "rows": STEPS * batch, "rows_per_second": batch, "seconds": 4.0}
    summary |= {"peak_memory_bytes": 2**20, "before": after, "after": after}
    summary |= {"data": f"8 rows of {out}/train.jsonl", "versions": {"torch": "2"}}
    for file, content in (
        ("config.json", about),
        ("summary.json", summary),
        ("status.json", {"state": "finished"}),
    ):
        (out / file).write_text(json.dumps(content))
    with open(how["log"], "a", encoding="utf-8") as log:
        log.write(f"end {name}\n")
    return 0


def give_head(folder):
    """A causal LM's files become a classifier's: what scores answers must have a head in them."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    model.save_pretrained(folder)


def evaluated(loss, step):
    found = {name: value * (1 + step) for name, value in CURVES[loss].items()}
    found |= {"reward": step / 4, "kl": step / 5} if loss == "ppo" else {"accuracy": 0.5}
    return {f"eval/{name}": value for name, value in (found | {"loss": 1.0}).items()}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))

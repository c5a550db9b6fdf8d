"""Run by torchrun from test_lm_eval.py: lm-eval, the loop's evaluation and the program, shared."""

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from lm_evals import DOCS, heldout, models  # noqa: E402
from ranks import run_rank  # noqa: E402
from test_lm_eval import accuracies_of_rows  # noqa: E402

from benchmarks import piqa  # noqa: E402
from runtime.sources.lm_harness import piqa_scores  # noqa: E402


def main(out, accelerator):
    assert accelerator.num_processes == 2
    found = {}
    names = ["pocket", str(out / "run" / "final")]
    for name, (model, tokenizer) in zip(("base", "trained"), models(*names), strict=True):
        scores = piqa_scores(model, tokenizer, DOCS, batch_size=4, accelerator=accelerator)
        single = piqa_scores(model, tokenizer, DOCS[:1], accelerator=accelerator)
        rows = heldout(out / "data", tokenizer)
        found[name] = [scores, single, accuracies_of_rows(accelerator, model, rows)]
    path = out / f"{accelerator.process_index}.json"
    path.write_text(json.dumps(found), "utf-8")
    flags = ["--model", *names, "--data", str(out / "data"), "--batch_size", "4"]
    assert piqa.main([*flags, "--output", str(out / "two.json")]) == 0


run_rank(main)

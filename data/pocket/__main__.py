"""`python -m data.pocket [--output DIR]`: make the shipped base model again from nothing."""

import argparse
import time
from pathlib import Path

from . import BASE_DIR, grade, heldout_prompts, heldout_rows, train_rows, well_formed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data.pocket", description=__doc__)
    parser.add_argument("--output", type=Path, default=BASE_DIR, help="where the base is written")
    output: Path = parser.parse_args().output

    from .base import make_base, pair_accuracy, sample  # torch is only needed from here on

    begin = time.perf_counter()
    model, tokenizer = make_base(output)
    rows, prompts = heldout_rows(), heldout_prompts() * 10
    answers = sample(model, tokenizer, prompts)
    right = sum(grade(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True))
    print(
        f"{model.num_parameters():,} parameters, {len(tokenizer):,} tokens, "
        f"{time.perf_counter() - begin:.0f} s -> {output}\n"
        f"pairs: {len(train_rows())} to train on, {len(rows)} held out; "
        f"accuracy of the base on the latter {pair_accuracy(model, tokenizer, rows):.3f}\n"
        f"{len(prompts)} answers sampled to unseen questions: "
        f"{sum(map(well_formed, answers)) / len(answers):.3f} well-formed, "
        f"{right / len(answers):.3f} right"
    )


if __name__ == "__main__":
    main()

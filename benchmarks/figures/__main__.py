"""Draw every picture of docs/ again, from the functions in losses/ and from kept metrics.

python -m benchmarks.figures                       # all of them, into docs/figures
python -m benchmarks.figures --only dpo-beta ppo
python -m benchmarks.figures --curves runs/dpo     # keep this run's metrics, draw its curves
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.figures import pairs, policy
from benchmarks.figures.curves import CURVES, keep
from benchmarks.figures.style import look, save
from benchmarks.record import ROOT

FIGURES: dict[str, Callable[[], Figure]] = {
    "sft": pairs.sft,
    "reward": pairs.reward,
    "dpo-beta": pairs.dpo_beta,
    "dpo-variants": pairs.dpo_variants,
    "orpo": pairs.orpo,
    "simpo": pairs.simpo,
    "ppo": policy.ppo,
    "ppo-value": policy.ppo_value,
    "gae": policy.gae_weights,
    "kl": policy.kl,
    **CURVES,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.figures",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument(
        "--only", nargs="+", choices=FIGURES, metavar="NAME", help=" ".join(FIGURES)
    )
    parser.add_argument("--output_dir", type=Path, default=ROOT / "docs" / "figures")
    parser.add_argument(
        "--curves", nargs="+", type=Path, metavar="RUN", help="finished run directories"
    )
    args = parser.parse_args()
    names = [f"{keep(run)}-curves" for run in args.curves] if args.curves else args.only or FIGURES
    for name in names:
        with look():
            save(FIGURES[name](), args.output_dir / f"{name}.png")
        print(args.output_dir / f"{name}.png")


if __name__ == "__main__":
    main()

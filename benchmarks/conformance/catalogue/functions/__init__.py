"""Wrong variants of the pure functions, one file a subject."""

from benchmarks.conformance.catalogue.functions import (  # noqa: F401  (each fills MUTANTS)
    advantages,
    head,
    pairs,
    ppo,
    reductions,
)

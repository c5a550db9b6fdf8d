"""Wrong variants of what lives in the loop, each beside the check that sees it."""

from benchmarks.conformance.catalogue.loop import (  # noqa: F401  (each fills LOOP_MUTANTS)
    across_ranks,
    batches,
    encode,
    epochs,
    experience,
    models,
    pairs,
    sampling,
    step,
    told,
)

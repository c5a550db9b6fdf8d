"""Small runs of --loss ppo, as a user starts them."""

from runs import run

QUICK = ("--max_steps", 4, "--rollout_size", 8, "--batch_size", 4, "--max_new_tokens", 16)


def few_samples():
    """Evaluate on one response a held-out prompt, not on 256."""
    from runtime.sources import heldout

    heldout.HELDOUT_SAMPLES = 1


def starter(folders):
    """A function that runs, and returns the run directory and what was printed."""

    def start(*flags, loss="ppo", before=few_samples, **options):
        out = folders.mktemp(loss) / "out"
        done = run("--loss", loss, "--output_dir", out, *flags, before=before, **options)
        assert done.code == 0 and done.err == "", done.err
        return out, done.out

    return start

"""Bugs that shipped, to study: what was wrong, what it would look like here, and what rejects it.

    python -m tests.bugs --story D2     # one of them: the diff and the numbers that fail
    python -m tests.bugs --list         # all, a line each

Exit status: 0, or 2 where there is no such bug.
"""

from __future__ import annotations

import argparse
import difflib
import sys

from .bugs import BUGS


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bugs", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--story", metavar="ID", help="one bug, D2 for one")
    what.add_argument("--list", action="store_true", help="all bugs, a line each")
    options = parser.parse_args(arguments)
    bugs = BUGS
    if options.list:
        print("\n".join(f"{bug.id:<4} {bug.wrong}" for bug in bugs.values()))
        return 0
    name = options.story.upper()
    if name not in bugs:
        close = difflib.get_close_matches(name, bugs, n=1, cutoff=0.5)
        guess = f"did you mean {close[0]}? " if close else ""
        print(f"--story {options.story}: no such bug; {guess}--list shows all", file=sys.stderr)
        return 2
    from .story import story  # after what needs no torch

    print(story(bugs[name]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The catalogue's part of the command line of benchmarks.conformance."""

from __future__ import annotations

import argparse
import difflib
import sys

FLAGS = ("--story", "--stories", "--catalogue")


def asked(arguments: list[str]) -> bool:
    """Whether the command line is about the catalogue."""
    return any(argument.split("=")[0] in FLAGS for argument in arguments)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conformance")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--story", metavar="ID", help="one bug to study, D2 for one")
    what.add_argument("--stories", action="store_true", help="all bugs, a line each")
    what.add_argument("--catalogue", action="store_true", help="run all; 1 if a mutant survives")
    parser.add_argument("--markdown", action="store_true", help="--stories as CATALOGUE.md")
    options = parser.parse_args(arguments)

    from benchmarks.conformance.catalogue import story  # after --help, which needs no torch
    from benchmarks.conformance.catalogue.bugs import BUGS

    if options.story is not None:
        name = options.story.upper()
        if name not in story.entries():
            reason = f"{BUGS[name].wrong}; it has no mutant" if name in BUGS else "no such bug"
            close = difflib.get_close_matches(name, story.entries(), n=1, cutoff=0.5)
            guess = f"did you mean {close[0]}? " if close and name not in BUGS else ""
            print(
                f"--story {options.story}: {reason}; {guess}--stories lists them", file=sys.stderr
            )
            return 2
        print(story.story(BUGS[name]))
    elif options.stories:
        print(story.markdown() if options.markdown else story.stories(), end="")
        if not options.markdown:
            print()
    else:
        lines, survivors = story.table()
        print(lines)
        return 1 if survivors else 0
    return 0

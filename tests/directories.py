"""What is read from a directory or a file, told apart by the prompts of the rows."""

import pytest
from datafiles import PAIR, lines

from data import errors
from data.errors import InputError
from data.sources import open_source


def row(text):
    return PAIR | {"prompt": text}


def one(text):
    return lines(row(text))


def prompts(part):
    return None if part is None else [columns["prompt"] for _, columns in part.rows]


def opened(folder, name="", **options):
    """(prompts to train on, prompts held out, all notes)."""
    source = open_source(f"{folder}{name}", **options)
    train, heldout = prompts(source.train), prompts(source.heldout)
    notes = [note for part in source[:2] if part for note in part.notes]
    return train, heldout, notes


def refused(folder, name="", code=errors.NO_INPUT, **options):
    with pytest.raises(InputError) as error:
        opened(folder, name, **options)
    told = str(error.value)
    assert error.value.exit_code == code and "\n" not in told
    return told

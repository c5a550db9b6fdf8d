"""Small data files for the tests of `data/`, and rows to put into them."""

import json

PAIR = {"prompt": "p", "chosen": " c", "rejected": " r"}
PIQA = {"goal": "g", "sol1": "one", "sol2": "two", "label": 0}
USER = {"role": "user", "content": "hi"}
GOOD = {"role": "assistant", "content": "good"}
BAD = {"role": "assistant", "content": "bad"}


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def parquet(path, rows):
    from pyarrow import Table
    from pyarrow.parquet import write_table

    write_table(Table.from_pylist(rows), path)


def read(folder, content, name="train.jsonl", pairs=True, **options):
    """The training records of one file; a good held-out file stands beside it.

    `options`: of `load_data`, and the texts of the flags of `read_options`.
    """
    from data.options import read_options
    from data.records import load_data

    write(folder, {name: content, "other.jsonl": lines(PAIR)})
    flags = ("columns", "ignore", "split", "bad_rows", "chat", "train_on")
    reading = read_options(**{flag: options.pop(flag) for flag in flags if flag in options})
    held_out = str(folder / "other.jsonl")
    return load_data(str(folder / name), held_out, pairs=pairs, options=reading, **options)[0]


def bare(record):
    return record.prompt, record.chosen, record.rejected

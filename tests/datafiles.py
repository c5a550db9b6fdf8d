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
    """The training records of one file; a good held-out file stands beside it."""
    from data.records import load_data

    write(folder, {name: content, "other.jsonl": lines(PAIR)})
    return load_data(str(folder / name), str(folder / "other.jsonl"), pairs=pairs, **options)[0]


def bare(record):
    return record.prompt, record.chosen, record.rejected

"""Token trees: a batch in which every token is computed once.

The responses to one prompt share it, and often their first words too. A padded rectangle computes
those tokens once a response, and padding besides; a tree computes them once:

    rectangle  [Q u e s t i o n  a  b  c]        tree  [Q u e s t i o n  a  b  c  x  y]
               [Q u e s t i o n  a  x  y]                  shared (0)      1  1  2  2    branch

Several trees stand in one row. Three integers a token describe it all: which example it belongs
to, which branch (0 = shared by all responses) and which position. Token i sees token j when j is
of the same example, is shared or on i's own branch, and is not later: `tree_mask`, one line. Every
response token has one parent, the token whose hidden state predicts it, so its log-probability is
computed once and each sequence gathers its own.

The rectangle is the same record with another layout: one sequence a row, nothing shared. It is the
oracle of the trees' tests, and the fallback for models that cannot take the mask.

Shapes: R packed rows, L tokens a row, E examples, S = E x k sequences, T response tokens of the
longest sequence, M distinct response tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from os.path import commonprefix
from typing import Any, Literal

import torch
from torch import Tensor

from data.batches import balance
from data.row_table import Row, shared_length

Layout = Literal["tree", "rectangle"]

# Tokens of a packed row at which its attention, dense over the row, costs as much as all else. Read
# off SmolLM2-135M's step, of which attention is 14 % where rows are 500 wide; packing hardly
# depends on it: between 2,000 and 8,000 the cost of PIQA's batches differs by less than 1 %.
WIDE = 4096


@dataclass(frozen=True)
class TreeBatch:
    """Examples ready for one forward; sequences stand in the order of their examples' responses.

    T runs over response tokens; with prompts=True over prompt tokens too, which come first.
    """

    # ---- what the model is given
    input_ids: Tensor  # (R, L)
    position_ids: Tensor  # (R, L)
    example: Tensor  # (R, L) number of the example, -1 for padding
    branch: Tensor  # (R, L) 0 for shared tokens, 1 .. k for a response's own
    layout: Layout
    include_last_token: bool  # the last token of every sequence was computed too
    # ---- from its hidden states to sequences
    parents: Tensor  # (M,) flat index into (R, L): the token whose hidden state predicts ...
    targets: Tensor  # (M,) ... this token id
    gather: Tensor  # (S, T) index into M, 0 where the mask is False
    mask: Tensor  # (S, T) True on trained response tokens, the end token included
    prompt_mask: Tensor  # (S, T) True on prompt tokens; all False unless packed with prompts=True
    last: Tensor  # (S,) flat index of each sequence's last token (with include_last_token)
    # ---- what is known of the sequences
    index: Tensor  # (E,) position of the row in its data set
    ended: Tensor  # (S,) True where the last response token is the end token, not a cut
    characters: Tensor  # (S,) length of the response's text
    response_lengths: tuple[int, ...]  # (S,) sums of `mask`, known without asking the device
    prompt_lengths: tuple[int, ...]  # (S,) sums of `prompt_mask`
    columns: Mapping[str, Tensor] = field(default_factory=dict)  # (S,) or (S, T): what a loss reads
    dummy: bool = False  # stands in on a rank that has no row left: forward runs, nothing counts

    @property
    def num_examples(self) -> int:
        return len(self.index)

    @property
    def num_sequences(self) -> int:
        return len(self.response_lengths)

    @property
    def num_tokens(self) -> int:
        """Response tokens over all sequences (a token that two responses share counts twice)."""
        return sum(self.response_lengths)

    def to(self, device: torch.device) -> TreeBatch:
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in values.items():
            if isinstance(value, Tensor):
                values[name] = value.to(device)
        values["columns"] = {name: column.to(device) for name, column in self.columns.items()}
        return TreeBatch(**values)

    def with_columns(self, columns: Mapping[str, Tensor]) -> TreeBatch:
        """The same batch with more columns, (S,) or (S, T) each."""
        return replace(self, columns={**self.columns, **columns})

    def sequences(self, token_values: Tensor) -> Tensor:
        """(M,) values of the distinct response tokens -> (S, T), 0 outside the mask."""
        # index_select, because its backward adds in a fixed order; indexing's does not everywhere
        gathered = token_values.index_select(0, self.gather.flatten()).view(self.gather.shape)
        return torch.where(self.mask | self.prompt_mask, gathered, 0.0)

    def text_mask(self) -> Tensor:
        """(S, T) like `mask`, but without the end token: what lm-eval scores."""
        column = torch.arange(self.mask.shape[1], device=self.mask.device)
        last = (column * self.mask).amax(-1)
        return self.mask & ((column < last[:, None]) | ~self.ended[:, None])

    def chosen(self) -> TreeBatch:
        """The same forward, but only the first response of every example is trained on."""
        step = self.num_sequences // self.num_examples
        names = ["gather", "mask", "prompt_mask", "last", "ended", "characters"]
        names += ["response_lengths", "prompt_lengths"]
        first: dict[str, Any] = {name: getattr(self, name)[::step] for name in names}
        return replace(self, **first, columns={k: x[::step] for k, x in self.columns.items()})


def tree_tokens(row: Row, *, include_last_token: bool = False) -> int:
    """Tokens that the row's tree computes; a response's last only with `include_last_token`."""
    shared, targets = shared_length(row), 0 if include_last_token else 1
    return len(row.prompt) + shared + sum(max(len(r) - shared - targets, 0) for r in row.responses)


def tree_mask(
    example: Tensor, branch: Tensor, position: Tensor, *, window: int | None = None
) -> Tensor:
    """(R, 1, L, L) bool: which token (last axis) each token (axis before) may see.

    `window` limits how far back, for models with sliding-window attention, whose own window a
    given mask replaces. Padding sees padding, so that no row of the softmax is empty.
    """
    i, j = (slice(None), slice(None), None), (slice(None), None, slice(None))
    seen = (example[i] == example[j]) & ((branch[j] == 0) | (branch[i] == branch[j]))
    distance = position[i] - position[j]
    seen &= distance >= 0
    if window is not None:
        seen &= distance < window
    return seen[:, None]


def pack(
    rows: Sequence[Row],
    *,
    layout: Layout = "tree",
    include_last_token: bool = False,
    prompts: bool = False,
) -> TreeBatch:
    """Build the batch of `rows`, which must all have the same number of responses.

    Args:
        rows: encoded examples, in the order that the batch's examples and sequences will have.
        layout: "tree", or "rectangle" for one padded row a sequence.
        include_last_token: also compute the last token of every response. It predicts nothing, so
            log-probs do without it; a score is read there.
        prompts: also give the log-probs of the prompt's tokens, all but the first.
    """
    # ---- one tree a row (in the rectangle one a sequence), and which of them share a packed row
    trees = [
        _Tree(row, responses, include_last_token, prompts)
        for row in rows
        for responses in _parts(row, layout)
    ]
    bins = _bins([len(tree.ids) for tree in trees], alone=layout == "rectangle")
    width = max(sum(len(trees[t].ids) for t in members) for members in bins)

    # ---- the model's inputs: trees side by side, then padding, which is an example of its own
    shape = (len(bins), width)
    ids, positions, branches = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    examples = torch.full(shape, -1)
    offsets = [0] * len(trees)
    for r, members in enumerate(bins):
        start = 0
        for t in members:
            end = start + len(trees[t].ids)
            ids[r, start:end] = torch.tensor(trees[t].ids)
            positions[r, start:end] = torch.tensor(trees[t].positions)
            branches[r, start:end] = torch.tensor(trees[t].branches)
            examples[r, start:end] = t
            offsets[t] = r * width + start
            start = end
        positions[r, start:] = torch.arange(width - start)

    # ---- from places in a tree to places in the batch
    parents: list[int] = []
    targets: list[int] = []
    paths: list[list[int]] = []
    last: list[int] = []
    for tree, offset in zip(trees, offsets, strict=True):
        base = len(parents)
        parents += [offset + p for p in tree.parents]
        targets += tree.targets
        paths += [[base + node for node in path] for path in tree.paths]
        last += [offset + p for p in tree.last]

    # ---- sequences: `context` prompt tokens, then the response, then nothing
    contexts = [tree.context for tree in trees for _ in tree.paths]
    lengths = [len(path) for path in paths]
    longest = max(lengths)
    column = torch.arange(longest)
    starts, ends = torch.tensor(contexts)[:, None], torch.tensor(lengths)[:, None]
    mask = (starts <= column) & (column < ends)
    for s, trained in enumerate(trained for row in rows for trained in row.masks or row.responses):
        if isinstance(trained[0], bool):  # turns of others between those of the assistant
            mask[s, contexts[s] : lengths[s]] &= torch.tensor(trained)
    return TreeBatch(
        input_ids=ids,
        position_ids=positions,
        example=examples,
        branch=branches,
        layout=layout,
        include_last_token=include_last_token,
        parents=torch.tensor(parents, dtype=torch.long),
        targets=torch.tensor(targets, dtype=torch.long),
        gather=torch.tensor([path + [0] * (longest - len(path)) for path in paths]),
        mask=mask,
        prompt_mask=column < starts,
        last=torch.tensor(last),
        index=torch.tensor([row.index for row in rows]),
        ended=torch.tensor([end for row in rows for end in row.ends]),
        characters=torch.tensor([n for row in rows for n in row.characters]),
        response_lengths=tuple(
            len(response) if row.masks is None else sum(row.masks[k])
            for row in rows
            for k, response in enumerate(row.responses)
        ),
        prompt_lengths=tuple(contexts),
    )


def _parts(row: Row, layout: Layout) -> list[list[list[int]]]:
    """The responses that stand in one tree together: all of them, or one each in the rectangle."""
    return [row.responses] if layout == "tree" else [[response] for response in row.responses]


class _Tree:
    """One example's tokens in tree order; all indices are local to the tree.

    The trunk is what all responses share: the prompt and the tokens that every response begins
    with. Tokens with a log-prob (targets) are numbered by node: the trunk's, then each branch's.
    """

    def __init__(
        self, row: Row, responses: list[list[int]], include_last_token: bool, prompts: bool
    ) -> None:
        # The trunk: on branch 0, at positions 0, 1, 2, ...
        shared = len(commonprefix(responses)) if len(responses) > 1 else 0
        trunk = row.prompt + responses[0][:shared]
        self.ids, self.branches = list(trunk), [0] * len(trunk)
        self.positions = list(range(len(trunk)))
        # Its targets: the shared response tokens, and with `prompts` all of the prompt but its
        # first token, which nothing predicts. Each is the child of the token before it.
        self.context = len(row.prompt) - 1 if prompts else 0  # prompt tokens among the targets
        first = len(row.prompt) - self.context
        self.parents = list(range(first - 1, len(trunk) - 1))
        self.targets = trunk[first:]
        trunk_nodes = range(len(self.targets))
        self.paths: list[list[int]] = []
        self.last: list[int] = []
        for b, response in enumerate(responses, start=1):
            # The branch: what this response has of its own, positions going on from the trunk's.
            own, start, node = response[shared:], len(self.ids), len(self.targets)
            computed = own if include_last_token else own[:-1]  # the last token predicts nothing
            self.ids += computed
            self.branches += [b] * len(computed)
            self.positions += range(len(trunk), len(trunk) + len(computed))
            # Its first token is predicted by the trunk's end, the others by their neighbour.
            self.parents += [len(trunk) - 1, *range(start, start + len(own) - 1)][: len(own)]
            self.targets += own
            # The sequence: the trunk's nodes, then its own; and the place of its last token.
            self.paths.append([*trunk_nodes, *range(node, node + len(own))])
            self.last.append(start + len(own) - 1 if own else len(trunk) - 1)


def _bins(lengths: list[int], *, alone: bool) -> list[list[int]]:
    """Which trees share a packed row: balanced over as many rows as cost least."""
    if alone:
        return [[t] for t in range(len(lengths))]
    longest_first = sorted(range(len(lengths)), key=lambda t: -lengths[t])
    best: list[list[int]] = []
    least = math.inf
    for count in range(1, len(lengths) + 1):
        if _cost(count, max(lengths)) >= least:  # no row is narrower than the longest tree
            break
        rows = balance(longest_first, lengths, count)
        cost = _cost(count, max(sum(lengths[t] for t in row) for row in rows))
        if cost < least:
            best, least = rows, cost
    return best


def _cost(rows: int, width: int) -> int:
    """Of a forward, in tokens: each costs as much again in attention where a row has WIDE."""
    return rows * width * (WIDE + width)

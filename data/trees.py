"""Token trees: a batch in which every token is computed once.

The responses to one prompt share it, and often their first words too. A padded rectangle computes
those tokens once a response, and padding besides; a tree computes them once:

    rectangle  [Q u e s t i o n  a  b  c]        tree  [Q u e s t i o n  a  b  c  x  y]
               [Q u e s t i o n  a  x  y]                  shared (0)      1  1  2  2    branch

Several trees stand in one row. Three integers a token say everything: which example it belongs
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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from os.path import commonprefix
from typing import Any, Literal

import torch
from torch import Tensor

from data.encode import Row

Layout = Literal["tree", "rectangle"]

ROW_TOKENS = 512  # target width of a packed row: attention is dense, and grows with its square


@dataclass(frozen=True)
class Trajectory:
    """What a rollout fixed about its sequences; tensors are (S, T), 0 outside the mask."""

    old_logps: Tensor  # of the policy that sampled, at the sampling temperature
    old_values: Tensor  # of the critic then: V of the state before each token
    advantages: Tensor
    returns: Tensor
    ref_logps: Tensor  # of the frozen reference; the policy's own where there is none
    critic_only: bool = False  # the policy does not learn from this rollout

    def of(self, sequences: Sequence[int], width: int) -> Trajectory:
        """That of some sequences, the longest of which has `width` response tokens."""
        return self._map(lambda x: x[list(sequences), :width])

    def to(self, device: torch.device) -> Trajectory:
        return self._map(lambda x: x.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Trajectory:
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in values.items():
            if isinstance(value, Tensor):
                values[name] = change(value)
        return Trajectory(**values)


@dataclass(frozen=True)
class TreeBatch:
    """Examples ready for one forward; sequences stand in the order of their examples' responses.

    T runs over response tokens; with prompts=True over prompt tokens too, which come first.
    """

    input_ids: Tensor  # (R, L)
    position_ids: Tensor  # (R, L)
    example: Tensor  # (R, L) number of the example, -1 for padding
    branch: Tensor  # (R, L) 0 for shared tokens, 1 .. k for a response's own
    parents: Tensor  # (M,) flat index into (R, L): the token whose hidden state predicts ...
    targets: Tensor  # (M,) ... this token id
    gather: Tensor  # (S, T) index into M, 0 where the mask is False
    mask: Tensor  # (S, T) True on response tokens, the end token included
    last: Tensor  # (S,) flat index of the last token of each sequence (only with include_last_token=True)
    ended: Tensor  # (S,) True where the last response token is the end token, not a cut
    characters: Tensor  # (S,) length of the response's text
    margin: Tensor  # (E,)
    index: Tensor  # (E,) position of the row in its data set
    prompt_mask: Tensor  # (S, T) True on prompt tokens; all False unless packed with prompts=True
    layout: Layout
    include_last_token: bool  # the last token of every sequence was computed too
    ref_logps: Tensor | None = None  # (S,) reference log-probs, summed over the response
    trajectory: Trajectory | None = None  # of PPO's rollout
    dummy: bool = False  # stands in on a rank that has no row left: forward runs, nothing counts

    @property
    def num_examples(self) -> int:
        return len(self.index)

    @property
    def num_sequences(self) -> int:
        return len(self.mask)

    @property
    def num_tokens(self) -> int:
        """Response tokens over all sequences (a token that two responses share counts twice)."""
        return int(self.mask.sum())

    def to(self, device: torch.device) -> TreeBatch:
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in values.items():
            if isinstance(value, (Tensor, Trajectory)):
                values[name] = value.to(device)
        return TreeBatch(**values)

    def sequences(self, token_values: Tensor) -> Tensor:
        """(M,) values of the distinct response tokens -> (S, T), 0 outside the mask."""
        # index_select, because its backward adds in a fixed order; indexing's does not everywhere
        gathered = token_values.index_select(0, self.gather.flatten()).view(self.gather.shape)
        return torch.where(self.mask | self.prompt_mask, gathered, 0.0)

    def text_mask(self) -> Tensor:
        """(S, T) like `mask`, but without the end token: what lm-eval scores."""
        column = torch.arange(self.mask.shape[1], device=self.mask.device)
        lengths = (self.mask | self.prompt_mask).sum(-1)
        return self.mask & (column < (lengths - self.ended.long())[:, None])

    def chosen(self) -> TreeBatch:
        """The same forward, but only the first response of every example is trained on."""
        step = self.num_sequences // self.num_examples
        names = ("gather", "mask", "prompt_mask", "last", "ended", "characters")
        return replace(self, **{name: getattr(self, name)[::step] for name in names})


def shared_length(row: Row) -> int:
    """How many response tokens all responses of the row begin with."""
    return len(commonprefix(row.responses)) if len(row.responses) > 1 else 0


def tree_tokens(row: Row, *, include_last_token: bool = False) -> int:
    """Tokens that the row's tree computes; the last of a response only with `include_last_token`."""
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
        include_last_token: also compute the last token of every response. It predicts nothing, so log-probs do
            without it; a score is read there.
        prompts: also give the log-probs of the prompt's tokens, all but the first.
    """
    trees = [
        _Tree(row, k, include_last_token, prompts) for row in rows for k in _parts(row, layout)
    ]
    bins = _bins([len(tree.ids) for tree in trees], alone=layout == "rectangle")
    width = max(sum(len(trees[t].ids) for t in members) for members in bins)

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

    starts = torch.tensor([tree.context for tree in trees for _ in tree.paths])[:, None]
    lengths = torch.tensor([len(path) for path in paths])[:, None]
    longest = max(len(path) for path in paths)
    column = torch.arange(longest)
    return TreeBatch(
        input_ids=ids,
        position_ids=positions,
        example=examples,
        branch=branches,
        parents=torch.tensor(parents, dtype=torch.long),
        targets=torch.tensor(targets, dtype=torch.long),
        gather=torch.tensor([path + [0] * (longest - len(path)) for path in paths]),
        mask=(starts <= column) & (column < lengths),
        prompt_mask=column < starts,
        last=torch.tensor(last),
        ended=torch.tensor([end for row in rows for end in row.ends]),
        characters=torch.tensor([n for row in rows for n in row.characters]),
        margin=torch.tensor([row.margin for row in rows]),
        index=torch.tensor([row.index for row in rows]),
        layout=layout,
        include_last_token=include_last_token,
    )


def _parts(row: Row, layout: Layout) -> list[list[list[int]]]:
    """The responses that stand in one tree together: all of them, or one each in the rectangle."""
    return [row.responses] if layout == "tree" else [[response] for response in row.responses]


class _Tree:
    """One example's tokens in tree order; all indices are local to the tree."""

    def __init__(
        self, row: Row, responses: list[list[int]], include_last_token: bool, prompts: bool
    ) -> None:
        shared = len(commonprefix(responses)) if len(responses) > 1 else 0
        trunk = row.prompt + responses[0][:shared]
        self.ids, self.branches = list(trunk), [0] * len(trunk)
        self.positions = list(range(len(trunk)))
        # Distinct tokens with a log-prob: first the trunk's, each the child of the one before it.
        self.context = len(row.prompt) - 1 if prompts else 0  # how many of them are the prompt's
        start = len(row.prompt) - self.context
        self.parents = list(range(start - 1, len(trunk) - 1))
        self.targets = trunk[start:]
        common = len(self.targets)
        self.paths: list[list[int]] = []
        self.last: list[int] = []
        for b, response in enumerate(responses, start=1):
            own, start, node = response[shared:], len(self.ids), len(self.targets)
            computed = own if include_last_token else own[:-1]
            self.ids += computed
            self.branches += [b] * len(computed)
            self.positions += range(len(trunk), len(trunk) + len(computed))
            # The first of the branch is predicted by the trunk's end, the rest by their neighbour.
            self.parents += [len(trunk) - 1, *range(start, start + len(own) - 1)][: len(own)]
            self.targets += own
            self.paths.append([*range(common), *range(node, node + len(own))])
            self.last.append(start + len(own) - 1 if own else len(trunk) - 1)


def _bins(lengths: list[int], *, alone: bool) -> list[list[int]]:
    """First-fit decreasing into rows of ROW_TOKENS, or of the longest tree where that is longer."""
    if alone:
        return [[t] for t in range(len(lengths))]
    capacity = max(ROW_TOKENS, max(lengths))
    bins: list[list[int]] = []
    room: list[int] = []
    for t in sorted(range(len(lengths)), key=lambda t: -lengths[t]):
        r = next((r for r, free in enumerate(room) if free >= lengths[t]), None)
        if r is None:
            r = len(bins)
            bins.append([])
            room.append(capacity)
        bins[r].append(t)
        room[r] -= lengths[t]
    return bins

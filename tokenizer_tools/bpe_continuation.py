"""Go on with the training of a byte-level BPE vocabulary from where it ended.

Training BPE is: merge the most frequent pair of neighbors everywhere, and again. This starts from
pre-tokens that the old vocabulary has tokenized, so it only adds merges behind the old ones.

How it works: the count of a pair never rises once both its tokens exist, since a token only comes
into being at its own merge. So each pair is looked for once, its count then is an upper bound, and
it is counted again only when it comes to the top of the heap. A token spans the same number of old
tokens wherever it occurs, so one array, written at both ends of a token, is the linked list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from merge.interruption import raise_if_interrupted

_END, _INNER = -1, -2
"""In the array of ids: the end of a pre-token, and a place inside a longer token."""

_PAIRS_AT_ONCE = 1 << 22

Ints = NDArray[np.integer[Any]]


class Merge(NamedTuple):
    """Two tokens that become one, by id, and how often they were neighbors at that time."""

    left: int
    right: int
    frequency: int


@dataclass(frozen=True)
class PreTokens:
    """Pre-tokens as ids of the old vocabulary, one after the other, each behind it ``-1``.

    ``ids`` is int32, ``counts`` (int64) says for each pre-token how often the corpus has it.
    """

    ids: Ints
    counts: Ints

    @classmethod
    def join(cls, encoded: Iterable[Sequence[int]], counts: Iterable[int]) -> PreTokens:
        """From lists of ids."""
        flat = (id_ for ids in encoded for id_ in (*ids, _END))
        return cls(np.fromiter(flat, np.int32), np.fromiter(counts, np.int64))

    def count_tokens(self) -> int:
        """How many tokens the corpus has."""
        sizes = np.diff(np.flatnonzero(self.ids == _END), prepend=-1) - 1
        return int(sizes @ self.counts)


def continue_merges(
    corpus: PreTokens,
    tokens: dict[int, bytes],
    first_id: int,
    n_merges: int,
    *,
    min_frequency: int = 2,
    unreached: Sequence[Sequence[int]] = (),
    is_wanted: Callable[[bytes], bool] = lambda token: True,
    on_merge: Callable[[], object] = lambda: None,
) -> list[Merge]:
    """Return up to ``n_merges`` merges, in order; their tokens are ``first_id`` and on.

    ``tokens`` has the bytes of each old id, all below ``first_id``. Of pairs with the same count
    the one with the lower left id comes first, then the lower right id. A pair is passed over for
    good where ``is_wanted`` refuses its bytes, and where it would leave one of ``unreached`` two
    tokens: old tokens, split as far as the old merges reach, that two neighbors would then make.
    Stops earlier where no pair occurs ``min_frequency`` times.
    """
    state = _State.start(corpus, unreached, max(first_id + n_merges, max(tokens) + 1))
    queue = _Queue(state, min_frequency)
    tokens = dict(tokens)
    merges: list[Merge] = []
    for left, right, places, count in queue.pop_pairs():
        token = tokens[left] + tokens[right]
        if not is_wanted(token) or state.completes_unreached(places):
            continue
        new_id = first_id + len(merges)
        tokens[new_id] = token
        queue.add(state.merge(left, right, places, new_id))
        merges.append(Merge(left, right, count))
        on_merge()
        if len(merges) == n_merges:
            break
    return merges


class _Pairs(NamedTuple):
    """Where pairs of neighbors are: the key of each and the place of its left token."""

    keys: Ints
    places: Ints


@dataclass
class _State:
    """The corpus as it is now.

    ``ids`` has a token's id at its first and last place; ``spans`` how many places a token takes,
    by id; ``weights`` how often a place counts: 0 in the unreached tokens, which begin at ``end``.
    """

    ids: Ints
    weights: Ints
    spans: Ints
    end: int
    unreached_starts: Ints
    unreached_sizes: Ints

    @classmethod
    def start(cls, corpus: PreTokens, unreached: Sequence[Sequence[int]], n_ids: int) -> _State:
        watched = PreTokens.join(unreached, [0] * len(unreached))
        ids = np.concatenate([corpus.ids, watched.ids])
        sizes = np.diff(np.flatnonzero(ids == _END), prepend=-1)
        counts = np.concatenate([corpus.counts, watched.counts])
        kind = np.int32 if int(counts.max(initial=0)) < 2**31 else np.int64
        weights = np.repeat(counts.astype(kind), sizes)
        spans = np.ones(n_ids, np.int32)
        watched_sizes = sizes[len(corpus.counts) :]
        starts = len(corpus.ids) + np.cumsum(watched_sizes) - watched_sizes
        return cls(ids, weights, spans, len(corpus.ids), starts, watched_sizes - 1)

    def list_pairs(self) -> Iterator[_Pairs]:
        """All pairs of neighbors before the first merge, by parts with other left ids: sorting
        all at once would take several times the memory of the corpus.
        """
        lefts = self.ids[:-1]
        before = np.cumsum(np.bincount(lefts[lefts >= 0], minlength=1))
        parts = np.flatnonzero(np.diff(before // _PAIRS_AT_ONCE, append=-1)) + 1
        start = 0
        for stop in parts.tolist():
            raise_if_interrupted()
            has_pair = (lefts >= start) & (lefts < stop) & (self.ids[1:] >= 0)
            places = np.flatnonzero(has_pair).astype(self._kind)
            yield _Pairs(_make_keys(lefts[places], self.ids[places + 1]), places)
            start = stop

    def find(self, left: int, right: int, places: Ints) -> Ints:
        """Those of ``places`` where the pair still is."""
        places = places[self.ids[places] == left]
        kept: Ints = places[self.ids[places + self.spans[left]] == right]
        return kept

    def count(self, places: Ints) -> int:
        return int(self.weights[places].sum(dtype=np.int64))

    def completes_unreached(self, places: Ints) -> bool:
        """Whether merges there, each the last but one, would leave an unreached token two parts."""
        places = places[places >= self.end]
        words = np.searchsorted(self.unreached_starts, places, side="right") - 1
        merged = np.bincount(words, minlength=len(self.unreached_sizes))
        return bool(np.any((merged > 0) & (self.unreached_sizes - merged <= 2)))

    def merge(self, left: int, right: int, places: Ints, new_id: int) -> _Pairs:
        """Merge the pair at ``places``; return the pairs of the new token with its neighbors."""
        rights = places + self.spans[left]
        lasts = rights + (self.spans[right] - 1)
        self.ids[rights - 1] = self.ids[rights] = _INNER
        self.ids[places] = self.ids[lasts] = new_id
        self.spans[new_id] = self.spans[left] + self.spans[right]
        watched = np.searchsorted(self.unreached_starts, places[places >= self.end], side="right")
        np.subtract.at(self.unreached_sizes, watched - 1, 1)
        return self._list_neighbors(new_id, places, lasts)

    def _list_neighbors(self, new_id: int, places: Ints, lasts: Ints) -> _Pairs:
        before = self.ids[places - 1]  # of the first place the last: an end
        has_left = before >= 0
        before = before[has_left]
        after = self.ids[lasts + 1]
        has_right = (after >= 0) & (after != new_id)  # two new ones are a pair of the second's
        keys = (_make_keys(before, new_id), _make_keys(new_id, after[has_right]))
        starts = (places[has_left] - self.spans[before], places[has_right])
        return _Pairs(np.concatenate(keys), np.concatenate(starts).astype(self._kind))

    @property
    def _kind(self) -> type[np.integer[Any]]:
        return np.int32 if len(self.ids) < 2**31 else np.int64


def _make_keys(left: Ints | int, right: Ints | int) -> Ints:
    """One number for a pair, in the order of the left and then of the right id."""
    return np.asarray(left, np.int64) << 32 | np.asarray(right, np.int64)


class _Group:
    """Pairs that came up together, the most frequent first, in arrays: there are millions."""

    def __init__(self, state: _State, pairs: _Pairs, min_frequency: int) -> None:
        order = np.argsort(pairs.keys, kind="stable")
        keys, places = pairs.keys[order], pairs.places[order]
        starts = np.flatnonzero(np.diff(keys, prepend=-1))
        sizes = np.diff(starts, append=len(keys))
        counts = np.add.reduceat(state.weights[places], starts, dtype=np.int64)
        kept = counts >= min_frequency
        self._places = places[np.repeat(kept, sizes)]
        sizes, counts, keys = sizes[kept], counts[kept], keys[starts[kept]]
        stops = np.cumsum(sizes)
        best_first = np.lexsort((keys, -counts))
        self._keys, self._counts = keys[best_first], counts[best_first]
        self._starts, self._stops = (stops - sizes)[best_first], stops[best_first]
        self._next = 0

    def take(self) -> tuple[int, int, Ints, _Group] | None:
        """The next pair as an entry of the heap, or None."""
        index = self._next
        if index == len(self._keys):
            return None
        self._next += 1
        places = self._places[self._starts[index] : self._stops[index]]
        return -int(self._counts[index]), int(self._keys[index]), places, self


class _Queue:
    """The pairs by the largest counts that they can have; of each group the best one."""

    def __init__(self, state: _State, min_frequency: int) -> None:
        self._state = state
        self._min_frequency = min_frequency
        self._heap: list[Any] = []
        for pairs in state.list_pairs():
            self.add(pairs)

    def add(self, pairs: _Pairs) -> None:
        if len(pairs.keys):
            self._push(_Group(self._state, pairs, self._min_frequency).take())

    def _push(self, entry: tuple[int, int, Ints, _Group | None] | None) -> None:
        if entry is not None:
            heappush(self._heap, entry)

    def pop_pairs(self) -> Iterator[tuple[int, int, Ints, int]]:
        """Yield the most frequent pair each time: its ids, its places to be merged, its count."""
        while self._heap:
            raise_if_interrupted()
            bound, key, places, group = heappop(self._heap)
            if group is not None:
                self._push(group.take())
            left, right = key >> 32, key & 0xFFFFFFFF
            places = self._state.find(left, right, places)
            count = self._state.count(places)
            if count == -bound:
                yield (
                    left,
                    right,
                    _drop_overlaps(places, self._state.spans[left], left == right),
                    count,
                )
            elif count >= self._min_frequency:
                self._push((-count, key, places, None))


def _drop_overlaps(places: Ints, span: int, is_doubled: bool) -> Ints:
    """The places in their order; of a token beside itself again and again, every other one."""
    places = np.sort(places)
    if not is_doubled:
        return places
    index = np.arange(len(places))
    begins = np.diff(places, prepend=-span - 1) != span
    kept: Ints = places[(index - np.maximum.accumulate(np.where(begins, index, 0))) % 2 == 0]
    return kept

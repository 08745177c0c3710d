"""Going on with BPE: against a plain trainer that counts anew, and the trainer of tokenizers."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, trainers

from merge.interruption import Interrupted
from tests.kit.tokenizer_models import TEXT
from tokenizer_tools import bpe_continuation
from tokenizer_tools.bpe_continuation import Merge, PreTokens, continue_merges

Words = Mapping[tuple[int, ...], int]


def tokenize(text: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """BPE in its plainest form: the pair with the lowest rank, the first such one, again."""
    parts = [text[i : i + 1] for i in range(len(text))]
    while True:
        pairs = [(ranks.get(parts[i] + parts[i + 1]), i) for i in range(len(parts) - 1)]
        known = [(rank, i) for rank, i in pairs if rank is not None]
        if not known:
            return parts
        _, i = min(known)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def train_plainly(
    texts: Mapping[bytes, int],
    ranks: Mapping[bytes, int],
    first_id: int,
    n_merges: int,
    is_wanted: Callable[[bytes], bool],
) -> list[Merge]:
    """Count all pairs anew before each merge; ids are ranks. Nothing is kept between two merges."""
    ranks = dict(ranks)
    unreached = [token for token in ranks if tokenize(token, ranks) != [token]]
    merges: list[Merge] = []
    refused: set[bytes] = set()
    while len(merges) < n_merges:
        pairs: Counter[tuple[int, int]] = Counter()
        for text, count in texts.items():
            parts = [text] if text in ranks else tokenize(text, ranks)
            ids = [ranks[part] for part in parts]
            for pair in pairwise(ids):
                pairs[pair] += count
        by_id = {rank: token for token, rank in ranks.items()}
        listed = sorted((-count, pair) for pair, count in pairs.items() if count >= 2)
        for count, (left, right) in listed:
            token = by_id[left] + by_id[right]
            more = {**ranks, token: first_id + len(merges)}
            if any(tokenize(old, more) == [old] for old in unreached) or not is_wanted(token):
                refused.add(token)
            if token not in refused:
                ranks = more
                merges.append(Merge(left, right, -count))
                break
        else:
            break
    return merges


def encode(texts: Mapping[bytes, int], ranks: Mapping[bytes, int]) -> PreTokens:
    """Pre-tokens as tiktoken encodes them: one that is a token is that token."""
    encoded = [[ranks[p] for p in ([t] if t in ranks else tokenize(t, ranks))] for t in texts]
    return PreTokens.join(encoded, texts.values())


letters = st.binary(min_size=1, max_size=9).map(lambda b: bytes(97 + byte % 3 for byte in b))
corpora = st.dictionaries(letters, st.integers(1, 5), min_size=1, max_size=12)
old_tokens = st.lists(letters.filter(lambda token: len(token) > 1), max_size=6)


@settings(max_examples=300, deadline=None)
@given(
    corpora, st.lists(letters.filter(lambda token: len(token) > 1), max_size=6), st.integers(2, 9)
)
def test_merges_are_those_of_a_trainer_that_counts_anew(
    texts: dict[bytes, int], old: list[bytes], longest: int
) -> None:
    """Old tokens are drawn too, and so some are reached and some are not."""
    ranks = {bytes([97 + n]): n for n in range(3)}
    ranks |= {token: 3 + n for n, token in enumerate(dict.fromkeys(old))}
    wanted = partial(is_short, longest)
    parts = {token: tokenize(token, ranks) for token in ranks}
    found = continue_merges(
        encode(texts, ranks),
        {rank: token for token, rank in ranks.items()},
        100,
        20,
        unreached=[[ranks[p] for p in some] for some in parts.values() if len(some) > 1],
        is_wanted=wanted,
    )
    assert found == train_plainly(texts, ranks, 100, 20, wanted)


def is_short(longest: int, token: bytes) -> bool:
    return len(token) <= longest


def words_of_text(seed: int = 0) -> Words:
    """The mixed text's words as ids of characters; a few of them many times."""
    words = Counter(TEXT.read_text(encoding="utf-8").split())
    draw = random.Random(seed)
    return {
        tuple(map(ord, word)): count * draw.choice((1, 1, 1, 7)) for word, count in words.items()
    }


def train_with_tokenizers(words: Words, n_merges: int) -> list[tuple[str, str]]:
    """The merges of Hugging Face's trainer, which begins with characters."""
    alphabet = {id_ for word in words for id_ in word}
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + n_merges, min_frequency=2, show_progress=False
    )
    tokenizer = Tokenizer(models.BPE())
    texts = ["".join(map(chr, word)) for word, count in words.items() for _ in range(count)]
    tokenizer.train_from_iterator(texts, trainer)
    return [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]


@pytest.mark.parametrize("at_once", [1, 1 << 22])
def test_merges_are_those_of_tokenizers_trainer(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """Each id is a character of its own, so that a trainer that only knows text can go on too."""
    monkeypatch.setattr(bpe_continuation, "_PAIRS_AT_ONCE", at_once)
    words, first_id = words_of_text(), 0x110000
    tokens = {id_: chr(id_).encode() for word in words for id_ in word}
    texts = {id_: chr(id_) for id_ in tokens}
    found = continue_merges(PreTokens.join(words, words.values()), tokens, first_id, 1500)
    for number, merge in enumerate(found):
        texts[first_id + number] = texts[merge.left] + texts[merge.right]
    assert len(found) == 1500
    ours = [(texts[merge.left], texts[merge.right]) for merge in found]
    assert ours == train_with_tokenizers(words, 1500)


def test_the_order_of_pre_tokens_changes_nothing() -> None:
    words = list(words_of_text().items())
    tokens = {id_: chr(id_).encode() for word, _ in words for id_ in word}

    def train(items: Sequence[tuple[tuple[int, ...], int]]) -> list[Merge]:
        joined = PreTokens.join([word for word, _ in items], [count for _, count in items])
        return continue_merges(joined, tokens, 0x110000, 800)

    assert train(words) == train(sorted(words)) == train(words[::-1])


def test_an_interruption_ends_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise Interrupted

    corpus = PreTokens.join([(1, 2), (2, 3)], [4, 5])
    monkeypatch.setattr(bpe_continuation, "raise_if_interrupted", interrupt)
    with pytest.raises(Interrupted):
        continue_merges(corpus, {1: b"a", 2: b"b", 3: b"c"}, 4, 2)


def test_no_pre_tokens_give_no_merges() -> None:
    assert continue_merges(PreTokens.join([], []), {0: b"a"}, 1, 5) == []
    assert continue_merges(PreTokens.join([[0], []], [3, 1]), {0: b"a"}, 1, 5) == []

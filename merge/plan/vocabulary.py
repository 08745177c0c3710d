"""Whether tokenizer, embedding rows and LM head rows belong together, before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..checksums.known_tokenizers import KnownTokenizer, explain_mismatch
from ..errors import VocabularyError
from ..messages import join, tr
from ..tokenizers.embedded_tokenizer import EmbeddedTokenizer
from ..tokenizers.opaque_tokenizer import Tokenizer
from ..tokenizers.padding_rows import are_padding

_NEW_TOKENS = tr(
    "\n"
    "or, if this tokenizer is meant and the model will be trained on, "
    "let the missing rows begin with\n"
    "--new_token_init subtokens, mean, zeros or normal"
)

_PADDED = tr("\nor, if the rows beyond the tokens are padding, --vocab_mismatch keep_base_rows")
_OWN_TOKENIZER = tr(
    "give the tokenizer that the last adapter was trained with, with "
    "--tokenizer DIR or by putting its files (tokenizer.model, or "
    "tokenizer.json) into the adapter's folder"
)
_MISMATCH = tr(
    "or, if these rows are padding, choose with --vocab_mismatch: keep_base_rows or truncate"
)


@dataclass(frozen=True)
class AdapterRows:
    """Rows of the vocabulary tensors that an adapter replaces; None where it leaves them.

    ``low_rank`` are the rows of what it adds to them, ``appended`` those that it puts behind the
    model's own first.
    """

    name: str
    embed_tokens: int | None
    lm_head: int | None
    ties: bool = False
    low_rank: int | None = None
    appended: int = 0


@dataclass(frozen=True)
class Vocabulary:
    """Every size that must agree: rows of the base, of each adapter, tokens of the tokenizer.

    ``base_tokens`` is the size of the base's own tokenizer, None when it has none.
    ``known_tokenizer`` is set when the tokenizer is a published one. ``tokens`` is None for a
    tokenizer whose size nothing tells. With ``may_pad`` there may be more rows than tokens, as in
    models whose rows are padded for GPUs.
    """

    base_rows: int
    adapters: tuple[AdapterRows, ...]
    tokens: int | None
    tokenizer: object
    base_tokens: int | None
    known_tokenizer: KnownTokenizer | None = None
    mismatch: str = "error"
    may_pad: bool = False

    def require_rows(self, new_tokens: bool = False) -> int:
        """Rows that base and adapters give; with ``new_tokens`` the tokenizer may have more.

        Raises ``VocabularyError`` when the sizes contradict each other.
        """
        rows = self.base_rows
        for number, adapter in enumerate(self.adapters, start=1):
            rows = self._after(number, adapter, rows)
        if self.tokens is not None and not (new_tokens and self.tokens > rows):
            self._require_tokenizer(rows, self.tokens)
        return rows

    @property
    def is_padded(self) -> bool:
        """Whether the base had more rows than its tokenizer has tokens, and keeps them."""
        tokens = self.tokens
        return tokens is not None and tokens < self.base_rows and tokens == self.base_tokens

    def padding(self, rows: int) -> int:
        """Rows of a result of ``rows`` that have no token."""
        return max(0, rows - self.tokens) if self.tokens is not None else 0

    def table(self) -> str:
        """Every size, one a line, for messages."""
        lines = [tr("{base_rows:>8} rows   base model", base_rows=self.base_rows)]
        for number, adapter in enumerate(self.adapters, start=1):
            rows = adapter.embed_tokens or adapter.lm_head or adapter.low_rank
            lines.append(
                tr(
                    "{rows:>8} rows   adapter {number} ({name})",
                    rows=rows or tr("no"),
                    number=number,
                    name=adapter.name,
                )
            )
        lines.append(
            tr(
                "{tokens:>8} tokens tokenizer ({tokenizer})",
                tokens=self.tokens or "?",
                tokenizer=self.tokenizer,
            )
        )
        return join("\n", lines)

    def _after(self, number: int, adapter: AdapterRows, rows: int) -> int:
        rows += adapter.appended
        sides: Sequence[int | None] = (adapter.embed_tokens, adapter.lm_head)
        given = [side for side in sides if side is not None]
        if not given:
            return self._after_low_rank(number, adapter, rows)
        if len(set(given)) > 1:
            raise self._error(
                tr(
                    "adapter {number} ({name}) has different numbers of rows in "
                    "embed_tokens and lm_head",
                    number=number,
                    name=adapter.name,
                ),
                expected=tr("equal numbers"),
                found=tr(
                    "{embed_tokens} and {lm_head}",
                    embed_tokens=adapter.embed_tokens,
                    lm_head=adapter.lm_head,
                ),
                remedy=tr("save the adapter again from its training run"),
            )
        if given[0] < rows:
            return self._fewer(number, adapter, given[0], rows)
        if given[0] > rows and None in sides and not adapter.ties:
            lacking = "lm_head" if adapter.lm_head is None else "embed_tokens"
            raise self._error(
                tr(
                    "adapter {number} ({name}) has new tokens but no {lacking} rows for them",
                    number=number,
                    name=adapter.name,
                    lacking=lacking,
                ),
                expected=tr("{lacking} with {given} rows", lacking=lacking, given=given[0]),
                found=tr(
                    "{lacking} of {rows} rows, from the base model", lacking=lacking, rows=rows
                ),
                remedy=tr("train and save both embed_tokens and lm_head (modules_to_save)"),
            )
        return given[0]

    def _fewer(self, number: int, adapter: AdapterRows, given: int, rows: int) -> int:
        if self.mismatch == "error":
            raise self._error(
                tr(
                    "the vocabulary would shrink with adapter {number} ({name})",
                    number=number,
                    name=adapter.name,
                ),
                expected=tr("at least {rows} rows", rows=rows),
                found=tr("{given} rows", given=given),
                remedy=join("\n", [self._shrink_remedy(number), _MISMATCH]),
            )
        return rows if self.mismatch == "keep_base_rows" else given

    def _after_low_rank(self, number: int, adapter: AdapterRows, rows: int) -> int:
        """What is added has rows of its own, but nothing to add them to beyond the model's."""
        given = adapter.low_rank
        if given is None or given == rows:
            return rows
        if given < rows:
            return self._fewer(number, adapter, given, rows)
        if self.mismatch == "error":
            raise self._error(
                tr(
                    "adapter {number} ({name}) was trained on a larger vocabulary",
                    number=number,
                    name=adapter.name,
                ),
                expected=tr("{rows} rows, as the model has", rows=rows),
                found=tr("{given} rows", given=given),
                remedy=tr("give the base as it was when the adapter was trained, with its rows\n")
                + _MISMATCH,
            )
        return rows

    def _shrink_remedy(self, number: int) -> str:
        if number > 1:
            return tr(
                "give the adapters in the order in which they were trained, for "
                "instance Chinese-LLaMA before Chinese-Alpaca"
            )
        if self.base_tokens is not None and self.base_tokens < self.base_rows:
            return tr(
                "the base is padded to {base_rows} rows for {base_tokens} tokens: "
                "give the base as it was when the adapter was trained, without the "
                "padding",
                base_rows=self.base_rows,
                base_tokens=self.base_tokens,
            )
        return tr(
            "the base has a larger vocabulary already: give the original base, "
            "not one into which an adapter has been merged"
        )

    def _require_tokenizer(self, rows: int, tokens: int) -> None:
        if tokens == rows or (rows == self.base_rows and self.is_padded):
            return
        if tokens < rows and self.mismatch == "keep_base_rows":
            return
        if self.may_pad:
            self._require_room(rows, tokens)
            return
        if explain_mismatch(self.known_tokenizer, rows) is None and are_padding(
            rows - tokens, rows
        ):
            return
        raise self._error(
            tr("tokenizer and embeddings do not belong together"),
            expected=tr("{rows} tokens, one for each row", rows=rows),
            found=tr("{tokens} tokens", tokens=tokens),
            remedy=self._tokenizer_remedy(rows, tokens)
            + (_NEW_TOKENS if tokens > rows else _PADDED),
        )

    def _require_room(self, rows: int, tokens: int) -> None:
        """Rows may be more than tokens, but new rows want new tokens, and every token a row."""
        own = self.base_tokens
        if rows == self.base_rows and (tokens == own or (own or 0) <= tokens <= rows):
            return
        if rows != self.base_rows and (own or 0) < tokens <= rows:
            return
        raise self._error(
            tr("tokenizer and embeddings do not belong together"),
            expected=tr(
                "{own} to {rows} tokens", own=(own or 0) + (rows > self.base_rows), rows=rows
            ),
            found=tr("{tokens} tokens", tokens=tokens),
            remedy=_OWN_TOKENIZER,
        )

    def _tokenizer_remedy(self, rows: int, tokens: int) -> str:
        if said := explain_mismatch(self.known_tokenizer, rows):
            return said
        if rows == tokens + 1:
            return tr(
                "the tokenizer lacks one token, as a Chinese-LLaMA tokenizer does "
                "beside a Chinese-Alpaca adapter ([PAD]): give the adapter's own "
                "with --tokenizer"
            )
        if rows == tokens - 1:
            return tr(
                "the tokenizer has one token more, as a Chinese-Alpaca tokenizer "
                "([PAD]) does beside a Chinese-LLaMA adapter: give the adapter's own "
                "with --tokenizer"
            )
        return _OWN_TOKENIZER

    def _error(self, sentence: str, *, expected: str, found: str, remedy: str) -> VocabularyError:
        return VocabularyError(
            sentence,
            tensor="model.embed_tokens.weight, lm_head.weight",
            expected=expected,
            found=found,
            remedy=remedy,
            sizes=self.table(),
        )


def require_extension(old: Tokenizer, new: Tokenizer) -> None:
    """Raise ``VocabularyError`` unless ``new`` gives every old token its old id."""
    olds, news = old.tokens, new.tokens
    if isinstance(old, EmbeddedTokenizer):  # llama.cpp's converter spells added ones so
        olds, news = (
            tuple(token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ") for token in tokens)
            for tokens in (olds, news)
        )
    if len(news) < len(olds):
        raise VocabularyError(
            tr("the vocabulary would shrink"),
            file=new.path,
            expected=tr("at least the base's {n_olds} tokens", n_olds=len(olds)),
            found=tr("{n_news} tokens", n_news=len(news)),
            remedy=tr("give the larger tokenizer; this command never removes rows"),
        )
    for id_, (ours, theirs) in enumerate(zip(olds, news, strict=False)):
        if ours != theirs:
            raise VocabularyError(
                tr("the tokenizer is no extension of the base's: its tokens have other ids"),
                file=new.path,
                expected=tr(
                    "{ours!r} as token {id}, as in {path}", ours=ours, id=id_, path=old.path
                ),
                found=repr(theirs),
                remedy=tr(
                    "append pieces to the base's own tokenizer with merge_tokenizers.py; "
                    "grow Llama 3's with extend_llama3_tokenizer.py"
                ),
            )

# SPDX-License-Identifier: Apache-2.0
"""LLaMA's tokenizer on SentencePiece itself, for transformers 4 and 5.

This file lies beside a merged model so that

    AutoTokenizer.from_pretrained(folder, trust_remote_code=True)

gives the token ids that the model was trained with. Without it transformers converts
``tokenizer.model`` into merge rules of its own, and those cannot express a vocabulary to which
pieces of equal score were appended: some texts get other ids, silently. Here ``tokenizer.model``
is used as it is.

Text becomes ids as in the SentencePiece tokenizer of transformers 4: it is cut at special and
added tokens, and SentencePiece encodes what lies between. With ``legacy`` (the default) each of
those parts is encoded like a text of its own, with a space put in front of it; without, only the
first is. Ids become text the same way: SentencePiece decodes what lies between special tokens.

It needs transformers and sentencepiece, and nothing of the program that put it here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from transformers import PreTrainedTokenizer

SPACE = "▁"


class LlamaTokenizer(PreTrainedTokenizer):  # type: ignore[misc]
    """Ids and text by ``tokenizer.model``; padding, truncation and templates by transformers."""

    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(
        self,
        vocab_file: str,
        unk_token: Any = "<unk>",
        bos_token: Any = "<s>",
        eos_token: Any = "</s>",
        pad_token: Any = None,
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        legacy: bool | None = True,
        clean_up_tokenization_spaces: bool = False,
        **kwargs: Any,
    ) -> None:
        self.vocab_file = vocab_file
        self.model_proto = Path(vocab_file).read_bytes()
        self.sp_model = SentencePieceProcessor(model_proto=self.model_proto)
        self.add_bos_token = add_bos_token
        self.add_eos_token = add_eos_token
        self.legacy = legacy is not False
        if not self.legacy and len(self.sp_model.encode("\n")) != 2:
            raise ValueError(f"{vocab_file}: legacy=False needs a model that keeps line breaks")
        super().__init__(
            unk_token=unk_token,
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            add_bos_token=add_bos_token,
            add_eos_token=add_eos_token,
            legacy=self.legacy,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            **kwargs,
        )

    @property
    def vocab_size(self) -> int:
        """The number of pieces, without added tokens; ``len()`` counts both."""
        return int(self.sp_model.get_piece_size())

    def get_vocab(self) -> dict[str, int]:
        """Map every piece and added token to its id."""
        pieces = self.sp_model.id_to_piece(list(range(self.vocab_size)))
        vocab = {piece: id_ for id_, piece in enumerate(pieces)}
        vocab.update(self.added_tokens_encoder)
        return vocab

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """Cut ``text`` at special and added tokens and into pieces between them."""
        if self.legacy or not text:
            return list(super().tokenize(text, **kwargs))
        tokens = list(super().tokenize(" " + text, **kwargs))
        cut_at_start = tokens[0] == SPACE and tokens[1:] and tokens[1] in self.all_special_tokens
        return tokens[1:] if cut_at_start else tokens

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        if self.legacy:
            return list(self.sp_model.encode(text, out_type=str))
        # A line break joins no piece, so what follows it is encoded without a space in front.
        return list(self.sp_model.encode("\n" + text, out_type=str))[2:]

    def _convert_token_to_id(self, token: str) -> int:
        return int(self.sp_model.piece_to_id(token))

    def _convert_id_to_token(self, index: int) -> str:
        return str(self.sp_model.id_to_piece(index))

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join pieces as SentencePiece does, and special and added tokens as they are spelled."""
        added = self.added_tokens_encoder
        text = ""
        pieces: list[str] = []
        for token in tokens:
            if token in added:
                text += self._join(pieces, first=not text) + token
                pieces = []
            else:
                pieces.append(token)
        return text + self._join(pieces, first=not text)

    def _join(self, pieces: list[str], first: bool) -> str:
        """Decode pieces; SentencePiece takes one space off, the one that encoding put in front."""
        if not pieces:
            return ""
        return str(self.sp_model.decode(pieces if self.legacy or first else [SPACE, *pieces]))

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        """Put no spaces around added tokens, as transformers 4 would and 5 would not."""
        tokens = self.convert_ids_to_tokens(token_ids, skip_special_tokens=skip_special_tokens)
        text = self.convert_tokens_to_string([tokens] if isinstance(tokens, str) else tokens)
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        return str(self.clean_up_tokenization(text)) if clean_up_tokenization_spaces else text

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Put bos in front of, and eos behind, each sequence, as far as they are wanted."""
        bos = [self.bos_token_id] if self.add_bos_token else []
        eos = [self.eos_token_id] if self.add_eos_token else []
        second = [] if token_ids_1 is None else [*bos, *token_ids_1, *eos]
        return [*bos, *token_ids_0, *eos, *second]

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """Return 1 for each special token and 0 for each other one."""
        if already_has_special_tokens:
            return list(super().get_special_tokens_mask(token_ids_0, token_ids_1, True))
        bos, eos = [1] * self.add_bos_token, [1] * self.add_eos_token
        second = [] if token_ids_1 is None else [*bos, *[0] * len(token_ids_1), *eos]
        return [*bos, *[0] * len(token_ids_0), *eos, *second]

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write ``tokenizer.model`` byte for byte."""
        name = (filename_prefix + "-" if filename_prefix else "") + "tokenizer.model"
        file = Path(save_directory) / name
        file.write_bytes(self.model_proto)
        return (str(file),)

    def _save_pretrained(
        self, save_directory: str, file_names: tuple[str, ...], *args: Any, **kwargs: Any
    ) -> tuple[str, ...]:
        """Note in the saved ``tokenizer_config.json`` what transformers 5 leaves out of it."""
        config_file = Path(file_names[0])
        config = json.loads(config_file.read_text(encoding="utf-8"))
        config |= {"add_bos_token": self.add_bos_token, "add_eos_token": self.add_eos_token}
        text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        config_file.write_text(text, encoding="utf-8")
        return tuple(super()._save_pretrained(save_directory, file_names, *args, **kwargs))

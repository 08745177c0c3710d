"""Load each tokenizer folder with AutoTokenizer, do what users do, and print what came out.

Runs in an environment of its own, without this project: python probe.py REQUEST.json, where the
request holds folders by name, texts and a folder to save into. The answer goes to a file, whose
name is the last line printed.
"""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, TextIteratorStreamer

CHAT = [
    {"role": "user", "content": "你好"},
    {"role": "assistant", "content": "Hello</s>"},
    {"role": "user", "content": "再见"},
]


def load(folder: str) -> Any:
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=True)


def alone(count: int) -> list[int]:
    """Special, byte and other first ids, the last ones, and a tenth of the rest."""
    return [*range(300), *range(300, count - 20, 10), *range(count - 20, count)]


def streamed(tokenizer: Any, ids: list[int]) -> str:
    """What a generation with these ids shows, put token by token."""
    streamer = TextIteratorStreamer(tokenizer, skip_special_tokens=True)
    for id_ in ids:
        streamer.put(torch.tensor([id_]))
    streamer.end()
    return "".join(streamer)


def batches(tokenizer: Any, texts: list[str]) -> dict[str, Any]:
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    padded = {}
    for side in ("left", "right"):
        tokenizer.padding_side = side
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        padded[side] = {name: value.tolist() for name, value in batch.items()}
    short = tokenizer(texts, truncation=True, max_length=4)
    pair = tokenizer(texts[0], texts[1], return_special_tokens_mask=True)
    return {"padded": padded, "truncated": short["input_ids"], "pair": dict(pair)}


def saved(tokenizer: Any, source: str, target: Path, texts: list[str]) -> dict[str, Any]:
    """Save, take the source away, load what was saved, save again, and load that."""
    tokenizer.add_eos_token = True
    tokenizer.save_pretrained(target / "first")
    shutil.rmtree(source)
    again = load(str(target / "first"))
    again.save_pretrained(target / "second")
    last = load(str(target / "second"))
    return {
        "files": sorted(path.name for path in (target / "second").iterdir()),
        "model": (target / "second" / "tokenizer.model").read_bytes().hex(),
        "ids": [last(text)["input_ids"] for text in texts],
        "class": type(last).__module__.rpartition(".")[2] + "." + type(last).__name__,
        "len": len(last),
    }


def slow_ids(folder: str, texts: list[str]) -> list[list[int]] | None:
    """The ids of transformers 4's own SentencePiece tokenizer, where there is one."""
    if transformers.__version__.startswith("4."):
        slow = transformers.LlamaTokenizer.from_pretrained(folder)
        return [slow(text)["input_ids"] for text in texts]
    return None


def plain_ids(folder: str, texts: list[str]) -> list[list[int]]:
    """The ids without the class, by transformers' own conversion; 4.46 takes long over it."""
    plain = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return list(plain(texts, add_special_tokens=False)["input_ids"])


def probe(folder: str, target: Path, request: dict[str, Any]) -> dict[str, Any]:
    slow = slow_ids(folder, request["special"])
    tokenizer = load(folder)
    lines, special = request["lines"], request["special"]
    ids = tokenizer(lines, add_special_tokens=False)["input_ids"]
    special_ids = [tokenizer(text)["input_ids"] for text in special]
    vocab = tokenizer.get_vocab()
    names = ("bos", "eos", "unk", "pad")
    return {
        "class": type(tokenizer).__module__.rpartition(".")[2] + "." + type(tokenizer).__name__,
        "len": [len(tokenizer), tokenizer.vocab_size, len(vocab)],
        "vocab": sorted(vocab, key=vocab.__getitem__),
        "tokens_to_ids": tokenizer.convert_tokens_to_ids([*special, "<s>", "no such piece"]),
        "special_tokens": {
            name: [getattr(tokenizer, f"{name}_token"), getattr(tokenizer, f"{name}_token_id")]
            for name in names
        },
        "ids": ids,
        "with_bos": tokenizer(lines)["input_ids"],
        "decoded": [tokenizer.decode(line) for line in ids],
        "batch_decoded": tokenizer.batch_decode(
            [tokenizer(line)["input_ids"] for line in lines[:500]], skip_special_tokens=True
        ),
        "decoded_one_by_one": [tokenizer.decode([id_]) for id_ in alone(len(tokenizer))],
        "streamed": [streamed(tokenizer, line[:40]) for line in ids[:80]],
        "special_ids": special_ids,
        "slow_special_ids": slow,
        "special_decoded": [tokenizer.decode(line) for line in special_ids],
        "special_skipped": [tokenizer.decode(i, skip_special_tokens=True) for i in special_ids],
        "special_mask": tokenizer.get_special_tokens_mask(
            special_ids[0], already_has_special_tokens=True
        ),
        "chat": [
            tokenizer.apply_chat_template(CHAT, tokenize=False),
            list(tokenizer.apply_chat_template(CHAT, return_dict=True)["input_ids"]),
        ],
        "pickled": pickle.loads(pickle.dumps(tokenizer))(special)["input_ids"],
        "batches": batches(load(folder), request["batch"]),
        "saved": saved(load(folder), folder, target, special),
    }


def main() -> None:
    torch.set_num_threads(1)
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    target = Path(request["target"])
    plain = {
        name: plain_ids(request["folders"][name], request["lines"]) for name in request["plain"]
    }
    answer: dict[str, Any] = {
        name: probe(folder, target / name, request) for name, folder in request["folders"].items()
    }
    answer["version"] = transformers.__version__
    for name, ids in plain.items():
        answer[name]["plain_ids"] = ids
    out = target / "answer.json"
    out.write_text(json.dumps(answer), encoding="utf-8")
    print(json.dumps(str(out)))


main()

"""Write the tables of docs/adapters.md from the registry that the code itself uses."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from merge.deltas.adapter_files import FOREIGN, READ, SAYS_NOTHING  # noqa: E402
from merge.deltas.kinds import HANDLED, HARMLESS  # noqa: E402
from merge.deltas.peft_methods import VARIANTS  # noqa: E402
from merge.deltas.refusals import REFUSED  # noqa: E402
from merge.layouts.decoder import HEAD_OF  # noqa: E402

DOCUMENT = ROOT / "docs" / "adapters.md"
_BEGIN, _END = "<!-- {} -->", "<!-- end -->"


# Files of tests, and the beginning of the names of their cases: a row's own, or a group's.
_IN_BIASES = ("trained biases", "bias of lora_B")
# PEFT cannot make these where the tests run; test_refusals.py says why.
BY_FIELD = (
    "CorDA",
    "LoftQ",
    "any other start of its own",
    "fused q, k, v (enable_lora)",
    "Megatron",
    "ShadowPEFT",
    "multitask prompt tuning",
    "context-aware prompt tuning",
    "Cartridge",
    "LLaMA-Adapter",
)


@dataclass(frozen=True)
class Base:
    """A row of the table of bases: what is done with them, and the tests that show it."""

    names: str
    what: str
    tests: tuple[str, ...]


_AGAINST_PEFT = "tests/layouts/test_decoder.py::test_any_decoder_merges_as_peft_does"
_REFUSED = "tests/layouts/test_decoder.py::test_tensors_of_unusual_names_are_refused_by_name"
_EXPERTS = "tests/deltas/test_fused_experts.py::test"
BASES = (
    Base(
        "Qwen2, Qwen3, Mistral, Phi-3, LLaMA with biases",
        "merged; with biases, DoRA, fused `qkv_proj`, trained vocabulary",
        tuple(
            f"{_AGAINST_PEFT}[{name}]"
            for name in ("Qwen2", "Qwen3", "Mistral", "Phi-3", "LLaMA with biases")
        ),
    ),
    Base(
        "Gemma, tied Qwen2",
        "merged; untied if only one side was trained, as below",
        tuple(f"{_AGAINST_PEFT}[{name}]" for name in ("Gemma", "Qwen2, tied")),
    ),
    Base(
        "GPT-2 (Conv1D)",
        "merged, if its files say `transformer.h...`, as transformers saves it; the oldest files "
        "on the Hub lack `transformer.`: load and save them again",
        tuple(f"{_AGAINST_PEFT}[{name}]" for name in ("GPT-2", "GPT-2, vocabulary")),
    ),
    Base(
        "GPT-NeoX",
        "merged; transformers 5 calls `embed_out` `lm_head`: an adapter that trained it under "
        "that name is refused by name",
        (f"{_AGAINST_PEFT}[GPT-NeoX]",),
    ),
    Base(
        "BLOOM, Falcon, OPT",
        "merged",
        tuple(f"{_AGAINST_PEFT}[{name}]" for name in ("BLOOM", "Falcon", "OPT")),
    ),
    Base(
        "Baichuan (`W_pack`)",
        "merged; modeling code named in `auto_map` is copied, never run",
        ("tests/layouts/test_decoder.py::test_fused_attention_of_baichuan",),
    ),
    Base(
        "Llama 3 (`tokenizer.json` alone)",
        "merged, from Meta's folder too; for Meta's layout the tiktoken file is made from "
        "`tokenizer.json`",
        (
            "tests/layouts/test_decoder.py::test_llama_with_tokenizer_json_alone",
            "tests/jobs/test_llama3_merge.py::test_merges_from_either_layout_as_peft_does[...]",
            "tests/jobs/test_llama3_merge.py::test_merges_into_metas_layout[...]",
        ),
    ),
    Base(
        "Mixtral",
        "an adapter on attention, router (`gate`) and single experts "
        "(`block_sparse_moe.experts.0.w1`), as Chinese-Mixtral's, is merged; fused ones as below",
        (
            "tests/deltas/test_mixtral.py::test_lora_on_experts_merges_as_peft_does",
            "tests/deltas/test_mixtral.py::test_grown_vocabulary_comes_with_the_adapter",
        ),
    ),
    Base(
        "Mixtral, Qwen-MoE, GPT-OSS",
        "an adapter on attention is merged; trained tensors that are called neither `weight` nor "
        "`bias` (`experts.down_proj`, `self_attn.sinks`) are refused by name. An adapter on fused "
        "experts (`target_parameters`, as transformers 5 trains them) is merged into fused "
        "tensors, as GPT-OSS has them, and into experts that the files hold each by itself "
        "(`experts.0.w1`, `experts.0.gate_proj`), by transformers' own table of names",
        (
            *(f"{_REFUSED}[{name}]" for name in ("experts of Mixtral", "sinks of GPT-OSS")),
            f"{_EXPERTS}_files_that_hold_the_stacks",
            f"{_EXPERTS}_experts_held_apart_merge_as_peft_merges_the_stack[...]",
        ),
    ),
    Base(
        "Mamba and others whose embeddings have another name",
        "refused by the names of their tensors",
        (f"{_REFUSED}[Mamba]",),
    ),
)


def name_test_of_kind(name: str) -> str:
    """The test of a kind that is merged; its cases begin with the kind's name."""
    if name in _IN_BIASES:
        return f"tests/deltas/test_biases.py::test_biases_merge_as_peft_does[{name}...]"
    return f"tests/deltas/test_kinds.py::test_kind_merges_as_peft_does[{name}: ...]"


def name_test_of_refusal(name: str) -> str:
    """The test of a kind that is refused."""
    how = "field" if name in BY_FIELD else "kind_that_peft_made"
    return f"tests/deltas/test_refusals.py::test_{how}_is_refused_by_name[{name}]"


def list_methods() -> str:
    """The methods of the installed PEFT that it merges here, as docs/adapters.md lists them."""
    from peft import __version__
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as METHODS

    names = {method.value for method in METHODS} - {"LORA", "TRAINABLE_TOKENS"}
    merged = [n for n in names if not any(r.field == "peft_type" and r.applies(n) for r in REFUSED)]
    listed = ", ".join(f"`{name}`" for name in sorted(merged))
    return f"Of PEFT {__version__}'s methods these {len(merged)}: {listed}."


def list_variants() -> str:
    """The variants of LoRA that PEFT merges here, a row of a table each."""
    rows = ["| variant | detected by | what is done |", "| :-- | :-- | :-- |"]
    rows += [f"| {v.name} | `{v.field}` | {v.result} |" for v in VARIANTS]
    return "\n".join(rows)


def build_tables() -> dict[str, str]:
    """The generated parts of the document, by the name of their place."""
    handled = ["| kind | since PEFT | detected by | what is done | test |"]
    handled += ["| :-- | :-: | :-- | :-- | :-- |"]
    handled += [
        f"| {k.name} | {k.since} | {k.detected_by} | {k.result} | `{name_test_of_kind(k.name)}` |"
        for k in HANDLED
    ]
    refused = ["| kind | field | because | way out | test |", "| :-- | :-- | :-- | :-- | :-- |"]
    refused += [
        f"| {r.name} | `{r.field}` | {r.reason} | {r.remedy} | `{name_test_of_refusal(r.name)}` |"
        for r in REFUSED
    ]
    bases = ["| base | what is done | tests |", "| :-- | :-- | :-- |"]
    bases += [
        f"| {base.names} | {base.what} | {', '.join(f'`{test}`' for test in base.tests)} |"
        for base in BASES
    ]
    names = [f"| `{one}` | `{head}` |" for one, head in HEAD_OF.items()]
    harmless = ", ".join(f"`{name}`" for name in sorted(HARMLESS))
    files = ["| file | what is read from it |", "| :-- | :-- |"]
    files += [f"| `{pattern}` | {what} |" for pattern, what in READ.items()]
    unclaimed = ["| file | what it is | way out |", "| :-- | :-- | :-- |"]
    unclaimed += [f"| `{one.pattern}` | {one.what} | {one.remedy} |" for one in FOREIGN]
    return {
        "files": "\n".join(files),
        "silent": ", ".join(f"`{pattern}`" for pattern in SAYS_NOTHING) + ".",
        "unclaimed": "\n".join(unclaimed),
        "merged": "\n".join(handled),
        "methods": list_methods(),
        "variants": list_variants(),
        "refused": "\n".join(refused),
        "bases": "\n".join(bases),
        "embeddings": "\n".join(["| embeddings | LM head |", "| :-- | :-- |", *names]),
        "harmless": f"{harmless}.",
    }


def insert_tables(document: str) -> str:
    """The document with its generated parts made anew."""
    for name, table in build_tables().items():
        begin = _BEGIN.format(name)
        before, _, rest = document.partition(begin)
        _, _, after = rest.partition(_END)
        document = f"{before}{begin}\n\n{table}\n\n{_END}{after}"
    return document


if __name__ == "__main__":
    DOCUMENT.write_text(insert_tables(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")

"""Write the tables of docs/adapters.md and docs/zh/adapters.md from the registry of the code.

Texts of the registry are translated by the catalogues of ``merge/locale``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from merge.deltas.adapter_files import FOREIGN, READ, SAYS_NOTHING  # noqa: E402
from merge.deltas.kinds import HANDLED, HARMLESS  # noqa: E402
from merge.deltas.peft_methods import VARIANTS  # noqa: E402
from merge.deltas.refusals import REFUSED  # noqa: E402
from merge.layouts.decoder import HEAD_OF  # noqa: E402
from merge.messages import load_catalogue  # noqa: E402

DOCUMENTS = {
    "en": ROOT / "docs" / "adapters.md",
    "zh": ROOT / "docs" / "zh" / "adapters.md",
}
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


class Text(NamedTuple):
    """A text of this page in both languages; those of the registry are in the catalogues."""

    en: str
    zh: str

    def show(self, language: str) -> str:
        """The text in one of ``DOCUMENTS``' languages."""
        return self.zh if language == "zh" else self.en


@dataclass(frozen=True)
class Base:
    """A row of the table of bases: what is done with them, and the tests that show it."""

    names: Text
    what: Text
    tests: tuple[str, ...]


_AGAINST_PEFT = "tests/layouts/test_decoder.py::test_any_decoder_merges_as_peft_does"
_REFUSED = "tests/layouts/test_decoder.py::test_tensors_of_unusual_names_are_refused_by_name"
_EXPERTS = "tests/deltas/test_fused_experts.py::test"
BASES = (
    Base(
        Text(
            "Qwen2, Qwen3, Mistral, Phi-3, LLaMA with biases",
            "Qwen2、Qwen3、Mistral、Phi-3、带偏置的 LLaMA",
        ),
        Text(
            "merged; with biases, DoRA, fused `qkv_proj`, trained vocabulary",
            "合并；含偏置、DoRA、融合的 `qkv_proj`、训练过的词表",
        ),
        tuple(
            f"{_AGAINST_PEFT}[{name}]"
            for name in ("Qwen2", "Qwen3", "Mistral", "Phi-3", "LLaMA with biases")
        ),
    ),
    Base(
        Text("Gemma, tied Qwen2", "Gemma、共享词嵌入的 Qwen2"),
        Text(
            "merged; untied if only one side was trained, as below",
            "合并；只训练了一边时不再共享，见下文",
        ),
        tuple(f"{_AGAINST_PEFT}[{name}]" for name in ("Gemma", "Qwen2, tied")),
    ),
    Base(
        Text("GPT-2 (Conv1D)", "GPT-2（Conv1D）"),
        Text(
            (
                "merged, if its files say `transformer.h...`, as transformers saves it; the "
                "oldest files on the Hub lack `transformer.`: load and save them again"
            ),
            (
                "合并，前提是文件中的名称为 `transformer.h...`，即 transformers 的保存方式；Hub "
                "上最老的文件没有 `transformer.`：加载后重新保存即可"
            ),
        ),
        tuple(f"{_AGAINST_PEFT}[{name}]" for name in ("GPT-2", "GPT-2, vocabulary")),
    ),
    Base(
        Text("GPT-NeoX", "GPT-NeoX"),
        Text(
            (
                "merged; transformers 5 calls `embed_out` `lm_head`: an adapter that trained it "
                "under that name is refused by name"
            ),
            (
                "合并；transformers 5 把 `embed_out` 称为 `lm_head`：以该名称训练了它的适配器按名"
                "称拒绝"
            ),
        ),
        (f"{_AGAINST_PEFT}[GPT-NeoX]",),
    ),
    Base(
        Text("BLOOM, Falcon, OPT", "BLOOM、Falcon、OPT"),
        Text("merged", "合并"),
        tuple(f"{_AGAINST_PEFT}[{name}]" for name in ("BLOOM", "Falcon", "OPT")),
    ),
    Base(
        Text("Baichuan (`W_pack`)", "Baichuan（`W_pack`）"),
        Text(
            "merged; modeling code named in `auto_map` is copied, never run",
            "合并；`auto_map` 所指的模型代码会复制，但绝不运行",
        ),
        ("tests/layouts/test_decoder.py::test_fused_attention_of_baichuan",),
    ),
    Base(
        Text("Llama 3 (`tokenizer.json` alone)", "Llama 3（只有 `tokenizer.json`）"),
        Text(
            (
                "merged, from Meta's folder too; for Meta's layout the tiktoken file is made "
                "from `tokenizer.json`"
            ),
            (
                "合并，底座也可以是 Meta 的目录；输出 Meta 格式时，由 `tokenizer.json` 生成 "
                "tiktoken 文件"
            ),
        ),
        (
            "tests/layouts/test_decoder.py::test_llama_with_tokenizer_json_alone",
            "tests/jobs/test_llama3_merge.py::test_merges_from_either_layout_as_peft_does[...]",
            "tests/jobs/test_llama3_merge.py::test_merges_into_metas_layout[...]",
        ),
    ),
    Base(
        Text("Mixtral", "Mixtral"),
        Text(
            (
                "an adapter on attention, router (`gate`) and single experts ("
                "`block_sparse_moe.experts.0.w1`), as Chinese-Mixtral's, is merged; fused ones "
                "as below"
            ),
            (
                "作用于注意力、路由（`gate`）和单个专家（`block_sparse_moe.experts.0.w1`）的适配"
                "器，如 Chinese-Mixtral，可以合并；融合的专家见下一行"
            ),
        ),
        (
            "tests/deltas/test_mixtral.py::test_lora_on_experts_merges_as_peft_does",
            "tests/deltas/test_mixtral.py::test_grown_vocabulary_comes_with_the_adapter",
        ),
    ),
    Base(
        Text("Mixtral, Qwen-MoE, GPT-OSS", "Mixtral、Qwen-MoE、GPT-OSS"),
        Text(
            (
                "an adapter on attention is merged; trained tensors that are called neither "
                "`weight` nor `bias` (`experts.down_proj`, `self_attn.sinks`) are refused by "
                "name. An adapter on fused experts (`target_parameters`, as transformers 5 "
                "trains them) is merged into fused tensors, as GPT-OSS has them, and into "
                "experts that the files hold each by itself (`experts.0.w1`, "
                "`experts.0.gate_proj`), by transformers' own table of names"
            ),
            (
                "作用于注意力的适配器可以合并；训练过的张量若既不叫 `weight` 也不叫 `bias`（"
                "`experts.down_proj`、`self_attn.sinks`），按名称拒绝。作用于融合专家的适配器（"
                "`target_parameters`，transformers 5 的训练方式）既可合并进融合的张量（GPT-OSS 如"
                "此），也可合并进文件中逐个存放的专家（`experts.0.w1`、`experts.0.gate_proj`），"
                "名称对应关系取自 transformers 自己的表"
            ),
        ),
        (
            *(f"{_REFUSED}[{name}]" for name in ("experts of Mixtral", "sinks of GPT-OSS")),
            f"{_EXPERTS}_files_that_hold_the_stacks",
            f"{_EXPERTS}_experts_held_apart_merge_as_peft_merges_the_stack[...]",
        ),
    ),
    Base(
        Text(
            "Mamba and others whose embeddings have another name",
            "Mamba 及其他词嵌入另有名称的模型",
        ),
        Text("refused by the names of their tensors", "按张量名称拒绝"),
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


def list_methods(language: str) -> str:
    """The methods of the installed PEFT that it merges here, as docs/adapters.md lists them."""
    from peft import __version__
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as METHODS

    names = {method.value for method in METHODS} - {"LORA", "TRAINABLE_TOKENS"}
    merged = [n for n in names if not any(r.field == "peft_type" and r.applies(n) for r in REFUSED)]
    listed = _list_names(sorted(merged), language)
    return _METHODS.show(language).format(__version__, len(merged), listed)


def _list_names(names: Iterable[str], language: str) -> str:
    return ("、" if language == "zh" else ", ").join(f"`{name}`" for name in names)


def _make_table(heads: Iterable[Text], rows: Iterable[Iterable[str]], language: str) -> str:
    """A table; a column of releases is centered."""
    head = [text.show(language) for text in heads]
    rules = [":-:" if text is _SINCE else ":--" for text in heads]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rules, *rows))


_KIND, _SINCE = Text("kind", "种类"), Text("since PEFT", "始于 PEFT")
_DETECTED, _DONE = Text("detected by", "依据"), Text("what is done", "处理")
_TEST, _TESTS = Text("test", "测试"), Text("tests", "测试")
_WAY_OUT, _FILE = Text("way out", "出路"), Text("file", "文件")
_METHODS = Text(
    "Of PEFT {}'s methods these {}: {}.",
    "PEFT {} 的方法中有以下 {} 种：{}。",
)
_HEADS = {
    "files": (_FILE, Text("what is read from it", "从中读取")),
    "unclaimed": (_FILE, Text("what it is", "是什么"), _WAY_OUT),
    "merged": (_KIND, _SINCE, _DETECTED, _DONE, _TEST),
    "variants": (Text("variant", "变体"), _DETECTED, _DONE),
    "refused": (_KIND, Text("field", "字段"), Text("because", "原因"), _WAY_OUT, _TEST),
    "bases": (Text("base", "底座"), _DONE, _TESTS),
    "embeddings": (Text("embeddings", "词嵌入"), Text("LM head", "LM head")),
}


def build_tables(language: str) -> dict[str, str]:
    """The generated parts of the document, by the name of their place."""
    show = load_catalogue(language).gettext
    rows: dict[str, list[list[str]]] = {
        "files": [[f"`{pattern}`", show(what)] for pattern, what in READ.items()],
        "unclaimed": [[f"`{f.pattern}`", show(f.what), show(f.remedy)] for f in FOREIGN],
        "merged": [
            [
                *(show(k.name), k.since, show(k.detected_by), show(k.result)),
                f"`{name_test_of_kind(k.name)}`",
            ]
            for k in HANDLED
        ],
        "variants": [[v.name, f"`{v.field}`", show(v.result)] for v in VARIANTS],
        "refused": [
            [
                *(show(r.name), f"`{r.field}`", show(r.reason), show(r.remedy)),
                f"`{name_test_of_refusal(r.name)}`",
            ]
            for r in REFUSED
        ],
        "bases": [
            [b.names.show(language), b.what.show(language), _list_names(b.tests, language)]
            for b in BASES
        ],
        "embeddings": [[f"`{one}`", f"`{head}`"] for one, head in HEAD_OF.items()],
    }
    end = "。" if language == "zh" else "."
    return {
        **{name: _make_table(heads, rows[name], language) for name, heads in _HEADS.items()},
        "methods": list_methods(language),
        "silent": _list_names(SAYS_NOTHING, language) + end,
        "harmless": _list_names(sorted(HARMLESS), language) + end,
    }


def insert_tables(document: str, language: str) -> str:
    """The document with its generated parts made anew."""
    for name, table in build_tables(language).items():
        begin = _BEGIN.format(name)
        before, _, rest = document.partition(begin)
        _, _, after = rest.partition(_END)
        document = f"{before}{begin}\n\n{table}\n\n{_END}{after}"
    return document


if __name__ == "__main__":
    for of_language, path in DOCUMENTS.items():
        written = insert_tables(path.read_text(encoding="utf-8"), of_language)
        path.write_text(written, encoding="utf-8")

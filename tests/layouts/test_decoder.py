"""Decoders that are no LLaMA: merged by the command, against PEFT's merge and by their logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from merge import merge_lora, verify_merge
from merge.commands.merge_lora import main, main_to_hf
from merge.errors import LayoutError, MergeError, OutputError, VocabularyError
from tests.kit.adapters import LINEAR, load, logits_of, logits_with_peft, make_lora, merge_with_peft
from tests.kit.decoders import SIZES, make_decoder, make_tokenizer
from tests.kit.files import load_weights
from tests.kit.llamas import llama_config
from tests.kit.tokenizer_models import write_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

GPT2 = {"vocab_size": 320, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
TIED = {"tie_word_embeddings": True}
FUSED = ["qkv_proj", "gate_up_proj"]
# Class of the configuration, its settings, and what the adapter is trained on.
DECODERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "Qwen2": ("Qwen2Config", SIZES, {"target_modules": LINEAR}),
    "Qwen2, biases too": ("Qwen2Config", SIZES, {"target_modules": LINEAR, "bias": "all"}),
    "Qwen2, vocabulary": ("Qwen2Config", SIZES, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "Qwen2, tied": ("Qwen2Config", SIZES | TIED, {}),
    "Qwen2, tied, on the embeddings": (
        "Qwen2Config",
        SIZES | TIED,
        {"target_modules": ["embed_tokens", "q_proj"]},
    ),
    "Qwen3": ("Qwen3Config", SIZES | {"head_dim": 8}, {"target_modules": LINEAR}),
    "Mistral": ("MistralConfig", SIZES, {"target_modules": LINEAR, "use_dora": True}),
    "LLaMA with biases": (
        "LlamaConfig",
        SIZES | {"attention_bias": True, "mlp_bias": True},
        {"target_modules": LINEAR, "bias": "lora_only"},
    ),
    "Gemma": ("GemmaConfig", SIZES | TIED | {"head_dim": 8}, {"target_modules": LINEAR}),
    "Phi-3": ("Phi3Config", SIZES, {"target_modules": FUSED}),
    "GPT-2": ("GPT2Config", GPT2, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "GPT-2, DoRA": (
        "GPT2Config",
        GPT2,
        {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True},
    ),
    "GPT-2, vocabulary": ("GPT2Config", GPT2, {"target_modules": ["wte"]}),
    "GPT-NeoX": (
        "GPTNeoXConfig",
        SIZES,
        {"target_modules": ["query_key_value"], "modules_to_save": ["embed_in"]},
    ),
    "BLOOM": (
        "BloomConfig",
        {"vocab_size": 320, "hidden_size": 32, "n_layer": 2, "n_head": 4} | TIED,
        {"target_modules": ["query_key_value", "dense"], "bias": "lora_only"},
    ),
    "Falcon": ("FalconConfig", SIZES | TIED, {"target_modules": ["query_key_value"]}),
    "OPT": (
        "OPTConfig",
        SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 0},
        {"target_modules": ["q_proj", "fc1"], "modules_to_save": ["embed_tokens"]},
    ),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize(("kind", "settings", "lora"), DECODERS.values(), ids=DECODERS)
def test_any_decoder_merges_as_peft_does(
    tmp_path: Path, tokenizer: Path, kind: str, settings: dict[str, Any], lora: dict[str, Any]
) -> None:
    base, out = make_decoder(tmp_path / "base", kind, settings, tokenizer), tmp_path / "out"
    adapter = make_lora(tmp_path / "lora", base, **lora)
    words = ["--base_model", str(base), "--lora_model", str(adapter), "--output_dir", str(out)]
    assert main_to_hf([*words, "--dtype", "float32", "--safe_serialization", "--quiet"]) == 0
    assert not verify_merge(out).faults
    torch.testing.assert_close(
        logits_of(out), logits_with_peft(base, adapter), rtol=1e-4, atol=1e-4
    )
    merged, plain = load_weights(out), load_weights(base)
    assert list(merged)[: len(plain)] == list(plain)
    if not load(base).config.tie_word_embeddings:
        expected = merge_with_peft(base, [adapter])
        if kind == "GPTNeoXConfig":  # transformers 5 renames it as it loads
            expected["embed_out.weight"] = expected.pop("lm_head.weight")
        assert merged.keys() == expected.keys()
        for name, tensor in merged.items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5, msg=name)


def test_llama_with_tokenizer_json_alone(tmp_path: Path, tokenizer: Path) -> None:
    """As Llama 3 has it; Meta's layout needs Llama 3's own."""
    base = make_decoder(tmp_path / "base", "LlamaConfig", SIZES, tokenizer)
    adapter = make_lora(tmp_path / "lora", base)
    with pytest.raises(VocabularyError, match="no tiktoken file"):
        merge_lora(base, adapter, tmp_path / "out", output_type="pth")
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface", dtype="float32")
    torch.testing.assert_close(
        logits_of(tmp_path / "out"), logits_with_peft(base, adapter), rtol=1e-4, atol=1e-4
    )
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (
        tokenizer / "tokenizer.json"
    ).read_bytes()


NO_LLAMA = {
    "qwen2": ("Qwen2Config", SIZES, "'qwen2'"),
    "biases": ("LlamaConfig", SIZES | {"attention_bias": True}, "'llama' with biases"),
}


@pytest.mark.parametrize("layout", ["pth", "gguf"])
@pytest.mark.parametrize(("kind", "settings", "found"), NO_LLAMA.values(), ids=NO_LLAMA)
def test_other_layouts_are_for_llama_alone(
    tmp_path: Path,
    tokenizer: Path,
    kind: str,
    settings: dict[str, Any],
    found: str,
    layout: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = make_decoder(tmp_path / "base", kind, settings, tokenizer)
    adapter = make_lora(tmp_path / "lora", base)
    words = ["--base_model", str(base), "--lora_model", str(adapter)]
    words += ["--output_dir", str(tmp_path / "out"), "--output_type", layout]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert found in told
    assert "--output_type huggingface" in told
    assert not (tmp_path / "out").exists()


class Attention(torch.nn.Module):
    """Attention's weights as Baichuan names them: q, k and v fused."""

    def __init__(self) -> None:
        super().__init__()
        self.W_pack = torch.nn.Linear(32, 96, bias=False)
        self.o_proj = torch.nn.Linear(32, 32, bias=False)


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = Attention()


class Body(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(101, 32)
        self.layers = torch.nn.ModuleList([Layer(), Layer()])


class Baichuan(torch.nn.Module):
    """Enough of Baichuan, whose code is not in transformers, for names and shapes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = Body()
        self.lm_head = torch.nn.Linear(32, 101, bias=False)


def make_baichuan(folder: Path) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """Base, adapter on ``W_pack``, and PEFT's merge of them."""
    from peft import LoraConfig, get_peft_model

    base, adapter = folder / "base", folder / "lora"
    model = Baichuan()
    base.mkdir()
    buffers = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.rand(4) for n in (0, 1)}
    torch.save(dict(model.state_dict()) | buffers, base / "pytorch_model.bin")
    config = {"model_type": "baichuan", "num_hidden_layers": 2, "tie_word_embeddings": False}
    config |= {"auto_map": {"AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM"}}
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (base / "modeling_baichuan.py").write_text("from .quantizer import x\n", encoding="utf-8")
    (base / "quantizer.py").write_text("x = 1\n", encoding="utf-8")
    write_tokenizer(base, 101)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=12, target_modules=["W_pack"]))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(adapter)
    return base, adapter, dict(adapted.merge_and_unload().state_dict())


def test_fused_attention_of_baichuan(tmp_path: Path) -> None:
    base, adapter, expected = make_baichuan(tmp_path)
    out = tmp_path / "out"
    report = merge_lora(base, adapter, out, output_type="huggingface", dtype="float32")
    merged = load_weights(out)
    assert merged.keys() == expected.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5, msg=name)
    for name in ("modeling_baichuan.py", "quantizer.py", "tokenizer.model"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["auto_map"]
    assert "trust_remote_code" in report.summary()
    merge_lora(base, adapter, out, output_type="huggingface", overwrite=True)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "quantizer.py").write_text("somebody's own", encoding="utf-8")
    with pytest.raises(OutputError, match="would replace"):
        merge_lora(base, adapter, tmp_path / "taken", output_type="huggingface", overwrite=True)


def broken(kind: str, base: Path, adapter: Path) -> None:
    """Make one thing wrong with a Qwen2."""
    tensors, config = load_weights(base), json.loads((base / "config.json").read_text("utf-8"))
    if kind == "GPTQ":
        tensors["model.layers.0.self_attn.q_proj.qweight"] = torch.zeros(4, 4, dtype=torch.int32)
    if kind == "integers":
        name = "model.layers.1.mlp.up_proj.weight"
        tensors[name] = tensors[name].to(torch.int8)
    if kind == "a layer is missing":
        tensors = {n: t for n, t in tensors.items() if ".layers.1." not in n}
    if kind == "no LM head":
        del tensors["lm_head.weight"]
    if kind == "unknown embeddings":
        tensors["wte.weight"] = tensors.pop("model.embed_tokens.weight")
    if kind == "encoder and decoder":
        config["is_encoder_decoder"] = True
    if kind == "another model's adapter":
        config["num_hidden_layers"] = 1
        tensors = {n: t for n, t in tensors.items() if ".layers.1." not in n}
    if kind == "no tokenizer":
        (base / "tokenizer.json").unlink()
    if kind == "adapter's config.json":
        (adapter / "config.json").write_text(json.dumps(config | {"hidden_size": 64}), "utf-8")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")


# By what is trained or what the base is: what is not merged, and the name that is told.
UNNAMED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "experts of Mixtral": (
        "MixtralConfig",
        SIZES | {"num_local_experts": 2},
        {"modules_to_save": ["experts"], "target_modules": ["q_proj"]},
        "mlp.experts.down_proj",
    ),
    "sinks of GPT-OSS": (
        "GptOssConfig",
        SIZES | {"head_dim": 8, "num_local_experts": 2, "layer_types": ["full_attention"] * 2},
        {"modules_to_save": ["self_attn"], "target_modules": ["lm_head"]},
        "self_attn.sinks",
    ),
    "Mamba": (
        "MambaConfig",
        {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
        {"target_modules": ["in_proj"]},
        "backbone.embeddings.weight",
    ),
}


@pytest.mark.parametrize(("kind", "settings", "lora", "told"), UNNAMED.values(), ids=UNNAMED)
def test_tensors_of_unusual_names_are_refused_by_name(
    tmp_path: Path,
    tokenizer: Path,
    kind: str,
    settings: dict[str, Any],
    lora: dict[str, Any],
    told: str,
) -> None:
    base = make_decoder(tmp_path / "base", kind, settings, tokenizer)
    adapter = make_lora(tmp_path / "lora", base, **lora)
    with pytest.raises(MergeError) as caught:
        merge_lora(base, adapter, tmp_path / "out", output_type="huggingface")
    assert told in str(caught.value)
    assert caught.value.facts["remedy"]
    assert not (tmp_path / "out").exists()


BROKEN = {
    "GPTQ": "quantized",
    "integers": "quantized",
    "a layer is missing": "incomplete",
    "no LM head": "incomplete",
    "unknown embeddings": "embeddings have a name",
    "encoder and decoder": "does not describe a model",
    "another model's adapter": "that the base model does not have",
    "no tokenizer": "holds no tokenizer",
    "adapter's config.json": "another shape than the base",
}


@pytest.mark.parametrize(("kind", "sentence"), BROKEN.items(), ids=BROKEN)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, tokenizer: Path, kind: str, sentence: str
) -> None:
    base = make_decoder(tmp_path / "base", "Qwen2Config", SIZES, tokenizer)
    adapter = make_lora(tmp_path / "lora", base)
    broken(kind, base, adapter)
    with pytest.raises(MergeError, match=sentence) as caught:
        merge_lora(base, adapter, tmp_path / "out", output_type="huggingface")
    assert caught.value.facts["remedy"]
    assert not (tmp_path / "out").exists()


def test_other_jobs_still_want_a_llama(tmp_path: Path, tokenizer: Path) -> None:
    from merge.layouts.opening import open_checkpoint

    base = make_decoder(tmp_path / "base", "Qwen2Config", SIZES, tokenizer)
    with pytest.raises(LayoutError, match="no LLaMA"):
        open_checkpoint(base)
    assert llama_config().model_type == "llama"

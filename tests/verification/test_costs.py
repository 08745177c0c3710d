"""What a check costs: memory that does not follow the model, and each file read once.

Measured by the system in a process of its own, so that torch's allocations count too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from merge import merge_lora
from tests.kit.files import write_json
from tests.kit.models import adapter_tensors, base_config, save_adapter, save_base
from tests.kit.run import run_python
from tests.kit.tokenizer_models import tokenizer_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")

# Buffers, pieces in float64, and what the allocator keeps of them.
MEMORY = 80 << 20
SMALL = 2 << 20  # headers and documents
HIDDEN, INTERMEDIATE, LAYERS, ROWS = 1024, 2048, 4, 4096
# The first command brings everything into memory that a check needs whatever the model; the second
# is measured.
_MEASURED = """
import json, re, sys
from pathlib import Path
from merge.commands import compare_checkpoints, verify_merge

def said(file, key):
    return int(re.search(rf"^{key}:\\s+(\\d+)", Path("/proc/self", file).read_text(), re.M)[1])

command = {"verify": verify_merge, "compare": compare_checkpoints}[sys.argv[1]].main
small, large = json.loads(sys.argv[2])
codes, costs = [command([*small, "--quiet"])], []
before = said("status", "VmHWM") * 1024, said("io", "rchar")
codes.append(command([*large, "--quiet"]))
after = said("status", "VmHWM") * 1024, said("io", "rchar")
print(json.dumps({"codes": codes, "memory": after[0] - before[0], "read": after[1] - before[1]}))
"""


def cost(command: str, small: Sequence[object], large: Sequence[object]) -> tuple[int, int, int]:
    """Exit code of a command, by how much its peak of memory is above that of a small one, and the
    bytes that it read.
    """
    words = json.dumps([list(map(str, small)), list(map(str, large))])
    done = run_python("-c", _MEASURED, command, words)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["codes"][0] == 0, done.stderr
    return measured["codes"][1], measured["memory"], measured["read"]


def size(folder: Path) -> int:
    """Bytes of the weights in a folder."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    save_base(folder / "base")
    save_adapter(folder / "lora")
    merge_lora(folder / "base", folder / "lora", folder / "out", output_type="huggingface")
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of about 100 MB, an adapter, and their merge."""
    folder = tmp_path_factory.mktemp("large")
    sizes = {"q_proj": (HIDDEN, HIDDEN), "k_proj": (HIDDEN, HIDDEN), "v_proj": (HIDDEN, HIDDEN)}
    sizes = {f"self_attn.{name}": shape for name, shape in sizes.items()}
    sizes |= {"self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.down_proj": (HIDDEN, INTERMEDIATE)}
    sizes |= {f"mlp.{name}": (INTERMEDIATE, HIDDEN) for name in ("gate_proj", "up_proj")}
    sizes |= dict.fromkeys(("input_layernorm", "post_attention_layernorm"), (HIDDEN,))
    shapes = {f"model.layers.{n}.{k}.weight": s for n in range(LAYERS) for k, s in sizes.items()}
    shapes |= {"model.norm.weight": (HIDDEN,)}
    shapes |= dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (ROWS, HIDDEN))
    (folder / "base").mkdir()
    tensors = {name: torch.randn(shape).half() for name, shape in shapes.items()}
    for name in (name for name in tensors if "norm" in name):
        tensors[name].abs_()
    save_file(tensors, folder / "base/model.safetensors", metadata={"format": "pt"})
    config = base_config(
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_key_value_heads=4,
        vocab_size=ROWS,
    )
    write_json(folder / "base/config.json", config)
    (folder / "base/tokenizer.model").write_bytes(tokenizer_model(ROWS))
    save_adapter(folder / "lora", adapter_tensors(hidden=HIDDEN), layers_to_transform=[0, 1])
    options = {"output_type": "huggingface", "safe_serialization": True}
    merge_lora(folder / "base", folder / "lora", folder / "out", **options)
    return folder


def test_verify_merge_reads_base_and_output_once_in_little_memory(small: Path, large: Path) -> None:
    """With a manifest the files of the output are hashed too, beside their tensors."""
    ours, base = size(large / "out"), size(large / "base")
    assert ours > 95_000_000
    code, memory, read = cost(
        "verify", ["--output_dir", small / "out"], ["--output_dir", large / "out"]
    )
    assert code == 0
    assert memory < MEMORY
    assert base + 2 * ours <= read < base + 2 * ours + SMALL
    (large / "out/merge_manifest.json").rename(large / "manifest.json")
    inputs = ["--base_model", large / "base", "--lora_model", large / "lora"]
    words = ["--output_dir", large / "out", *inputs]
    code, memory, read = cost("verify", ["--output_dir", small / "out"], words)
    assert code == 0
    assert memory < MEMORY
    assert base + ours <= read < base + ours + SMALL


def test_compare_checkpoints_reads_both_once_in_little_memory(small: Path, large: Path) -> None:
    code, memory, read = cost(
        "compare", [small / "base", small / "base"], [large / "base", large / "out"]
    )
    assert code == 1
    assert memory < MEMORY
    both = size(large / "base") + size(large / "out")
    assert both <= read < both + SMALL


@pytest.mark.parametrize("shape", [[1, 1 << 26], [3, 1 << 24]], ids=str)
def test_compare_checkpoints_takes_little_memory_whatever_the_shape(
    tmp_path: Path, small: Path, shape: list[int]
) -> None:
    """Files of 128 MB, of which most is a hole, that differ in their last element."""
    paths = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    nbytes = 2 * torch.Size(shape).numel()
    entry = {"dtype": "F16", "shape": shape, "data_offsets": [0, nbytes]}
    header = json.dumps({"w": entry}).encode()
    for last, path in enumerate(paths):
        with path.open("wb") as stream:
            stream.write(len(header).to_bytes(8, "little") + header)
            stream.seek(nbytes - 1, 1)
            stream.write(bytes([last]))
    code, memory, read = cost("compare", [small / "base", small / "base"], paths)
    assert code == 1
    assert memory < MEMORY
    assert 2 * nbytes <= read < 2 * nbytes + SMALL

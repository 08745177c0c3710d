"""Configurations as people publish them: all are read, and PEFT reads the same scaling."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peft import LoraConfig

from merge.deltas.adapter_config import AdapterFolder
from merge.storage.offload import Offload
from tests.kit.models import save_adapter

MODULE = "model.layers.0.self_attn.q_proj"


def test_every_published_configuration_is_read(real_data: Path, tmp_path: Path) -> None:
    paths = sorted((real_data / "adapter_configs").glob("*.json"))
    assert len(paths) == 25
    for path in paths:
        fields = json.loads(path.read_text(encoding="utf-8"))
        folder = save_adapter(tmp_path / path.stem)
        (folder / "adapter_config.json").write_bytes(path.read_bytes())
        config = AdapterFolder(folder).adapter_config
        known = {key: fields[key] for key in ("r", "lora_alpha", "use_rslora") if key in fields}
        theirs = LoraConfig(**known)
        alpha, rank = theirs.lora_alpha, theirs.r
        expected = alpha / rank**0.5 if theirs.use_rslora else alpha / rank
        assert config.scaling(MODULE) == pytest.approx(expected), path.name
        assert config.rank(MODULE) == fields["r"]
        assert config.unknown == (), path.name
        assert config.modules_to_save == tuple(fields.get("modules_to_save") or ())
        assert config.base_model_name_or_path == fields.get("base_model_name_or_path")


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_inspection_explains_every_published_configuration(
    real_data: Path, tmp_path: Path, kind: str
) -> None:
    from merge.jobs.inspect_adapter import describe_adapter

    offload = Offload(None, tmp_path)
    paths = sorted((real_data / "adapter_configs").glob("*.json"))
    assert len(paths) == 25
    for path in paths:
        fields = json.loads(path.read_text(encoding="utf-8"))
        folder = save_adapter(tmp_path / kind / path.stem, **{"use_dora": kind == "dora"})
        config = fields | {"r": 2, "lora_alpha": 6, "use_dora": kind == "dora"}
        (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        if kind == "dora":  # told by the configuration, but the tensors are not there
            with pytest.raises(Exception, match="do not agree about lora_magnitude_vector"):
                list(describe_adapter(AdapterFolder(folder), offload))
            continue
        lines = "\n".join(describe_adapter(AdapterFolder(folder), offload))
        assert "q_proj: rank 2 x " in lines
        assert str(fields.get("base_model_name_or_path") or "not recorded") in lines
        assert str(fields.get("peft_version", "PEFT 0.")) in lines

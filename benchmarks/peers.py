"""Other ways to the same result, for comparison. Each is optional: absent is said, not an error."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec

from benchmarks.job import ROOT, Job
from benchmarks.rounds import Step

FOLDER = ROOT / "benchmarks" / "peer_scripts"
CONVERTER = ROOT / ".oracles" / "llama.cpp" / "convert_hf_to_gguf.py"
NAMES = ("peft", "mergekit", "two_step_gguf")


def step(name: str, job: Job) -> Step | str:
    """The peer's step for ``job``, or why there is none."""
    reason = _missing(name, job)
    if reason:
        return reason
    command = {"peft": _peft, "mergekit": _mergekit, "two_step_gguf": _two_step_gguf}[name](job)
    compared = None if name == "two_step_gguf" else job
    return Step(TITLES[name], command, job.inputs, job.output, job=compared, may_fail=True)


TITLES = {
    "peft": "PEFT merge_and_unload",
    "mergekit": "mergekit",
    "two_step_gguf": "merge to HF, then convert_hf_to_gguf.py",
}


def _missing(name: str, job: Job) -> str | None:
    if name == "two_step_gguf":
        if job.output_type != "gguf":
            return "is for GGUF only"
        return None if CONVERTER.exists() else f"absent: no {CONVERTER.relative_to(ROOT)}"
    if job.output_type != "huggingface":
        return "writes Hugging Face models only"
    absent = [module for module in MODULES[name] if find_spec(module) is None]
    return f"absent: {absent[0]} is not installed" if absent else None


MODULES = {"peft": ("transformers", "peft"), "mergekit": ("mergekit",)}


def _peft(job: Job) -> list[str]:
    words = [sys.executable, str(FOLDER / "peft_merge.py"), "--base_model", str(job.base)]
    words += ["--lora_model", *map(str, job.adapters), "--output_dir", str(job.output)]
    return [*words, "--dtype", job.base_kind.dtype]


def _mergekit(job: Job) -> list[str]:
    """``base+adapter`` is mergekit's way to say a model with a LoRA."""
    model = "+".join(map(str, (job.base, *job.adapters)))
    recipe = {"merge_method": "passthrough", "dtype": job.base_kind.dtype}
    path = job.folder(f"mergekit-{job.name}.yaml")  # JSON is YAML
    path.write_text(json.dumps(recipe | {"models": [{"model": model}]}), encoding="utf-8")
    offload = str(job.folder("mergekit-cache"))
    run = ["-m", "mergekit.scripts.run_yaml", str(path), str(job.output)]
    return [sys.executable, *run, "--lora-merge-cache", offload, "--lazy-unpickle"]


def _two_step_gguf(job: Job) -> list[str]:
    words = [sys.executable, str(FOLDER / "two_step_gguf.py"), "--script", str(job.script)]
    words += ["--base_model", str(job.base), "--lora_model", ",".join(map(str, job.adapters))]
    words += ["--converter", str(CONVERTER), "--outtype", job.outtype or "f16"]
    return [*words, "--output_dir", str(job.output)]

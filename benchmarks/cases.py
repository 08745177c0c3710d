"""The experiments of the suite, each short enough to be run by itself within ten minutes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from benchmarks.case import Case
from benchmarks.job import SCRIPT, Job
from benchmarks.kinds import AdapterKind, BaseKind

LAYERS_OF_13B = 20  # half of them: base and output together stay below 30 GB
LAYERS_OF_1B = 8  # the smallest of the four sizes, half a gigaparameter
QV = AdapterKind(targets=("q_proj", "v_proj"), embeddings=False)  # mergekit can do no other
MUST = (
    *("7b-bin", "7b-safetensors", "7b-pth", "13b-pth2"),
    *("1b-bin", "1b-safetensors", "1b-pth1", "1b-pth2"),
    *("70b", "70b-dry-run", "qv", "variants"),
)
SCALING = ("size-0.5b", "size-1b", "size-3b", "shards")
FURTHER = ("peers", "peers-qv", "gguf-f16", "gguf-q8_0")
GROUPS = {"must": MUST, "scaling": SCALING, "further": FURTHER}
GROUPS["all"] = (*MUST, *SCALING, *FURTHER)


def cases(work_dir: Path, script: Path = SCRIPT) -> dict[str, Case]:
    """Every experiment by its name."""
    listed = [
        *_large(work_dir, script),
        *_cached(work_dir, script),
        *_seventy(work_dir, script),
        *_kinds(work_dir, script),
        *_scaling(work_dir, script),
        *_further(work_dir, script),
    ]
    return {case.name: case for case in listed}


def _to_bin(job: Job) -> Job:
    return dataclasses.replace(job, output_type="huggingface")


def _to_safetensors(job: Job) -> Job:
    return dataclasses.replace(job, output_type="huggingface", safe_serialization=True)


def _large(work_dir: Path, script: Path) -> list[Case]:
    """Inputs that are not cached."""
    seven = Job(work_dir, "7b", script=script)
    thirteen = dataclasses.replace(seven, shape_name="13b", num_layers=LAYERS_OF_13B, num_shards=2)
    return [
        Case("7b-bin", {"merge": _to_bin(seven)}, cold=True, verify=True),
        Case("7b-safetensors", {"merge": _to_safetensors(seven)}, cold=True),
        Case("7b-pth", {"merge": dataclasses.replace(seven, num_shards=1)}, cold=True),
        Case("13b-pth2", {"merge": thirteen}, cold=True, throwaway=True),
    ]


def _cached(work_dir: Path, script: Path) -> list[Case]:
    one = Job(work_dir, "1b", script=script)
    targets: dict[str, Job] = {
        "1b-bin": _to_bin(one),
        "1b-safetensors": _to_safetensors(one),
        "1b-pth1": dataclasses.replace(one, num_shards=1),
        "1b-pth2": dataclasses.replace(one, num_shards=2),
    }
    return [Case(name, {"merge": job}, runs=5, verify=True) for name, job in targets.items()]


def _seventy(work_dir: Path, script: Path) -> list[Case]:
    """The whole 70B shape, from holes into a sink; and its plan."""
    base = BaseKind("safetensors", sparse=True)
    whole = _to_bin(Job(work_dir, "70b", base_kind=base, script=script))
    plan = {
        f"--dry_run, base {kind} -> {job.target}": dataclasses.replace(
            job, base_kind=BaseKind(kind, sparse=True), rest=("--dry_run",)
        )
        for kind in ("bin", "safetensors")
        for job in (whole, dataclasses.replace(whole, output_type="pth"))
    }
    return [
        Case("70b", {"merge": whole}, floors=(), cold=None, runs=1, sink=True, throwaway=True),
        Case("70b-dry-run", plan, (), cold=None, runs=5, sink=True, throwaway=True),
    ]


def _kinds(work_dir: Path, script: Path) -> list[Case]:
    """What else a base and an adapter may be, against the plain case."""
    plain = _to_bin(Job(work_dir, "1b", script=script))
    bfloat = dataclasses.replace(
        plain, base_kind=BaseKind(dtype="bfloat16"), rest=("--dtype", "bfloat16")
    )

    def with_adapter(kind: AdapterKind) -> Job:
        return dataclasses.replace(plain, adapter_kind=kind)

    variants = {
        "plain": plain,
        "DoRA": with_adapter(AdapterKind(dora=True)),
        "rank 64": with_adapter(AdapterKind(rank=64)),
        "rank 256": with_adapter(AdapterKind(rank=256)),
        "bfloat16 base and result": bfloat,
        "float32 adapter": with_adapter(AdapterKind(dtype="float32")),
        "two adapters": dataclasses.replace(plain, chain=True),
    }
    return [
        Case("qv", {"merge": with_adapter(QV)}, cold=True, runs=5, verify=True),
        Case("variants", variants, floors=("plain",), verify=True, throwaway=True),
    ]


def _scaling(work_dir: Path, script: Path) -> list[Case]:
    """Four sizes, the 7B shape of ``7b-bin`` being the largest; and one to eight files."""
    one = _to_bin(Job(work_dir, "1b", script=script))
    sizes = {
        "size-0.5b": dataclasses.replace(one, num_layers=LAYERS_OF_1B),
        "size-1b": one,
        "size-3b": dataclasses.replace(one, shape_name="3b"),
    }
    to_pth = Job(work_dir, "1b", script=script)
    shards = {f"{n} shards": dataclasses.replace(to_pth, num_shards=n) for n in (1, 2, 4, 8)}
    return [
        *(Case(name, {"merge": job}, cold=True, throwaway=True) for name, job in sizes.items()),
        Case("shards", shards, floors=("cp",)),
    ]


def _further(work_dir: Path, script: Path) -> list[Case]:
    """Other tools."""
    plain = _to_bin(Job(work_dir, "1b", script=script))
    on_two = dataclasses.replace(plain, adapter_kind=QV)
    gguf = {
        outtype: Job(work_dir, "1b", output_type="gguf", outtype=outtype, script=script)
        for outtype in ("f16", "q8_0")
    }
    return [
        Case("peers", {"merge": plain}, peers=("peft", "mergekit"), verify=True),
        Case("peers-qv", {"merge": on_two}, peers=("peft", "mergekit"), verify=True),
        *(
            Case(f"gguf-{outtype}", {"merge": job}, peers=("two_step_gguf",), floors=("cp",))
            for outtype, job in gguf.items()
        ),
    ]

"""Runs llama.cpp's ``llama_model_quantize``, away from torch; started by tests with jobs on stdin.

Standard input: JSON, a list of ``{"source", "target", "file_type", "dry_run", "imatrix",
"overrides"}``. ``imatrix`` is an ``.npz`` with a factor for each column, by tensor, or null.
Standard output ends with a line of JSON: for each job its return code, and the type of each tensor.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
from typing import Any

import llama_cpp
import numpy as np

_LINE = re.compile(r"\] (\S+) +- \[[^]]*\], type = +(\w+), size = [^\n]*?(?:\((\w+)\))?\n")
_TAGS = {int: 0, str: 3}


def main() -> None:
    said: list[str] = []
    log = llama_cpp.llama_log_callback(lambda _, text, __: said.append(text.decode()))
    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    answers = []
    for job in json.load(sys.stdin):
        said.clear()
        code = _quantize(job)
        text = "".join(said)
        types = {name: (to or kind).upper() for name, kind, to in _LINE.findall(text)}
        answers.append({"code": code, "types": types, "log": text[-2000:] if code else ""})
    print(json.dumps(answers))


def _quantize(job: dict[str, Any]) -> int:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{job['file_type'].upper()}")
    params.nthread = 2
    params.dry_run = job.get("dry_run", False)
    kept: list[Any] = []
    if job.get("imatrix"):
        with np.load(job["imatrix"]) as held:
            arrays = {name: np.ascontiguousarray(held[name], np.float32) for name in held.files}
        entries = (llama_cpp.llama_model_imatrix_data * (len(arrays) + 1))()
        for entry, (name, values) in zip(entries, arrays.items(), strict=False):
            entry.name = name.encode()
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entry.size = values.size
        kept += [arrays, entries]
        params.imatrix = ctypes.cast(entries, type(params.imatrix))
    if overrides := job.get("overrides"):
        values = (llama_cpp.llama_model_kv_override * (len(overrides) + 1))()
        for entry, (key, value) in zip(values, overrides.items(), strict=False):
            entry.key, entry.tag = key.encode(), _TAGS[type(value)]
            if isinstance(value, int):
                entry.value.val_i64 = value
            else:
                entry.value.val_str = value.encode()
        kept.append(values)
        params.kv_overrides = ctypes.cast(values, type(params.kv_overrides))
    files = (job[name].encode() for name in ("source", "target"))
    return int(llama_cpp.llama_model_quantize(*files, ctypes.byref(params)))


if __name__ == "__main__":
    main()

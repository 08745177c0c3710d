"""How families of models are talked to: system prompt, chat template, and where an answer ends.

Sources: the prompts of ``inference_hf.py`` in Chinese-LLaMA-Alpaca, -2 and -3, ``chat.sh`` of -2
for further turns, and ``ChatFormat`` in Meta's code for Llama 3. ``layouts/gguf/modelfile.py`` has
the same templates in Ollama's language.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_HELPFUL = "You are a helpful assistant. 你是一个乐于助人的助手。"
_END_OF_TURN = "<|eot_id|>"


@dataclass(frozen=True)
class ChatFormat:
    """How a family of models is talked to; ``tokens`` must be in its vocabulary.

    ``template`` is a chat template in Jinja, as transformers and llama.cpp read it.
    """

    system: str
    template: str
    stops: Sequence[str]
    tokens: Sequence[str] = ()


# As llama.cpp and the authors of Chinese-Alpaca put instructions; "system" replaces the first line.
_ALPACA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {{- messages[0]['content'] + '\\n\\n' }}
{%- else %}
    {{- 'Below is an instruction that describes a task. ' }}
    {{- 'Write a response that appropriately completes the request.\\n\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- '### Instruction:\\n\\n' + message['content'] + '\\n\\n' }}
    {%- elif message['role'] == 'assistant' %}
        {{- '### Response:\\n\\n' + message['content'] + eos_token + '\\n\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '### Response:\\n\\n' }}
{%- endif %}
"""
# As Llama-2-Chat: the system prompt is part of the first instruction.
_ALPACA_2 = """\
{{ bos_token }}
{%- set said = namespace(system='') %}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {%- set said.system = message['content'] %}
    {%- elif message['role'] == 'user' %}
        {{- '[INST] ' }}
        {%- if said.system %}
            {{- '<<SYS>>\\n' + said.system + '\\n<</SYS>>\\n\\n' }}
            {%- set said.system = '' %}
        {%- endif %}
        {{- message['content'] + ' [/INST]' }}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] + eos_token + bos_token }}
    {%- endif %}
{%- endfor %}
"""
# A header, the text without space around it, an end.
_LLAMA_3 = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

FORMATS: Mapping[str, ChatFormat] = {
    "alpaca": ChatFormat(
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.",
        _ALPACA,
        ("</s>", "### Instruction:"),
    ),
    "alpaca2": ChatFormat(_HELPFUL, _ALPACA_2, ("</s>", "[INST]", "<<SYS>>")),
    "llama3": ChatFormat(
        _HELPFUL,
        _LLAMA_3,
        (_END_OF_TURN, "<|end_of_text|>", "<|start_header_id|>"),
        (_END_OF_TURN, "<|start_header_id|>"),
    ),
}

"""The files of a tokenizer's folder, as transformers names them."""

from __future__ import annotations

MODEL_NAME = "tokenizer.model"
TOKENIZER_JSON_NAME = "tokenizer.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
SPECIAL_TOKENS_NAME = "special_tokens_map.json"
ADDED_TOKENS_NAME = "added_tokens.json"
CHAT_TEMPLATE_NAME = "chat_template.jinja"
CHAT_TEMPLATE_JSON_NAME = "chat_template.json"
TEMPLATE_NAMES = (CHAT_TEMPLATE_NAME, CHAT_TEMPLATE_JSON_NAME)
"""Files beside ``tokenizer_config.json`` that make a folder one with a template."""

"""Answers of a model in files: transformers for a Hugging Face folder, llama.cpp for GGUF.

``opening.Models`` loads models, ``talk.Talk`` puts questions to one in the right template and
yields the answer in pieces of text.
"""

"""What llama.cpp's own converters demand of a folder, told from headers before they run.

Rules by reading ``examples/convert_legacy_llama.py`` (``legacy.py``) and ``convert_hf_to_gguf.py``
(``huggingface.py``) as llama-cpp-python 0.3.36 carries them; the tests hold them against both.
"""

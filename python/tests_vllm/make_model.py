"""Converts the weights that `make model` fetches into a directory that vLLM loads: make_model.py FILE.gguf DIRECTORY"""
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

source, target = map(pathlib.Path, sys.argv[1:])
place = dict(gguf_file=source.name)
AutoTokenizer.from_pretrained(source.parent, **place).save_pretrained(target)
model = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.bfloat16, **place)
# The weights are unpacked: nothing is quantized any more.
model.hf_quantizer, model.is_quantized = None, False
if hasattr(model.config, "quantization_config"):
    del model.config.quantization_config
model.save_pretrained(target)

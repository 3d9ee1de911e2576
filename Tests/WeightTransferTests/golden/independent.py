#!/usr/bin/env python3
"""Checks what `te weights push --save` wrote against a conversion of its own: numpy and ml_dtypes,
none of the library's code.

usage: independent.py MODEL.gguf SAVED VERSIONS

Layout tp=2,fp8=1 of SmolLM2-135M: nine query heads and three of keys and values of 64 elements, query rows together with the keys
they belong to; q, k, v and gate, up become one matrix; linear layers are FP8 with a scale for each 128x128 block. Versions after the
first change every other parameter: `flipped` says how.
"""
import json
import struct
import sys
from pathlib import Path

import ml_dtypes
import numpy as np

LAYERS, HEAD, PAIRS, HEADS = 30, 64, 3, 9
ORDER = ["input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
         "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


class GGUF:
    SIZES = {0: 1, 1: 1, 7: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 10: 8, 11: 8, 12: 8}

    def __init__(self, path):
        self.bytes = np.fromfile(path, dtype=np.uint8)
        self.raw = self.bytes.tobytes()
        assert self.raw[:4] == b"GGUF"
        _, tensors, pairs = struct.unpack_from("<IQQ", self.raw, 4)
        self.place = 24
        for _ in range(pairs):
            self.text()
            self.skip(self.number("I"))
        self.entries = {}
        for _ in range(tensors):
            name = self.text()
            shape = [self.number("Q") for _ in range(self.number("I"))][::-1]
            self.entries[name] = (shape, self.number("I"), self.number("Q"))
        self.start = (self.place + 31) // 32 * 32

    def number(self, kind):
        value, = struct.unpack_from("<" + kind, self.raw, self.place)
        self.place += struct.calcsize("<" + kind)
        return value

    def text(self):
        length = self.number("Q")
        self.place += length
        return self.raw[self.place - length:self.place].decode()

    def skip(self, kind):
        if kind == 8:
            self.text()
        elif kind == 9:
            element = self.number("I")
            for _ in range(self.number("Q")):
                self.skip(element)
        else:
            self.place += self.SIZES[kind]

    def bf16(self, name):
        """Bits of BF16, nearest, ties to even."""
        shape, kind, offset = self.entries[name]
        count = int(np.prod(shape))
        data = self.bytes[self.start + offset:]
        if kind == 0:
            values = data[:count * 4].view(np.float32)
        elif kind == 8:
            blocks = data[:count // 32 * 34].reshape(-1, 34)
            scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
            values = scale * blocks[:, 2:].copy().view(np.int8).astype(np.float32)
        else:
            assert kind == 3, kind
            blocks = data[:count // 32 * 20].reshape(-1, 20)
            scale = blocks[:, 0:2].copy().view(np.float16).astype(np.float32)
            least = blocks[:, 2:4].copy().view(np.float16).astype(np.float32)
            codes = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], 1).astype(np.float32)
            values = scale * codes + least
        bits = np.ascontiguousarray(values, dtype=np.float32).reshape(-1).view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).reshape(shape)


def order():
    """Parameters in checkpoint order: their numbers decide which ones a version changes."""
    names = ["model.embed_tokens"]
    for layer in range(LAYERS):
        names += [f"model.layers.{layer}.{module}" for module in ORDER]
    return names + ["model.norm"]


def saved(path):
    """A safetensors file: bytes of each tensor, and its type and shape."""
    raw = Path(path).read_bytes()
    length, = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8:8 + length])
    header.pop("__metadata__", None)
    return {name: (entry["dtype"], entry["shape"], raw[8 + length:][slice(*entry["data_offsets"])])
            for name, entry in header.items()}


def quantised(bits):
    """FP8 codes and scales of 128x128 blocks."""
    rows, columns = bits.shape
    values = (bits.astype(np.uint32) << 16).view(np.float32)
    tall, wide = -(-rows // 128), -(-columns // 128)
    padded = np.zeros((tall * 128, wide * 128), np.float32)
    padded[:rows, :columns] = np.abs(values)
    largest = np.maximum(padded.reshape(tall, 128, wide, 128).max((1, 3)), np.float32(1e-4))
    factor = (np.float32(1) / largest) * np.float32(448)
    scaled = values * np.repeat(np.repeat(factor, 128, 0), 128, 1)[:rows, :columns]
    return scaled.astype(ml_dtypes.float8_e4m3fn).view(np.uint8), largest / np.float32(448)


def expected(read, rank):
    """What inference rank `rank` of two has: codes of BF16 by name, and whether they become FP8."""
    first, end = PAIRS * rank // 2, PAIRS * (rank + 1) // 2
    queries = slice(first * HEADS // PAIRS * HEAD, end * HEADS // PAIRS * HEAD)
    pairs = slice(first * HEAD, end * HEAD)

    def half(size):
        return slice(size * rank // 2, size * (rank + 1) // 2)

    embedding = read("model.embed_tokens")
    yield "model.embed_tokens.weight", embedding[half(len(embedding))], False
    yield "model.norm.weight", read("model.norm"), False
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        q, k, v = (read(f"{at}self_attn.{module}_proj") for module in "qkv")
        yield at + "self_attn.qkv_proj.weight", np.concatenate([q[queries], k[pairs], v[pairs]]), True
        yield at + "self_attn.o_proj.weight", read(at + "self_attn.o_proj")[:, queries], True
        gate, up = read(at + "mlp.gate_proj"), read(at + "mlp.up_proj")
        yield at + "mlp.gate_up_proj.weight", np.concatenate([gate[half(len(gate))], up[half(len(up))]]), True
        down = read(at + "mlp.down_proj")
        yield at + "mlp.down_proj.weight", down[:, half(down.shape[1])], True
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{at}{norm}.weight", read(at + norm), False


def main():
    path, directory, versions = sys.argv[1], sys.argv[2], int(sys.argv[3])
    file = GGUF(path)
    parameters = {}
    for name in order():
        short = name.replace("model.layers", "blk")
        for long, other in NAMES.items():
            short = short.replace(long, other)
        parameters[name] = file.bf16(short + ".weight")
    count = 0
    for version in range(1, versions + 1):
        flipped = {name for number, name in enumerate(order()) if version > 1 and (number + version) % 2 == 0}
        for rank in range(2):
            found = saved(f"{directory}/{version}/rank-{rank}.safetensors")
            for name, bits, isQuantised in expected(
                    lambda name: parameters[name] ^ np.uint16(version & 7 if name in flipped else 0), rank):
                if isQuantised:
                    codes, scales = quantised(np.ascontiguousarray(bits))
                    want = {name: ("F8_E4M3", list(codes.shape), codes.tobytes()),
                            name + "_scale_inv": ("F32", list(scales.shape), scales.tobytes())}
                else:
                    want = {name: ("BF16", list(bits.shape), np.ascontiguousarray(bits).tobytes())}
                for key, value in want.items():
                    if found.pop(key, None) != value:
                        raise SystemExit(f"version {version}, rank {rank}: '{key}' is not what numpy makes of it")
                    count += 1
            if found:
                raise SystemExit(f"version {version}, rank {rank}: nobody expected {sorted(found)}")
    print(f"{count} tensors of {versions} versions are what numpy makes of {path}")


if __name__ == "__main__":
    main()

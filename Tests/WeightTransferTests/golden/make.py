"""Prints the digests in QuantisationTests.swift: PyTorch's conversion to float8_e4m3fn, alone and with block scales."""
import struct

import torch

MASK = 0xFFFFFFFFFFFFFFFF


def digest(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & MASK
    return hex(value)


def split_mix(count, state):
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        word = state
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
        yield word ^ (word >> 31)


def bf16(patterns):
    signed = [p - 65536 if p > 32767 else p for p in patterns]
    return torch.tensor(signed, dtype=torch.int16).view(torch.bfloat16)


def quantise(weights):
    rows, columns = weights.shape
    r, c = (rows + 127) // 128, (columns + 127) // 128
    padded = torch.zeros(r * 128, c * 128)
    padded[:rows, :columns] = weights.float()
    blocks = padded.view(r, 128, c, 128)
    largest = blocks.abs().amax(dim=(1, 3)).clamp(min=1e-4)
    codes = (blocks * (448.0 / largest)[:, None, :, None]).to(torch.float8_e4m3fn)
    codes = codes.view(r * 128, c * 128)[:rows, :columns].contiguous()
    return codes.view(torch.uint8), largest / 448.0


every = bf16(range(65536)).float()
codes = every.to(torch.float8_e4m3fn).view(torch.uint8)[every.abs() <= 448]
print(torch.__version__, "all", len(codes), digest(codes.tolist()))
for rows, columns, seed in [(128, 128, 1), (200, 300, 2), (1, 1, 3), (129, 17, 4), (256, 640, 5), (3, 1000, 6)]:
    words = split_mix(rows * columns, seed)
    patterns = [(w >> 63) << 15 | (100 + (w >> 8) % 41) << 7 | w & 0x7F for w in words]
    codes, scales = quantise(bf16(patterns).view(rows, columns))
    packed = b"".join(struct.pack("<f", scale) for scale in scales.flatten().tolist())
    print(rows, columns, seed, digest(codes.flatten().tolist()), digest(packed))

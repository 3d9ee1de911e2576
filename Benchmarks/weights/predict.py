#!/usr/bin/env python3
"""The predictions of docs/weights.md, as tables: what the cost model says of plans for hundreds of ranks.

usage: predict.py TE [--check]

--check: only whether the paper's order takes what the paper says, part by part, and ours at most 0.9 s.
"""
import json
import subprocess
import sys

K2 = ("kimi-k2", "fsdp=4,replicas={0},pp=2,ep=8", "ep=32,tp=8,dp={0},fp8=1")
STAGES = ["load", "gather", "fuse", "quantise", "submit", "wait", "rest"]
PUSHES = [
    ("Kimi-K2, the paper's order", *K2, "full-tensor", 4),
    ("Kimi-K2", *K2, "direct", 4),
    ("DeepSeek-V3", "deepseek-v3", "fsdp=4,replicas={0},pp=2,ep=8", "ep=32,tp=8,dp={0},fp8=1", "direct", 4),
    ("Qwen3-235B", "qwen3-235b-a22b", "fsdp=4,replicas={0},pp=1,ep=8", "ep=8,tp=4,dp={0},fp8=1", "direct", 4),
]


def predict(te, model, trainers, inference, policy, scale):
    layouts = ["--model", model, "--trainers", trainers.format(scale), "--inference", inference.format(scale),
               "--policy", policy, "--json"]
    lines = [json.loads(subprocess.run([te, "weights", verb, *layouts], check=True, capture_output=True, text=True,
                                       timeout=300).stdout) for verb in ("plan", "predict")]
    return {**lines[0], **lines[1]}


# Milliseconds of one rank (arXiv 2510.27656, table 5).
PAPER = {"total": 1233, "load": 184, "gather": 518, "fuse": 18, "quantise": 88, "submit": 26, "wait": 357, "rest": 42}


def check(te):
    theirs, ours = (predict(te, *push[1:]) for push in PUSHES[:2])
    wrong = 0
    for part, wanted in PAPER.items():
        off = theirs[part + "_ms"] / wanted - 1
        wrong += abs(off) > 0.1
        print(f"{part:9} {wanted:6} ms in the paper {theirs[part + '_ms']:8.1f} ms in the model {off:+.1%}")
    print(f"ours      {ours['total_ms']:22.1f} ms")
    if wrong or ours["total_ms"] > 900:
        sys.exit("parts have to be within 10 % of the paper's, and ours within 900 ms: refit CostModel, or mend the planner")


def main():
    te = sys.argv[1]
    if sys.argv[2:] == ["--check"]:
        return check(te)
    print("| push | ranks | total ms | " + " | ".join(STAGES) + " | receiver's NIC ms | tasks | plan s | plan MB |")
    print("|---" * (len(STAGES) + 7) + "|")
    rows = list(PUSHES) + [("Kimi-K2", *K2, "direct", scale) for scale in (1, 2, 4, 8, 16, 32)]
    for name, model, trainers, inference, policy, scale in rows:
        row = predict(te, model, trainers, inference, policy, scale)
        print(f"| {name} | {row['trainers']} to {row['receivers']} | {row['total_ms']:.0f} | "
              + " | ".join(f"{row[stage + '_ms']:.0f}" for stage in STAGES)
              + f" | {row['receiver_nic_ms']:.0f} | {row['tasks']} | {row['plan_seconds']:.1f} | "
              f"{row['peak_memory_bytes'] / 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    main()

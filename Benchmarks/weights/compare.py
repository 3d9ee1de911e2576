#!/usr/bin/env python3
"""`te bench weights` beside NIXL, Mooncake and torch.distributed's gloo, in turn, on the same slices: make bench-weights.

Every round runs each side once, in an order that changes; medians over the rounds are compared. Of a peer's modes the better one counts.
Peers move bytes; ours also digests them, verifies them and switches versions: `update` is all of that, `writing` is what peers do.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
VENV = ROOT / ".build/weights/venv"
PACKAGES = ["numpy", "nixl-cu12==1.5.1", "mooncake-transfer-engine-non-cuda==0.3.13.post1"]


def output(command, limit=300):
    """What a side measured; None, and a note, when it could not."""
    try:
        result = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        result = None
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")] if result else []
    if not lines or result.returncode:
        reason = (result.stderr.strip().splitlines() or ["it said nothing"])[-1] if result else f"not done after {limit} s"
        print(f"not measured: {Path(command[1]).name} {command[2]}: {reason}", file=sys.stderr)
        return None
    return json.loads(lines[-1])


def sides(options):
    """The name of each side, and what measures it once: GB/s of the model."""
    mebibytes, repeats = options.mebibytes, options.repeats
    command = [options.te, "bench", "weights", "--tests", "bf16", "--mebibytes", mebibytes, "--repeats", repeats, "--json"]
    yield "te", lambda: output(command)
    for peer, modes in {"nixl": ["default", "none"], "mooncake": ["default", "pool"]}.items():
        for mode in modes if peer in options.peers.split(",") else []:
            yield f"{peer} {mode}", lambda peer=peer, mode=mode: output(
                [options.python, HERE / f"{peer}_peer.py", mode, mebibytes, repeats])
    if "gloo" in options.peers.split(","):
        yield "gloo gather+broadcast", lambda: output(
            [options.torch_python, HERE / "gloo_peer.py", mebibytes, repeats])


def set_up():
    """Without what NIXL depends on: it asks for PyTorch with CUDA, gigabytes that it does not use here."""
    python = VENV / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True, timeout=120)
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", *PACKAGES]
    if subprocess.run(install, timeout=900).returncode:
        print("note: a peer could not be installed; what is missing is not measured", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--te", default=ROOT / ".build/release/te", type=Path)
    parser.add_argument("--python", default=VENV / "bin/python", type=Path, help="a Python with NIXL and Mooncake")
    parser.add_argument("--torch-python", default=ROOT / ".build/moe/venv/bin/python", type=Path,
                        help="a Python with torch")
    parser.add_argument("--peers", default="nixl,mooncake,gloo")
    parser.add_argument("--mebibytes", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--setup", action="store_true", help="install NIXL and Mooncake into .build/weights/venv")
    options = parser.parse_args()
    if options.setup:
        set_up()
    figures = {}
    for number in range(options.rounds):
        turn = list(sides(options))
        for name, measure in turn if number % 2 == 0 else turn[::-1]:
            row = measure()
            if row is None and name == "te":
                raise SystemExit("our own run failed")
            for key, value in (row or {}).items():
                if key in ("gbps", "writing_gb_s", "update_gb_s"):
                    figures.setdefault(f"{name} {key.split('_')[0]}" if name == "te" else name, []).append(value)
    medians = {name: statistics.median(values) for name, values in figures.items()}
    best = {}
    for name, value in medians.items():
        if not name.startswith("te"):
            peer = name.split()[0]
            best[peer] = max(best.get(peer, 0), value)
    print(json.dumps({
        "model_mebibytes": options.mebibytes, "rounds": options.rounds,
        "gb_s": {name: round(value, 2) for name, value in medians.items()},
        "writing_over": {peer: round(medians["te writing"] / value, 2) for peer, value in best.items()},
        "update_over": {peer: round(medians["te update"] / value, 2) for peer, value in best.items()},
    }), flush=True)


if __name__ == "__main__":
    main()

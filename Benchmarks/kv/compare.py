#!/usr/bin/env python3
"""Pushes the KV cache of the same request with this library, NIXL, Mooncake and raw libfabric in turns, and compares.

A round runs `te bench kv` and then each peer, as whole programs on the same two cores. A ratio above 1 means that ours is
faster; the table has the medians over the rounds. See docs/benchmarks.md.
"""
import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "peers"))
import compare as peers  # noqa: E402

#: layers, tokens of a page, bytes of a page, ranks: as `te bench kv` has them
MODELS = {"llama-3.1-8b": (32, 16, 65536, 1), "qwen3-235b-tp4": (94, 128, 65536, 4)}


def ours(options, model, tokens, provider):
    rows = peers.json_lines(peers.output_of(
        [options.te, "bench", "kv", "--models", model, "--tokens", tokens, "--providers", provider,
         "--repeats", options.repeats, "--json"], 600))
    return next(row for row in rows if row["model"] == model)


def python_peer(script, mode):
    def run(options, model, tokens):
        layers, page_tokens, page_bytes, ranks = MODELS[model]
        pages = ranks * -(-tokens // page_tokens)
        output = peers.output_of(
            [options.python, HERE / script, mode, layers, pages, page_bytes, options.repeats], 600)
        return peers.json_lines(output)[-1]
    return run


def raw_libfabric(options, model, tokens):
    """One list of 1024 pages after the other, each counted: it has no layers to wait for."""
    return {"gbps": peers.run_libfabric(options)["pages", MODELS[model][2]]}


#: what is compared over which of our providers: the peer's modes, of which the best counts, and the required ratio
CONTESTS = [
    ("nixl", "shm", {mode: python_peer("nixl_kv.py", mode) for mode in ("default", "none")}, 3.0),
    ("nixl", "tcp", {"tcp": python_peer("nixl_kv.py", "tcp")}, 1.0),
    ("mooncake", "shm", {mode: python_peer("mooncake_kv.py", mode) for mode in ("layers", "whole")}, 3.0),
    ("mooncake", "tcp", {mode: python_peer("mooncake_kv.py", mode) for mode in ("layers", "whole")}, 1.0),
    ("libfabric", "tcp", {"raw": raw_libfabric}, 0.9),
]


def compare(options, model, tokens, peer, provider, modes, required):
    """A row, or why there is none."""
    pairs, lasts, reasons = [], [], {}
    for number in range(options.rounds):
        peers.say(f"{model}, {tokens} tokens, {peer} {provider}: round {number + 1} of {options.rounds}")
        own = ours(options, model, tokens, provider)
        figures = []
        for mode, run in modes.items():
            if mode in reasons:
                continue
            try:
                figures.append(run(options, model, tokens))
            except peers.NotMeasured as error:
                reasons[mode] = str(error)
        if not figures:
            break
        pairs.append((own["gbps"], max(figure["gbps"] for figure in figures)))
        theirs = [figure["after_last_layer_us"] for figure in figures if "after_last_layer_us" in figure]
        if theirs:
            lasts.append((own["after_last_layer_us"], min(theirs)))
    name = {"model": model, "tokens": tokens, "peer": peer, "transport": provider}
    if not pairs:
        return {**name, "not_measured": "; ".join(f"{mode}: {reason}" for mode, reason in reasons.items())}
    ratios = [a / b for a, b in pairs]
    ratio = statistics.median(ratios)
    return {
        **name, "gbps": statistics.median(a for a, _ in pairs), "their_gbps": statistics.median(b for _, b in pairs),
        "ratio": ratio, "spread": (max(ratios) - min(ratios)) / ratio, "required": required,
        "after_last_layer_us": statistics.median(a for a, _ in lasts) if lasts else None,
        "their_after_last_layer_us": statistics.median(b for _, b in lasts) if lasts else None,
        "rounds": len(pairs), "check": "ok" if ratio >= required else "below",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="llama-3.1-8b", help="of " + ", ".join(MODELS))
    parser.add_argument("--tokens", default="4096", help="one or several numbers")
    parser.add_argument("--peers", default="nixl,mooncake,libfabric")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side")
    parser.add_argument("--repeats", type=int, default=3, help="requests in each run")
    parser.add_argument("--seconds", type=float, default=0.2, help="for each measurement of raw libfabric")
    parser.add_argument("--te", type=Path, default=HERE.parents[1] / ".build/release/te", help="our program")
    parser.add_argument("--python", type=Path, help="the Python that has NIXL and Mooncake")
    parser.add_argument("--setup", action="store_true", help="install NIXL and Mooncake into Benchmarks/peers/.venv")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--check", action="store_true",
                        help="end with status 1 when a row is below what is required, 2 when something is missing")
    options = parser.parse_args()
    if options.setup and not (peers.VENV / "bin/python").exists():
        peers.set_up()
    if not options.python:
        options.python = peers.VENV / "bin/python" if (peers.VENV / "bin/python").exists() else Path(sys.executable)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    rows = []
    with tempfile.TemporaryDirectory(prefix="te-kv-") as scratch:
        options.scratch = Path(scratch)
        for model in options.models.split(","):
            for tokens in map(int, options.tokens.split(",")):
                for peer, provider, modes, required in CONTESTS:
                    if peer in options.peers.split(","):
                        rows.append(compare(options, model, tokens, peer, provider, modes, required))
                        if options.json:
                            print(json.dumps(rows[-1]), flush=True)
    peers.say("")
    missing = [row for row in rows if "not_measured" in row]
    if not options.json:
        peers.print_table([row for row in rows if row not in missing])
        for row in missing:
            print(f"not measured: {row['model']} {row['peer']} {row['transport']}: {row['not_measured']}")
    if options.check and any(row.get("check") == "below" for row in rows):
        return 1
    return 2 if options.check and missing else 0


if __name__ == "__main__":
    sys.exit(main())

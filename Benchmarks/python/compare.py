#!/usr/bin/env python3
"""Python beside Swift and beside NIXL: page lists over shared memory in turns, then the latency of an await.

Each round runs every contestant as a whole program on the same two cores. A ratio is of two figures of one round; the table
has the median of the rounds' ratios and their spread. See docs/python.md.
"""
import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SIZES = [1024, 4096, 16384]
REQUIRED = {"native": 1 / 1.2, "nixl": 5.0}
REQUIRED_US = 60


def rows(command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def rates(command):
    """GB/s by page size and by test: `native` is the same loop in C, in the program of `python`."""
    figures = {}
    for row in rows(command):
        test = "native" if row["test"] == "native" else "pages"
        figures.setdefault(test, {})[row["size"]] = row["gbps"]
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--te", default=HERE.parent.parent / ".build/release/te")
    parser.add_argument("--python", default=sys.executable, help="with the wheel and numpy")
    parser.add_argument("--nixl-python", help="with nixl-cu12 and numpy; without it NIXL is not measured")
    parser.add_argument("--check", action="store_true", help="end with status 1 when a row is below what is required")
    options = parser.parse_args()
    contestants = {
        "python": [options.python, HERE / "pages.py", "ours", options.seconds],
        "swift": [options.te, "bench", "p2p", "--tests", "paged", "--sizes", ",".join(map(str, SIZES)), "--against",
                  "none", "--repeats", 1, "--seconds", options.seconds, "--json"],
    }
    if options.nixl_python:
        for mode in ("default", "none"):
            contestants[f"nixl-{mode}"] = [options.nixl_python, HERE / "pages.py", f"nixl-{mode}", options.seconds]
    rounds = [{name: rates(command) for name, command in contestants.items()} for _ in range(options.rounds)]

    is_good = True
    print(f"{'pages of':>9} {'beside':>7} {'python GB/s':>12} {'its GB/s':>9} {'ratio':>6} {'spread':>7} {'required':>9}")
    for size in SIZES:
        for peer in ("native", "swift", "nixl"):
            names = [name for name in contestants if name.startswith(peer)]
            if peer == "native":
                best = [figures["python"]["native"][size] for figures in rounds]
            elif names:
                best = [max(figures[name]["pages"][size] for name in names) for figures in rounds]
            else:
                continue
            ours = [figures["python"]["pages"][size] for figures in rounds]
            ratios = sorted(a / b for a, b in zip(ours, best))
            ratio = statistics.median(ratios)
            required = REQUIRED.get(peer)
            is_good &= required is None or ratio >= required
            print(f"{size:>9} {peer:>7} {statistics.median(ours):>12.2f} {statistics.median(best):>9.2f} {ratio:>6.2f} "
                  f"{(ratios[-1] - ratios[0]) / ratio:>7.2f} {f'{required:.2f}' if required else '-':>9}")
    print(f"{'latency':>9} {'engine':>9} {'us p50':>7} {'us p99':>7}")
    for row in rows([options.python, HERE / "latency.py", 500]):
        print(f"{row['test']:>9} {row['progress']:>9} {row['us_p50']:>7.1f} {row['us_p99']:>7.1f}")
        # An adaptive engine sleeps as well: the system wakes two threads, one after the other.
        is_good &= row["test"] != "await" or row["progress"] == "adaptive" or row["us_p50"] <= REQUIRED_US
    if options.check and not is_good:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

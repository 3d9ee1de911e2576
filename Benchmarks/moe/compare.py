#!/usr/bin/env python3
"""`te bench moe` beside MPI_Alltoallv and gloo, in turn: make bench-moe.

Every round runs each side once, in an order that changes; the medians over the rounds are compared. Of MPI the better of Open MPI
and MPICH counts, and of both ways to add results the better one on each side.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))


def output(command, limit=240, **environment):
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=limit, env={**os.environ, **environment})
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
    if result.returncode or not lines:
        raise RuntimeError(f"{' '.join(command)}: {result.stderr[-800:]}")
    return json.loads(lines[-1])


def sides(args, count, steps, warm_up):
    """The name of each side, and what measures it once."""
    ep = str(args.ep)
    for mode in args.sums.split(","):
        yield f"te {mode}", lambda mode=mode: output(
            [args.te, "bench", "moe", "--ep", ep, "--tokens", str(count), "--steps", str(steps), "--sum", mode, "--json"])
        for mpi, run in {
            "openmpi": ["mpirun.openmpi", "--allow-run-as-root", "--oversubscribe", "--mca", "mpi_yield_when_idle", "1",
                        "--mca", "btl", "self,vader"],
            "mpich": ["mpirun.mpich"],
        }.items():
            if mpi in args.against.split(","):
                yield f"{mpi} {mode}", lambda mode=mode, mpi=mpi, run=run: output(
                    run + ["-n", ep, f"{args.build}/mpi_peer_{mpi}", str(count), str(warm_up), str(steps), mode])
    if "gloo" in args.against.split(","):
        yield "gloo sender", lambda: output(
            [args.python, f"{HERE}/gloo_peer.py", ep, str(count), str(min(warm_up, 3)), str(min(steps, 30))],
            GLOO_SOCKET_IFNAME="lo")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--te", default=f"{ROOT}/.build/release/te")
    parser.add_argument("--python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--build", default=f"{ROOT}/.build/moe", help="where the MPI programs are built")
    parser.add_argument("--ep", type=int, default=2)
    parser.add_argument("--tokens", default="1,32,128,512")
    parser.add_argument("--sums", default="sender,receiver")
    parser.add_argument("--against", default="openmpi,mpich,gloo")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    os.makedirs(args.build, exist_ok=True)
    platform = f"{ROOT}/Sources/CPlatform"
    kernel = f"{args.build}/sum.o"
    subprocess.run(["clang", "-O2", f"-I{platform}/include", "-c", "-o", kernel, f"{platform}/sum.c"], check=True)
    for mpi in ("openmpi", "mpich"):
        if mpi in args.against.split(","):
            subprocess.run(
                [f"mpicc.{mpi}", "-O3", f"-I{platform}/include", "-o", f"{args.build}/mpi_peer_{mpi}", f"{HERE}/mpi_peer.c",
                 kernel], check=True)
    for count in map(int, args.tokens.split(",")):
        steps = max(3, min(200, 6000 // count))
        warm_up = max(2, steps // 5)
        times, ratios = {}, []
        for number in range(args.rounds):
            turn = list(sides(args, count, steps, warm_up))
            for name, measure in turn if number % 2 == 0 else turn[::-1]:
                try:
                    row = measure()
                except RuntimeError as error:
                    if name.startswith("te"):
                        raise
                    print(f"not measured: {name}, {count} tokens: {str(error).strip().splitlines()[-1]}", file=sys.stderr)
                    continue
                times.setdefault(name, []).append(row["us"])
                if name.startswith("te"):
                    ratios.append(row["ratio"])
        medians = {name: statistics.median(values) for name, values in times.items()}
        best = {side: min(v for k, v in medians.items() if k.startswith(side)) for side in ("te", "openmpi", "mpich", "gloo")
                if any(k.startswith(side) for k in medians)}
        mpi = min((v for k, v in best.items() if k in ("openmpi", "mpich")), default=None)
        print(json.dumps({
            "ep": args.ep, "tokens": count, "rounds": args.rounds, "us": {k: round(v, 1) for k, v in medians.items()},
            "over_mpi": round(mpi / best["te"], 2) if mpi else None,
            "over_gloo": round(best["gloo"] / best["te"], 2) if "gloo" in best else None,
            "copied_over_memcpy": round(max(ratios), 2)}), flush=True)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Measures `te bench p2p --provider verbs` and perftest in turns on the same two NICs, and compares them.

Runs where there are RDMA NICs: on a host that has two ports on one network, or in a guest with soft-RoCE
(`make bench-rdma`). Each round runs `te` and then perftest, both as whole programs; the table has the median over the
rounds of the ratios of one round. Above 1, ours is faster. See docs/benchmarks.md.
"""
import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time

# (test of te, size, perftest's program, what is required)
BANDWIDTH = [("write", 65536, 0.95), ("write", 1 << 20, 0.95), ("paged", 4096, 0.95)]
LATENCY = ["pingpong manual", "pingpong busy"]
LATENCY_LIMIT = 1.15


def run(command, timeout):
    """A program's output; it is ended, and its children with it, when the time is over."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True)
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        sys.exit(f"{' '.join(command)}: not finished after {timeout} s")
    if process.returncode:
        sys.exit(f"{' '.join(command)}: status {process.returncode}\n{output}")
    return output


def ours(options, tests, sizes, *flags):
    output = run(
        [options.te, "bench", "p2p", "--provider", "verbs", "--nics", options.source, "--target-nics", options.target,
         "--tests", tests, "--sizes", ",".join(map(str, sizes)), "--against", "none", "--seconds", str(options.seconds),
         "--repeats", "1", "--region-mi-b", "64", "--json", *flags], options.timeout)
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return {(name(row), row["size"]): row.get("gbps", row.get("lat_us_p50")) for row in rows}


def name(row):
    """The test of a row; of a ping-pong with its progress: perftest's own loop is `manual`."""
    return " ".join(filter(None, [row["test"], row.get("progress") if row["test"] == "pingpong" else None]))


def perftest(options, program, size, port):
    """GB/s of a bandwidth test, or microseconds one way of a latency test (its typical value)."""
    common = [program, "-F", "-x", str(options.gid), "-s", str(size), "-p", str(port)]
    if program == "ib_write_bw":
        common += ["-D", str(max(1, round(options.seconds))), "--report_gbits"]
    else:
        common += ["-n", str(options.pings)]
    server = subprocess.Popen(
        [*common, "-d", options.target], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(options.start)
        output = run([*common, "-d", options.source, options.address], options.timeout)
        server.wait(timeout=options.timeout)
    finally:
        server.kill()
        server.wait()
    for line in output.splitlines():
        words = line.split()
        if words and words[0] == str(size) and all(re.fullmatch(r"[\d.]+", word) for word in words):
            return float(words[3]) / 8 if program == "ib_write_bw" else float(words[4])
    sys.exit(f"{program}: no line for {size} bytes in\n{output}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--te", default=".build/release/te")
    parser.add_argument("--source", default="rxa0", help="the device that writes")
    parser.add_argument("--target", default="rxb0", help="the device that is written to")
    parser.add_argument("--address", default="127.0.0.1", help="where perftest's client finds its server, over TCP")
    parser.add_argument("--gid", type=int, default=1, help="perftest's GID index; te chooses by its rule")
    parser.add_argument("--tests", default="write,paged,pingpong", help="which of write, paged and pingpong")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2, help="for each measurement")
    parser.add_argument("--pings", type=int, default=1000)
    parser.add_argument("--start", type=float, default=1.5, help="seconds that perftest's server has to start")
    parser.add_argument("--timeout", type=float, default=120, help="for each program")
    parser.add_argument("--soft-nic", action="store_true", help="see te bench p2p --help")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--check", action="store_true", help="end with status 1 when a row is below what is required")
    options = parser.parse_args()

    soft = ["--soft-nic"] if options.soft_nic else []
    figures = {}
    for number in range(options.rounds):
        for index, (test, size, _) in enumerate(row for row in BANDWIDTH if row[0] in options.tests.split(",")):
            mine = ours(options, test, [size], *soft)[test, size]
            pair = (mine, perftest(options, "ib_write_bw", size, 18500 + 10 * number + index))
            figures.setdefault((test, size), []).append(pair)
        if "pingpong" in options.tests.split(","):
            rows = ours(options, "pingpong", [8])
            theirs = perftest(options, "ib_write_lat", 8, 18505 + 10 * number)
            for test in LATENCY:
                figures.setdefault((test, 8), []).append((rows[test, 8], theirs))

    below = False
    if not options.json:
        print(f"{'test':<16} {'size':>8} {'unit':>5} {'te':>9} {'perftest':>9} {'ratio':>6} {'required':>8}  check")
    required = {(test, size): limit for test, size, limit in BANDWIDTH} | {(test, 8): 1 / LATENCY_LIMIT for test in LATENCY}
    for (test, size), pairs in figures.items():
        is_latency = test in LATENCY
        ratio = statistics.median((theirs / mine if is_latency else mine / theirs) for mine, theirs in pairs)
        mine, theirs = (statistics.median(side) for side in zip(*pairs))
        check = "ok" if ratio >= required[test, size] else "below"
        below |= check == "below"
        if options.json:
            print(json.dumps({
                "provider": "verbs", "peer": "perftest", "test": test, "size": size,
                ("lat_us_p50" if is_latency else "gbps"): mine, "theirs": theirs, "ratio": round(ratio, 4),
                "required": round(required[test, size], 3), "check": check, "rounds": options.rounds}), flush=True)
        else:
            unit = "us" if is_latency else "GB/s"
            print(f"{test:<16} {size:>8} {unit:>5} {mine:>9.4f} {theirs:>9.4f} {ratio:>6.3f} {required[test, size]:>8.3f}  {check}")
    sys.exit(1 if options.check and below else 0)


main()

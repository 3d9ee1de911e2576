#!/usr/bin/env python3
"""Measures this library and other transfer libraries in turns on the same two cores, and compares them.

Each round runs `te bench p2p` and then the peer, both as whole programs. A ratio above 1 means that ours is faster; the
table has the median over the rounds of the ratios of one round. See docs/benchmarks.md.
"""
import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Optional

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"
PACKAGES = ["numpy", "nixl-cu12==1.5.1", "mooncake-transfer-engine-non-cuda==0.3.13.post1"]
PEERS = ["libfabric", "nixl", "mooncake", "ucx"]
WINDOWS = {4096: 64, 65536: 32, 262144: 16, 1 << 20: 8, 32 << 20: 2}


class NotMeasured(Exception):
    """Why a peer has no figures, and what to do about it."""


# MARK: Processes


def stop(process):
    """Ends a process that we started, and what it has started: it leads a process group of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def spawn(command, environment=None):
    return subprocess.Popen(
        [str(word) for word in command], env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def output_of(command, timeout, environment=None):
    """Runs a command to its end and returns what it printed."""
    process = spawn(command, environment)
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise NotMeasured(f"{Path(command[0]).name} did not end within {timeout:.0f} s") from None
    finally:
        stop(process)
    if process.returncode:
        last = (errors.strip().splitlines() or ["it said nothing"])[-1]
        raise NotMeasured(f"{Path(command[0]).name} ended with status {process.returncode}: {last}")
    return output


def json_lines(text):
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def measured(rows):
    """The value of each test and size: GB/s, or microseconds."""
    return {(row["test"], row["size"]): row.get("gbps", row.get("us")) for row in rows}


# MARK: The two sides of a comparison


def run_ours(options, contest):
    """Our figures by test and size; ping-pong by progress mode."""
    command = [options.te, "bench", "p2p", "--provider", contest.provider, "--tests", contest.tests,
               "--against", "none", "--repeats", 1, "--seconds", options.seconds, "--json", *contest.arguments]
    names = {"write": "write", "write-hot": "write-hot", "paged": "pages"}
    figures = {}
    for row in json_lines(output_of(command, 60 + 30 * options.seconds)):
        if row["test"] == "pingpong":
            figures["pingpong-" + row["progress"], row["size"]] = row["lat_us_p50"]
        elif row["test"] in names:
            figures[names[row["test"]], row["size"]] = row["gbps"]
    return figures


def run_python(script, module, package, mode):
    def run(options):
        found = f"import importlib.util as u, sys; sys.exit(not any(map(u.find_spec, {module!r})))"
        try:
            output_of([options.python, "-c", found], 30)
        except (NotMeasured, OSError):
            raise NotMeasured(f"install {package} for {options.python}, or run compare.py --setup") from None
        return measured(json_lines(output_of([options.python, HERE / script, mode, options.seconds],
                                             90 + 30 * options.seconds)))
    return run


def run_libfabric(options):
    program = options.scratch / "libfabric"
    if not program.exists():
        compiler = shutil.which("cc") or shutil.which("gcc")
        if not compiler:
            raise NotMeasured("install a C compiler (Debian: apt install gcc libfabric-dev)")
        try:
            output_of([compiler, "-std=gnu11", "-O2", "-o", program, HERE / "libfabric.c", "-lfabric"], 60)
        except NotMeasured as error:
            raise NotMeasured(f"install libfabric's headers (Debian: apt install libfabric-dev); {error}") from None
    return measured(json_lines(output_of([program, "tcp", options.seconds], 60 + 20 * options.seconds)))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ucx(options):
    """ucx_perftest's put bandwidth by size: it writes one buffer over and over."""
    tool = shutil.which("ucx_perftest")
    if not tool:
        raise NotMeasured("install UCX's ucx_perftest (Debian: apt install ucx-utils)")
    environment = {"UCX_TLS": "posix,self", "UCX_NET_DEVICES": "lo", "UCX_WARN_UNUSED_ENV_VARS": "n"}
    cores = sorted(os.sched_getaffinity(0))
    figures = {}
    for size, window in WINDOWS.items():
        assumed_rate = 30e9 if size <= 1 << 20 else 6e9
        count = max(2 * window, int(options.seconds * assumed_rate / size))
        common = [tool, "-t", "ucp_put_bw", "-s", size, "-n", count, "-w", max(window, count // 10), "-O", window,
                  "-p", free_port(), "-f", "-v"]
        server = spawn([*common, "-c", cores[-1]], environment)
        try:
            # The client cannot wait for the server, and a probe would be taken for the client.
            deadline = time.monotonic() + 5
            while True:
                try:
                    output = output_of([*common, "-c", cores[0], "127.0.0.1"], 30 + 10 * options.seconds, environment)
                    break
                except NotMeasured:
                    if time.monotonic() > deadline or server.poll() is not None:
                        raise
                    time.sleep(0.1)
        finally:
            stop(server)
        last = output.strip().splitlines()[-1].split(",")
        figures["write-hot", size] = float(last[5]) * (1 << 20) / 1e9  # overall_bw, in MiB/s
    return figures


# MARK: What is compared with what


@dataclasses.dataclass
class Contest:
    """A peer in all its modes, of which the best counts, against one of our providers."""
    peer: str
    transport: str
    provider: str
    tests: str
    modes: dict[str, Callable]
    #: the ratio that a test and size must reach, if any
    required: Callable[[str, int], Optional[float]]
    #: which of our ping-pong rows stands against the peer's
    progress: str = "busy"
    #: more arguments of te bench p2p
    arguments: tuple[str, ...] = ()

    def ours_for(self, test):
        return f"pingpong-{self.progress}" if test.startswith("pingpong") else test


def required_of_libfabric(test, size):
    if test.startswith("pingpong"):
        return None
    return 3.0 if (test, size) == ("pages", 1024) else 0.95


def required_of_nixl_shm(test, size):
    if test != "pages":
        return 1.0
    return 5.0 if size <= 8192 else 2.0


def nixl(mode):
    return run_python("nixl_peer.py", ["nixl", "nixl_cu12"], "nixl-cu12 and numpy", mode)


def mooncake(mode):
    return run_python("mooncake_peer.py", ["mooncake"], "mooncake-transfer-engine-non-cuda and numpy", mode)


ALL = "write,paged,pingpong"
CONTESTS = [
    Contest("libfabric", "tcp", "tcp", ALL, {"raw": run_libfabric}, required_of_libfabric, "manual"),
    Contest("nixl", "shm", "shm", ALL, {"default": nixl("default"), "errmode none": nixl("none")},
            required_of_nixl_shm),
    Contest("nixl", "cma", "shm", "write,paged", {"default": nixl("default"), "errmode none": nixl("none")},
            lambda test, size: None, arguments=("--caller-memory",)),
    Contest("nixl", "tcp", "tcp", ALL, {"UCX tcp": nixl("tcp")}, lambda test, size: 1.0),
    Contest("mooncake", "tcp", "tcp", ALL, {"default": mooncake("default"), "pool": mooncake("pool")},
            lambda test, size: 1.0),
    Contest("ucx", "posix", "shm", "hot", {"put_bw": run_ucx}, lambda test, size: 0.9),
]


def is_latency(test):
    return test.startswith("pingpong")


def best(figures, test):
    return min(figures) if is_latency(test) else max(figures)


def compare(contest, options):
    """Rows for a contest, and a line for each mode that could not be measured."""
    rounds, reasons = [], {}
    for number in range(options.rounds):
        say(f"{contest.peer} {contest.transport}: round {number + 1} of {options.rounds}")
        ours = run_ours(options, contest)
        theirs = {}
        for mode, run in contest.modes.items():
            if mode in reasons:
                continue
            try:
                theirs[mode] = run(options)
            except NotMeasured as error:
                reasons[mode] = str(error)
        if not theirs:
            break
        rounds.append((ours, theirs))
    missing = [{"peer": contest.peer, "transport": contest.transport, "mode": mode, "not_measured": reason}
               for mode, reason in reasons.items()]
    tests = dict.fromkeys(
        key for _, theirs in rounds for figures in theirs.values() for key in figures
        if not is_latency(key[0]) or "pingpong" in contest.tests)
    return [row(contest, key, rounds) for key in tests], missing


def row(contest, key, rounds):
    test, size = key
    pairs = []
    for ours, theirs in rounds:
        figures = [mode[key] for mode in theirs.values() if key in mode]
        if figures and (contest.ours_for(test), size) in ours:
            pairs.append((ours[contest.ours_for(test), size], best(figures, test)))
    if not pairs:
        raise SystemExit(f"te bench p2p --provider {contest.provider} has no row for {test} of {size} bytes")
    ratios = [theirs / ours if is_latency(test) else ours / theirs for ours, theirs in pairs]
    ratio = statistics.median(ratios)
    required = contest.required(test, size)
    return {
        "peer": contest.peer, "transport": contest.transport, "test": test, "size": size,
        "unit": "us" if is_latency(test) else "GB/s",
        "ours": statistics.median(ours for ours, _ in pairs),
        "theirs": statistics.median(theirs for _, theirs in pairs),
        "ratio": ratio, "spread": (max(ratios) - min(ratios)) / ratio, "rounds": len(ratios), "required": required,
        "check": "-" if required is None else "ok" if ratio >= required else "below",
    }


# MARK: Output


def say(text):
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def print_table(rows):
    if not rows:
        return
    def cell(name, value):
        if value is None:
            return "-"
        if name == "spread":
            return f"{value:.0%}"
        return f"{value:.3f}" if isinstance(value, float) else str(value)
    table = [list(rows[0])] + [[cell(name, value) for name, value in row.items()] for row in rows]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    left = {"peer", "transport", "test", "unit", "check"}
    for line in table:
        cells = [text.ljust(width) if name in left else text.rjust(width)
                 for name, text, width in zip(table[0], line, widths)]
        print("  ".join(cells).rstrip())


def set_up():
    """Makes a virtual environment with the Python peers.

    Without what they depend on: NIXL asks for PyTorch, gigabytes that nothing here uses.
    """
    print(f"installing {', '.join(PACKAGES)} into {VENV}", file=sys.stderr)
    try:
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True, timeout=120)
        install = [VENV / "bin/python", "-m", "pip", "install", "--quiet", "--no-deps", *PACKAGES]
        subprocess.run(install, check=True, timeout=900)
    except (subprocess.SubprocessError, OSError) as error:
        print(f"note: {error}; what is missing will not be measured", file=sys.stderr)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=",".join(PEERS), help="which of " + ", ".join(PEERS))
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each measurement")
    parser.add_argument("--te", type=Path, default=HERE.parents[1] / ".build/release/te", help="our program")
    parser.add_argument("--python", type=Path, help="the Python that has NIXL and Mooncake")
    parser.add_argument("--setup", action="store_true", help="install NIXL and Mooncake into Benchmarks/peers/.venv")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--check", action="store_true",
                        help="end with status 1 when a row is below what is required, 2 when something is missing")
    options = parser.parse_args()
    options.peers = options.peers.split(",")
    unknown = set(options.peers) - set(PEERS)
    if unknown:
        parser.error(f"unknown peers: {', '.join(sorted(unknown))}")
    if options.rounds < 1 or not 0 < options.seconds <= 60:
        parser.error("at least one round, and from 0 to 60 seconds")
    return options


def main():
    options = parse_arguments()
    # What was started is to end also when we are told to.
    def leave(number, _):
        raise SystemExit(f"ended by signal {number}")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    if options.setup:
        set_up()
    if not options.python:
        options.python = VENV / "bin/python" if (VENV / "bin/python").exists() else Path(sys.executable)
    if not os.access(options.te, os.X_OK):
        raise SystemExit(f"{options.te} is not there; build it: swift build -c release --product te")
    # Everything started from here stays on two cores; every program pins its two sides to one each.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    rows, missing = [], []
    with tempfile.TemporaryDirectory(prefix="te-peers-") as scratch:
        options.scratch = Path(scratch)
        for contest in CONTESTS:
            if contest.peer in options.peers:
                try:
                    more, reasons = compare(contest, options)
                except NotMeasured as error:
                    raise SystemExit(f"our own run failed: {error}")
                rows += more
                missing += reasons
                if options.json:
                    for line in [*more, *reasons]:
                        print(json.dumps(line), flush=True)
    say("")
    if not options.json:
        print_table(rows)
        for line in missing:
            print(f"not measured: {line['peer']} {line['transport']} ({line['mode']}): {line['not_measured']}")
    if options.check:
        if any(line["check"] == "below" for line in rows):
            return 1
        if missing:
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

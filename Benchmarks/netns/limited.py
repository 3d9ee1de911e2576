#!/usr/bin/env python3
"""Measures writes over several NICs of limited bandwidth: two network namespaces and a switch between them.

Every NIC is a veth whose two directions `tc tbf` limits. tbf counts Ethernet, IP and TCP headers too, so that payload alone
cannot reach a share of 1; beside the share of the rate, the table has the share of what plain TCP sockets, one for each
pair of NICs, reach in the same namespaces. Needs root. See docs/benchmarks.md.
"""
import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PREFIX = "te-limited-"
MTU = 9000
# A whole offloaded packet fits into the burst; the queue is long enough for TCP to fill the link.
SHAPING = ["burst", "128kb", "limit", "4mb"]
WRITE_BYTES = 64 << 20
PAGE_BYTES = 64 << 10
PAGES_REQUIRED = 0.90


@dataclasses.dataclass
class Case:
    """The NICs of the two sides, in units of the rate that --mbit gives."""
    name: str
    local: list[int]
    remote: list[int]
    # The share that a write has to reach; pages, one list after the other, PAGES_REQUIRED.
    required: float

    @property
    def available(self):
        return min(sum(self.local), sum(self.remote))


CASES = [
    Case("4x1", [1, 1, 1, 1], [1, 1, 1, 1], 0.95),
    Case("2x2:4x1", [2, 2], [1, 1, 1, 1], 0.90),
    Case("2+1", [2, 1], [2, 1], 0.90),
]


def rails(local, remote):
    """Pairs of NICs that share the traffic in proportion: both sides end to end on one scale."""
    pairs, ends = [], [[sum(side[:i + 1]) / sum(side) for i in range(len(side))] for side in (local, remote)]
    near = far = 0
    while near < len(local) and far < len(remote):
        pairs.append((near, far))
        a, b = ends[0][near], ends[1][far]
        near += a <= b + 1e-9
        far += b <= a + 1e-9
    return pairs


# MARK: Processes


def run(*command, timeout=30):
    """Runs a command to its end; returns what it printed."""
    command = [str(word) for word in command]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, start_new_session=True)
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise SystemExit(f"{' '.join(command)}: no end within {timeout:.0f} s") from None
    finally:
        stop(process)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: {errors.strip() or output.strip()}")
    return output


def stop(process):
    """Ends a process that we started and what it has started: it leads a process group of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# MARK: Network


class Network:
    """Two namespaces, `a` and `b`, whose NICs are ports of a switch in a third."""

    def __init__(self, local, remote, mbit):
        self.names = {side: f"{PREFIX}{os.getpid()}-{side}" for side in ("a", "b", "switch")}
        self.sides = {"a": local, "b": remote}
        self.mbit = mbit

    def __enter__(self):
        try:
            self.build()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_):
        self.remove()

    def build(self):
        for name in self.names.values():
            run("ip", "netns", "add", name)
        switch = self.names["switch"]
        run("ip", "-n", switch, "link", "add", "sw0", "type", "bridge")
        run("ip", "-n", switch, "link", "set", "sw0", "mtu", MTU, "up")
        for side, rates in self.sides.items():
            # Several NICs in one network: each answers for its own address only, and sends what comes from it.
            name = self.names[side]
            run("ip", "-n", name, "link", "set", "lo", "up")
            for setting, value in {"arp_ignore": 1, "arp_announce": 2, "rp_filter": 0}.items():
                run("ip", "netns", "exec", name, "sh", "-c", f"echo {value} > /proc/sys/net/ipv4/conf/all/{setting}")
            for number, rate in enumerate(rates):
                self.add_nic(side, number, rate * self.mbit)

    def add_nic(self, side, number, mbit):
        name, switch, nic, port = self.names[side], self.names["switch"], f"nic{number}", f"port-{side}{number}"
        address, table = self.address(side, number), 100 + number
        run("ip", "link", "add", nic, "mtu", MTU, "netns", name, "type", "veth",
            "peer", "name", port, "mtu", MTU, "netns", switch)
        run("ip", "-n", switch, "link", "set", port, "master", "sw0", "up")
        run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", nic)
        run("ip", "-n", name, "link", "set", nic, "up")
        run("ip", "-n", name, "route", "add", "10.77.0.0/24", "dev", nic, "src", address, "table", table)
        run("ip", "-n", name, "rule", "add", "from", address, "table", table)
        for place, device in ((name, nic), (switch, port)):
            run("tc", "-n", place, "qdisc", "add", "dev", device, "root", "tbf", "rate", f"{mbit}mbit", *SHAPING)

    def remove(self):
        for name in self.names.values():
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL, timeout=30, check=False)

    @staticmethod
    def address(side, number):
        return f"10.77.0.{number + (1 if side == 'a' else 101)}"

    def addresses(self, side):
        return [self.address(side, number) for number in range(len(self.sides[side]))]

    def nics(self, side):
        """As te takes them: address and speed."""
        return ",".join(f"{address}@{rate * self.mbit}"
                        for address, rate in zip(self.addresses(side), self.sides[side]))

    def inside(self, side):
        return ["ip", "netns", "exec", self.names[side]]

    def sent(self):
        """Bytes that each NIC of `a` has sent."""
        links = {link["ifname"]: link for link in
                 json.loads(run("ip", "-n", self.names["a"], "-json", "-s", "link"))}
        return [links[f"nic{number}"]["stats64"]["tx"]["bytes"] for number in range(len(self.sides["a"]))]


def remove_stale():
    """Removes what an earlier run left behind that was killed."""
    for line in run("ip", "netns", "list").splitlines():
        name = line.split()[0]
        if name.startswith(PREFIX) and not Path("/proc", name[len(PREFIX):].split("-")[0]).exists():
            run("ip", "netns", "del", name)


# MARK: Measurements


def measure_sockets(network, case, seconds):
    """Bytes per second of one plain connection for each pair of NICs."""
    pairs = rails(case.local, case.remote)
    script = [sys.executable, HERE / "sockets.py"]
    receiver = subprocess.Popen(
        [*map(str, [*network.inside("b"), *script, "receive", len(pairs), ",".join(network.addresses("b")), seconds])],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True)
    sender = None
    signal.alarm(int(30 + seconds))
    try:
        port = receiver.stdout.readline().split()[1]
        targets = ",".join(f"{network.address('a', near)}={network.address('b', far)}:{port}" for near, far in pairs)
        sender = subprocess.Popen([*map(str, [*network.inside("a"), *script, "send", targets])],
                                  stdin=subprocess.DEVNULL, start_new_session=True)
        return float(receiver.stdout.readline())
    finally:
        signal.alarm(0)
        for process in (receiver, sender):
            if process:
                stop(process)


def measure_ours(network, options, test, size):
    """Bytes per second of payload that the engine moves, and how its NICs have shared it."""
    before = network.sent()
    output = run(
        *network.inside("a"), options.te, "bench", "p2p", "--provider", "tcp", "--nics", network.nics("a"),
        "--target-nics", network.nics("b"), "--target-command", " ".join(network.inside("b")), "--tests", test,
        "--sizes", size, "--seconds", options.seconds, "--repeats", 1, "--against", "none", "--json",
        timeout=60 + 10 * options.seconds)
    sent = [after - earlier for after, earlier in zip(network.sent(), before)]
    return json.loads(output.splitlines()[-1])["gbps"] * 1e9, [count / sum(sent) for count in sent]


def measure(case, options):
    """One row for each test."""
    available = case.available * options.mbit * 1e6 / 8
    figures = {"write": [], "paged": []}
    plain, shares = [], {}
    with Network(case.local, case.remote, options.mbit) as network:
        for number in range(options.rounds):
            say(f"{case.name}: round {number + 1} of {options.rounds}")
            plain.append(measure_sockets(network, case, options.seconds))
            for test, size in (("write", WRITE_BYTES), ("paged", PAGE_BYTES)):
                rate, shares[test] = measure_ours(network, options, test, size)
                figures[test].append(rate)
    for test, size in (("write", WRITE_BYTES), ("paged", PAGE_BYTES)):
        share = statistics.median(figures[test]) / available
        required = case.required if test == "write" else PAGES_REQUIRED
        yield {
            "nics": case.name, "test": test, "size": size, "gbit_available": available * 8 / 1e9,
            "gbit_payload": statistics.median(figures[test]) * 8 / 1e9, "share": share,
            "gbit_sockets": statistics.median(plain) * 8 / 1e9,
            "share_of_sockets": statistics.median(ours / theirs for ours, theirs in zip(figures[test], plain)),
            "carried": "/".join(f"{part:.0%}" for part in shares[test]), "required": required,
            "check": "ok" if share >= required else "below",
        }


# MARK: Output


def say(text):
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def print_table(rows):
    def cell(value):
        return f"{value:.3f}" if isinstance(value, float) else str(value)
    table = [list(rows[0])] + [[cell(value) for value in row.values()] for row in rows]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths)))


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(case.name for case in CASES),
                        help="which of " + ", ".join(case.name for case in CASES))
    parser.add_argument("--mbit", type=int, default=1000, help="Mbit/s of a NIC of speed 1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2, help="for each measurement")
    parser.add_argument("--te", type=Path, default=HERE.parents[1] / ".build/release/te")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--check", action="store_true", help="end with status 1 when a row is below what is required")
    options = parser.parse_args()
    chosen = options.cases.split(",")
    options.cases = [case for case in CASES if case.name in chosen]
    if len(options.cases) != len(chosen):
        parser.error("--cases takes " + ", ".join(case.name for case in CASES))
    if options.rounds < 1 or options.mbit < 1 or not 0 < options.seconds <= 60:
        parser.error("at least one round, 1 Mbit/s, and from 0 to 60 seconds")
    return options


def main():
    options = parse_arguments()
    if os.geteuid() != 0:
        raise SystemExit("network namespaces and tc need root: run it with sudo, or as root of a container that has "
                         "CAP_NET_ADMIN and CAP_SYS_ADMIN")
    for tool in ("ip", "tc"):
        if not shutil.which(tool):
            raise SystemExit(f"{tool} is not there; install it (Debian: apt install iproute2)")
    if not os.access(options.te, os.X_OK):
        raise SystemExit(f"{options.te} is not there; build it: swift build -c release --product te")
    # Namespaces are to go away also when we are told to end.
    def leave(number, _):
        raise SystemExit(f"ended by signal {number}")
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, leave)
    remove_stale()
    rows = []
    for case in options.cases:
        for row in measure(case, options):
            rows.append(row)
            if options.json:
                print(json.dumps(row), flush=True)
    say("")
    if not options.json:
        print_table(rows)
    return 1 if options.check and any(row["check"] == "below" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())

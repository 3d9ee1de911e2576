"""What the Python peers have in common: sizes, two processes on two cores, page lists, contents, result lines."""
import ctypes
import json
import mmap
import multiprocessing
import os
import signal
import sys

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import numpy

REGION_BYTES = 256 << 20
WINDOWS = {4096: 64, 65536: 32, 262144: 16, 1 << 20: 8, 32 << 20: 2}
PAGE_SIZES = [1024, 8192, 16384, 65536]
PAGES = 1024
SETS = 4
WARM_UP = 0.05


def print_rate(test, size, byte_count, seconds):
    print(json.dumps({"test": test, "size": size, "gbps": byte_count / seconds / 1e9}), flush=True)


def print_latency(test, samples):
    """`samples` are seconds of whole round trips."""
    print(json.dumps({"test": test, "size": 8, "us": sorted(samples)[len(samples) // 2] / 2 * 1e6}), flush=True)


class Channel:
    """The initiator's end of the conversation with the target: one answer to each request."""

    def __init__(self, connection):
        self.connection = connection

    def receive(self):
        answer = self.connection.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def ask(self, *request):
        self.connection.send(request)
        return self.receive()


def run(initiator, target, seconds, pinned=True):
    """Forks; calls `initiator(channel, seconds)` here and `target(connection)` in the child, each on its own core.

    Never returns, and runs no exit handlers: the libraries' own do not all survive that. An alarm bounds both
    processes.
    """
    limit = 60 + int(30 * seconds)
    cores = sorted(os.sched_getaffinity(0))
    here, there = multiprocessing.Pipe()
    child = os.fork()
    signal.alarm(limit)
    if child == 0:
        here.close()
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if pinned:
        os.sched_setaffinity(0, {cores[0] if child else cores[min(1, len(cores) - 1)]})
    status = 0
    try:
        if child:
            there.close()
            initiator(Channel(here), seconds)
            here.send(("end",))
        else:
            target(there)
    except Exception as error:
        status = 1
        if child:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        else:
            try:
                there.send(error if isinstance(error, RuntimeError) else RuntimeError(repr(error)))
            except OSError:
                pass
    if child:
        if status:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def zeroed_region():
    """256 MiB of ordinary memory, all pages present."""
    region = numpy.frombuffer(mmap.mmap(-1, REGION_BYTES), dtype=numpy.uint8)
    region[:] = 0
    return region


def page_lists(size):
    """Source and target pages of each set: random, none twice."""
    random = numpy.random.default_rng(size)
    total = REGION_BYTES // size
    orders = [random.permutation(total)[:PAGES * SETS].reshape(SETS, PAGES).astype(numpy.int32) for _ in range(2)]
    return list(zip(*orders))


def fill(region):
    """Gives every 64-bit word of the region a value of its own."""
    words = region.view(numpy.uint64)
    words[:] = numpy.arange(1, len(words) + 1, dtype=numpy.uint64)


def is_right(region, size, sources, targets):
    """Whether exactly the target pages have what a filled region has in the source pages; the rest must be zero."""
    words = region.view(numpy.uint64).reshape(-1, size // 8)
    first = numpy.asarray(sources, dtype=numpy.uint64) * numpy.uint64(size // 8)
    expected = first[:, None] + numpy.arange(1, size // 8 + 1, dtype=numpy.uint64)
    untouched = numpy.ones(len(words), dtype=bool)
    untouched[targets] = False
    return bool((words[targets] == expected).all()) and not words[untouched].any()


def answer_content(connection, region, request):
    """What a target does for `clear` and `compare`."""
    if request[0] == "clear":
        region[:] = 0
        connection.send(True)
    elif request[0] == "compare":
        connection.send(is_right(region, *request[1:]))
    else:
        raise RuntimeError(f"unknown request {request[0]}")


def verify(channel, test, size, sources, targets, write):
    """Has the target's memory compared after one `write()`."""
    channel.ask("clear")
    write()
    if not channel.ask("compare", size, sources, targets):
        raise RuntimeError(f"{test} of {size} bytes: wrong content")

"""What the peers have in common: two trainers and two receivers as processes, the same slices, contents, timing.

The model is that of `te bench weights`: matrices of BF16 whose rows are halved between the trainers; each matrix goes whole to one of
the receivers, in turn. A slice is what one trainer has of one matrix.
"""
import ctypes
import json
import mmap
import multiprocessing
import os
import signal
import sys
import time

import numpy

TRAINERS, RECEIVERS, WIDTH = 2, 2, 4096


def matrices(mebibytes):
    """Bytes of each matrix; all have an even number of rows."""
    layers = max(1, mebibytes // 128)
    rows = max(256, (mebibytes << 20) // layers // 2 // (2 * WIDTH) // 256 * 256)
    return [rows * WIDTH * 2] * (2 * layers)


def slices(mebibytes):
    """(trainer, offset there, receiver, offset there, bytes), and the bytes of each process's region."""
    result, ends = [], [0] * (TRAINERS + RECEIVERS)
    for number, size in enumerate(matrices(mebibytes)):
        receiver = number % RECEIVERS
        place = ends[TRAINERS + receiver]
        for trainer in range(TRAINERS):
            half = size // TRAINERS
            result.append((trainer, ends[trainer], receiver, place + trainer * half, half))
            ends[trainer] += half
        ends[TRAINERS + receiver] += size
    return result, ends


def region(size):
    """Ordinary memory, all pages present."""
    memory = numpy.frombuffer(mmap.mmap(-1, size), dtype=numpy.uint8)
    memory[:] = 0
    return memory


def fill(memory, trainer, version):
    """Gives every 64-bit word a value of its own."""
    words = memory.view(numpy.uint64)
    words[:] = numpy.arange(len(words), dtype=numpy.uint64) + numpy.uint64((trainer + 1) << 48 | version << 40)


def is_right(memory, receiver, version, all_slices):
    """Whether each slice has what its trainer filled it with."""
    for trainer, there, to, place, size in all_slices:
        if to != receiver:
            continue
        first = (trainer + 1) << 48 | version << 40
        want = numpy.arange(there // 8, (there + size) // 8, dtype=numpy.uint64) + numpy.uint64(first)
        if not (memory[place:place + size].view(numpy.uint64) == want).all():
            return False
    return True


def run(member, mebibytes, repeats, limit=300):
    """Forks the processes; `member(rank, connection, exchange)` makes one.

    A member is an object with `fill(version)`, `push()` (until everything is where it belongs, or has arrived here) and
    `check(version)`. `exchange(value)` gives every process the values of all. Prints the median of the model's bytes over the
    seconds from "go" until the last process is done. Never returns.
    """
    signal.alarm(limit)
    count = TRAINERS + RECEIVERS
    pipes = [multiprocessing.Pipe() for _ in range(count)]
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            signal.alarm(limit)
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            serve(rank, pipes[rank][1], member)
        children.append(child)
    status = 1
    try:
        conversation([here for here, _ in pipes], mebibytes, repeats)
        status = 0
    except (RuntimeError, EOFError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def conversation(ends, mebibytes, repeats):
    def hear(end):
        kind, value = end.recv()
        if kind == "error":
            raise RuntimeError(value)
        return kind, value

    waiting, shared = set(range(len(ends))), {}
    while waiting:
        for rank in sorted(waiting):
            kind, value = hear(ends[rank])
            if kind == "exchange":
                shared[rank] = value
            else:
                waiting.discard(rank)
        if len(shared) == len(ends):
            for end in ends:
                end.send([shared[rank] for rank in range(len(ends))])
            shared = {}

    def all_do(*request):
        for end in ends:
            end.send(request)
        return [hear(end)[1] for end in ends]

    total = sum(matrices(mebibytes))
    rates = []
    for version in range(1, repeats + 3):
        all_do("fill", version)
        begin = time.perf_counter()
        all_do("push")
        rates.append(total / (time.perf_counter() - begin))
        if not all(all_do("check", version)):
            raise RuntimeError(f"wrong content in version {version}")
    rates = sorted(rates[2:])
    print(json.dumps({"gbps": rates[len(rates) // 2] / 1e9}), flush=True)


def serve(rank, connection, make):
    try:
        def exchange(value):
            connection.send(("exchange", value))
            return connection.recv()
        member = make(rank, exchange)
        connection.send(("ready", None))
        while True:
            request, *arguments = connection.recv()
            connection.send((request, getattr(member, request)(*arguments)))
    except EOFError:
        pass
    except Exception as error:  # whatever a library throws, the parent prints it
        try:
            connection.send(("error", f"{type(error).__name__}: {error}"))
        except OSError:
            pass
    os._exit(0)

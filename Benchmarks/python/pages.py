#!/usr/bin/env python3
"""Page lists from Python between two processes, as `te bench p2p --tests paged` and nixl_peer.py write them.

usage: pages.py ours|nixl-default|nixl-none SECONDS

`ours` also measures a loop in C over the same engine, lists and target (`native`), in turns with Python's.
"""
import ctypes
import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "peers"))
import pair  # noqa: E402

SIZES = [1024, 4096, 16384]
IMMEDIATE = 7


def ours_target(connection):
    import numpy
    import transfer_engine as te

    with te.Engine("target", progress="manual") as engine:
        region = engine.allocate(pair.REGION_BYTES)
        connection.send(region.descriptor)
        memory = numpy.asarray(region)
        while True:
            # Asleep meanwhile, as a process is that awaits.
            request = connection.recv()
            if request[0] == "end":
                break
            if request[0] == "await":
                while not engine.consume(IMMEDIATE, request[1]):
                    engine.progress()
                connection.send(True)
            else:
                pair.answer_content(connection, memory, request)
        del memory


def native_loop():
    """native_loop.c, compiled against the library that Python uses."""
    package = Path(importlib.util.find_spec("transfer_engine").origin).parent
    with tempfile.TemporaryDirectory() as scratch:
        library = f"{scratch}/native_loop.so"
        subprocess.run(
            ["cc", "-O2", "-shared", "-fPIC", "-I", HERE.parent.parent / "Sources/CTransferEngine/include", "-o", library,
             HERE / "native_loop.c", package / "libtransferengine.so.0"], check=True)
        import transfer_engine  # noqa: F401  loads the library

        loop = ctypes.CDLL(library).native_loop
    loop.restype = ctypes.c_long
    loop.argtypes = [ctypes.c_uint64] * 3 + [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64,
                                             ctypes.c_uint32, ctypes.c_double]
    return loop


def ours(channel, seconds):
    import transfer_engine as te

    native = native_loop()
    with te.Engine("initiator", progress="manual") as engine:
        region = engine.allocate(pair.REGION_BYTES)
        target = engine.attach(channel.receive())
        memory = region.numpy()
        pair.fill(memory)
        del memory
        for size in SIZES:
            lists = pair.page_lists(size)

            def write(number):
                a, b = lists[number % pair.SETS]
                engine.write_pages(size, region, a, target, b, immediate=IMMEDIATE).wait()

            def checked():
                write(0)
                channel.ask("await", pair.PAGES)

            def in_python(duration):
                count = 0
                begin = time.perf_counter()
                while time.perf_counter() - begin < duration:
                    write(count)
                    count += 1
                return count

            pointers = [numbers.ctypes.data for pages in lists for numbers in pages]
            table = (ctypes.c_void_p * len(pointers))(*pointers)

            def in_c(duration):
                return native(engine._handle, region._handle, target._handle, table, pair.SETS, pair.PAGES, size,
                              IMMEDIATE, duration)

            pair.verify(channel, "pages", size, *lists[0], checked)
            loops = {"pages": in_python, "native": in_c}
            rates = {test: [] for test in loops}
            for turn in range(6):
                for test, loop in loops.items():
                    begin = time.perf_counter()
                    count = loop(seconds / 5 if turn else pair.WARM_UP)
                    channel.ask("await", count * pair.PAGES)
                    if turn:
                        rates[test].append(count * pair.PAGES * size / (time.perf_counter() - begin))
            for test in loops:
                pair.print_rate(test, size, sorted(rates[test])[2], 1)


def nixl(channel, seconds, mode):
    import nixl_peer

    this = nixl_peer.Initiator(channel, mode)
    for size in SIZES:
        this.measure_pages(size, seconds)


def nixl_target(connection, mode):
    import nixl_peer

    nixl_peer.target(connection, mode)


if __name__ == "__main__":
    which, _, mode = sys.argv[1].partition("-")
    if which == "ours":
        pair.run(ours, ours_target, float(sys.argv[2]))
    else:
        pair.run(lambda channel, seconds: nixl(channel, seconds, mode),
                 lambda connection: nixl_target(connection, mode), float(sys.argv[2]))

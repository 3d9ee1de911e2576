#!/usr/bin/env python3
"""Page lists from Python between two processes, as `te bench p2p --tests paged` and nixl_peer.py write them.

usage: pages.py ours|nixl-default|nixl-none SECONDS
"""
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "peers"))
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
        while (request := connection.recv())[0] != "end":
            if request[0] == "await":
                while not engine.consume(IMMEDIATE, request[1]):
                    engine.progress()
                connection.send(True)
            else:
                pair.answer_content(connection, memory, request)
        del memory


def ours(channel, seconds):
    import transfer_engine as te

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

            pair.verify(channel, "pages", size, *lists[0], checked)
            for phase in (pair.WARM_UP, seconds):
                count = 0
                begin = time.perf_counter()
                while time.perf_counter() - begin < phase:
                    write(count)
                    count += 1
                channel.ask("await", count * pair.PAGES)
                elapsed = time.perf_counter() - begin
            pair.print_rate("pages", size, count * pair.PAGES * size, elapsed)


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

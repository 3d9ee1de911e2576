"""Memory and files after 10 000 cycles of everything that is made and released."""
import asyncio
import gc
import os

import numpy

import transfer_engine as te

CYCLES = 10_000
SLACK = 4 << 20  # a leak of 500 bytes a cycle would be 5 MB


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def files():
    return len(os.listdir("/proc/self/fd"))


def cycle(pair):
    with pair.b.allocate(4096) as target, pair.a.register(bytearray(4096)) as source:
        with pair.a.attach(target.descriptor) as remote, pair.a.group([remote]) as group:
            with pair.a.watch(source, 0, print):
                pair.a.write_pages(64, source, [1, 2], remote, numpy.array([3, 4]), immediate=1).wait()
                pair.a.scatter(source, [(0, 8, 0)], group, immediate=1).wait()
                assert pair.b.consume(1, 3)
        view = numpy.asarray(target)
        assert view[64 * 3] == 0
        del view


def failing_cycle(pair):
    for wrong in (lambda: pair.a.attach(b"x"), lambda: pair.a.write(pair.source, pair.remote, 1 << 40),
                  lambda: pair.a.write_pages(8, pair.source, [1], pair.remote, [1, 2])):
        try:
            wrong()
        except ValueError:
            continue
        raise AssertionError("not refused")


async def awaiting(pair, peer, count):
    for _ in range(count):
        await pair.a.write(pair.source, pair.remote, 8)
        await pair.a.send(peer, b"message")
        waiting = pair.b.expect(2)
        await waiting.cancel_async()
        pair.b.receive()
        pair.b.poll()


def measured(work):
    """Growth of memory and files over the cycles, after some to warm up."""
    work(CYCLES // 10)
    gc.collect()
    before = resident(), files()
    work(CYCLES)
    gc.collect()
    return resident() - before[0], files() - before[1]


def test_nothing_grows(pair):
    peer = pair.a.connect(pair.b.address)

    def work(count):
        for _ in range(count):
            cycle(pair)
            failing_cycle(pair)
        asyncio.run(awaiting(pair, peer, count))

    memory, file_count = measured(work)
    assert memory < SLACK and file_count <= 0
    statistics = pair.a.statistics()
    assert (statistics.regions, statistics.remotes, statistics.groups, statistics.watchers) == (1, 1, 0, 0)


def test_engines_that_are_opened_and_closed():
    def work(count):
        for _ in range(count // 50):
            with te.Engine() as engine:
                engine.fileno()
                engine.allocate(4096)

    memory, file_count = measured(work)
    assert memory < SLACK and file_count <= 0

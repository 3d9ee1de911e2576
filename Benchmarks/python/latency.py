#!/usr/bin/env python3
"""From a write in one process to the coroutine of another that awaits it; and from a byte in a pipe, for comparison.

usage: latency.py WAITS

Between two writes everybody is asleep. Rows: `pipe` is what the system and asyncio take without this library: one process
writes into a pipe, the other's loop reads it and ends a future. `await` is the same with a write and a counter, with an engine
whose thread sleeps (adaptive), never does (busy), or that has none (event_loop).
"""
import asyncio
import json
import multiprocessing
import os
import sys
import time

import transfer_engine as te

PAUSE = 0.002  # longer than an adaptive engine spins


def sender(channel, pipe):
    # Manual: the write lands before the call returns, and what is measured is the receiver's side alone.
    with te.Engine("sender", progress="manual") as engine:
        target = engine.attach(channel.recv())
        source = engine.allocate(8)
        stamp = memoryview(source).cast("Q")
        while request := channel.recv():
            time.sleep(PAUSE)
            if request == "pipe":
                os.write(pipe, time.monotonic_ns().to_bytes(8, "little"))
                continue
            stamp[0] = time.monotonic_ns()
            engine.write(source, target, 8, immediate=1)
        stamp.release()


async def from_pipe(pipe, channel, waits):
    loop = asyncio.get_running_loop()
    samples = []

    def read():
        future.set_result(int.from_bytes(os.read(pipe, 8), "little"))

    loop.add_reader(pipe, read)
    for _ in range(waits):
        future = loop.create_future()
        channel.send("pipe")
        begin = await future
        samples.append((time.monotonic_ns() - begin) / 1000)
    loop.remove_reader(pipe)
    return samples


async def from_engine(engine, region, channel, waits):
    stamp = memoryview(region).cast("Q")
    samples = []
    for _ in range(waits):
        arrived = engine.expect(1)
        channel.send("write")
        await arrived
        samples.append((time.monotonic_ns() - stamp[0]) / 1000)
    stamp.release()
    return samples


def measure(progress, waits):
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    reading, writing = os.pipe()
    process = fork.Process(target=sender, args=(there, writing))
    process.start()
    with te.Engine("receiver", progress=progress) as engine:
        region = engine.allocate(8)
        here.send(region.descriptor)
        show("pipe", progress, asyncio.run(from_pipe(reading, here, waits)))
        show("await", progress, asyncio.run(from_engine(engine, region, here, waits)))
        here.send(None)
        process.join(10)
        process.kill()


def show(test, progress, samples):
    samples.sort()
    print(json.dumps({"test": test, "progress": progress, "us_p50": round(samples[len(samples) // 2], 1),
                      "us_p99": round(samples[len(samples) * 99 // 100], 1)}), flush=True)


if __name__ == "__main__":
    for progress in ("adaptive", "busy", "event_loop"):
        measure(progress, int(sys.argv[1]))

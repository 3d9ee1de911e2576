"""A request's cache as the Python peers push it: geometry, memory, page lists, result lines."""
import json
import mmap
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "peers"))
import numpy  # noqa: E402

import pair  # noqa: E402


class Request:
    """Pages of each layer, in random order on both sides, as `te bench kv` has them."""

    def __init__(self, layers, pages, page_bytes):
        self.layers, self.pages, self.page_bytes = layers, pages, page_bytes
        self.byte_count = layers * pages * page_bytes
        random = numpy.random.default_rng(1)
        self.sources, self.targets = (
            [layer * pages + order for layer in range(layers)]
            for order in (random.permutation(pages).astype(numpy.int32) for _ in range(2)))

    def zeroed_region(self):
        region = numpy.frombuffer(mmap.mmap(-1, self.byte_count), dtype=numpy.uint8)
        region[:] = 0
        return region


def verify(channel, request, push):
    """Has every layer compared at the target after one `push()`."""
    channel.ask("clear")
    push()
    for sources, targets in zip(request.sources, request.targets):
        if not channel.ask("layer", request.page_bytes, sources, targets):
            raise RuntimeError("wrong content")


def answer(connection, region, message):
    """What a target does for `clear` and `layer`."""
    if message[0] == "clear":
        region[:] = 0
        connection.send(True)
    elif message[0] == "layer":
        _, size, sources, targets = message
        words = region.view(numpy.uint64).reshape(-1, size // 8)
        first = sources.astype(numpy.uint64) * numpy.uint64(size // 8)
        expected = first[:, None] + numpy.arange(1, size // 8 + 1, dtype=numpy.uint64)
        connection.send(bool((words[targets] == expected).all()))
    else:
        raise RuntimeError(f"unknown message {message[0]}")


def measure(request, repeats, push, push_last):
    """Prints the medians of `push()`, and of `push_last()` after all other layers; both return when the target knows."""
    def timed(body):
        begin = time.perf_counter()
        body()
        return time.perf_counter() - begin

    push()
    pushes, lasts = zip(*[(timed(push), timed(push_last)) for _ in range(repeats)])
    print(json.dumps({
        "gbps": request.byte_count / statistics.median(pushes) / 1e9,
        "after_last_layer_us": statistics.median(lasts) * 1e6}), flush=True)


def run(initiator, target, pinned=True):
    """Runs `initiator(channel, request, repeats)` and `target(connection, request)`; the arguments of the program say how."""
    layers, pages, page_bytes, repeats = map(int, sys.argv[2:6])
    request = Request(layers, pages, page_bytes)
    seconds = 2 + repeats * request.byte_count / 1e9
    pair.run(lambda channel, _: initiator(channel, request, repeats),
             lambda connection: target(connection, request), seconds, pinned)

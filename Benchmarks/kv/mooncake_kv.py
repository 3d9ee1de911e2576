#!/usr/bin/env python3
"""Mooncake's TCP transport pushes the cache of a request, in synchronous batches.

usage: mooncake_kv.py layers|whole LAYERS PAGES PAGE_BYTES REPEATS      a batch for each layer, or one for all

Time ends when the batches have ended at the prefiller: no notification follows, to Mooncake's advantage.
"""
import sys

import request as kv  # also lets the peers' modules be found
import mooncake_peer
import pair


def make_side(connection, request):
    pair.zeroed_region = request.zeroed_region
    return mooncake_peer.Side(connection)


def target(connection, request):
    side = make_side(connection, request)
    while (message := connection.recv())[0] != "end":
        kv.answer(connection, side.region, message)


def initiator(channel, request, repeats):
    side = make_side(channel.connection, request)
    pair.fill(side.region)

    def batch(sources, targets):
        size = request.page_bytes
        return ([side.base + int(page) * size for page in sources],
                [side.remote_base + int(page) * size for page in targets], [size] * len(sources))

    def push(batches):
        for one in batches:
            if side.engine.batch_transfer_sync_write(side.remote, *one):
                raise RuntimeError("a batch failed")

    layers = [batch(*lists) for lists in zip(request.sources, request.targets)]
    all_pages = layers if sys.argv[1] == "layers" else [tuple(sum(parts, []) for parts in zip(*layers))]
    kv.verify(channel, request, lambda: push(all_pages))
    kv.measure(request, repeats, lambda: push(all_pages), lambda: push(layers[-1:]))


if __name__ == "__main__":
    kv.run(initiator, target, pinned=False)

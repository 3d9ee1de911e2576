#!/usr/bin/env python3
"""NIXL pushes the cache of a request: a prepared descriptor list for each layer, WRITE with a notification.

usage: nixl_kv.py default|none|tcp LAYERS PAGES PAGE_BYTES REPEATS      modes as in ../peers/nixl_peer.py
"""
import sys

import request as kv  # also lets the peers' modules be found
import nixl_peer
import pair


class Side:
    def __init__(self, name, mode, connection, request):
        self.agent = nixl_peer.make_agent(name, mode)
        self.region = request.zeroed_region()
        base = self.region.ctypes.data
        self.agent.register_memory([(base, self.region.nbytes, 0, "")], "DRAM")
        connection.send((self.agent.get_agent_metadata(), base))
        metadata, self.remote_base = connection.recv()
        self.remote = self.agent.add_remote_agent(metadata)
        self.notified = 0

    def pages(self, side, base, request):
        """All pages of a region, prepared."""
        ranges = [(base + offset, request.page_bytes, 0) for offset in range(0, request.byte_count, request.page_bytes)]
        return self.agent.prep_xfer_dlist(side, ranges, "DRAM")

    def poll(self):
        for messages in self.agent.get_new_notifs().values():
            self.notified += len(messages)
        return self.notified


def target(connection, request):
    side = Side("decoder", sys.argv[1], connection, request)
    connection.send("ready")
    while True:
        side.poll()
        if not connection.poll():
            continue
        message = connection.recv()
        if message[0] == "end":
            return
        if message[0] == "await":
            while side.poll() < message[1]:
                pass
            connection.send(True)
        else:
            kv.answer(connection, side.region, message)


def initiator(channel, request, repeats):
    side = Side("prefiller", sys.argv[1], channel.connection, request)
    channel.receive()
    pair.fill(side.region)
    agent = side.agent
    local, remote = side.pages("", side.region.ctypes.data, request), side.pages(side.remote, side.remote_base, request)
    layers = [agent.make_prepped_xfer("WRITE", local, a, remote, b, b"layer")
              for a, b in zip(request.sources, request.targets)]
    notifications = 0

    def push_layers(transfers):
        nonlocal notifications
        notifications += len(transfers)
        channel.connection.send(("await", notifications))
        for transfer in transfers:
            if agent.transfer(transfer) == "ERR":
                raise RuntimeError("a transfer was refused")
        for transfer in transfers:
            while (state := agent.check_xfer_state(transfer)) == "PROC":
                pass
            if state != "DONE":
                raise RuntimeError(f"a transfer ended as {state}")
        channel.receive()

    kv.verify(channel, request, lambda: push_layers(layers))
    kv.measure(request, repeats, lambda: push_layers(layers), lambda: push_layers(layers[-1:]))


if __name__ == "__main__":
    kv.run(initiator, target)

#!/usr/bin/env python3
"""Mooncake's TCP transport between two processes: synchronous batches, and ping-pong by memory and by notifications.

usage: mooncake_peer.py default|pool SECONDS      pool: MC_TCP_ENABLE_CONNECTION_POOL=1

A window of writes is one batch, and a list of pages is one batch, since a write is synchronous. The two processes share
the two cores and are not pinned to one each: each has an I/O thread beside its caller.
"""
import os
import sys
import time

import pair

NOTIFICATION_ROUNDS = 100


class Side:
    def __init__(self, connection):
        for name, value in {
            "MC_LOG_LEVEL": "ERROR", "GLOG_minloglevel": "3", "MC_FORCE_TCP": "1",
            "MC_TCP_BIND_ADDRESS": "127.0.0.1", "MC_TRANSFER_TIMEOUT": "20",
        }.items():
            os.environ.setdefault(name, value)
        from mooncake.engine import TransferEngine
        self.engine = TransferEngine()
        if self.engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", ""):
            raise RuntimeError("initialize failed")
        self.region = pair.zeroed_region()
        self.base = self.region.ctypes.data
        if self.engine.register_memory(self.base, self.region.nbytes):
            raise RuntimeError("register_memory failed")
        connection.send((self.engine.get_rpc_port(), self.base))
        port, self.remote_base = connection.recv()
        self.remote = f"127.0.0.1:{port}"

    def word(self, offset):
        """A 64-bit word of the region."""
        return memoryview(self.region)[offset:offset + 8].cast("Q")

    def write(self, offset):
        """Writes eight bytes."""
        if self.engine.transfer_sync_write(self.remote, self.base + offset, self.remote_base + offset, 8):
            raise RuntimeError("a write failed")

    def notify(self):
        """Writes eight bytes with a notification."""
        from mooncake.engine import TransferNotify, TransferOpcode
        notification = TransferNotify()
        notification.name = notification.msg = "ping"
        if self.engine.transfer_sync(self.remote, self.base, self.remote_base, 8, TransferOpcode.Write, notification):
            raise RuntimeError("a write with a notification failed")

    def await_notification(self):
        while not self.engine.get_notifies():
            pass


def target(connection):
    side = Side(connection)
    while True:
        request = connection.recv()
        if request[0] == "end":
            return
        if request[0] == "flags":
            here, there = side.word(0), side.word(64)
            here[0] = 0
            connection.send(True)
            for number in range(1, request[1] + 1):
                while here[0] != number:
                    pass
                there[0] = number
                side.write(64)
        elif request[0] == "notifications":
            connection.send(True)
            for _ in range(request[1]):
                side.await_notification()
                side.notify()
        else:
            pair.answer_content(connection, side.region, request)


class Initiator:
    def __init__(self, channel):
        self.channel = channel
        self.side = Side(channel.connection)
        pair.fill(self.side.region)

    def write_batch(self, batch):
        if self.side.engine.batch_transfer_sync_write(self.side.remote, *batch):
            raise RuntimeError("a batch failed")

    def batch(self, size, sources, targets):
        """The lists that a batch takes, for range numbers."""
        side = self.side
        return ([side.base + int(source) * size for source in sources],
                [side.remote_base + int(target) * size for target in targets], [size] * len(sources))

    def measure(self, test, size, lists, seconds):
        """Writes one batch after the other."""
        batches = [self.batch(size, *numbers) for numbers in lists]
        pair.verify(self.channel, test, size, *lists[0], lambda: self.write_batch(batches[0]))
        count = 0
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds:
            self.write_batch(batches[count % len(batches)])
            count += 1
        pair.print_rate(test, size, count * len(lists[0][0]) * size, time.perf_counter() - begin)

    def measure_writes(self, size, window, seconds):
        total = pair.REGION_BYTES // size
        starts = range(0, total, max(window, total // 64))
        slots = [[slot for slot in range(start, start + window)] for start in starts]
        self.measure("write", size, [(numbers, numbers) for numbers in slots], seconds)

    def measure_flags(self, seconds):
        side = self.side
        out, back = side.word(0), side.word(64)

        def play(rounds):
            back[0] = 0
            self.channel.ask("flags", rounds)
            samples = []
            for number in range(1, rounds + 1):
                begin = time.perf_counter()
                out[0] = number
                side.write(0)
                while back[0] != number:
                    pass
                samples.append(time.perf_counter() - begin)
            return samples

        warm = play(50)
        pair.print_latency("pingpong-flag", play(max(50, int(seconds / (sum(warm) / len(warm))))))

    def measure_notifications(self):
        self.channel.ask("notifications", NOTIFICATION_ROUNDS)
        samples = []
        for _ in range(NOTIFICATION_ROUNDS):
            begin = time.perf_counter()
            self.side.notify()
            self.side.await_notification()
            samples.append(time.perf_counter() - begin)
        pair.print_latency("pingpong-notif", samples)


def initiator(channel, seconds):
    this = Initiator(channel)
    for size, window in pair.WINDOWS.items():
        this.measure_writes(size, window, seconds)
    for size in pair.PAGE_SIZES:
        this.measure("pages", size, pair.page_lists(size), seconds)
    this.measure_flags(seconds)
    this.measure_notifications()


if __name__ == "__main__":
    if sys.argv[1] == "pool":
        os.environ["MC_TCP_ENABLE_CONNECTION_POOL"] = "1"
    pair.run(initiator, target, float(sys.argv[2]), pinned=False)

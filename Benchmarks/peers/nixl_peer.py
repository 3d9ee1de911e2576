#!/usr/bin/env python3
"""NIXL between two processes: prepared writes, prepared page lists, and ping-pong by notifications.

usage: nixl_peer.py default|none|tcp SECONDS

  default  UCX as NIXL sets it up: payload by process_vm_writev, notifications over TCP
  none     ucx_error_handling_mode=none, with which UCX also uses shared memory
  tcp      UCX_TLS=tcp
"""
import logging
import os
import sys
import time

import pair


def make_agent(name, mode):
    os.environ["UCX_NET_DEVICES"] = "lo"
    os.environ.setdefault("UCX_LOG_LEVEL", "error")
    os.environ.setdefault("NIXL_LOG_LEVEL", "ERROR")
    if mode == "tcp":
        os.environ["UCX_TLS"] = "tcp"
    logging.disable(logging.WARNING)
    try:
        from nixl._api import nixl_agent, nixl_agent_config
    except ImportError:  # the wheel for CUDA 12 by itself
        from nixl_cu12._api import nixl_agent, nixl_agent_config
    # A progress thread beside each caller would not find a core.
    agent = nixl_agent(name, nixl_agent_config(enable_prog_thread=False, backends=[]))
    agent.create_backend("UCX", {"ucx_error_handling_mode": "none"} if mode == "none" else {})
    return agent


class Side:
    """One process's agent, memory and view of the other."""

    def __init__(self, name, mode, connection):
        self.agent = make_agent(name, mode)
        self.region = pair.zeroed_region()
        self.base = self.region.ctypes.data
        self.agent.register_memory([(self.base, self.region.nbytes, 0, "")], "DRAM")
        connection.send((self.agent.get_agent_metadata(), self.base))
        metadata, self.remote_base = connection.recv()
        self.remote = self.agent.add_remote_agent(metadata)
        self.notified = 0

    def ranges(self, size):
        """The local and the remote region cut into ranges of one size."""
        def cut(side, base):
            ranges = [(base + offset, size, 0) for offset in range(0, pair.REGION_BYTES, size)]
            return self.agent.prep_xfer_dlist(side, ranges, "DRAM")
        return cut("", self.base), cut(self.remote, self.remote_base)

    def make_ping(self):
        def first(base):
            return self.agent.get_xfer_descs([(base, 8, 0)], "DRAM")
        return self.agent.initialize_xfer("WRITE", first(self.base), first(self.remote_base), self.remote, b"ping")

    def post(self, transfer):
        if self.agent.transfer(transfer) == "ERR":
            raise RuntimeError("a transfer was refused")

    def finish(self, transfer):
        state = "PROC"
        while state == "PROC":
            state = self.agent.check_xfer_state(transfer)
        if state != "DONE":
            raise RuntimeError(f"a transfer ended as {state}")

    def poll(self):
        """Makes progress; returns how many notifications have come in all."""
        for messages in self.agent.get_new_notifs().values():
            self.notified += len(messages)
        return self.notified


def target(connection, mode):
    side = Side("target", mode, connection)
    connection.send("ready")
    ping = side.make_ping()
    while True:
        side.poll()
        if not connection.poll():
            continue
        request = connection.recv()
        if request[0] == "end":
            return
        if request[0] == "await":
            while side.poll() < request[1]:
                pass
            connection.send(True)
        elif request[0] == "pong":
            before = side.notified
            connection.send(True)
            for number in range(1, request[1] + 1):
                while side.poll() < before + number:
                    pass
                side.post(ping)
                side.finish(ping)
        else:
            pair.answer_content(connection, side.region, request)


class Initiator:
    def __init__(self, channel, mode):
        self.channel = channel
        self.side = Side("initiator", mode, channel.connection)
        channel.receive()
        pair.fill(self.side.region)
        self.notifications = 0

    def write(self, transfer):
        self.side.post(transfer)
        self.side.finish(transfer)

    def write_notifying(self, transfer):
        """Writes, and waits until the target knows it."""
        self.write(transfer)
        self.notifications += 1
        self.channel.ask("await", self.notifications)

    def measure_writes(self, size, window, seconds):
        agent, side = self.side.agent, self.side
        local, remote = side.ranges(size)
        total = pair.REGION_BYTES // size
        slots = range(0, total, max(1, total // 1024))
        transfers = [agent.make_prepped_xfer("WRITE", local, [slot], remote, [slot]) for slot in slots]
        last = agent.make_prepped_xfer("WRITE", local, [0], remote, [0], b"last")
        pair.verify(self.channel, "write", size, [0], [0], lambda: self.write_notifying(last))
        for phase in (pair.WARM_UP, seconds):
            posted = done = 0
            begin = time.perf_counter()
            while posted % 16 or time.perf_counter() - begin < phase:
                if posted - done == window:
                    side.finish(transfers[done % len(transfers)])
                    done += 1
                side.post(transfers[posted % len(transfers)])
                posted += 1
            while done < posted:
                side.finish(transfers[done % len(transfers)])
                done += 1
            self.write_notifying(last)
            elapsed = time.perf_counter() - begin
        pair.print_rate("write", size, posted * size, elapsed)
        for handle in [*transfers, last, local, remote]:
            handle.release()

    def measure_pages(self, size, seconds):
        agent = self.side.agent
        local, remote = self.side.ranges(size)
        lists = pair.page_lists(size)
        transfers = [agent.make_prepped_xfer("WRITE", local, a, remote, b, b"pages") for a, b in lists]
        pair.verify(self.channel, "pages", size, *lists[0], lambda: self.write_notifying(transfers[0]))
        count = 0
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds:
            self.write(transfers[count % pair.SETS])
            count += 1
        self.notifications += count
        self.channel.ask("await", self.notifications)
        pair.print_rate("pages", size, count * pair.PAGES * size, time.perf_counter() - begin)
        for handle in [*transfers, local, remote]:
            handle.release()

    def measure_ping_pong(self, seconds):
        side = self.side
        ping = side.make_ping()

        def play(rounds):
            samples = []
            self.channel.ask("pong", rounds)
            for _ in range(rounds):
                before = side.poll()
                begin = time.perf_counter()
                side.post(ping)
                side.finish(ping)
                while side.poll() == before:
                    pass
                samples.append(time.perf_counter() - begin)
            return samples

        warm = play(200)
        pair.print_latency("pingpong-notif", play(max(50, int(seconds / (sum(warm) / len(warm))))))


def initiator(channel, seconds, mode):
    this = Initiator(channel, mode)
    for size, window in pair.WINDOWS.items():
        this.measure_writes(size, window, seconds)
    for size in pair.PAGE_SIZES:
        this.measure_pages(size, seconds)
    this.measure_ping_pong(seconds)


if __name__ == "__main__":
    mode = sys.argv[1]
    pair.run(lambda channel, seconds: initiator(channel, seconds, mode),
             lambda connection: target(connection, mode), float(sys.argv[2]))

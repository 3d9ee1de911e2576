#!/usr/bin/env python3
"""NIXL: each trainer writes its slices into the receivers' memory, and notifies them.

usage: nixl_peer.py default|none MEBIBYTES REPEATS      none: ucx_error_handling_mode=none, with which UCX also uses shared memory
"""
import logging
import os
import sys
import time

import group

MODE, MEBIBYTES, REPEATS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
SLICES, SIZES = group.slices(MEBIBYTES)


def make_agent(name):
    os.environ["UCX_NET_DEVICES"] = "lo"
    os.environ.setdefault("UCX_LOG_LEVEL", "error")
    os.environ.setdefault("NIXL_LOG_LEVEL", "ERROR")
    logging.disable(logging.WARNING)
    try:
        from nixl._api import nixl_agent, nixl_agent_config
    except ImportError:  # the wheel for CUDA 12 by itself
        from nixl_cu12._api import nixl_agent, nixl_agent_config
    agent = nixl_agent(name, nixl_agent_config(enable_prog_thread=False, backends=[]))
    agent.create_backend("UCX", {"ucx_error_handling_mode": "none"} if MODE == "none" else {})
    return agent


class Member:
    def __init__(self, rank, exchange):
        self.rank = rank
        self.agent = make_agent(f"member {rank}")
        self.memory = group.region(SIZES[rank])
        base = self.memory.ctypes.data
        self.agent.register_memory([(base, self.memory.nbytes, 0, "")], "DRAM")
        members = exchange((self.agent.get_agent_metadata(), base))
        self.transfers = []
        self.notified = 0
        if rank >= group.TRAINERS:
            return
        for receiver in range(group.RECEIVERS):
            metadata, remote_base = members[group.TRAINERS + receiver]
            remote = self.agent.add_remote_agent(metadata)
            mine = [s for s in SLICES if s[0] == rank and s[2] == receiver]
            here = self.agent.get_xfer_descs([(base + s[1], s[4], 0) for s in mine], "DRAM")
            there = self.agent.get_xfer_descs([(remote_base + s[3], s[4], 0) for s in mine], "DRAM")
            self.transfers.append(self.agent.initialize_xfer("WRITE", here, there, remote, b"done"))

    def fill(self, version):
        if self.rank < group.TRAINERS:
            group.fill(self.memory, self.rank, version)

    def push(self):
        for transfer in self.transfers:
            if self.agent.transfer(transfer) == "ERR":
                raise RuntimeError("a transfer was refused")
        for transfer in self.transfers:
            state = "PROC"
            while state == "PROC":
                state = self.agent.check_xfer_state(transfer)
            if state != "DONE":
                raise RuntimeError(f"a transfer ended as {state}")
        wanted = 0 if self.transfers else self.notified + group.TRAINERS
        while self.notified < wanted:
            for messages in self.agent.get_new_notifs().values():
                self.notified += len(messages)
            time.sleep(0.0005)  # the trainers need the cores

    def check(self, version):
        return self.rank < group.TRAINERS or group.is_right(
            self.memory, self.rank - group.TRAINERS, version, SLICES)


group.run(Member, MEBIBYTES, REPEATS)

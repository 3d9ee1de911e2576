#!/usr/bin/env python3
"""Mooncake's TCP transport: each trainer writes its slices to both receivers, a batch to each.

usage: mooncake_peer.py default|pool MEBIBYTES REPEATS      pool: MC_TCP_ENABLE_CONNECTION_POOL=1
"""
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import group

MODE, MEBIBYTES, REPEATS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
SLICES, SIZES = group.slices(MEBIBYTES)


class Member:
    def __init__(self, rank, exchange):
        for name, value in {
            "MC_LOG_LEVEL": "ERROR", "GLOG_minloglevel": "3", "MC_FORCE_TCP": "1",
            "MC_TCP_BIND_ADDRESS": "127.0.0.1", "MC_TRANSFER_TIMEOUT": "60",
        }.items():
            os.environ.setdefault(name, value)
        if MODE == "pool":
            os.environ["MC_TCP_ENABLE_CONNECTION_POOL"] = "1"
        from mooncake.engine import TransferEngine
        self.rank = rank
        self.engine = TransferEngine()
        if self.engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", ""):
            raise RuntimeError("initialize failed")
        self.memory = group.region(SIZES[rank])
        base = self.memory.ctypes.data
        if self.engine.register_memory(base, self.memory.nbytes):
            raise RuntimeError("register_memory failed")
        members = exchange((self.engine.get_rpc_port(), base))
        self.batches = []
        self.threads = ThreadPoolExecutor(group.RECEIVERS)
        if rank >= group.TRAINERS:
            return
        for receiver in range(group.RECEIVERS):
            port, remote_base = members[group.TRAINERS + receiver]
            mine = [s for s in SLICES if s[0] == rank and s[2] == receiver]
            self.batches.append((
                f"127.0.0.1:{port}", [base + s[1] for s in mine], [remote_base + s[3] for s in mine],
                [s[4] for s in mine]))

    def fill(self, version):
        if self.rank < group.TRAINERS:
            group.fill(self.memory, self.rank, version)

    def push(self):
        if any(self.threads.map(lambda batch: self.engine.batch_transfer_sync_write(*batch), self.batches)):
            raise RuntimeError("a batch failed")

    def check(self, version):
        return self.rank < group.TRAINERS or group.is_right(
            self.memory, self.rank - group.TRAINERS, version, SLICES)


group.run(Member, MEBIBYTES, REPEATS)

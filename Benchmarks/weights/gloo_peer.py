#!/usr/bin/env python3
"""torch.distributed with gloo: each matrix is gathered on trainer 0 and broadcast to the receivers, which keep theirs.

usage: gloo_peer.py MEBIBYTES REPEATS
"""
import os
import sys
import tempfile

import numpy
import torch
import torch.distributed as dist

import group

MEBIBYTES, REPEATS = int(sys.argv[1]), int(sys.argv[2])
SLICES, SIZES = group.slices(MEBIBYTES)
STORE = tempfile.mktemp()
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


class Member:
    def __init__(self, rank, exchange):
        torch.set_num_threads(1)
        self.rank = rank
        count = group.TRAINERS + group.RECEIVERS
        dist.init_process_group("gloo", init_method="file://" + STORE, rank=rank, world_size=count)
        trainers = list(range(group.TRAINERS))
        self.trainers = dist.new_group(trainers)
        self.all = dist.new_group([0] + list(range(group.TRAINERS, count)))
        self.memory = torch.from_numpy(group.region(SIZES[rank]))
        exchange(None)

    def fill(self, version):
        if self.rank < group.TRAINERS:
            group.fill(self.memory.numpy(), self.rank, version)

    def push(self):
        mine = [s for s in SLICES if s[0] == (self.rank if self.rank < group.TRAINERS else 0)]
        for _, there, receiver, place, size in mine:
            whole = torch.empty(size * group.TRAINERS, dtype=torch.uint8) if self.rank != 1 else None
            if self.rank < group.TRAINERS:
                parts = list(whole.chunk(group.TRAINERS)) if self.rank == 0 else None
                dist.gather(self.memory[there:there + size], parts, dst=0, group=self.trainers)
            if self.rank != 1:
                dist.broadcast(whole, src=0, group=self.all)
            if self.rank == group.TRAINERS + receiver:
                self.memory[place:place + len(whole)] = whole

    def check(self, version):
        return self.rank < group.TRAINERS or group.is_right(
            self.memory.numpy(), self.rank - group.TRAINERS, version, SLICES)


group.run(Member, MEBIBYTES, REPEATS)

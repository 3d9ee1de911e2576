"""Token dispatch and combine over torch.distributed's gloo all_to_all: the same shape and rows as `te bench moe`.

Usage: gloo_peer.py EP TOKENS WARM_UP STEPS; prints the median microseconds of a step. Results are added at the sender, in FP32;
gathering, sorting and adding are torch's own operations.
"""
import json
import os
import sys
import tempfile
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

HIDDEN, EXPERTS, TOP_K, SCALES, CHOICES = 7168, 256, 8, 56, 4


def exchange(send, send_counts):
    """Rows to each rank, after the counts."""
    counts = torch.tensor(send_counts, dtype=torch.int64)
    received = torch.empty_like(counts)
    dist.all_to_all_single(received, counts)
    received = received.tolist()
    rows = send.new_empty((sum(received), send.shape[1]))
    dist.all_to_all_single(rows, send, received, send_counts)
    return rows, received


def step(rank, ranks, tokens, scales, experts, weights, outputs):
    count = tokens.shape[0]
    owner = experts // (EXPERTS // ranks)
    lists = [torch.nonzero((owner == r).any(1)).flatten() for r in range(ranks)]
    order = torch.cat(lists)
    counts = [len(x) for x in lists]
    target = torch.repeat_interleave(torch.arange(ranks), torch.tensor(counts))
    local = torch.where(owner[order] == target[:, None], experts[order] % (EXPERTS // ranks), -1).to(torch.int16)
    row = torch.cat([
        tokens[order], scales[order].view(torch.uint8), weights[order].view(torch.uint8),
        local.view(torch.uint8)], 1)
    received, from_counts = exchange(row, counts)
    weights_in = received[:, HIDDEN + SCALES * 4:HIDDEN + SCALES * 4 + TOP_K * 4].contiguous().view(torch.float32)
    local_in = received[:, HIDDEN + SCALES * 4 + TOP_K * 4:].contiguous().view(torch.int16)
    rows, entries = torch.nonzero(local_in >= 0, as_tuple=True)
    sort = torch.argsort(local_in[rows, entries], stable=True)
    rows, entries = rows[sort], entries[sort]
    grouped = received[:, :HIDDEN + SCALES * 4][rows]
    results = outputs[:len(rows)]
    partial = torch.zeros((received.shape[0], HIDDEN), dtype=torch.float32)
    partial.index_add_(0, rows, results.float() * weights_in[rows, entries][:, None])
    back = partial.new_empty((len(order), HIDDEN))
    dist.all_to_all_single(back, partial, counts, from_counts)
    total = torch.zeros((count, HIDDEN), dtype=torch.float32)
    total.index_add_(0, order, back)
    return grouped, total.to(torch.bfloat16)


def run(rank, ranks, count, warm_up, steps, store):
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank % len(os.sched_getaffinity(0))]})
    dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=ranks)
    torch.manual_seed(rank)
    tokens = torch.full((count, HIDDEN), 0x38, dtype=torch.uint8)
    scales = torch.ones((count, SCALES))
    weights = torch.full((count, TOP_K), 1 / TOP_K)
    choices = [torch.stack([torch.randperm(EXPERTS)[:TOP_K] for _ in range(count)]) for _ in range(CHOICES)]
    outputs = torch.zeros((count * TOP_K * 2 + 4096, HIDDEN), dtype=torch.bfloat16)
    times = []
    for number in range(-warm_up, steps):
        start = time.perf_counter()
        step(rank, ranks, tokens, scales, choices[number % CHOICES], weights, outputs)
        if number >= 0:
            times.append(time.perf_counter() - start)
    if rank == 0:
        print(json.dumps({"us": sorted(times)[len(times) // 2] * 1e6}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    ranks, count, warm_up, steps = map(int, sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run, (ranks, count, warm_up, steps, folder + "/store"), nprocs=ranks)

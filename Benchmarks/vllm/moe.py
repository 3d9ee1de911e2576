#!/usr/bin/env python3
"""Steps of a small Qwen3-MoE in vLLM with data and expert parallelism, over this library and over gloo, in turn: moe.py [--ranks N]

Both run all the time in engines of their own, and only one works at any moment. The plug-in is the same; gloo's exchange takes the
place of `transfer_engine.moe.Exchange` in it: one all_to_all for counts, one for tokens, one for results, which are added where the
experts are. Columns, medians of the slowest rank:

- step_ms: of a step of vLLM, which generates a token for each prompt.
- layer_us: of one layer, what dispatch and combine take of it, waiting for other ranks included.
"""
import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "python" / "tests_vllm"))
from models import experts, save  # noqa: E402
from ranks import Ranks  # noqa: E402


def timed(rank):
    """What layers spend in dispatch and combine, since the last report."""
    from transfer_engine.vllm import moe

    spent = []

    def measure(name):
        call = getattr(moe.PrepareAndFinalize, name)

        def measured(self, *arguments, **options):
            begin = time.perf_counter()
            result = call(self, *arguments, **options)
            spent.append(time.perf_counter() - begin)
            return result

        setattr(moe.PrepareAndFinalize, name, measured)

    measure("prepare")
    measure("finalize")

    def report():
        pairs = [first + second for first, second in zip(spent[::2], spent[1::2])]
        spent.clear()
        return pairs

    return report


def timed_gloo(rank):
    """The same with gloo in the library's place."""
    import torch
    import torch.distributed as dist
    from transfer_engine import moe as library
    from transfer_engine.vllm import moe
    from vllm.distributed import get_ep_group

    class Gloo:
        missing = ()

        def __init__(self, config):
            self.group = get_ep_group().cpu_group
            self.ranks = get_ep_group().world_size
            self.here = config.num_experts // self.ranks

        def _exchange(self, rows, into, out):
            got = rows.new_empty((sum(into), rows.shape[1]))
            dist.all_to_all_single(got, rows, into, out, group=self.group)
            return got

        def dispatch_send(self, tokens, experts, weights):
            owner = experts // self.here
            lists = [(owner == rank).any(1).nonzero().flatten() for rank in range(self.ranks)]
            self.order, self.out = torch.cat(lists), [len(part) for part in lists]
            counts = torch.empty(self.ranks, dtype=torch.int64)
            dist.all_to_all_single(counts, torch.tensor(self.out), group=self.group)
            self.into = counts.tolist()
            target = torch.repeat_interleave(torch.arange(self.ranks), torch.tensor(self.out))
            local = torch.where(owner[self.order] == target[:, None], experts[self.order] % self.here, -1)
            parts = (tokens[self.order], weights[self.order].float(), local.int())
            rows = torch.cat([part.contiguous().view(torch.uint8) for part in parts], 1)
            got = self._exchange(rows, self.into, self.out)
            wide, top = tokens.shape[1] * tokens.element_size(), experts.shape[1] * 4
            self.count, self.width, self.kind = tokens.shape[0], tokens.shape[1], tokens.dtype
            weights_in = got[:, wide:wide + top].contiguous().view(torch.float32)
            local_in = got[:, wide + top:].contiguous().view(torch.int32)
            rows_of, entries = torch.nonzero(local_in >= 0, as_tuple=True)
            sort = torch.argsort(local_in[rows_of, entries], stable=True)
            self.rows_of, entries = rows_of[sort], entries[sort]
            self.weights_of = weights_in[self.rows_of, entries][:, None]
            numbers = torch.bincount(local_in[self.rows_of, entries], minlength=self.here).tolist()
            self.grouped = got[:, :wide][self.rows_of].contiguous()
            self.results = torch.empty((len(self.rows_of), self.width), dtype=self.kind)
            self.numbers = tuple((sum(numbers[:expert]), number) for expert, number in enumerate(numbers))

        def dispatch_receive(self):
            memory = self.grouped.numpy().reshape(-1).data
            outputs = self.results.view(torch.uint8).numpy().reshape(-1).data
            return library.Received(True, len(self.rows_of), memory, None, outputs, self.numbers)

        def combine_send(self):
            partial = torch.zeros((sum(self.into), self.width))
            partial.index_add_(0, self.rows_of, self.results.float() * self.weights_of)
            self.back = self._exchange(partial, self.out, self.into)

        def combine_receive(self, sums):
            total = torch.zeros((self.count, self.width))
            total.index_add_(0, self.order, self.back)
            sums.copy_(total)
            return library.Result(0, 0)

    made = {}
    moe.open_exchange = lambda config, maximum, options: made.setdefault(config.num_experts, Gloo(config))
    return timed(rank)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompts", type=int, default=16, help="of each rank")
    parser.add_argument("--tokens", type=int, default=33)
    options = parser.parse_args()
    draw = [[[(rank * 131 + number * 17 + index * 7) % 1000 + 3 for index in range(8)] for number in range(options.prompts)]
            for rank in range(options.ranks)]
    with tempfile.TemporaryDirectory() as place:
        save(experts, 3, place)
        sides = {}
        try:
            for name, probe in (("transfer_engine", timed), ("gloo", timed_gloo)):
                sides[name] = Ranks(options.ranks, place, probe, max_num_batched_tokens=256).until_up()
            rows = {name: [] for name in sides}
            for number in range(-1, options.rounds):  # the first round is not counted
                tokens = {}
                for name in sides if number % 2 else reversed(sides):
                    answers = sides[name].generate(draw, options.tokens)
                    tokens[name] = [answer[0] for answer in answers]
                    if number >= 0:
                        rows[name].append((max(answer[1] for answer in answers) / options.tokens * 1e3,
                                           max(statistics.median(answer[2]) for answer in answers) * 1e6))
                        print(f"round {number}, {name}: {rows[name][-1]}", file=sys.stderr, flush=True)
                if tokens["gloo"] != tokens["transfer_engine"]:
                    raise SystemExit(f"different tokens: {tokens}")
        finally:
            for side in sides.values():
                side.close()
    medians = {name: [statistics.median(column) for column in zip(*samples)] for name, samples in rows.items()}
    for name, (step, layer) in medians.items():
        print(json.dumps(dict(ranks=options.ranks, prompts=options.prompts, exchange=name, step_ms=round(step, 2),
                              layer_us=round(layer, 1), step_over_gloo=round(step / medians["gloo"][0], 2),
                              layer_over_gloo=round(layer / medians["gloo"][1], 2))), flush=True)


if __name__ == "__main__":
    main()

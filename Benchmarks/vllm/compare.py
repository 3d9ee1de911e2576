#!/usr/bin/env python3
"""This connector and vLLM's NixlConnector on the same prompts in turn, caches in host memory: compare.py MODEL [--rounds N]

All four engines run during the whole time; only one pair works at any moment. Each prompt is new to everybody. Columns, medians in
milliseconds:

- prefill: from the request until the prefiller has its first token.
- ttft: from the request until the decoder has its first token, which it computes from the cache that it got.
- after: between the two: what the hand-over costs.
- transfer: NIXL's own measure of its READ (nixlXferTelemetry.xferDuration), which begins when all has been computed; here, from
  the end of the prefiller's last layer until the decoder has counted all writes.
"""
import argparse
import json
import pathlib
import random
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "python" / "tests_vllm"))
from engines import Engine  # noqa: E402

LENGTHS = (64, 256, 1024, 1500)
OURS = dict(kv_connector="TransferEngineConnector", kv_connector_module_path="transfer_engine.vllm.connector")
THEIRS = dict(kv_connector="NixlConnector", kv_buffer_device="cpu")


def probe_prefill(report):
    """The moment at which the last layer of a pass has been computed."""
    from transfer_engine.vllm.worker import PrefillWorker

    end_of_pass = PrefillWorker.end_of_pass

    def measured(self):
        if self._after > self._before:
            report(time.monotonic())
        end_of_pass(self)

    PrefillWorker.end_of_pass = measured


def probe_decode(report):
    """The moment at which a decoder learns that all has come."""
    from transfer_engine import kv

    poll = kv.Decoder.poll

    def measured(self, timeout=0.0):
        events = poll(self, timeout)
        for event in events:
            if event.kind is kv.Kind.READY:
                report(time.monotonic())
        return events

    kv.Decoder.poll = measured


def probe_nixl(report):
    from vllm.distributed.kv_transfer.kv_connector.v1.nixl.stats import NixlKVConnectorStats

    record = NixlKVConnectorStats.record_transfer

    def measured(self, telemetry):
        if telemetry is not None:
            report(telemetry.xferDuration / 1e6)
        return record(self, telemetry)

    NixlKVConnectorStats.record_transfer = measured


def first(engine, request, since):
    """Seconds from `since` to the first token, and the answer."""
    answer = engine.answer(request)
    return time.monotonic() - since, answer


class Ours:
    name = "transfer_engine"

    def __init__(self, model):
        self.prefill = Engine("prefill", model, dict(OURS, kv_role="kv_producer"), {"VLLM_CPU_OMP_THREADS_BIND": "0"},
                              probe_prefill)
        self.decode = Engine("decode", model, dict(OURS, kv_role="kv_consumer"), {"VLLM_CPU_OMP_THREADS_BIND": "1"},
                             probe_decode)

    def begin(self):
        self.prefill.ask("hello", [1], 1, {"do_remote_decode": True})
        self.address = self.prefill.answer("hello")[1]["prefiller"]

    def run(self, request, prompt):
        begin = time.monotonic()
        self.decode.ask(request, prompt, 1, {
            "do_remote_prefill": True, "transfer_id": request, "prefiller": self.address})
        self.prefill.ask(request, prompt, 1, {"do_remote_decode": True, "transfer_id": request})
        ttft, answer = first(self.decode, request, begin)
        prefill = self.prefill.answer(request)
        if answer[4] < len(prompt) - 1:
            raise SystemExit(f"{answer[4]} of {len(prompt)} tokens were loaded")
        transfer = self.decode.probed[-1] - self.prefill.probed[-1]
        return dict(prefill=prefill[3], ttft=ttft, after=ttft - prefill[3], transfer=transfer, tokens=answer[0])


class Theirs:
    name = "NixlConnector"

    def __init__(self, model):
        self.prefill = self._start("nixl-prefill", model, "kv_producer", "0", 5600, None)
        self.decode = self._start("nixl-decode", model, "kv_consumer", "1", 5610, probe_nixl)

    def _start(self, name, model, role, cpu, port, probe):
        return Engine(name, model, dict(THEIRS, kv_role=role, engine_id=name), {
            "VLLM_CPU_OMP_THREADS_BIND": cpu, "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
            "VLLM_NIXL_SIDE_CHANNEL_PORT": str(port), "UCX_LOG_LEVEL": "error"}, probe)

    def begin(self):
        pass

    def run(self, request, prompt):
        begin = time.monotonic()
        self.prefill.ask(request, prompt, 1, {"do_remote_decode": True, "do_remote_prefill": False})
        prefill, answer = first(self.prefill, request, begin)
        self.decode.ask(request, prompt, 1, answer[1])
        ttft, answer = first(self.decode, request, begin)
        transfer = self.decode.probed[-1] if self.decode.probed else float("nan")
        return dict(prefill=prefill, ttft=ttft, after=ttft - prefill, transfer=transfer, tokens=answer[0])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    sides = [Ours(options.model), Theirs(options.model)]
    try:
        for side in sides:
            side.prefill.until_up()
            side.decode.until_up()
            side.begin()
        draw = random.Random(1)
        rows = {}
        for number in range(-1, options.rounds):  # the first round is not counted: handshakes, first use of memory
            for length in LENGTHS:
                prompt = [draw.randrange(3, 49000) for _ in range(length)]
                got = {}
                for side in sides if number % 2 else reversed(sides):
                    got[side.name] = side.run(f"{side.name}-{length}-{number}", prompt)
                    if number >= 0:
                        rows.setdefault((length, side.name), []).append(got[side.name])
                    shown = {key: round(value * 1000, 2) for key, value in got[side.name].items() if key != "tokens"}
                    print(f"round {number}, {length} tokens, {side.name}: {shown}", file=sys.stderr, flush=True)
                    time.sleep(0.05)  # blocks are given back meanwhile
                if len({tuple(one["tokens"]) for one in got.values()}) != 1:
                    raise SystemExit(f"different tokens for a prompt of {length}: {got}")
        for (length, name), samples in rows.items():
            row = dict(tokens=length, connector=name)
            for column in ("prefill", "ttft", "after", "transfer"):
                values = sorted(sample[column] * 1000 for sample in samples)
                row[column] = round(statistics.median(values), 2)
                row[column + "_range"] = [round(values[0], 2), round(values[-1], 2)]
            print(json.dumps(row), flush=True)
    finally:
        for side in sides:
            side.prefill.close()
            side.decode.close()


if __name__ == "__main__":
    main()

import base64
import itertools
import math
import os
import random

import pytest

from engines import Engine

MODEL = os.environ.get("TE_VLLM_MODEL", "")
COUNT = int(os.environ.get("TE_VLLM_PROMPTS", "24"))
CONNECTOR = dict(kv_connector="TransferEngineConnector", kv_connector_module_path="transfer_engine.vllm.connector",
                 kv_load_failure_policy="recompute")


def transfer(role, **extra):
    return dict(CONNECTOR, kv_role=role, kv_connector_extra_config=dict(heartbeat=1, timeout=240, **extra))


class Cluster:
    """One vLLM alone, a prefiller and a decoder, and prompts that they share."""

    def __init__(self, **extra):
        # Small budgets: prompts are computed in chunks.
        self.extra = extra
        self.alone = Engine("alone", MODEL, max_num_batched_tokens=512)
        self.prefill = self.start("prefill", "kv_producer")
        self.decode = self.start("decode", "kv_consumer")
        self._numbers = itertools.count()
        for engine in (self.alone, self.prefill, self.decode):
            engine.until_up()
        self.address = self.learn(self.prefill)

    def start(self, name, role):
        cpu = {"prefill": "0"}.get(name, "1")
        return Engine(name, MODEL, transfer(role, name=name, **self.extra), {"VLLM_CPU_OMP_THREADS_BIND": cpu},
                      max_num_batched_tokens=512)

    def learn(self, prefill):
        """The prefiller says where its engine is with its first answer."""
        prefill.ask("hello", [1], 1, {"do_remote_decode": True})
        address = prefill.answer("hello")[1]["prefiller"]
        assert base64.b64decode(address)
        return address

    def send(self, prompt, *, prefill_prompt=None, count=16, request=None, decode=None):
        """A request to both, as the router does it. Returns its name."""
        request = request or f"r{next(self._numbers)}"
        (decode or self.decode).ask(request, prompt, count, {
            "do_remote_prefill": True, "transfer_id": request, "prefiller": self.address})
        self.prefill.ask(request, prefill_prompt or prompt, 1, {"do_remote_decode": True, "transfer_id": request})
        return request

    def close(self):
        for engine in (self.alone, self.prefill, self.decode):
            engine.close()


def prompts(count, seed, vocabulary=49000, longest=1500):
    """Of 1 to `longest` tokens, short ones more often; every third shares a prefix with the one before."""
    draw = random.Random(seed)
    made = [[draw.randrange(3, vocabulary)], [draw.randrange(3, vocabulary) for _ in range(longest)]]
    while len(made) < count:
        length = round(math.exp(draw.uniform(0, math.log(longest))))
        prompt = [draw.randrange(3, vocabulary) for _ in range(length)]
        if len(made) % 3 == 2:
            shared = made[-1][:draw.randrange(1, len(made[-1]) + 1)]
            prompt = (shared + prompt)[:longest]
        made.append(prompt)
    return made[:count]


@pytest.fixture(scope="session")
def cluster():
    assert MODEL, "TE_VLLM_MODEL is the directory of the model; `make test-vllm` sets it"
    made = Cluster(check_prompts=False)  # for the negative control
    yield made
    made.close()

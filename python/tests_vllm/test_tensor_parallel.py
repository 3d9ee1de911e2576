"""Instances of different tensor parallelism: each pair of workers transfers the heads that both have."""
import random

import pytest

from conftest import transfer
from engines import Engine
from models import dense, save

TOKENS = 16


def both(name, model, ranks):
    return Engine(name, model, transfer("kv_both", name=name), {"VLLM_CPU_OMP_THREADS_BIND": "|".join("01"[:ranks])},
                  max_num_batched_tokens=256, tensor_parallel_size=ranks)


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """One vLLM alone, and two that are prefiller and decoder, of one and of two ranks."""
    model = save(dense, 5, tmp_path_factory.mktemp("dense") / "model")
    started = [Engine("alone", model, max_num_batched_tokens=256), both("one", model, 1), both("two", model, 2)]
    try:
        yield [engine.until_up() for engine in started]
    finally:
        for engine in started:
            engine.close()


@pytest.mark.parametrize("prefiller, decoder", [(1, 2), (2, 1)])
def test_tokens_are_those_of_one_process(engines, prefiller, decoder):
    alone, prefill, decode = engines[0], engines[prefiller], engines[decoder]
    draw = random.Random(prefiller)
    prompts = [[draw.randrange(3, 1000) for _ in range(length)] for length in (1, 31, 32, 33, 700, 1100)]
    other = [draw.randrange(3, 1000) for _ in range(700)]
    expected = [alone.tokens(f"a{prefiller}{index}", prompt) for index, prompt in enumerate(prompts)]
    prefill.ask(f"hello{prefiller}", [1], 1, {"do_remote_decode": True})
    address = prefill.answer(f"hello{prefiller}")[1]["prefiller"]
    assert address.count(",") == prefiller - 1

    def send(name, prompt, computed):
        decode.ask(name, prompt, TOKENS, {"do_remote_prefill": True, "transfer_id": name, "prefiller": address})
        prefill.ask(name, computed, 1, {"do_remote_decode": True, "transfer_id": name})
        return decode.answer(name)

    free = prefill.look("free"), decode.look("free")
    for index, prompt in enumerate(prompts):
        tokens, _, reason, _, cached = send(f"t{prefiller}{index}", prompt, prompt)
        assert reason == "length" and tokens == expected[index]
        assert cached >= len(prompt) - 1  # only the last token was computed here
        prefill.answer(f"t{prefiller}{index}")
    # The negative control: whoever decides what is computed is asked for another prompt, and refused.
    tokens, _, _, _, cached = send("other", other, prompts[4][:len(other)])
    assert cached == 0 and tokens == alone.tokens(f"o{prefiller}", other)
    prefill.answer("other")
    if prefiller > 1:  # who cuts an address off must not get a part of the cache
        params = {"do_remote_prefill": True, "transfer_id": "cut", "prefiller": address.partition(",")[0]}
        decode.ask("cut", other[1:], TOKENS, params)
        prefill.ask("cut", other[1:], 1, {"do_remote_decode": True, "transfer_id": "cut"})
        tokens, _, _, _, cached = decode.answer("cut")
        assert cached == 0 and tokens == alone.tokens("cut", other[1:])
        prefill.answer("cut")
    decode.ask("gone", other[::-1], TOKENS, {"do_remote_prefill": True, "transfer_id": "gone", "prefiller": address})
    decode.abort("gone")
    prefill.ask("gone", other[::-1], 1, {"do_remote_decode": True, "transfer_id": "gone"})
    prefill.answer("gone")
    for engine, blocks in zip((prefill, decode), free):
        engine.until_free(blocks)

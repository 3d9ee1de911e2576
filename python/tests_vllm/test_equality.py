"""A prefiller and a decoder give the tokens of one vLLM alone: whatever is aborted, preempted or killed meanwhile."""
import random
import time

from conftest import COUNT, prompts


def test_prompts_of_mixed_length_with_aborts_in_between(cluster):
    draw = random.Random(11)
    free = cluster.prefill.look("free"), cluster.decode.look("free")
    mine = prompts(COUNT, seed=7)
    wrong = []
    for begin in range(0, len(mine), 8):
        batch = mine[begin:begin + 8]
        for index, prompt in enumerate(batch):
            cluster.alone.ask(f"a{begin + index}", prompt)
        sent = [cluster.send(prompt) for prompt in batch]
        doomed = [cluster.send(draw.choice(batch), request=f"x{begin + index}") for index in range(3)]
        for request in doomed:  # at any time: some before, some while the cache is pushed, some after
            time.sleep(draw.uniform(0, 0.3))
            draw.choice([cluster.decode, cluster.prefill]).abort(request)
        for index, request in enumerate(sent):
            tokens, _, reason, _, cached = cluster.decode.answer(request)
            assert reason == "length"
            # Only the last token was computed here: otherwise equality would say nothing about the transfer.
            assert cached >= len(batch[index]) - 1
            expected = cluster.alone.answer(f"a{begin + index}")[0]
            if tokens != expected:
                wrong.append((begin + index, len(batch[index]), tokens, expected))
    assert not wrong
    # All blocks come back, also those of aborted requests.
    for engine, blocks in zip((cluster.prefill, cluster.decode), free):
        engine.until_free(blocks)


def test_the_cache_that_was_pushed_is_the_one_that_is_used(cluster):
    """The negative control: with another prompt's cache the tokens are that prompt's."""
    draw = random.Random(5)
    mine = [draw.randrange(3, 49000) for _ in range(300)]
    other = [draw.randrange(3, 49000) for _ in range(299)] + mine[-1:]
    expected, others = cluster.alone.tokens("mine", mine), cluster.alone.tokens("other", other)
    assert expected != others
    assert cluster.decode.look("reset") is True
    got = cluster.decode.answer(cluster.send(mine, prefill_prompt=other))[0]
    assert got != expected
    assert got == others
    # What was cached under the wrong name must not stay.
    assert cluster.decode.look("reset") is True
    assert cluster.decode.answer(cluster.send(mine))[0] == expected


def test_a_prefiller_is_killed_and_another_one_comes(cluster):
    draw = random.Random(3)
    fresh = [[draw.randrange(3, 49000) for _ in range(900)] for _ in range(4)]
    expected = [cluster.alone.tokens(f"k{index}", prompt) for index, prompt in enumerate(fresh)]
    sent = [cluster.send(prompt) for prompt in fresh]
    time.sleep(0.5)
    cluster.prefill.kill()
    # The decoder computes what did not arrive: the same tokens, and nobody waits for ever.
    answers = [cluster.decode.answer(request) for request in sent]
    assert [answer[0] for answer in answers] == expected
    assert any(answer[4] == 0 for answer in answers)  # not all of it had been pushed
    cluster.prefill = cluster.start("prefill", "kv_producer").until_up()
    cluster.address = cluster.learn(cluster.prefill)
    assert cluster.decode.look("reset") is True
    tokens, _, _, _, cached = cluster.decode.answer(cluster.send(fresh[0]))
    assert tokens == expected[0] and cached >= len(fresh[0]) - 1

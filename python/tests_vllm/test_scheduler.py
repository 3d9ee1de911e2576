"""The halves in the scheduler, without engines: what they hold back, what they announce, and which blocks have to stay."""
import base64
from types import SimpleNamespace

import pytest

from transfer_engine.vllm.connector import Options
from transfer_engine.vllm.messages import Offer, Progress, Step, pack_input, prompt_digest, senders, unpack_input
from transfer_engine.vllm.scheduler import DecodeScheduler, PrefillScheduler

BLOCK = 32


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def request(name, tokens, **params):
    return SimpleNamespace(request_id=name, prompt_token_ids=list(range(tokens)), num_prompt_tokens=tokens,
                           kv_transfer_params=params or None)


def remote(name, tokens, transfer="t"):
    return request(name, tokens, do_remote_decode=True, transfer_id=transfer)


def output(new=(), cached=(), preempted=()):
    """New and cached are (request, blocks, computed, scheduled)."""
    return SimpleNamespace(
        preempted_req_ids=set(preempted), num_scheduled_tokens={one[0]: one[3] for one in (*new, *cached)},
        scheduled_new_reqs=[SimpleNamespace(req_id=name, block_ids=(blocks,), num_computed_tokens=computed)
                            for name, blocks, computed, _ in new],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=[one[0] for one in cached], resumed_req_ids=set(),
            new_block_ids=[(one[1],) if one[1] else None for one in cached],
            num_computed_tokens=[one[2] for one in cached]))


@pytest.fixture
def prefill():
    scheduler = PrefillScheduler(BLOCK, patience=10, checks_prompts=True, clock=Clock())
    scheduler.addresses = [b"where"]
    return scheduler


def offer(prefill, tokens, transfer="t"):
    end = -(-tokens // BLOCK) * BLOCK
    prefill.heard(Progress({transfer: Offer(prompt_digest(list(range(tokens))), end)}))


def build(prefill, *arguments, **options):
    step = Step()
    prefill.build(step, output(*arguments, **options))
    return step


def test_a_request_waits_for_its_decoder_but_not_for_ever(prefill):
    one = remote("r", 40)
    assert not prefill.may_begin(one)
    prefill._clock.now += 9
    assert not prefill.may_begin(one)
    prefill._clock.now += 1
    assert prefill.may_begin(one)
    prefill.allocated(one)
    assert build(prefill, [("r", [1, 2], 0, 40)]).chunks == []
    assert prefill.finished(one, False) == (False, {"prefiller": base64.b64encode(b"where").decode()})
    assert prefill.may_begin(request("local", 40))


@pytest.mark.parametrize("began", [False, True])
def test_an_offer_that_comes_after_the_end_is_refused(prefill, began):
    one = remote("r", 40)
    if began:
        prefill._clock.now += 20
        prefill.may_begin(one)
        prefill.allocated(one)
    prefill.finished(one, not began)
    offer(prefill, 40)
    assert build(prefill).refused == {"t": "the prefiller's request has ended"}
    offer(prefill, 40, "another")
    assert build(prefill).refused == {} and prefill.may_begin(remote("s", 40, "another"))


def test_chunks_follow_each_other_and_the_last_one_fills_its_block(prefill):
    one = remote("r", 100)
    offer(prefill, 100)
    assert prefill.may_begin(one)
    prefill.allocated(one)
    first = build(prefill, [("r", [7, 8], 32, 32)]).chunks[0]  # 32 were in the cache: they go as well
    assert (first.begin, first.end, first.blocks) == (0, 64, [7, 8])
    second = build(prefill, cached=[("r", [9, 4], 64, 36)]).chunks[0]
    assert (second.begin, second.end, second.blocks) == (64, 128, [7, 8, 9, 4])
    assert build(prefill, cached=[("r", None, 100, 1)]).chunks == []  # generates
    assert prefill.finished(one, False)[0] is True
    assert build(prefill).aborted == []


@pytest.mark.parametrize("announced", [False, True])
def test_an_abort_holds_blocks_only_when_the_worker_knows_of_them(prefill, announced):
    one = remote("r", 100)
    offer(prefill, 100)
    prefill.allocated(one)
    if announced:
        build(prefill, [("r", [7, 8], 0, 64)])
    assert prefill.finished(one, True)[0] is announced
    step = build(prefill)
    assert (step.aborted, bool(step.refused)) == ((["r"], False) if announced else ([], True))
    assert build(prefill).aborted == []


def test_an_abort_before_the_beginning_refuses_the_decoder(prefill):
    offer(prefill, 100)
    assert prefill.finished(remote("r", 100), True)[0] is False
    assert "ended" in build(prefill).refused["t"]


def test_preempted_blocks_are_given_up_and_the_request_begins_again_by_itself(prefill):
    one = remote("r", 100)
    offer(prefill, 100)
    prefill.allocated(one)
    build(prefill, [("r", [7, 8], 0, 64)])
    assert build(prefill, preempted=["r", "other"]).preempted == ["r"]
    assert prefill.may_begin(one)
    prefill.allocated(one)
    assert build(prefill, [("r", [1, 2, 3, 4], 0, 100)]).chunks == []
    assert prefill.finished(one, False)[0] is False


def test_another_prompt_is_refused(prefill):
    offer(prefill, 100)
    prefill.allocated(request("r", 100, do_remote_decode=True, transfer_id="t"))
    assert not build(prefill).refused
    prefill.heard(Progress({"u": Offer(b"x" * 16, 128)}))
    prefill.allocated(remote("s", 100, "u"))
    assert "prompt" in build(prefill).refused["u"]
    offer(prefill, 60, "v")
    prefill._checks_prompts = False
    prefill.allocated(remote("w", 100, "v"))
    assert "64 tokens" in build(prefill).refused["v"]


def test_what_is_withdrawn_is_waited_for_again(prefill):
    offer(prefill, 40)
    prefill.heard(Progress({}, {"t"}))
    assert not prefill.may_begin(remote("r", 40))


def test_a_request_waits_for_all_tensor_ranks_of_its_decoder(prefill):
    """Two workers here, four ranks there: each worker is asked twice, now or later."""
    one, digest = remote("r", 40), prompt_digest(list(range(40)))
    offered = [Progress({"t": Offer(digest, 64, total=4)}) for _ in range(4)]
    prefill.heard(offered[0].aggregate(offered[1]))
    assert not prefill.may_begin(one)
    prefill.heard(offered[2].aggregate(Progress()))
    assert not prefill.may_begin(one)
    prefill.heard(Progress().aggregate(offered[3]))
    assert prefill.may_begin(one)
    prefill.allocated(one)
    assert len(build(prefill, [("r", [1, 2], 0, 40)]).chunks) == 1


def test_what_not_all_ranks_have_asked_for_is_refused_and_so_is_the_rest(prefill):
    one = remote("r", 40)
    late = Progress({"t": Offer(prompt_digest(list(range(40))), 64, total=2)})
    prefill.may_begin(one)
    prefill.heard(late)
    prefill._clock.now += 10
    assert prefill.may_begin(one)
    prefill.allocated(one)
    assert "ranks" in build(prefill, [("r", [1, 2], 0, 40)]).refused["t"]
    assert prefill.finished(one, False)[0] is False
    prefill.heard(late)
    assert "ended" in build(prefill).refused["t"]


def test_every_head_is_asked_for_once_by_each_that_has_it():
    for heads in (1, 2, 4, 8, 12):
        sizes = [ranks for ranks in (1, 2, 3, 4, 6, 8, 16) if heads % ranks == 0 or ranks % heads == 0]
        for ranks in sizes:
            for others in sizes:
                asked = [senders(heads, ranks, rank, others) for rank in range(ranks)]
                for rank in range(ranks):
                    mine = {head for head in range(heads) if rank * heads // ranks <= head
                            < max(rank * heads // ranks + 1, (rank + 1) * heads // ranks)}
                    theirs = [head for other in asked[rank] for head in range(heads) if other * heads // others <= head
                              < max(other * heads // others + 1, (other + 1) * heads // others)]
                    assert len(theirs) == len(set(theirs)) and mine <= set(theirs)
                    if others % ranks == 0 or ranks % others == 0:
                        assert len(asked[rank]) <= max(1, others // ranks)
                if heads == 1 and ranks % others == 0:  # equal ones share the work
                    assert {asked.count([other]) for other in range(others)} == {ranks // others}


def test_a_prefiller_that_is_none_ends_nobody():
    for bad in ({}, {"prefiller": 3, "transfer_id": "t"}, {"prefiller": "?", "transfer_id": "t"},
                {"prefiller": "", "transfer_id": "t"}, {"prefiller": "d2hlcmU="}):
        one = request("r", 100, do_remote_prefill=True, **bad)
        decode = DecodeScheduler(BLOCK)
        assert decode.matched_tokens(one, 0) == (0, False)
        decode.allocated(one, [1, 2, 3, 4], 0)
        step = Step()
        decode.build(step)
        assert not step.asks


def test_a_decoder_asks_once_for_what_it_has_not():
    decode = DecodeScheduler(BLOCK)
    one = request("r", 100, do_remote_prefill=True, transfer_id="t", prefiller=base64.b64encode(b"where").decode())
    assert decode.matched_tokens(request("local", 100), 0) == (0, False)
    assert decode.matched_tokens(one, 32) == (68, True)
    assert decode.matched_tokens(one, 32) == (68, True)  # asking changes nothing
    decode.allocated(one, [5, 6, 7, 8, 9], 68)
    decode.allocated(one, [5, 6, 7, 8, 9], 0)
    assert decode.matched_tokens(one, 0) == (0, False)  # after a failure it is computed here
    step = Step()
    decode.build(step)
    ask = step.asks["r"]
    assert (ask.cached, ask.end, ask.blocks, ask.prefillers) == (32, 128, [5, 6, 7, 8], [b"where"])
    decode.finished(one)
    decode.finished(request("local", 3))
    step = Step()
    decode.build(step)
    assert step.cancelled == ["r"] and not step.asks


def test_inputs_and_options_that_are_none():
    assert unpack_input(pack_input("té", b"d" * 16, 3, 2), 2) == ("té", b"d" * 16, 3)
    for data in (b"", b"TEV2", b"x" * 40, b"TEV1" + b"x" * 40):
        with pytest.raises(ValueError):
            unpack_input(data, 1)
    with pytest.raises(ValueError, match="1 tensor ranks of a prefiller that has 2"):
        unpack_input(pack_input("t", b"d" * 16, 1, 1), 2)
    assert Options.of({"nics": ["shm", "tcp:lo"]}).nics == ("shm", "tcp:lo")
    with pytest.raises(ValueError, match="hearbeat"):
        Options.of({"hearbeat": 1})

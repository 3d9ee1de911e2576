"""Prefiller and decoder: in one process, and in two of which one is killed."""
import asyncio
import contextlib
import multiprocessing
import os
import signal
import time

import pytest

import transfer_engine as te
from transfer_engine import kv

LAYERS, HEADS, HEAD_BYTES, PAGE_TOKENS, PAGES = 3, 4, 64, 8, 16
PAGE = HEADS * HEAD_BYTES * PAGE_TOKENS
# Heartbeats often, so that little is waited for; many of them, because a busy machine may not let anybody speak for a while.
FAST = dict(heartbeat=0.1, heartbeats=50, cancel_timeout=5, quarantine=0.2)


def layout(**changes):
    options = dict(model="m@1", element_type="bf16", groups=[kv.Group(range(LAYERS), HEADS, HEAD_BYTES, PAGE_TOKENS)])
    return kv.Layout(**{**options, **changes})


def rank(engine):
    region = engine.allocate(LAYERS * PAGES * PAGE)
    return kv.Rank(engine, [region], [kv.Plane(layer * PAGES * PAGE, PAGE, PAGES) for layer in range(LAYERS)])


def page(region, layer, number):
    begin = (layer * PAGES + number) * PAGE
    return bytes(memoryview(region)[begin:begin + PAGE])


def content(layer, number):
    return bytes([(layer * 50 + number * 3 + 1) % 256]) * PAGE


class Sides:
    def __init__(self, **options):
        self.source, self.target = te.Engine("source", timeout=10), te.Engine("target", timeout=10)
        self.from_rank, self.to_rank = rank(self.source), rank(self.target)
        self.sent, self.got = self.from_rank.regions[0], self.to_rank.regions[0]
        view = memoryview(self.sent)
        for layer in range(LAYERS):
            for number in range(PAGES):
                begin = (layer * PAGES + number) * PAGE
                view[begin:begin + PAGE] = content(layer, number)
        view.release()
        self.prefiller = kv.Prefiller("p", options.pop("source_layout", layout()), [self.from_rank], **FAST)
        self.decoder = kv.Decoder("d", layout(), [self.to_rank], **FAST, **options)
        self.peer = self.decoder.connect(self.prefiller.address)

    def job(self):
        return wait_for(self.prefiller, kv.Kind.JOB).job

    def close(self):
        self.source.close()
        self.target.close()


@pytest.fixture(params=[False, True], ids=["", "digests"])
def sides(request):
    sides = Sides(digests=request.param)
    yield sides
    sides.close()


def wait_for(role, *kinds):
    """The first event of a kind; others before it are dropped, those behind it are kept."""
    deadline = time.monotonic() + 20
    kept = vars(role).setdefault("kept", [])
    while time.monotonic() < deadline:
        kept += role.poll(0 if kept else 0.1)
        while kept:
            event = kept.pop(0)
            if event.kind in kinds:
                return event
    raise AssertionError(f"no {kinds} within 20 s")


def test_layers_arrive_as_they_are_computed(sides):
    request = sides.decoder.ask(sides.peer, end=24, pages=[[5, 1, 9]], input=b"prompt", layerwise=True)
    job = sides.job()
    assert (job.decoder, job.cached, job.end, job.input, job.tail_bytes) == ("d", 0, 24, b"prompt", None)
    assert 0 < job.timeout <= 30
    job.accept([[2, 3, 7]])
    sides.prefiller.forward([(job, 0, 24)])
    sides.prefiller.computed(1)
    event = wait_for(sides.decoder, kv.Kind.LAYER)
    assert event.layer == 0 and event.request is request
    assert page(sides.got, 0, 9) == content(0, 7) and page(sides.got, 1, 9) == bytes(PAGE)
    sides.prefiller.computed(LAYERS)
    assert wait_for(sides.decoder, kv.Kind.READY).request is request
    for layer in range(LAYERS):
        for mine, theirs in zip([5, 1, 9], [2, 3, 7]):
            assert page(sides.got, layer, mine) == content(layer, theirs)
    assert page(sides.got, 0, 0) == bytes(PAGE)
    assert wait_for(sides.prefiller, kv.Kind.RELEASED).job is job
    request.cancel()  # after the end
    job.abort("after the end")


@pytest.mark.parametrize("senders, receivers", [(1, 2), (2, 1), (2, 2), (4, 2)])
def test_tensor_ranks_that_are_processes_have_roles_of_their_own(senders, receivers):
    """Here they are engines of one process: what each pair transfers are the heads that both have."""
    ranks = {}
    with contextlib.ExitStack() as stack:
        for make, count in ((kv.Prefiller, senders), (kv.Decoder, receivers)):
            bytes_ = PAGE // count
            for index in range(count):
                engine = stack.enter_context(te.Engine(f"{make.__name__} {index}", timeout=10))
                region = engine.allocate(LAYERS * PAGES * bytes_)
                planes = [kv.Plane(layer * PAGES * bytes_, bytes_, PAGES) for layer in range(LAYERS)]
                part = layout(first_tensor_rank=index, all_tensor_ranks=count)
                role = stack.enter_context(make(f"{make.__name__} {index}", part, [kv.Rank(engine, [region], planes)], **FAST))
                ranks[make, index] = role, region

        def head(make, count, number, layer, one):
            """The bytes of a head in a page: heads are first, so they lie together."""
            region, heads = ranks[make, number * count // HEADS][1], HEADS // count
            begin = ((layer * PAGES + one) * heads + number % heads) * HEAD_BYTES * PAGE_TOKENS
            return memoryview(region)[begin:begin + HEAD_BYTES * PAGE_TOKENS]

        for number in range(HEADS):
            for layer in range(LAYERS):
                with head(kv.Prefiller, senders, number, layer, 3) as view:
                    view[:] = bytes([17 * number + layer + 1]) * len(view)
        pairs = [(source, target) for target in range(receivers) for source in range(senders)
                 if source * receivers < (target + 1) * senders and target * senders < (source + 1) * receivers]
        for source, target in pairs:
            decoder = ranks[kv.Decoder, target][0]
            decoder.ask(decoder.connect(ranks[kv.Prefiller, source][0].address), end=PAGE_TOKENS, pages=[[6]])
        for source in range(senders):
            prefiller = ranks[kv.Prefiller, source][0]
            jobs = [wait_for(prefiller, kv.Kind.JOB).job for pair in pairs if pair[0] == source]
            for job in jobs:
                job.accept([[3]])
            prefiller.forward([(job, 0, PAGE_TOKENS) for job in jobs])
            prefiller.computed(LAYERS)
        for _, target in pairs:
            wait_for(ranks[kv.Decoder, target][0], kv.Kind.READY)
        for number in range(HEADS):
            for layer in range(LAYERS):
                with head(kv.Decoder, receivers, number, layer, 6) as view:
                    assert bytes(view) == bytes([17 * number + layer + 1]) * len(view)


def test_ranks_without_a_common_head_refuse_each_other():
    with te.Engine("source", timeout=10) as source, te.Engine("target", timeout=10) as target:
        prefiller = kv.Prefiller("p", layout(all_tensor_ranks=2), [rank(source)], **FAST)
        decoder = kv.Decoder("d", layout(first_tensor_rank=1, all_tensor_ranks=2), [rank(target)], **FAST)
        decoder.ask(decoder.connect(prefiller.address), end=8, pages=[[1]])
        reason = wait_for(decoder, kv.Kind.FAILED).reason
        assert reason.code is kv.Code.INCOMPATIBLE and "heads" in reason.message
        prefiller.close()
        decoder.close()


def test_chunks_bring_their_pages_and_a_prefix_stays_away(sides):
    sides.decoder.ask(sides.peer, cached=8, end=24, pages=[[5, 1, 9]])
    job = sides.job()
    job.accept([[2]])
    for chunk, (begin, end, pages) in enumerate([(0, 8, [2]), (8, 13, [2, 3]), (13, 24, [2, 3, 7])]):
        job.extend([pages])
        sides.prefiller.forward([(job, begin, end)])
        sides.prefiller.computed(LAYERS * (chunk + 1))
    wait_for(sides.decoder, kv.Kind.READY)
    assert page(sides.got, 2, 1) == content(2, 3) and page(sides.got, 2, 9) == content(2, 7)
    assert page(sides.got, 2, 5) == bytes(PAGE)


def test_a_tail_and_a_watched_word(sides):
    word = sides.source.allocate(8)
    sides.prefiller.watch(word, 0)
    with pytest.raises(te.Busy):
        word.close()
    sides.decoder.ask(sides.peer, end=8, pages=[[15]], tail=kv.Tail(offset=0, byte_count=100))
    job = sides.job()
    assert job.tail_bytes == 100
    job.accept([[0]])
    sides.prefiller.forward([(job, 0, 8)])
    count = memoryview(word).cast("Q")
    count[0] = LAYERS
    job.write_tail(PAGE)
    wait_for(sides.decoder, kv.Kind.READY)
    count.release()
    assert page(sides.got, 0, 15) == content(0, 0)
    assert page(sides.got, 0, 0)[:101] == content(0, 1)[:100] + b"\0"


def test_cancelled_pages_are_free_after_the_receipt(sides):
    request = sides.decoder.ask(sides.peer, end=8, pages=[[0]])
    job = sides.job()
    job.accept([[0]])
    request.cancel()
    request.cancel()
    event = wait_for(sides.decoder, kv.Kind.FAILED, kv.Kind.READY)
    assert event.kind is kv.Kind.FAILED and event.reason.code is kv.Code.CANCELLED
    assert wait_for(sides.decoder, kv.Kind.PAGES_FREE).request is request
    stop = wait_for(sides.prefiller, kv.Kind.STOP)
    assert stop.job is job and "cancelled" in str(stop.reason)
    wait_for(sides.prefiller, kv.Kind.RELEASED)


def test_a_job_that_is_refused_or_given_up_says_why(sides):
    sides.decoder.ask(sides.peer, end=8, pages=[[0]])
    sides.job().abort("no such prompt")
    reason = wait_for(sides.decoder, kv.Kind.FAILED).reason
    assert reason == kv.Reason(kv.Code.REFUSED, "no such prompt")
    wait_for(sides.decoder, kv.Kind.PAGES_FREE)
    sides.decoder.ask(sides.peer, end=8, pages=[[0]])
    job = sides.job()
    job.accept([[0]])
    assert sides.prefiller.load() == (1, 8)
    job.abort("preempted")
    assert wait_for(sides.decoder, kv.Kind.FAILED).reason == kv.Reason(kv.Code.ABORTED, "preempted")
    sides.prefiller.drain()
    sides.decoder.ask(sides.peer, end=8, pages=[[0]])
    assert "drains" in wait_for(sides.decoder, kv.Kind.FAILED).reason.message


def test_another_model_is_refused_with_the_field():
    with contextlib.closing(Sides(source_layout=layout(model="m@2"))) as sides:
        sides.decoder.ask(sides.peer, end=8, pages=[[0]])
        reason = wait_for(sides.decoder, kv.Kind.FAILED).reason
        assert reason.code is kv.Code.INCOMPATIBLE
        assert "m@1" in reason.message and "m@2" in reason.message
        assert sides.peer.status().lost.code is kv.Code.INCOMPATIBLE


def test_misuse_is_an_exception(sides):
    with pytest.raises(te.Busy, match="role"):
        sides.sent.close()
    with pytest.raises(te.Busy, match="role"):
        kv.Prefiller("again", layout(), [sides.from_rank])
    with pytest.raises(te.InvalidArgument, match="planes"):
        kv.Decoder("d", layout(), [kv.Rank(te.Engine("x"), [], [])])
    with pytest.raises(te.InvalidArgument):
        kv.Decoder("d", layout(groups=[]), [])
    with pytest.raises(te.InvalidArgument, match="thread"):
        with te.Engine("manual", progress="manual") as engine:
            kv.Decoder("d", layout(), [rank(engine)])
    with pytest.raises(te.InvalidArgument):
        sides.decoder.ask(sides.peer, cached=9, end=8, pages=[[0]])
    with pytest.raises(te.MalformedDescriptor):
        sides.decoder.connect(b"nonsense")
    with pytest.raises(te.InvalidArgument, match="stage"):
        sides.prefiller.computed(1, stage=1)
    sides.decoder.ask(sides.peer, end=8, pages=[[PAGES]])
    assert wait_for(sides.decoder, kv.Kind.FAILED).reason.code is kv.Code.INVALID_LAYOUT
    job_request = sides.decoder.ask(sides.peer, end=8, pages=[[0]])
    job = sides.job()
    job.accept([[0]])
    with pytest.raises(te.InvalidArgument, match="accepted"):
        job.accept([[0]])
    job_request.cancel()
    sides.peer.close()
    sides.peer.close()
    sides.decoder.close()
    sides.decoder.close()
    with pytest.raises(te.BadHandle):
        sides.decoder.poll()
    sides.got.close()  # is the caller's again


def test_asyncio(sides):
    async def main():
        sides.decoder.ask(sides.peer, end=8, pages=[[3]])
        async for event in sides.prefiller.events():
            assert event.kind is kv.Kind.JOB
            event.job.accept([[4]])
            sides.prefiller.forward([(event.job, 0, 8)])
            sides.prefiller.computed(LAYERS)
            break
        async for event in sides.decoder.events():
            return event.kind

    assert asyncio.run(asyncio.wait_for(main(), 20)) is kv.Kind.READY
    assert page(sides.got, 1, 3) == content(1, 4)


def prefill(channel):
    """Serves jobs: writes half of a job whose input is b"half", and then nothing more."""
    with te.Engine("prefiller", timeout=10) as engine:
        mine = rank(engine)
        view = memoryview(mine.regions[0])
        for layer in range(LAYERS):
            for number in range(PAGES):
                begin = (layer * PAGES + number) * PAGE
                view[begin:begin + PAGE] = content(layer, number)
        view.release()
        with kv.Prefiller("p", layout(), [mine], **FAST) as prefiller:
            channel.send(prefiller.address)
            passes = 0
            while True:
                for event in prefiller.poll(0.1):
                    if event.kind is kv.Kind.JOB:
                        job = event.job
                        job.accept([list(range(job.end // PAGE_TOKENS))])
                        prefiller.forward([(job, 0, job.end)])
                        prefiller.computed(passes * LAYERS + (1 if job.input == b"half" else LAYERS))
                        passes += 1


def test_a_prefiller_that_is_killed_and_another_one():
    spawn = multiprocessing.get_context("spawn")
    processes = []

    def start():
        here, there = spawn.Pipe()
        process = spawn.Process(target=prefill, args=(there,))
        process.start()
        processes.append(process)
        assert here.poll(30)
        return process, here.recv()

    try:
        with te.Engine("decoder", timeout=10) as engine:
            mine = rank(engine)
            with kv.Decoder("d", layout(), [mine], **FAST) as decoder:
                process, address = start()
                peer = decoder.connect(address)
                decoder.ask(peer, end=16, pages=[[2, 1]])
                wait_for(decoder, kv.Kind.READY)
                assert page(mine.regions[0], 2, 1) == content(2, 1)
                decoder.ask(peer, end=16, pages=[[4, 5]], input=b"half", layerwise=True)
                wait_for(decoder, kv.Kind.LAYER)
                os.kill(process.pid, signal.SIGKILL)
                failed = wait_for(decoder, kv.Kind.FAILED)
                assert failed.reason.code is kv.Code.PEER_LOST and "prefiller" in failed.reason.message
                wait_for(decoder, kv.Kind.PAGES_FREE)
                assert peer.status().lost.code is kv.Code.PEER_LOST
                _, address = start()
                decoder.ask(decoder.connect(address), end=16, pages=[[4, 5]])
                wait_for(decoder, kv.Kind.READY)
                assert page(mine.regions[0], 2, 5) == content(2, 1)
    finally:
        for process in processes:
            process.kill()
            process.join(10)

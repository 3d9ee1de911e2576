"""Exchanges of experts: between threads and between processes, beside a computation in one place; and misuse."""
import multiprocessing
import threading

import numpy
import pytest

import transfer_engine as te
from transfer_engine import moe

EXPERTS, TOP, HIDDEN, TOKENS = 5, 2, 48, 9


def shape(rank, ranks, **changes):
    options = dict(rank=rank, ranks=ranks, experts=EXPERTS, top_k=TOP, hidden=HIDDEN, maximum_tokens=TOKENS,
                   dispatch=moe.Element.FLOAT32, combine=moe.Element.FLOAT32, spins=1, deadline=20)
    return {**options, **changes}


def first_expert(rank, ranks):
    return EXPERTS // ranks * rank + min(rank, EXPERTS % ranks)


def run_expert(expert, x):
    return x * numpy.float32(expert + 1) + numpy.float32(expert)


def step_of(seed, count):
    random = numpy.random.default_rng(seed)
    tokens = random.standard_normal((count, HIDDEN)).astype(numpy.float32)
    experts = random.integers(-1, EXPERTS, (count, TOP)).astype(numpy.int32)
    return tokens, experts, random.random((count, TOP)).astype(numpy.float32)


def expected(tokens, experts, weights):
    sums = numpy.zeros((len(tokens), HIDDEN), numpy.float64)
    for token in range(len(tokens)):
        for expert, weight in zip(experts[token], weights[token]):
            if expert >= 0:
                sums[token] += weight * run_expert(expert, tokens[token])
    return sums


def steps(exchange, seeds):
    """Steps of one rank; the greatest distance of its sums from what they should be."""
    worst = 0.0
    begin = first_expert(exchange.rank, exchange.ranks)
    for seed in seeds:
        # In one step a rank has nothing.
        count = 0 if (seed + exchange.rank) % 4 == 0 else TOKENS - exchange.rank
        tokens, experts, weights = step_of(seed * 10 + exchange.rank, count)
        exchange.dispatch_send(tokens, experts, weights)
        for received in exchange.passes():
            x = numpy.frombuffer(received.tokens, numpy.float32).reshape(-1, HIDDEN)
            y = numpy.frombuffer(received.outputs, numpy.float32).reshape(-1, HIDDEN)
            for number, (first, rows) in enumerate(received.experts):
                y[first:first + rows] = run_expert(begin + number, x[first:first + rows])
            del x, y
        sums = numpy.full((count, HIDDEN), numpy.nan, numpy.float32)
        result = exchange.combine_receive(sums)
        assert result == moe.Result(0, 0)
        if count:
            worst = max(worst, float(numpy.abs(sums - expected(tokens, experts, weights)).max()))
    return worst


def connected(ranks, **changes):
    engines = [te.Engine(f"rank {rank}", timeout=10) for rank in range(ranks)]
    exchanges = [moe.Exchange(engine, **shape(rank, ranks, **changes)) for rank, engine in enumerate(engines)]
    addresses = [exchange.address for exchange in exchanges]
    for exchange in exchanges:
        exchange.connect(addresses)
    return engines, exchanges


@pytest.mark.parametrize("ranks, changes", [
    (3, {}), (3, {"reduction": moe.Reduction.SENDER, "padding": 4}), (3, {"memory_budget": 40_000, "private_rows": 1}),
    (4, {"reduction": moe.Reduction.SENDER, "nodes": 2}),
], ids=["", "at the sender", "little memory", "over nodes"])
def test_sums_are_right(ranks, changes):
    engines, exchanges = connected(ranks, **changes)
    worst = [None] * ranks

    def run(rank):
        worst[rank] = steps(exchanges[rank], range(6))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(distance is not None and distance < 1e-4 for distance in worst), worst
    assert exchanges[0].missing == ()
    for engine in engines:
        engine.close()  # closes what stands on it
    assert all(exchange._handle == 0 for exchange in exchanges)


def process(rank, pipe):
    with te.Engine(f"rank {rank}", timeout=10) as engine, moe.Exchange(engine, **shape(rank, 2)) as exchange:
        pipe.send(exchange.address)
        exchange.connect(pipe.recv())
        pipe.send(steps(exchange, range(5)))
        pipe.recv()


def test_between_processes():
    context = multiprocessing.get_context("spawn")
    pipes, children = [], []
    for rank in range(2):
        ours, theirs = context.Pipe()
        child = context.Process(target=process, args=(rank, theirs))
        child.start()
        pipes.append(ours)
        children.append(child)
    try:
        def answer(pipe):
            assert pipe.poll(60)
            return pipe.recv()

        addresses = [answer(pipe) for pipe in pipes]
        for pipe in pipes:
            pipe.send(addresses)
        assert all(answer(pipe) < 1e-4 for pipe in pipes)
        for pipe in pipes:
            pipe.send(None)
    finally:
        for child in children:
            child.join(20)
            child.kill()
    assert [child.exitcode for child in children] == [0, 0]


def test_a_rank_that_is_gone_is_left_out():
    engines, exchanges = connected(2)
    engines[1].close()
    tokens = numpy.ones((2, HIDDEN), numpy.float32)
    experts = numpy.array([[0, 4], [1, 0]], numpy.int32)  # 4 is the other rank's
    exchanges[0].dispatch_send(tokens, experts, numpy.ones((2, TOP), numpy.float32))
    for received in exchanges[0].passes():
        numpy.frombuffer(received.outputs, numpy.float32)[:] = 1
    sums = numpy.zeros((2, HIDDEN), numpy.float32)
    assert exchanges[0].combine_receive(sums) == moe.Result(1, 1)
    assert exchanges[0].missing == (1,)
    assert isinstance(exchanges[0].failure(1), te.PeerLost) and exchanges[0].failure(0) is None
    assert (sums[0] == 1).all() and (sums[1] == 2).all()
    engines[0].close()


def test_misuse_is_an_exception():
    engine = te.Engine("rank 0", timeout=10)
    with pytest.raises(te.InvalidArgument, match="top-k"):
        moe.Exchange(engine, **shape(0, 1, top_k=65))
    exchange = moe.Exchange(engine, **shape(0, 1))
    tokens, experts, weights = step_of(1, 3)
    with pytest.raises(te.Closed):
        exchange.dispatch_send(tokens, experts, weights)
    with pytest.raises(te.InvalidArgument):
        exchange.connect([b"", b""])
    exchange.connect([b""])
    for wrong in (dict(tokens=tokens[:1], count=3), dict(experts=experts.astype(numpy.int64)),
                  dict(weights=weights.astype(numpy.float64)), dict(weights=weights[:2])):
        with pytest.raises(ValueError, match="are needed"):
            exchange.dispatch_send(**{**dict(tokens=tokens, experts=experts, weights=weights), **wrong})
    with pytest.raises((BufferError, ValueError)):
        exchange.dispatch_send(tokens[:, ::2], experts, weights)
    with pytest.raises(te.InvalidArgument, match="expert"):
        exchange.dispatch_send(tokens, experts + 100, weights)
    with pytest.raises(te.InvalidArgument):
        exchange.dispatch_receive()
    exchange.dispatch_send(tokens, experts, weights)
    received = exchange.dispatch_receive()
    assert sum(rows for _, rows in received.experts) == (experts >= 0).sum()
    exchange.combine_send()
    with pytest.raises(ValueError, match="are needed"):
        exchange.combine_receive(bytearray(8))
    with pytest.raises((BufferError, TypeError)):
        exchange.combine_receive(bytes(3 * HIDDEN * 4))
    exchange.combine_receive(bytearray(3 * HIDDEN * 4))
    # An array over memory of the exchange keeps it open: that memory would be gone.
    array = numpy.frombuffer(received.tokens, numpy.float32)
    with pytest.raises(BufferError):
        exchange.close()
    assert array.size == received.row_count * HIDDEN
    del array
    exchange.close()
    exchange.close()
    with pytest.raises(te.TransferError):
        exchange.dispatch_receive()
    with pytest.raises(BufferError):
        memoryview(received.outputs)
    engine.close()

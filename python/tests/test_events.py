import asyncio
import select
import threading

import pytest

import transfer_engine as te


def test_callbacks_run_in_poll(pair):
    seen = []
    transfer = pair.a.write(pair.source, pair.remote, 8)
    transfer.add_done_callback(lambda transfer, error: seen.append((transfer, error)))
    assert pair.a.poll(5) == 1 and seen == [(transfer, None)]
    failing = pair.a.expect(3, timeout=0.01)
    failing.add_done_callback(lambda transfer, error: seen.append(error))
    assert pair.a.poll(5) == 1
    assert isinstance(seen[-1], te.Stalled) and "immediate 3 was counted 0 of 1" in str(seen[-1])
    assert pair.a.poll() == 0


def test_a_callback_that_raises_does_not_stop_the_others(pair):
    seen = []

    def bad(transfer, error):
        raise KeyError("mine")

    batch = pair.a.batch()
    for _ in range(3):
        batch.write(pair.source, pair.remote, 8)
    transfers = batch.submit()
    pair.a.wait(transfers)
    transfers[0].add_done_callback(bad)
    transfers[1].add_done_callback(lambda transfer, error: seen.append(error))
    with pytest.raises(KeyError):
        while not seen:
            pair.a.poll(5)
    assert pair.a.poll() == 0 and seen == [None]


def test_the_file_is_readable_while_there_is_something(pair):
    poller = select.poll()
    poller.register(pair.a, select.POLLIN)
    assert not poller.poll(0)
    pair.a.write(pair.source, pair.remote, 8).add_done_callback(lambda *unused: None)
    assert poller.poll(5000)
    assert pair.a.poll() == 1
    assert not poller.poll(0)


def test_await(pair):
    async def main():
        arrived = pair.b.expect(7, 3)
        for _ in range(3):
            await pair.a.write(pair.source, pair.remote, 100, immediate=7)
        await arrived
        await arrived  # again
        with pytest.raises(te.Stalled):
            await pair.b.expect(8, timeout=0.01)
        await asyncio.gather(*(pair.a.write(pair.source, pair.remote, 8) for _ in range(500)))

    asyncio.run(main())
    asyncio.run(main())  # another loop


@pytest.mark.parametrize("progress, nics", [("event_loop", ["shm"]), ("event_loop", ["tcp:lo"]), ("manual", ["shm"])])
def test_await_without_a_thread(make_pair, progress, nics):
    """Nobody polls: peers, ends of transfers and deadlines wake the loop."""
    pair = make_pair(progress=progress, nics=nics)
    calls = []
    readable = pair.b._on_readable
    pair.b._on_readable = lambda: (calls.append(1), readable())

    async def main():
        arrived = asyncio.ensure_future(wait(pair.b.expect(7)))
        await pair.a.write(pair.source, pair.remote, 1 << 20, immediate=7)
        await arrived
        late = asyncio.ensure_future(wait(pair.b.expect(8)))
        await asyncio.sleep(0.1)
        before = len(calls)
        await asyncio.sleep(0.3)
        assert len(calls) - before <= 10
        await pair.a.send_immediate(pair.remote, 8)
        await late
        with pytest.raises(te.Stalled):
            await pair.b.expect(9, timeout=0.05)

    async def wait(transfer):
        await transfer

    asyncio.run(main())
    asyncio.run(main())  # another loop


def test_a_task_that_is_cancelled_leaves_its_transfer_alone(pair):
    async def main():
        transfer = pair.b.expect(9)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(transfer, 0.01)
        assert not transfer.done()
        pair.a.send_immediate(pair.remote, 9)
        await transfer

    asyncio.run(main())


def test_cancelling(pair):
    waiting = pair.b.expect(9)
    waiting.cancel()
    with pytest.raises(te.Cancelled):
        waiting.done()
    waiting.cancel()

    async def main():
        other = pair.b.expect(9)
        await other.cancel_async()
        with pytest.raises(te.Cancelled):
            await other

    asyncio.run(main())


def test_messages_as_they_come(pair):
    peer = pair.a.connect(pair.b.address)

    async def main():
        async def send():
            for number in range(300):
                await pair.a.send(peer, b"%d" % number)

        sending = asyncio.ensure_future(send())
        received = []
        async for sender, payload in pair.b.messages():
            received.append(int(payload))
            if len(received) == 300:
                break
        await sending
        assert sorted(received) == list(range(300))

    asyncio.run(main())


def test_watching(pair):
    changes = []
    words = memoryview(pair.source).cast("Q")
    with pair.a.watch(pair.source, 64, lambda old, new: changes.append((old, new))):
        words[8] = 5
        assert pair.a.poll(5) == 1 and changes == [(0, 5)]
        with pytest.raises(te.Busy):
            words.release()
            pair.source.close()
    memoryview(pair.source).cast("Q")[8] = 6
    assert pair.a.poll(0.05) == 0


def test_waits_release_the_gil(pair):
    """Were it kept, the other thread could not send what the wait is for, and the deadline would pass."""
    arrived = pair.b.expect(5, 2)
    sender = threading.Thread(target=lambda: [pair.a.send_immediate(pair.remote, 5) for _ in range(2)])
    sender.start()
    arrived.wait()
    sender.join()
    written = []
    pair.b.expect(6).add_done_callback(lambda *unused: written.append(True))
    sender = threading.Thread(target=lambda: pair.a.send_immediate(pair.remote, 6))
    sender.start()
    assert pair.b.poll(8) == 1 and written
    sender.join()


def test_many_threads(pair):
    def work(number):
        for _ in range(200):
            pair.a.write(pair.source, pair.remote, 64, immediate=100 + number).wait()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [pair.b.count(100 + number) for number in range(8)] == [200] * 8


def test_events_are_pushed_back(make_pair):
    pair = make_pair(event_capacity=4)
    waits = [pair.a.expect(3) for _ in range(5)]
    for wait in waits[:4]:
        wait.add_done_callback(lambda *unused: None)
    with pytest.raises(te.BackPressure):
        waits[4].add_done_callback(lambda *unused: None)
    for wait in waits:
        wait.cancel()
    assert sum(pair.a.poll() for _ in range(4)) == 4


def test_closing_ends_what_waits(make_pair):
    pair = make_pair()
    failures = []

    def wait():
        try:
            pair.b.expect(3, timeout=60).wait()
        except te.TransferError as error:
            failures.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while pair.b.statistics().pending_transfers == 0:
        pass
    pair.b.close()
    thread.join()
    # The second where the wait began, or looked again, after the engine was gone.
    assert isinstance(failures[0], (te.Closed, te.BadHandle))

    async def main():
        waiting = asyncio.ensure_future(pair.a._future(pair.a.expect(4)._handle))
        await asyncio.sleep(0)
        pair.a.close()
        with pytest.raises(te.Closed):
            await waiting

    asyncio.run(main())

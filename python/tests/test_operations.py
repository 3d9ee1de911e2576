import array

import numpy
import pytest

import transfer_engine as te


def test_write_moves_exactly_its_bytes(pair):
    pair.fill()
    pair.a.write(pair.source, pair.remote, 1000, source_offset=5, target_offset=70000, immediate=1).wait()
    source, target = bytes(pair.source), bytes(pair.target)
    assert target[70000:71000] == source[5:1005]
    assert not any(target[:70000]) and not any(target[71000:])
    assert pair.b.count(1) == 1
    assert not pair.b.consume(1, 2) and pair.b.consume(1, 1) and pair.b.count(1) == 0


def test_write_without_a_length_is_the_whole_region(pair):
    pair.fill()
    pair.a.write(pair.source, pair.remote).wait()
    assert bytes(pair.target) == bytes(pair.source)


PAGES = [5, 0, 3, 3]


@pytest.mark.parametrize(
    "make", [list, tuple, lambda p: array.array("I", p), lambda p: array.array("i", p), lambda p: array.array("q", p),
             lambda p: numpy.array(p, dtype=numpy.uint32), lambda p: numpy.array(p, dtype=numpy.int64),
             lambda p: numpy.array(p, dtype=numpy.int32), lambda p: (numpy.int64(page) for page in p),
             lambda p: memoryview(array.array("L", p))])
def test_pages_of_any_kind_of_list(pair, make):
    pair.fill()
    pair.a.write_pages(4096, pair.source, make(PAGES), pair.remote, make([7, 6, 2, 1]), immediate=9).wait()
    source, target = numpy.asarray(pair.source), numpy.asarray(pair.target)
    for from_page, to_page in zip(PAGES, [7, 6, 2, 1]):
        assert (target[to_page * 4096:][:4096] == source[from_page * 4096:][:4096]).all()
    assert pair.b.count(9) == 4
    del source, target


def test_pages_of_a_torch_tensor(pair):
    torch = pytest.importorskip("torch")
    pair.fill()
    pages = torch.tensor([1, 2], dtype=torch.int32)
    pair.a.write_pages(100, pair.source, pages, pair.remote, pages.long(), immediate=9, target_stride=200).wait()
    assert bytes(pair.target)[200:300] == bytes(pair.source)[100:200]
    assert bytes(pair.target)[400:500] == bytes(pair.source)[200:300]


def test_strides_and_offsets(pair):
    pair.fill()
    transfer = pair.a.write_pages(
        512, pair.source, [3, 1], pair.remote, [0, 2], source_stride=1024, source_offset=8, target_offset=4096)
    transfer.wait()
    source, target = bytes(pair.source), bytes(pair.target)
    assert target[4096:4608] == source[3080:3592] and target[5120:5632] == source[1032:1544]


@pytest.mark.parametrize("pages", [[0.5], ["x"], [-1], [1 << 32], numpy.zeros(2), numpy.array([-1]), b"abcd"])
def test_what_is_no_page_list(pair, pages):
    with pytest.raises((TypeError, ValueError, OverflowError)):
        pair.a.write_pages(1, pair.source, pages, pair.remote, pages)


def test_lists_of_different_length_and_pages_outside(pair):
    with pytest.raises(ValueError, match="1 source pages but 2"):
        pair.a.write_pages(1, pair.source, [1], pair.remote, [1, 2])
    with pytest.raises(te.OutOfRange, match="page 256"):
        pair.a.write_pages(4096, pair.source, [256], pair.remote, [0])
    with pytest.raises(te.OutOfRange):
        pair.a.write_pages(4096, pair.source, numpy.array([-1], dtype=numpy.int32), pair.remote, [0])


def test_scatter_and_barrier(pair):
    pair.fill()
    other = pair.b.allocate(4096)
    group = pair.a.group([pair.remote, pair.a.attach(other.descriptor)])
    pair.a.scatter(pair.source, [(0, 100, 10), (100, 50, 0)], group, immediate=3).wait()
    assert bytes(pair.target)[10:110] == bytes(pair.source)[:100]
    assert bytes(other)[:50] == bytes(pair.source)[100:150]
    assert pair.b.count(3) == 2 and len(group) == 2
    with pytest.raises(TypeError):
        pair.a.scatter(pair.source, [(0, 1)], group)
    with pytest.raises(te.InvalidArgument):
        pair.a.scatter(pair.source, [(0, 1, 0)], group)
    to_b, to_a = pair.a.group([pair.a.connect(pair.b.address)]), pair.b.group([pair.b.connect(pair.a.address)])
    first = pair.a.barrier(to_b, 5)
    assert not first.done()
    pair.b.barrier(to_a, 5).wait()
    first.wait()


def test_batches(pair):
    pair.fill()
    peer = pair.a.connect(pair.b.address)
    group = pair.a.group([pair.remote])
    batch = pair.a.batch()
    batch.write(pair.source, pair.remote, 8, immediate=1)
    batch.write_pages(16, pair.source, [1], pair.remote, numpy.array([2]), immediate=1)
    batch.scatter(pair.source, [(64, 8, 64)], group, immediate=1)
    batch.send_immediate(peer, 1)
    batch.send(peer, b"text")
    batch.expect(77, 1, senders=[peer], timeout=5)
    batch.barrier(group, 78)
    assert len(batch) == 7
    transfers = batch.submit()
    assert len(transfers) == 7 and len(batch) == 0
    assert pair.a.wait(transfers[:5])
    assert pair.b.count(1) == 4
    assert bytes(pair.target)[:8] == bytes(pair.source)[:8] and bytes(pair.target)[32:48] == bytes(pair.source)[16:32]
    for transfer in transfers[5:]:
        transfer.cancel()
    # The first that is refused ends the batch.
    batch.write(pair.source, pair.remote, 8, immediate=2)
    batch.write(pair.source, pair.remote, 8, target_offset=1 << 30, immediate=2)
    batch.write(pair.source, pair.remote, 8, immediate=2)
    with pytest.raises(te.OutOfRange) as caught:
        batch.submit()
    assert len(caught.value.transfers) == 1
    pair.a.wait(caught.value.transfers)
    assert pair.b.count(2) == 1 and batch.submit() == []


def test_messages(pair):
    peer = pair.a.connect(pair.b.address)
    assert peer.name == "b" and peer.engine_id == pair.b.id
    for payload in (b"", b"bytes", bytearray(b"array"), memoryview(b"view"), b"x" * 16384):
        pair.a.send(peer, payload).wait()
    received = []
    while len(received) < 5 and pair.b.poll(5):
        received += pair.b.receive()
    assert sorted(bytes for _, bytes in received) == sorted([b"", b"bytes", b"array", b"view", b"x" * 16384])
    assert {sender for sender, _ in received} == {pair.a.id}
    with pytest.raises(te.OutOfRange):
        pair.a.send(peer, b"x" * 16385)


def test_revoking(pair):
    pair.target.revoke()
    with pytest.raises(te.StaleRegion):
        pair.a.write(pair.source, pair.remote, 8, immediate=6).wait()
    assert pair.b.count(6) == 0
    pair.a.write(pair.source, pair.a.attach(pair.target.descriptor), 8, immediate=6).wait()
    assert pair.b.count(6) == 1


def test_leases(pair):
    peer = pair.a.connect(pair.b.address)
    lease = pair.b.lease(3)
    assert len(lease) == 3 and lease[2] == lease.first + 2
    with pytest.raises(IndexError):
        lease[3]
    pair.a.send_immediate(peer, lease[1]).wait()
    assert pair.b.count(lease[1]) == 1
    lease.end(is_quiet=False)
    pair.a.send_immediate(peer, lease[1]).wait()
    assert pair.b.count(lease[1]) == 0 and lease.reclaim() == 1
    with pytest.raises(te.BadHandle):
        lease.reclaim()


def test_digests(pair):
    pair.fill()
    pair.a.write_pages(512, pair.source, [3, 1], pair.remote, [0, 2]).wait()
    sent = pair.a.digest_pages(512, pair.source, [3, 1], [0, 2])
    assert sent == pair.b.digest_pages(512, pair.target, [2, 0], [2, 0])
    assert sent == pair.target.digest(0, 512) + pair.target.digest(1024, 512)
    memoryview(pair.target)[5] ^= 1
    assert sent != pair.b.digest_pages(512, pair.target, [2, 0], [2, 0])


def test_statistics_and_trace(pair, tmp_path):
    pair.a.write(pair.source, pair.remote, 8).wait()
    with pytest.raises(te.OutOfRange):
        pair.a.write(pair.source, pair.remote, 1 << 30)
    statistics = pair.a.statistics()
    assert (statistics.submitted, statistics.refused, statistics.bytes) == (1, 1, 8)
    assert (statistics.regions, statistics.remotes, statistics.pending_transfers) == (1, 1, 0)
    pair.a.write_trace(str(tmp_path / "trace"))
    assert (tmp_path / "trace").stat().st_size > 0


def test_manual_progress(make_pair):
    pair = make_pair(progress="manual")
    arrived = pair.b.expect(4)
    pair.a.write(pair.source, pair.remote, 1 << 20, immediate=4).wait()
    while not arrived.done():
        pair.b.progress()
    assert pair.b.poll() == 0


def test_tcp():
    with te.Engine("a", nics=["tcp:127.0.0.1"]) as a, te.Engine("b", nics=["tcp:127.0.0.1"]) as b:
        target = b.allocate(1 << 16)
        source = a.register(bytearray(range(256)) * 256, remote_write=False)
        arrived = b.expect(3, 16)
        a.write_pages(4096, source, list(range(16)), a.attach(target.descriptor), list(range(16)), immediate=3).wait()
        arrived.wait()
        assert bytes(target) == bytes(range(256)) * 256

import array
import ctypes
import gc
import mmap

import numpy
import pytest

import transfer_engine as te


def moved(pair, memory, expected):
    """Registers, writes, and returns what arrived."""
    with pair.a.register(memory, remote_write=False) as region:
        assert region.nbytes == len(expected)
        pair.a.write(region, pair.remote).wait()
    assert bytes(pair.target)[:len(expected)] == expected


def test_sources_with_the_buffer_protocol(pair):
    data = bytes(range(256)) * 4
    moved(pair, data, data)
    moved(pair, bytearray(data), data)
    moved(pair, memoryview(data)[100:200], data[100:200])
    moved(pair, array.array("d", [1.5, 2.5]), array.array("d", [1.5, 2.5]).tobytes())
    moved(pair, numpy.arange(100, dtype=numpy.float32).reshape(10, 10), numpy.arange(100, dtype=numpy.float32).tobytes())
    anonymous = mmap.mmap(-1, 4096)
    anonymous.write(b"mapped")
    moved(pair, anonymous, b"mapped" + bytes(4090))
    anonymous.close()
    moved(pair, (ctypes.c_uint16 * 4)(1, 2, 3, 4), bytes([1, 0, 2, 0, 3, 0, 4, 0]))


def test_targets_of_yours(pair):
    array = numpy.zeros(1000, dtype=numpy.uint8)
    with pair.b.register(array) as region:
        pair.fill()
        pair.a.write(pair.source, pair.a.attach(region.descriptor), 1000, immediate=1).wait()
        assert array.tobytes() == bytes(pair.source)[:1000]


def test_what_cannot_be_registered(pair):
    with pytest.raises(BufferError):
        pair.a.register(b"read only")
    with pytest.raises((BufferError, ValueError)):
        pair.a.register(numpy.zeros((10, 10))[:, 3], remote_write=False)
    with pytest.raises((TypeError, AttributeError)):
        pair.a.register(object())
    with pytest.raises(TypeError):
        pair.a.register(4096)
    with pytest.raises(TypeError):
        pair.a.allocate(bytearray(8))
    with pytest.raises(te.InvalidArgument):
        pair.a.register(b"", remote_write=False)


def test_a_region_keeps_what_it_registered(pair):
    data = bytearray(b"kept")
    region = pair.a.register(data)
    with pytest.raises(BufferError):
        data += b"longer"
    region.close()
    data += b"longer"
    region.close()
    assert region.nbytes == 0 and repr(region) == "<Region, closed>"
    with pytest.raises(te.BadHandle):
        region.descriptor
    with pytest.raises(BufferError):
        memoryview(region)


def test_engine_memory_as_numpy(pair):
    words = pair.source.numpy(numpy.uint32)
    assert words.shape == (1 << 18,) and words.ctypes.data == pair.source.address
    words[:] = numpy.arange(1 << 18)
    matrix = pair.target.numpy("uint32", shape=(16, 1024), offset=65536)
    pair.a.write(pair.source, pair.remote).wait()
    assert (matrix == numpy.arange(16384, 32768).reshape(16, 1024)).all()
    assert numpy.from_dlpack(pair.source).ctypes.data == pair.source.address
    with pytest.raises(BufferError, match="views"):
        pair.source.close()
    with pytest.raises(BufferError, match="views"):
        pair.a.close()
    assert pair.a.count(1) == 0  # still open
    del words, matrix
    gc.collect()
    pair.source.close()


def test_engine_memory_outlives_its_names():
    engine = te.Engine()
    array = numpy.asarray(engine.allocate(4096))
    del engine
    gc.collect()
    array[:] = 7
    assert array.sum() == 7 * 4096


def test_torch(pair):
    torch = pytest.importorskip("torch")
    tensor = torch.arange(256, dtype=torch.float16).reshape(4, 64)
    moved(pair, tensor, tensor.numpy().tobytes())
    moved(pair, tensor[2], tensor[2].numpy().tobytes())
    bfloat = torch.arange(64, dtype=torch.bfloat16)
    moved(pair, bfloat, bfloat.view(torch.uint16).numpy().tobytes())
    target = torch.zeros(8, dtype=torch.int32)
    with pair.b.register(target) as region:
        pair.source.torch(torch.int32)[:8] = torch.arange(8, dtype=torch.int32)
        pair.a.write(pair.source, pair.a.attach(region.descriptor), 32).wait()
    assert target.tolist() == list(range(8))
    with pytest.raises(BufferError, match="contiguous"):
        pair.a.register(tensor[:, 3])
    shaped = pair.source.torch(torch.float32, shape=(8, 16), offset=64)
    assert shaped.data_ptr() == pair.source.address + 64 and shaped.shape == (8, 16)
    lent = torch.from_dlpack(pair.target)
    assert lent.data_ptr() == pair.target.address
    del shaped
    gc.collect()
    with pytest.raises(BufferError):
        pair.target.close()
    del lent
    gc.collect()
    pair.target.close()


def test_dlpack_of_anybody(pair):
    class Tensor:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self):
            return self.array.__dlpack__()

    array = numpy.arange(100, dtype=numpy.int64)
    moved(pair, Tensor(array), array.tobytes())


def test_a_source_in_use_is_not_closed(make_pair):
    pair = make_pair(progress="manual")
    arrived = pair.a.expect(99)
    data = bytearray(1 << 20)
    region = pair.a.register(data)
    # A target that does not empty its ring: the write through it stays pending.
    bounce = te.Engine("c", nics=[te.SharedMemory(caller_memory="bounce")], progress="manual")
    mine = bounce.register(bytearray(4 << 20))
    writer = te.Engine("d", nics=[te.SharedMemory(caller_memory="bounce")], progress="manual")
    source = writer.register(bytearray(4 << 20))
    transfer = writer.write(source, writer.attach(mine.descriptor))
    assert not transfer.done()
    with pytest.raises(te.Busy, match="1 transfers"):
        source.close()
    while not transfer.done():
        writer.progress()
        bounce.progress()
    source.close()
    region.close()
    arrived.cancel()
    writer.close()
    bounce.close()


def test_traffic_is_one_of_three(pair):
    memory = bytes(range(256)) * 4096
    source = pair.a.register(bytearray(memory), remote_write=False)
    for traffic in ("urgent", "normal", "bulk"):
        target = pair.b.allocate(len(memory))
        pair.a.write(source, pair.a.attach(target.descriptor, traffic=traffic), len(memory)).wait()
        assert bytes(target) == memory
    with pytest.raises(ValueError, match="'fast', not one of normal, urgent, bulk"):
        pair.a.attach(target.descriptor, traffic="fast")

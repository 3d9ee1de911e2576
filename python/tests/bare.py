"""What works with nothing but the wheel installed: two engines, one write, one message."""
import transfer_engine as te

with te.Engine("a") as a, te.Engine("b") as b:
    target = b.allocate(4096)
    source = a.register(bytearray(b"x" * 4096), remote_write=False)
    arrived = b.expect(7)
    a.write(source, a.attach(target.descriptor), immediate=7).wait()
    arrived.wait()
    assert bytes(target) == b"x" * 4096
    a.send(a.connect(b.address), b"hello").wait()
    assert b.poll(5) and b.receive() == [(a.id, b"hello")]
print("the wheel works by itself")

import pytest

import transfer_engine as te


class Pair:
    """Two engines of one process: `a` writes into `b`."""

    def __init__(self, byte_count=1 << 20, **options):
        self.a = te.Engine("a", timeout=10, **options)
        self.b = te.Engine("b", timeout=10, **options)
        self.source = self.a.allocate(byte_count)
        self.target = self.b.allocate(byte_count)
        self.remote = self.a.attach(self.target.descriptor)

    def fill(self):
        view = memoryview(self.source)
        view[:] = bytes((i * 7 + (i >> 12)) & 0xFF for i in range(len(view)))

    def close(self):
        self.a.close()
        self.b.close()


@pytest.fixture
def pair():
    pair = Pair()
    yield pair
    pair.close()


@pytest.fixture
def make_pair():
    made = []

    def make(**options):
        made.append(Pair(**options))
        return made[-1]

    yield make
    for pair in made:
        pair.close()

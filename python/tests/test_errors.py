import pickle
import subprocess
import sys

import pytest

import transfer_engine as te


def test_every_code_has_a_class():
    from transfer_engine import _native, errors

    codes = {kind.code for kind in te.TransferError.__subclasses__()}
    # Without a gap, and as many as the library has.
    assert codes == set(range(min(codes), 0))
    assert _native.status_name(min(codes) - 1) == "unknown"
    for code in codes:
        name = _native.status_name(code)
        assert name.startswith("TE_E")
        kind = type(errors._make(code, "message", "remedy"))
        assert kind.code == code and kind.__doc__
    assert errors._make(-99, "new", "").code == -99


def test_errors_say_what_to_do(pair):
    with pytest.raises(te.OutOfRange) as caught:
        pair.a.write(pair.source, pair.remote, 10, target_offset=pair.remote.nbytes)
    assert caught.value.code == -2 and "target" in caught.value.message and caught.value.remedy
    assert caught.value.remedy in str(caught.value)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(te.Unavailable, match="none such"):
        te.Engine(nics=[te.Libfabric(provider="none such")])
    with pytest.raises(te.MalformedDescriptor):
        pair.a.attach(b"nonsense")
    with pytest.raises(te.MalformedDescriptor):
        pair.a.attach(pair.target.descriptor[:-1])
    with pytest.raises(te.AccessDenied):
        pair.a.attach(pair.b.allocate(8, remote_write=False).descriptor)


@pytest.mark.parametrize("options", [
    {"nics": []}, {"nics": ["shm"] * 9}, {"nics": ["shm:1"]}, {"nics": [""]}, {"progress": "often"}, {"timeout": -1},
    {"nics": [te.SharedMemory(caller_memory="no")]}, {"liveness_intervals": 1}])
def test_what_no_engine_opens_with(options):
    with pytest.raises(ValueError):
        te.Engine(**options)


def test_misuse(pair):
    other = te.Engine("other")
    foreign = other.allocate(4096)
    with pytest.raises(te.BadHandle):
        pair.a.write(foreign, pair.remote)
    with pytest.raises(te.BadHandle):
        pair.a.write(pair.source, other.attach(pair.target.descriptor))
    with pytest.raises(te.InvalidArgument):
        pair.a.progress()
    for immediate in (-1, 1 << 30):
        with pytest.raises((ValueError, OverflowError)):
            pair.a.send_immediate(pair.remote, immediate)
    with pytest.raises(te.InvalidArgument):
        pair.a.send_immediate(pair.remote, None)
    with pytest.raises((OverflowError, te.OutOfRange, TypeError)):
        pair.a.write(pair.source, pair.remote, -1)
    transfer = other.expect(1)
    foreign.close()
    other.close()
    other.close()
    for use in (transfer.done, transfer.wait, transfer.cancel, lambda: other.count(1), lambda: other.allocate(1),
                lambda: other.poll(), lambda: other.address):
        with pytest.raises(te.BadHandle):
            use()
    pair.remote.close()
    pair.remote.close()
    with pytest.raises(te.BadHandle):
        pair.a.write(pair.source, pair.remote, 8)


def test_a_wait_with_a_time(pair):
    waiting = pair.a.expect(1)
    with pytest.raises(te.TimedOut):
        waiting.wait(0.01)
    assert not pair.a.wait([waiting], 0.01)
    assert not waiting.done()
    with pytest.raises(TimeoutError):
        waiting.wait(0)


def test_nothing_is_pickled(pair):
    for thing in (pair.source, pair.remote, pair.a.expect(1)):
        with pytest.raises(TypeError):
            pickle.dumps(thing)
    for module in ("engine", "memory", "transfer", "operations", "config", "errors"):
        assert "pickle" not in sys.modules[f"transfer_engine.{module}"].__dict__


def test_a_keyboard_interrupt_ends_a_wait():
    program = """
import os, signal, threading, transfer_engine as te
engine = te.Engine()
threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    engine.expect(1, timeout=60).wait()
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert done.stdout == "interrupted\n" and done.returncode == 0, done.stderr


def test_leaving_without_closing():
    program = """
import numpy, transfer_engine as te
engine = te.Engine()
array = numpy.asarray(engine.allocate(4096))
engine.expect(1)
engine.watch(engine.allocate(8), 0, print)
print("end")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr, done.returncode) == ("end\n", "", 0)

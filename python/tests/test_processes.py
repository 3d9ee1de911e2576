"""Real processes: one writes, another counts; one dies, another says so; one forks."""
import multiprocessing
import os
import shutil
import subprocess
import sys

import numpy
import pytest

import transfer_engine as te

PAGE, PAGES = 4096, 256


def decoder(channel, nic):
    with te.Engine("decode", nics=[nic], timeout=20) as engine:
        region = engine.allocate(PAGE * PAGES)
        channel.send((region.descriptor, engine.address))
        prefill = engine.connect(channel.recv())
        engine.expect(7, PAGES, senders=[prefill]).wait()
        got = region.numpy("uint64", shape=(PAGES, PAGE // 8))
        channel.send(all((got[page] == PAGES - 1 - page).all() for page in range(PAGES)))
        engine.send(prefill, b"done").wait()
        channel.send("sent")
        del got
        channel.recv()


@pytest.mark.parametrize("nic", ["shm", "tcp:127.0.0.1"])
def test_pages_between_processes(nic):
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=decoder, args=(there, nic))
    process.start()
    try:
        with te.Engine("prefill", nics=[nic], timeout=20) as engine:
            assert here.poll(30)
            descriptor, address = here.recv()
            here.send(engine.address)
            pages = numpy.repeat(numpy.arange(PAGES, dtype=numpy.uint64), PAGE // 8)
            source = engine.register(pages, remote_write=False)
            target = engine.attach(descriptor)
            order = numpy.arange(PAGES, dtype=numpy.uint32)
            engine.write_pages(PAGE, source, order, target, order[::-1].copy(), immediate=7).wait()
            assert here.poll(30) and here.recv() is True
            while not (messages := engine.receive()):
                assert engine.poll(20)
            assert messages[0][1] == b"done"
            # Whoever closes at once does not acknowledge any more.
            assert here.poll(30) and here.recv() == "sent"
            here.send("end")
        process.join(30)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()


def sender_that_dies(channel):
    engine = te.Engine("doomed", timeout=20)
    channel.send(engine.address)
    channel.recv()
    os._exit(0)


def test_a_sender_that_dies_is_named():
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=sender_that_dies, args=(there,))
    process.start()
    try:
        with te.Engine("waiting", timeout=30, liveness_interval=0.1) as engine:
            assert here.poll(30)
            peer = engine.connect(here.recv())
            arrived = engine.expect(7, senders=[peer])
            here.send("die")
            with pytest.raises(te.PeerLost, match="doomed"):
                arrived.wait()
    finally:
        process.kill()
        process.join()


def test_after_fork_the_child_needs_its_own(pair):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            try:
                pair.a.write(pair.source, pair.remote, 8)
            except te.WrongThread:
                with te.Engine("child") as engine:
                    region = engine.allocate(4096)
                    engine.write(region, engine.attach(region.descriptor), immediate=1).wait()
                    status = 0 if engine.count(1) == 1 else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    pair.a.write(pair.source, pair.remote, 8).wait()


def test_te_is_installed():
    te_program = shutil.which("te", path=os.path.dirname(sys.executable))
    assert te_program
    output = subprocess.run([te_program, "info"], capture_output=True, text=True, timeout=30, check=True).stdout
    assert "shm" in output

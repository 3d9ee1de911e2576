"""Updates of weights: plans; trainers and receivers in one process and in several, beside numpy; readers meanwhile; and misuse."""
import gc
import json
import multiprocessing
import os
import pickle
import signal
import threading
import time

import numpy
import pytest

import transfer_engine as te
from transfer_engine import weights

HIDDEN, HEADS, PAIRS, SIZE, INNER = 48, 4, 2, 16, 96
SHAPES = {
    "self_attn.q_proj.weight": (HEADS * SIZE, HIDDEN), "self_attn.k_proj.weight": (PAIRS * SIZE, HIDDEN),
    "self_attn.v_proj.weight": (PAIRS * SIZE, HIDDEN), "self_attn.o_proj.weight": (HIDDEN, HEADS * SIZE),
    "mlp.gate_proj.weight": (INNER, HIDDEN), "mlp.up_proj.weight": (INNER, HIDDEN), "mlp.down_proj.weight": (HIDDEN, INNER),
    "input_layernorm.weight": (HIDDEN,),
}
LAYERS = 2
PATIENCE = 60


def full(layer, name):
    return f"model.layers.{layer}.{name}"


MODEL = {
    "name": "small", "attention": {"heads": HEADS, "key_value_heads": PAIRS, "head_size": SIZE},
    "tensors": [{"name": full(layer, name), "shape": list(shape), "dtype": "BF16"}
                for layer in range(LAYERS) for name, shape in SHAPES.items()],
}


def parameters(version):
    """All parameters of a version, as bits: numbers between 1/256 and 4. Some do not change."""
    result = {}
    for number, tensor in enumerate(MODEL["tensors"]):
        random = numpy.random.default_rng(number * 1000 + (version if number % 3 else 0))
        result[tensor["name"]] = random.integers(0, 1 << 16, tensor["shape"], numpy.uint16) & 0x83FF | 0x3C00
    return result


def part(array, axis, rank, ranks):
    return numpy.array_split(array, ranks, axis)[rank]


def expected(version, rank, ranks):
    """What a receiver should serve, by numpy alone: query, key and value are one matrix, gate and up another one."""
    whole = parameters(version)
    result = {}
    for layer in range(LAYERS):
        def get(name, axis, layer=layer):
            return part(whole[full(layer, name)], axis, rank, ranks)

        result[full(layer, "self_attn.qkv_proj.weight")] = numpy.concatenate(
            [get(f"self_attn.{name}_proj.weight", 0) for name in "qkv"])
        result[full(layer, "self_attn.o_proj.weight")] = get("self_attn.o_proj.weight", 1)
        result[full(layer, "mlp.gate_up_proj.weight")] = numpy.concatenate(
            [get("mlp.gate_proj.weight", 0), get("mlp.up_proj.weight", 0)])
        result[full(layer, "mlp.down_proj.weight")] = get("mlp.down_proj.weight", 1)
        result[full(layer, "input_layernorm.weight")] = whole[full(layer, "input_layernorm.weight")]
    return result


def differing(served, rank, ranks):
    """Names of tensors that are not what they should be."""
    want = expected(served.version, rank, ranks)
    assert set(want) == set(served.targets)
    return [name for name in want if not numpy.array_equal(served.tensor(name).numpy(), want[name])]


def fill(trainer, version):
    """By views, and by copies out of whole parameters."""
    for number, (name, whole) in enumerate(parameters(version).items()):
        if number % 2:
            trainer.fill(name, whole)
        elif name in trainer.shards:
            trainer.shard(name).numpy()[...] = whole[trainer.shards[name].slices]


class Rig:
    """Everybody in this process; whoever waits polls all."""

    def __init__(self, trainers="fsdp=2,tp=2", inference="tp=2", **options):
        self.plan = weights.Plan(MODEL, trainers, inference, task_bytes=2048)
        assert self.plan.lint() == []
        self.engines, self.endpoints, self.trainers, self.receivers = [], [], [], []
        for rank in range(self.plan.trainers):
            self.trainers.append(weights.Trainer(self.endpoint(f"trainer {rank}"), rank))
        for rank in range(self.plan.receivers):
            self.receivers.append(weights.Receiver(self.endpoint(f"receiver {rank}"), rank))
        self.controller = weights.Controller(self.endpoints[0], **{"phase_timeout": 20, **options})

    def endpoint(self, name):
        self.engines.append(te.Engine(name, timeout=10))
        leader = self.engines[0].address if self.endpoints else None
        self.endpoints.append(weights.Endpoint(self.engines[-1], self.plan, leader=leader))
        return self.endpoints[-1]

    def until(self, done):
        end = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < end, self.controller.state
            if not any([endpoint.poll() for endpoint in self.endpoints]):
                time.sleep(0.0005)

    def publish(self, version):
        for trainer in self.trainers:
            def is_quiet():
                try:
                    return trainer.withdraw() is None
                except te.BackPressure:
                    return False

            self.until(is_quiet)
            fill(trainer, version)
            trainer.publish(version)

    def push(self, version):
        self.until(lambda: self.controller.is_complete)
        self.publish(version)
        self.controller.update(version)
        self.until(lambda: self.controller.outcome(version) is not None)
        assert self.controller.outcome(version) == ()

    def check(self, version):
        for rank, receiver in enumerate(self.receivers):
            with receiver.read() as served:
                assert served.version == receiver.version == version
                assert differing(served, rank, len(self.receivers)) == []

    def close(self):
        gc.collect()
        for engine in self.engines:
            engine.close()


@pytest.fixture
def rig():
    rig = Rig()
    yield rig
    rig.close()


# Plans


def test_plans_are_bytes_and_say_who_has_what():
    plan = weights.Plan(MODEL, "fsdp=2,tp=2", "tp=2")
    with weights.Plan.decode(plan.encode()) as again:
        assert again.encode() == plan.encode() and again.lint() == []
    assert (plan.trainers, plan.receivers) == (4, 2)
    assert plan.summary["model"] == "small" and plan.summary["trainers"] == 4
    # Shards tile the parameters.
    for tensor in MODEL["tensors"]:
        seen = numpy.zeros(tensor["shape"], int)
        for rank in range(plan.trainers):
            shard = plan.shards(rank).get(tensor["name"])
            if shard is not None:
                assert shard.whole == tuple(tensor["shape"]) and seen[shard.slices].shape == shard.shape
                assert shard.nbytes == seen[shard.slices].size * 2 and shard.dtype == weights.DataType.BF16
                seen[shard.slices] += 1
        # What tensor parallelism does not cut each of its ranks has.
        assert seen.min() == seen.max() == (2 if len(tensor["shape"]) == 1 else 1)
    for rank in range(plan.receivers):
        end = 0
        for target in plan.targets(rank).values():
            assert target.offset >= end and target.scale_shape == ()
            end = target.offset + target.nbytes
        assert {name: target.shape for name, target in plan.targets(rank).items()} == {
            name: array.shape for name, array in expected(1, rank, 2).items()}
    quantised = weights.Plan(MODEL, "fsdp=2", "tp=1,fp8=1,unfused=1").targets(0)
    target = quantised[full(0, "mlp.gate_proj.weight")]
    assert target.dtype == weights.DataType.F8_E4M3 and target.scale_shape == (1, 1) and target.scale_nbytes == 4
    assert quantised[full(0, "input_layernorm.weight")].dtype == weights.DataType.BF16


def test_models_have_names_and_files(tmp_path):
    assert weights.Plan("smollm2-135m", "fsdp=2", "tp=1").summary["parameters"] == 134_515_008
    path = tmp_path / "model.json"
    path.write_text(json.dumps(MODEL))
    assert weights.Plan(path, "fsdp=2", "tp=2").encode() == weights.Plan(MODEL, "fsdp=2", "tp=2").encode()
    gathered = weights.Plan(MODEL, "fsdp=2", "tp=1", full_tensor=True)
    assert gathered.summary["policy"] == "full-tensor"
    with te.Engine() as engine, pytest.raises(te.InvalidArgument, match="predicted"):
        weights.Endpoint(engine, gathered)


def test_wrong_plans_are_exceptions():
    for arguments, kind in ((("no such model", "fsdp=2", "tp=2"), te.InvalidArgument), (("{", "", ""), te.MalformedDescriptor),
                            ((MODEL, "gpus=2", "tp=2"), te.InvalidArgument), ((MODEL, "fsdp=2", "tp=3"), te.InvalidArgument),
                            ((MODEL, "fsdp=1000000,tp=1000000", "tp=2"), te.InvalidArgument)):
        with pytest.raises(kind):
            weights.Plan(*arguments)
    with pytest.raises(te.InvalidArgument):
        weights.Plan(MODEL, "fsdp=2", "tp=2", watermark=1 << 60)
    with pytest.raises(TypeError):
        weights.Plan(MODEL, None, "tp=2")
    plan = weights.Plan(MODEL, "fsdp=2", "tp=2")
    encoded = plan.encode()
    for wrong in (b"", b"x" * 100, encoded[:-1], encoded[:20] + b"x" + encoded[21:]):
        with pytest.raises(te.MalformedDescriptor):
            weights.Plan.decode(wrong)
    with pytest.raises(te.UnsupportedVersion):
        weights.Plan.decode(encoded[:4] + b"\7" + encoded[5:])
    for list_of in (plan.shards, plan.targets):
        for rank in (2, 1 << 32):
            with pytest.raises(te.InvalidArgument):
                list_of(rank)
    with pytest.raises(TypeError):
        pickle.dumps(plan)
    plan.close()
    plan.close()
    for use in (plan.encode, plan.lint, lambda: plan.summary, lambda: plan.shards(0), lambda: plan.targets(0)):
        with pytest.raises(te.BadHandle):
            use()


# Updates


def test_what_is_served_is_what_trainers_have(rig):
    assert [receiver.version for receiver in rig.receivers] == [0, 0]
    with pytest.raises(LookupError):
        rig.receivers[0].read()
    rig.push(1)
    rig.check(1)
    rig.until(lambda: all(trainer.pushed_version == 1 for trainer in rig.trainers))
    sent = sum(trainer.sent_bytes for trainer in rig.trainers)
    assert sent == sum(target.nbytes for rank in range(2) for target in rig.plan.targets(rank).values())
    rig.push(2)
    rig.check(2)
    # What has not changed is not sent again.
    assert sent < sum(trainer.sent_bytes for trainer in rig.trainers) < 2 * sent
    assert rig.controller.current_version == 2 and rig.controller.receiver_count == 2 and not rig.controller.is_updating
    assert rig.controller.log == [] and rig.controller.state.startswith("idle")
    # All of it is waited for by one thread here: nobody else polls, and the wait is over only when they do.
    with pytest.raises(te.TimedOut):
        rig.controller.rollback(1, timeout=0)
    rig.until(lambda: not rig.controller.is_updating)
    rig.check(1)


def test_fp8_has_scales():
    rig = Rig("fsdp=2", "tp=1,fp8=1,unfused=1")
    rig.push(1)
    whole = parameters(1)
    with rig.receivers[0].read() as served:
        name = full(1, "mlp.down_proj.weight")
        values = (whole[name].astype(numpy.uint32) << 16).view(numpy.float32)
        largest = numpy.abs(values).max()
        assert served.scales(name).numpy().tolist() == [[largest / numpy.float32(448)]]
        assert served.scales(full(1, "input_layernorm.weight")) is None
        # Signs are kept, and the largest becomes 448, which is 0x7e.
        codes = served.tensor(name).numpy()
        assert ((codes >> 7) == (whole[name] >> 15)).all() and (codes[numpy.abs(values) == largest] & 0x7F == 0x7E).all()
        del codes
    rig.close()


def test_torch_has_views():
    torch = pytest.importorskip("torch")
    rig = Rig("fsdp=2", "tp=1,fp8=1,unfused=1")
    rig.until(lambda: rig.controller.is_complete)
    whole = {name: torch.from_numpy(bits.view(numpy.int16)).view(torch.bfloat16) for name, bits in parameters(1).items()}
    for trainer in rig.trainers:
        for number, name in enumerate(trainer.shards):
            if number % 2:
                trainer.fill(name, whole[name])
            else:
                trainer.shard(name).torch().copy_(whole[name][trainer.shards[name].slices])
        trainer.publish(1)
    rig.controller.update(1)
    rig.until(lambda: rig.controller.outcome(1) is not None)
    with rig.receivers[0].read() as served:
        for name, tensor in whole.items():
            got = served.tensor(name).torch()
            if served.scales(name) is None:
                assert got.dtype == torch.bfloat16 and torch.equal(got, tensor)
            else:
                largest = tensor.float().abs().max().clamp(min=1e-4)
                want = (tensor.float() * (448 / largest)).to(torch.float8_e4m3fn)
                assert torch.equal(got.view(torch.uint8), want.view(torch.uint8))
                assert served.scales(name).torch().item() == (largest / 448).item()
        del got
    # Tensors over shards keep the endpoint open.
    held = rig.trainers[1].shard(full(0, "mlp.down_proj.weight")).torch()
    with pytest.raises(BufferError):
        rig.endpoints[1].close()
    del held
    rig.close()


def test_what_is_lent_is_not_overwritten(rig):
    rig.push(1)
    name = full(0, "self_attn.qkv_proj.weight")
    with rig.receivers[0].read() as served:
        array = served.tensor(name).numpy()
        with pytest.raises(ValueError):
            array[0, 0] = 1
    with pytest.raises(te.BadHandle):
        served.tensor(name)
    with pytest.raises(te.BadHandle):
        served.memory
    copy = array.copy()
    rig.push(2)
    rig.publish(3)
    rig.controller.update(3)
    end = time.monotonic() + 0.5
    rig.until(lambda: time.monotonic() > end)
    # The array has outlived its block: the version stays, and so does the update that would overwrite it.
    assert rig.controller.outcome(3) is None and rig.receivers[0].version == 2
    assert numpy.array_equal(array, copy) and numpy.array_equal(array, expected(1, 0, 2)[name])
    with pytest.raises(te.Busy):
        rig.endpoints[4].close()
    del array, served
    rig.until(lambda: rig.controller.outcome(3) is not None)
    rig.check(3)


def test_readers_see_one_version_whole(rig):
    seen, wrong, is_over = {}, [], threading.Event()

    def read():
        while not is_over.is_set():
            try:
                with rig.receivers[1].read() as served:
                    wrong.extend(differing(served, 1, 2))
                    seen[served.version] = seen.get(served.version, 0) + 1
            except LookupError:
                time.sleep(0.001)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for version in range(1, 6):
            rig.push(version)
            end = time.monotonic() + 0.05
            rig.until(lambda: time.monotonic() > end)
    finally:
        is_over.set()
        reader.join(60)
    assert wrong == [] and 5 in seen and len(seen) > 1, seen


def test_failures_have_their_exceptions():
    rig = Rig("fsdp=2", "tp=1", phase_timeout=0.3, update_timeout=1)
    rig.push(1)
    rig.endpoints[1].close()
    rig.endpoints.pop(1)
    rig.engines.pop(1).close()
    rig.trainers.pop(1)
    rig.publish(2)
    rig.controller.update(2)

    def has_failed():
        try:
            return rig.controller.outcome(2) is not None
        except (te.PeerLost, te.Stalled):
            return True

    rig.until(has_failed)
    with pytest.raises((te.PeerLost, te.Stalled)):
        rig.controller.outcome(2)
    assert rig.receivers[0].version == 1
    rig.check(1)
    rig.publish(3)
    rig.controller.update(3)
    with pytest.raises(te.BackPressure):
        rig.controller.update(4)
    rig.controller.cancel()
    with pytest.raises(te.Cancelled):
        rig.controller.outcome(3)
    with pytest.raises(te.InvalidArgument):
        rig.controller.outcome(77)
    rig.close()


# Several processes


def answer(pipe):
    assert pipe.poll(PATIENCE), "no answer"
    return pipe.recv()


def member(kind, rank, pipe):
    """Does what it is told by lines, and helps the others meanwhile."""
    with te.Engine(f"{kind} {rank}", timeout=30) as engine:
        encoded, leader = answer(pipe)
        with weights.Plan.decode(encoded) as plan, weights.Endpoint(engine, plan, leader=leader) as endpoint:
            role = (weights.Trainer if kind == "trainer" else weights.Receiver)(endpoint, rank)
            pipe.send("open")
            while True:
                while not pipe.poll():
                    endpoint.run(0.01)
                order, version = pipe.recv()
                if order == "publish":
                    while True:
                        try:
                            role.withdraw()
                            break
                        except te.BackPressure:
                            endpoint.poll()
                    fill(role, version)
                    role.publish(version)
                    pipe.send(version)
                elif order == "check":
                    role.wait(version, 30)
                    with role.read() as served:
                        pipe.send((served.version, differing(served, rank, plan.receivers)))
                    del served
                else:
                    break
    pipe.send("closed")


def test_between_processes():
    context = multiprocessing.get_context("spawn")
    plan = weights.Plan(MODEL, "fsdp=2,tp=2", "tp=2", task_bytes=4096)
    pipes, children = {}, []
    for kind, count in (("trainer", plan.trainers), ("receiver", plan.receivers)):
        for rank in range(count):
            ours, theirs = context.Pipe()
            children.append(context.Process(target=member, args=(kind, rank, theirs)))
            children[-1].start()
            pipes[kind, rank] = ours
    try:
        # Whoever leads need not be a trainer.
        with te.Engine("leader", timeout=30) as engine, weights.Endpoint(engine, plan) as endpoint:
            controller = weights.Controller(endpoint, phase_timeout=30)
            for pipe in pipes.values():
                pipe.send((plan.encode(), engine.address))
            for pipe in pipes.values():
                assert answer(pipe) == "open"
            controller.wait_complete(PATIENCE)
            for version in (1, 2, 3):
                trainers = [pipe for (kind, _), pipe in pipes.items() if kind == "trainer"]
                for pipe in trainers:
                    pipe.send(("publish", version))
                assert [answer(pipe) for pipe in trainers] == [version] * 4
                assert controller.push(version, PATIENCE) == ()
                for (kind, _), pipe in pipes.items():
                    if kind == "receiver":
                        pipe.send(("check", version))
                        assert answer(pipe) == (version, [])
            assert controller.rollback(2, PATIENCE) == ()
            for (kind, _), pipe in pipes.items():
                if kind == "receiver":
                    pipe.send(("check", 2))
                    assert answer(pipe) == (2, [])
            # A receiver that dies is left out of what comes next.
            children[-1].kill()
            children[-1].join(20)
            end = time.monotonic() + PATIENCE
            while controller.receiver_count == 2 and time.monotonic() < end:
                endpoint.run(0.02)
            assert controller.receiver_count == 1 and not controller.is_complete
            for pipe in trainers:
                pipe.send(("publish", 4))
            assert [answer(pipe) for pipe in trainers] == [4] * 4
            assert controller.push(4, PATIENCE) == ()
            pipes["receiver", 0].send(("check", 4))
            assert answer(pipes["receiver", 0]) == (4, [])
            del pipes["receiver", 1]
            for pipe in pipes.values():
                pipe.send(("end", 0))
            assert [answer(pipe) for pipe in pipes.values()] == ["closed"] * 5
    finally:
        for child in children:
            child.join(20)
            child.kill()
    assert [child.exitcode for child in children] == [0] * 5 + [-signal.SIGKILL]


# Misuse


def test_one_thread_at_a_time_is_inside():
    with te.Engine("alone") as engine, weights.Endpoint(engine, weights.Plan(MODEL, "fsdp=1", "tp=1")) as endpoint:
        receiver = weights.Receiver(endpoint, 0)
        is_over = threading.Event()

        def wait():
            while not is_over.is_set():
                try:
                    receiver.wait(1, 0.5)
                except (te.TimedOut, te.Busy):  # we may be inside ourselves
                    continue

        waiter = threading.Thread(target=wait)
        waiter.start()
        found, end = None, time.monotonic() + PATIENCE
        while found is None and time.monotonic() < end:
            try:
                endpoint.poll()
            except te.Busy as error:
                found = error
        # The wait has released the GIL, or we were not here; and readers are let in.
        assert found is not None and receiver.version == 0
        is_over.set()
        waiter.join(20)
        assert not waiter.is_alive()


def test_a_wait_ends_with_a_signal():
    class Interrupted(Exception):
        pass

    def interrupt(*unused):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with te.Engine("alone") as engine, weights.Endpoint(engine, weights.Plan(MODEL, "fsdp=1", "tp=1")) as endpoint:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(Interrupted):
                endpoint.run(60)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_misuse_is_an_exception():
    engine = te.Engine("alone", timeout=10)
    plan = weights.Plan(MODEL, "fsdp=2", "tp=2")
    with pytest.raises(te.MalformedDescriptor):
        weights.Endpoint(engine, plan, leader=b"nobody")
    endpoint = weights.Endpoint(engine, plan)
    with pytest.raises(te.Busy):
        weights.Endpoint(engine, plan)
    for kind, wrong in ((weights.Trainer, 2), (weights.Receiver, 2)):
        with pytest.raises(te.InvalidArgument):
            kind(endpoint, wrong)
        for number in (-1, -1 << 40, 1 << 70):
            with pytest.raises((OverflowError, ValueError)):
                kind(endpoint, number)
        with pytest.raises(te.InvalidArgument):
            kind(endpoint, 1 << 32)
        with pytest.raises(TypeError):
            kind(endpoint, "0")
    trainer, receiver = weights.Trainer(endpoint, 1), weights.Receiver(endpoint, 1)
    for kind in (weights.Trainer, weights.Receiver):
        with pytest.raises(te.InvalidArgument):
            kind(endpoint, 0)
    name = full(0, "mlp.up_proj.weight")
    whole = parameters(1)[name]
    for wrong, kind in (((name, whole[1:]), te.InvalidArgument), (("nothing", whole), te.InvalidArgument),
                        ((name, whole[:, ::2]), (BufferError, ValueError)), ((name, 7), TypeError), ((name, None), TypeError)):
        with pytest.raises(kind):
            trainer.fill(*wrong)
    with pytest.raises(KeyError):
        trainer.shard("nothing")
    trainer.fill(name, whole)
    assert numpy.array_equal(trainer.shard(name).numpy(), whole[trainer.shards[name].slices])
    with pytest.raises(te.InvalidArgument):
        trainer.publish(0)
    trainer.publish(1)
    with pytest.raises(te.Busy, match="withdraw"):
        trainer.fill(name, whole)
    trainer.withdraw()
    with pytest.raises(te.TimedOut):
        trainer.wait(1, 0.01)
    with pytest.raises(te.TimedOut):
        receiver.wait(1, 0)
    with pytest.raises(te.InvalidArgument):
        weights.Controller(endpoint, term=70_000)
    with pytest.raises(ValueError):
        weights.Controller(endpoint, phase_timeout=-1)
    controller = weights.Controller(endpoint)
    with pytest.raises(te.InvalidArgument):
        weights.Controller(endpoint)
    weights.Controller(endpoint, term=2)  # takes the place of the other
    for call in (lambda: controller.update(0), lambda: controller.outcome(1), lambda: controller.wait(1, 0.1),
                 lambda: controller.rollback(0, 0.1)):
        with pytest.raises(te.InvalidArgument):
            call()
    with pytest.raises(te.TimedOut):
        controller.wait_complete(0.05)
    # An array over shards keeps the endpoint, and the engine, open: that memory would be gone.
    array = trainer.shard(name).numpy()
    for close in (endpoint.close, engine.close):
        with pytest.raises(BufferError):
            close()
    assert array.shape == trainer.shards[name].shape
    tensor = trainer.shard(name)
    del array
    endpoint.close()
    endpoint.close()
    with pytest.raises(BufferError):
        tensor.numpy()
    for call in (endpoint.poll, lambda: endpoint.run(0), lambda: endpoint.follow(engine.address), lambda: trainer.publish(1),
                 trainer.withdraw, lambda: trainer.fill(name, whole), lambda: trainer.sent_bytes, lambda: receiver.version,
                 receiver.read, lambda: controller.update(9), controller.cancel, lambda: controller.state,
                 lambda: weights.Trainer(endpoint, 0)):
        with pytest.raises(te.BadHandle):
            call()
    # Its engine may be used for something else.
    with weights.Endpoint(engine, plan):
        pass
    engine.close()
    with pytest.raises(te.BadHandle):
        weights.Endpoint(engine, plan)


def test_a_close_that_is_refused_changes_nothing():
    name = full(0, "mlp.down_proj.weight")
    with te.Engine("alone", timeout=10) as engine:
        endpoint = weights.Endpoint(engine, weights.Plan(MODEL, "fsdp=1", "tp=1"))
        trainer, receiver = weights.Trainer(endpoint, 0), weights.Receiver(endpoint, 0)
        fill(trainer, 1)
        trainer.publish(1)
        assert weights.Controller(endpoint).push(1, 20) == ()
        served = receiver.read()
        with pytest.raises(te.Busy):
            endpoint.close()
        assert numpy.array_equal(trainer.shard(name).numpy(), parameters(1)[name])
        del served
        endpoint.close()


def test_a_child_has_no_endpoint():
    with te.Engine("parent") as engine, weights.Endpoint(engine, weights.Plan(MODEL, "fsdp=1", "tp=1")) as endpoint:
        receiver = weights.Receiver(endpoint, 0)
        child = os.fork()
        if child == 0:
            count = 0
            for call in (endpoint.poll, lambda: receiver.version, receiver.read):
                try:
                    call()
                except te.WrongThread:
                    count += 1
            os._exit(count)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_nothing_is_left_behind():
    plan = weights.Plan(MODEL, "fsdp=1", "tp=1")
    engine = te.Engine("alone")

    def cycle():
        with weights.Endpoint(engine, plan) as endpoint:
            trainer, receiver = weights.Trainer(endpoint, 0), weights.Receiver(endpoint, 0)
            controller = weights.Controller(endpoint)
            fill(trainer, 1)
            trainer.publish(1)
            controller.wait_complete(20)
            assert controller.push(1, 20) == ()
            with receiver.read() as served:
                assert differing(served, 0, 1) == []
            served = None
            weights.Plan.decode(plan.encode()).lint()

    def resident():
        gc.collect()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for _ in range(20):
        cycle()
    before, files = resident(), len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        cycle()
    # The memory of an endpoint is more than 100 KB: a leak of it would be ten megabytes.
    assert resident() - before < 3 << 20 and len(os.listdir("/proc/self/fd")) <= files
    engine.close()

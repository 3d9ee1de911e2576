"""A prefiller and a decoder in two processes: the cache of a request is pushed layer by layer. Needs nothing but the wheel."""
import multiprocessing

import transfer_engine as te
from transfer_engine import kv

LAYERS, PAGES, PAGE_TOKENS, TOKEN_BYTES = 4, 32, 16, 512
PAGE = PAGE_TOKENS * TOKEN_BYTES
LAYOUT = kv.Layout("example@1", "bf16", [kv.Group(range(LAYERS), 1, TOKEN_BYTES, PAGE_TOKENS)])


def rank(engine):
    region = engine.allocate(LAYERS * PAGES * PAGE)
    return kv.Rank(engine, [region], [kv.Plane(layer * PAGES * PAGE, PAGE, PAGES) for layer in range(LAYERS)])


def prefill(channel):
    with te.Engine("prefill") as engine:
        mine = rank(engine)
        with kv.Prefiller("prefiller", LAYOUT, [mine]) as prefiller:
            channel.send(prefiller.address)
            finished = 0
            while not channel.poll():
                for event in prefiller.poll(0.1):
                    if event.kind is not kv.Kind.JOB:
                        continue
                    job = event.job
                    pages = list(range(-(-job.end // PAGE_TOKENS)))
                    job.accept([pages])
                    prefiller.forward([(job, 0, job.end)])
                    for layer in range(LAYERS):
                        with memoryview(mine.regions[0]) as memory:  # the model computes a layer
                            begin = layer * PAGES * PAGE
                            memory[begin:begin + len(pages) * PAGE] = bytes([layer + 1]) * (len(pages) * PAGE)
                        finished += 1
                        prefiller.computed(finished)


def main():
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=prefill, args=(there,))
    process.start()
    with te.Engine("decode") as engine:
        mine = rank(engine)
        with kv.Decoder("decoder", LAYOUT, [mine]) as decoder:
            assert here.poll(30), "the prefiller did not start"
            prefiller = decoder.connect(here.recv())
            request = decoder.ask(prefiller, end=40, pages=[[9, 4, 5]], input=b"prompt", layerwise=True)
            is_ready = False
            while not is_ready:
                for event in decoder.poll(30):
                    print(event.kind.name, event.layer if event.kind is kv.Kind.LAYER else event.reason or "")
                    assert event.kind is not kv.Kind.FAILED and event.request is request
                    is_ready = event.kind is kv.Kind.READY
            for layer in range(LAYERS):
                begin = (layer * PAGES + 9) * PAGE
                assert bytes(memoryview(mine.regions[0])[begin:begin + PAGE]) == bytes([layer + 1]) * PAGE
    here.send("end")
    process.join(10)
    print("40 tokens of 4 layers have arrived in pages 9, 4 and 5")


if __name__ == "__main__":
    main()

"""vLLM engines in processes of their own, each in a process group, driven step by step over a pipe; every wait has an end."""
import contextlib
import multiprocessing
import os
import signal
import time
import traceback

BLOCK = 32
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE",
    "KMP_BLOCKTIME": "0", "VLLM_HOST_IP": "127.0.0.1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"), "VLLM_NO_USAGE_STATS": "1",
}


def _serve(pipe, name, model, transfer, options, environment, probe):
    os.setsid()  # so that the driver can end exactly this engine and what it starts
    os.environ.update(ENVIRONMENT)
    os.environ.update(environment)
    try:
        from vllm import LLM, SamplingParams
        from vllm.config import KVTransferConfig

        llm = LLM(model=model, skip_tokenizer_init=True, enforce_eager=True, dtype="float32", block_size=BLOCK,
                  max_model_len=2048, kv_transfer_config=KVTransferConfig(**transfer) if transfer else None, **options)
        engine = llm.llm_engine
        if probe:
            probe(lambda value: pipe.send(("probe", value)))
        pipe.send(("up", None))
        _loop(pipe, llm, engine, SamplingParams)
        engine.engine_core.shutdown()
        pipe.send(("down", None))
    except BaseException:
        pipe.send(("error", traceback.format_exc()))
    os._exit(0)


def _loop(pipe, llm, engine, sampling):
    first = {}
    while True:
        while pipe.poll(0 if engine.has_unfinished_requests() else 0.002):
            kind, request, *rest = pipe.recv()
            if kind == "stop":
                return
            if kind == "abort":
                engine.abort_request([request])
            elif kind == "free":
                pool = engine.engine_core.engine_core.scheduler.kv_cache_manager.block_pool
                pipe.send(("free", pool.get_num_free_blocks()))
            elif kind == "call":
                pipe.send(("call", getattr(llm, request)(*rest)))
            elif kind == "reset":
                pipe.send(("reset", engine.engine_core.engine_core.scheduler.reset_prefix_cache()))
            else:
                tokens, count, params = rest
                first[request] = [time.monotonic(), None]
                engine.add_request(request, {"prompt_token_ids": tokens}, sampling(
                    temperature=0, max_tokens=count, ignore_eos=True, detokenize=False,
                    extra_args={"kv_transfer_params": params} if params else None))
        for output in engine.step():
            times = first.get(output.request_id)
            if times and times[1] is None and output.outputs[0].token_ids:
                times[1] = time.monotonic() - times[0]
            if output.finished:
                one = output.outputs[0]
                pipe.send(("done", output.request_id, list(one.token_ids), output.kv_transfer_params, one.finish_reason,
                           times[1] if times else None, output.num_cached_tokens))


class Engine:
    """One of them, seen from the driver. `probe(report)`, if any, is called in its process before it is up."""

    def __init__(self, name, model, transfer=None, environment=None, probe=None, **options):
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, name, model, transfer, options, environment or {}, probe))
        self._process.start()
        self._done = {}
        self.probed = []
        """What the probe has reported."""

    def until_up(self, seconds=600):
        assert self._receive(seconds)[0] == "up"
        return self

    def _receive(self, seconds):
        if not self._pipe.poll(seconds):
            raise TimeoutError(f"{self.name} has said nothing for {seconds} s")
        message = self._pipe.recv()
        if message[0] == "error":
            raise RuntimeError(f"{self.name}: {message[1]}")
        if message[0] == "probe":
            self.probed.append(message[1])
        return message

    def ask(self, request, tokens, count=16, params=None):
        while self._pipe.poll(0):  # answers that nobody waits for would fill the pipe, and the engine would stop
            message = self._receive(0)
            if message[0] == "done":
                self._done[message[1]] = message[2:]
        self._pipe.send(("add", request, tokens, count, params))

    def abort(self, request):
        self._pipe.send(("abort", request))

    def answer(self, request, seconds=300):
        """(tokens, params, reason, seconds to the first token, tokens of the prompt that were not computed)"""
        deadline = time.monotonic() + seconds
        while request not in self._done:
            message = self._receive(max(0.01, deadline - time.monotonic()))
            if message[0] == "done":
                self._done[message[1]] = message[2:]
        return self._done.pop(request)

    def tokens(self, request, tokens, count=16, params=None, seconds=300):
        self.ask(request, tokens, count, params)
        return self.answer(request, seconds)[0]

    def call(self, method, *arguments, seconds=120):
        """What a method of its LLM returns."""
        return self.look("call", seconds, method, *arguments)

    def look(self, what, seconds=60, *arguments):
        """Answers of "free" (blocks) and "reset" (of the prefix cache)."""
        self._pipe.send((what, *(arguments or (None,))))
        deadline = time.monotonic() + seconds
        while True:
            message = self._receive(max(0.01, deadline - time.monotonic()))
            if message[0] == what:
                return message[1]
            if message[0] == "done":
                self._done[message[1]] = message[2:]

    def until_free(self, blocks, seconds=60):
        """Waits until so many blocks are free."""
        deadline = time.monotonic() + seconds
        while (free := self.look("free")) != blocks:
            assert time.monotonic() < deadline, f"{self.name}: {free} blocks of {blocks} are free"
            time.sleep(0.05)

    def kill(self):
        """As a machine that fails: nothing is said to anybody."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.join(10)

    def close(self):
        with contextlib.suppress(OSError, EOFError):
            self._pipe.send(("stop", None))
            self._process.join(20)
        self.kill()

"""Data parallel ranks of one vLLM, each in a process group of its own, which all get a list of prompts at the same time."""
import contextlib
import multiprocessing
import os
import signal
import socket
import time
import traceback

from engines import BLOCK, ENVIRONMENT


def _serve(pipe, rank, ranks, port, model, probe, options):
    os.setsid()  # so that the driver can end exactly this rank and what it starts
    # vLLM binds workers that are processes of their own; this one is not.
    os.sched_setaffinity(0, {rank % (os.cpu_count() or 1)})
    os.environ.update({
        "VLLM_DP_RANK": str(rank), "VLLM_DP_RANK_LOCAL": str(rank), "VLLM_DP_SIZE": str(ranks),
        "VLLM_DP_MASTER_IP": "127.0.0.1", "VLLM_DP_MASTER_PORT": str(port)})
    try:
        from vllm import LLM, SamplingParams

        report = probe(rank) if probe else dict
        # "uni": the worker is in this process, where the probe sees it.
        llm = LLM(model=model, skip_tokenizer_init=True, enforce_eager=True, dtype="float32", block_size=BLOCK, max_model_len=1024,
                  enable_expert_parallel=True, enable_prefix_caching=False, distributed_executor_backend="uni", **options)
        pipe.send(("up", None))
        while (asked := pipe.recv()) is not None:
            prompts, count = asked
            sampling = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
            begin = time.perf_counter()
            outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False)
            pipe.send(("done", ([list(output.outputs[0].token_ids) for output in outputs], time.perf_counter() - begin, report())))
    except BaseException:
        pipe.send(("error", traceback.format_exc()))
    os._exit(0)


class Ranks:
    """All ranks, seen from the driver. `probe(rank)`, if any, is called in each process before its engine is made, and returns a
    function whose value comes with each answer."""

    def __init__(self, count, model, probe=None, **options):
        # Here, because a child loads OpenMP with the module of its probe, and that reads them once.
        os.environ.update(ENVIRONMENT)
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        for rank in range(count):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, rank, count, port, model, probe, options))
            process.start()
            self._pipes.append(here)
            self._processes.append(process)

    def _answers(self, what, seconds):
        deadline = time.monotonic() + seconds
        answers, errors = [], []
        for rank, pipe in enumerate(self._pipes):
            # After a failure of one the others have a moment to say what they know of it.
            if not pipe.poll(5 if errors else max(0.01, deadline - time.monotonic())):
                errors.append(f"rank {rank} has said nothing")
                continue
            try:
                kind, value = pipe.recv()
            except EOFError:
                kind, value = "error", "is gone"
            if kind == what:
                answers.append(value)
            else:
                errors.append(f"rank {rank}: {value}")
        if errors:
            raise RuntimeError("\n".join(errors))
        return answers

    def until_up(self, seconds=900):
        self._answers("up", seconds)
        return self

    def generate(self, prompts, count, seconds=300):
        """For each rank a list of prompts. Returns for each (lists of tokens, seconds, what the probe reports)."""
        for pipe, mine in zip(self._pipes, prompts):
            pipe.send((mine, count))
        return self._answers("done", seconds)

    def close(self):
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)
        for process in self._processes:
            process.join(20)
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.join(10)

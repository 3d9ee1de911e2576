"""Prefill in one vLLM, decode in others, as servers behind `te kv route`: demo.py MODEL

Shows the text of one vLLM alone and that of the cluster, lets a second decoder join, kills the prefiller and starts it again. Fails
when a text differs.
"""
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

from engines import BLOCK, ENVIRONMENT

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea, there lived an old fisherman who",
    "Explain why the sky is blue. " + "Light is scattered by the molecules of the air. " * 20 + "Therefore",
    "To bake bread you need flour, water, salt and yeast. First",
]
START_SECONDS = 300


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Server:
    """A process group that listens on a port."""

    def __init__(self, name, command, logs):
        self.name, self.port = name, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = open(os.path.join(logs, f"{name}.log"), "wb")
        environment = {**os.environ, **ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
                       "VLLM_LOGGING_LEVEL": "INFO"}
        self.process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(self.port)], stdout=self.log,
            stderr=subprocess.STDOUT, env=environment, start_new_session=True)

    def until_up(self, path):
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError, urllib.error.URLError):
                urllib.request.urlopen(self.url + path, timeout=5).read()
                return self
            time.sleep(0.5)
        raise SystemExit(f"{self.name} did not start; see {self.log.name}")

    def kill(self):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(20)
        self.log.close()


def vllm(name, model, logs, role=None):
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", "m", "--dtype", "float32",
               "--enforce-eager", "--max-model-len", "2048", "--block-size", str(BLOCK), "--max-num-batched-tokens", "512"]
    if role:
        command += ["--kv-transfer-config", json.dumps(dict(
            kv_connector="TransferEngineConnector", kv_connector_module_path="transfer_engine.vllm.connector", kv_role=role,
            kv_load_failure_policy="recompute", kv_connector_extra_config=dict(name=name)))]
    return Server(name, command, logs)


def complete(server, prompt):
    body = dict(model="m", prompt=prompt, max_tokens=24, temperature=0)
    request = urllib.request.Request(server.url + "/v1/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    begin = time.monotonic()
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["choices"][0]["text"], time.monotonic() - begin


def call(server, method, path, body=None):
    request = urllib.request.Request(server.url + path, None if body is None else json.dumps(body).encode(),
                                     {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def until(router, server, what):
    deadline = time.monotonic() + 60
    while not any(one["url"] == server.url and one["takes_requests"] for one in call(router, "GET", "/instances")):
        if time.monotonic() > deadline:
            raise SystemExit(f"not within a minute: {what}")
        time.sleep(0.5)


def compare(router, expected, title):
    print(f"\n== {title}")
    wrong = 0
    for prompt, text in expected.items():
        got, seconds = complete(router, prompt)
        wrong += got != text
        print(f"{'same' if got == text else 'DIFFERENT'} {seconds:5.1f} s  {prompt[:40]!r} ...{got[:60]!r}", flush=True)
    if wrong:
        raise SystemExit(f"{wrong} texts differ")


def loads(server):
    with open(server.log.name, "rb") as log:
        return log.read().count(b"Loaded ")


def main(model):
    logs = tempfile.mkdtemp(prefix="demo-vllm-")
    servers = []

    def start(*arguments):
        servers.append(vllm(*arguments))
        return servers[-1]

    try:
        print(f"starting one vLLM alone, a prefiller and a decoder; logs are in {logs}", flush=True)
        alone = start("alone", model, logs)
        prefill = start("prefill", model, logs, "kv_producer")
        decode = start("decode", model, logs, "kv_consumer")
        for server in (alone, prefill, decode):
            server.until_up("/health")
        te = os.path.join(os.path.dirname(sys.executable), "te")
        router = Server("router", [te, "kv", "route", "--prefill", prefill.url, "--decode", decode.url, "--manage"], logs)
        servers.append(router)
        router.until_up("/instances")
        until(router, prefill, "the prefiller says where its engine is")
        expected = {prompt: complete(alone, prompt)[0] for prompt in PROMPTS}
        alone.kill()
        compare(router, expected, "prefill and decode apart: the text of one vLLM alone")
        if loads(decode) < len(PROMPTS):
            raise SystemExit(f"the decoder has loaded {loads(decode)} caches of {len(PROMPTS)}; see {decode.log.name}")
        second = start("decode-2", model, logs, "kv_consumer").until_up("/health")
        call(router, "POST", "/instances", dict(role="decoder", url=second.url))
        until(router, second, "the second decoder is there")
        compare(router, expected, "a second decoder has joined")
        if not loads(second):
            raise SystemExit(f"the second decoder has loaded nothing; see {second.log.name}")
        call(router, "DELETE", f"/instances?url={decode.url}")
        decode.kill()
        prefill.kill()
        compare(router, expected, "the first decoder and the prefiller are killed: the other decoder computes by itself")
        before = loads(second)
        again = start("prefill-2", model, logs, "kv_producer").until_up("/health")
        call(router, "DELETE", f"/instances?url={prefill.url}")
        call(router, "POST", "/instances", dict(role="prefiller", url=again.url))
        until(router, again, "the new prefiller says where its engine is")
        compare(router, expected, "a new prefiller")
        print(f"\nthe decoder has loaded {loads(second) - before} caches from the new prefiller; all texts are the same")
        if loads(second) == before:
            raise SystemExit("nothing was loaded from the new prefiller")
    finally:
        for server in reversed(servers):
            if server.process.poll() is None:
                server.kill()


if __name__ == "__main__":
    main(sys.argv[1])

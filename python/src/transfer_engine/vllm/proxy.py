"""A small proxy in front of prefill and decode instances of vLLM: OpenAI completions in, each request to one of both.

```
python -m transfer_engine.vllm.proxy --prefill http://127.0.0.1:8100 --decode http://127.0.0.1:8200 --port 8000
```

Instances come and go: `POST /instances {"role": "decode", "url": "http://..."}`, `DELETE /instances?url=...`, `GET /instances`.
A prefiller that does not answer is left out until it does; without one, decoders compute prompts themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import logging
import uuid
from typing import Any, Dict, List, Optional

import aiohttp
from aiohttp import web

__all__ = ["Proxy", "Instance", "main"]

logger = logging.getLogger("transfer_engine.vllm.proxy")
LOOK_EVERY = 1.0
"""Seconds between two looks at an instance."""


@dataclasses.dataclass
class Instance:
    """A vLLM server."""

    role: str
    url: str
    address: Optional[str] = None
    """Prefill: how its engine is reached, as it says itself. None while it does not answer."""
    is_alive: bool = False
    open_requests: int = 0


class Proxy:
    """Chooses instances, and sends each request to both: the decoder asks for the pages' content, the prefiller computes it."""

    def __init__(self, prefill: List[str], decode: List[str], timeout: float = 600.0) -> None:
        self.instances: Dict[str, Instance] = {}
        self._turns = {"prefill": itertools.count(), "decode": itertools.count()}
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._session: Optional[aiohttp.ClientSession] = None
        for role, urls in (("prefill", prefill), ("decode", decode)):
            for url in urls:
                self.add(role, url)

    def add(self, role: str, url: str) -> None:
        """Raises ValueError for another role."""
        if role not in ("prefill", "decode"):
            raise ValueError(f"role is {role!r}; prefill or decode")
        self.instances[url.rstrip("/")] = Instance(role, url.rstrip("/"))

    def application(self) -> web.Application:
        """For aiohttp."""
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_get("/instances", self._list)
        app.router.add_post("/instances", self._add)
        app.router.add_delete("/instances", self._remove)
        app.cleanup_ctx.append(self._life)
        return app

    async def _life(self, app: web.Application) -> Any:
        self._session = aiohttp.ClientSession(timeout=self._timeout)
        looking = asyncio.create_task(self._look())
        yield
        looking.cancel()
        await self._session.close()

    # Instances

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response([dataclasses.asdict(instance) for instance in self.instances.values()])

    async def _add(self, request: web.Request) -> web.Response:
        body = await request.json()
        try:
            self.add(body["role"], body["url"])
        except (KeyError, TypeError, ValueError) as error:
            raise web.HTTPBadRequest(text=f"an instance has a role and a url: {error}")
        return web.json_response({})

    async def _remove(self, request: web.Request) -> web.Response:
        self.instances.pop(request.query.get("url", "").rstrip("/"), None)
        return web.json_response({})

    async def _look(self) -> None:
        while True:
            await asyncio.gather(*(self._look_at(instance) for instance in list(self.instances.values())))
            await asyncio.sleep(LOOK_EVERY)

    async def _look_at(self, instance: Instance) -> None:
        assert self._session
        was_alive = instance.is_alive
        try:
            short = aiohttp.ClientTimeout(total=5)
            async with self._session.get(f"{instance.url}/health", timeout=short) as answer:
                instance.is_alive = answer.status == 200
            if instance.is_alive and not was_alive and instance.role == "prefill":
                await self._introduce(instance)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
            instance.is_alive = False
        if not instance.is_alive:
            instance.address = None
        if was_alive != instance.is_alive:
            logger.warning("%s %s is %s", instance.role, instance.url, "there" if instance.is_alive else "gone")

    async def _introduce(self, instance: Instance) -> None:
        """Asks a prefiller where its engine is: that comes with the answer to any request of the kind."""
        assert self._session
        async with self._session.get(f"{instance.url}/v1/models") as answer:
            model = (await answer.json())["data"][0]["id"]
        body = {"model": model, "prompt": [1], "max_tokens": 1, "kv_transfer_params": {"do_remote_decode": True}}
        async with self._session.post(f"{instance.url}/v1/completions", json=body) as answer:
            instance.address = ((await answer.json()).get("kv_transfer_params") or {}).get("prefiller")
        if not instance.address:
            raise aiohttp.ClientError(f"{instance.url} is no prefiller of this connector")

    def _choose(self, role: str) -> Optional[Instance]:
        """The one with the fewest open requests; in turn when they are equal."""
        able = [instance for instance in self.instances.values()
                if instance.role == role and instance.is_alive and (role == "decode" or instance.address)]
        if not able:
            return None
        turn = next(self._turns[role])
        return min((able[(turn + index) % len(able)] for index in range(len(able))), key=lambda one: one.open_requests)

    # Requests

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        decode = self._choose("decode")
        if decode is None:
            raise web.HTTPServiceUnavailable(text="no decode instance answers")
        prefill = self._choose("prefill")
        work: Optional["asyncio.Task[None]"] = None
        if prefill:
            transfer = uuid.uuid4().hex
            ours = {"do_remote_decode": True, "transfer_id": transfer}
            theirs = {"do_remote_prefill": True, "transfer_id": transfer, "prefiller": prefill.address}
            work = asyncio.create_task(self._prefill(prefill, {**body, "max_tokens": 1, "stream": False,
                                                               "kv_transfer_params": ours}))
            body = {**body, "kv_transfer_params": theirs}
        decode.open_requests += 1
        try:
            return await self._pass_on(request, decode, body)
        finally:
            decode.open_requests -= 1
            if work:  # also when the client has gone: then the prefiller need not finish
                work.cancel()

    async def _prefill(self, instance: Instance, body: Dict[str, Any]) -> None:
        assert self._session
        body.pop("stream_options", None)
        instance.open_requests += 1
        try:
            async with self._session.post(f"{instance.url}/v1/completions", json=body) as answer:
                if answer.status != 200:
                    logger.warning("%s: %d %s", instance.url, answer.status, await answer.text())
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            # The decoder notices by itself, and computes the prompt.
            logger.warning("%s: %r", instance.url, error)
            instance.is_alive = False
        finally:
            instance.open_requests -= 1

    async def _pass_on(self, request: web.Request, instance: Instance, body: Dict[str, Any]) -> web.StreamResponse:
        assert self._session
        try:
            async with self._session.post(f"{instance.url}/v1/completions", json=body) as answer:
                response = web.StreamResponse(status=answer.status)
                response.content_type = answer.content_type
                await response.prepare(request)
                async for part in answer.content.iter_any():
                    await response.write(part)
                await response.write_eof()
                return response
        except (aiohttp.ClientConnectionError, OSError) as error:
            instance.is_alive = False
            raise web.HTTPBadGateway(text=f"{instance.url}: {error!r}")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prefill", action="append", default=[], metavar="URL")
    parser.add_argument("--decode", action="append", default=[], metavar="URL")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    web.run_app(Proxy(options.prefill, options.decode).application(), host=options.host, port=options.port)


if __name__ == "__main__":
    main()

"""The proxy's choice, without servers."""
import collections

import pytest

from transfer_engine.vllm.proxy import Proxy


def cluster():
    proxy = Proxy(["http://p"], ["http://a/", "http://b"])
    for instance in proxy.instances.values():
        instance.is_alive = True
    proxy.instances["http://p"].address = "where"
    return proxy


def test_instances_take_turns_whatever_else_is_chosen():
    proxy = cluster()
    chosen = collections.Counter()
    for _ in range(10):
        chosen[proxy._choose("decode").url] += 1
        assert proxy._choose("prefill").url == "http://p"
    assert chosen == {"http://a": 5, "http://b": 5}


def test_the_one_with_the_fewest_open_requests_and_none_that_is_gone():
    proxy = cluster()
    proxy.instances["http://a"].open_requests = 2
    assert {proxy._choose("decode").url for _ in range(4)} == {"http://b"}
    proxy.instances["http://b"].is_alive = False
    assert {proxy._choose("decode").url for _ in range(4)} == {"http://a"}
    proxy.instances["http://p"].address = None
    assert proxy._choose("prefill") is None
    with pytest.raises(ValueError, match="role"):
        proxy.add("router", "http://c")

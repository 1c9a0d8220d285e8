"""Operations per second of Python clients on one machine: Krita's, beside redis-py and an etcd client over gRPC.

    python benches/python/bench.py krita [redis] [etcd]

Krita is reached as every client reaches it (KRITA_HOST, KRITA_PORT and so on, or the folder of `init` or the demo).
redis-server and etcd are started here, each alone, in a temporary directory, and made to flush every write as Krita
does; REDIS_URL and ETCD_ADDRESS name others that run already. Needs the packages kritaclient, redis and grpcio.

Prints a table in Markdown: puts and gets of 100-byte values over 10,000 keys; one thread that waits for each, 16
threads that share a client, 64 asyncio tasks, and pieces of 100 keys.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

KEYS = 10_000
VALUE = b"v" * 100
THREADS = 16
TASKS = 64
PIECE = 100

Row = tuple[str, str, str, float, float]


def key() -> str:
    """Any of the keys."""
    return f"bench:{random.randrange(KEYS):05}"


def summary(client: str, shape: str, operation: str, times: list[float], seconds: float, each: int = 1) -> Row:
    """Operations per second, and the median in milliseconds."""
    return client, shape, operation, len(times) * each / seconds, statistics.median(times) * 1000


def one_thread(seconds: float, work: Callable[[], Any]) -> list[float]:
    """How long each turn took."""
    times, end = [], time.perf_counter() + seconds
    now = time.perf_counter()
    while now < end:
        work()
        before, now = now, time.perf_counter()
        times.append(now - before)
    return times


def many_threads(seconds: float, work: Callable[[], Any]) -> list[float]:
    """The same on several threads."""
    times: list[list[float]] = [[] for _ in range(THREADS)]

    def run(number: int) -> None:
        times[number] = one_thread(seconds, work)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [took for part in times for took in part]


async def many_tasks(seconds: float, work: Callable[[], Awaitable[Any]]) -> list[float]:
    """The same in several tasks of one loop."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def run() -> None:
        while (before := time.perf_counter()) < end:
            await work()
            times.append(time.perf_counter() - before)

    await asyncio.gather(*(run() for _ in range(TASKS)))
    return times


def blocking_rows(
    name: str, seconds: float, operations: dict[str, Callable[[], Any]], pieces: dict[str, Callable[[], Any]]
) -> Iterator[Row]:
    """All shapes of a blocking client."""
    for operation, work in operations.items():
        yield summary(name, "1 thread", operation, one_thread(seconds, work), seconds)
    for operation, work in operations.items():
        yield summary(name, f"{THREADS} threads", operation, many_threads(seconds, work), seconds)
    for operation, work in pieces.items():
        yield summary(name, f"pieces of {PIECE}", operation, one_thread(seconds, work), seconds, PIECE)


def krita(seconds: float) -> Iterator[Row]:
    """Krita's own client."""
    from kritaclient import AsyncKritaClient, KritaClient

    client = KritaClient()
    client.put_many({f"bench:{number:05}": VALUE for number in range(KEYS)})
    operations: dict[str, Callable[[], Any]] = {
        "put": lambda: client.put(key(), VALUE),
        "get": lambda: client.get(key()),
    }
    pieces: dict[str, Callable[[], Any]] = {
        "put": lambda: client.put_many({key(): VALUE for _ in range(PIECE)}),
        "get": lambda: client.get_many([key() for _ in range(PIECE)]),
    }
    yield from blocking_rows("kritaclient", seconds, operations, pieces)

    async def tasks() -> list[Row]:
        async with AsyncKritaClient() as asynchronous:
            puts = await many_tasks(seconds, lambda: asynchronous.put(key(), VALUE))
            gets = await many_tasks(seconds, lambda: asynchronous.get(key()))
        shape = f"{TASKS} tasks"
        return [
            summary("kritaclient", shape, "put", puts, seconds),
            summary("kritaclient", shape, "get", gets, seconds),
        ]

    yield from asyncio.run(tasks())


def free_port() -> int:
    """A port of loopback that is free at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextmanager
def server(port: int, command: list[str]) -> Iterator[None]:
    """A server in a directory of its own, which it is given in place of `{here}`; ended at the end."""
    if shutil.which(command[0]) is None:
        sys.exit(f"{command[0]} is not installed, and no variable names one that runs")
    here = tempfile.mkdtemp(prefix="krita-bench-")
    words = [word.replace("{here}", here) for word in command]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if time.monotonic() > until or process.poll() is not None:
                    sys.exit(f"{command[0]} does not start")
                time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(here, ignore_errors=True)


def redis(seconds: float) -> Iterator[Row]:
    """redis-py; a single redis-server that flushes every write."""
    if "REDIS_URL" in os.environ:
        yield from redis_at(os.environ["REDIS_URL"], seconds)
        return
    port = free_port()
    options = ["--dir", "{here}", "--save", "", "--appendonly", "yes", "--appendfsync", "always"]
    with server(port, ["redis-server", "--port", str(port), *options]):
        yield from redis_at(f"redis://127.0.0.1:{port}", seconds)


def redis_at(url: str, seconds: float) -> Iterator[Row]:
    """redis-py with the server that is named."""
    import redis as redis_py
    import redis.asyncio as redis_asyncio

    client = redis_py.Redis.from_url(url)
    client.mset({f"bench:{number:05}": VALUE for number in range(KEYS)})
    operations: dict[str, Callable[[], Any]] = {
        "put": lambda: client.set(key(), VALUE),
        "get": lambda: client.get(key()),
    }
    pieces: dict[str, Callable[[], Any]] = {
        "put": lambda: client.mset({key(): VALUE for _ in range(PIECE)}),
        "get": lambda: client.mget([key() for _ in range(PIECE)]),
    }
    yield from blocking_rows("redis-py", seconds, operations, pieces)

    async def tasks() -> list[Row]:
        pool = redis_asyncio.BlockingConnectionPool.from_url(url, max_connections=TASKS)
        asynchronous = redis_asyncio.Redis(connection_pool=pool)
        puts = await many_tasks(seconds, lambda: asynchronous.set(key(), VALUE))
        gets = await many_tasks(seconds, lambda: asynchronous.get(key()))
        await asynchronous.aclose()
        shape = f"{TASKS} tasks"
        return [
            summary("redis-py", shape, "put", puts, seconds),
            summary("redis-py", shape, "get", gets, seconds),
        ]

    yield from asyncio.run(tasks())


def etcd(seconds: float) -> Iterator[Row]:
    """etcd over gRPC; a single etcd, which flushes every write."""
    if "ETCD_ADDRESS" in os.environ:
        yield from etcd_at(os.environ["ETCD_ADDRESS"], seconds)
        return
    port = free_port()
    clients, peers = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{free_port()}"
    options = ["--listen-client-urls", clients, "--advertise-client-urls", clients, "--listen-peer-urls", peers]
    with server(port, ["etcd", "--data-dir", "{here}/data", *options]):
        yield from etcd_at(f"127.0.0.1:{port}", seconds)


def etcd_at(address: str, seconds: float) -> Iterator[Row]:
    """As etcd3-py speaks it: the two messages written by hand, so that no generated code is needed."""
    import grpc

    channel = grpc.insecure_channel(address)

    def field(number: int, data: bytes) -> bytes:
        length, encoded = len(data), bytearray([number << 3 | 2])
        while length > 127:
            encoded.append(length & 127 | 128)
            length >>= 7
        return bytes(encoded) + bytes([length]) + data

    same: Callable[[bytes], bytes] = bytes
    put_call = channel.unary_unary("/etcdserverpb.KV/Put", request_serializer=same, response_deserializer=same)
    get_call = channel.unary_unary("/etcdserverpb.KV/Range", request_serializer=same, response_deserializer=same)
    for number in range(KEYS):
        put_call(field(1, f"bench:{number:05}".encode()) + field(2, VALUE), wait_for_ready=True)
    operations: dict[str, Callable[[], Any]] = {
        "put": lambda: put_call(field(1, key().encode()) + field(2, VALUE)),
        "get": lambda: get_call(field(1, key().encode())),
    }
    yield from blocking_rows("etcd by grpcio", seconds, operations, {})


def main() -> int:
    """Measures what is named, and prints it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="for each line of the table")
    parser.add_argument("clients", nargs="+", choices=["krita", "redis", "etcd"])
    arguments = parser.parse_args()
    random.seed(1)
    print("| client | shape | operation | operations/s | median of a call, ms |\n|---|---|---|---:|---:|")
    for name in arguments.clients:
        rows: Callable[[float], Iterator[Row]] = globals()[name]
        for client, shape, operation, rate, median in rows(arguments.seconds):
            print(f"| {client} | {shape} | {operation} | {rate:,.0f} | {median:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

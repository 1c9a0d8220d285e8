"""The client for asyncio: the same calls, none of which blocks the loop."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from types import TracebackType
from typing import AsyncIterator, Iterable, Optional, Sequence, TypeVar

from . import _calls, _native
from ._values import (
    Bytes,
    Consistency,
    Data,
    Item,
    MemberHealth,
    Operation,
    Result,
    ShardVersion,
    Value,
)

T = TypeVar("T")


class AsyncKritaClient:
    """See :class:`kritaclient.KritaClient`, whose parameters it takes; the first call connects.

    Tasks may share it. A task that is cancelled in a write gives it up: the write may or may not be applied.
    """

    def __init__(
        self,
        host: Optional[str] = None,
        port: Optional[int] = None,
        cluster_name: Optional[str] = None,
        *,
        nodes: Iterable[str] = (),
        token: Optional[str] = None,
        ca: Optional[_calls.Authority] = None,
        insecure: bool = False,
        timeout: Optional[float] = None,
    ) -> None:
        self._handle = _calls.handle(host, port, cluster_name, nodes, token, ca, insecure, timeout)
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._completions: Optional[_native.Completions] = None
        self._process = 0

    async def __aenter__(self) -> AsyncKritaClient:
        await self._run(self._handle.connect())
        return self

    async def __aexit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<AsyncKritaClient {self._handle.description}{' (closed)' if self._handle.is_closed else ''}>"

    def close(self) -> None:
        """Closes the connections once the calls under way have ended. Later calls raise."""
        self._handle.close()

    async def _run(self, call: _native.Call[T]) -> T:
        loop = asyncio.get_running_loop()
        if self._completions is None or self._loop is not loop or self._process != os.getpid():
            self._completions = _native.Completions(loop.call_soon_threadsafe)
            self._loop, self._process = loop, os.getpid()
        future: asyncio.Future[T] = loop.create_future()
        task = call.start(self._completions, future)
        try:
            return await future
        except asyncio.CancelledError:
            task.abort()
            raise

    async def put(
        self,
        key: Bytes,
        value: Bytes,
        *,
        if_version: Optional[int] = None,
        if_value: Optional[Bytes] = None,
        timeout: Optional[float] = None,
    ) -> int:
        """See :meth:`kritaclient.KritaClient.put`."""
        return await self._run(self._handle.put(key, value, if_version, if_value, timeout))

    async def get(
        self, key: Bytes, *, consistency: Consistency = "linearizable", timeout: Optional[float] = None
    ) -> Optional[Value]:
        """See :meth:`kritaclient.KritaClient.get`."""
        return await self._run(self._handle.get(key, consistency, timeout))

    async def delete(
        self,
        key: Bytes,
        *,
        if_version: Optional[int] = None,
        if_value: Optional[Bytes] = None,
        timeout: Optional[float] = None,
    ) -> bool:
        """See :meth:`kritaclient.KritaClient.delete`."""
        return await self._run(self._handle.delete(key, if_version, if_value, timeout))

    async def get_many(
        self,
        keys: Iterable[Bytes],
        *,
        consistency: Consistency = "linearizable",
        timeout: Optional[float] = None,
    ) -> list[Optional[Value]]:
        """See :meth:`kritaclient.KritaClient.get_many`."""
        distinct = _calls.Distinct(keys)
        found = await self._run(self._handle.get_many(distinct.keys, consistency, timeout))
        return _calls.all_or_raise(distinct.spread(found))

    async def put_many(self, pairs: _calls.Pairs, *, timeout: Optional[float] = None) -> list[int]:
        """See :meth:`kritaclient.KritaClient.put_many`."""
        return _calls.all_or_raise(await self._run(self._handle.put_many(_calls.pairs_of(pairs), timeout)))

    async def batch(self, operations: Iterable[Operation], *, timeout: Optional[float] = None) -> list[Result]:
        """See :meth:`kritaclient.KritaClient.batch`."""
        operations = list(operations)
        natives = [operation._native() for operation in operations]
        return _calls.results_of(operations, await self._run(self._handle.batch(natives, timeout)))

    def scan(
        self,
        prefix: Optional[Bytes] = None,
        *,
        start: Optional[Bytes] = None,
        end: Optional[Bytes] = None,
        keys_only: bool = False,
        limit: Optional[int] = None,
        page_items: int = 0,
        consistency: Consistency = "linearizable",
        timeout: Optional[float] = None,
    ) -> AsyncScan:
        """See :meth:`kritaclient.KritaClient.scan`; for ``async for``."""
        scan = self._handle.scan(
            prefix=prefix,
            start=start,
            end=end,
            keys_only=keys_only,
            limit=limit,
            page_items=page_items,
            consistency=consistency,
            timeout=timeout,
        )
        return AsyncScan(self, scan)

    async def list_keys(self, prefix: Bytes = b"", *, limit: Optional[int] = None) -> AsyncIterator[Data]:
        """See :meth:`kritaclient.KritaClient.list_keys`; for ``async for``."""
        async for item in self.scan(prefix, keys_only=True, limit=limit):
            yield item.key

    async def health(self) -> Sequence[MemberHealth]:
        """See :meth:`kritaclient.KritaClient.health`."""
        return _calls.members_of(await self._run(self._handle.health()))


class AsyncScan(AsyncIterator[Item]):
    """The items of a scan, fetched as they are read."""

    def __init__(self, client: AsyncKritaClient, scan: _native.Scan) -> None:
        self._client = client
        self._scan = scan
        self._fetched: deque[tuple[bytes, bytes, int]] = deque()

    def __aiter__(self) -> AsyncScan:
        return self

    async def __anext__(self) -> Item:
        if not self._fetched:
            self._fetched.extend(await self._client._run(self._scan.step()))
        if not self._fetched:
            raise StopAsyncIteration
        return _calls.item_of(self._fetched.popleft())

    @property
    def versions(self) -> dict[int, ShardVersion]:
        """See :attr:`kritaclient.Scan.versions`."""
        return _calls.versions_of(self._scan)

"""The client whose calls wait for their end."""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import Iterable, Iterator, Optional, Sequence

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


class KritaClient:
    """A connection to a cluster. Threads may share it: calls of different threads travel together.

    Any node may be named: the client finds the leaders by itself, follows them when they change, and retries within
    the timeout. A retry never applies a write twice. While a call waits, other threads run. After a fork the child
    uses connections of its own.

    :param host: a node's name or address; ``KRITA_HOST``, else ``localhost``.
    :param port: its port; ``KRITA_PORT``, else 8080.
    :param cluster_name: guards against the wrong cluster; ``KRITA_CLUSTER_NAME``, else ``mycluster``.
    :param nodes: several nodes as ``host:port``, instead of host and port: one of them suffices.
    :param token: opaque; ``KRITA_TOKEN``, else ``admin.token`` where ``init`` or the demo was run.
    :param ca: the certificate authority: a folder that holds ``ca.crt``, such a file, or its text;
        ``KRITA_TLS_CERT_PATH``, else ``certs`` where ``init`` or the demo was run.
    :param insecure: plain text: anybody on the path reads and changes everything, the token included.
    :param timeout: seconds that a call may take, retries included; 10 unless given.
    :raises kritaclient.KritaError: no node was reached, or it refused the token or the cluster's name.
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
        self._handle.connect().wait()

    def __enter__(self) -> KritaClient:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<KritaClient {self._handle.description}{' (closed)' if self._handle.is_closed else ''}>"

    def close(self) -> None:
        """Closes the connections. Later calls raise; closing again does nothing."""
        self._handle.close()

    def put(
        self,
        key: Bytes,
        value: Bytes,
        *,
        if_version: Optional[int] = None,
        if_value: Optional[Bytes] = None,
        timeout: Optional[float] = None,
    ) -> int:
        """Sets a key's value; returns the key's version. It is durable on a majority then.

        :param if_version: only if the key's version is this; 0 = only if the key is absent.
        :param if_value: only if the key has this value.
        :raises kritaclient.ConditionFailed: the condition did not hold; nothing was changed.
        :raises kritaclient.OutcomeUnknown: the write may have been applied, or may still be.
        """
        return self._handle.put(key, value, if_version, if_value, timeout).wait()

    def get(
        self, key: Bytes, *, consistency: Consistency = "linearizable", timeout: Optional[float] = None
    ) -> Optional[Value]:
        """The key's value, which carries its version; ``None`` if the key is absent.

        :param consistency: ``"linearizable"``: it sees every write that ended before the call. ``"available"``: the
            same, or, if no leader is reached in most of the call's time, what any replica has. ``"any"``: what the
            replica that is asked has, which may be behind. What no quorum confirmed has :attr:`Value.stale_at`.
        """
        return self._handle.get(key, consistency, timeout).wait()

    def delete(
        self,
        key: Bytes,
        *,
        if_version: Optional[int] = None,
        if_value: Optional[Bytes] = None,
        timeout: Optional[float] = None,
    ) -> bool:
        """Removes a key; returns whether it was there. Conditions and errors as with :meth:`put`."""
        return self._handle.delete(key, if_version, if_value, timeout).wait()

    def get_many(
        self,
        keys: Iterable[Bytes],
        *,
        consistency: Consistency = "linearizable",
        timeout: Optional[float] = None,
    ) -> list[Optional[Value]]:
        """Reads many keys, in few round trips; one value or ``None`` per key, in order.

        :param consistency: as with :meth:`get`.
        :param timeout: for each piece of it; large calls have many.
        :raises kritaclient.ManyFailed: some could not be read; its ``results`` has the others.
        """
        distinct = _calls.Distinct(keys)
        found = self._handle.get_many(distinct.keys, consistency, timeout).wait()
        return _calls.all_or_raise(distinct.spread(found))

    def put_many(self, pairs: _calls.Pairs, *, timeout: Optional[float] = None) -> list[int]:
        """Sets many keys (a mapping, or pairs), in few round trips; one version per pair, in order.

        Pieces stand or fall alone: for all or nothing on a shard use :meth:`batch`. A key may come once.

        :param timeout: for each piece of it; large calls have many.
        :raises kritaclient.ManyFailed: some failed; its ``results`` says for each whether it was applied.
        """
        return _calls.all_or_raise(self._handle.put_many(_calls.pairs_of(pairs), timeout).wait())

    def batch(self, operations: Iterable[Operation], *, timeout: Optional[float] = None) -> list[Result]:
        """Many operations in a round trip, atomic per shard; one result per operation, in order.

        Of the operations on one shard all are applied, or none, and then each has the error. Nothing is raised
        for a failed operation: see :attr:`Result.error`, or :meth:`Result.check`. A key may come once.

        :param timeout: for each shard's part; the parts travel together, so this is about what the call takes at most.
        """
        operations = list(operations)
        answers = self._handle.batch([operation._native() for operation in operations], timeout).wait()
        return _calls.results_of(operations, answers)

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
    ) -> Scan:
        """Keys and values over all shards in order of keys, fetched as they are read, in bounded memory.

        Each shard's part is that shard as of one moment: see :attr:`Scan.versions`.

        :param prefix: only keys that begin with it.
        :param start: only keys from this one on.
        :param end: only keys before this one.
        :param keys_only: do not fetch values.
        :param limit: at most this many.
        :param page_items: keys per page and shard; 0 = a default that keeps memory small.
        :param consistency: as with :meth:`get`.
        :param timeout: for each page.
        """
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
        return Scan(scan)

    def list_keys(self, prefix: Bytes = b"", *, limit: Optional[int] = None) -> Iterator[Data]:
        """Keys that begin with ``prefix``, in order, fetched as they are read."""
        return (item.key for item in self.scan(prefix, keys_only=True, limit=limit))

    def health(self) -> Sequence[MemberHealth]:
        """How every member of the cluster is; members that do not answer are in the list."""
        return _calls.members_of(self._handle.health().wait())


class Scan(Iterator[Item]):
    """The items of a scan, fetched as they are read."""

    def __init__(self, scan: _native.Scan) -> None:
        self._scan = scan
        self._fetched: deque[tuple[bytes, bytes, int]] = deque()

    def __iter__(self) -> Scan:
        return self

    def __next__(self) -> Item:
        if not self._fetched:
            self._fetched.extend(self._scan.step().wait())
        if not self._fetched:
            raise StopIteration
        return _calls.item_of(self._fetched.popleft())

    @property
    def versions(self) -> dict[int, ShardVersion]:
        """What each shard's items are as of, by shard number.

        A shard is held still for the scan, within bounds of time and memory; beyond them the scan goes on as of a later
        entry, and the version is newer from its ``start`` on. Fetching runs ahead of the items that were read.
        """
        return _calls.versions_of(self._scan)

"""What both clients share: how a cluster is reached, and what the native module's answers mean."""

from __future__ import annotations

import os
from typing import Any, Iterable, Mapping, Optional, Sequence, TypeVar, Union

from . import _native
from ._values import Bytes, Data, Item, MemberHealth, Operation, Result, ShardVersion, Value
from .errors import KritaError, ManyFailed, RequestError

T = TypeVar("T")

#: A file, or the text of it.
Authority = Union[str, bytes, "os.PathLike[str]"]

Pairs = Union[Mapping[Any, Bytes], Iterable[tuple[Bytes, Bytes]]]


def handle(
    host: Optional[str],
    port: Optional[int],
    cluster_name: Optional[str],
    nodes: Iterable[str],
    token: Optional[str],
    ca: Optional[Authority],
    insecure: bool,
    timeout: Optional[float],
) -> _native.Handle:
    """A way to reach a cluster; nothing is sent yet."""
    if insecure and ca is not None:
        raise RequestError("give ca or insecure=True, not both")
    is_text = isinstance(ca, (bytes, str)) and "-----BEGIN" in (
        ca if isinstance(ca, str) else ca.decode("latin-1")
    )
    pem = None
    if is_text and ca is not None:
        pem = ca.encode("ascii", "replace") if isinstance(ca, str) else bytes(ca)  # type: ignore[arg-type]
    path = None if ca is None or is_text else os.fsdecode(ca)
    return _native.Handle(
        nodes=list(nodes),
        host=host,
        port=port,
        cluster_name=cluster_name,
        token=token,
        ca_path=path,
        ca_pem=pem,
        insecure=insecure,
        timeout=timeout,
    )


def _data(key: Bytes) -> bytes:
    if isinstance(key, str):
        return key.encode("utf-8")
    if isinstance(key, (bytes, bytearray, memoryview)):
        return bytes(key)
    raise TypeError(f"want str or bytes, not {type(key).__name__}")


class Distinct:
    """Keys, each once, and where each of the caller's keys went."""

    def __init__(self, keys: Iterable[Bytes]) -> None:
        places: dict[bytes, int] = {}
        self.keys: list[Bytes] = []
        self.positions: list[int] = []
        for key in keys:
            data = _data(key)
            if data not in places:
                places[data] = len(self.keys)
                self.keys.append(data)
            self.positions.append(places[data])

    def spread(self, found: Sequence[T]) -> list[T]:
        """The results, as many as the caller had keys."""
        return [found[position] for position in self.positions]


def pairs_of(pairs: Pairs) -> list[tuple[Bytes, Bytes]]:
    """Pairs of a mapping or of an iterable."""
    return list(pairs.items() if isinstance(pairs, Mapping) else pairs)


def all_or_raise(results: Sequence[Union[T, KritaError]]) -> list[T]:
    """The results; raises if one of them is an error: that one if it is the only part, else all together."""
    good: list[T] = []
    errors: list[KritaError] = []
    for result in results:
        if isinstance(result, KritaError):
            errors.append(result)
        else:
            good.append(result)
    if not errors:
        return good
    if len(results) == 1:
        raise errors[0]
    raise ManyFailed(f"{len(errors)} of {len(results)} failed; the first: {errors[0]}", results) from errors[0]


def results_of(
    operations: Sequence[Operation],
    answers: Sequence[Union[tuple[Optional[int], Optional[bool], Optional[Value]], KritaError]],
) -> list[Result]:
    """The results of a batch."""
    results = []
    for operation, answer in zip(operations, answers):
        if isinstance(answer, KritaError):
            results.append(Result(operation, error=answer))
        else:
            version, existed, value = answer
            results.append(Result(operation, value=value, version=version, existed=existed))
    return results


def item_of(parts: tuple[bytes, bytes, int]) -> Item:
    """One key of a scan."""
    key, value, version = parts
    return Item(Data(key), Value(value, version))


def members_of(told: Sequence[dict[str, Any]]) -> list[MemberHealth]:
    """The members, as they were found."""
    return [MemberHealth(**{**member, "problems": tuple(member.get("problems", ()))}) for member in told]


def versions_of(scan: _native.Scan) -> dict[int, ShardVersion]:
    """What a scan has seen of the shards."""
    return {
        shard: ShardVersion(applied_index, Data(start), is_newer, is_stale)
        for shard, applied_index, start, is_newer, is_stale in scan.versions()
    }

"""What callers hand in and get back: keys and values, operations of a batch, results, members."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Optional, Union

from .errors import KritaError

#: What can be a key or a value: text is stored as UTF-8.
Bytes = Union[str, bytes, bytearray, memoryview]

#: How fresh a read must be.
Consistency = Literal["linearizable", "available", "any"]


class Data(bytes):
    """Bytes from the database: a key or a value.

    They are what was stored, byte for byte, and ``bytes`` in every way, with two conveniences for text: printed or
    formatted they are text if they are UTF-8 (and ``b'...'`` if not), and they are equal to a ``str`` with the same
    UTF-8. :attr:`text` is a real ``str``, and an error where there is none; nothing is ever replaced or guessed.

    The hash is that of the bytes: in a ``dict`` or ``set`` use either bytes or text, not both.
    """

    @property
    def text(self) -> str:
        """As text. Raises :class:`UnicodeDecodeError` if it is not UTF-8."""
        return self.decode("utf-8")

    def __str__(self) -> str:
        try:
            return self.decode("utf-8")
        except UnicodeDecodeError:
            return bytes.__repr__(self)

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            try:
                other = other.encode("utf-8")
            except UnicodeEncodeError:
                return False
        return bytes.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        equal = self.__eq__(other)
        return equal if equal is NotImplemented else not equal

    __hash__ = bytes.__hash__


class Value(Data):
    """A key's value, and the version of the key that it belongs to."""

    #: The key's version, which every change increases: for ``if_version``.
    version: int

    #: ``None``: a quorum confirmed it. Else it may be stale, and this is the last log entry of the key's shard that it
    #: takes into account; only reads with a weaker ``consistency`` give such.
    stale_at: Optional[int]

    def __new__(cls, data: Union[bytes, str], version: int = 0, stale_at: Optional[int] = None) -> Value:
        value = super().__new__(cls, data.encode("utf-8") if isinstance(data, str) else data)
        value.version = version
        value.stale_at = stale_at
        return value


class Item(NamedTuple):
    """One key of a scan."""

    key: Data
    #: Carries the version; empty where the scan is over keys only.
    value: Value

    @property
    def version(self) -> int:
        """The key's version."""
        return self.value.version


@dataclass(frozen=True)
class Put:
    """Set a key's value, as one operation of a batch."""

    key: Bytes
    value: Bytes
    #: Only if the key's version is this; 0 = only if it is absent.
    if_version: Optional[int] = None
    #: Only if the key has this value.
    if_value: Optional[Bytes] = None

    def _native(self) -> tuple[Any, ...]:
        return ("put", self.key, self.value, self.if_version, self.if_value)


@dataclass(frozen=True)
class Delete:
    """Remove a key, as one operation of a batch."""

    key: Bytes
    #: Only if the key's version is this.
    if_version: Optional[int] = None
    #: Only if the key has this value.
    if_value: Optional[Bytes] = None

    def _native(self) -> tuple[Any, ...]:
        return ("delete", self.key, None, self.if_version, self.if_value)


@dataclass(frozen=True)
class Get:
    """Read a key, as one operation of a batch."""

    key: Bytes

    def _native(self) -> tuple[Any, ...]:
        return ("get", self.key, None, None, None)


Operation = Union[Put, Delete, Get]


@dataclass(frozen=True)
class Result:
    """What one operation of a batch did."""

    #: Which one.
    operation: Operation
    #: What a get read; ``None`` if the key is absent, and for writes.
    value: Optional[Value] = None
    #: The key's version, after a put or as a get found it.
    version: Optional[int] = None
    #: Whether the key of a get or a delete was there.
    existed: Optional[bool] = None
    #: Why it was not done, or :class:`kritaclient.OutcomeUnknown`.
    error: Optional[KritaError] = None

    @property
    def ok(self) -> bool:
        """Whether it was done."""
        return self.error is None

    def check(self) -> Result:
        """This result; raises its error if it has one."""
        if self.error is not None:
            raise self.error
        return self


@dataclass(frozen=True)
class MemberHealth:
    """One member of the cluster, as it was found. One that does not answer is listed, with the reason."""

    #: Its name; empty if not known.
    node_id: str
    #: Where it was asked.
    address: str
    #: What it said of itself, ``serving`` above all; ``None`` if it did not answer.
    state: Optional[str] = None
    #: What is wrong, one line each.
    problems: tuple[str, ...] = ()
    #: Shards that it leads.
    shards_led: int = 0
    #: Shards of which it knows a leader.
    shards_with_leader: int = 0
    #: Shards in all.
    shards_total: int = 0
    #: Why there is no answer.
    error: Optional[KritaError] = None

    @property
    def healthy(self) -> bool:
        """It serves, sees no problem, and knows a leader of every shard."""
        return self.state == "serving" and not self.problems and self.shards_with_leader == self.shards_total


class ShardVersion(NamedTuple):
    """What the items of one shard are as of, in a scan."""

    #: The last log entry of the shard that they take into account.
    applied_index: int
    #: From this key on.
    start: Data
    #: Items of the shard before ``start`` are as of an earlier entry: what was held for the scan had gone.
    is_newer: bool
    #: No quorum confirmed it.
    is_stale: bool

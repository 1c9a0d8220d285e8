"""The native module: private to this package."""

from asyncio import Future
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, Generic, NoReturn, TypeVar, final

from ._values import Bytes, Value
from .errors import KritaError

_T = TypeVar("_T", covariant=True)

__all__ = ["VERSION", "Call", "Completions", "Handle", "Scan", "Task", "error_table", "run_command"]

VERSION: str

def error_table() -> list[tuple[int, str, int, bool, str, str]]: ...
def run_command(arguments: Sequence[str]) -> NoReturn: ...
@final
class Call(Generic[_T]):
    def __class_getitem__(cls, key: Any) -> Any: ...
    def wait(self) -> _T: ...
    def start(self, completions: Completions, future: Future[Any]) -> Task: ...

@final
class Task:
    def abort(self) -> None: ...

@final
class Completions:
    def __new__(cls, schedule: Callable[..., object]) -> Completions: ...
    def deliver(self) -> None: ...

@final
class Scan:
    def versions(self) -> list[tuple[int, int, bytes, bool, bool]]: ...
    def step(self) -> Call[list[tuple[bytes, bytes, int]]]: ...

@final
class Handle:
    def __new__(
        cls,
        *,
        nodes: Sequence[str],
        host: str | None,
        port: int | None,
        cluster_name: str | None,
        token: str | None,
        ca_path: str | PathLike[str] | None,
        ca_pem: bytes | None,
        insecure: bool,
        timeout: float | None,
    ) -> Handle: ...
    @property
    def is_closed(self) -> bool: ...
    @property
    def description(self) -> str: ...
    def close(self) -> None: ...
    def connect(self) -> Call[None]: ...
    def put(
        self, key: Bytes, value: Bytes, if_version: int | None, if_value: Bytes | None, timeout: float | None
    ) -> Call[int]: ...
    def get(self, key: Bytes, consistency: str, timeout: float | None) -> Call[Value | None]: ...
    def delete(
        self, key: Bytes, if_version: int | None, if_value: Bytes | None, timeout: float | None
    ) -> Call[bool]: ...
    def get_many(
        self, keys: Sequence[Bytes], consistency: str, timeout: float | None
    ) -> Call[list[Value | None | KritaError]]: ...
    def put_many(
        self, pairs: Sequence[tuple[Bytes, Bytes]], timeout: float | None
    ) -> Call[list[int | KritaError]]: ...
    def batch(
        self, operations: Sequence[tuple[Any, ...]], timeout: float | None
    ) -> Call[list[tuple[int | None, bool | None, Value | None] | KritaError]]: ...
    def scan(
        self,
        *,
        prefix: Bytes | None,
        start: Bytes | None,
        end: Bytes | None,
        keys_only: bool,
        limit: int | None,
        page_items: int,
        consistency: str,
        timeout: float | None,
    ) -> Scan: ...
    def health(self) -> Call[list[dict[str, Any]]]: ...

"""Every way a call can fail. Written by generate_errors.py from the table of errors: edit that, not this.

A call ends in one of three ways: it returns (a write was applied, and is durable on a majority), it raises
:class:`NotApplied` (nothing was changed), or it raises :class:`OutcomeUnknown` (the deadline passed, and the client
could not learn whether the write was applied). Retries are inside: what is raised here is final for the call.

    KritaError
     +-- NotApplied
     |    +-- RequestError
     |    |    +-- InvalidArgument
     |    +-- ConfigurationError
     |    |    +-- WrongCluster
     |    +-- AccessError
     |    |    +-- Unauthenticated
     |    |    +-- PermissionDenied
     |    +-- UnavailableError
     |    |    +-- NotLeader
     |    |    +-- Unavailable
     |    |    +-- Overloaded
     |    |    +-- ResourceExhausted
     |    |    +-- DeadlineExceeded
     |    |    +-- NotReady
     |    +-- FailedError
     |    |    +-- Corruption
     |    |    +-- Internal
     |    +-- ConditionFailed
     +-- OutcomeUnknown
     +-- ManyFailed
"""

from __future__ import annotations

from typing import Any, ClassVar, Sequence


class KritaError(Exception):
    """Base of all errors of this package."""

    #: The stable number, as in docs/protocol.md; 0 where several errors stand behind one.
    code: ClassVar[int] = 0
    #: The stable name.
    name: ClassVar[str] = ""
    #: What to do about it, in one line.
    advice: ClassVar[str] = ""
    #: Whether trying again later may help.
    retryable: ClassVar[bool] = False
    #: The exit code of the commands.
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(message)
        #: What happened.
        self.message = message
        #: Come back after this many seconds, if the server said so.
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.name}: {self.message}" if self.name else self.message


class NotApplied(KritaError):
    """Nothing was changed, and nothing will be."""


class RequestError(NotApplied, ValueError):
    """The request is malformed or breaks a limit: correct it."""


class InvalidArgument(RequestError):
    """Correct the request; docs/protocol.md states the limits."""

    code = 1
    name = "INVALID_ARGUMENT"
    advice = "correct the request; docs/protocol.md states the limits"
    retryable = False
    exit_code = 1


class ConfigurationError(NotApplied):
    """Wrong cluster, wrong address, TLS that does not fit: correct the configuration."""


class WrongCluster(ConfigurationError):
    """Check --cluster-name and the address."""

    code = 2
    name = "WRONG_CLUSTER"
    advice = "check --cluster-name and the address"
    retryable = False
    exit_code = 1


class AccessError(NotApplied):
    """The token is missing, unknown, or does not allow this."""


class Unauthenticated(AccessError):
    """Give a valid token by --token or KRITA_TOKEN."""

    code = 3
    name = "UNAUTHENTICATED"
    advice = "give a valid token by --token or KRITA_TOKEN"
    retryable = False
    exit_code = 4


class PermissionDenied(AccessError):
    """Ask for a role that grants this."""

    code = 4
    name = "PERMISSION_DENIED"
    advice = "ask for a role that grants this"
    retryable = False
    exit_code = 4


class UnavailableError(NotApplied):
    """No leader, overload, no room, or too late: try again later. The client has tried until the deadline."""


class NotLeader(UnavailableError):
    """Ask the node that the hint names."""

    code = 6
    name = "NOT_LEADER"
    advice = "ask the node that the hint names"
    retryable = True
    exit_code = 5


class Unavailable(UnavailableError):
    """Try again; see kritaclient health-check --all."""

    code = 7
    name = "UNAVAILABLE"
    advice = "try again; see kritaclient health-check --all"
    retryable = True
    exit_code = 5


class Overloaded(UnavailableError):
    """Slow down and try again after the given time."""

    code = 8
    name = "OVERLOADED"
    advice = "slow down and try again after the given time"
    retryable = True
    exit_code = 5


class ResourceExhausted(UnavailableError):
    """Make room, then try again."""

    code = 9
    name = "RESOURCE_EXHAUSTED"
    advice = "make room, then try again"
    retryable = True
    exit_code = 5


class DeadlineExceeded(UnavailableError):
    """Try again, or with a longer deadline."""

    code = 10
    name = "DEADLINE_EXCEEDED"
    advice = "try again, or with a longer deadline"
    retryable = True
    exit_code = 5


class NotReady(UnavailableError):
    """Wait until the node serves."""

    code = 13
    name = "NOT_READY"
    advice = "wait until the node serves"
    retryable = True
    exit_code = 5


class FailedError(NotApplied):
    """Damaged data or a bug: look at the node's log."""


class Corruption(FailedError):
    """Try another replica; see the node's log."""

    code = 12
    name = "CORRUPTION"
    advice = "try another replica; see the node's log"
    retryable = True
    exit_code = 1


class Internal(FailedError):
    """Report it with the node's log."""

    code = 14
    name = "INTERNAL"
    advice = "report it with the node's log"
    retryable = False
    exit_code = 1


class ConditionFailed(NotApplied):
    """Read the key again and decide anew."""

    code = 5
    name = "CONDITION_FAILED"
    advice = "read the key again and decide anew"
    retryable = False
    exit_code = 1

    def __init__(
        self,
        message: str = "",
        *,
        retry_after: float | None = None,
        current_version: int = 0,
        operation: int = 0,
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        #: The key's version now; 0 = it is absent.
        self.current_version = current_version
        #: Which operation of a batch it was, from 0.
        self.operation = operation


class OutcomeUnknown(KritaError):
    """Read the key to learn what happened."""

    code = 11
    name = "UNKNOWN_OUTCOME"
    advice = "read the key to learn what happened"
    retryable = False
    exit_code = 6


class ManyFailed(KritaError):
    """Some parts of a call with many parts failed; each part has its own result.

    Parts that did not fail were done. Whether the others were applied, their exceptions say.
    """

    name = "MANY_FAILED"
    advice = "look at each result"

    def __init__(self, message: str, results: Sequence[Any]) -> None:
        super().__init__(message)
        #: In the order of the call: what the part returned, or its :class:`KritaError`.
        self.results = list(results)

    @property
    def errors(self) -> list[KritaError]:
        """The parts that failed."""
        return [result for result in self.results if isinstance(result, KritaError)]


BY_CODE: dict[int, type[KritaError]] = {
    1: InvalidArgument,
    2: WrongCluster,
    3: Unauthenticated,
    4: PermissionDenied,
    5: ConditionFailed,
    6: NotLeader,
    7: Unavailable,
    8: Overloaded,
    9: ResourceExhausted,
    10: DeadlineExceeded,
    11: OutcomeUnknown,
    12: Corruption,
    13: NotReady,
    14: Internal,
}


def _from_code(
    code: int, message: str, retry_after: float | None, current_version: int, operation: int
) -> KritaError:
    """The exception for an error of the native client."""
    error_class = BY_CODE.get(code, Internal)
    if issubclass(error_class, ConditionFailed):
        return error_class(
            message, retry_after=retry_after, current_version=current_version, operation=operation
        )
    return error_class(message, retry_after=retry_after)

"""Python client of Krita, a replicated key-value database for data that must not be lost or misread.

    from kritaclient import KritaClient

    client = KritaClient(host='localhost', port=8080, cluster_name='mycluster')
    client.put('testkey', 'testvalue')
    value = client.get('testkey')
    print(value)

Token and certificate authority come from arguments, from ``KRITA_TOKEN`` and ``KRITA_TLS_CERT_PATH``, or from the
folder in which ``init`` or the demo was run. :class:`AsyncKritaClient` has the same calls for asyncio. Reads see
every write that ended before they began; a write that returned is durable on a majority. :mod:`kritaclient.errors`
has what else can happen.
"""

from __future__ import annotations

from . import errors
from ._asyncio import AsyncKritaClient, AsyncScan
from ._client import KritaClient, Scan
from ._native import VERSION as __version__
from ._values import (
    Data,
    Delete,
    Get,
    Item,
    MemberHealth,
    Operation,
    Put,
    Result,
    ShardVersion,
    Value,
)
from .errors import (
    AccessError,
    ConditionFailed,
    ConfigurationError,
    FailedError,
    KritaError,
    ManyFailed,
    NotApplied,
    OutcomeUnknown,
    RequestError,
    UnavailableError,
)

__all__ = [
    "AccessError",
    "AsyncKritaClient",
    "AsyncScan",
    "ConditionFailed",
    "ConfigurationError",
    "Data",
    "Delete",
    "FailedError",
    "Get",
    "Item",
    "KritaClient",
    "KritaError",
    "ManyFailed",
    "MemberHealth",
    "NotApplied",
    "Operation",
    "OutcomeUnknown",
    "Put",
    "RequestError",
    "Result",
    "Scan",
    "ShardVersion",
    "UnavailableError",
    "Value",
    "__version__",
    "errors",
]

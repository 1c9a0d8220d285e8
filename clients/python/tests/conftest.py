"""The cluster that the tests talk to: named by KRITA_HOST, KRITA_PORT, KRITA_CLUSTER_NAME, KRITA_TOKEN and
KRITA_TLS_CERT_PATH, as users name theirs. `cargo test -p krita-tests --test python_client` starts one of three nodes
with TLS, and runs these tests on the wheel.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator

import pytest

from kritaclient import KritaClient


@pytest.fixture(scope="session", autouse=True)
def cluster() -> None:
    """Refuses to run without a cluster: nothing would be tested."""
    if "KRITA_PORT" not in os.environ:
        pytest.exit("KRITA_PORT and the like name no cluster: see tests/conftest.py", returncode=4)


@pytest.fixture(scope="session")
def shared() -> Iterator[KritaClient]:
    """A client for all tests."""
    with KritaClient() as client:
        yield client


@pytest.fixture
def client(shared: KritaClient) -> KritaClient:
    """The same, for tests that do nothing to it."""
    return shared


_numbers = itertools.count()


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """What this test's keys begin with."""
    return f"py/{request.node.name}/{os.getpid()}-{next(_numbers)}/"


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port where connections are taken and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server.getsockname()[1]

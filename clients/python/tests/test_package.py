"""What comes with the package: its errors, its types, its documentation, its command."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kritaclient
from kritaclient import AsyncKritaClient, KritaClient, KritaError, NotApplied, OutcomeUnknown, _native, errors

HERE = Path(__file__).parent
PROJECT = HERE.parent


def test_every_row_of_the_table_has_its_class() -> None:
    rows = _native.error_table()
    assert [row[0] for row in rows] == list(range(1, len(rows) + 1)) and len(rows) >= 14
    for number, name, exit_code, retryable, category, advice in rows:
        found = errors._from_code(number, "why", 1.5, 7, 3)
        assert (found.code, found.name, found.exit_code) == (number, name, exit_code)
        assert (found.retryable, found.advice, found.retry_after) == (retryable, advice, 1.5)
        assert str(found) == f"{name}: why" and isinstance(found, KritaError)
        assert isinstance(found, NotApplied) == (category != "Unknown")
        assert isinstance(found, OutcomeUnknown) == (name == "UNKNOWN_OUTCOME")
    assert isinstance(errors._from_code(9999, "of a newer server", None, 0, 0), errors.Internal)


def test_the_errors_are_those_that_the_table_makes() -> None:
    made = subprocess.run(
        [sys.executable, str(PROJECT / "generate_errors.py"), "--print"], capture_output=True, text=True, check=True
    )
    installed = inspect.getsource(errors)
    assert made.stdout == installed, "run generate_errors.py"


def test_types_are_strict() -> None:
    package = Path(kritaclient.__file__).parent
    assert (package / "py.typed").is_file()
    mypy = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--cache-dir", os.devnull]
    targets = ["-p", "kritaclient"]
    checked = subprocess.run([*mypy, *targets], cwd=HERE, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    checked = subprocess.run([*mypy, "."], cwd=HERE, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_wrong_types_are_found() -> None:
    program = "from kritaclient import KritaClient\nc = KritaClient()\nx: str = c.get(1)\n"
    mypy = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", os.devnull, "-c", program]
    found = subprocess.run(mypy, cwd=HERE, capture_output=True, text=True).stdout
    assert "incompatible type" in found and "Incompatible types in assignment" in found, found


def test_the_stubs_are_those_of_the_native_module() -> None:
    stubtest = [sys.executable, "-m", "mypy.stubtest", "kritaclient._native"]
    checked = subprocess.run(stubtest, cwd=HERE, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_both_clients_have_the_same_documented_calls() -> None:
    def calls(client: type) -> dict[str, inspect.Signature]:
        members = inspect.getmembers(client, inspect.isfunction)
        public = {name: member for name, member in members if not name.startswith("_")}
        assert all(member.__doc__ for member in public.values())
        return {name: inspect.signature(member) for name, member in public.items()}

    blocking, asynchronous = calls(KritaClient), calls(AsyncKritaClient)
    assert blocking.keys() == asynchronous.keys()
    for name, signature in blocking.items():
        assert list(signature.parameters) == list(asynchronous[name].parameters), name
    assert inspect.signature(KritaClient) .parameters == inspect.signature(AsyncKritaClient).parameters


def test_everything_public_is_documented() -> None:
    for name in kritaclient.__all__:
        member = getattr(kritaclient, name)
        if not name.startswith("__") and inspect.isclass(member):
            assert inspect.getdoc(member), name
    assert re.fullmatch(r"\d+\.\d+\.\d+", kritaclient.__version__)


@pytest.mark.parametrize("block", range(1, 7))
def test_the_examples_of_the_readme_run(block: int, prefix: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 6, "the parameters of this test number the blocks"
    # The first is the one of the front page; the cluster of this test has another port and name.
    text = blocks[block - 1]
    text = text.replace("host='localhost', port=8080, cluster_name='mycluster'", "")
    ended = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=30, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    printed = re.findall(r"# prints (.*)", text)
    assert ended.stdout.splitlines()[: len(printed)] == printed
    if block == 1:
        assert ended.stdout == "testvalue\n"


def test_the_package_brings_the_command(prefix: str) -> None:
    command = str(Path(sys.executable).parent / "kritaclient")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([command, *arguments], capture_output=True, text=True, timeout=30)

    put = run("put", prefix + "k", "from the command")
    assert put.returncode == 0, put.stderr
    got = run("get", prefix + "k")
    assert (got.returncode, got.stdout, got.stderr) == (0, "from the command\n", "")
    assert run("get", prefix + "absent").returncode == 3
    assert run("frobnicate").returncode == 2
    assert run("--token", "guess", "get", prefix + "k").returncode == 4
    module = [sys.executable, "-m", "kritaclient", "get", prefix + "k"]
    assert subprocess.run(module, capture_output=True, text=True, timeout=30).stdout == "from the command\n"

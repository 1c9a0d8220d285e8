"""The blocking client on a real cluster."""

from __future__ import annotations

import copy
import pickle
import threading
import time

import pytest

import kritaclient
from kritaclient import (
    AccessError,
    ConditionFailed,
    ConfigurationError,
    Data,
    Delete,
    Get,
    KritaClient,
    KritaError,
    ManyFailed,
    NotApplied,
    Put,
    RequestError,
    UnavailableError,
    Value,
)


def test_text_comes_back_as_it_was_put(client: KritaClient, prefix: str) -> None:
    for text in ["testvalue", "", "Zürich, 東京, 🦀", "a\x00b"]:
        client.put(prefix + "k", text)
        value = client.get(prefix + "k")
        assert value is not None
        assert (str(value), f"{value}", value.text) == (text, text, text)
        assert value == text and text == value and not value != text
        assert value == text.encode() and bytes(value) == text.encode()


def test_bytes_come_back_as_they_were_put(client: KritaClient, prefix: str) -> None:
    every = bytes(range(256))
    for kind in (bytes, bytearray, memoryview):
        client.put(prefix + "k", kind(every))
        value = client.get((prefix + "k").encode())
        assert value == every and type(value) is Value and isinstance(value, bytes)
        assert value != "text" and value != 7
        assert str(value) == repr(every), "what is no text is shown as bytes, not guessed at"
        with pytest.raises(UnicodeDecodeError):
            _ = value.text
    key = b"\xff\x00" + prefix.encode()
    client.put(key, b"binary key")
    assert client.get(key) == "binary key"
    assert client.delete(key)


def test_values_behave_like_bytes() -> None:
    value = Value("x1", 7)
    assert {value: 1}[b"x1"] == 1  # type: ignore[index]
    assert int(Value(b"41")) + 1 == 42 and value + b"2" == b"x12"
    assert f"[{value:>4}]" == "[  x1]"
    for copied in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert (copied, copied.version, type(copied)) == (value, 7, Value)
    assert value == bytearray(b"x1") and memoryview(b"x1") == value and not value != bytearray(b"x1")
    assert Data(b"x") != "y" and Data(b"\xff") != "\udcff"


def test_what_is_no_key_or_value_is_refused_before_it_is_sent(client: KritaClient, prefix: str) -> None:
    for wrong in (1, None, 1.5, ["k"], object()):
        with pytest.raises(TypeError, match="want str or bytes"):
            client.put(prefix + "k", wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="want str or bytes"):
            client.get(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="want str or bytes"):
            client.get_many([prefix, wrong])  # type: ignore[list-item]
    with pytest.raises(UnicodeEncodeError):
        client.put(prefix + "k", "\udcff")
    for key in ("", "k" * 5000):
        with pytest.raises(RequestError) as caught:
            client.put(key, "v")
        assert isinstance(caught.value, ValueError) and caught.value.code == 1
    with pytest.raises(RequestError):
        client.put(prefix + "k", bytes(17 * 1024 * 1024))
    for timeout in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError):
            client.get(prefix + "k", timeout=timeout)
    assert client.get(prefix + "k") is None


def test_versions_and_conditions(client: KritaClient, prefix: str) -> None:
    key = prefix + "k"
    first = client.put(key, "1", if_version=0)
    with pytest.raises(ConditionFailed) as caught:
        client.put(key, "again", if_version=0)
    assert caught.value.current_version == first and isinstance(caught.value, NotApplied)
    found = client.get(key)
    assert found is not None and found.version == first
    second = client.put(key, "2", if_version=found.version)
    assert second > first
    third = client.put(key, "3", if_value="2")
    with pytest.raises(ConditionFailed):
        client.put(key, "4", if_value=b"2")
    with pytest.raises(ValueError, match="not both"):
        client.put(key, "4", if_version=1, if_value="3")
    with pytest.raises(ConditionFailed):
        client.delete(key, if_version=second)
    assert client.get(key) == "3"
    assert client.delete(key, if_version=third) is True
    assert client.delete(key) is False
    assert client.get(key) is None


def test_many_at_once(client: KritaClient, prefix: str) -> None:
    pairs = {f"{prefix}{number:04}": f"value {number}" for number in range(2500)}
    versions = client.put_many(pairs)
    assert len(versions) == len(pairs) and all(version > 0 for version in versions)
    values = client.get_many(pairs)
    assert [str(value) for value in values] == list(pairs.values())
    assert [value and value.version for value in values] == versions
    first = f"{prefix}0000"
    assert client.get_many([first, "absent", first.encode(), first]) == [b"value 0", None, b"value 0", b"value 0"]
    assert client.put_many([(prefix + "a", b"1"), (prefix.encode() + b"b", "2")])
    assert client.get_many([]) == [] and client.put_many({}) == []


def test_a_part_that_fails_is_told_beside_those_that_did_not(client: KritaClient, prefix: str) -> None:
    with pytest.raises(ManyFailed) as caught:
        client.put_many([(prefix + "a", "1"), ("", "no key"), (prefix + "b", "2")])
    failed = caught.value
    assert [type(result) for result in failed.results] == [int, kritaclient.errors.InvalidArgument, int]
    assert len(failed.errors) == 1 and not isinstance(failed, NotApplied)
    assert client.get_many([prefix + "a", prefix + "b"]) == [b"1", b"2"]
    with pytest.raises(RequestError):
        client.put_many([("", "alone it is the error itself")])


def test_a_batch_has_a_result_for_each_operation(client: KritaClient, prefix: str) -> None:
    client.put_many({prefix + "old": "1", prefix + "gone": "2"})
    results = client.batch(
        [
            Put(prefix + "new", b"\xff"),
            Get(prefix + "old"),
            Delete(prefix + "gone"),
            Get(prefix + "absent"),
            Put(prefix + "other", "x", if_version=999),
        ]
    )
    put, got, deleted, absent, failed = results
    assert put.ok and put.version and got.value == "1" and got.existed
    assert deleted.existed and absent.value is None and absent.existed is False
    assert isinstance(failed.error, ConditionFailed) and failed.error.operation == 4
    assert put.check() is put
    with pytest.raises(ConditionFailed):
        failed.check()
    assert client.get(prefix + "gone") is None and client.get(prefix + "new") == b"\xff"


def test_scans_are_ordered_and_lazy(client: KritaClient, prefix: str) -> None:
    keys = [f"{prefix}{number:05}" for number in range(3000)]
    client.put_many({key: key for key in keys})
    assert [str(key) for key in client.list_keys(prefix)] == keys
    items = list(client.scan(prefix, page_items=16))
    assert [str(item.key) for item in items] == keys
    assert all(item.key == item.value and item.version > 0 for item in items)
    assert [item.key for item in client.scan(prefix, limit=2)] == [keys[0].encode(), keys[1].encode()]
    some = client.scan(prefix, start=keys[10], end=keys[13], keys_only=True)
    assert [str(item.key) for item in some] == keys[10:13]
    assert [str(item.key) for item in client.scan(start=keys[2998], end=prefix + "9")] == keys[2998:]
    endless = client.scan(page_items=1)
    assert len([next(endless), next(endless)]) == 2
    del endless
    assert list(client.scan(prefix + "nothing")) == []


def test_a_scan_of_many_pages_is_of_what_was_there_when_it_began(client: KritaClient, prefix: str) -> None:
    # About 19 keys on each of the 64 shards, a page of one key at a time.
    keys = [f"{prefix}{number:04}" for number in range(1200)]
    client.put_many({key: "" for key in keys})
    scan = client.scan(prefix, page_items=1)
    seen = [next(scan).key]
    client.put(prefix + "late", "")
    seen += [item.key for item in scan]
    assert seen[:1200] == keys
    if not any(version.is_newer for version in scan.versions.values()):
        assert len(seen) == 1200, "the key came after the scan began"


def test_a_closed_client_says_so(prefix: str) -> None:
    with KritaClient() as client:
        client.put(prefix + "k", "v")
        assert "closed" not in repr(client)
    assert "closed" in repr(client)
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.get(prefix + "k")


def test_a_wrong_token_and_a_wrong_cluster_are_told_apart() -> None:
    with pytest.raises(AccessError) as caught:
        KritaClient(token="guess")
    assert caught.value.name == "UNAUTHENTICATED" and caught.value.exit_code == 4
    with pytest.raises(ConfigurationError):
        KritaClient(cluster_name="another")
    with pytest.raises(ConfigurationError):
        KritaClient(ca="no/such/folder")
    with pytest.raises(ConfigurationError):
        KritaClient(ca="-----BEGIN NONSENSE-----")
    with pytest.raises(RequestError):
        KritaClient(ca="certs", insecure=True)


def test_the_authority_may_be_a_folder_a_file_or_its_text(prefix: str) -> None:
    import os
    import pathlib

    folder = pathlib.Path(os.environ["KRITA_TLS_CERT_PATH"])
    text = (folder / "ca.crt").read_text()
    authorities: list[kritaclient._calls.Authority] = [folder, str(folder), folder / "ca.crt", text, text.encode()]
    for authority in authorities:
        with KritaClient(ca=authority) as client:
            assert client.get(prefix + "absent") is None


def test_a_node_that_is_not_there_is_unavailable(silent_port: int) -> None:
    began = time.monotonic()
    with pytest.raises(UnavailableError):
        KritaClient(host="127.0.0.1", port=silent_port, timeout=0.3)
    assert time.monotonic() - began < 5


def test_any_of_several_nodes_suffices(silent_port: int, prefix: str) -> None:
    import os

    good = f"{os.environ['KRITA_HOST']}:{os.environ['KRITA_PORT']}"
    with KritaClient(nodes=[f"127.0.0.1:{silent_port}", good]) as client:
        client.put(prefix + "k", "v")
        assert client.get(prefix + "k") == "v"


def test_threads_share_a_client(client: KritaClient, prefix: str) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(50):
                key = f"{prefix}{number}"
                client.put(key, str(turn))
                assert client.get(key) == str(turn)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(list(client.list_keys(prefix))) == 16


def test_other_threads_run_while_a_call_waits(silent_port: int) -> None:
    ended = threading.Event()

    def wait_in_vain() -> None:
        with pytest.raises(KritaError):
            KritaClient(host="127.0.0.1", port=silent_port, timeout=1.0)
        ended.set()

    thread = threading.Thread(target=wait_in_vain)
    thread.start()
    turns = 0
    while not ended.is_set():
        turns += 1
    thread.join()
    assert turns > 1000, "the interpreter was held while a call waited"


def test_everybody_is_healthy(client: KritaClient) -> None:
    members = client.health()
    assert len(members) == 3
    for member in members:
        assert member.healthy and member.node_id and member.error is None, member


def test_scans_say_as_of_what_they_are_and_hold_to_it(client: KritaClient, prefix: str) -> None:
    keys = [f"{prefix}{number:03}" for number in range(200)]
    client.put_many({key: "old" for key in keys})
    scan = client.scan(prefix, page_items=4)
    seen = [next(scan)]
    client.put_many({key: "new" for key in keys})
    seen += scan
    assert [item.key.text for item in seen] == keys
    versions = scan.versions
    assert versions and all(version.applied_index > 0 and not version.is_stale for version in versions.values())
    if not any(version.is_newer for version in versions.values()):
        # No leader has moved meanwhile: each shard's first page was read before anything was overwritten.
        assert {item.value.text for item in seen} == {"old"}


def test_reads_may_take_any_replica(client: KritaClient, prefix: str) -> None:
    client.put(prefix + "k", "v")
    confirmed = client.get(prefix + "k", consistency="available")
    assert confirmed is not None and confirmed == "v" and confirmed.stale_at is None
    deadline = time.monotonic() + 60
    while (value := client.get(prefix + "k", consistency="any")) is None:
        assert time.monotonic() < deadline, "a replica that never applies it"
    assert value == "v" and value.stale_at is not None and value.stale_at >= value.version
    assert client.get_many([prefix + "k"], consistency="any") == [b"v"]
    assert [item.key.text for item in client.scan(prefix, consistency="any")] == [prefix + "k"]
    with pytest.raises(ValueError):
        client.get(prefix + "k", consistency="sometimes")  # type: ignore[arg-type]

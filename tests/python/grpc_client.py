"""What stock Python gRPC clients rely on, against a running cluster. Run by tests/tests/grpc.rs.

Usage: grpc_client.py GENERATED_FOLDER CA_FILE TOKEN CLUSTER_NAME ADDRESS...
"""

import sys
import threading
import time

sys.path.insert(0, sys.argv[1])

import grpc
from google.protobuf import descriptor_pool
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from krita.v1 import data_pb2, service_pb2, service_pb2_grpc

CA, TOKEN, CLUSTER, ADDRESSES = open(sys.argv[2], "rb").read(), sys.argv[3], sys.argv[4], sys.argv[5:]
AUTHORIZED = (("authorization", f"Bearer {TOKEN}"), ("krita-cluster", CLUSTER))
SIZES = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
VALUE_BYTES_MAX = 16 * 1024 * 1024


def connect(address):
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(CA), SIZES)


CHANNELS = [connect(address) for address in ADDRESSES]
STUBS = [service_pb2_grpc.KritaStub(channel) for channel in CHANNELS]
STUB = STUBS[0]


def refused(call):
    """The error of a call that must fail: its gRPC code, and Krita's part of the details."""
    try:
        call()
    except grpc.RpcError as error:
        status = rpc_status.from_call(error)
        info, krita = error_details_pb2.ErrorInfo(), data_pb2.Error()
        for detail in status.details if status else []:
            detail.Unpack(info)
            detail.Unpack(krita)
        return error.code(), info, krita
    raise AssertionError("it was not refused")


PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN)


def patiently(call):
    """On a machine that is busy with other things leaders may change: what may be tried again is."""
    for _ in range(20):
        try:
            return call()
        except grpc.RpcError as error:
            if error.code() not in PASSING:
                raise
            time.sleep(0.5)
    return call()


def put(stub, key, value, **fields):
    return stub.Put(data_pb2.Put(key=key, value=value, **fields), metadata=AUTHORIZED)


def put_patiently(stub, key, value):
    return patiently(lambda: put(stub, key, value))


def batch(stub, operations):
    """The outcomes of a batch, tried again as a whole while a shard has no leader."""
    for _ in range(20):
        reply = stub.Batch(service_pb2.KeyBatch(operations=operations), metadata=AUTHORIZED)
        assert len(reply.outcomes) == len(operations)
        if not any(outcome.error.code in (6, 7, 11, 13) for outcome in reply.outcomes):
            break
        time.sleep(0.5)
    return reply.outcomes


def get(stub, key):
    return stub.Get(data_pb2.Get(key=key), metadata=AUTHORIZED)


def test_put_get_delete_through_every_node():
    for number, stub in enumerate(STUBS):
        for place in range(8):
            key = b"grpc/\x00\xff%d/%d" % (number, place)
            written = put_patiently(stub, key, b"value %d" % place)
            assert written.version > 0
            for reader in STUBS:
                read = get(reader, key)
                assert read.found and read.value == b"value %d" % place and read.version == written.version
            gone = stub.Delete(data_pb2.Delete(key=key), metadata=AUTHORIZED)
            assert gone.existed and not get(STUB, key).found


def test_conditions_and_details():
    STUB.Delete(data_pb2.Delete(key=b"grpc/condition"), metadata=AUTHORIZED)
    first = put(STUB, b"grpc/condition", b"1", condition=data_pb2.Condition(if_version=0))
    code, info, krita = refused(
        lambda: put(STUB, b"grpc/condition", b"2", condition=data_pb2.Condition(if_version=0))
    )
    assert code == grpc.StatusCode.FAILED_PRECONDITION, code
    assert (info.reason, info.domain, info.metadata["number"]) == ("CONDITION_FAILED", "krita", "5"), info
    assert info.metadata["advice"] and krita.current_version == first.version
    second = put(STUB, b"grpc/condition", b"2", condition=data_pb2.Condition(if_value=b"1"))
    assert second.version > first.version


def test_who_may_come_in():
    request = data_pb2.Get(key=b"grpc/none")
    assert not STUB.Get(request, metadata=(("token", TOKEN),)).found
    for metadata in [(), (("token", "krita_wrong"),), (("authorization", TOKEN),)]:
        code, info, _ = refused(lambda: STUB.Get(request, metadata=metadata))
        assert (code, info.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"), (metadata, code)
    wrong = (("token", TOKEN), ("krita-cluster", "another"))
    code, info, _ = refused(lambda: STUB.Get(request, metadata=wrong))
    assert (code, info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "WRONG_CLUSTER"), code
    for call in [STUB.Put, STUB.Delete, STUB.Batch, STUB.Status, STUB.NodeStatus]:
        code, _, _ = refused(lambda: call(request_of(call)))
        assert code == grpc.StatusCode.UNAUTHENTICATED, code
    code, _, _ = refused(lambda: list(STUB.Scan(service_pb2.KeyScan())))
    assert code == grpc.StatusCode.UNAUTHENTICATED, code


def request_of(call):
    return {
        STUB.Put: data_pb2.Put(key=b"k"),
        STUB.Delete: data_pb2.Delete(key=b"k"),
        STUB.Batch: service_pb2.KeyBatch(),
        STUB.Status: data_pb2.ClusterStatus(),
        STUB.NodeStatus: data_pb2.NodeStatus(),
    }[call]


def test_bad_requests_are_typed():
    for request in [
        data_pb2.Put(key=b""),
        data_pb2.Put(key=b"k" * 4097),
        data_pb2.Put(key=b"k", value=b"v" * (VALUE_BYTES_MAX + 1)),
        data_pb2.Put(key=b"k", condition=data_pb2.Condition()),
    ]:
        code, info, _ = refused(lambda: STUB.Put(request, metadata=AUTHORIZED))
        assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"), code
    raw = CHANNELS[0].unary_unary("/krita.v1.Krita/Put")
    code, _, _ = refused(lambda: raw(b"\xff\xff\xff", metadata=AUTHORIZED))
    assert code == grpc.StatusCode.INVALID_ARGUMENT, code
    code, _, _ = refused(lambda: raw(b"x" * (40 << 20), metadata=AUTHORIZED))
    assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.CANCELLED), code
    for method in ["/krita.v1.Krita/Nothing", "/no.Service/Method"]:
        code, _, _ = refused(lambda: CHANNELS[0].unary_unary(method)(b"", metadata=AUTHORIZED))
        assert code == grpc.StatusCode.UNIMPLEMENTED, code
    compressed = lambda: STUB.Put(
        data_pb2.Put(key=b"k", value=b"v" * 1000), metadata=AUTHORIZED, compression=grpc.Compression.Gzip
    )
    code, _, _ = refused(compressed)
    assert code == grpc.StatusCode.UNIMPLEMENTED, code


def test_the_largest_value():
    value = bytes(range(256)) * (VALUE_BYTES_MAX // 256)
    put_patiently(STUBS[1], b"grpc/large", value)
    assert get(STUBS[2], b"grpc/large").value == value
    STUB.Delete(data_pb2.Delete(key=b"grpc/large"), metadata=AUTHORIZED)


def operation(**fields):
    return data_pb2.Operation(**fields)


def test_a_batch_over_all_shards():
    keys = [b"grpc/batch/%03d" % number for number in range(100)]
    puts = [operation(put=data_pb2.OperationPut(key=key, value=key)) for key in keys]
    outcomes = batch(STUB, puts)
    assert all(outcome.result.version > 0 for outcome in outcomes), outcomes
    assert len({outcome.shard for outcome in outcomes}) > 1
    gets = [operation(get=data_pb2.OperationGet(key=key)) for key in keys]
    assert [outcome.result.value for outcome in batch(STUBS[1], gets)] == keys
    absent = data_pb2.Condition(if_version=0)
    failing = operation(put=data_pb2.OperationPut(key=keys[7], value=b"no", condition=absent))
    fresh = operation(put=data_pb2.OperationPut(key=b"grpc/fresh", value=b"yes"))
    good, bad = batch(STUB, [fresh, failing])
    assert (bad.error.code, bad.error.operation) == (5, 1), bad
    assert good.shard == bad.shard or good.result.version > 0, good
    code, _, _ = refused(
        lambda: STUB.Batch(service_pb2.KeyBatch(operations=[fresh, fresh]), metadata=AUTHORIZED)
    )
    assert code == grpc.StatusCode.INVALID_ARGUMENT, code


def scan(stub, **fields):
    return list(stub.Scan(service_pb2.KeyScan(**fields), metadata=AUTHORIZED))


def test_scans_are_ordered_and_resumable():
    keys = sorted(b"grpc/scan/%d" % number for number in range(3000))
    for start in range(0, len(keys), 500):
        part = keys[start : start + 500]
        puts = [operation(put=data_pb2.OperationPut(key=key, value=b"v" + key)) for key in part]
        assert all(outcome.HasField("result") for outcome in batch(STUB, puts))
    for stub in STUBS:
        pages = scan(stub, prefix=b"grpc/scan/")
        items = [item for page in pages for item in page.items]
        assert [item.key for item in items] == keys and pages[-1].cursor == b""
        assert all(item.value == b"v" + item.key and item.version > 0 for item in items)
    keys_only = [item for page in scan(STUB, prefix=b"grpc/scan/", keys_only=True) for item in page.items]
    assert [item.key for item in keys_only] == keys and not any(item.value for item in keys_only)
    found, cursor = [], b""
    for turn in range(100):
        pages = scan(STUBS[turn % 3], prefix=b"grpc/scan/", limit=700, page_items=90, cursor=cursor)
        assert all(len(page.items) <= 90 for page in pages)
        found += [item.key for page in pages for item in page.items]
        cursor = pages[-1].cursor
        if not cursor:
            break
    assert found == keys, len(found)
    ranged = scan(STUB, start=keys[10], end=keys[20])
    assert [item.key for page in ranged for item in page.items] == keys[10:20]
    for fields in [{"cursor": b"nonsense"}, {"prefix": b"x" * 5000}]:
        code, _, _ = refused(lambda: scan(STUB, **fields))
        assert code == grpc.StatusCode.INVALID_ARGUMENT, code


def test_a_scan_may_be_given_up():
    for _ in range(20):
        call = STUB.Scan(service_pb2.KeyScan(prefix=b"grpc/scan/", page_items=10), metadata=AUTHORIZED)
        next(call)
        call.cancel()
    assert put_patiently(STUB, b"grpc/after", b"1").version > 0


def test_many_calls_at_once():
    keys = [b"grpc/many/%d" % number for number in range(600)]
    calls = [
        STUBS[number % 3].Put.future(data_pb2.Put(key=key), metadata=AUTHORIZED)
        for number, key in enumerate(keys)
    ]
    passed = sum(call.exception(timeout=20) is None for call in calls)
    assert passed >= 500 and all(call.code() in PASSING for call in calls if call.exception()), passed


def test_deadlines_are_kept():
    started = time.monotonic()
    request = service_pb2.KeyScan(prefix=b"grpc/scan/", page_items=1)
    pages = STUB.Scan(request, metadata=AUTHORIZED, timeout=0.3)
    next(pages)
    time.sleep(0.5)
    code, _, _ = refused(lambda: list(pages))
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED and time.monotonic() - started < 5, code
    assert not STUB.Get(data_pb2.Get(key=b"grpc/x"), metadata=AUTHORIZED, timeout=30).found


def test_status():
    status = STUB.Status(data_pb2.ClusterStatus(), metadata=AUTHORIZED)
    assert status.cluster_name == CLUSTER and len(status.members) == len(ADDRESSES), status
    node = STUBS[1].NodeStatus(data_pb2.NodeStatus(), metadata=AUTHORIZED)
    assert node.state == "serving", node


def test_health():
    stub = health_pb2_grpc.HealthStub(CHANNELS[0])
    serving = health_pb2.HealthCheckResponse.SERVING
    for service in ["", "krita.v1.Krita"]:
        assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == serving
    code, _, _ = refused(lambda: stub.Check(health_pb2.HealthCheckRequest(service="nothing")))
    assert code == grpc.StatusCode.NOT_FOUND, code
    watch = stub.Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == serving
    watch.cancel()
    unknown = stub.Watch(health_pb2.HealthCheckRequest(service="nothing"), timeout=1)
    assert next(unknown).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    code, _, _ = refused(lambda: next(unknown))
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED, code


def test_reflection():
    database = ProtoReflectionDescriptorDatabase(CHANNELS[0])
    assert "krita.v1.Krita" in database.get_services()
    pool = descriptor_pool.DescriptorPool(database)
    service = pool.FindServiceByName("krita.v1.Krita")
    assert {method.name for method in service.methods} >= {"Put", "Get", "Delete", "Batch", "Scan", "Status"}
    assert pool.FindMessageTypeByName("krita.v1.GetReply").fields_by_name["version"].number == 3
    raw = CHANNELS[0].stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
    # list_services (field 7), an empty text.
    assert b"krita.v1.Krita" in next(raw(iter([b"\x3a\x00"])))


def test_the_death_of_a_node_hides_behind_a_retry():
    """The test command kills the last node when it reads this line."""
    print("kill", flush=True)
    sys.stdin.readline()
    failures, written = [], 0
    for number in range(60):
        for stub in STUBS[:-1]:
            try:
                put(stub, b"grpc/kill/%d" % number, b"v")
                written += 1
            except grpc.RpcError as error:
                failures.append((number, error.code(), error.details()))
        time.sleep(0.05)
    allowed = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN)
    assert all(code in allowed for _, code, _ in failures), failures
    assert written >= 100 and not [failure for failure in failures if failure[0] >= 30], failures


def main():
    tests = [(name, test) for name, test in globals().items() if name.startswith("test_")]
    for name, test in tests:
        started = time.monotonic()
        test()
        print(f"ok {name} in {time.monotonic() - started:.2f} s", flush=True)
    assert threading.active_count() < 100
    print("done", flush=True)


main()

"""Broken and hostile HTTP against one port of a running node. Run by tests/tests/grpc.rs; needs Python alone.

Usage: http_faults.py CA_FILE TOKEN HOST PORT
"""

import select
import socket
import ssl
import sys
import time

CA, TOKEN, HOST, PORT = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def connect(protocol):
    context = ssl.create_default_context(cafile=CA)
    if protocol:
        context.set_alpn_protocols([protocol])
    stream = context.wrap_socket(socket.create_connection((HOST, PORT), timeout=20), server_hostname=HOST)
    assert stream.selected_alpn_protocol() == protocol
    return stream


def frame(kind, flags, stream, payload):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def read_all(stream):
    received = b""
    try:
        while piece := stream.recv(65536):
            received += piece
    except (ConnectionError, ssl.SSLError):
        pass
    return received


def flood(words):
    """Says it all, or as much as is listened to; how much that was, and whether the other side ended it.

    One thread both says and listens: OpenSSL's connections are not made for two."""
    stream, sent, ended = connect("h2"), 0, False
    stream.setblocking(False)
    left = memoryview(PREFACE + words)
    give_up_at = time.monotonic() + 20
    while not ended and time.monotonic() < give_up_at:
        wants = [stream] if left else []
        try:
            while True:
                ended = not stream.recv(65536)
                if ended:
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLWantWriteError:
            wants = [stream]
        except (ConnectionError, ssl.SSLError):
            ended = True
        if ended:
            break
        try:
            if left:
                said = stream.send(left[:65536])
                left, sent = left[said:], sent + said
                continue
        except ssl.SSLWantReadError:
            wants = []
        except ssl.SSLWantWriteError:
            pass
        except (ConnectionError, ssl.SSLError):
            ended = True
        select.select([stream], wants, [], 0.1)
    stream.close()
    return ended, sent


def request(stream, path=b"/", headers=b""):
    stream.sendall(b"GET " + path + b" HTTP/1.1\r\nhost: x\r\n" + headers + b"\r\n")
    received = b""
    while b"\r\n\r\n" not in received:
        piece = stream.recv(65536)
        assert piece, received
        received += piece
    return received


def test_http1_with_and_without_alpn():
    for protocol in ["http/1.1", None]:
        with connect(protocol) as stream:
            assert request(stream).startswith(b"HTTP/1.1 "), protocol


def test_malformed_requests():
    for words, status in [
        (b"GET /\x01 HTTP/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 70000 + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 500 + b"\r\n", b"431"),
        (b"BREW / HTTP/1.1\r\nhost: x\r\n\r\n", b"4"),
    ]:
        with connect("http/1.1") as stream:
            stream.sendall(words)
            stream.settimeout(20)
            received = stream.recv(65536)
            assert received.startswith(b"HTTP/1.1 " + status), (words[:40], received)


def test_plain_text_is_refused():
    with socket.create_connection((HOST, PORT), timeout=20) as stream:
        stream.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"requires TLS" in stream.recv(65536)


def test_slow_loris_disturbs_nobody():
    slow = [connect("http/1.1") for _ in range(64)]
    for stream in slow:
        stream.sendall(b"GET / HTTP/1.1\r\nx: ")
    started = time.monotonic()
    for _ in range(50):
        with connect("http/1.1") as stream:
            request(stream)
    assert time.monotonic() - started < 10
    slow[0].settimeout(20)
    assert slow[0].recv(1024) == b"", "it is closed"
    assert time.monotonic() - started < 14
    for stream in slow:
        stream.close()


def test_floods_end():
    headers = bytes([0x82, 0x87, 0x84])
    resets = b"".join(
        frame(1, 5, number, headers) + frame(3, 0, number, bytes([0, 0, 0, 8])) for number in range(1, 8001, 2)
    )
    continuations = frame(1, 0, 1, headers) + frame(9, 0, 1, bytes([0, 1, 97, 1, 98])) * 300_000
    for name, words in [
        ("resets", resets * 1),
        ("pings", frame(6, 0, 0, bytes(8)) * 600_000),
        ("settings", frame(4, 0, 0, bytes([0, 4, 0, 1, 0, 0])) * 600_000),
        ("continuations", continuations),
    ]:
        ended, sent = flood(words)
        assert ended, (name, sent)
        with connect("http/1.1") as stream:
            request(stream)


def main():
    with connect("http/1.1") as other:
        for name, test in [(name, test) for name, test in globals().items() if name.startswith("test_")]:
            started = time.monotonic()
            test()
            request(other)
            print(f"ok {name} in {time.monotonic() - started:.2f} s", flush=True)
    print("done", flush=True)


main()

"""What a process can do to a client: signals, forks, exit."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from types import FrameType
from typing import Optional

import pytest

from kritaclient import KritaClient

only_where_there_is_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")



@only_where_there_is_fork
def test_a_forked_child_uses_connections_of_its_own(client: KritaClient, prefix: str) -> None:
    assert client.put(prefix + "parent", "before")
    scan = client.scan(prefix)
    next(scan)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(30)
            for turn in range(20):
                client.put(f"{prefix}child{turn}", "v")
            assert client.get(prefix + "parent") == "before"
            try:
                list(scan)
            except RuntimeError as error:
                assert "forked" in str(error)
                status = 0
        finally:
            os._exit(status)
    for turn in range(20):
        client.put(f"{prefix}parent{turn}", "v")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(list(client.list_keys(prefix))) == 41
    assert client.get(prefix + "child19") == "v"


def _increment(client: KritaClient, key: str, times: int) -> None:
    done = 0
    while done < times:
        value = client.get(key)
        assert value is not None
        try:
            client.put(key, str(int(value) + 1), if_version=value.version)
            done += 1
        except Exception as error:
            assert type(error).__name__ == "ConditionFailed", error


@only_where_there_is_fork
def test_forked_workers_count_together(client: KritaClient, prefix: str) -> None:
    key = prefix + "counter"
    client.put(key, "0")
    forked = multiprocessing.get_context("fork")
    workers = [forked.Process(target=_increment, args=(client, key, 25)) for _ in range(4)]
    for worker in workers:
        worker.start()
    _increment(client, key, 25)
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    assert client.get(key) == "125"


@only_where_there_is_fork
def test_a_fork_while_threads_are_busy_does_not_hang(client: KritaClient, prefix: str) -> None:
    is_done = threading.Event()

    def work() -> None:
        while not is_done.is_set():
            client.put(prefix + "busy", "v")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(5):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    signal.alarm(30)
                    client.put(f"{prefix}child{turn}", "v")
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        is_done.set()
        for thread in threads:
            thread.join()
    assert len(list(client.list_keys(prefix + "child"))) == 5


class Interrupted(Exception):
    """What the signal handler raises."""


def test_a_signal_ends_a_wait(silent_port: int) -> None:
    def interrupt(number: int, frame: Optional[FrameType]) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        began = time.monotonic()
        with pytest.raises(Interrupted):
            KritaClient(host="127.0.0.1", port=silent_port, timeout=20)
        assert time.monotonic() - began < 10
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_program_ends_although_its_client_is_open() -> None:
    program = "import kritaclient; c = kritaclient.KritaClient(); c.put('py/exit', 'v'); s = c.scan('py/'); next(s)"
    ended = subprocess.run([sys.executable, "-c", program], timeout=30, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_an_exit_amid_answers_is_a_clean_one(prefix: str) -> None:
    program = f"""
import asyncio
from kritaclient import AsyncKritaClient

client = AsyncKritaClient()
loop = asyncio.new_event_loop()
loop.run_until_complete(client.put({prefix!r}, "v"))
calls = [loop.create_task(client.get({prefix!r})) for _ in range(200)]
loop.run_until_complete(calls[0])
"""
    for _ in range(10):
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert ended.returncode == 0, ended.stderr

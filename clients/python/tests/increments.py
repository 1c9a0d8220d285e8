"""Counts a key up by compare-and-swap, from many clients at once, until stdin closes; then says how often.

    increments.py KEY CLIENTS

The value is `COUNT NAME=DONE NAME=DONE ...`: the count, and for each client how many of its increments are in it. So a
client whose write had an unknown outcome learns from the next value whether it was applied, and each increment is
acknowledged exactly once. Prints `NAME ACKNOWLEDGED UNKNOWN` for each client.
"""

from __future__ import annotations

import sys
import threading

from kritaclient import ConditionFailed, KritaClient, OutcomeUnknown, UnavailableError


class Counter:
    """One client, in a thread of its own."""

    def __init__(self, number: int, key: str, stop: threading.Event) -> None:
        self.name, self.key, self.stop = f"python-{number}", key, stop
        #: Every other client is impatient: its deadline passes while leaders are elected.
        self.timeout = 0.5 if number % 2 else None
        self.acknowledged = self.unknown = 0
        #: An increment may have been applied, and may still be.
        self.is_pending = False
        self.error: BaseException | None = None

    def run(self) -> None:
        """Counts until it is told to stop and knows of all of its increments what became of them."""
        try:
            with KritaClient() as client:
                while self.is_pending or not self.stop.is_set():
                    try:
                        self.increment(client)
                    except UnavailableError:
                        # Nothing was applied; a write that was pending still is.
                        pass
        except BaseException as error:
            self.error = error
            raise

    def increment(self, client: KritaClient) -> None:
        """One attempt."""
        found = client.get(self.key)
        words = found.text.split() if found is not None else ["0"]
        done = {name: int(count) for name, count in (word.split("=") for word in words[1:])}
        mine = done.get(self.name, 0)
        if mine != self.acknowledged:
            assert self.is_pending and mine == self.acknowledged + 1, f"{mine} of {self.acknowledged} increments"
            self.acknowledged, self.is_pending = mine, False
            return
        done[self.name] = mine + 1
        parts = (f"{name}={count}" for name, count in sorted(done.items()))
        value = " ".join([str(int(words[0]) + 1), *parts])
        try:
            version = found.version if found is not None else 0
            client.put(self.key, value, if_version=version, timeout=self.timeout)
        except ConditionFailed as failed:
            # The key has moved on: whatever was pending was applied before that, or never will be.
            if self.is_pending and failed.current_version:
                self.settle(client)
        except OutcomeUnknown:
            self.unknown += 1
            self.is_pending = True
        else:
            self.acknowledged, self.is_pending = mine + 1, False

    def settle(self, client: KritaClient) -> None:
        """Learns what became of the pending increment; the version that it depended on is gone."""
        found = client.get(self.key)
        words = found.text.split()[1:] if found is not None else []
        mine = dict(word.split("=") for word in words).get(self.name, "0")
        assert int(mine) - self.acknowledged in (0, 1)
        self.acknowledged, self.is_pending = int(mine), False


def main(key: str, count: int) -> int:
    """Runs all clients."""
    stop = threading.Event()
    counters = [Counter(number, key, stop) for number in range(count)]
    threads = [threading.Thread(target=counter.run) for counter in counters]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    for counter in counters:
        print(counter.name, counter.acknowledged, counter.unknown)
    return 1 if any(counter.error for counter in counters) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))

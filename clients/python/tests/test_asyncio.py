"""The asyncio client on a real cluster."""

from __future__ import annotations

import asyncio
import gc

import pytest

from kritaclient import AsyncKritaClient, ConditionFailed, Delete, Get, ManyFailed, Put, UnavailableError


def test_all_calls(prefix: str) -> None:
    async def main() -> None:
        async with AsyncKritaClient() as client:
            version = await client.put(prefix + "k", "v", if_version=0)
            value = await client.get(prefix + "k")
            assert value == "v" and value is not None and value.version == version
            with pytest.raises(ConditionFailed):
                await client.put(prefix + "k", "w", if_value="x")
            assert await client.delete(prefix + "k") and await client.get(prefix + "k") is None
            pairs = {f"{prefix}{number:03}": str(number) for number in range(300)}
            assert len(await client.put_many(pairs)) == 300
            assert [str(value) for value in await client.get_many(pairs)] == list(pairs.values())
            with pytest.raises(ManyFailed):
                await client.put_many([("", "x"), (prefix + "x", "x")])
            results = await client.batch([Put(prefix + "y", "1"), Get(prefix + "x"), Delete(prefix + "absent")])
            assert all(result.ok for result in results) and results[1].value == "x"
            assert [str(item.key) async for item in client.scan(prefix, limit=300)] == list(pairs)
            assert [str(key) async for key in client.list_keys(prefix, limit=2)] == list(pairs)[:2]
            assert all(member.healthy for member in await client.health())
        assert "closed" in repr(client)
        with pytest.raises(RuntimeError, match="closed"):
            await client.get("k")

    asyncio.run(main())


def test_a_thousand_calls_at_once(prefix: str) -> None:
    async def main() -> None:
        client = AsyncKritaClient()
        await asyncio.gather(*(client.put(f"{prefix}{number}", str(number)) for number in range(1000)))
        values = await asyncio.gather(*(client.get(f"{prefix}{number}") for number in range(1000)))
        assert [str(value) for value in values] == [str(number) for number in range(1000)]
        client.close()

    asyncio.run(main())


def test_the_loop_turns_while_a_call_waits(silent_port: int) -> None:
    async def main() -> int:
        client = AsyncKritaClient(host="127.0.0.1", port=silent_port, timeout=0.5)
        call = asyncio.ensure_future(client.get("k"))
        turns = 0
        while not call.done():
            await asyncio.sleep(0.001)
            turns += 1
        with pytest.raises(UnavailableError):
            await call
        return turns

    assert asyncio.run(main()) > 10, "the loop stood still"


def test_a_cancelled_call_leaves_the_others_alone(silent_port: int, prefix: str) -> None:
    async def main() -> None:
        silent = AsyncKritaClient(host="127.0.0.1", port=silent_port)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(silent.get("k"), 0.05)
        async with AsyncKritaClient() as client:
            calls = [asyncio.ensure_future(client.put(f"{prefix}{number}", "v")) for number in range(200)]
            await asyncio.sleep(0)
            for call in calls[::2]:
                call.cancel()
            done = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(version, int) for version in done[1::2])
            assert all(isinstance(ending, (int, asyncio.CancelledError)) for ending in done)
            found = [str(key) async for key in client.list_keys(prefix)]
            assert {f"{prefix}{number}" for number in range(1, 200, 2)} <= set(found)

    asyncio.run(main())


def test_a_client_goes_from_loop_to_loop(prefix: str) -> None:
    client = AsyncKritaClient()

    async def main(turn: int) -> None:
        await client.put(prefix + str(turn), "v")

    for turn in range(3):
        asyncio.run(main(turn))

    async def count() -> int:
        return len([key async for key in client.list_keys(prefix)])

    assert asyncio.run(count()) == 3


def test_a_loop_that_ends_in_the_middle_harms_nobody(prefix: str, capfd: pytest.CaptureFixture[str]) -> None:
    client = AsyncKritaClient()

    async def main() -> None:
        for number in range(100):
            asyncio.ensure_future(client.put(f"{prefix}{number}", "v"))
        await asyncio.sleep(0)

    asyncio.run(main())
    gc.collect()

    async def after() -> None:
        await client.put(prefix + "after", "v")

    asyncio.run(after())
    assert "panicked" not in capfd.readouterr().err

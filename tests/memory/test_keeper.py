"""The agent's hand on the userfaultfds of a service that lacks pages."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from whimbrel.memory import keeper as module
from whimbrel.memory.keeper import Keeper, Kept


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    keeper = Keeper()
    yield keeper
    keeper.close()


def handed(keeper: Keeper) -> Kept:
    return Kept(os.dup(keeper.theirs.fileno()))


def give(kept: Kept, *, count: int = 1) -> list[int]:
    """Hand over the writing ends of pipes and forget them; a reading end is at its end when nobody keeps its writer."""
    readers = []
    for _ in range(count):
        reader, writer = os.pipe2(os.O_NONBLOCK)
        kept.keep(writer)
        os.close(writer)
        readers.append(reader)
    return readers


def is_kept(reader: int) -> bool:
    try:
        return os.read(reader, 1) != b""
    except BlockingIOError:
        return True


def test_what_was_handed_over_is_kept_until_it_is_closed(keeper: Keeper) -> None:
    (reader,) = give(handed(keeper))
    assert keeper.take()
    assert is_kept(reader)
    keeper.close()
    assert not is_kept(reader)
    os.close(reader)


def test_the_server_dies_and_what_it_handed_over_is_kept(keeper: Keeper) -> None:
    kept = handed(keeper)
    (reader,) = give(kept)
    kept.close()
    keeper.theirs.close()
    assert not keeper.take(), "nothing more will come"
    assert is_kept(reader)
    os.close(reader)


def test_all_is_let_go_when_the_service_is_whole(keeper: Keeper) -> None:
    kept = handed(keeper)
    readers = give(kept, count=3)
    waiting = threading.Thread(target=kept.whole)
    waiting.start()
    while any(is_kept(reader) for reader in readers):
        assert keeper.take()
    waiting.join(5)
    assert not waiting.is_alive()
    for reader in readers:
        os.close(reader)


def test_a_keeper_that_is_gone_or_does_not_listen_stops_nobody(keeper: Keeper) -> None:
    kept = handed(keeper)
    for reader in give(kept, count=2000):
        os.close(reader)
    keeper.close()
    (reader,) = give(kept)
    assert not is_kept(reader)
    kept.whole()
    os.close(reader)


def test_an_agent_does_not_run_out_of_descriptors(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_FDS", 5)
    readers = give(handed(keeper), count=20)
    assert keeper.take()
    assert [is_kept(reader) for reader in readers] == [True] * 5 + [False] * 15
    for reader in readers:
        os.close(reader)

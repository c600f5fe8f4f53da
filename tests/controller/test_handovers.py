"""Who carries handovers out: orders in answers, and ports by name."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from whimbrel.controller import handovers
from whimbrel.controller.handovers import answers, known, port_of
from whimbrel.controller.handovers.answers import Answers
from whimbrel.model.errors import BadInput
from whimbrel.model.radio import HandoverOrder, Orders
from whimbrel.ue.orders import OrderBook


@pytest.fixture
def port() -> Answers:
    return Answers(lambda event: None, {})


def order(at_unix_s: float = 0.0, user: str = "ue-1", target: str = "bs-2") -> HandoverOrder:
    return HandoverOrder(user=user, target=target, at_unix_s=at_unix_s, id="d")


def test_an_order_is_repeated_since_an_answer_may_be_lost(port: Answers) -> None:
    given = order(time.time() + 1)
    port.order(given)
    assert port.answer("ue-1") == port.answer("ue-1") == Orders(orders=(given,))
    assert port.answer("ue-2") == Orders()


def test_a_later_order_with_the_same_id_takes_its_place(port: Answers) -> None:
    port.order(order(time.time() + 1))
    later = order(time.time() + 2)
    port.order(later)
    assert port.answer("ue-1").orders == (later,)


def test_what_is_too_old_is_not_repeated(port: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    port.order(order())
    assert port.answer("ue-1").orders
    later_s = time.monotonic() + 60
    monkeypatch.setattr(answers, "time", SimpleNamespace(time=lambda: 0.0, monotonic=lambda: later_s))
    assert port.answer("ue-1") == Orders()


def test_a_withdrawn_order_leads_the_user_nowhere(port: Answers) -> None:
    book = OrderBook("ue-1")
    port.order(order(time.time() + 100))
    for one in port.answer("ue-1").orders:
        book.add(one)
    port.withdraw(order(target="bs-1"))  # where it is
    for one in port.answer("ue-1").orders:
        book.add(one)
    due = book.due(time.time())
    assert due is not None
    assert due.target == "bs-1"
    assert book.due(time.time() + 1000) is None, "the first order is gone"


def test_ports_are_known_by_name() -> None:
    assert handovers.DEFAULT in known()
    with pytest.raises(BadInput, match="there is no handover port 'pigeon': choose from answers, mec012"):
        port_of("pigeon")


def test_an_order_is_not_repeated_longer_because_a_clock_is_another(
    port: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would bring the user back to a base station that it left long ago."""
    port.order(order(time.time() + 3600))  # now, on the clock of a user that is an hour ahead
    wall_s, later_s = time.time() - 3600, time.monotonic() + answers.MOST_AHEAD_S + answers.REPEAT_S + 1
    monkeypatch.setattr(answers, "time", SimpleNamespace(time=lambda: wall_s, monotonic=lambda: later_s))
    assert port.answer("ue-1") == Orders()

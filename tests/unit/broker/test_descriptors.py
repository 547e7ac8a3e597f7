"""How many connections fit into the files that a process may open."""

from __future__ import annotations

from broker.descriptors import within
from fleet.limits import Limits


def test_strangers_give_way_before_the_kernel_refuses() -> None:
    """Connections that say nothing would keep newcomers out, and no line would tell."""
    fitted = within(Limits(), 1024)
    assert (896, 179) == (fitted.max_connections, fitted.max_pending_connections)


def test_limits_that_fit_stay() -> None:
    """An operator's own limits would be raised."""
    wanted = Limits(max_connections=500, max_pending_connections=50)
    assert wanted == within(wanted, 100_000)


def test_something_is_left_where_there_is_hardly_anything() -> None:
    """A broker with few files would take none, or a negative number."""
    fitted = within(Limits(), 100)
    assert (1, 1) == (fitted.max_connections, fitted.max_pending_connections)

"""The enrollment service killed, or its disk full, while devices enrol and renew; see `./dev soak kill-service`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.service_cut import Office, around_the_commit, cut, newcomer, office, veteran


@pytest.fixture(scope="module", name="at")
def _at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    with office(tmp_path_factory.mktemp("faults")) as found:
        yield found


@pytest.mark.timeout(240)
def test_a_service_killed_while_a_device_enrols_loses_no_token(at: Office) -> None:
    """A gateway that restarts at the wrong moment would cost a token, or leave a certificate that nobody holds."""
    cut(at, newcomer, 1, around_the_commit)
    assert (2, 1) == (at.count, at.repeated), "one kill amid the commit, and one behind it"


@pytest.mark.timeout(240)
def test_a_service_killed_behind_the_commit_of_a_renewal_certifies_nothing_twice(at: Office) -> None:
    """The key that asks again would be another device's, and the lineage would fork."""
    killed, repeated = at.count, at.repeated
    cut(at, veteran, 2, lambda calls: around_the_commit(calls)[-1:])
    assert (killed + 1, repeated + 1) == (at.count, at.repeated)

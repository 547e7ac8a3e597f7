"""What a program does before it is loaded."""

import gc
import weakref

import pytest

from fleet.starting import uncollected


class Thing:
    """What can be referred to weakly, and refers to itself."""

    def __init__(self) -> None:
        self.itself = self


def test_what_is_loaded_is_looked_through_for_garbage_once() -> None:
    """A start would take up to a seventh longer, or garbage would be kept for ever."""
    try:
        with uncollected():
            assert not gc.isenabled()
            loaded, garbage = Thing(), weakref.ref(Thing())
            assert garbage() is not None
        assert gc.isenabled()
        assert garbage() is None
        assert not any(each is loaded for each in gc.get_objects())
    finally:
        gc.unfreeze()


def test_garbage_is_collected_again_when_a_package_is_missing() -> None:
    """A program that goes on without it would grow for ever."""
    try:
        with pytest.raises(ModuleNotFoundError), uncollected():
            raise ModuleNotFoundError
        assert gc.isenabled()
    finally:
        gc.unfreeze()

"""What a program does before it is loaded."""

import gc

import pytest

from fleet.starting import uncollected


def test_what_is_loaded_is_not_looked_through_for_garbage() -> None:
    """A start would take a tenth longer, on a small machine most of a second."""
    try:
        with uncollected():
            assert not gc.isenabled()
            loaded: list[object] = []
            loaded.append(loaded)
        assert gc.isenabled()
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

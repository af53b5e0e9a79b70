"""No garbage is looked for while libraries are imported, and some is again afterwards."""

import gc

import pytest
from loractl.bus.lasting_imports import lasting_imports


def test_garbage_waits_until_all_is_imported():
    with lasting_imports():
        assert not gc.isenabled()

    assert gc.isenabled()


def test_garbage_is_looked_for_after_an_import_that_failed():
    with pytest.raises(ImportError), lasting_imports():
        raise ImportError

    assert gc.isenabled()

from __future__ import annotations

import pickle

from spot_ray.errors import DataError, StoreError


def test_an_error_survives_the_way_between_processes_and_says_everything() -> None:
    error = pickle.loads(pickle.dumps(DataError("it broke", where="a.bin", expected="20 bytes", remedy="copy again")))
    assert type(error) is DataError
    assert error.args == (str(error),)
    assert str(error) == "it broke\n  where: a.bin\n  expected: 20 bytes\n  do: copy again"


def test_more_that_can_be_done_leaves_the_error_what_it_is() -> None:
    error = StoreError("it broke", where="a.bin", expected="20 bytes")
    more = error.with_remedies("wait").with_remedies("copy again", "run again")
    assert type(more) is StoreError
    assert (more.what, more.where, more.expected) == ("it broke", "a.bin", "20 bytes")
    assert more.remedy == "wait; copy again; run again"

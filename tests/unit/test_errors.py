from __future__ import annotations

import pickle

from spot_ray.errors import DataError


def test_an_error_survives_the_way_between_processes_and_says_everything() -> None:
    error = pickle.loads(pickle.dumps(DataError("it broke", where="a.bin", expected="20 bytes", remedy="copy again")))
    assert type(error) is DataError
    assert error.args == (str(error),)
    assert str(error) == "it broke\n  where: a.bin\n  expected: 20 bytes\n  do: copy again"

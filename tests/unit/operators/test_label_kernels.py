import numpy as np
import pytest

from spot_ray.operators.label_kernels import map_ids


@pytest.mark.parametrize(("dtype", "size"), [("uint8", 256), ("uint16", 65536)])
def test_every_id_is_looked_up(dtype, size):
    table = (np.arange(size) * 7 % 251).astype(np.uint8)
    ids = np.random.default_rng(0).permutation(size).astype(dtype)
    ids.flags.writeable = False  # as read from a file
    mapped = np.empty(size, np.uint8)
    map_ids(ids, table, mapped)
    assert mapped.tolist() == [int(i) * 7 % 251 for i in ids]

"""One Ray for all integration tests: it starts once, and nothing of an earlier test meets a Ray that is gone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray


@pytest.fixture(scope="session", autouse=True)
def ray_cluster() -> Iterator[None]:
    """Five CPUs, whatever the machine has: for two training workers and what reads for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(
            "local",
            num_cpus=5,
            object_store_memory=400_000_000,
            include_dashboard=False,
            logging_level="ERROR",
            log_to_driver=False,
        )
        yield
        ray.shutdown()

"""One Ray for all integration tests: it starts once, and nothing of an earlier test meets a Ray that is gone."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from faulty_store import ACCESS_KEY, SECRET_KEY, FaultyStore


@pytest.fixture(scope="session")
def faulty_store() -> Iterator[FaultyStore]:
    """What `AWS_ENDPOINT_URL` names, in Ray's workers too; tests of object storage put a server behind it."""
    store = FaultyStore()
    yield store
    store.close()


@pytest.fixture(scope="session", autouse=True)
def ray_cluster(faulty_store: FaultyStore) -> Iterator[None]:
    """Five CPUs, whatever the machine has: for two training workers and what reads for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", faulty_store.url)
        patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # What tests share lies in this folder, and Ray's processes import the tests' modules.
        shared = str(Path(__file__).parents[1])
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [shared, os.environ.get("PYTHONPATH")])))
        ray.init(
            "local",
            num_cpus=5,
            object_store_memory=400_000_000,
            include_dashboard=False,
            logging_level="ERROR",
            log_to_driver=False,
        )
        yield
        gc.collect()  # a stream that a test left unfinished still talks to Ray when it goes
        ray.shutdown()

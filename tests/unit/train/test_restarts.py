from spot_ray.train.restarts import RestartPolicy


def test_a_run_goes_on_as_long_as_it_gets_anywhere() -> None:
    policy = RestartPolicy(2)
    assert all(policy.allows(step, num_workers=4) for step in range(0, 1000, 10))


def test_it_ends_when_it_dies_at_one_place_again_and_again() -> None:
    policy = RestartPolicy(2)
    assert [policy.allows(30, num_workers=4) for _ in range(4)] == [True, True, True, False]
    # Further back, because the newest checkpoint was damaged, is no progress either; a further checkpoint is.
    policy = RestartPolicy(1)
    assert policy.allows(30, num_workers=4)
    assert policy.allows(20, num_workers=4)
    assert policy.allows(40, num_workers=4)
    assert policy.allows(40, num_workers=4)
    assert not policy.allows(30, num_workers=4)


def test_growing_is_no_failure() -> None:
    policy = RestartPolicy(0)
    assert policy.allows(0, num_workers=1)
    assert policy.allows(0, num_workers=2)
    assert not policy.allows(0, num_workers=1)

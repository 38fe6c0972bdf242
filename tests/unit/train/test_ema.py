import torch
from torch import nn

from spot_ray.train.ema import WeightAverage


def test_it_follows_the_weights_by_a_decay_that_rises() -> None:
    model = nn.BatchNorm1d(1)
    with torch.no_grad():
        model.weight.fill_(0.0)
    average = WeightAverage(model, decay=0.6)
    with torch.no_grad():
        model.weight.fill_(1.0)
    model.num_batches_tracked += 7
    expected, found = 0.0, []
    for decay in (0.5, 0.6, 0.6):  # min(1 - 1 / (step + 2), 0.6)
        average.update(len(found))
        expected = decay * expected + (1 - decay) * 1.0
        found.append(float(average.state_dict()["weight"]))
        assert abs(found[-1] - expected) < 1e-6
    assert model.weight == 1.0
    assert average.state_dict()["num_batches_tracked"] == 7

from types import ModuleType

import numpy as np
import pytest
import torch

from spot_ray.errors import ConfigError
from spot_ray.models.flops import count_flops
from spot_ray.models.spot import build_model
from spot_ray.train.utilisation import PEAK_VARIABLE, known_peak, peak_flops, training_flops


@pytest.mark.parametrize(
    ("name", "bfloat16", "float32"),
    [
        ("NVIDIA H200", 989.4, 494.7),
        ("NVIDIA H100 80GB HBM3", 989.4, 494.7),
        ("NVIDIA H100 PCIe", 756.0, 378.0),
        ("NVIDIA A100-SXM4-80GB", 312.0, 156.0),
        ("NVIDIA A100-PCIE-40GB", 312.0, 156.0),
        ("NVIDIA A10", 125.0, 62.5),
        ("NVIDIA A10G", 70.0, 35.0),
        ("NVIDIA L40S", 362.0, 183.0),
        ("NVIDIA L4", 121.0, 60.0),
    ],
)
def test_peaks_are_those_of_the_data_sheets(name: str, bfloat16: float, float32: float) -> None:
    assert known_peak(name, precision="bfloat16") == bfloat16 * 1e12
    assert known_peak(name, precision="auto") == bfloat16 * 1e12
    assert known_peak(name, precision="float32") == float32 * 1e12


@pytest.mark.parametrize("name", ["NVIDIA H200 MIG 1g.18gb", "NVIDIA GeForce GTX 1080", "AMD Instinct MI300X"])
def test_other_devices_are_not_guessed(name: str) -> None:
    assert known_peak(name, precision="auto") is None


def test_the_environment_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PEAK_VARIABLE, raising=False)
    assert peak_flops("cpu", precision="auto") is None
    monkeypatch.setenv(PEAK_VARIABLE, "0.25")
    assert peak_flops("cpu", precision="auto") == 0.25e12
    for wrong in ("fast", "-1", "nan", "inf"):
        monkeypatch.setenv(PEAK_VARIABLE, wrong)
        with pytest.raises(ConfigError, match=PEAK_VARIABLE):
            peak_flops("cpu", precision="auto")


def test_flops_are_those_of_forward_and_backward_a_sample(toy: ModuleType) -> None:
    model = build_model(toy.CONFIG.model, num_features=4, num_classes=3, grid=toy.GRID)
    batch = toy.batch_of(np.random.default_rng(0), 3)
    whole = count_flops(model, torch.from_numpy(batch.points), torch.from_numpy(batch.point_offsets))
    assert training_flops(model, batch, "cpu") == whole.forward  # three times as much, for one sample of three

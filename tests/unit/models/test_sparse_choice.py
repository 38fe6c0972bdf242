from __future__ import annotations

import sys

import pytest
import torch

from spot_ray.errors import InstallError
from spot_ray.models import sparse_choice
from spot_ray.models.sparse_choice import choose_back_end, preferred_back_end


@pytest.fixture(autouse=True)
def _forget_measurements() -> None:
    sparse_choice._quickest.cache_clear()


@pytest.fixture
def no_spconv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spconv", None)
    monkeypatch.delitem(sys.modules, "spot_ray.models.sparse_spconv", raising=False)


def test_a_name_is_taken_at_its_word() -> None:
    assert choose_back_end("spconv", "cpu").name == "spconv"
    assert choose_back_end("torch", torch.device("cpu")).name == "torch"


@pytest.mark.parametrize(("spconv_s", "torch_s", "wanted"), [(1.0, 2.0, "spconv"), (2.0, 1.0, "torch")])
def test_auto_takes_the_quicker_one_and_remembers(
    spconv_s: float, torch_s: float, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    seconds = {"spconv": spconv_s, "torch": torch_s}
    monkeypatch.setattr(sparse_choice, "_stage", lambda back_end, device, dtype: seconds[back_end.name])
    monkeypatch.setattr(sparse_choice, "_seconds", lambda run: (asked.append(run), run)[1])
    chosen = choose_back_end("auto", "cpu")
    assert chosen.name == wanted
    number = len(asked)
    assert choose_back_end("auto", torch.device("cpu")) is chosen
    assert len(asked) == number == 2 * (1 + sparse_choice._NUM_ROUNDS)


def test_auto_measures_here_and_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(5)
    with torch.no_grad():
        assert choose_back_end("auto", "cpu").name in ("spconv", "torch")
    found = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(found, torch.rand(3))


def test_auto_takes_what_can_compute_in_the_precision() -> None:
    assert choose_back_end("auto", "cpu", dtype=torch.bfloat16).name == "torch"


@pytest.mark.usefixtures("no_spconv")
def test_without_spconv() -> None:
    assert choose_back_end("auto", "cpu").name == "torch"
    assert preferred_back_end().name == "torch"
    with pytest.raises(InstallError, match="spconv is not installed"):
        choose_back_end("spconv", "cpu")

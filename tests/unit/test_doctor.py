from __future__ import annotations

import dataclasses
import json

import pytest

from spot_ray.cli import main
from spot_ray.doctor import BackEndFindings, Findings, render
from spot_ray.recipe_report import RecipeReport

SOUND = BackEndFindings("torch", "2.13.0", 1e-7, 2e-7, passed=True)
FINDINGS = Findings("0.1", "3.11", "Linux", {"torch": "2.13.0", "ray": None}, (), (SOUND,), "torch", True, ())


def test_text_names_what_is_missing_and_what_to_do() -> None:
    text = render(dataclasses.replace(FINDINGS, healthy=False, advice=("install it",)))
    assert "ray            not installed" in text
    assert "the quicker here: torch" in text
    assert text.endswith("do: install it\nnot well")
    assert render(FINDINGS).endswith("all well")


def test_back_ends_are_checked_and_a_recipe_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--recipe", "spot-tiny"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in found["back_ends"]] == ["spconv", "torch"]
    assert all(each["passed"] and 0 < each["max_gradient_error"] < 1e-5 for each in found["back_ends"])
    assert found["chosen_back_end"] in ("spconv", "torch")
    assert found["healthy"]

    network = found["network"]
    assert network["recipe"] == "spot-tiny"
    assert network["shapes"] == {"encoder": [128, 64, 64], "bev": [128, 64, 64], "decoder": [16, 16, 128, 128]}
    # By hand: the decoder's layers 128 → 64 on 64² cells, 64 → 48, 48 → 48 and the head 48 → 256 on 128².
    products = 9 * (64**2 * 128 * 64 + 128**2 * (64 * 48 + 48 * 48)) + 128**2 * 48 * 256
    assert network["gflop"]["decoder"] == pytest.approx(2 * products / 1e9)
    weights = 9 * (128 * 64 + 64 * 48 + 48 * 48) + 2 * (64 + 48 + 48) + 48 * 256 + 256
    assert network["parameters"]["decoder"] == weights
    assert network["training_gflop"] == pytest.approx(3 * sum(network["gflop"].values()))
    assert 10_000 < network["num_voxels"] < network["num_points"]


def test_a_network_is_told_part_by_part() -> None:
    network = RecipeReport(
        recipe="mine",
        encoder="plain",
        sweep="a sweep",
        num_points=200,
        num_voxels=100,
        parameters={"encoder": 1_500_000, "bev": 500_000},
        gflop={"encoder": 2.0, "bev": 3.5},
        training_gflop=16.5,
        shapes={"encoder": (8, 4, 4), "bev": (6, 4, 4)},
    )
    text = render(dataclasses.replace(FINDINGS, network=network))
    assert "recipe mine, plain encoder, a sample (a sweep: 200 points, 100 voxels)" in text
    assert "encoder    1.50 M parameters,    2.0 GFLOP, gives 8 × 4 × 4" in text
    assert "together   2.00 M parameters,    5.5 GFLOP forward, 16.5 with backward" in text


def test_an_unknown_recipe_is_the_users_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--recipe", "spot-tin"]) == 2
    assert "no recipe 'spot-tin'" in capsys.readouterr().err

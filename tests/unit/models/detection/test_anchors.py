from __future__ import annotations

import math

import torch

from spot_ray.models.bev import BevMap
from spot_ray.models.detection.anchors import AnchorGrid
from spot_ray.models.detection.config import AnchorConfig

CAR = AnchorConfig("car", (4.0, 2.0, 1.5), bottom_m=0.25)
CYCLIST = AnchorConfig("cyclist", (1.8, 0.6, 1.7), bottom_m=-0.5, matched_iou=0.5, unmatched_iou=0.35)


def test_anchors_stand_at_the_centres_of_cells_in_two_directions() -> None:
    grid = AnchorGrid([CAR, CYCLIST], BevMap((-2.0, 10.0), (0.5, 2.0), (2, 3)))
    anchor, y, x = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 2], [3, 1, 0]]).T
    expected = [
        [-1.75, 11.0, 1.0, 4.0, 2.0, 1.5, 0.0],
        [-1.75, 11.0, 1.0, 4.0, 2.0, 1.5, math.pi / 2],
        [-0.75, 13.0, 1.0, 4.0, 2.0, 1.5, 0.0],
        [-1.75, 13.0, 0.35, 1.8, 0.6, 1.7, math.pi / 2],
    ]
    torch.testing.assert_close(grid.at(anchor, y, x), torch.tensor(expected))


def test_looking_an_anchor_up_leaves_the_grid_as_it_is() -> None:
    grid = AnchorGrid([CAR], BevMap((0.0, 0.0), (1.0, 1.0), (4, 4)))
    place = (torch.tensor([0]), torch.tensor([3]), torch.tensor([3]))
    first = grid.at(*place)
    assert torch.equal(grid.at(*place), first)


def test_a_grid_is_no_part_of_a_checkpoint() -> None:
    assert not AnchorGrid([CAR], BevMap((0.0, 0.0), (1.0, 1.0), (4, 4))).state_dict()

"""What network a recipe describes: parameters, shapes, and arithmetic on a sweep that needs no data."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from spot_ray.models.backbone import count_parameters
from spot_ray.models.encoder import bev_shape
from spot_ray.models.flops import count_flops
from spot_ray.models.spot import build_model
from spot_ray.recipes.pretraining import pretraining_recipe
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.synthetic.world import World

PRESET = "waymo"
"""The city whose first sweep is counted on."""


@dataclass(frozen=True)
class RecipeReport:
    """A recipe's network.

    Args:
        recipe: The recipe.
        encoder: Kind of the 3D encoder.
        sweep: What the arithmetic was counted on.
        num_points: Points of that sweep.
        num_voxels: Voxels that they occupy in the network's range.
        parameters: Trainable values by part: encoder, bev, decoder.
        gflop: 10^9 operations of a forward pass on that sweep by part; two for each multiply-add.
        training_gflop: 10^9 operations of a forward and a backward pass of all parts.
        shapes: (channels, y, x) of what each part returns for a sample; of the decoder (classes with empty, z, y, x).
    """

    recipe: str
    encoder: str
    sweep: str
    num_points: int
    num_voxels: int
    parameters: dict[str, int]
    gflop: dict[str, float]
    training_gflop: float
    shapes: dict[str, tuple[int, ...]]


def report_recipe(name: str) -> RecipeReport:
    """Build a recipe's network for the paper's classes and count.

    Raises:
        ConfigError: If there is no such recipe, or its sizes do not fit each other.
    """
    config = pretraining_recipe(name)
    num_features = len(config.data.features)
    model = build_model(
        config.model, num_features=num_features, num_classes=PAPER_TAXONOMY.num_classes, grid=config.grid
    )
    xyz = torch.from_numpy(World(PRESET, seed=0, sequence=0, num_frames=1).sweep(0).xyz)
    points = torch.zeros(len(xyz), num_features)
    points[:, :3] = xyz  # which sites are active depends on nothing else
    offsets = torch.tensor([0, len(points)])
    flops = count_flops(model, points, offsets)
    num_voxels = len(model.voxels(points, offsets).indices)
    _, height, width = bev_shape(model.voxel_shape)
    bare = model.to("meta").eval()
    folded = torch.empty(1, model.encoder.bev_channels, height, width, device="meta")
    bev = bare.bev(folded)
    logits = bare.decoder(bev, None)
    parts = {"encoder": model.encoder, "bev": model.bev, "decoder": model.decoder}
    return RecipeReport(
        recipe=config.recipe,
        encoder=config.model.encoder.kind,
        sweep=f"the first sweep of the synthetic city, preset {PRESET}",
        num_points=len(points),
        num_voxels=num_voxels,
        parameters={part: count_parameters(module) for part, module in parts.items()},
        gflop={"encoder": flops.sparse / 1e9, "bev": flops.bev / 1e9, "decoder": flops.decoder / 1e9},
        training_gflop=flops.training / 1e9,
        shapes={part: tuple(x.shape[1:]) for part, x in zip(parts, (folded, bev, logits), strict=True)},
    )


def render(report: RecipeReport) -> str:
    """Return the report as text."""
    parts = [
        f"  {part:<8} {report.parameters[part] / 1e6:6.2f} M parameters, {report.gflop[part]:6.1f} GFLOP, "
        f"gives {' × '.join(map(str, report.shapes[part]))}"
        for part in report.parameters
    ]
    return "\n".join(
        [
            f"recipe {report.recipe}, {report.encoder} encoder, a sample ({report.sweep}: {report.num_points} points, "
            f"{report.num_voxels} voxels):",
            *parts,
            f"  together {sum(report.parameters.values()) / 1e6:6.2f} M parameters, {sum(report.gflop.values()):6.1f} "
            f"GFLOP forward, {report.training_gflop:.1f} with backward",
        ]
    )

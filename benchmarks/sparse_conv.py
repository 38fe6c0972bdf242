"""How quick and how exact are the back ends of sparse convolution, and how far from the limit of matrix products?

    python benchmarks/sparse_conv.py                        # two rounds: half a minute
    python benchmarks/sparse_conv.py --full --json          # seven rounds: the committed figures
    python benchmarks/sparse_conv.py --device cuda --full   # on a GPU; needs neither Ray nor spconv nor a network

One sweep of 180,000 points is voxelised in the range of `spot-waymo` and goes through the full residual 8x encoder,
forward and backward, by each back end in turn (A, B, A, B; medians). The floor is the time of plain `torch.mm` on the
pairs of every tap of every layer: the product of the forward pass and the two of the backward pass, nothing gathered.
Exactness is against dense `conv3d` in float64 on a small grid. The last line is a JSON object: `spconv_s` is null where
spconv is not installed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor, nn
from torch.nn import functional
from voxelize import LOWER_M, VOXEL_SHAPE, VOXEL_SIZE_M, sweep

from spot_ray.errors import InstallError
from spot_ray.models.encoder import SparseEncoder, sparse_shape, strided_convs
from spot_ray.models.sparse import Size3, SparseBackEnd, check_dtype, to_dense
from spot_ray.models.sparse_check import check_sparse_convolution
from spot_ray.models.sparse_choice import choose_back_end
from spot_ray.models.sparse_torch import Rulebook, TorchBackEnd, strided_rulebook, submanifold_rulebook
from spot_ray.models.voxelise import voxelise

CHANNELS = (16, 32, 64, 128)
OUT_CHANNELS = 128
NUM_BLOCKS = 2
NUM_FEATURES = 4
SMALL: Size3 = (9, 64, 64)

Run = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--full", action="store_true", help="seven rounds")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--device", default="cpu", help="device of torch")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"), help="of the layers")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    rounds = 7 if arguments.full else 2

    back_ends, absent = installed(device, dtype)
    points = torch.from_numpy(sweep()).to(device)
    voxels = voxelise(
        points,
        torch.tensor([0, len(points)]),
        lower_m=LOWER_M,
        voxel_size_m=VOXEL_SIZE_M,
        voxel_shape=VOXEL_SHAPE,
    )
    stages = stages_of(voxels.indices)
    encoders = {back_end.name: encoder(back_end, dtype).to(device) for back_end in back_ends}
    runs: dict[str, Run] = {name: step(network, voxels.features, voxels.indices) for name, network in encoders.items()}
    runs["floor"] = floor([layer for stage in stages for layer in stage], device, dtype)
    whole = alternate(runs, rounds)
    result: dict[str, object] = {
        "benchmark": "sparse_conv",
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": arguments.threads,
        "dtype": arguments.dtype,
        "rounds": rounds,
        "num_points": len(points),
        "num_voxels": len(voxels.indices),
        "forward_gflop": round(sum(2 * p * i * o for stage in stages for _, p, i, o, _ in counted(stage)) / 1e9, 1),
        "spconv_s": whole.get("spconv"),
        "spconv_absent": absent,
        "torch_s": whole["torch"],
        "floor_s": whole["floor"],
        "share_of_floor": round(whole["floor"] / whole["torch"], 3),
        "chosen": choose_back_end("auto", device, dtype=dtype).name,
        **errors(back_ends, device),
        "encoder_difference": difference(encoders, voxels.features, voxels.indices),
        "stages": [per_stage(stage, back_ends, device, dtype, rounds) for stage in stages],
        "dense": dense(back_ends, device, rounds),
    }
    if not arguments.json:
        for name, value in result.items():
            print(f"{name:20} {value}")
    print(json.dumps(result))


def installed(device: torch.device, dtype: torch.dtype) -> tuple[list[SparseBackEnd], str | None]:
    """Return the back ends that can be measured, and why spconv is not among them."""
    in_torch = TorchBackEnd()
    try:
        spconv = choose_back_end("spconv", device)
    except InstallError as error:
        return [in_torch], error.what
    if dtype not in spconv.dtypes(device):
        return [in_torch], f"spconv cannot compute in {dtype} on {device}"
    return [spconv, in_torch], None


def encoder(back_end: SparseBackEnd, dtype: torch.dtype) -> SparseEncoder:
    """Return the full residual 8x encoder; its weights do not depend on the back end."""
    check_dtype(back_end, torch.device("cpu") if dtype == torch.float32 else torch.device("cuda"), dtype)
    torch.manual_seed(0)
    network = SparseEncoder(
        in_channels=NUM_FEATURES,
        channels=CHANNELS,
        out_channels=OUT_CHANNELS,
        kind="residual",
        num_blocks=NUM_BLOCKS,
        voxel_shape=VOXEL_SHAPE,
        sparse=back_end,
    )
    network.compute_in(dtype)
    return network


def step(network: SparseEncoder, features: Tensor, indices: Tensor) -> Run:
    """Return a forward and backward pass."""

    def run() -> None:
        network.zero_grad()
        network(features, indices, 1).square().mean().backward()

    return run


Layer = tuple[int, int, Rulebook, tuple[Size3, Size3, Size3] | None]
"""Input and output channels, rulebook, and kernel, stride and padding of a layer that strides."""


def stages_of(indices: Tensor) -> list[list[Layer]]:
    """Return the layers of the encoder's four stages, each with the one that leads out of it."""
    stages, shape = [], sparse_shape(VOXEL_SHAPE)
    widths = (*CHANNELS, OUT_CHANNELS)
    for number, ((width, after), geometry) in enumerate(zip(itertools.pairwise(widths), strided_convs(), strict=True)):
        same = submanifold_rulebook(indices, shape, 1, 3)
        down = strided_rulebook(indices, shape, 1, *geometry)
        first: list[Layer] = [] if number else [(NUM_FEATURES, width, same, None)]
        stages.append([*first, *[(width, width, same, None)] * (2 * NUM_BLOCKS), (width, after, down, geometry)])
        indices, shape = down.indices, down.spatial_shape
    return stages


def counted(stage: list[Layer]) -> list[tuple[Rulebook, int, int, int, list[int]]]:
    """Return rulebook, pairs, channels and the pairs of every tap of each layer."""
    return [
        (book, book.num_pairs, before, after, (book.inputs != book.num_inputs).sum(1).tolist())
        for before, after, book, _ in stage
    ]


def floor(layers: list[Layer], device: torch.device, dtype: torch.dtype) -> Run:
    """Return the matrix products of all taps of all layers, forward and backward, on rows that lie ready."""
    most = max(max(numbers) for *_, numbers in counted(layers))
    widths = {width for before, after, *_ in layers for width in (before, after)}
    rows = {width: torch.randn(most, width, device=device).to(dtype) for width in widths}
    scratch = {width: torch.empty(most, width, device=device, dtype=dtype) for width in widths}
    sizes = [(before, after, numbers) for _, _, before, after, numbers in counted(layers)]
    weights = {(i, o): torch.randn(i, o, device=device).to(dtype) for i, o, _ in sizes}
    gradients = {shape: torch.empty_like(weight) for shape, weight in weights.items()}

    def run() -> None:
        for before, after, numbers in sizes:
            weight = weights[before, after]
            for number in numbers:
                x, g = rows[before][:number], rows[after][:number]
                torch.mm(x, weight, out=scratch[after][:number])
                torch.mm(g, weight.t(), out=scratch[before][:number])
                torch.mm(x.t(), g, out=gradients[before, after])

    return run


def per_stage(
    stage: list[Layer], back_ends: list[SparseBackEnd], device: torch.device, dtype: torch.dtype, rounds: int
) -> dict[str, object]:
    """Time a stage's convolutions alone, rulebooks included."""
    same = stage[0][2]
    features = torch.randn(len(same.indices), stage[0][0], device=device).to(dtype).requires_grad_()
    runs: dict[str, Run] = {}
    for back_end in back_ends:
        convs = [
            back_end.submanifold_conv(before, after, 3, rulebook="stage")
            if geometry is None
            else back_end.strided_conv(before, after, *geometry)
            for before, after, _, geometry in stage
        ]
        network = nn.Sequential(*convs).to(device)

        def run(back_end: SparseBackEnd = back_end, network: nn.Module = network) -> None:
            x = back_end.tensor(features, same.indices, same.spatial_shape, 1)
            network(x).features.float().square().mean().backward()

        runs[f"{back_end.name}_s"] = run
    runs["floor_s"] = floor(stage, device, dtype)
    return {
        "channels": stage[-1][0],
        "num_sites": len(same.indices),
        "neighbours": round(same.num_pairs / len(same.indices), 2),
        **alternate(runs, rounds),
    }


def errors(back_ends: list[SparseBackEnd], device: torch.device) -> dict[str, float]:
    """Return the greatest relative errors against dense `conv3d` in float64, forward and gradients."""
    found = {}
    for back_end in back_ends:
        check = check_sparse_convolution(device=str(device), back_end=back_end)
        found[f"max_error_{back_end.name}"] = max(check.max_forward_error, check.max_gradient_error)
    return {"max_error": max(found.values()), **found}


def difference(encoders: dict[str, SparseEncoder], features: Tensor, indices: Tensor) -> float | None:
    """Return the greatest difference of the encoders' outputs relative to the greatest output."""
    with torch.no_grad():
        outputs = [network(features, indices, 1) for network in encoders.values()]
    if len(outputs) == 1:
        return None
    return float((outputs[0] - outputs[1]).abs().max() / outputs[1].abs().max())


def dense(back_ends: list[SparseBackEnd], device: torch.device, rounds: int) -> dict[str, object]:
    """Time one submanifold layer on a small grid, a tenth of it active, against `conv3d` on all of it."""
    sites = (torch.rand(1, *SMALL, generator=torch.Generator().manual_seed(0)) < 0.1).nonzero().int().to(device)
    features = torch.randn(len(sites), CHANNELS[0], device=device).requires_grad_()
    grid = to_dense(TorchBackEnd().tensor(features.detach(), sites, SMALL, 1)).contiguous().requires_grad_()
    conv = nn.Conv3d(CHANNELS[0], CHANNELS[0], 3, padding=1, bias=False).to(device)
    runs: dict[str, Run] = {"dense_s": lambda: functional.relu(conv(grid)).sum().backward()}
    for back_end in back_ends:
        layer = back_end.submanifold_conv(CHANNELS[0], CHANNELS[0], 3, rulebook="a").to(device)

        def run(back_end: SparseBackEnd = back_end, layer: nn.Module = layer) -> None:
            functional.relu(layer(back_end.tensor(features, sites, SMALL, 1)).features).sum().backward()

        runs[f"{back_end.name}_s"] = run
    return {"grid": SMALL, "num_sites": len(sites), "channels": CHANNELS[0], **alternate(runs, 3 * rounds)}


def alternate(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Return the median seconds of each, run in turns after a warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
    return {name: round(statistics.median(each[1:]), 5) for name, each in seconds.items()}


if __name__ == "__main__":
    main()

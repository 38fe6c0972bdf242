"""A sanity check on real frames: does what was learned in the synthetic world help on real sweeps?

    python benchmarks/claim_real.py [--data ../shared/data] [--seeds N] [--out claim]    (make claim-real)

It checks sanity, no more: some twenty frames of two streets. `spot-tiny`, pre-trained on the synthetic Waymo-like city,
gets a linear head that classifies points, and both are trained end to end on the first half of a recording: ten sweeps
of SemanticKITTI 00 (10 Hz), eleven key frames of one nuScenes log (2 Hz). The frame after that half is left out, and
what comes after is the test. Classes are the paper's fifteen, as far as a dataset's taxonomy names them. Three
beginnings: from scratch, from a pre-training on labels shuffled among sequences, and from the pre-training.

A score is the mean IoU over the classes of the test frames, of all of them together; a seed decides the head, the
order, the augmentation and, modulo three, the pre-training. The report, `claim/real.json`, has the arms and their
paired differences by seed, and `by_frame`: the difference of each test frame's own mean IoU, over seeds, with Student's
interval over the frames. Frames of one street are anything but independent: the interval is too narrow.

Recordings are found below `--data`, in the official layouts; without one it is left out with a reason. Pre-trainings
that `claim.py` and `claim_controls.py` have done in the same work folder are taken over, else they are done first:
after the claim it takes some 25 minutes on two cores, after its controls some 15.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import claim
import numpy as np
import numpy.typing as npt
import torch
from claim import CITY, SIZES, Size
from claim_controls import SHUFFLED, shuffled_stage
from claim_data import shuffled_labels
from claim_report import experiment, paired, provenance, table, write_report
from claim_stages import Result, Stage, run_stages
from torch import Tensor, nn
from torch.nn import functional

from spot_ray import cli
from spot_ray.evaluate.occupancy import class_ious
from spot_ray.models.config import VoxelConfig
from spot_ray.models.point_features import encode_points, locate
from spot_ray.models.spot import OccupancyModel, build_model
from spot_ray.operators.features import point_features
from spot_ray.recipes.pretraining import pretraining_recipe
from spot_ray.schema.taxonomy import IGNORE, PAPER_TAXONOMY, Taxonomy
from spot_ray.storage.dataset import open_dataset
from spot_ray.train.checkpoint import load_model
from spot_ray.train.config import PretrainConfig

ARMS = ("scratch", SHUFFLED, "pretrained")
PRETRAININGS = 3
NUM_CLASSES = PAPER_TAXONOMY.num_classes


@dataclasses.dataclass(frozen=True)
class Recording:
    """Real frames.

    Args:
        name: Of the source, as `spot-ray convert` knows it, and of its folder.
        options: Further arguments of `spot-ray convert`.
    """

    name: str
    options: tuple[str, ...] = ()


RECORDINGS = (Recording("semantickitti"), Recording("nuscenes", ("--version", "v1.0-mini")))


@dataclasses.dataclass(frozen=True)
class Fit:
    """How the probe is trained.

    Args:
        epochs: Passes over the frames, one frame a step.
        lr: Highest learning rate of Adam under a one-cycle schedule.
        weight_decay: Decoupled weight decay.
        rotation_rad: Frames are turned by up to this, and mirrored in half of the steps.
    """

    epochs: int = 12
    lr: float = 0.003
    weight_decay: float = 0.01
    rotation_rad: float = 0.785


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledFrame:
    """A frame for the probe.

    Args:
        points: (P, C) float32 input features.
        classes: (P,) int64 0 to 14, the paper's classes; 255 where there is none.
    """

    points: Tensor
    classes: Tensor


class PointProbe(nn.Module):
    """The encoders of a network and a linear head on the features of points.

    Args:
        model: The network; its decoder is not used.
        voxel: Its input voxels.
        frame: Any frame: tells how many features a point gets.
    """

    def __init__(self, model: OccupancyModel, voxel: VoxelConfig, frame: LabelledFrame) -> None:
        super().__init__()
        self.model = model
        self._voxel = voxel
        model.eval()
        with torch.no_grad():
            num_features = self._features(frame.points, torch.arange(1)).shape[1]
        model.train()
        # The encoders' stages differ in scale.
        self.head = nn.Sequential(nn.BatchNorm1d(num_features), nn.Linear(num_features, NUM_CLASSES))

    def forward(self, points: Tensor, chosen: Tensor) -> Tensor:
        """Return the (K, 15) logits of the points that are chosen, (K,) ascending indices."""
        logits: Tensor = self.head(self._features(points, chosen))
        return logits

    def _features(self, points: Tensor, chosen: Tensor) -> Tensor:
        offsets = torch.tensor([0, len(points)])
        return encode_points(self.model, points, offsets, chosen, voxel=self._voxel)


def convert(folder: Path, _: Mapping[str, Result], *, name: str, options: Sequence[str], source: str) -> Result:
    """Convert a recording as a user would."""
    uri = str(folder / "data")
    status = cli.main(["convert", name, "--source", source, "--out", uri, *options])
    if status:
        raise RuntimeError(f"spot-ray convert ended with {status}")
    return {"data": uri}


def probe(
    _folder: Path,
    needed: Mapping[str, Result],
    *,
    data: str,
    init: str | None,
    config: PretrainConfig,
    fit: Fit,
    seed: int,
) -> Result:
    """Train a probe on the first half of a recording, and count what it says of the rest.

    Args:
        needed: Results of the stages before it.
        data: The stage that converted the recording.
        init: The stage that pre-trained, or None: from scratch.
        config: The network.
        fit: How it is trained.
        seed: Of weights, order and augmentation.
    """
    frames = labelled_frames(needed[data]["data"], config)
    half = len(frames) // 2
    torch.manual_seed(seed)
    features = config.data.features
    model = (
        build_model(config.model, num_features=len(features), num_classes=NUM_CLASSES, grid=config.grid)
        if init is None
        else load_model(needed[init]["checkpoint"]).model
    )
    torch.manual_seed(seed)  # the same head whatever the network was made of
    network = PointProbe(model, config.model.voxel, frames[0])
    train(network, frames[:half], config.model.voxel, fit, seed=seed)
    tables = [confusion(network, frame, config.model.voxel).tolist() for frame in frames[half + 1 :]]
    return {"train_frames": half, "tables": tables}


def labelled_frames(uri: str, config: PretrainConfig) -> list[LabelledFrame]:
    """Return all frames of a dataset with the paper's classes."""
    dataset = open_dataset(uri)
    table = paper_classes(dataset.info.taxonomy)
    frames = []
    for sweep in dataset:
        assert sweep.point_source_class is not None
        points = point_features(sweep, config.data.features, dataset.info.rig)
        classes = torch.from_numpy(table[sweep.point_source_class].astype(np.int64))
        frames.append(LabelledFrame(torch.from_numpy(points), classes))
    return frames


def paper_classes(taxonomy: Taxonomy) -> npt.NDArray[np.uint8]:
    """Return the (65536,) uint8 table from source ids to the paper's classes, 0 to 14; 255 where none fits."""
    names = [None if c.paper_class is None else PAPER_TAXONOMY.id_of(c.paper_class) - 1 for c in taxonomy.classes]
    own = np.array([IGNORE, *(IGNORE if i is None else i for i in names)], dtype=np.uint8)
    lookup = taxonomy.lookup()
    return np.where(lookup == IGNORE, np.uint8(IGNORE), own[np.where(lookup == IGNORE, 0, lookup)])


def train(network: PointProbe, frames: Sequence[LabelledFrame], voxel: VoxelConfig, fit: Fit, *, seed: int) -> None:
    """Fit a probe end to end, one frame a step."""
    rng = np.random.default_rng(seed)
    counts = torch.stack([torch.bincount(f.classes[f.classes != IGNORE], minlength=NUM_CLASSES) for f in frames]).sum(0)
    weight = counts.clamp(min=1).float() ** -0.5  # neither drowned by the road, nor by a sign's few points
    optimiser = torch.optim.AdamW(network.parameters(), lr=fit.lr, weight_decay=fit.weight_decay)
    total = fit.epochs * len(frames)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, fit.lr, total_steps=total, pct_start=0.4)
    network.train()
    for _ in range(fit.epochs):
        for i in rng.permutation(len(frames)):
            points = _augmented(frames[i].points, fit.rotation_rad, rng)
            chosen = _chosen(points, frames[i].classes, voxel)
            loss = functional.cross_entropy(network(points, chosen), frames[i].classes[chosen], weight=weight)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 10.0)
            optimiser.step()
            schedule.step()
    _measure_statistics(network, frames, voxel)
    network.eval()


def _measure_statistics(network: PointProbe, frames: Sequence[LabelledFrame], voxel: VoxelConfig) -> None:
    """Replace batch norm's running statistics by the mean of those of the frames.

    The running ones forget a hundredth a step: after so few steps, those of fresh weights would still be what they
    began with, and a network from scratch would seem to have learned nothing.
    """
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all that comes
    with torch.no_grad():
        for frame in frames:
            network(frame.points, _chosen(frame.points, frame.classes, voxel))


def confusion(network: PointProbe, frame: LabelledFrame, voxel: VoxelConfig) -> npt.NDArray[np.int64]:
    """Return the (16, 16) counts of a frame's points, rows by truth; id 0, which the classes lack, stays empty."""
    chosen = _chosen(frame.points, frame.classes, voxel)
    with torch.inference_mode():
        predicted = network(frame.points, chosen).argmax(dim=1)
    cells = (frame.classes[chosen] + 1) * (NUM_CLASSES + 1) + predicted + 1
    counts: npt.NDArray[np.int64] = torch.bincount(cells, minlength=(NUM_CLASSES + 1) ** 2).numpy()
    return counts.reshape(NUM_CLASSES + 1, NUM_CLASSES + 1)


def mean_iou(table: npt.NDArray[np.int64]) -> float:
    """Return the mean IoU of the classes in the truth."""
    return float(np.nanmean(class_ious(table)[1:]))


def _augmented(points: Tensor, rotation_rad: float, rng: np.random.Generator) -> Tensor:
    angle, mirror = rng.uniform(-rotation_rad, rotation_rad), rng.random() < 0.5
    c, s = np.cos(angle), np.sin(angle)
    turn = torch.tensor([[c, -s], [s, c]], dtype=torch.float32)
    if mirror:
        turn = turn @ torch.diag(torch.tensor([1.0, -1.0]))
    return torch.cat([points[:, :2] @ turn.T, points[:, 2:]], dim=1)


def _chosen(points: Tensor, classes: Tensor, voxel: VoxelConfig) -> Tensor:
    _, inside = locate(points[:, :3], voxel)
    return torch.nonzero(inside & (classes != IGNORE))[:, 0]


def plan(size: Size, seeds: Sequence[int], found: Mapping[Recording, Path], device: str) -> list[Stage]:
    """Return the stages; the pre-trainings are those of the claim and its controls."""
    stages = [
        claim.city_stages(size)[0],
        Stage(SHUFFLED, shuffled_labels, {"city": CITY, "seed": 0}, (CITY,)),
    ]
    for seed in range(PRETRAININGS):
        stages += [claim.pretraining_stage(size, seed, device), shuffled_stage(size, seed, device)]
    begun = {"scratch": None, SHUFFLED: f"pretrain-{SHUFFLED}", "pretrained": "pretrain"}
    config = pretraining_recipe("spot-tiny")
    for recording, source in found.items():
        data = f"real-{recording.name}"
        stages.append(
            Stage(data, convert, {"name": recording.name, "options": recording.options, "source": str(source)})
        )
        for arm in ARMS:
            for seed in seeds:
                init = None if begun[arm] is None else f"{begun[arm]}-{seed % PRETRAININGS}"
                arguments = {"data": data, "init": init, "config": config, "fit": Fit(), "seed": seed}
                needs = (data,) if init is None else (data, init)
                stages.append(Stage(f"probe-{recording.name}-{arm}-{seed}", probe, arguments, needs))
    return stages


def row(recording: Recording, done: Mapping[str, Result], seeds: Sequence[int]) -> dict[str, Any]:
    """Return a recording's row of the report."""
    tables = {
        arm: np.array([done[f"probe-{recording.name}-{arm}-{seed}"]["tables"] for seed in seeds], np.int64)
        for arm in ARMS
    }
    scores = {arm: [mean_iou(several.sum(axis=0)) for several in found] for arm, found in tables.items()}
    # (frames,) each the mean over seeds: the seeds of one frame are no further frames.
    by_frame = {
        arm: np.mean([[mean_iou(frame) for frame in several] for several in found], axis=0).tolist()
        for arm, found in tables.items()
    }
    return experiment(
        f"{recording.name}-points",
        "mIoU",
        scores,
        train_frames=done[f"probe-{recording.name}-scratch-0"]["train_frames"],
        test_frames=len(by_frame["scratch"]),
        by_frame={
            "scores": by_frame,
            "differences": {arm: paired(by_frame["scratch"], by_frame[arm]) for arm in ARMS if arm != "scratch"},
        },
    )


def main() -> None:
    parser = claim.arguments_parser(__doc__, out="claim")
    parser.set_defaults(seeds=5)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the real recordings")
    options = parser.parse_args()
    found: dict[Recording, Path] = {}
    skipped: dict[str, str] = {}
    for recording in RECORDINGS:
        folder = options.data / recording.name
        if folder.is_dir():
            found[recording] = folder.resolve()
        else:
            skipped[recording.name] = f"left out: there is no folder {folder}"
            print(f"{recording.name}: {skipped[recording.name]}")
    if not found:
        print("there are no real frames: nothing to check; name their folder by --data")
        return
    began = time.time()
    done = run_stages(
        plan(SIZES[options.size], range(options.seeds), found, options.device),
        options.out,
        processes=options.processes,
        threads=claim.threads_of(options),
    )
    report = {
        "benchmark": "claim_real",
        "title": "A sanity check on a few real frames",
        **provenance("claim_real.py"),
        "settings": {**claim.settings(options), "pretraining_seeds": PRETRAININGS, **dataclasses.asdict(Fit())},
        "skipped": skipped,
        "seconds": round(time.time() - began, 1),
        "stage_seconds": {name: round(result["seconds"], 1) for name, result in done.items()},
        "experiments": [row(recording, done, range(options.seeds)) for recording in found],
    }
    write_report(options.out / "real.json", report)
    print("A sanity check on a few real frames, no more:")
    print(table(report["experiments"]))
    for found_row in report["experiments"]:
        for arm, difference in found_row["by_frame"]["differences"].items():
            low, high = difference["interval"]
            print(
                f"{found_row['name']}, {arm} by frame: {100 * difference['mean']:+.2f} "
                f"({100 * low:+.2f} to {100 * high:+.2f}; {found_row['test_frames']} frames, not independent)"
            )
    print(f"\nin {report['seconds']:.0f} s; report: {options.out}/real.json")


if __name__ == "__main__":
    main()

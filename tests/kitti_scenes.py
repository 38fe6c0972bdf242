"""Made-up labels and results of KITTI's object benchmark: every type and level, and all that a detector errs in."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

P2 = np.array([[721.5377, 0, 609.5593, 44.85728], [0, 721.5377, 172.854, 0.2163791], [0, 0, 1, 0.002745884]])
IMAGE = (1242, 375)
TYPES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc")
SHARES = (0.45, 0.08, 0.04, 0.2, 0.04, 0.14, 0.02, 0.03)
SIZES = np.array(
    [(1.53, 1.63, 3.9), (2.2, 1.9, 5.0), (3.2, 2.6, 10), (1.76, 0.66, 0.84), (1.3, 0.6, 0.8), (1.74, 0.6, 1.76),
     (3.5, 2.5, 16), (1.9, 1.5, 3.5)]
)  # fmt: skip
"""Height, width, length in metres."""


def write_scenes(folder: Path, seed: int, count: int, *, objects: float = 8, clutter: float = 20) -> None:
    """Write `training/label_2` and `results` of `count` frames.

    Args:
        folder: Where to.
        seed: Of everything.
        count: Frames.
        objects: Mean number of objects a frame.
        clutter: Mean number of detections a frame that belong to no object.
    """
    labels, results = folder / "training" / "label_2", folder / "results"
    labels.mkdir(parents=True)
    results.mkdir()
    for frame in range(count):
        rng = np.random.default_rng([seed, frame])
        truth, found = _frame(rng, objects, clutter)
        (labels / f"{frame:06d}.txt").write_text("".join(f"{row}\n" for row in truth))
        (results / f"{frame:06d}.txt").write_text("".join(f"{row}\n" for row in found))


def _frame(rng: np.random.Generator, objects: float, clutter: float) -> tuple[list[str], list[str]]:
    number = rng.poisson(objects)
    kinds = rng.choice(len(TYPES), number, p=SHARES)
    boxes = _boxes(rng, kinds)
    image = _project(boxes)
    truth = [
        _row(TYPES[kind], image[i], boxes[i], f"{rng.choice([0, 0, rng.uniform(0, 0.7)]):.2f} {rng.integers(0, 4)}")
        for i, kind in enumerate(kinds)
        if image[i, 2] - image[i, 0] > 1
    ]
    for _ in range(rng.poisson(2)):
        left, top = rng.uniform(0, 1150), rng.uniform(150, 200)
        region = left, top, left + rng.uniform(10, 90), top + rng.uniform(8, 60)
        truth.append("DontCare -1 -1 -10 " + " ".join(f"{v:.2f}" for v in region) + " -1 -1 -1 -1000 -1000 -1000 -10")

    kept = rng.random(number) < 0.85
    near = boxes[kept] + rng.normal(0, 1, (kept.sum(), 7)) * rng.choice([0.01, 0.04, 0.12], (kept.sum(), 1)) * [
        1, 0.6, 1.5, 2, 1, 3, 1.5
    ]  # fmt: skip
    near[:, 6] += np.pi * (rng.random(len(near)) < 0.1)
    twice = near[rng.random(len(near)) < 0.2] + rng.normal(0, 0.05, 7)
    kinds_near = np.where(rng.random(len(near)) < 0.06, rng.choice([0, 3, 5], len(near)), kinds[kept])
    kinds_more = rng.choice([0, 3, 5], rng.poisson(clutter))
    found = np.concatenate([near, twice, _boxes(rng, kinds_more)])
    names = [*kinds_near, *rng.choice([0, 3, 5], len(twice)), *kinds_more]
    scores = np.concatenate([rng.beta(4, 2, len(near)), rng.beta(3, 3, len(twice)), rng.beta(1.5, 5, len(kinds_more))])
    found[:, :3] = np.abs(found[:, :3]) + 0.05
    image = _project(found)
    # Two decimals: many scores are equal, and their order in the file decides.
    results = [
        f"{_row(TYPES[kind], image[i], found[i], '-1 -1', digits=4)} {scores[i]:.2f}"
        for i, kind in enumerate(names)
        if image[i, 2] - image[i, 0] > 1 and TYPES[kind] in ("Car", "Pedestrian", "Cyclist", "Van")
    ]
    return truth, [results[i] for i in rng.permutation(len(results))]


def _boxes(rng: np.random.Generator, kinds: np.ndarray) -> np.ndarray:
    """Height, width, length, x, y, z of the bottom, rotation; camera 0."""
    number = len(kinds)
    depth = rng.gamma(2.2, 11, number) + 4
    place = np.stack([rng.uniform(-0.75, 0.75, number) * depth, rng.normal(1.7, 0.15, number), depth], axis=1)
    turn = rng.choice([-np.pi / 2, np.pi / 2, 0, 3], number) + rng.normal(0, 0.2, number)
    return np.column_stack([SIZES[kinds] * rng.normal(1, 0.08, (number, 3)), place, turn])


def _project(boxes: np.ndarray) -> np.ndarray:
    corners = (
        np.array([(a, u, b) for a in (-0.5, 0.5) for u in (0, -1) for b in (-0.5, 0.5)]) * boxes[:, None, [2, 0, 1]]
    )
    c, s = np.cos(boxes[:, None, 6]), np.sin(boxes[:, None, 6])
    x = corners[..., 0] * c + corners[..., 2] * s + boxes[:, None, 3]
    y = corners[..., 1] + boxes[:, None, 4]
    z = np.maximum(corners[..., 2] * c - corners[..., 0] * s + boxes[:, None, 5], 0.5)
    u, v, w = np.einsum("ij,jnk->ink", P2, np.stack([x, y, z, np.ones_like(x)]))
    pixels = np.stack([u / w, v / w], axis=-1)
    return (
        np.clip(np.concatenate([pixels.min(1), pixels.max(1)], axis=1), 0, [*IMAGE, *IMAGE])
        if len(boxes)
        else np.zeros((0, 4))
    )


def _row(kind: str, image: np.ndarray, box: np.ndarray, seen: str, digits: int = 2) -> str:
    alpha = box[6] - np.arctan2(box[3], box[5])
    return f"{kind} {seen} " + " ".join(f"{value:.{digits}f}" for value in (alpha, *image, *box))


def digest(folder: Path) -> str:
    """Return a hash of all files that :func:`write_scenes` wrote."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("training/label_2/*.txt")) + sorted(folder.glob("results/*.txt")):
        found.update(path.read_bytes())
    return found.hexdigest()


SCENES = {
    "middling": {"seed": 7, "count": 200},
    "crowded": {"seed": 8, "count": 30, "objects": 30, "clutter": 60},
    "sparse": {"seed": 9, "count": 40, "objects": 1.5, "clutter": 3},
}
"""Arguments of :func:`write_scenes` by name."""

REAL = Path(__file__).parents[2] / "shared" / "data" / "kitti"
"""Three frames of the benchmark, where they are."""


def write_noisy(labels: Path, results: Path, seed: int) -> None:
    """Write what a middling detector could find in the frames of a folder of labels: most objects, and some more."""
    results.mkdir()
    for path in sorted(labels.glob("*.txt")):
        rng = np.random.default_rng([seed, int(path.stem)])
        rows = [line.split() for line in path.read_text().splitlines()]
        found = [row for row in rows if row[0] in ("Car", "Pedestrian", "Cyclist", "Van", "Truck")] * 3
        lines = []
        for row in found:
            values = np.array(row[3:], float) + rng.normal(0, 0.02, 12) * [1, 50, 50, 50, 50, 1, 1, 1, 1, 1, 2, 1]
            lines.append(f"{row[0]} -1 -1 " + " ".join(f"{v:.3f}" for v in values) + f" {rng.random():.2f}\n")
        (results / path.name).write_text("".join(lines))

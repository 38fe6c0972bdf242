"""nuScenes' detection metric: mean average precision by centre distance, five true-positive errors, and their NDS.

What nuscenes-devkit 1.2.0 computes (`eval/detection/algo.py`, `evaluate.py`, `eval/common/utils.py`, with
`detection_cvpr_2019.json`), of the same numbers in the same order: also where that is peculiar, such as errors that are
read off at confidences, or errors of 1 for a class that reaches no more than a tenth of its truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numba
import numpy as np
import numpy.typing as npt

from spot_ray.schema.nuscenes import DETECTION_CLASSES

Float = npt.NDArray[np.float64]

DISTANCES_M = (0.5, 1.0, 2.0, 4.0)
"""A prediction matches truth whose centre is nearer than this over ground; the AP of a class is the mean over them."""
ERROR_DISTANCE_M = 2.0
"""The one of them whose matches the errors are of."""
RANGES_M = {
    "car": 50.0,
    "truck": 50.0,
    "bus": 50.0,
    "trailer": 50.0,
    "construction_vehicle": 50.0,
    "pedestrian": 40.0,
    "motorcycle": 40.0,
    "bicycle": 40.0,
    "traffic_cone": 30.0,
    "barrier": 30.0,
}
"""Boxes of a class count if their centre is nearer to the vehicle than this over ground."""
MIN_RECALL = 0.1
MIN_PRECISION = 0.1
MAX_BOXES_PER_SAMPLE = 500
MEAN_AP_WEIGHT = 5
"""How many of the errors the mAP outweighs in the NDS."""
ERRORS = ("ATE", "ASE", "AOE", "AVE", "AAE")
"""The true-positive errors: of the centre over ground (m), the size (1 − IoU of aligned boxes), the yaw (rad), the
velocity over ground (m/s) and the attribute (1 − accuracy)."""
UNDEFINED_ERRORS = {"traffic_cone": ("AOE", "AVE", "AAE"), "barrier": ("AVE", "AAE")}
"""Errors that a class has not: a cone looks the same from all sides, and neither moves."""
HALF_TURN_CLASSES = ("barrier",)
"""Classes whose front cannot be told from their back."""
RACK_CLASSES = ("bicycle", "motorcycle")
"""Classes of which boxes in bicycle racks count on neither side."""
ATTRIBUTES = (
    "pedestrian.moving",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "cycle.with_rider",
    "cycle.without_rider",
    "vehicle.moving",
    "vehicle.parked",
    "vehicle.stopped",
)

_RECALLS = np.linspace(0, 1, 101)
_FIRST = round(100 * MIN_RECALL) + 1
"""The first recall that counts."""


@dataclass(frozen=True, eq=False)
class NuscenesBoxes:
    """Boxes in the global frame, truth or predictions; the order of boxes decides ties.

    Args:
        sample: (M,) int32, 0 to S - 1: the sample of a box.
        label: (M,) int8 position in `DETECTION_CLASSES`.
        centre: (M, 3) float64 x, y, z in metres.
        size_wlh: (M, 3) float64 width, length, height in metres, positive.
        rotation: (M, 4) float64 quaternion w, x, y, z; its length does not matter.
        velocity: (M, 2) float64 x, y in m/s; NaN where unknown.
        attribute: (M,) int8 position in `ATTRIBUTES`; -1 for none.
        num_points: (M,) int32 LiDAR and radar points in the box; -1 where nobody counted.
    """

    sample: npt.NDArray[np.int32]
    label: npt.NDArray[np.int8]
    centre: Float
    size_wlh: Float
    rotation: Float
    velocity: Float
    attribute: npt.NDArray[np.int8]
    num_points: npt.NDArray[np.int32]

    def __len__(self) -> int:
        """Return the number of boxes."""
        return len(self.sample)

    def take(self, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> NuscenesBoxes:
        """Return the boxes of an index or a mask."""
        return NuscenesBoxes(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True, eq=False)
class BikeRacks:
    """Bicycle racks in the global frame, by sample.

    Args:
        first: (S + 1,) int64: the racks of sample s are rows `first[s]` to `first[s + 1]`.
        centre: (R, 3) float64 x, y, z in metres.
        size_wlh: (R, 3) float64 width, length, height in metres.
        rotation: (R, 4) float64 quaternion w, x, y, z.
    """

    first: npt.NDArray[np.int64]
    centre: Float
    size_wlh: Float
    rotation: Float

    @staticmethod
    def of(sample: npt.NDArray[np.integer], centre: Float, size_wlh: Float, rotation: Float, *, num: int) -> BikeRacks:
        """Return racks in any order of their samples.

        Args:
            sample: (R,) the sample of each.
            centre: (R, 3).
            size_wlh: (R, 3).
            rotation: (R, 4).
            num: How many samples there are.
        """
        order = np.argsort(sample, kind="stable")
        first = np.searchsorted(sample[order], np.arange(num + 1))
        return BikeRacks(first.astype(np.int64), centre[order], size_wlh[order], rotation[order])


@dataclass(frozen=True, eq=False)
class NuscenesMetrics:
    """What the metric is made of.

    Args:
        class_names: C classes, some of `DETECTION_CLASSES`.
        error_names: E errors, some of `ERRORS`.
        ap: (C, 4) float64 average precision by class and distance.
        errors: (C, E) float64; NaN where the class has not such an error.
    """

    class_names: tuple[str, ...]
    error_names: tuple[str, ...]
    ap: Float
    errors: Float

    @property
    def mean_ap(self) -> float:
        """The mAP."""
        return float(self.ap.mean(axis=1).mean())

    @property
    def mean_errors(self) -> dict[str, float]:
        """The mean of every error over the classes that have it; without those that no class has."""
        columns = zip(self.error_names, self.errors.T, strict=True)
        return {name: float(np.nanmean(column)) for name, column in columns if not np.isnan(column).all()}

    @property
    def detection_score(self) -> float:
        """The NDS: the mean of 1 − error, at least 0, over all errors, and of the mAP with the weight of five of them.

        nuScenes (Caesar et al., CVPR 2020), eq. 3. With fewer errors than the five, it is the mean of what there is.
        """
        scores = [max(0.0, 1.0 - error) for error in self.mean_errors.values()]
        return (MEAN_AP_WEIGHT * self.mean_ap + sum(scores)) / (MEAN_AP_WEIGHT + len(scores))


def evaluate(
    truth: NuscenesBoxes,
    predictions: NuscenesBoxes,
    scores: Float,
    *,
    num_samples: int,
    class_names: Sequence[str] = DETECTION_CLASSES,
    error_names: Sequence[str] = ERRORS,
) -> NuscenesMetrics:
    """Score boxes that :func:`counted` left.

    Args:
        truth: The ground truth.
        predictions: What was found.
        scores: (M,) float64 of each prediction, 0 or more; of equal ones the last counts first.
        num_samples: S, to which the boxes' `sample` refer.
        class_names: The classes to score; one without truth has AP 0 and errors 1.
        error_names: The errors to tell.
    """
    ap = np.zeros((len(class_names), len(DISTANCES_M)))
    errors = np.ones((len(class_names), len(error_names)))
    for c, name in enumerate(class_names):
        label = DETECTION_CLASSES.index(name)
        mine, theirs = np.flatnonzero(truth.label == label), np.flatnonzero(predictions.label == label)
        mine = mine[np.argsort(truth.sample[mine], kind="stable")]
        theirs = theirs[np.argsort(scores[theirs], kind="stable")[::-1]]
        matches = _match(
            predictions.sample[theirs],
            predictions.centre[theirs, :2],
            np.searchsorted(truth.sample[mine], np.arange(num_samples + 1)),
            truth.centre[mine, :2],
            np.array(DISTANCES_M),
        )
        ap[c] = [average_precision(matched >= 0, len(mine)) for matched in matches]
        matched = matches[DISTANCES_M.index(ERROR_DISTANCE_M)]
        true = np.flatnonzero(matched >= 0)
        pairs = truth.take(mine[matched[true]]), predictions.take(theirs[true])
        found = match_errors(*pairs, half_turn=name in HALF_TURN_CLASSES)
        for e, error in enumerate(error_names):
            if error in UNDEFINED_ERRORS.get(name, ()):
                errors[c, e] = np.nan
            else:
                errors[c, e] = mean_error(found[error], matched >= 0, scores[theirs], len(mine))
    return NuscenesMetrics(tuple(class_names), tuple(error_names), ap, errors)


def counted(boxes: NuscenesBoxes, ego_xy: Float, racks: BikeRacks) -> npt.NDArray[np.bool_]:
    """Return (M,) which boxes count: in range of their class, not known to be without points, and in no bicycle rack.

    Args:
        boxes: Truth or predictions.
        ego_xy: (S, 2) float64 where the vehicle is in every sample, metres, global.
        racks: The bicycle racks; they only concern `RACK_CLASSES`.
    """
    offset = boxes.centre[:, :2] - ego_xy[boxes.sample]
    ranges = np.array([RANGES_M[name] for name in DETECTION_CLASSES])
    result: npt.NDArray[np.bool_] = np.sqrt((offset**2).sum(axis=1)) < ranges[boxes.label]
    result &= boxes.num_points != 0
    cycles = np.isin(boxes.label, [DETECTION_CLASSES.index(name) for name in RACK_CLASSES])
    rows = np.flatnonzero(result & cycles)
    result[rows] = ~_in_racks(
        boxes.sample[rows], boxes.centre[rows], racks.first, racks.centre, racks.size_wlh, _rotations(racks.rotation)
    )
    return result


def average_precision(true: npt.NDArray[np.bool_], num_truth: int) -> float:
    """Return the average precision.

    Precision is read off at 101 recalls, linearly in between; those up to `MIN_RECALL` are left out, and what exceeds
    `MIN_PRECISION` is averaged and scaled to 1.

    Args:
        true: (P,) bool of the predictions by falling score: whether they match.
        num_truth: How many boxes there are to find.
    """
    if not num_truth or not true.any():
        return 0.0
    found = np.cumsum(true).astype(float)
    precision = np.interp(_RECALLS, found / num_truth, found / np.arange(1, len(true) + 1), right=0)
    return float(np.mean(np.maximum(precision[_FIRST:] - MIN_PRECISION, 0))) / (1.0 - MIN_PRECISION)


def mean_error(errors: Float, true: npt.NDArray[np.bool_], scores: Float, num_truth: int) -> float:
    """Return a true-positive error: the mean over recalls of the mean error of all that are as confident.

    The recalls are those above `MIN_RECALL` up to the highest that was reached; if there is none of them, it is 1. So
    it is if no error is known.

    Args:
        errors: (T,) float64 of the true positives by falling score; NaN where unknown.
        true: (P,) bool of all predictions by falling score: whether they match; T of them do.
        scores: (P,) float64 of all predictions.
        num_truth: How many boxes there are to find.
    """
    if not len(errors):
        return 1.0
    confidence = np.interp(_RECALLS, np.cumsum(true) / num_truth, scores, right=0)
    reached = np.flatnonzero(confidence)
    last = reached[-1] if len(reached) else 0
    if last < _FIRST:
        return 1.0
    # Interpolation wants growing abscissas, and confidence falls.
    at_recalls = np.interp(confidence[::-1], scores[true][::-1], _running_mean(errors)[::-1])[::-1]
    return float(np.mean(at_recalls[_FIRST : last + 1]))


def match_errors(truth: NuscenesBoxes, predictions: NuscenesBoxes, *, half_turn: bool) -> dict[str, Float]:
    """Return the (T,) float64 errors of matched pairs by their names, see `ERRORS`; NaN where truth does not tell.

    Args:
        truth: T boxes.
        predictions: T boxes.
        half_turn: Whether a turn by π makes no difference to the yaw.
    """
    volumes = [boxes.size_wlh.prod(axis=1) for boxes in (truth, predictions)]
    common = np.minimum(truth.size_wlh, predictions.size_wlh).prod(axis=1)
    period = np.pi if half_turn else 2 * np.pi
    turn = (yaws(truth.rotation) - yaws(predictions.rotation) + period / 2) % period - period / 2
    moved = predictions.centre[:, :2] - truth.centre[:, :2]
    faster = predictions.velocity - truth.velocity
    return {
        "ATE": np.sqrt((moved**2).sum(axis=1)),
        "ASE": 1 - common / (volumes[0] + volumes[1] - common),
        "AOE": np.abs(turn),
        "AVE": np.sqrt((faster**2).sum(axis=1)),
        "AAE": np.where(truth.attribute < 0, np.nan, truth.attribute != predictions.attribute),
    }


def yaws(rotation: Float) -> Float:
    """Return the (M,) heading of the x axis over ground, radians, of (M, 4) quaternions w, x, y, z."""
    w, x, y, z = rotation.T
    result: Float = np.arctan2(2 * (x * y + w * z), w * w + x * x - y * y - z * z)
    return result


def _running_mean(values: Float) -> Float:
    """Return the mean of the known values up to each; 0 before the first, and 1 throughout if none is known."""
    known = ~np.isnan(values)
    if not known.any():
        return np.ones(len(values))
    count = np.cumsum(known)
    result: Float = np.where(count > 0, np.nancumsum(values) / np.maximum(count, 1), 0.0)
    return result


def _rotations(quaternions: Float) -> Float:
    """Return the (R, 3, 3) rotations of (R, 4) quaternions w, x, y, z."""
    w, x, y, z = (quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.ascontiguousarray(np.array(rows, dtype=np.float64).transpose(2, 0, 1))


@numba.njit(cache=True, nogil=True)
def _match(
    sample: npt.NDArray[np.int32],
    centre: Float,
    first: npt.NDArray[np.int64],
    truth: Float,
    distances: Float,
) -> npt.NDArray[np.int64]:
    """Match predictions, one after the other, each to the nearest truth of its sample that none has taken yet.

    Args:
        sample: (P,) int32 of the predictions, by falling score.
        centre: (P, 2) float64 x, y.
        first: (S + 1,) int64: the truth of sample s is rows `first[s]` to `first[s + 1]`.
        truth: (G, 2) float64 x, y.
        distances: (D,) float64, each matched for itself; nearer than this is a match.

    Returns:
        (D, P) int64 row of the truth; -1 where there is none.
    """
    matches = np.full((len(distances), len(sample)), -1, np.int64)
    taken = np.zeros((len(distances), len(truth)), np.bool_)
    for p in range(len(sample)):
        for d in range(len(distances)):
            nearest, best = np.inf, -1
            for g in range(first[sample[p]], first[sample[p] + 1]):
                if not taken[d, g]:
                    dx, dy = centre[p, 0] - truth[g, 0], centre[p, 1] - truth[g, 1]
                    distance = np.sqrt(dx * dx + dy * dy)
                    if distance < nearest:
                        nearest, best = distance, g
            if nearest < distances[d]:
                taken[d, best] = True
                matches[d, p] = best
    return matches


@numba.njit(cache=True, nogil=True)
def _in_racks(
    sample: npt.NDArray[np.int32],
    centre: Float,
    first: npt.NDArray[np.int64],
    rack_centre: Float,
    rack_size_wlh: Float,
    global_R_rack: Float,
) -> npt.NDArray[np.bool_]:
    """Return (M,) whether a box's centre is in a rack of its sample, faces included."""
    result = np.zeros(len(sample), np.bool_)
    for m in range(len(sample)):
        for r in range(first[sample[m]], first[sample[m] + 1]):
            inside = True
            # Length lies along x, width along y.
            for axis, size in enumerate((1, 0, 2)):
                along = 0.0
                for i in range(3):
                    along += (centre[m, i] - rack_centre[r, i]) * global_R_rack[r, i, axis]
                inside = inside and abs(along) <= rack_size_wlh[r, size] / 2
            result[m] = result[m] or inside
    return result

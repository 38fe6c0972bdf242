"""Write `anchors.json`: what OpenPCDet's anchor head learns, loses and decodes in a small made-up scene.

    python make_anchors.py OPENPCDET_DIR

OPENPCDET_DIR is a checkout of OpenPCDet at 8caccce; nothing of it needs to be compiled. Its head runs on the CPU, with
the configuration of KITTI's SECOND but for anchors at the centres of cells and yaws of 0 and a right angle.
"""

from __future__ import annotations

import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

HERE = Path(__file__).parent
RANGE_M = (0, -4, -3, 10, 4, 1)
MAP_SHAPE = (20, 25)
PLACES = [(0, 0, 3, 4), (1, 3, 10, 20), (1, 5, 19, 24), (0, 2, 0, 0), (1, 1, 7, 13), (0, 4, 12, 2)]
PACKAGES = "pcdet pcdet.utils pcdet.models pcdet.models.dense_heads pcdet.models.dense_heads.target_assigner"
COMPILED = (
    "SharedArray pcdet.ops pcdet.ops.iou3d_nms pcdet.ops.iou3d_nms.iou3d_nms_utils pcdet.ops.roiaware_pool3d "
    "pcdet.ops.roiaware_pool3d.roiaware_pool3d_utils pcdet.models.dense_heads.target_assigner.atss_target_assigner"
)


class Section(dict[str, Any]):
    """A dictionary whose values are attributes too, as EasyDict's are."""

    __getattr__ = dict.__getitem__


def section(value: Any) -> Any:
    if isinstance(value, dict):
        return Section({key: section(item) for key, item in value.items()})
    return [section(item) for item in value] if isinstance(value, list) else value


def load_head(root: Path) -> Any:
    """Import the head without the package's own `__init__`, which needs compiled extensions."""
    for name in (*PACKAGES.split(), *COMPILED.split()):
        module = types.ModuleType(name)
        module.__path__ = [str(root / name.replace(".", "/"))]
        sys.modules[name] = module
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)
    sys.modules["pcdet.models.dense_heads.target_assigner.atss_target_assigner"].ATSSTargetAssigner = None  # type: ignore[attr-defined]
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    from pcdet.models.dense_heads.anchor_head_single import AnchorHeadSingle  # type: ignore[import-not-found]

    return AnchorHeadSingle


def wave(*shape: int, phase: float) -> torch.Tensor:
    """Return numbers that any version of torch makes alike."""
    return (0.8 * torch.sin(0.37 * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).float().view(shape)


def lines(values: dict[str, Any]) -> str:
    """Return JSON with a line for each row."""
    texts = []
    for key, value in values.items():
        is_table = isinstance(value, list) and isinstance(value[0], list | dict)
        text = "[\n    " + ",\n    ".join(json.dumps(row) for row in value) + "\n  ]" if is_table else json.dumps(value)
        texts.append(f'  "{key}": {text}')
    return "{\n" + ",\n".join(texts) + "\n}\n"


def main(root: Path) -> None:
    config = section(yaml.safe_load((root / "tools/cfgs/kitti_models/second.yaml").read_text()))
    dense = config.MODEL.DENSE_HEAD
    for anchor in dense.ANCHOR_GENERATOR_CONFIG:
        anchor["align_center"], anchor["anchor_rotations"] = True, [0, math.pi / 2]
    ny, nx = MAP_SHAPE
    grid_size = np.array([nx * 8, ny * 8, 40])
    head = load_head(root)(dense, 16, 3, config.CLASS_NAMES, grid_size, np.array(RANGE_M, float)).train()

    rng = np.random.default_rng(7)
    classes = rng.integers(0, 3, (2, 7))
    sizes = np.array([anchor.anchor_sizes[0] for anchor in dense.ANCHOR_GENERATOR_CONFIG])[classes]
    parts = (rng.uniform(RANGE_M[:3], RANGE_M[3:], (2, 7, 3)), sizes * rng.uniform(0.75, 1.3, (2, 7, 3)))
    boxes = np.concatenate((*parts, rng.uniform(-4, 4, (2, 7, 1))), axis=2)
    boxes[0, 1, :2], classes[0, 1] = boxes[0, 0, :2] + 0.3, classes[0, 0]  # two that anchors can choose between
    boxes = boxes.round(2)

    head.forward_ret_dict = {
        "cls_preds": 3 * wave(2, 18, ny, nx, phase=0.1).permute(0, 2, 3, 1).contiguous(),
        "box_preds": wave(2, 42, ny, nx, phase=1.0).permute(0, 2, 3, 1).contiguous(),
        "dir_cls_preds": wave(2, 12, ny, nx, phase=2.0).permute(0, 2, 3, 1).contiguous(),
    }
    predictions = tuple(head.forward_ret_dict.values())
    truth = torch.tensor(np.concatenate((boxes, classes[..., None] + 1), axis=2), dtype=torch.float32)
    head.forward_ret_dict.update(head.assign_targets(truth))
    labels = head.forward_ret_dict["box_cls_labels"].view(2, ny, nx, 6).permute(0, 3, 1, 2)
    residuals = head.forward_ret_dict["box_reg_targets"].view(2, ny, nx, 6, 7).permute(0, 3, 1, 2, 4)
    positives = (labels > 0).nonzero()
    class_loss, _ = head.get_cls_layer_loss()
    _, other_losses = head.get_box_reg_layer_loss()
    decoded = head.generate_predicted_boxes(2, *predictions)[1].view(2, ny, nx, 6, 7).permute(0, 3, 1, 2, 4)

    golden = {
        "source": "OpenPCDet 8caccce, by make_anchors.py",
        "range_m": RANGE_M,
        "map_shape": MAP_SHAPE,
        "boxes": boxes.reshape(-1, 7).tolist(),
        "classes": classes.reshape(-1).tolist(),
        "sample": [0] * 7 + [1] * 7,
        "positives": positives.tolist(),
        "ignored": (labels < 0).nonzero().tolist(),
        "residuals": [[round(v, 6) for v in row] for row in residuals[tuple(positives.T)].tolist()],
        "losses": [class_loss.item(), other_losses["rpn_loss_loc"], other_losses["rpn_loss_dir"]],
        "decoded_at": [list(place) for place in PLACES],
        "decoded": [[round(v, 6) for v in decoded[place].tolist()] for place in PLACES],
    }
    (HERE / "anchors.json").write_text(lines(golden))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

r"""Train a network of one's own in a plain PyTorch loop, fed by `spot_ray.stream`.

    spot-ray synthesize --out data/city --preset nuscenes --sequences 2 --frames 4
    spot-ray label --data data/city
    python jobs/plain_torch.py --data data/city --steps 12 --checkpoint runs/plain.pt

The second half of the steps begins as if the first had been killed: from the checkpoint. Of several workers, each names
its `rank` and the `world_size` to the stream; the state fits any number of them.
"""

import argparse
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

import spot_ray

CONFIG = spot_ray.DataConfig(features=("x", "y", "z", "intensity"), point_labels=True)


def train(data: str, checkpoint: Path, steps: int) -> None:
    """Take some steps, from the checkpoint if there is one, and write it anew."""
    with spot_ray.stream(data, CONFIG, seed=0, global_batch_size=2) as stream:
        classes = len(stream.taxonomy.class_names)
        model = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, classes))
        optimiser = torch.optim.Adam(model.parameters())
        parts = {"model": model, "optimiser": optimiser, "stream": stream}
        if checkpoint.exists():
            for name, state in torch.load(checkpoint).items():
                parts[name].load_state_dict(state)
        while steps:
            for batch in stream:  # what is left of the epoch
                detection = spot_ray.to_openpcdet(batch, stream.taxonomy)
                segmentation = spot_ray.to_pointcept(batch)
                logits = model(torch.from_numpy(segmentation["feat"]))
                loss = cross_entropy(logits, torch.from_numpy(segmentation["segment"]), ignore_index=-1)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                print(  # noqa: T201
                    f"epoch {stream.epoch}, step {stream.step}, {len(stream)} left: {' '.join(batch.frames)}:",
                    f"{len(detection['points'])} points, {(detection['gt_boxes'][..., 7] > 0).sum()} boxes,",
                    f"{len(batch.occupancy_index)} occupied voxels, loss {loss.item():.2f}",
                )
                steps -= 1
                if not steps:
                    break
        torch.save({name: part.state_dict() for name, part in parts.items()}, checkpoint)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="URI", help="the labelled dataset")
    parser.add_argument("--steps", type=int, default=12, help="training steps (default 12)")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="where it is written")
    options = parser.parse_args()
    for half in (options.steps // 2, options.steps - options.steps // 2):
        train(options.data, options.checkpoint, half)

r"""Fine-tune a detector on the cluster that this job was submitted to, and score it.

    ray job submit --working-dir . -- \
        python jobs/finetune.py nuscenes-centerpoint --data s3://logs/nuscenes --subset 5-percent.json \
        --init s3://runs/waymo --out s3://runs/nuscenes-5 --workers 8 --auto-resume

The arguments are those of `spot-ray finetune`. With `--auto-resume` the same job, submitted again, goes on where the
run stopped.
"""

import sys

from spot_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))

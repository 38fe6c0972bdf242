r"""Pre-train on the cluster that this job was submitted to.

    ray job submit --working-dir . -- \
        python jobs/pretrain.py spot-waymo --data s3://logs/waymo --out s3://runs/first --workers 4:8 --auto-resume

The arguments are those of `spot-ray pretrain`. With `--auto-resume` the same job, submitted again, goes on where the
run stopped.
"""

import sys

from spot_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))

r"""Pre-train on the cluster that this job was submitted to.

    ray job submit --working-dir . -- \
        python jobs/pretrain.py spot-waymo --data s3://logs/waymo --out s3://runs/first --workers 8

The arguments are those of `spot-ray pretrain`. A job that is submitted again with `--resume` goes on where the run
stopped.
"""

import sys

from spot_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))

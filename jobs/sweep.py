"""The command `scale-ray sweep` as a Ray job: the same options; paths must be absolute or URIs.

ray job submit --working-dir . -- python jobs/sweep.py ARGUMENTS
"""

import sys

from scale_ray.cli.main import main

if __name__ == "__main__":
    main(["sweep", *sys.argv[1:]], job=True)

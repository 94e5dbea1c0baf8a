"""The command `scale-ray probe` as a Ray job: the same options; paths must be absolute or URIs.

ray job submit --working-dir . -- python jobs/probe.py ARGUMENTS
"""

import sys

from scale_ray.cli.main import main

if __name__ == "__main__":
    main(["probe", *sys.argv[1:]], job=True)

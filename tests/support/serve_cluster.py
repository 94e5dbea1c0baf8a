"""A simulated cluster in a process of its own, with its own environment: `python serve_cluster.py NODES`.

Prints the addresses as one line of JSON, and ends when its standard input does.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.cluster import SimulatedCluster


def main() -> None:
    cluster = SimulatedCluster(int(sys.argv[1]))
    try:
        print(json.dumps({"jobs": cluster.jobs, "address": cluster.address}), flush=True)
        sys.stdin.read()
    finally:
        cluster.close()


main()

"""Anyone who can write to a store can write claims into its folder of leases: what they say is not trusted."""

import json
import os
import time

from scale_ray.store import write_lease


def test_a_claim_does_not_choose_which_file_is_removed(tmp_path):
    """An old claim is removed under its own file's name, and not under the name that it gives itself."""
    (tmp_path / "store.json").write_text("{}")
    folder = tmp_path / "leases"
    folder.mkdir()
    claim = {"token": "../store", "host": "elsewhere", "process": 1, "process_began_s": 1.0, "since": "long ago"}
    path = folder / "old.json"
    path.write_text(json.dumps(claim))
    long_ago = time.time() - 3600
    os.utime(path, (long_ago, long_ago))
    with write_lease(str(tmp_path)):
        assert (tmp_path / "store.json").exists()
        assert not path.exists()

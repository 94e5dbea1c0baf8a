"""How long and how much memory until the first video of a very large corpus is decoded?

Three sources: a manifest of local files without sizes, their folder itself, and a manifest of objects in a bucket of a
server on this host (moto), without and with sizes. Each is read and planned in a process of its own. The memory is the
growth of the process's peak by the end, per video. With `--extract`, the manifest is also given to `extract`, with the
same small video behind every row, until the first shard is written.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import folder_of, make_video, parser, report

FILES_PER_FOLDER = 1000
BUCKET = "s3://listed"


def read_and_plan(source: str, store: str) -> dict[str, Any]:
    """Read a corpus and plan its extraction into a new store: seconds, and bytes per video at the peak."""
    from scale_ray.config import Extraction
    from scale_ray.corpus import read_corpus
    from scale_ray.extraction import ExtractionRun, Target
    from scale_ray.store import FeatureStore, write_lease

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began_s, began_core_s = time.perf_counter(), time.process_time()
    corpus = read_corpus(source)
    read_s, read_core_s = time.perf_counter() - began_s, time.process_time() - began_core_s
    after_reading = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    features = FeatureStore.create(store, {"backbone": "none", "weights": "none"})
    with write_lease(store) as lease:
        run = ExtractionRun(corpus, [Target(None, features, lease)], Extraction())  # type: ignore[arg-type]
    number = len(corpus.videos)
    assert run.num_pending == number
    return {
        "videos": number,
        "sizes known": number - corpus.videos["size_bytes"].null_count,
        "seconds until the corpus is read": round(read_s, 1),
        "core-seconds of that": round(read_core_s, 1),
        "seconds until the extraction is planned": round(time.perf_counter() - began_s, 1),
        "core-seconds of all that": round(time.process_time() - began_core_s, 1),
        "bytes per video when it is read": round(1024 * (after_reading - before) / number),
        "bytes per video when it is planned": round(
            1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / number
        ),
    }


def in_own_process(source: str, store: Path) -> dict[str, Any]:
    shutil.rmtree(store, ignore_errors=True)
    command = [sys.executable, __file__, "--source", source, "--store", str(store)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def make_files(folder: Path, number: int) -> tuple[Path, Path]:
    """A folder of empty files, and a manifest of them."""
    manifest = folder / f"local-{number}.csv"
    videos = folder / f"local-{number}"
    if not manifest.exists():
        names = [f"class_{n // FILES_PER_FOLDER:04d}/video_{n:07d}.mp4" for n in range(number)]
        for first in names[::FILES_PER_FOLDER]:
            (videos / first).parent.mkdir(parents=True, exist_ok=True)
        for name in names:
            os.close(os.open(videos / name, os.O_CREAT | os.O_WRONLY))
        rows = (f"{videos.name}/{name},{name.partition('/')[0]}\n" for name in names)
        manifest.write_text("path,label\n" + "".join(rows))
    return videos, manifest


@contextmanager
def bucket(folder: Path, number: int) -> Iterator[tuple[Path, Path]]:
    """Manifests of objects in ten folders of a bucket, without and with sizes."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ.update(
        AWS_ACCESS_KEY_ID="key",
        AWS_SECRET_ACCESS_KEY="secret",
        AWS_ENDPOINT_URL=f"http://{host}:{port}",
        AWS_DEFAULT_REGION="us-east-1",
        AWS_EC2_METADATA_DISABLED="true",
    )
    # Put into the server's memory: uploads would take longer than everything that is measured.
    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    backend.create_bucket("listed", "us-east-1")
    names = [f"class_{n % 10}/video_{n:06d}.mp4" for n in range(number)]
    for name in names:
        backend.put_object("listed", f"videos/{name}", b"video")
    without, given = folder / "bucket.csv", folder / "bucket-sizes.csv"
    without.write_text("path\n" + "".join(f"{BUCKET}/videos/{name}\n" for name in names))
    given.write_text("path,size_bytes\n" + "".join(f"{BUCKET}/videos/{name},5\n" for name in names))
    try:
        yield without, given
    finally:
        server.stop()


def seconds_to_first_shard(folder: Path, number: int) -> float:
    """Seconds until `extract` has written the features of the first shard of a manifest."""
    video = make_video(folder / "10s-250.mp4", duration_s=10, key_every=250, width=160, height=120)
    manifest, store = folder / f"one-{number}.csv", folder / "store-first"
    manifest.write_text("video_id,path\n" + "".join(f"{n},{video.name}\n" for n in range(number)))
    shutil.rmtree(store, ignore_errors=True)
    options = ["--backbone", "shufflenet_v2_x0_5", "--weights", "none", "--input-px", "32", "--mode", "train", "-q"]
    began_s = time.perf_counter()
    command = [sys.executable, "-m", "scale_ray", "extract", str(manifest), "--store", str(store), *options]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        while not list(store.glob("features/*.parquet")):
            assert process.poll() is None, "extract ended by itself"
            time.sleep(0.2)
        return round(time.perf_counter() - began_s, 1)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--files", type=int, default=1_000_000, help="number of local files")
    arguments.add_argument("--objects", type=int, default=20_000, help="number of objects in the bucket")
    arguments.add_argument("--extract", action="store_true", help="also start an extraction of as many rows")
    arguments.add_argument("--source", help="only read and plan this source, and print the figures")
    arguments.add_argument("--store", help="the store for --source")
    given = arguments.parse_args()
    if given.source:
        print(json.dumps(read_and_plan(given.source, given.store)))
        return
    figures: dict[str, Any] = {}
    with folder_of(given) as folder:
        videos, manifest = make_files(folder, given.files)
        figures["local manifest"] = in_own_process(str(manifest), folder / "store-listing")
        figures["local folder"] = in_own_process(str(videos), folder / "store-listing")
        with bucket(folder, given.objects) as (without, with_sizes):
            figures["bucket, no sizes given"] = in_own_process(str(without), folder / "store-listing")
            figures["bucket, sizes given"] = in_own_process(str(with_sizes), folder / "store-listing")
        if given.extract:
            figures["seconds until extract has written a shard"] = seconds_to_first_shard(folder, given.files)
    report("listing", given, figures)


if __name__ == "__main__":
    main()

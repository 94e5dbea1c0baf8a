"""The five steps on sample videos, in about two minutes: python examples/quickstart.py [FOLDER]."""

import sys
from pathlib import Path

import scale_ray as sr


def main(folder: Path) -> None:
    store, runs, out = folder / "features", folder / "runs", folder / "vectors"

    # Small labelled videos. Replace them with a folder of your own: one subfolder per class.
    videos = sr.sample_videos(folder / "videos", videos_per_class=8)

    # 1. Features: a frozen backbone sees 16 clips of each training video and 15 of each test video.
    #    weights="none" are random ones; leave it out to download the published weights.
    extracted = sr.extract(videos, store, backbone="shufflenet_v2_x0_5", weights="none", input_px=64)
    print(extracted)

    # 2. The aggregator learns from the stored features, without labels.
    run = sr.pretrain(store, run="quickstart", runs=runs, mask_ratio=0.25, epochs=20, batch=16)
    print(run)

    # 3. What its representation is worth, beside the baselines.
    table = sr.probe(store, run, runs=runs, probes=("knn", "retrieval"))
    print(table)

    # 4. One vector per video.
    vectors = sr.embed(None, run, out, store=store, runs=runs).to_pandas()
    print(vectors[["video_id", "label", "split"]].head())

    # 5. The videos nearest to one of them.
    print(sr.neighbours(vectors["video_id"][0], store, run, runs=runs, count=5))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "quickstart"))

"""Videos and a store in an S3 bucket, served on this host; the credentials are only in the environment."""

import dataclasses
import io
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from moto.server import ThreadedMotoServer
from pyarrow import fs
from support.command import BACKBONE, Command
from support.stores import FINGERPRINT, corpus_of, features_of, read_clips

from scale_ray.aggregator.model import Aggregator
from scale_ray.backbones import load_backbone
from scale_ray.config import BackboneOptions, Part, Sampling
from scale_ray.corpus.sample_videos import make_samples
from scale_ray.decoding.decode import decode_clips, pixel_shape
from scale_ray.decoding.decoder_process import Decoder, Request, SharedPixels
from scale_ray.errors import RunFailed, UserError, VideoError
from scale_ray.files import locations
from scale_ray.files.locations import atomic_write, exists, list_files, open_input, read_bytes
from scale_ray.store import lease
from scale_ray.store.feature_store import FeatureStore
from scale_ray.store.maintenance import compact, repair, verify

KEY, SECRET = "AKIANOBODYSKEY", "nobodys+very/secret+value"
VIDEOS = "s3://bucket/videos"
SAMPLING = Sampling(clips=3, frames=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The content of the bucket: five videos and a file that is cut short."""
    folder = tmp_path_factory.mktemp("local") / "videos"
    for _ in make_samples(folder, 1):
        pass
    for name in ("empty.mp4", "notes.txt"):
        (folder / "approach" / name).unlink()
    (folder / "a name with + and ä.mp4").write_bytes((folder / "recede" / "recede_000.mp4").read_bytes())
    return folder


@pytest.fixture(scope="module", autouse=True)
def bucket(folder):
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_REGION", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ACCESS_KEY_ID", KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        locations._pyarrow_filesystem.cache_clear()
        # pyarrow takes the endpoint from the environment only for URIs, not for `S3FileSystem()`.
        filesystem, _ = fs.FileSystem.from_uri("s3://bucket/?allow_bucket_creation=true")
        filesystem.create_dir("bucket")
        fs.copy_files(str(folder), "bucket/videos", destination_filesystem=filesystem)
        yield
    locations._pyarrow_filesystem.cache_clear()
    server.stop()


def names(location: str) -> list[str]:
    return [info.path for info in list_files(location)]


def test_files_are_listed_read_and_written(folder):
    assert names(VIDEOS) == sorted(f"bucket/videos/{path.relative_to(folder)}" for path in folder.rglob("*.*"))
    assert names("s3://bucket/nowhere") == []
    assert exists(f"{VIDEOS}/recede")
    assert not exists(f"{VIDEOS}/rece")
    assert not exists(f"{VIDEOS}/recede/none.mp4")
    with atomic_write("s3://bucket/a/b/c.txt") as file:
        file.write(b"hello")
        assert not exists("s3://bucket/a/b/c.txt")
    assert read_bytes("s3://bucket/a/b/c.txt") == b"hello"
    with pytest.raises(FileNotFoundError):
        read_bytes("s3://bucket/a/b/none.txt")


def die_writing(location: str, content: bytes) -> None:
    with atomic_write(location) as file:
        file.write(content)
        raise OSError("died")


@pytest.mark.parametrize("size", [4, 12 * 2**20])
def test_a_write_that_dies_leaves_what_was_there(size):
    location = f"s3://bucket/dies-{size}.txt"
    with pytest.raises(OSError, match="died"):
        die_writing(location, b"half" * (size // 4))
    assert not exists(location)
    with atomic_write(location) as file:
        file.write(b"before")
    with pytest.raises(OSError, match="died"):
        die_writing(location, b"half" * (size // 4))
    assert read_bytes(location) == b"before"


@pytest.mark.parametrize("small_bytes", [0, 2**30])
def test_a_video_is_read_at_any_place(folder, monkeypatch, small_bytes):
    monkeypatch.setattr(locations, "_SMALL_BYTES", small_bytes)
    path = folder / "recede" / "recede_000.mp4"
    content = path.read_bytes()
    with open_input(f"{VIDEOS}/recede/recede_000.mp4") as file:
        for offset in (len(content) - 10, 0, len(content) // 2, 3):
            assert file.seek(offset) == offset
            assert file.read(7) == content[offset : offset + 7]
        assert file.seek(0, io.SEEK_END) == len(content)
        assert file.read(5) == b""
    remote, local = (
        decode_clips(source, "id", "train", SAMPLING, [32])
        for source in (lambda: open_input(f"{VIDEOS}/recede/recede_000.mp4"), str(path))
    )
    np.testing.assert_array_equal(remote.pixels[0], local.pixels[0])
    np.testing.assert_array_equal(remote.positions, local.positions)


def test_the_decoder_reads_from_the_bucket(folder):
    pixels = SharedPixels(int(np.prod(pixel_shape("train", SAMPLING, 32))))
    with Decoder(timeout_s=60, memory_gib=8) as decoder:
        for name in ("approach/approach_000.mp4", "a name with + and ä.mp4"):
            uri = locations.join(VIDEOS, *name.split("/"))
            decoded = decoder.decode(Request(uri, "id", "train", SAMPLING, (32,), (0,)), pixels)
            expected = decode_clips(str(folder / name), "id", "train", SAMPLING, [32])
            np.testing.assert_array_equal(decoded.positions, expected.positions)
            assert bytes(pixels.memory) == expected.pixels[0].tobytes()
        for name, reason in (
            ("none.mp4", "not a readable video"),
            ("approach/cut_short.mp4", "not a readable video|cut short"),
        ):
            with pytest.raises(VideoError, match=reason) as caught:
                decoder.decode(Request(f"{VIDEOS}/{name}", "id", "train", SAMPLING, (32,), (0,)), pixels)
            assert not {KEY, SECRET} & set(caught.value.reason.split())


def test_a_store_in_the_bucket(rng):
    location = "s3://bucket/stores/one"
    assert not FeatureStore.is_store(location)
    store = FeatureStore.create(location, FINGERPRINT)
    video_features = {video.video_id: video for video in features_of(rng, *"abcde")}
    for ids in ("ab", "cd", "de"):
        store.commit(store.part_name("train", ids), "train", [video_features[video_id] for video_id in ids])
    store.replace_videos(corpus_of(**dict.fromkeys("abcde", "x")))
    again = FeatureStore.create(location, FINGERPRINT)
    assert again.stored_ids("train") == set("abcde")
    assert len(verify(again)) == 1, "expected one fault: a video in two shards"
    repair(again)
    assert verify(again) == []
    before, after = compact(again)
    assert (before, after) == (3, 1)
    clips = read_clips(again, "train")
    assert clips.video_ids == list("abcde")
    for row, video_id in enumerate(clips.video_ids):
        np.testing.assert_array_equal(clips.features[row], video_features[video_id].features)
    assert verify(again) == []
    assert again.labels() == dict.fromkeys("abcde", "x")
    assert again.size_bytes() == sum(info.size for info in list_files(location)) > 1000
    with pytest.raises(UserError, match="found other files"):
        FeatureStore.create(VIDEOS, FINGERPRINT)


def claims(store: str) -> list[str]:
    return [info.base_name for info in list_files(f"{store}/leases")]


def test_one_writer_a_store(monkeypatch):
    store = "s3://bucket/stores/leased"
    monkeypatch.setattr(lease, "_PATIENCE_S", 0.5)
    with lease.write_lease(store) as first:
        with pytest.raises(UserError, match="found process"), lease.write_lease(store):
            pytest.fail("two writers at once")
        first.check()
        assert len(claims(store)) == 1
        filesystem, path = locations.filesystem_of(f"{store}/leases/{claims(store)[0]}")
        filesystem.delete_file(path)
        with pytest.raises(RunFailed, match="removed by another writer"):
            first.check()
    assert claims(store) == []


def test_writers_of_two_parts_take_turns(monkeypatch):
    store = "s3://bucket/stores/parts"
    monkeypatch.setattr(lease, "_PATIENCE_S", 0.5)
    with lease.write_lease(store, part=Part(1, 2)) as first, lease.write_lease(store, part=Part(2, 2)) as second:
        with ThreadPoolExecutor(1) as thread:
            with first.exclusively():
                turn = second.exclusively()
                waits = thread.submit(turn.__enter__)
                time.sleep(1)
                assert not waits.done()
                first.check()
            waits.result(timeout=30)
        second.check()
        assert len([name for name in claims(store) if name.endswith(".json")]) == 3, "two writers and a turn"
        turn.__exit__(None, None, None)
        with pytest.raises(UserError, match=r"of part [12]/2"), lease.write_lease(store):
            pytest.fail("a writer of the whole store beside those of its parts")


@pytest.mark.slow
def test_a_silent_writer_loses_the_bucket_and_a_living_one_does_not(monkeypatch):
    """The server stamps claims in whole seconds."""
    store = "s3://bucket/stores/silent"
    monkeypatch.setattr(lease, "_PATIENCE_S", 0.2)
    monkeypatch.setattr(lease, "SILENCE_S", 2.0)
    dead = dataclasses.replace(lease.Claim.mine(), token="0", host="elsewhere")
    lease._write(f"{store}/leases", dead)
    with pytest.raises(UserError, match="on elsewhere"), lease.write_lease(store):
        pytest.fail("two writers at once")
    time.sleep(3.1)
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.5)
    with lease.write_lease(store) as mine:
        assert "0.json" not in claims(store)
        time.sleep(3.1)  # it rewrites its claim, so that it does not count as dead
        with pytest.raises(UserError, match="found process"), lease.write_lease(store):
            pytest.fail("two writers at once")
        mine.check()


@pytest.mark.ray
def test_the_command_reads_and_writes_the_bucket(folder, scale_ray: Command):
    arguments = ("extract", VIDEOS, "--store", "s3://bucket/store", *BACKBONE[:-1], "32")
    ended = scale_ray(*arguments)
    assert ended.code == 3, "some videos failed"
    assert "5 done + 1 failed + 0 skipped = 6 videos" in ended.out + ended.err
    store = FeatureStore("s3://bucket/store")
    assert verify(store) == []
    assert claims("s3://bucket/store") == []
    sampling = Sampling()
    options = BackboneOptions(backbone="shufflenet_v2_x0_5", weights="none", input_px=32)
    encoder = load_backbone(options, sampling.frames)
    num_compared = 0
    for mode in ("train", "eval"):
        clips = read_clips(store, mode)
        for row, video_id in enumerate(clips.video_ids):
            local = decode_clips(str(folder / video_id), video_id, mode, sampling, [32])
            expected = encoder(torch.from_numpy(local.pixels[0])).to(torch.float16).numpy()
            np.testing.assert_array_equal(clips.positions[row], local.positions)
            units = np.spacing(np.abs(expected)).astype(np.float32)
            assert (np.abs(clips.features[row].astype(np.float32) - expected) <= 2 * units).all()
            num_compared += 1
    assert num_compared == 5
    again = scale_ray(*arguments)
    assert again.code == 3, again.err
    assert "everything was done already" in again.out + again.err
    outputs = [ended.out, ended.err, again.out, again.err]
    stored = [read_bytes(f"s3://{path}") for path in names("s3://bucket/store")]
    assert len(stored) > 3
    for secret in (KEY, SECRET):
        assert not any(secret in text for text in outputs)
        assert not any(secret.encode() in content for content in stored)


@pytest.mark.ray
def test_a_run_trains_from_the_bucket_and_keeps_its_checkpoints_there(scale_ray: Command, tmp_path, monkeypatch):
    location = "s3://bucket/stores/trained"
    store = FeatureStore.create(location, FINGERPRINT)
    rng = np.random.default_rng(0)
    store.commit(store.part_name("train", list("abcdef")), "train", features_of(rng, *"abcdef"))
    store.replace_videos(corpus_of(**dict.fromkeys("abcdef", "x")))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    small = ("--prediction-hidden", 16, "--target-hidden", 16, "--width", 32, "--layers", 1, "--workers", 1)
    arguments = ("pretrain", "--store", location, "--runs", "s3://bucket/runs", "--run", "first", "--epochs", 3, *small)
    ended = scale_ray(*arguments)
    assert ended.code == 0, ended.err
    kept = names("s3://bucket/runs/first")
    assert any(name.endswith("/state.pt") for name in kept)
    assert Aggregator.load("s3://bucket/runs/first/aggregator").origin == FINGERPRINT
    # Without its aggregator the run is unfinished: it resumes from the last checkpoint and writes the aggregator again.
    filesystem, path = locations.filesystem_of("s3://bucket/runs/first/aggregator")
    before = read_bytes("s3://bucket/runs/first/aggregator/model.safetensors")
    filesystem.delete_dir(path)
    again = scale_ray(*arguments)
    assert again.code == 0, again.err
    assert read_bytes("s3://bucket/runs/first/aggregator/model.safetensors") == before
    outputs = [ended.out, ended.err, again.out, again.err]
    stored = [read_bytes(f"s3://{name}") for name in kept]
    for secret in (KEY, SECRET):
        assert not any(secret in text for text in outputs)
        assert not any(secret.encode() in content for content in stored)

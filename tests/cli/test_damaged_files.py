"""Every small file that this package writes, damaged in many ways: each command that reads it says so in one line."""

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from support.command import BACKBONE
from support.stores import corpus_of, make_store

from scale_ray.aggregator import Aggregator
from scale_ray.cli.main import main
from scale_ray.config import AggregatorOptions, BackboneOptions, PretrainConfig, Representing, Sampling
from scale_ray.console import Console
from scale_ray.embedding import VectorStore, VideoModel, fingerprint_of_vectors
from scale_ray.errors import UserError
from scale_ray.extraction import open_targets
from scale_ray.store import Failure, FeatureStore, fingerprint_of
from scale_ray.tracking import RunFolder

pytestmark = pytest.mark.slow  # many commands

TINY = fingerprint_of({"backbone": "tiny", "weights": "none"}, Sampling())
IDS = [f"v{number}" for number in range(12)]


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> Path:
    """A folder with a store, a finished run, an unfinished one and vectors."""
    folder = tmp_path_factory.mktemp("intact")
    rng = np.random.default_rng(0)
    sides = ["train"] * 8 + ["test"] * 4
    features = {video_id: rng.normal(size=(16, 5)) for video_id in IDS}
    store = make_store(folder / "store", features, sides=sides, label=[*"abababababab"])
    store.add_failures([Failure("lost", "train", "/videos/lost", "open", "damaged", "", 1)])
    aggregator = Aggregator(5, AggregatorOptions(width=32), store.origin)
    finished = RunFolder(str(folder / "runs"), "finished")
    config = {**PretrainConfig().to_dict(), "store": {"location": store.location}}
    finished.write_config(config)
    finished.remember_mlflow_run("0" * 32)
    finished.write_history([{"epoch": 1.0, "loss": 2.0}, {"epoch": 2.0, "loss": 1.0}])
    aggregator.save(finished.aggregator)
    RunFolder(str(folder / "runs"), "unfinished").write_config(config)
    RunFolder(str(folder / "runs"), "sweep").write_config(config)
    VectorStore.create(str(folder / "vectors"), fingerprint_of_vectors(aggregator, Representing(), per_clip=False))
    return folder


@pytest.fixture
def place(intact, tmp_path, monkeypatch) -> Path:
    """A copy of the folder, whose files refer to each other by relative paths or by its own location."""
    copy = tmp_path / "copy"
    shutil.copytree(intact, copy)
    for config in copy.glob("runs/*/config.yaml"):
        config.write_text(config.read_text().replace(str(intact), str(copy)))
    monkeypatch.chdir(copy)
    return copy


PRETRAIN = ("pretrain", "--store", "store", "--run", "unfinished")
FINISHED = ("pretrain", "--store", "store", "--run", "finished", "--json")
SWEEP = ("sweep", "--store", "store", "--folds", "2")
PROBE = ("probe", "--store", "store", "--checkpoint", "finished", "--probes", "knn", "--resamples", "10")
EMBED = ("embed", "--store", "store", "--checkpoint", "finished", "--out", "vectors")
NEIGHBOURS = ("neighbours", "v1", "--store", "store", "--checkpoint", "finished")
EXPORT = ("export", "--checkpoint", "finished", "--out", "exported")
VERIFY = ("store", "store", "--verify")
RUN = "runs/finished"

READERS = {
    "store/store.json": [PRETRAIN, SWEEP, PROBE, EMBED, NEIGHBOURS, VERIFY],
    "store/videos.parquet": [PRETRAIN, SWEEP, PROBE, EMBED, NEIGHBOURS, VERIFY],
    "store/failures/part-*.parquet": [VERIFY],
    "runs/unfinished/config.yaml": [PRETRAIN],
    "runs/sweep/config.yaml": [SWEEP],
    f"{RUN}/mlflow.json": [FINISHED],
    f"{RUN}/history.parquet": [FINISHED, PROBE],
    f"{RUN}/aggregator/config.json": [PROBE, EMBED, NEIGHBOURS, EXPORT],
    f"{RUN}/aggregator/model.safetensors": [PROBE, EMBED, NEIGHBOURS, EXPORT],
    "vectors/vectors.json": [EMBED],
}


def damages(content: bytes, suffix: str) -> Iterator[tuple[str, bytes]]:
    yield "cut in half", content[: len(content) // 2]
    yield "emptied", b""
    yield "a list", b"[1, 2]\n"
    yield "a number", b"17\n"
    yield "deep", b"[" * 100_000
    yield "random bytes", np.random.default_rng(1).bytes(max(len(content), 64))
    yield "another encoding", content.decode("latin-1").encode("cp037", "replace")
    if suffix == ".parquet":
        yield "another table", _parquet(pa.table({"x": [1]}))


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def refusal(capsys, *arguments: object) -> str:
    """The one line that a command says before it ends with exit code 2; nothing else looks like an error."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert ended.value.code == 2, printed
    assert printed.err.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in printed.err
    return printed.err.splitlines()[-1]


CASES = [(name, arguments) for name, readers in READERS.items() for arguments in readers]


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=[f"{arguments[0]} {name}" for name, arguments in CASES])
def test_a_damaged_file_is_one_line_and_exit_code_2(capsys, place, name, arguments):
    [path] = place.glob(name)
    whole = path.read_bytes()
    # Half of a YAML file may be valid: it is then another configuration, and refused as that.
    for damage, content in damages(whole, path.suffix):
        path.write_bytes(content)
        line = refusal(capsys, *arguments)
        assert "expected" in line, damage
        assert path.name in line or path.parent.name in line or "earlier run" in line, damage


@pytest.mark.parametrize("name", ["store.json", "videos.parquet", "failures/part-*.parquet"])
def test_an_extraction_into_a_damaged_store_is_refused(capsys, tmp_path, videos, name):
    options = BackboneOptions(backbone="shufflenet_v2_x0_5", weights="none", input_px=64)
    location = tmp_path / "store"
    with open_targets(str(location), options, Sampling(), Console()) as [target]:
        target.store.replace_videos(corpus_of(a="x"))
        target.store.add_failures([Failure("lost", "train", "/videos/lost", "open", "damaged", "", 1)])
    [path] = location.glob(name)
    path.write_bytes(path.read_bytes()[:40])
    assert "expected" in refusal(capsys, "extract", videos, "--store", location, *BACKBONE)


def wrong(values: dict) -> Iterator[dict]:
    """Copies of a mapping in which one value, at any depth, has another type."""
    for key, value in values.items():
        for other in (None, [1], "text", True, {"x": 1}, -1.5):
            if type(other) is not type(value):
                yield {**values, key: other}
        if isinstance(value, dict):
            for inner in wrong(value):
                yield {**values, key: inner}
        yield {name: value for name, value in values.items() if name != key}


def used_or_refused(use) -> bool:
    """Whether a reader refused a file in one line; any other exception is one that nobody expected."""
    try:
        use()
    except UserError as error:
        return len(str(error).splitlines()) == 1
    return False


def test_values_of_wrong_types_are_refused_or_not_needed(place):
    """Each is read and used as the commands do; what passes is a value that nothing reads, or one that is valid."""
    run = RunFolder(str(place / "runs"), "finished")
    aggregator = Aggregator.load(run.aggregator)

    def use_store(location: Path) -> None:
        from scale_ray.pretraining import check_compatible
        from scale_ray.stages.store import StoreResult

        store = FeatureStore(str(location))
        check_compatible(store, aggregator)
        StoreResult(str(location), 0, 0, 0, store.fingerprint, 5, {}, {}, {}, []).lines()

    def use_aggregator(folder: str) -> None:
        from scale_ray.embedding import sampling_of
        from scale_ray.pretraining import provenance_notes

        loaded = Aggregator.load(folder)
        provenance_notes(loaded.trained_on, FeatureStore(str(place / "store")), "default")
        sampling_of(loaded.origin)
        VideoModel.from_aggregator(loaded)

    readers = {
        place / "store/store.json": functools.partial(use_store, place / "store"),
        place / "vectors/vectors.json": lambda: VectorStore(str(place / "vectors")),
        place / RUN / "mlflow.json": run.mlflow_run,
        place / RUN / "aggregator/config.json": lambda: use_aggregator(run.aggregator),
    }
    for path, use in readers.items():
        whole = json.loads(path.read_text())
        refused = []
        for values in wrong(whole):
            path.write_text(json.dumps(values))
            refused.append(used_or_refused(use))
        path.write_text(json.dumps(whole))
        assert any(refused), path
    config = place / RUN / "config.yaml"
    whole = yaml.safe_load(config.read_text())
    for values in wrong(whole):
        config.write_text(yaml.safe_dump(values))
        used_or_refused(lambda: run.check_config(whole))


@pytest.mark.parametrize(
    "values",
    [
        {"format": [3]},
        {"format": None},
        {"format": "3"},
        {"format": True},
        {"fingerprint": None},
        {"fingerprint": {}},
        {"fingerprint": {"backbone": 3, "weights": "none"}},
        {"made_with": []},
    ],
    ids=str,
)
def test_a_header_with_wrong_types_is_refused(place, values):
    path = place / "store/store.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(UserError, match=r"store.json: expected .*, found "):
        FeatureStore(str(place / "store"))


@pytest.mark.parametrize("values", [{"feature_width": "5"}, {"feature_width": None}, {"origin": 1}, {"trained_on": {}}])
def test_an_aggregator_with_wrong_types_is_refused(place, values):
    path = place / RUN / "aggregator/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    if "trained_on" in values:  # an aggregator made by hand knows nothing of its training
        assert Aggregator.load(str(path.parent)).trained_on == {}
    else:
        with pytest.raises(UserError, match=r"config.json: expected .*, found "):
            Aggregator.load(str(path.parent))


def test_a_file_in_utf_16_is_read_as_the_same(place):
    """JSON and YAML allow it, and editors of some systems write it."""
    for name in ("store/store.json", f"{RUN}/config.yaml"):
        (place / name).write_text((place / name).read_text(), "utf-16")
    assert FeatureStore(str(place / "store")).fingerprint == TINY
    config = {**PretrainConfig().to_dict(), "store": {"location": str(place / "store")}}
    RunFolder(str(place / "runs"), "finished").check_config(config)


def test_a_cut_shard_is_reported_and_the_others_are_verified(capsys, place):
    shards = sorted((place / "store/features").iterdir())
    shards[0].write_bytes(shards[0].read_bytes()[:1000])
    with pytest.raises(SystemExit) as ended:
        main(list(VERIFY))
    printed = capsys.readouterr()
    assert ended.value.code == 1
    assert [line for line in printed.out.splitlines() if "wrong" in line and shards[0].name in line]
    assert "8 videos in mode train" in printed.out
    assert shards[0].name in refusal(capsys, *NEIGHBOURS)


def test_a_configuration_file_in_another_encoding_is_refused(capsys, place):
    (place / "c.yaml").write_bytes("sets: {mask_ratio: 0.5} # ä".encode("latin-1"))
    assert "--config: expected YAML" in refusal(capsys, *PRETRAIN, "--config", "c.yaml")


def test_an_exported_model_with_a_damaged_description_is_refused(tmp_path):
    from scale_ray.backbones import load_backbone
    from scale_ray.extraction.targets import loading_options

    options = BackboneOptions(backbone="shufflenet_v2_x0_5", weights="none", input_px=64)
    backbone = load_backbone(options, Sampling().frames)
    origin = {**fingerprint_of(backbone.identity(), Sampling()), "made_with": loading_options(options)}
    model = VideoModel(backbone, Aggregator(1024, AggregatorOptions(width=32), origin), Representing())
    model.save(str(tmp_path))
    VideoModel.load(str(tmp_path))
    path = tmp_path / "model.json"
    whole = path.read_bytes()
    for damage, content in damages(whole, ".json"):
        path.write_bytes(content)
        assert used_or_refused(lambda: VideoModel.load(str(tmp_path))), damage
    for values in ({"representing": []}, {"representing": None}, {"representing": {"ensemble": "x"}}, {"backbone": 3}):
        path.write_text(json.dumps({**json.loads(whole), **values}))
        assert used_or_refused(lambda: VideoModel.load(str(tmp_path))), values

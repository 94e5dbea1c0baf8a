"""Text from files (names, labels, errors) neither steers a terminal, nor breaks a picture, nor becomes markup."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.stores import make_store

import scale_ray
from scale_ray.aggregator import Aggregator
from scale_ray.cli.main import main
from scale_ray.config import AggregatorOptions, ProbeConfig, Sampling
from scale_ray.console import Console, Result, printable, shortened
from scale_ray.probes.bootstrap import Estimate
from scale_ray.probes.table import ProbeRow, ProbeTable
from scale_ray.reports.contact_sheet import Tile, contact_sheet
from scale_ray.reports.figures import classes_figure, confusion_figure, map_figure
from scale_ray.stages.probe import probe
from scale_ray.store.feature_store import FeatureStore
from scale_ray.store.schema import fingerprint_of

PACKAGE = Path(scale_ray.__file__).parent
TITLE, CLEAR = "\x1b]0;pwned\x07", "\x1b[2J"
TINY = {"backbone": "tiny", "weights": "none", "input_px": 64}
FORMULA = "$a^{$"
LONG = "x" * 5000
ODD = [FORMULA, LONG, f"{CLEAR}a\nb\0", r"\frac{$", "_hidden", "caf\udce9", ""]


def ended(capsys, *arguments: object) -> tuple[int, str, str]:
    """The exit code of a command, and what it printed on standard output and on standard error."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return (stopped.value.code, *capsys.readouterr())


def is_plain(text: str) -> bool:
    return all(character == "\n" or character.isprintable() for character in text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (TITLE, r"\x1b]0;pwned\x07"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\0\x7f\x85\x9b2J", r"\x00\x7f\x85\x9b2J"),
        ("gp\u202e4pm.exe\u2066", r"gp\u202e4pm.exe\u2066"),
        ("caf\udce9", r"caf\udce9"),
        ("Größe 視頻 فيديو 🎬 \\x1b", "Größe 視頻 فيديو 🎬 \\x1b"),
    ],
)
def test_control_characters_are_shown_escaped(text, shown):
    assert printable(text) == shown
    assert printable(shown) == shown


def test_ids_and_labels_of_a_corpus_are_printed_escaped(tmp_path, capsys):
    for name in (TITLE, CLEAR):
        (tmp_path / "videos" / f"label {CLEAR}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / f"label {CLEAR}" / f"{name}.mp4").write_bytes(b"no video")
    code, out, err = ended(capsys, "inspect", tmp_path / "videos", "--inspect-sample", "0")
    assert code == 3
    assert is_plain(out + err)
    assert r"\x1b]0;pwned\x07.mp4" in out
    assert r"classes     1: label \x1b[2J" in out


def test_what_a_store_says_of_itself_is_printed_escaped(tmp_path, capsys):
    FeatureStore.create(str(tmp_path / "store"), fingerprint_of({**TINY, "backbone": f"tiny{TITLE}"}, Sampling()))
    code, out, err = ended(capsys, "store", tmp_path / "store")
    assert code == 0
    assert is_plain(out + err)
    assert r"backbone  tiny\x1b]0;pwned\x07" in out


def test_json_stays_json(tmp_path, capsys):
    name = f"tiny{TITLE}\x7f\u202e"
    FeatureStore.create(str(tmp_path / "store"), fingerprint_of({**TINY, "backbone": name}, Sampling()))
    _, out, _ = ended(capsys, "store", tmp_path / "store", "--json")
    assert is_plain(out)
    assert json.loads(out)["fingerprint"]["backbone"] == name


def test_an_error_is_printed_escaped(tmp_path, capsys):
    code, _, err = ended(capsys, "extract", tmp_path / f"{CLEAR}nowhere", "--store", tmp_path / "s")
    assert code == 2
    assert is_plain(err)
    assert r"\x1b[2Jnowhere" in err


def test_a_traceback_is_printed_escaped(tmp_path):
    command = [sys.executable, "-m", "scale_ray", "store", f"{tmp_path}/{TITLE}", "--debug"]
    err = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    assert is_plain(err)
    assert "Traceback" in err
    assert r"\x1b]0;pwned\x07" in err


def test_messages_and_progress_are_printed_escaped(capsys, monkeypatch):
    console = Console()
    console.say(f"files in {CLEAR}")
    monkeypatch.setattr("scale_ray.console._LOG_EVERY_S", 0.0)
    with console.progress("probe", 2, "files") as progress:
        progress.to(1, TITLE)
    err = capsys.readouterr().err
    assert is_plain(err)
    assert r"\x1b[2J" in err
    assert r"\x1b]0;pwned\x07" in err


def test_a_result_is_plain_text_and_no_markup_in_a_notebook():
    class Odd(Result):
        def lines(self) -> list[str]:
            return [f"id {TITLE}\nverified", "<script>alert(1)</script>"]

    assert str(Odd()).splitlines() == [r"id \x1b]0;pwned\x07\nverified", "<script>alert(1)</script>"]
    assert "<script>" not in Odd()._repr_html_()


def test_only_the_console_prints():
    """Everything that reaches the screen goes through `show`, which escapes it."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "click.echo", "click.secho"):
                found.append(path.relative_to(PACKAGE).as_posix())
    assert sorted(found) == ["console.py", "stages/api.py"]  # the latter prints the stub, for developers


def size_of(png: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(png)).size


TRUE, PREDICTED = np.arange(21) % 7, {"a": np.arange(21) % 7, "b": np.arange(21) % 3}
TILES = [Tile(None, f"0.93\n{odd}", agrees=True) for odd in ODD]


@pytest.mark.slow
@pytest.mark.parametrize(
    "draw",
    [
        pytest.param(lambda: confusion_figure(ODD, TRUE, PREDICTED["b"], "title"), id="confusion"),
        pytest.param(lambda: classes_figure(ODD, TRUE, PREDICTED, "a", "b"), id="classes"),
        pytest.param(lambda: map_figure({"a": np.random.default_rng(0).normal(size=(21, 5))}, TRUE, ODD), id="map"),
        *(
            pytest.param(lambda odd=odd: contact_sheet([TILES], f"Nearest to {odd}"), id=f"sheet-{odd[:20]!a}")
            for odd in (FORMULA, LONG)
        ),
    ],
)
def test_labels_do_not_break_a_picture(draw):
    width, height = Image.open(io.BytesIO(draw())).size
    assert 300 < width < 1500
    assert 200 < height < 1500


def test_a_long_text_is_shortened():
    assert shortened(LONG, 40) == "x" * 39 + "…"
    assert shortened("x" * 40, 40) == "x" * 40
    assert shortened(CLEAR * 1000, 10) == r"\x1b[2J\x" + "…"


def test_a_table_in_markdown_has_no_markup_of_its_own():
    row = ProbeRow("a | <img src=x>", {"knn_top1": Estimate(0.5, 0.4, 0.6, [0.5])})
    note = f"<script>alert(1)</script> ![x](http://127.0.0.1/marker) {CLEAR}"
    table = ProbeTable([row], {}, 0.5, "classes", "default", 20, 10, 10, 2, 1, [note])
    markdown = table.markdown()
    assert is_plain(markdown)
    assert "<" not in markdown
    assert "![" not in markdown
    assert r"| a \| &lt;img src=x&gt; | 0.500 [0.400, 0.600] |" in markdown


QUICK = ProbeConfig().replaced(
    probes=("knn", "linear"),
    probe_min_steps=5,
    probe_epochs=1,
    probe_seeds=1,
    resamples=10,
    learning_rates=(1e-2,),
    weight_decays=(0.0,),
)


@pytest.fixture
def odd_store(tmp_path) -> FeatureStore:
    """A store whose labels, and one whose id, are attacks; and an aggregator `a` beside it."""
    rng = np.random.default_rng(0)
    labels = [FORMULA, f"{CLEAR}<b>", LONG]
    ids = [f"v{number:02d}" for number in range(23)] + [f"v {TITLE}"]
    sides = ["test" if number % 4 == 3 else "train" for number in range(24)]
    store = make_store(
        tmp_path / "store",
        {video_id: rng.normal(size=(4, 6)) for video_id in ids},
        sides=sides,
        label=[labels[number % 3] for number in range(24)],
    )
    Aggregator(6, AggregatorOptions(width=32, layers=1)).save(str(tmp_path / "a"))
    return store


@pytest.mark.slow
def test_labels_do_not_end_a_probe_and_a_broken_picture_costs_one_line(odd_store, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"

    def broken(*_: object) -> bytes:
        assert (out / "table.csv").exists(), "drawn before the results were written"
        raise ValueError(f"no picture\n{CLEAR}")

    monkeypatch.setattr("scale_ray.reports.probe_report.map_figure", broken)
    places = {"runs": str(tmp_path / "runs"), "out": str(out)}
    result = probe(odd_store.location, str(tmp_path / "a"), **places, config=QUICK, console=Console())
    lines = [line for line in capsys.readouterr().err.splitlines() if "could not be drawn" in line]
    assert lines == ["map.png could not be drawn: ValueError: no picture"]
    pictures = {"results.png", "confusion.png", "classes.png", "neighbours.png"}
    assert set(result.files) == pictures | {"table.txt", "table.md", "table.csv", "table.json"}
    assert {path.name for path in out.iterdir()} == set(result.files)

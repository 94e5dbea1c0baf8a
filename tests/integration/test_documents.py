"""Every console block and Python block of the README and the guide is run, in order, as it is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.command import PROJECT
from support.documents import QUICK, Block, blocks_of, commands_of, environment, run_block

from scale_ray.config import SECTIONS

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900), pytest.mark.usefixtures("shared_ray")]

GUIDE = sorted((PROJECT / "docs" / "guide").glob("*.md"))
START = Block(
    "console",
    """
$ python -c "import scale_ray as sr; sr.sample_videos('videos', 8)"
$ scale-ray extract videos --store features --backbone shufflenet_v2_x0_5
$ scale-ray pretrain --store features --run first
""",
    0,
    None,
)


@pytest.fixture(scope="module")
def prepared(shared_ray: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder with sample videos, a store and a run, and a copy of it: stores know the paths of their videos."""
    folder = tmp_path_factory.mktemp("guide") / "work"
    folder.mkdir()
    run_block(START, folder)
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    return folder, copy


@pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(page: Path, prepared: tuple[Path, Path]):
    folder, copy = prepared
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)
    blocks = blocks_of(page)
    assert blocks, "a page without examples"
    for block in blocks:
        if block.reason is None:
            run_block(block, folder)


def test_the_readme_runs_word_for_word(tmp_path: Path):
    [videos, *_] = commands_of(START)
    run_block(Block("console", f"$ {videos}", 0, None), tmp_path)
    blocks = blocks_of(PROJECT / "README.md")
    assert [block.kind for block in blocks] == ["console", "console", "python"]
    for block in blocks:
        assert block.reason is None
        run_block(block, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"videos", "features", "runs", "vectors", "scale-ray-demo"}


def test_the_contributing_page_names_targets_that_exist():
    targets = (PROJECT / "Makefile").read_text()
    for block in blocks_of(PROJECT / "CONTRIBUTING.md"):
        for command in commands_of(block):
            program, *names = command.split()
            assert program in ("make", ".venv/bin/pre-commit")
            assert all(f"\n{name}:" in targets for name in names if program == "make")


def test_quick_options_are_options():
    names = {name for section in SECTIONS.values() for name in section.__dataclass_fields__}
    assert set(QUICK) <= names
    assert "SCALE_RAY_EPOCHS" in environment()


def test_a_block_that_fails_is_noticed(tmp_path: Path):
    with pytest.raises(AssertionError, match="expected a folder, a glob or a manifest"):
        run_block(Block("console", "$ scale-ray extract nowhere --store s", 1, None), tmp_path)
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_block(Block("python", "1 / 0", 1, None), tmp_path)


def test_a_marked_block_says_why(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("<!-- not run: needs a GPU -->\n```console\n$ nvidia-smi\n```\n\n```python\nprint(1)\n```\n")
    assert [(block.kind, block.reason) for block in blocks_of(page)] == [("console", "needs a GPU"), ("python", None)]
    assert [block.line for block in blocks_of(page)] == [1, 6]

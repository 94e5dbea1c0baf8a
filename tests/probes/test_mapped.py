import os

import pytest
import torch

from scale_ray.errors import UserError
from scale_ray.probes.knn import centred
from scale_ray.probes.mapped import by_parts


def test_parts_in_memory_and_in_a_file_are_the_same(tmp_path):
    values = torch.randn(1300, 3, 4, generator=torch.Generator().manual_seed(0))
    in_memory = by_parts(1300, lambda rows: values[rows].half(), None)
    mapped = by_parts(1300, lambda rows: values[rows].half(), str(tmp_path))
    assert in_memory.dtype == mapped.dtype == torch.float16
    assert torch.equal(in_memory, values.half())
    assert torch.equal(mapped, in_memory)
    assert os.listdir(tmp_path) == [], "the file has no name"


def test_representations_are_centred_alike_wherever_they_lie(tmp_path):
    videos = torch.randn(5000, 8, generator=torch.Generator().manual_seed(0)) + 3
    rows = torch.arange(0, 5000, 3)
    expected = torch.nn.functional.normalize(videos[rows] - videos[rows].mean(0), dim=1)
    assert torch.allclose(centred(videos, rows), expected, atol=1e-5)
    assert torch.equal(centred(videos, rows, str(tmp_path)), centred(videos, rows))


def test_videos_that_all_look_alike_have_no_direction():
    alike = torch.rand(1, 8, generator=torch.Generator().manual_seed(0)).expand(7, -1) * 1000 / 3
    assert centred(alike).abs().max() == 0


def test_a_folder_without_room_is_told(tmp_path):
    with pytest.raises(
        UserError, match=r"cache: expected 0\.0 GiB of free space for representations in .*; give another"
    ):
        by_parts(3, lambda rows: torch.zeros(len(rows), 2), str(tmp_path / "absent"))


def test_nothing_has_no_rows():
    assert by_parts(0, lambda rows: torch.zeros(len(rows), 2), None).shape == (0, 2)

import pytest

from scale_ray.config import Extraction
from scale_ray.distributed.resources import ClusterSize, StageSizes, stage_sizes


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 16, 96])
@pytest.mark.parametrize("gpus", [0, 1, 4])
@pytest.mark.parametrize(
    "options", [{}, {"decoders": 1}, {"decoders": 8}, {"actors": 3}, {"actor_cpus": 1}, {"actors": 2, "decoders": 2}]
)
def test_both_stages_fit_into_the_cluster_at_the_same_time(cpus, gpus, options):
    sizes = stage_sizes(ClusterSize(cpus, gpus), Extraction(**options))
    assert sizes.decoders >= 1
    assert sizes.actors >= 1
    actor_cpus = sizes.actor_resources.get("num_cpus", 0)
    assert sizes.decoders * sizes.decoder_cpus + sizes.actors * actor_cpus <= cpus
    assert sizes.actors * sizes.actor_resources.get("num_gpus", 0) <= gpus
    assert sizes.decoder_cpus > 0.001, "0.001 is subtracted from it, so that Ray does not fuse the stages"


def test_without_options_every_gpu_has_an_actor_and_the_other_cores_decode():
    assert stage_sizes(ClusterSize(16, 4), Extraction()) == StageSizes(15, 0.5, 4, {"num_gpus": 1.0}, 1)
    assert stage_sizes(ClusterSize(2, 0), Extraction()).actors == 1
    assert stage_sizes(ClusterSize(2, 0), Extraction()).actor_threads == 2


@pytest.mark.parametrize(
    ("options", "actors", "gpus"),
    [
        ({"actor_gpus": 0.5}, 8, 0.5),
        ({"actor_gpus": 2}, 2, 2.0),
        ({"actors": 8}, 8, 0.5),
        ({"actors": 3}, 3, 1.0),
        ({"actors": 1}, 1, 4.0),
    ],
)
def test_an_actor_may_use_a_fraction_of_a_gpu_or_several(options, actors, gpus):
    sizes = stage_sizes(ClusterSize(16, 4), Extraction(**options))
    assert (sizes.actors, sizes.actor_resources) == (actors, {"num_gpus": gpus})

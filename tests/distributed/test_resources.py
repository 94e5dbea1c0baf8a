import pytest

from scale_ray.config import Extraction, Searching
from scale_ray.distributed.resources import ClusterSize, Node, StageSizes, stage_sizes, trial_sizes
from scale_ray.errors import UserError


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


def test_without_options_every_gpu_has_an_actor_with_a_core_and_the_other_cores_decode():
    assert stage_sizes(ClusterSize(16, 4), Extraction()) == StageSizes(12, 0.5, 4, {"num_gpus": 1, "num_cpus": 0.5}, 1)
    assert stage_sizes(ClusterSize(2, 0), Extraction()).actors == 1
    assert stage_sizes(ClusterSize(2, 0), Extraction()).actor_threads == 2


def test_actors_leave_half_of_their_nodes_cores_to_decoders():
    sizes = stage_sizes(ClusterSize(8, 8), Extraction())
    assert (sizes.decoders, sizes.actors, sizes.actor_resources["num_cpus"]) == (4, 8, 0.25)
    assert stage_sizes(ClusterSize(1, 1), Extraction()).decoders == 1
    apart = ClusterSize.of([Node(4, 8, {"tier": "gpu"}), Node(0, 8, {"tier": "bare"}), Node(8, 0, {"tier": "cpu"})])
    sizes = stage_sizes(apart, Extraction(decoder_labels="tier=cpu", actor_labels="tier=gpu"))
    assert (sizes.decoders, sizes.actor_resources["num_cpus"]) == (8, 0.95 * 4 / 8)
    assert stage_sizes(apart, Extraction(actor_labels="tier=bare")).actor_resources == {"num_gpus": 1, "num_cpus": 0}


@pytest.mark.parametrize(
    ("options", "actors", "gpus"),
    [
        ({"actor_gpus": 0.5}, 8, 0.5),
        ({"actor_gpus": 2}, 2, 2.0),
        ({"actors": 8}, 8, 0.5),
        ({"actors": 6}, 6, 0.5),
        ({"actors": 3}, 3, 1.0),
        ({"actors": 1}, 1, 4.0),
    ],
)
def test_an_actor_may_use_a_fraction_of_a_gpu_or_several(options, actors, gpus):
    sizes = stage_sizes(ClusterSize(16, 4), Extraction(**options))
    assert (sizes.actors, sizes.actor_resources["num_gpus"]) == (actors, gpus)


def test_an_actor_has_the_gpus_of_one_node():
    size = ClusterSize.of([Node(16, 3), Node(16, 2), Node(16)])
    assert stage_sizes(size, Extraction(actors=1)).actor_resources["num_gpus"] == 3
    assert stage_sizes(size, Extraction(actors=2)).actor_resources["num_gpus"] == 2
    assert stage_sizes(size, Extraction(actor_gpus=2)).actors == 2
    with pytest.raises(UserError, match="actor_gpus: expected at most the 3 GPUs of a node, found 4"):
        stage_sizes(size, Extraction(actor_gpus=4))


HEAD = Node(0, labels={"ray.io/node-id": "h"})
DIFFERENT = ClusterSize.of([HEAD, *(Node(cpus, labels={"tier": f"c{cpus}"}) for cpus in (2, 16, 64))])
MIXED = ClusterSize.of([HEAD, Node(8, 1, {"tier": "gpu"}), Node(16, 0, {"tier": "cpu"}), Node(4, 0, {"tier": "cpu"})])


def room(requests: float, cpus: int) -> int:
    """How many tasks with a request Ray places on a node."""
    return int(cpus / requests + 1e-9)


def test_on_nodes_that_differ_no_node_gets_more_tasks_than_it_has_cores():
    sizes = stage_sizes(DIFFERENT, Extraction())
    assert (sizes.decoders, sizes.actors, sizes.actor_threads) == (41, 41, 2)
    assert sizes.actor_resources["num_cpus"] == sizes.decoder_cpus, "so that each fits where the other ends"
    assert [room(sizes.decoder_cpus - 0.001, cpus) for cpus in (2, 16)] == [2, 16]
    assert sum(room(sizes.decoder_cpus, node.cpus) for node in DIFFERENT.nodes) >= sizes.decoders + sizes.actors


def test_decoders_use_the_cores_of_all_nodes_and_leave_one_to_each_gpu():
    sizes = stage_sizes(MIXED, Extraction())
    assert (sizes.decoders, sizes.actors) == (7 + 16 + 4, 1)
    assert sizes.actor_resources == {"num_gpus": 1, "num_cpus": 0.95}
    assert [room(sizes.decoder_cpus - 0.001, cpus) for cpus in (4, 16)] == [4, 16]
    assert room(sizes.decoder_cpus - 0.001, 8 - 0.95) == 7


@pytest.mark.parametrize(
    ("labels", "decoders", "actors", "actor_cpus"),
    [
        ({"decoder_labels": "tier=cpu"}, 20, 1, 0.95),
        ({"decoder_labels": "tier=gpu"}, 7, 1, 0.95),
        ({"actor_labels": "tier=gpu"}, 27, 1, 0.95),
        ({"actor_labels": "tier=cpu", "decoder_labels": "tier=gpu"}, 8, 10, 1.9),
        ({"actor_labels": "tier=in(cpu,x)", "decoder_labels": "tier=!gpu"}, 10, 10, 0.95),
    ],
)
def test_only_the_nodes_that_a_stage_may_use_count(labels, decoders, actors, actor_cpus):
    sizes = stage_sizes(MIXED, Extraction(**labels))
    assert (sizes.decoders, sizes.actors) == (decoders, actors)
    assert sizes.actor_resources["num_cpus"] == pytest.approx(actor_cpus)


def test_a_selector_that_no_node_meets_is_refused_with_the_labels_that_exist():
    for name in ("decoder_labels", "actor_labels"):
        expected = rf"^{name}: expected a node with CPUs or GPUs and the labels tier=tpu, found the labels "
        with pytest.raises(UserError, match=expected + "tier=cpu, tier=gpu$"):
            stage_sizes(MIXED, Extraction(**{name: "tier=tpu"}))
    with pytest.raises(UserError, match="found no labels at all"):
        ClusterSize(2, 0).selected("worker_labels", "tier=cpu")
    with pytest.raises(UserError, match="decoder_labels: expected a node with CPUs and the labels tier=x, found 0"):
        stage_sizes(ClusterSize.of([Node(0, 1, {"tier": "x"}), Node(2)]), Extraction(decoder_labels="tier=x"))


def test_an_actor_has_at_most_the_cpus_of_the_largest_node():
    assert stage_sizes(DIFFERENT, Extraction(actor_cpus=32)).actors == 2
    with pytest.raises(UserError, match="actor_cpus: expected at most the 64 CPUs of a node, found 65"):
        stage_sizes(DIFFERENT, Extraction(actor_cpus=65))
    with pytest.raises(UserError, match="at most the 16 CPUs of a node, found 17"):
        stage_sizes(DIFFERENT, Extraction(actor_cpus=17, actor_labels="tier=in(c2,c16)"))


def test_a_worker_of_a_trial_has_at_most_the_cpus_of_a_node_that_it_may_use():
    assert trial_sizes(DIFFERENT, Searching(trial_cpus=20), 2).resources == {"CPU": 20}
    small = DIFFERENT.selected("worker_labels", "tier=!c64")
    with pytest.raises(UserError, match=r"trial_cpus: expected at most the 16 CPUs of a node, found 17"):
        trial_sizes(small, Searching(trial_cpus=17), 1)


def test_a_head_without_cpus_is_no_second_node():
    assert stage_sizes(ClusterSize.of([HEAD, Node(8)]), Extraction()) == stage_sizes(ClusterSize(8, 0), Extraction())


def test_a_cluster_without_any_node_yet_is_sized_as_one_core():
    assert stage_sizes(ClusterSize.of([HEAD]), Extraction()).actors == 1

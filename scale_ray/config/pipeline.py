"""Options of the whole way from videos to a table."""

from __future__ import annotations

from dataclasses import dataclass

from scale_ray.config.extraction import BackboneOptions, CorpusOptions, Extraction, Sampling
from scale_ray.config.pretraining import (
    AggregatorOptions,
    Ingest,
    ObjectiveOptions,
    Sets,
    Splits,
    Training,
)
from scale_ray.config.probing import Probing
from scale_ray.config.runtime import Cluster, Tracking
from scale_ray.config.stage import StageConfig


@dataclass(frozen=True, kw_only=True)
class PipelineConfig(StageConfig):
    """The options of `pipeline`: those of `extract`, `pretrain` and `probe`."""

    corpus: CorpusOptions = CorpusOptions()
    sampling: Sampling = Sampling()
    backbone: BackboneOptions = BackboneOptions()
    extraction: Extraction = Extraction()
    splits: Splits = Splits()
    sets: Sets = Sets()
    aggregator: AggregatorOptions = AggregatorOptions()
    objective: ObjectiveOptions = ObjectiveOptions()
    training: Training = Training()
    ingest: Ingest = Ingest()
    probing: Probing = Probing()
    tracking: Tracking = Tracking()
    cluster: Cluster = Cluster()


# A light backbone and a short training of a small model: the demo should take minutes on two cores.
DEMO = PipelineConfig(
    backbone=BackboneOptions(backbone="shufflenet_v2_x0_5", input_px=96),
    objective=ObjectiveOptions(prediction_hidden=512, target_hidden=512),
    training=Training(epochs=200, batch=32, checkpoint_epochs=50),
)
DEMO_VIDEOS_PER_CLASS = 40

"""scale-ray: one good vector per video, from a frozen backbone and a small self-supervised aggregator, on Ray.

    import scale_ray as sr

    sr.extract("videos/", "features", backbone="r3d_18")
    run = sr.pretrain("features", run="first", mask_ratio=0.25)
    table = sr.probe("features", run)
    vectors = sr.embed("videos/", run, out="vectors").to_pandas()

Every function is a stage, with the options of its command as keywords. Names are resolved when they are first used:
importing the package loads neither Ray nor torch.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.2.0"

# The stages, and the modules that they are in.
STAGES = {
    "sample_videos": "scale_ray.stages.sample_videos",
    **{
        name: f"scale_ray.stages.{name}"
        for name in (
            "inspect",
            "extract",
            "join",
            "pretrain",
            "probe",
            "embed",
            "neighbours",
            "sweep",
            "export",
            "pipeline",
        )
    },
}
CLASSES = {
    "Aggregator": "scale_ray.aggregator",
    "FeatureStore": "scale_ray.store",
    "VectorStore": "scale_ray.embedding",
    "VideoModel": "scale_ray.embedding",
    # What a sweep tries for an option: `sr.sweep("features", learning_rate=sr.log_uniform(1e-4, 1e-2))`.
    "Range": "scale_ray.config",
    "log_uniform": "scale_ray.config",
    "uniform": "scale_ray.config",
}

__all__ = ["__version__", *CLASSES, *STAGES]


def __getattr__(name: str) -> Any:
    import importlib  # only here: `import scale_ray` shall cost nothing

    if name in STAGES:
        value = importlib.import_module("scale_ray.stages.api").stage_function(name)
    elif name in CLASSES:
        value = getattr(importlib.import_module(CLASSES[name]), name)
    else:
        raise AttributeError(f"module 'scale_ray' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

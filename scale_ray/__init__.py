"""scale-ray: one good vector a video, from a frozen backbone and a small self-supervised aggregator."""

__version__ = "0.1.0"

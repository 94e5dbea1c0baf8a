"""Decodes the planned clips of videos into pixels, in child processes with a deadline."""

from scale_ray.decoding.decode import decode_clips, video_bytes
from scale_ray.decoding.decoder_process import Decoder, Request, SharedPixels, source_of
from scale_ray.decoding.frames import opened, rate_of, told_duration_s, video_stream

__all__ = [
    "Decoder",
    "Request",
    "SharedPixels",
    "decode_clips",
    "opened",
    "rate_of",
    "source_of",
    "told_duration_s",
    "video_bytes",
    "video_stream",
]

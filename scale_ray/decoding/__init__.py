"""Decodes the planned clips of videos into pixels, in child processes with a deadline."""

from scale_ray.decoding.decode import decode_clips, video_bytes
from scale_ray.decoding.decoder_process import Decoder, Request, SharedPixels, as_source
from scale_ray.decoding.frames import display_size, frame_rate, header_duration_s, open_video, packets_of, video_stream

__all__ = [
    "Decoder",
    "Request",
    "SharedPixels",
    "as_source",
    "decode_clips",
    "display_size",
    "frame_rate",
    "header_duration_s",
    "open_video",
    "packets_of",
    "video_bytes",
    "video_stream",
]

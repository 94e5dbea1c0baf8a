"""Decodes the planned clips of videos into pixels, in child processes with a deadline."""

from scale_ray.decoding.decode import decode_clips, video_bytes
from scale_ray.decoding.decoder_process import Decoder, Request, SharedPixels, as_source
from scale_ray.decoding.frames import display_size
from scale_ray.decoding.timing import frame_rate, header_length_s, packets_of, timing_of
from scale_ray.decoding.video_file import VideoFile, open_video

__all__ = [
    "Decoder",
    "Request",
    "SharedPixels",
    "VideoFile",
    "as_source",
    "decode_clips",
    "display_size",
    "frame_rate",
    "header_length_s",
    "open_video",
    "packets_of",
    "timing_of",
    "video_bytes",
]

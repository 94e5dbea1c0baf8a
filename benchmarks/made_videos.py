"""Small videos in every codec and container that the command line program FFmpeg can write, for `compare_frames.py`.

Each shows a test pattern with a frame counter and a square that jumps from frame to frame, so that every frame can be
told from its neighbours: 12 s at 30 frames/s, unless the name says otherwise.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

H264 = "-c:v libx264 -preset veryfast -g 48 -bf 3 -pix_fmt yuv420p"
OPEN_GOP = H264 + " -x264-params open-gop=1:keyint=48:min-keyint=48:scenecut=0"
HEVC = "-c:v libx265 -preset ultrafast -g 48 -bf 3 -pix_fmt yuv420p -x265-params log-level=none"
VVC = "-c:v libvvenc -preset faster -period 2 -pix_fmt yuv420p10le -t 4"
AV1 = "-c:v libsvtav1 -preset 12 -g 48 -pix_fmt yuv420p"
VP8 = "-c:v libvpx -deadline realtime -cpu-used 8 -g 48 -b:v 300k"
VP9 = "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -g 48 -b:v 300k"
VP9_ALT = "-c:v libvpx-vp9 -deadline good -cpu-used 5 -auto-alt-ref 1 -lag-in-frames 16 -g 48 -b:v 300k"
MPEG1 = "-c:v mpeg1video -g 15 -bf 2 -b:v 600k"
MPEG2 = "-c:v mpeg2video -g 15 -bf 2 -b:v 600k"
MPEG4 = "-c:v mpeg4 -g 48 -bf 2 -b:v 400k"
MPEG4_NO_B = "-c:v mpeg4 -g 48 -b:v 400k"
MJPEG = "-c:v mjpeg -q:v 5 -pix_fmt yuvj420p"
FFV1 = "-c:v ffv1 -g 48 -pix_fmt yuv420p"
THEORA = "-c:v libtheora -g 48 -b:v 400k"
QCIF = " -s 176x144"
# Keeps 15 of every 20 frames, with gaps of 1 and 5 frames.
VFR = " -vf select='not(between(mod(n,20),3,6)+eq(mod(n,20),12))' -fps_mode vfr"
INTERLACED = " -vf tinterlace=interleave_top,setfield=tff -flags +ildct+ilme"

DECODING_STAMPS = "-bsf:v setts=pts=DTS"  # codespell:ignore

# File name: options of the encoder and of the container.
ENCODED = {
    # H.264 in every container, with frames that are not in the order of display.
    **{f"h264.{suffix}": H264 for suffix in ("mp4", "mkv", "mov", "ts", "flv", "avi", "3gp", "asf", "nut", "m4v")},
    **{f"h264.{suffix}": H264 for suffix in ("m2ts", "f4v", "h264", "mpg", "wtv", "ismv")},
    "h264_in.mxf": H264,
    **{f"h264_open_gop.{suffix}": OPEN_GOP for suffix in ("mp4", "mkv", "ts", "h264", "avi", "flv", "mpg")},
    **{f"h264_long_gop.{suffix}": H264 + " -g 1000" for suffix in ("mp4", "mkv", "ts", "h264", "avi")},
    **{f"h264_no_b_frames.{suffix}": H264 + " -bf 0" for suffix in ("mp4", "ts", "h264", "avi")},
    **{f"h264_pyramid_16.{suffix}": H264 + " -bf 16 -b_strategy 0" for suffix in ("mp4", "mkv", "h264", "avi")},
    **{f"h264_interlaced.{suffix}": H264 + INTERLACED for suffix in ("mp4", "ts", "mkv", "h264")},
    **{f"h264_intra_refresh.{suffix}": H264 + " -bf 0 -x264-params intra-refresh=1" for suffix in ("mp4", "ts")},
    "h264_only_intra.mp4": H264 + " -g 1",
    "h264_baseline.mp4": "-c:v libx264 -profile:v baseline -pix_fmt yuv420p -g 48",
    "h264_openh264.mp4": "-c:v libopenh264 -g 48 -b:v 300k",
    "h264_10_bit.mp4": H264 + " -pix_fmt yuv420p10le",
    "h264_444.mkv": H264 + " -pix_fmt yuv444p",
    "h264_rgb.mkv": "-c:v libx264rgb -g 48 -qp 20",
    "h264_gray.mp4": H264 + " -pix_fmt gray",
    "h264_full_range.mp4": H264 + " -pix_fmt yuvj420p -color_range pc",
    "h264_bt709.mp4": H264
    + " -vf scale=out_color_matrix=bt709 -colorspace bt709 -color_primaries bt709 -color_trc bt709",
    "h264_fragmented.mp4": H264 + " -movflags +frag_keyframe+empty_moov+default_base_moof",
    "h264_fragment_per_frame.mp4": H264 + " -movflags +frag_every_frame+empty_moov",
    "h264_fragments_with_index.mp4": H264 + " -movflags +frag_keyframe+empty_moov+global_sidx",
    "h264_hybrid_fragments.mp4": H264 + " -movflags +hybrid_fragmented",
    "h264_faststart.mp4": H264 + " -movflags +faststart",
    "h264_negative_cts.mp4": H264 + " -movflags +negative_cts_offsets",
    "h264_no_edit_list.mp4": H264 + " -use_editlist 0",
    "h264_live.mkv": H264 + " -live 1",
    "h264_no_cues.mkv": H264 + " -write_crc32 0 -cues_to_front 0 -cluster_time_limit 500",
    "h264_two_streams.mp4": H264 + " -map 0 -map 0",
    "h264_24000_1001.mp4": H264 + " -r 24000/1001",
    "h264_24000_1001.avi": H264 + " -r 24000/1001",
    "h264_24000_1001.h264": H264 + " -r 24000/1001",
    "h264_50.ts": H264 + " -r 50",
    "h264_50.h264": H264 + " -r 50",
    "h264_15.h264": H264 + " -r 15",
    "h264_1_fps.mp4": H264 + " -r 1",
    "h264_one_frame.mp4": H264 + " -frames:v 1",
    "h264_two_frames.mp4": H264 + " -frames:v 2",
    "h264_aspect.mp4": H264 + " -vf setsar=32/27",
    "h264_odd_size.mp4": "-c:v libx264 -preset veryfast -g 48 -bf 3 -vf crop=121:81:exact=1 -pix_fmt yuv444p",
    # H.265, H.266, AV1, VP8, VP9.
    **{f"hevc.{suffix}": HEVC for suffix in ("mp4", "mkv", "mov", "ts", "hevc", "flv", "nut", "avi", "mpg")},
    **{
        f"hevc_closed_gop.{suffix}": HEVC + " -x265-params log-level=none:open-gop=0:keyint=48"
        for suffix in ("mp4", "hevc", "ts")
    },
    "hevc_long_gop.mp4": HEVC + " -g 1000",
    "hevc_no_b_frames.hevc": HEVC + " -bf 0",
    "hevc_10_bit.mp4": HEVC + " -pix_fmt yuv420p10le",
    "hevc_kvazaar.mp4": "-c:v libkvazaar -pix_fmt yuv420p -kvazaar-params preset=ultrafast,period=48",
    "hevc_50.hevc": HEVC + " -r 50",
    **{f"vvc_4_s.{suffix}": VVC for suffix in ("mp4", "ts", "266", "mkv")},
    **{f"av1.{suffix}": AV1 for suffix in ("mp4", "mkv", "webm", "ivf", "obu", "ts", "flv", "avif", "avi")},
    "av1_aom.mp4": "-c:v libaom-av1 -cpu-used 8 -usage realtime -g 48",
    "av1_aom_good_4_s.webm": "-c:v libaom-av1 -cpu-used 8 -lag-in-frames 19 -g 48 -b:v 200k -t 4",
    "av1_rav1e_4_s.mp4": "-c:v librav1e -speed 10 -g 48 -t 4",
    "av1_10_bit.mp4": AV1 + " -pix_fmt yuv420p10le",
    **{f"vp8.{suffix}": VP8 for suffix in ("webm", "mkv", "ivf", "ogg", "avi")},
    "vp8_alt_ref.webm": "-c:v libvpx -deadline good -cpu-used 5 -auto-alt-ref 1 -lag-in-frames 16 -g 48 -b:v 300k",
    "vp8_alpha.webm": VP8 + " -pix_fmt yuva420p -auto-alt-ref 0",
    **{f"vp9.{suffix}": VP9 for suffix in ("webm", "mkv", "ivf", "mp4", "ts", "avi")},
    **{f"vp9_alt_ref.{suffix}": VP9_ALT for suffix in ("webm", "mp4", "ivf")},
    "vp9_live.webm": VP9 + " -live 1",
    "vp9_long_gop.webm": VP9 + " -g 1000",
    "vp9_444_12_bit.webm": VP9 + " -pix_fmt yuv444p12le",
    # MPEG-1, MPEG-2, MPEG-4 and their relatives.
    **{f"mpeg1.{suffix}": MPEG1 for suffix in ("mpg", "m1v", "mkv", "avi", "mov", "ts")},
    **{
        f"mpeg2.{suffix}": MPEG2
        for suffix in ("mpg", "vob", "ts", "m2v", "mkv", "mov", "mp4", "mxf", "avi", "dvd", "wtv")
    },
    "mpeg2_interlaced.mpg": MPEG2 + INTERLACED,
    "mpeg2_interlaced.ts": MPEG2 + INTERLACED,
    "mpeg2_closed_gop.mpg": MPEG2 + " -flags +cgop -sc_threshold 1000000000",
    "mpeg2_422_intra.mxf": "-c:v mpeg2video -g 1 -pix_fmt yuv422p -b:v 2M -r 25",
    "mpeg2.gxf": "-c:v mpeg2video -g 12 -bf 0 -r 25 -s 720x576 -b:v 3M",
    **{f"mpeg4.{suffix}": MPEG4 for suffix in ("avi", "mp4", "mkv", "m4v", "3gp", "nut", "mov", "ts", "wtv", "asf")},
    **{f"mpeg4_no_b_frames.{suffix}": MPEG4_NO_B for suffix in ("avi", "m4v", "asf")},
    "mpeg4_xvid.avi": "-c:v libxvid -g 48 -bf 2 -b:v 400k",
    "mpeg4_xvid.mkv": "-c:v libxvid -g 48 -bf 2 -b:v 400k",
    "mpeg4_25.m4v": MPEG4 + " -r 25",
    **{f"msmpeg4v2.{suffix}": "-c:v msmpeg4v2 -g 48 -b:v 400k" for suffix in ("avi", "asf")},
    **{f"msmpeg4v3.{suffix}": "-c:v msmpeg4 -g 48 -b:v 400k" for suffix in ("avi", "asf")},
    **{f"wmv1.{suffix}": "-c:v wmv1 -g 48 -b:v 400k" for suffix in ("wmv", "avi")},
    **{f"wmv2.{suffix}": "-c:v wmv2 -g 48 -b:v 400k" for suffix in ("wmv", "avi")},
    **{f"h263.{suffix}": "-c:v h263 -g 48" + QCIF for suffix in ("3gp", "avi", "h263", "mov")},
    "h263p.avi": "-c:v h263p -g 48",
    **{f"h261.{suffix}": "-c:v h261 -g 48" + QCIF for suffix in ("h261", "avi")},
    "flv1.flv": "-c:v flv -g 48",
    "flv1.swf": "-c:v flv -g 48",
    "rv10.rm": "-c:v rv10 -g 48" + QCIF,
    "rv20.rm": "-c:v rv20 -g 48 -bf 0",
    **{f"theora.{suffix}": THEORA for suffix in ("ogv", "mkv")},
    "snow_4_s.avi": "-c:v snow -g 48 -strict -2 -t 4 -pix_fmt yuv420p",
    "svq1.mov": "-c:v svq1 -g 48 -pix_fmt yuv410p",
    # Codecs that code every frame by itself, or nearly.
    **{f"mjpeg.{suffix}": MJPEG for suffix in ("avi", "mov", "mp4", "mkv", "mjpeg", "nut")},
    "mpjpeg.mpjpeg": MJPEG + " -f mpjpeg",
    "ljpeg.avi": "-c:v ljpeg -pix_fmt yuvj420p",
    "jpegls.avi": "-c:v jpegls -pix_fmt rgb24",
    **{f"jpeg2000.{suffix}": "-c:v jpeg2000 -pix_fmt yuv420p" for suffix in ("mov", "mkv", "avi")},
    "jpeg2000.mxf": "-c:v jpeg2000 -pix_fmt yuv422p",
    "prores.mov": "-c:v prores -pix_fmt yuv422p10le",
    "prores.mxf": "-c:v prores_ks -profile:v 2 -pix_fmt yuv422p10le",
    "prores_4444_alpha.mov": "-c:v prores_ks -profile:v 4 -pix_fmt yuva444p10le",
    "dnxhr_4_s.mov": "-c:v dnxhd -profile:v dnxhr_sq -pix_fmt yuv422p -s 320x240 -t 4",
    "dnxhr_4_s.mxf": "-c:v dnxhd -profile:v dnxhr_sq -pix_fmt yuv422p -s 320x240 -t 4",
    "cineform.mov": "-c:v cfhd -pix_fmt yuv422p10le",
    "hap.mov": "-c:v hap",
    "dxv_4_s.mov": "-c:v dxv -t 4 -s 160x128",
    "vc2.mkv": "-c:v vc2 -pix_fmt yuv420p",
    "vc2.drc": "-c:v vc2 -pix_fmt yuv420p -f dirac",
    **{f"ffv1.{suffix}": FFV1 for suffix in ("mkv", "avi", "nut", "mov")},
    **{f"huffyuv.{suffix}": "-c:v huffyuv -pix_fmt yuv422p" for suffix in ("avi", "mkv")},
    "ffvhuff.avi": "-c:v ffvhuff -pix_fmt yuv420p",
    **{f"utvideo.{suffix}": "-c:v utvideo -pix_fmt yuv420p" for suffix in ("avi", "mkv")},
    "magicyuv.avi": "-c:v magicyuv -pix_fmt gbrp",
    "asv1.avi": "-c:v asv1",
    "asv2.avi": "-c:v asv2",
    "cljr.avi": "-c:v cljr",
    "amv.avi": "-c:v amv -strict -1 -pix_fmt yuvj420p",
    "png.mov": "-c:v png -pix_fmt rgb24",
    "png_4_s.apng": "-c:v apng -f apng -plays 0 -t 4",
    "qtrle.mov": "-c:v qtrle",
    "rpza.mov": "-c:v rpza",
    "smc_4_s.mov": "-c:v smc -pix_fmt pal8 -t 4",
    "cinepak_2_s.avi": "-c:v cinepak -t 2",
    "cinepak_2_s.mov": "-c:v cinepak -t 2",
    "cinepak_2_s.cpk": "-c:v cinepak -t 2 -f film_cpk",
    "msvideo1.avi": "-c:v msvideo1 -pix_fmt rgb555le",
    "msrle.avi": "-c:v msrle -pix_fmt pal8",
    "zmbv.avi": "-c:v zmbv",
    "zlib_4_s.avi": "-c:v zlib -t 4",
    "flashsv.flv": "-c:v flashsv",
    "flashsv2.flv": "-c:v flashsv2",
    "roq_2_s.roq": "-c:v roqvideo -s 128x128 -r 30 -t 2",
    "dv_2_s.dv": "-c:v dvvideo -s 720x576 -r 25 -pix_fmt yuv420p -t 2",
    "dv_2_s.avi": "-c:v dvvideo -s 720x576 -r 25 -pix_fmt yuv420p -t 2",
    "dv_2_s.mov": "-c:v dvvideo -s 720x480 -r 30000/1001 -pix_fmt yuv411p -t 2",
    "v210_4_s.mov": "-c:v v210 -t 4",
    "r210_4_s.mov": "-c:v r210 -t 4",
    "avui_2_s.mov": "-c:v avui -strict -2 -s 720x486 -t 2",
    "speedhq_4_s.mov": "-c:v speedhq -t 4 -pix_fmt yuv422p",
    "qoi_4_s.avi": "-c:v qoi -t 4",
    "tiff_4_s.mov": "-c:v tiff -t 4",
    "targa_4_s.mov": "-c:v targa -t 4",
    "y41p_4_s.avi": "-c:v y41p -pix_fmt yuv411p -t 4",
    "yuv4_4_s.mov": "-c:v yuv4 -t 4",
    "apv_4_s.mp4": "-c:v liboapv -pix_fmt yuv422p10le -t 4",
    **{f"raw_4_s.{suffix}": "-c:v rawvideo -pix_fmt yuv420p -t 4" for suffix in ("avi", "nut", "y4m", "mkv")},
    "raw_4_s.mov": "-c:v rawvideo -pix_fmt uyvy422 -t 4",
    "raw_rgb_4_s.avi": "-c:v rawvideo -pix_fmt bgr24 -t 4",
    "gif.gif": "-r 25",
    "gif_50_fps.gif": "-r 50",
    "webp_4_s.webp": "-c:v libwebp_anim -loop 0 -t 4 -r 25",
    # Time stamps that are not those of a constant rate from 0.
    **{f"vfr_h264.{suffix}": H264 + VFR for suffix in ("mp4", "mkv", "mov", "ts", "flv", "nut", "asf", "avi", "mpg")},
    **{f"vfr_vp9.{suffix}": VP9 + VFR for suffix in ("webm",)},
    **{f"vfr_mpeg4.{suffix}": MPEG4 + VFR for suffix in ("avi", "mp4")},
    "vfr_gif.gif": "-vf select='not(between(mod(n,20),3,6)+eq(mod(n,20),12))',setpts=PTS*1.2 -fps_mode vfr",
    "vfr_hevc.mp4": HEVC + VFR,
    "last_frame_stands_4_s.mp4": H264 + " -vf select='lt(n,240)+eq(n,359)' -fps_mode vfr",
    "last_frame_stands_4_s.mkv": H264 + " -vf select='lt(n,240)+eq(n,359)' -fps_mode vfr",
    "pause_of_5_s.mp4": H264 + " -vf select='lt(n,150)+gt(n,300)' -fps_mode vfr",
    "pause_of_5_s.mkv": H264 + " -vf select='lt(n,150)+gt(n,300)' -fps_mode vfr",
    "pause_of_5_s.ts": H264 + " -vf select='lt(n,150)+gt(n,300)' -fps_mode vfr",
    "pause_of_5_s.webm": VP9 + " -vf select='lt(n,150)+gt(n,300)' -fps_mode vfr",
    **{
        f"starts_at_100_s_h264.{suffix}": H264 + " -output_ts_offset 100"
        for suffix in ("mp4", "mkv", "mov", "ts", "flv", "nut", "mpg")
    },
    "starts_at_100_s_vp9.webm": VP9 + " -output_ts_offset 100",
    "starts_at_100_s_mpeg2.mpg": MPEG2 + " -output_ts_offset 100",
    "starts_below_0_h264.mp4": H264 + " -output_ts_offset -3 -avoid_negative_ts disabled",
    "starts_below_0_h264.mkv": H264 + " -output_ts_offset -3 -avoid_negative_ts disabled",
    "stamps_wrap_h264.ts": H264 + " -output_ts_offset 95436",
    "stamps_wrap_mpeg2.ts": MPEG2 + " -output_ts_offset 95436",
    "stamps_wrap_mpeg2.mpg": MPEG2 + " -output_ts_offset 95436",
}

# File name: the file that is copied without encoding again, options before and behind the input.
COPIED = {
    **{
        f"rotated_{angle}.{suffix}": ("h264.mp4", f"-display_rotation {angle}", "")
        for angle in (90, 180, 270)
        for suffix in ("mp4", "mov", "mkv")
    },
    "mirrored_columns.mp4": ("h264.mp4", "-display_hflip", ""),
    "mirrored_rows.mp4": ("h264.mp4", "-display_vflip", ""),
    "mirrored_and_rotated_90.mp4": ("h264.mp4", "-display_rotation 90 -display_hflip", ""),
    "mirrored_and_rotated_270.mkv": ("h264.mp4", "-display_rotation 270 -display_hflip", ""),
    "rotated_90_hevc.mp4": ("hevc.mp4", "-display_rotation 90", ""),
    "edit_list_from_3_3_s.mp4": ("h264.mp4", "-ss 3.3", ""),
    "edit_list_from_3_3_s.mov": ("h264.mp4", "-ss 3.3", ""),
    "edit_list_from_3_3_s_hevc.mp4": ("hevc.mp4", "-ss 3.3", ""),
    "edit_list_from_3_3_s_open_gop.mp4": ("h264_open_gop.mp4", "-ss 3.3", ""),
    "copied_from_3_3_s.mkv": ("h264.mp4", "-ss 3.3", ""),
    "copied_from_3_3_s.ts": ("h264.mp4", "-ss 3.3", ""),
    "copied_from_3_3_s_open_gop.mkv": ("h264_open_gop.mp4", "-ss 3.3", ""),
    "copied_to_5_s.mp4": ("h264.mp4", "", "-t 5"),
    "cover_art.mp4": ("h264.mp4", "-i {folder}/picture.jpg", "-map 1 -map 0 -disposition:v:1 attached_pic"),
    "copied_from_ts.mp4": ("h264.ts", "", ""),
    "copied_from_avi.mp4": ("h264.avi", "-fflags +genpts", ""),
    "copied_from_avi.mkv": ("mpeg4.avi", "-fflags +genpts", ""),
    # Stamps in the order of decoding, as in a Matroska file that was copied from AVI.
    **{
        f"decoding_stamps_{original.replace('.', '_')}.{suffix}": (original, "", DECODING_STAMPS)
        for original in ("h264.mp4", "h264_open_gop.mp4", "h264_pyramid_16.mp4", "mpeg4.mp4", "hevc.mp4")
        for suffix in ("mkv", "mp4", "ts", "flv", "nut")
        if (original, suffix) != ("mpeg4.mp4", "flv")
    },
    "packed_b_frames.avi": ("mpeg4.m4v", "-fflags +genpts", "-bsf:v mpeg4_unpack_bframes"),
}

# File name: files whose bytes follow each other.
JOINED = {
    "joined_h264.ts": ("h264.ts", "h264.ts"),
    "joined_h264_and_mpeg2.ts": ("h264.ts", "mpeg2.ts"),
    "joined_three_h264.ts": ("h264.ts", "h264_open_gop.ts", "h264_no_b_frames.ts"),
    "joined_hevc.ts": ("hevc.ts", "hevc.ts"),
    "joined_mpeg2.ts": ("mpeg2.ts", "mpeg2.ts"),
    "joined_later_first.ts": ("starts_at_100_s_h264.ts", "h264.ts"),
    "joined_later_last.ts": ("h264.ts", "starts_at_100_s_h264.ts"),
    "joined_mpeg2.mpg": ("mpeg2.mpg", "mpeg2.mpg"),
    "joined_mpeg2.vob": ("mpeg2.vob", "mpeg2.vob"),
    "joined_mpeg1.mpg": ("mpeg1.mpg", "mpeg1.mpg"),
    "joined.h264": ("h264.h264", "h264.h264"),
    "joined.hevc": ("hevc.hevc", "hevc.hevc"),
    "joined.m2v": ("mpeg2.m2v", "mpeg2.m2v"),
    "joined.m4v": ("mpeg4.m4v", "mpeg4.m4v"),
    "joined.mjpeg": ("mjpeg.mjpeg", "mjpeg.mjpeg"),
    "joined_dv_4_s.dv": ("dv_2_s.dv", "dv_2_s.dv"),
    "joined_h264.m2ts": ("h264.m2ts", "h264.m2ts"),
    "joined.mkv": ("h264.mkv", "h264.mkv"),
    "joined_webm.webm": ("vp9.webm", "vp9.webm"),
    "joined_ogg.ogv": ("theora.ogv", "theora.ogv"),
    "joined_flv.flv": ("h264.flv", "h264.flv"),
    "joined_gif.gif": ("gif.gif", "gif.gif"),
    "joined_nut.nut": ("h264.nut", "h264.nut"),
}

# File name: the file, and the part of its bytes that is kept.
CUT = {
    "begins_between_key_frames_h264.ts": ("h264_long_gop.ts", 0.35, 1.0),
    "begins_between_key_frames_48.ts": ("h264.ts", 0.30, 1.0),
    "begins_between_key_frames_open_gop.ts": ("h264_open_gop.ts", 0.35, 1.0),
    "begins_between_key_frames_hevc.ts": ("hevc.ts", 0.35, 1.0),
    "begins_between_key_frames_mpeg2.ts": ("mpeg2.ts", 0.35, 1.0),
    "begins_between_key_frames.mpg": ("mpeg2.mpg", 0.35, 1.0),
    "begins_between_key_frames.h264": ("h264.h264", 0.35, 1.0),
    "begins_between_key_frames.hevc": ("hevc.hevc", 0.35, 1.0),
    "begins_between_key_frames.m2v": ("mpeg2.m2v", 0.35, 1.0),
    "cut_short.mkv": ("h264.mkv", 0.0, 0.6),
    "cut_short.webm": ("vp9.webm", 0.0, 0.6),
    "cut_short.avi": ("mpeg4.avi", 0.0, 0.6),
    "cut_short.ts": ("h264.ts", 0.0, 0.6),
    "cut_short.mpg": ("mpeg2.mpg", 0.0, 0.6),
    "cut_short.flv": ("h264.flv", 0.0, 0.6),
    "cut_short.h264": ("h264.h264", 0.0, 0.6),
    "cut_short_faststart.mp4": ("h264_faststart.mp4", 0.0, 0.6),
    "cut_short_fragmented.mp4": ("h264_fragmented.mp4", 0.0, 0.6),
    "cut_short.wmv": ("wmv2.wmv", 0.0, 0.6),
    "cut_short.ogv": ("theora.ogv", 0.0, 0.6),
    "cut_short.gif": ("gif.gif", 0.0, 0.6),
}

_PATTERN = (
    "testsrc2=size=160x120:rate=30:duration=12[pattern];color=white:size=24x24:rate=30:duration=12[square];"
    "[pattern][square]overlay=x='mod(n*29,136)':y='mod(n*53,96)'"
)


def make(ffmpeg: str, folder: Path) -> dict[str, str]:
    """Make all files that are not in the folder yet; return the reasons why some could not be made."""
    folder.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    source = folder / ".source.mkv"
    _run(ffmpeg, f"-f lavfi -i {_PATTERN} -c:v ffv1 -pix_fmt yuv420p", source)
    _run(ffmpeg, f"-i {source} -frames:v 1", folder / ".picture.jpg")
    for name, options in ENCODED.items():
        _note(failed, name, _run(ffmpeg, f"-i {source} {options}", folder / name))
    for name, (original, before, behind) in COPIED.items():
        before = before.format(folder=folder).replace("picture.jpg", ".picture.jpg")
        command = f"{before} -i {folder / original} -c copy {behind}"
        _note(failed, name, _run(ffmpeg, command, folder / name))
    for name, parts in JOINED.items():
        if not (folder / name).exists() and all((folder / part).exists() for part in parts):
            (folder / name).write_bytes(b"".join((folder / part).read_bytes() for part in parts))
    for name, (original, start, end) in CUT.items():
        if not (folder / name).exists() and (folder / original).exists():
            content = (folder / original).read_bytes()
            (folder / name).write_bytes(content[int(start * len(content)) : int(end * len(content))])
    return failed


def _note(failed: dict[str, str], name: str, reason: str | None) -> None:
    if reason is not None:
        failed[name] = reason


def _run(ffmpeg: str, options: str, path: Path) -> str | None:
    """Run FFmpeg unless the file exists; the last line of its message if it fails."""
    if path.exists():
        return None
    unfinished = path.with_name(f".unfinished{path.suffix}")
    command = [ffmpeg, "-hide_banner", "-loglevel", "error", "-y", "-nostdin"]
    command += [part.strip("'") if part.startswith("'") else part for part in options.split()]
    ended = subprocess.run([*command, "-threads", "2", str(unfinished)], capture_output=True, text=True, check=False)
    if ended.returncode != 0 or not unfinished.stat().st_size:
        unfinished.unlink(missing_ok=True)
        return re.sub(r" @ 0x\w+", "", (ended.stderr.strip().splitlines() or ["no message"])[-1])
    unfinished.rename(path)
    return None

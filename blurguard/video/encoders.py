"""How each codec is written again: encoder, options and quality, as data.

Quality is constant, not the bit rate: on the project's clips what is not hidden keeps an SSIM of 0.98 and more,
at about the size of the source (docs/performance.md has the table). Presets are the fastest that do so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import av

from blurguard.errors import InputError
from blurguard.files.filetypes import AVI, FLV, M2TS, MPEG_TS
from blurguard.video.color import MasteringDisplay
from blurguard.video.reader import VideoReader

# Decoding times that begin before the first picture would move every time in these containers: no B-frames there.
_NO_REORDERING = frozenset({AVI, FLV, MPEG_TS, M2TS})
# What MPEG-1 and MPEG-2 can call their frame rate (ISO/IEC 13818-2, table 6-4).
_MPEG_RATES = tuple(
    Fraction(*rate)
    for rate in ((24000, 1001), (24, 1), (25, 1), (30000, 1001), (30, 1), (50, 1), (60000, 1001), (60, 1))
)
# Frames that an encoder holds back cost memory: at 4K, two thirds of it with SVT-AV1, a quarter with x265.
_SVT_LOW_DELAY = "pred-struct=1:lookahead=0"
_LARGE_PX = 4_000_000
_PRORES_PROFILES = {"Proxy": "proxy", "LT": "lt", "Standard": "standard", "HQ": "hq", "4444": "4444", "XQ": "4444xq"}


@dataclass(frozen=True, slots=True)
class Encoder:
    """How a codec is written.

    Attributes:
        name: FFmpeg's name of the encoder.
        options: its options.
        counts: whether it takes only a fixed frame rate, so that frames are numbered for it, not timed.
        interlaces: whether it can write frames as two fields.
    """

    name: str
    options: dict[str, str] = field(default_factory=dict)
    fixed_rate: bool = False
    supports_interlaced: bool = False


def _constant_quantizer(q: int, **others: str) -> dict[str, str]:
    return {"qmin": str(q), "qmax": str(q), **others}


_VPX = {"deadline": "realtime", "lag-in-frames": "0", "g": "240"}
ENCODERS = {
    "h264": Encoder("libx264", {"preset": "veryfast", "crf": "19.5", "bf": "1"}, supports_interlaced=True),
    "hevc": Encoder("libx265", {"preset": "ultrafast", "crf": "26", "bf": "3"}),
    "vp9": Encoder("libvpx-vp9", _VPX | {"cpu-used": "7", "crf": "36", "b": "0", "row-mt": "1"}),
    "vp8": Encoder("libvpx", _VPX | {"cpu-used": "5", "crf": "20", "b": "40M"}),
    "av1": Encoder("libsvtav1", {"preset": "9", "crf": "30", "g": "240"}),
    "mpeg4": Encoder("mpeg4", _constant_quantizer(3, bf="0", g="240"), fixed_rate=True, supports_interlaced=True),
    "mpeg2video": Encoder(
        "mpeg2video", _constant_quantizer(3, bf="0", g="15"), fixed_rate=True, supports_interlaced=True
    ),
    "mpeg1video": Encoder("mpeg1video", _constant_quantizer(3, bf="0", g="15"), fixed_rate=True),
    "mjpeg": Encoder("mjpeg", _constant_quantizer(5, strict="unofficial")),
    "prores": Encoder("prores_ks", {"vendor": "apl0"}, supports_interlaced=True),
    "ffv1": Encoder("ffv1", {"level": "3", "g": "1", "slicecrc": "1"}),
    "ffvhuff": Encoder("ffvhuff"),
    "huffyuv": Encoder("huffyuv"),
    "utvideo": Encoder("utvideo"),
}


def encoder_for(video: VideoReader, threads: int, quick: bool) -> Encoder:
    """Return the encoder that writes a video as it was, with the options for it.

    ``quick`` H.264 takes two thirds of the time and is of the same quality, but a third larger.

    Raises:
        InputError: there is none for its codec, or it would lose something.
    """
    encoder = ENCODERS.get(video.codec)
    if encoder is None:
        raise InputError(f"{video.path}: {video.codec} video cannot be written; convert it to H.264 in MP4 or Matroska")
    if video.rotation and not video.family.stores_rotation:
        raise InputError(f"{video.path}: {video.family.label} cannot tell its rotation; convert it to MP4 or Matroska")
    if video.interlaced and not encoder.supports_interlaced:
        raise InputError(f"{video.path}: interlaced {video.codec} cannot be written; convert it to H.264")
    more = {"bf": "0"} if video.family in _NO_REORDERING else {}
    if video.codec == "hevc":
        if video.width * video.height > _LARGE_PX:
            more["bf"] = "1"
        more["x265-params"] = _x265(video, threads)
    elif video.codec == "h264":
        more |= {"preset": "superfast"} if quick else {}
    if video.codec == "h264" and video.mastering:
        more["x264-params"] = ":".join(_hdr10(video, video.mastering, "mastering-display", "cll"))
    elif video.codec == "av1":
        hdr10 = _svt_hdr10(video, video.mastering) if video.mastering else []
        more["svtav1-params"] = ":".join([_SVT_LOW_DELAY, *hdr10])
    elif video.codec == "prores":
        more["profile"] = _PRORES_PROFILES.get(video.profile or "", "hq")
    return Encoder(encoder.name, encoder.options | more, encoder.fixed_rate, encoder.supports_interlaced)


def missing_encoders() -> list[str]:
    """Return the codecs that cannot be written here."""
    return [codec for codec, encoder in ENCODERS.items() if encoder.name not in av.codecs_available]


def encoder_time_base(encoder: Encoder, video: VideoReader) -> Fraction:
    """Return the seconds per tick that the encoder is given: the video's, or its nominal frame's."""
    if not encoder.fixed_rate:
        return video.time_base
    if video.codec == "mpeg4":  # 16 bits for each half (ISO/IEC 14496-2, 6.2.3)
        rate = video.rate.limit_denominator(1001)
        return 1 / (rate if rate.numerator < 1 << 16 else Fraction(min(round(rate), 1000)))
    return 1 / min(_MPEG_RATES, key=lambda rate: abs(rate - video.rate))


def _x265(video: VideoReader, threads: int) -> str:
    params = ["log-level=none", "info=0", f"pools={threads or '*'}"]
    if video.width * video.height > _LARGE_PX:
        params += ["b-adapt=0", "rc-lookahead=2"]
    if video.mastering:
        params += ["hdr10=1", *_hdr10(video, video.mastering, "master-display", "max-cll")]
    return ":".join(params)


def _hdr10(video: VideoReader, display: MasteringDisplay, display_key: str, light_key: str) -> list[str]:
    """Return HDR10 metadata as x264 and x265 take it: chromaticity in 1/50000, luminance in 1/10000 cd/m²."""
    named = (("G", display.green), ("B", display.blue), ("R", display.red), ("WP", display.white))
    points = "".join(f"{name}({round(x * 50_000)},{round(y * 50_000)})" for name, (x, y) in named)
    light = [f"{light_key}={video.content_light[0]},{video.content_light[1]}"] if video.content_light else []
    range_ = f"L({round(display.brightest * 10_000)},{round(display.darkest * 10_000)})"
    return [f"{display_key}={points}{range_}", *light]


def _svt_hdr10(video: VideoReader, display: MasteringDisplay) -> list[str]:
    """Return HDR10 metadata as SVT-AV1 takes it, in plain numbers."""
    named = (("G", display.green), ("B", display.blue), ("R", display.red), ("WP", display.white))
    points = "".join(f"{name}({float(x):.5f},{float(y):.5f})" for name, (x, y) in named)
    light = [f"content-light={video.content_light[0]},{video.content_light[1]}"] if video.content_light else []
    return [f"mastering-display={points}L({float(display.brightest):.4f},{float(display.darkest):.4f})", *light]

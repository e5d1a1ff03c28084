"""Encoders and their settings. To add an encoder or to change a setting, edit the table ``ENCODERS``.

A change that gives other results needs a higher ``DIGEST_VERSION`` in anonymize/anonymizer.py, or results made before
count as up to date.

Quality is constant, not the bit rate. On the project's clips, pixels outside hidden regions keep an SSIM of 0.98 and
more, at about the size of the source (table in docs/performance.md). Presets are the fastest that reach this.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import NamedTuple

import av
from av.codec.context import Flags as CodecFlags
from av.container import OutputContainer

from blurguard.errors import InputError
from blurguard.files.filetypes import AVI, FLV, M2TS, MPEG_TS
from blurguard.video.info import MasteringDisplay, VideoInfo

os.environ.setdefault("SVT_LOG", "0")  # SVT-AV1 prints its settings to the terminal otherwise
# Decoding times that begin before the first frame would move all times in these containers: no B-frames there.
_NO_REORDERING = frozenset({AVI, FLV, MPEG_TS, M2TS})
# Frame rates of MPEG-1 and MPEG-2 (ISO/IEC 13818-2, table 6-4).
_MPEG_RATES = tuple(map(Fraction, ["24000/1001", "24", "25", "30000/1001", "30", "50", "60000/1001", "60"]))
_LARGE_PX = 4_000_000


class Hdr10Syntax(NamedTuple):
    """How one encoder expects HDR10 metadata.

    Attributes:
        option: name of the FFmpeg option that carries it.
        display: start of the text for the mastering display.
        light: parameter for the content light level.
        integers: True for integers in units of 1/50000 (chromaticity) and 1/10000 cd/m², False for decimals.
    """

    option: str
    display: str
    light: str
    integers: bool = True


@dataclass(frozen=True, slots=True)
class Encoder:
    """Settings that write one codec. Sets of options are merged in the order of `encoder_for`.

    A later value replaces an earlier one, but is appended to it in an option named ``*-params``.

    Attributes:
        name: FFmpeg's name of the encoder.
        options: for all videos.
        quick: options added when time matters more than size.
        large: options added above ``_LARGE_PX``.
        profiles: value of the option ``profile``, keyed by FFmpeg's name for the source's profile.
        hdr10: how it takes HDR10 metadata. None if it cannot.
        fixed_rate: whether it numbers frames at a fixed rate, and takes no times.
        supports_interlaced: whether it can write frames as two fields.
        ignores_side_data: whether it drops the side data of a frame, except captions.
    """

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    quick: Mapping[str, str] = field(default_factory=dict)
    large: Mapping[str, str] = field(default_factory=dict)
    profiles: Mapping[str, str] = field(default_factory=dict)
    hdr10: Hdr10Syntax | None = None
    fixed_rate: bool = False
    supports_interlaced: bool = False
    ignores_side_data: bool = False


_VPX = {"deadline": "realtime", "lag-in-frames": "0", "g": "240"}
_MPEG = {"qmin": "3", "qmax": "3", "bf": "0"}
ENCODERS = {
    "h264": Encoder(
        "libx264", {"preset": "veryfast", "crf": "19.5", "bf": "1"},
        quick={"preset": "superfast"},  # two thirds of the time at equal quality, but files a third larger
        hdr10=Hdr10Syntax("x264-params", "mastering-display", "cll"), supports_interlaced=True, ignores_side_data=True,
    ),
    "hevc": Encoder(
        "libx265", {"preset": "ultrafast", "crf": "26", "bf": "3", "x265-params": "log-level=none:info=0"},
        # Frames that an encoder holds back are a quarter of its memory at 4K.
        large={"bf": "1", "x265-params": "b-adapt=0:rc-lookahead=2"},
        hdr10=Hdr10Syntax("x265-params", "hdr10=1:master-display", "max-cll"), ignores_side_data=True,
    ),
    "vp9": Encoder(
        "libvpx-vp9", _VPX | {"cpu-used": "7", "crf": "36", "b": "0", "row-mt": "1"}, ignores_side_data=True,
    ),
    "vp8": Encoder("libvpx", _VPX | {"cpu-used": "5", "crf": "20", "b": "40M"}, ignores_side_data=True),
    "av1": Encoder(
        # Low delay: the frames held back otherwise are two thirds of its memory at 4K.
        "libsvtav1", {"preset": "9", "crf": "30", "g": "240", "svtav1-params": "pred-struct=1:lookahead=0"},
        hdr10=Hdr10Syntax("svtav1-params", "mastering-display", "content-light", integers=False),
        ignores_side_data=True,
    ),
    "mpeg4": Encoder("mpeg4", _MPEG | {"g": "240"}, fixed_rate=True, supports_interlaced=True),
    "mpeg2video": Encoder("mpeg2video", _MPEG | {"g": "15"}, fixed_rate=True, supports_interlaced=True),
    "mpeg1video": Encoder("mpeg1video", _MPEG | {"g": "15"}, fixed_rate=True),
    "mjpeg": Encoder("mjpeg", {"qmin": "5", "qmax": "5", "strict": "unofficial"}),
    "prores": Encoder(
        "prores_ks", {"vendor": "apl0", "profile": "hq"}, supports_interlaced=True,
        profiles={"Proxy": "proxy", "LT": "lt", "Standard": "standard", "4444": "4444", "XQ": "4444xq"},
    ),
    "ffv1": Encoder("ffv1", {"level": "3", "g": "1", "slicecrc": "1"}),
    **{name: Encoder(name) for name in ("ffvhuff", "huffyuv", "utvideo")},
}  # fmt: skip


def encoder_for(info: VideoInfo, threads: int, quick: bool) -> Encoder:
    """Return the encoder of a video's own codec, with all options for this video.

    Raises:
        InputError: the codec cannot be written, or rotation or interlacing would be lost.
    """
    encoder, container = ENCODERS.get(info.codec), info.container
    if encoder is None:
        raise InputError(f"{info.path}: {info.codec} video cannot be written; convert it to H.264 in MP4 or Matroska")
    if info.rotation and not container.stores_rotation:
        raise InputError(f"{info.path}: {container.label} cannot store its rotation; convert it to MP4 or Matroska")
    if info.interlaced and not encoder.supports_interlaced:
        raise InputError(f"{info.path}: interlaced {info.codec} cannot be written; convert it to H.264")
    layers = [
        encoder.options,
        {"x265-params": f"pools={threads or '*'}"} if encoder.name == "libx265" else {},  # it ignores thread_count
        encoder.large if info.width * info.height > _LARGE_PX else {},
        encoder.quick if quick else {},
        {"profile": encoder.profiles[info.profile]} if info.profile in encoder.profiles else {},
        _hdr10_options(encoder.hdr10, info.mastering, info.content_light) if encoder.hdr10 and info.mastering else {},
        {"bf": "0"} if container in _NO_REORDERING else {},
    ]
    return replace(encoder, options=_merge(layers))


def add_encoder(output: OutputContainer, encoder: Encoder, info: VideoInfo, threads: int) -> av.VideoStream:
    """Add a video track to an output container and open its encoder.

    Raises:
        InputError: the encoder does not support this size or pixel format.
    """
    supported = {pixel_format.name for pixel_format in av.Codec(encoder.name, "w").video_formats or []}
    video = f"{info.path}: {info.kind}"
    if info.pixel_format not in supported:
        raise InputError(f"{video} with {info.pixel_format} pixels cannot be written; convert it to H.264 or HEVC")
    try:
        stream = output.add_stream(encoder.name, rate=info.rate, options=dict(encoder.options))
        assert isinstance(stream, av.VideoStream)  # noqa: S101 - for the type checker; every encoder of ours is one
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = info.width, info.height, info.pixel_format
        context.time_base, stream.time_base = encoder_time_base(encoder, info), info.time_base
        context.color_range, context.color_primaries, context.color_trc, context.colorspace = info.color
        if info.pixel_aspect:
            context.sample_aspect_ratio = info.pixel_aspect
        context.flags |= int(CodecFlags.bitexact)
        if info.interlaced:
            context.flags |= int(CodecFlags.interlaced_dct) | int(CodecFlags.interlaced_me)
            context.field_order = info.field_order
        if info.codec == "hevc" and info.codec_tag in ("hvc1", "hev1"):
            context.codec_tag = info.codec_tag
        if info.display_matrix:
            stream.set_display_matrix(info.display_matrix)
        context.thread_count = threads
        context.open()
    except (av.FFmpegError, ValueError) as error:
        problem = f"{video} of {info.width} x {info.height} px cannot be written: {error}"
        raise InputError(f"{problem}; convert it to H.264 in MP4 or Matroska") from error
    return stream


def missing_encoders() -> list[str]:
    """Return the codecs whose encoder this FFmpeg lacks."""
    return [codec for codec, encoder in ENCODERS.items() if encoder.name not in av.codecs_available]


def encoder_time_base(encoder: Encoder, info: VideoInfo) -> Fraction:
    """Return the encoder's seconds per tick: the video's, or one nominal frame at a fixed rate."""
    if not encoder.fixed_rate:
        return info.time_base
    if info.codec == "mpeg4":  # 16 bits for each half (ISO/IEC 14496-2, 6.2.3)
        rate = info.rate.limit_denominator(1001)
        return 1 / (rate if rate.numerator < 1 << 16 else Fraction(min(round(rate), 1000)))
    return 1 / min(_MPEG_RATES, key=lambda rate: abs(rate - info.rate))


def _merge(layers: list[Mapping[str, str]]) -> dict[str, str]:
    """Return options in which a later layer replaces an earlier one, or is appended to a list of parameters."""
    options: dict[str, str] = {}
    for layer in layers:
        for name, value in layer.items():
            extends = name.endswith("-params") and name in options
            options[name] = f"{options[name]}:{value}" if extends else value
    return options


def _hdr10_options(syntax: Hdr10Syntax, mastering: MasteringDisplay, light: tuple[int, int] | None) -> dict[str, str]:
    """Return a video's HDR10 metadata as an option."""
    display = ""
    for name in ("G", "B", "R", "WP", "L"):
        unit, digits = (10_000, 4) if name == "L" else (50_000, 5)
        values = (round(x * unit) if syntax.integers else f"{float(x):.{digits}f}" for x in mastering[name])
        display += "{}({},{})".format(name, *values)
    light_level = ":{}={},{}".format(syntax.light, *light) if light else ""
    return {syntax.option: f"{syntax.display}={display}{light_level}"}

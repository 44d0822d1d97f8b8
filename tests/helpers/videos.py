"""Clips that say which of their frames is which, clips of given pictures, damaged ones, and facts of the real ones."""

import math
from fractions import Fraction

import av
import numpy as np
from PIL import Image

BITS = 8  # black or white columns of a frame of `write_video`


def write_video(path, codec="libx264", frames=40, width=128, height=64, gop=12, b_frames=None, options=None):
    """A clip at 25 frames a second whose frame i shows i in black and white columns; see `read_numbers`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", gop
        if b_frames is not None:
            stream.max_b_frames = b_frames
        for index in range(frames):
            columns = [255 * (index >> bit & 1) for bit in range(BITS) for _ in range(width // BITS)]
            picture = np.broadcast_to(np.array(columns, np.uint8)[None, :, None], (height, width, 3))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")))
        container.mux(stream.encode())
    return path


def read_numbers(frames):
    """Which frame of `write_video` each frame is, of (n, H, W, 3)."""
    width = frames.shape[2] // BITS
    means = frames.reshape(*frames.shape[:2], BITS, width, 3).mean(axis=(1, 3, 4))  # (n, bits)
    return ((means > 128) << np.arange(BITS)).sum(axis=1).tolist()


def level_of(index: int) -> int:
    """The grey level (limited range) of a clip's frame: its index can be read back from the pixels."""
    return 20 + 3 * index


def write_clip(
    path,
    num_frames=30,
    rate=30,
    size=(64, 48),
    codec="libx264",
    timestamps=None,
    pix_fmt="yuv420p",
    **options,
):
    """A clip of plain frames whose grey level tells their index; timestamps are in frames of `rate`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    timestamps = range(num_frames) if timestamps is None else timestamps
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.time_base = 1 / Fraction(rate)
        for index, timestamp in enumerate(timestamps):
            pixels = np.full((size[1] * 3 // 2, size[0]), 128, np.uint8)  # (H*3/2, W): Y, then U and V
            pixels[: size[1]] = level_of(index)
            frame = av.VideoFrame.from_ndarray(pixels, format="yuv420p").reformat(format=pix_fmt)
            frame.pts, frame.time_base = timestamp, 1 / Fraction(rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def indices_of(planes) -> list[int]:
    """Which frame of `write_clip` each luma plane (H, W) is."""
    return [round((float(np.median(plane)) - level_of(0)) / 3) for plane in planes]


def shown_at(times, fps, end) -> list[int]:
    """Slow reference: the last frame whose time is not after k / fps, for all k before the end, each once."""
    chosen = []
    for k in range(math.ceil(end * fps)):
        frame = max(index for index, shown in enumerate(times) if shown <= Fraction(k) / fps)
        if frame not in chosen:
            chosen.append(frame)
    return chosen


def picture(height, width, seed=0):
    """Smooth colours with some noise: (1, height, width, 3) uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    noise = np.random.default_rng(seed + 1).integers(-20, 21, (height, width, 3))
    return (smooth + noise).clip(0, 255).astype(np.uint8)[None]


def noise(frames, height, width):
    """Pictures that compress to many bytes: (frames, height, width, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def encode(path, pictures, codec="libx264", pix_fmt="yuv420p", milliseconds=None, options=None):
    """A clip of some pictures, at 25 frames a second or with times of their own."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = pix_fmt
        if milliseconds is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, pixels in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
            if milliseconds is not None:
                frame.pts, frame.time_base = milliseconds[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def damage(path, part, keep_length):
    """Cut a file behind the given part of its bytes; with `keep_length`, zeros stand there instead."""
    content = path.read_bytes()
    end = int(len(content) * part)
    path.write_bytes(content[:end] + bytes((len(content) - end) * keep_length))


def clip_facts():
    """Frames that decode, height and width, of the clips that are whole."""
    return {
        "demo.mp4": (280, 256, 340),
        "demo_skeleton.mp4": (72, 1080, 1920),
        "demo_spatiotemporal_det.mp4": (57, 256, 340),
        "part_0.mp4": (32, 256, 340),
        "test.avi": (164, 240, 320),
        "test_video_structuralize.mp4": (300, 240, 426),
        "flipping_a_pancake.mkv": (310, 240, 426),
        "unordered.mov": (4, 50, 50),
        "video_0.mov": (3, 320, 568),
        "video_90.mov": (3, 568, 320),
        "video_180.mov": (3, 320, 568),
        "video_270.mov": (3, 568, 320),
    }

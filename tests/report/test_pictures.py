"""The pictures as they are drawn: no text covers another, colours survive in grey, values stand where they belong."""

import io

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.image import AxesImage, imread
from matplotlib.patches import Rectangle

from common.errors import UserError
from dataloaders.video.preprocessing import resize_and_crop
from dataloaders.video.reader import DecodingSettings, VideoReader
from dataloaders.video.sampling import FrameSampler
from helpers.drawing.texts import assert_legible, drawn_texts, outside, overlapping
from helpers.paths import shared_data
from modules.report.mistakes import Mistake, Picture, draw_mistakes
from modules.report.page import BLUE, GREEN, MAP, VERMILION, evenly, new_figure, ranges, text_width, wrapped, write
from modules.report.strips import Row, Strip, Timeline, draw_strips, draw_timelines

LONG = "a man in a very long caption that tells of $5 and more of what nobody asked for, " * 3
PATH = "stop\n/data/experiments/2025/msrvtt/stop_with_many_settings_in_its_name/seed1"


def frames(count, size=56, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def maps(count, grid=7, scale=1.0, seed=0):
    return scale * np.random.default_rng(seed).random((count, grid, grid))


def strip(count, of=None, title="clip.mp4: “a dog”"):
    shown = frames(count) if of is None else of
    chosen = maps(count, seed=3) > 0.9
    return Strip(
        title,
        shown,
        [
            Row("frames, as the models see them"),
            Row("zero-shot\ncosine 0.312", maps(count, scale=1.3), "share, %"),
            Row(f"{PATH}\nmerged: 1–2, 3–4", maps(count, scale=1e-4), "share, %"),
            Row("stop", chosen=chosen),
            Row("M, temporal dynamics", maps(count, scale=3e4), "mean square"),
        ],
    )


def draw_retrieval(count=3, of=None, caption=LONG):
    pictures = [Picture(frames(1)[0] if of is None else of, f"{0.1 * at:.3f}\nvideo{at}", at == 0) for at in range(6)]
    mistakes = [Mistake(f"rank {at} of 9\n“{caption}”", pictures) for at in range(count)]
    return draw_mistakes("runs/stop: what it gets wrong", ["query", "right video", "retrieved", *[""] * 4], mistakes)


def timeline(count, of=None, groups=()):
    gaps = max(len(groups) or count, 1) - 1
    values = np.linspace(0, 1, gaps) if gaps else np.zeros(0)
    return Timeline(f"clip.mp4: {LONG}", frames(count) if of is None else of, values, np.ceil(4 * values), 4, groups)


@pytest.mark.parametrize("count", [1, 12, 64])
@pytest.mark.parametrize("width", [3.3, 7.0])
def test_no_text_of_a_strip_covers_another_or_leaves_the_page(count, width):
    figure = draw_strips([strip(count), strip(count, title=f"other.mp4: “{LONG}”")], width)
    assert_legible(figure, ["cosine 0.312", "sampled frame", "share, %", "merged:"])
    assert figure.get_figwidth() == width


@pytest.mark.parametrize("count", [1, 2, 8, 12, 64])
@pytest.mark.parametrize("width", [3.3, 7.0])
def test_no_text_of_a_timeline_covers_another_or_leaves_the_page(count, width):
    groups = [(1, 2), (3, 4), (5,)] if count == 8 else ()
    of = frames(5) if groups else None
    assert_legible(
        draw_timelines([timeline(count, of, groups), timeline(count)], width), ["sampled frame", "variation"]
    )


def test_no_text_of_mistakes_covers_another_or_leaves_the_page():
    assert_legible(draw_retrieval(), ["right video", "rank 2 of 9", "0.500", "video5"])
    assert_legible(draw_retrieval(1, np.zeros((90, 160, 3), np.uint8), "a"))


def test_a_text_that_covers_another_or_leaves_the_page_is_found():
    figure = new_figure(2, 1)
    figure.text(0.1, 0.5, "one")
    figure.text(0.12, 0.5, "other")
    figure.text(0.9, 0.9, "a text that goes on")
    texts = drawn_texts(figure)
    assert overlapping(texts) == [("one", "other")] and outside(figure, texts) == ["a text that goes on"]
    with pytest.raises(AssertionError):
        assert_legible(figure)


@pytest.mark.parametrize("name", ["test.mp4", "video_90.mov"])
def test_real_clips_are_legible_at_their_sizes_and_shapes(name):
    path = shared_data("videos") / name
    reader = VideoReader(DecodingSettings())
    clip, middle = reader.read(path, 12, FrameSampler()), reader.read(path, 1, FrameSampler())[0]
    reader.close()
    seen = resize_and_crop(clip, 224).permute(0, 2, 3, 1).numpy()
    assert_legible(draw_strips([strip(len(seen), seen)]))
    assert_legible(draw_timelines([timeline(len(seen), seen)]))
    assert_legible(draw_retrieval(2, middle))


def images(figure):
    return [image for axes in figure.axes for image in axes.get_images() if isinstance(image, AxesImage)]


def test_a_map_lies_on_its_frame_and_a_row_has_one_scale():
    values = np.zeros((3, 7, 7))
    values[1, 2, 5] = 4.0
    values[2, 0, 0] = 1.0
    shown = frames(3)
    figure = draw_strips([Strip("t", shown, [Row("m", values, "%"), Row("n", 2 * values, "%")])])
    figure.canvas.draw()
    over = [image for image in images(figure) if image.get_array().shape == (7, 7)]
    assert len(over) == 6
    for row, top in ((over[:3], 4.0), (over[3:], 8.0)):
        assert [image.norm.vmax for image in row] == [top] * 3 and row[0].norm.vmin == 0
        for image, expected in zip(row, values, strict=True):
            assert np.array_equal(image.get_array(), expected * top / 4)
            assert image.get_extent() == [0, 56, 56, 0], "patch (2, 5) is the third row and sixth column of the frame"
    texts = [text for text, _ in drawn_texts(figure)]
    assert texts.count("4") == 1 and texts.count("8") == 1 and texts.count("0") == 2


def test_chosen_patches_are_outlined_where_they_are():
    chosen = np.zeros((2, 7, 7), bool)
    chosen[0, 1, 4] = chosen[1, 6, 0] = True
    figure = draw_strips([Strip("t", frames(2), [Row("r", chosen=chosen)])])
    found = [
        (patch.get_xy(), patch.get_width())
        for axes in figure.axes
        for patch in axes.patches
        if isinstance(patch, Rectangle) and not patch.get_fill()
    ]
    assert found == [((32.0, 8.0), 8.0), ((0.0, 48.0), 8.0)]


def test_what_changes_stands_in_the_gap_where_it_changes():
    line = Timeline("t", frames(5), np.array([0.2, 1.0]), np.array([1, 4]), 4, [(1, 2), (3,), (4, 5)])
    figure = draw_timelines([line])
    curve = next(drawn for axes in figure.axes for drawn in axes.lines if len(drawn.get_xdata()) == 2)
    assert curve.get_xdata().tolist() == [2.5, 3.5] and curve.get_ydata().tolist() == [0.2, 1.0]
    bars = next(axes for axes in figure.axes if axes.containers).patches
    assert [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in bars] == [(2.5, 1), (3.5, 4)]
    strip_axes = next(axes for axes in figure.axes if len(axes.get_images()) == 5)
    for number, image in enumerate(strip_axes.get_images(), 1):
        left, right, *_ = image.get_extent()
        assert (left + right) / 2 == pytest.approx(number)
        box = image.get_window_extent()
        assert box.width == pytest.approx(box.height, rel=0.01), "frames are not stretched"
    below = next(axes for axes in figure.axes if curve in axes.lines)
    assert below.get_xlim() == strip_axes.get_xlim()
    assert below.get_position().x0 == strip_axes.get_position().x0
    assert "1–2, 3, 4–5 merged" in below.get_xlabel()


def test_a_timeline_of_many_frames_shows_some_large_enough_to_be_seen_each_where_it_is():
    numbered = np.zeros((64, 32, 32, 3), np.uint8) + np.arange(64, dtype=np.uint8)[:, None, None, None]
    figure = draw_timelines([timeline(64, numbered)], 7.0)
    figure.canvas.draw()
    seen = next(axes for axes in figure.axes if len(axes.get_images()) > 5).get_images()
    numbers = [int(image.get_array()[0, 0, 0]) + 1 for image in seen]
    assert 8 <= len(seen) <= 20 and numbers == sorted(set(numbers))
    for number, image in zip(numbers, seen, strict=True):
        left, right, *_ = image.get_extent()
        assert left < number < right
        box = image.get_window_extent()
        assert box.width == pytest.approx(box.height, rel=0.03) and box.width / figure.dpi > 0.35
    assert_legible(figure, [f"{len(seen)} of 64 shown"])


def test_one_frame_has_no_gap_and_says_so():
    assert_legible(draw_timelines([timeline(1)]), ["there is no gap"])


def lightness(colours):
    """CIE L* of sRGB colours (…, 3)."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)


def test_colours_survive_print_in_grey():
    grey = lightness(colormaps[MAP](np.arange(256))[:, :3])
    assert (np.diff(grey) > 0).all() and grey[-1] - grey[0] > 60
    hexadecimal = [np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]) for colour in (VERMILION, BLUE)]
    white, drawn = 100, [float(lightness(colour)) for colour in hexadecimal]
    assert all(white - colour > 40 for colour in drawn), "outlines stand on white"
    assert GREEN not in (VERMILION, BLUE)


def test_frames_that_have_no_room_are_left_out_evenly_and_that_is_said():
    assert evenly(12, 12) == list(range(12)) and evenly(64, 3) == [0, 32, 63] and evenly(5, 1) == [2]
    figure = draw_strips([strip(64)])
    texts = [text for text, _ in drawn_texts(figure)]
    numbers = [int(text) for text in texts if text.isdecimal() and text != "0"]
    shown = sum(text.isdecimal() for text in texts[: texts.index("64") + 1]) if "64" in texts else len(numbers)
    assert {1, 64} <= set(numbers) and f"{shown} of 64 frames are shown" in " ".join(texts)


def test_lines_are_broken_where_they_fit_and_cut_where_there_are_too_many():
    figure = new_figure(3, 1)
    for text in (LONG, PATH, "x" * 300):
        lines = wrapped(figure, text, 1.0, 50)
        assert all(text_width(figure, line) <= 1.0 for line in lines)
        assert "".join("".join(lines).split()) == "".join(text.split())
        few = wrapped(figure, text, 1.0, 2)
        assert len(few) == 2 and few[1].endswith("…") and text_width(figure, few[1]) <= 1.0
    assert wrapped(figure, "a\nb", 1.0, 2) == ["a", "b"]
    assert ranges([(1, 2), (3,), (4, 5, 6)]) == "1–2, 3, 4–6"


def test_a_picture_is_the_same_file_each_time_and_a_form_that_is_none_is_refused(tmp_path):
    contents = []
    for name in ("a.png", "b.png"):
        write(draw_strips([strip(2)]), tmp_path / "new" / name)
        contents.append((tmp_path / "new" / name).read_bytes())
    assert contents[0] == contents[1] and imread(io.BytesIO(contents[0])).shape[1] == 1400
    write(draw_strips([strip(1)]), tmp_path / "a.pdf")
    with pytest.raises(UserError, match=r"a\.mp3: give a name that ends with one of .*\.png"):
        write(draw_strips([strip(1)]), tmp_path / "a.mp3")
    with pytest.raises(UserError, match="cannot be written"):
        write(draw_strips([strip(1)]), tmp_path / "a.pdf" / "b.png")

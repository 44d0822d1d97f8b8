"""`scripts/visualize.py` on runs and videos: what it draws is what the model returns, and what is not there is said."""

import csv
import shutil

import numpy as np
import pytest
import torch

import main_task_recognition
import scripts.visualize as visualize
from helpers.drawing.texts import assert_legible
from helpers.flags import path_of
from helpers.methods import FORMS, disturb, make_model
from helpers.runs import rows_of, run
from helpers.tiny import TINY_TRAINING, make_tiny_clip, random_videos
from modules.methods import METHODS
from modules.program.inspection import check_layer, groups_of, inspect, spread
from modules.program.loading import Run, load_run
from modules.report.strips import Timeline, draw_timelines
from modules.runtime.compute import Compute
from modules.runtime.precision import choose_precision
from modules.runtime.processes import Processes
from modules.tasks.metrics import rank
from modules.tasks.retrieval import Embeddings
from scripts.figures.mistakes import arguments_of as flags_again
from scripts.figures.mistakes import checkpoint_of, most_confused, query_of, read_config, worst_queries

T, P, LAYERS = 4, 9, 3


@pytest.fixture(scope="module")
def trained(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures") / "run"
    assert run(tiny_run, folder, *TINY_TRAINING, "--epochs", "1") == 0
    return folder


@pytest.fixture(scope="module")
def video(tiny_run):
    return path_of(tiny_run, "--features_path") / "video0.mp4"


@pytest.fixture
def drawn(monkeypatch):
    """What was drawn: the arguments of each call, and that its figure is legible."""
    calls = []

    def keep(name):
        draw = getattr(visualize, name)

        def drawing(*args):
            calls.append(args)
            figure = draw(*args)
            assert_legible(figure)
            return figure

        monkeypatch.setattr(visualize, name, drawing)

    for name in ("draw_strips", "draw_timelines", "draw_mistakes"):
        keep(name)
    return calls


def run_of(form, **more):
    """A run around the tiny CLIP whose model did not train."""
    method, settings = FORMS[form]
    clip = make_tiny_clip()
    model = disturb(make_model(form, clip, T, **more)).eval()
    compute = Compute(Processes(0, 1, torch.device("cpu")), choose_precision("fp32", torch.device("cpu")))
    return Run(model, clip, method, METHODS[method].settings(**settings | more), T, 12, compute)


def test_a_row_a_run_with_its_map_and_its_similarity(trained, video, drawn, tmp_path, capsys):
    output = tmp_path / "a.png"
    flags = ["attention", str(video), "--text", "a red circle", "--runs", "zero_shot", str(trained)]
    visualize.main([*flags, "--output", str(output), "--layer", "1"])
    assert capsys.readouterr().out.strip() == str(output) and output.stat().st_size > 10_000
    (strip,) = drawn[0][0]
    assert [row.label.split("\n")[0] for row in strip.rows] == ["frames, as the models see them", "zero-shot", "stop"]
    assert strip.title == "video0.mp4: “a red circle”. Attention of the read-out token to each frame's patches, layer 1"
    for row, source in zip(strip.rows[1:], ("zero_shot", trained), strict=True):
        loaded = visualize.load_runs([str(trained), str(source)])[1]
        text, seen = loaded.embed_texts(["a red circle"]), loaded.embed_videos([video], num_workers=0)
        cosine = visualize.in_digits((text @ seen.T).item())
        assert row.label.split("\n")[-1] == f"cosine {cosine}"
        frames = torch.from_numpy(strip.frames).permute(0, 3, 1, 2)[None]
        with torch.no_grad():
            out = loaded.model.encode_video(frames, torch.tensor([T]), return_details=True)
        expected = 100 * out["readout_attention"][1, 0].view(T, 3, 3)
        np.testing.assert_allclose(row.maps, expected, atol=1e-4)


def test_rollout_and_several_videos_with_their_texts(trained, video, drawn, tmp_path):
    videos = [str(video), str(video.with_name("video1.mp4"))]
    flags = ["attention", *videos, "--text", "one", "two", "--runs", str(trained), "--rollout", "--names", "STOP"]
    visualize.main([*flags, "--output", str(tmp_path / "a.png")])
    strips = drawn[0][0]
    assert [("one" in strip.title, "two" in strip.title) for strip in strips] == [(True, False), (False, True)]
    assert all("rollout" in strip.title and strip.rows[1].label.startswith("STOP\ncosine") for strip in strips)
    assert not np.allclose(strips[0].rows[1].maps, strips[1].rows[1].maps)


def test_the_chosen_patches_and_what_they_were_chosen_by(trained, video, drawn, tmp_path):
    visualize.main(["regions", str(video), "--runs", str(trained), "--maps", "--output", str(tmp_path / "a.png")])
    (strip,) = drawn[0][0]
    chosen, a, m, w = strip.rows
    assert chosen.chosen.sum((1, 2)).tolist() == [3] * T
    for frame in range(T):
        largest = np.argsort(-w.maps[frame].flatten(), kind="stable")[:3]
        assert set(np.flatnonzero(chosen.chosen[frame])) == set(largest)
    np.testing.assert_allclose(w.maps, 0.5 * a.maps + 0.5 * m.maps / m.maps.sum((1, 2), keepdims=True), atol=1e-6)


@pytest.mark.parametrize(("norm", "unit"), [("frame", "share"), ("none", "mean square")])
def test_the_unit_of_the_dynamics_is_that_of_the_runs_settings(norm, unit):
    run = run_of("stop", dynamics_norm=norm)
    found = inspect(run, random_videos(1, T)[0], T)
    strip = visualize.region_strip("a.mp4", ["runs/stop"], ["STOP"], [run], [found], with_maps=True)
    _, _, m, _ = strip.rows
    assert (m.label, m.unit) == ("M, temporal dynamics", unit)
    assert np.allclose(m.maps.sum((1, 2)), 1, atol=1e-5) == (unit == "share")


@pytest.mark.parametrize("count", [1, T])
def test_a_timeline_of_a_run(trained, video, drawn, tmp_path, count):
    flags = ["timeline", str(video), "--runs", str(trained), "--max_frames", str(count)]
    visualize.main([*flags, "--output", str(tmp_path / "a.png")])
    (line,) = drawn[0][0]
    assert len(line.frames) == count and len(line.variation) == len(line.tokens) == count - 1
    assert line.slots == 4 and (line.tokens <= 4).all()


@pytest.mark.parametrize("gap", range(T - 1))
def test_the_largest_variation_lies_at_the_gap_where_a_planted_jump_happens(gap):
    """N^t looks at three gaps; at its middle alone it is sharp."""
    run = run_of("stop")
    prompting = run.model.video_encoder.prompting
    with torch.no_grad():
        prompting.inter_frame.dynamics.weight.zero_()[..., 1, 1, 1] = 1
        for parameter in prompting.intra_frame.prompter.linear_out.parameters():
            parameter.zero_()  # as at the start of training
    before, after = random_videos(1, 2)[0]
    frames = torch.stack([before] * (gap + 1) + [after] * (T - 1 - gap))
    found = inspect(run, frames, T)
    details = found.layers[0]
    assert details["frame_variation"].argmax() == gap and details["frame_variation"][gap] == 1
    assert details["num_temporal_prompts"].tolist() == [4 * (at == gap) for at in range(T - 1)]
    line = Timeline("t", found.frames, details["frame_variation"], details["num_temporal_prompts"], 4, found.groups[0])
    curve = next(axes.lines[0] for axes in draw_timelines([line]).axes if axes.lines)
    assert curve.get_xdata()[np.argmax(curve.get_ydata())] == gap + 1.5


@pytest.mark.parametrize("form", ["stop", "stop_controls", "zero_shot", "tempme", "dgl_transformer", "tightTransf"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_video_is_seen_without_its_padding(form, count):
    found = inspect(run_of(form), random_videos(1, T)[0], count, ["a", "b"], rollout=True)
    assert found.frames.shape == (count, 24, 24, 3)
    assert found.attention.shape == (LAYERS, count, 3, 3) and found.rollout.shape == (count, 3, 3)
    assert found.groups == [[(number,) for number in range(1, count + 1)]] * LAYERS
    assert len(found.similarity) == 2 and found.is_cosine == (form != "tightTransf")
    assert set(found.layers) == (set(range(LAYERS)) if form.startswith("stop") else set())
    for details in found.layers.values():
        assert details["discriminative_regions"].shape == (count, 3, 3)
        assert details["frame_variation"].shape == details["num_temporal_prompts"].shape == (count - 1,)


def test_merged_frames_are_named_and_what_they_have_is_each_frames():
    found = inspect(run_of("stop", merge_frames="1,2"), random_videos(1, T)[0], 3)
    assert found.groups == [[(1,), (2,), (3,)], [(1, 2), (3,)], [(1, 2, 3)]]
    assert visualize.merged_in(found, 0) == "" and visualize.merged_in(found, 1) == "\nmerged: 1–2, 3"
    regions = found.layers[1]["discriminative_regions"]
    assert len(regions) == 2 and "frame_variation" not in found.layers[2], "one frame is left"
    shown = spread(regions, found.groups[1])
    assert np.array_equal(shown, regions[[0, 0, 1]])
    assert groups_of([2.0, 1.0, 0.0]) == [(1, 2), (3,)]


def test_layers_that_are_not_there_are_refused():
    found = inspect(run_of("stop", prompt_layers="0,1"), random_videos(1, T)[0], T)
    assert check_layer(None, found) == 2 and check_layer(None, found, "frame_variation") == 1
    for layer, name, message in ((3, None, "layers 0 to 2"), (2, "frame_variation", "before layer 0, 1 only")):
        with pytest.raises(ValueError, match=message):
            check_layer(layer, found, name)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["regions", "{video}", "--runs", "zero_shot", "--clip", "{clip}", "--max_words", "12"],
            "zero_shot: no layer of this run has discrimi",
        ),
        (["timeline", "{video}", "--runs", "{run}", "--layer", "7"], "layers 0 to 2"),
        (["attention", "{video}", "--text", "a", "b", "--runs", "{run}"], "one for each of 1"),
        (["attention", "{video}", "--text", "a", "--runs", "nowhere"], "--runs nowhere: there is no such folder"),
        (["attention", "{video}", "--text", "a", "--runs", "{run}", "--names", "a", "b"], "1 runs need as many names"),
        (["attention", "none.mp4", "--text", "a", "--runs", "{run}"], "none.mp4: there is no such file"),
        (["attention", "{run}/config.json", "--text", "a", "--runs", "{run}"], "config.json"),
        (["attention", "{video}", "--text", "a", "--runs", "{run}", "--rollout", "--layer", "1"], "without --layer"),
        (["attention", "{video}", "--text", "a", "--runs", "{run}", "--output", "a.xyz"], "ends with one of"),
        (["errors", "nowhere"], "nowhere is not the folder of a run"),
        (["errors", "{splits}"], "holds a run for each of 2 splits: give one, such as {splits}/split1"),
        (["regions", "{video}", "--runs", "{splits}"], "holds a run for each of 2 splits"),
    ],
)
def test_what_is_not_there_is_said(trained, video, tiny_run, flags, message, tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path)
    splits = tmp_path_factory.mktemp("mean")
    for name in ("split1", "split2"):
        (splits / name).symlink_to(trained)
    places = {"video": video, "run": trained, "clip": path_of(tiny_run, "--pretrained_clip_name"), "splits": splits}
    with pytest.raises(SystemExit) as error:
        visualize.main([flag.format(**places) for flag in flags])
    assert message.format(**places) in str(error.value) and str(error.value).startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_runs_that_see_different_frames_are_not_compared(trained):
    other = load_run(trained, max_frames=2)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match=r"see different frames.*--max_frames"):
        patch.setattr(visualize, "load_run", lambda source, **_: other if source == "/" else load_run(trained))
        visualize.load_runs([str(trained), "/"])


def test_the_worst_queries_of_a_run_with_what_they_found(trained, drawn, tmp_path, tiny_run):
    flags = ["errors", str(trained), "--count", "2", "--output", str(tmp_path / "e.png")]
    visualize.main([*flags, "--num_thread_reader", "0"])
    title, _, mistakes, _ = drawn[0]
    assert "queries with the worst ranks, 2 of 6" in title
    ranks = [float(mistake.label.split()[1]) for mistake in mistakes]
    assert ranks == sorted(ranks, reverse=True) and all(len(mistake.pictures) == 6 for mistake in mistakes)
    for mistake in mistakes:
        similar = [float(picture.caption.split("\n")[0].replace("−", "-")) for picture in mistake.pictures]
        better = sum(other > similar[0] for other in similar[1:])
        assert [picture.right for picture in mistake.pictures] == [True] + [False] * 5
        assert similar[1:] == sorted(similar[1:], reverse=True)
        assert float(mistake.label.split()[1]) == pytest.approx(1 + better, abs=0.6)

    moved = tmp_path / "videos"
    shutil.copytree(path_of(tiny_run, "--features_path"), moved)
    visualize.main([*flags, "--num_thread_reader", "0", "--features_path", str(moved)])
    assert [mistake.label for mistake in drawn[1][2]] == [mistake.label for mistake in mistakes]


def test_queries_are_ranked_as_in_the_runs_own_file(trained):
    settings = read_config(trained)
    checkpoint = checkpoint_of(trained, settings)
    samples, queries, count = worst_queries(flags_again(settings, checkpoint, []), checkpoint, 100)
    rows = [row for row in rows_of(trained / "ranks.csv") if row["direction"] == "t2v"]
    assert len(queries) == len(samples) == len(rows) == count == 6
    assert [f"{query.rank:.1f}" for query in queries] == sorted((row["rank"] for row in rows), key=float, reverse=True)
    written = {row["video"]: row for row in rows}
    for query in queries:
        row = written[query.video]
        assert (f"{query.rank:.1f}", f"{query.similarity:.6f}") == (row["rank"], row["similarity"])
        assert query.retrieved[0][0] == row["first_video"] or query.video == row["first_video"]


def test_queries_by_hand():
    similarity = np.array([[0.1, 0.9, 0.5], [0.3, 0.2, 0.2], [0.0, 0.0, 1.0]])
    part = Embeddings(np.eye(3), np.eye(3), np.arange(3), list("123"), list("xyz"), list("abc"))
    ranking = rank(similarity)["t2v"]
    first, second, _ = (query_of(part, ranking, row, similarity[row]) for row in range(3))
    assert (first.caption, first.rank, first.video, first.similarity, first.among) == ("x", 3, "a", 0.1, 3)
    assert first.retrieved == [("b", 0.9), ("c", 0.5)]
    assert second.rank == 2.5 and second.retrieved == [("a", 0.3), ("c", 0.2)]


def test_of_equals_the_one_that_the_ranking_has_first_is_first():
    """The similarities of a row alone may differ in the last bit from those that were ranked."""
    ranked, alone = np.array([[0.1, 0.9, 0.9]]), np.array([0.1, 0.9, np.nextafter(0.9, 1)])
    part = Embeddings(np.eye(3)[:1], np.eye(3), np.zeros(1, int), ["1"], ["x"], list("abc"))
    found = rank(np.concatenate([ranked, np.eye(3)[1:]]))["t2v"]
    assert [video for video, _ in query_of(part, found, 0, alone).retrieved] == ["b", "c"]


def test_the_classes_that_are_confused_most(tiny_recognition, drawn, tmp_path, capsys):
    folder = tmp_path / "run"
    flags = [*tiny_recognition, "--do_eval", "--method", "zero_shot", "--output_dir", str(folder)]
    assert main_task_recognition.main(flags) == 0
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    visualize.main(["errors", str(folder), "--output", str(tmp_path / "e.png")])
    _, _, mistakes, _ = drawn[0]
    wrong = most_confused([(row["label"], row["prediction"]) for row in rows])
    assert wrong and len(mistakes) == len(wrong)
    for mistake, ((label, taken_for), times) in zip(mistakes, wrong, strict=True):
        of = sum(row["label"] == label for row in rows)
        assert mistake.label == f"{label}\ntaken for\n{taken_for}\n{times} of {of} videos ({100 * times / of:.0f}%)"
        assert len(mistake.pictures) == min(times, 5)

    for row in rows:
        row["prediction"] = row["label"]
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(SystemExit, match="nothing wrong to show"):
        visualize.main(["errors", str(folder), "--output", str(tmp_path / "e.png")])


def test_pairs_are_counted_in_both_directions_apart():
    pairs = [("a", "b"), ("b", "a"), ("a", "b"), ("a", "a"), ("c", "a")]
    assert most_confused(pairs) == [(("a", "b"), 2), (("b", "a"), 1), (("c", "a"), 1)]


def test_flags_of_a_run_are_taken_once_more_but_for_what_it_did(trained, tiny_run, tmp_path):
    settings = read_config(trained)
    again = flags_again(settings, trained / "best.pt", ["--batch_size_val", "3"])
    assert again.common.do_eval and not again.common.do_train and again.common.batch_size_val == 3
    assert again.data.val_csv == path_of(tiny_run, "--val_csv") and again.method == "stop"

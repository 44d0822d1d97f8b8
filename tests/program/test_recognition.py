"""Action recognition as a user runs it, its metrics, views and few-shot draws."""

import json
import shutil
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import main_task_recognition
from common.errors import UserError
from dataloaders.datasets.recognition.splits import RecognitionSplit
from dataloaders.items import EvaluationDataset, TrainingDataset, VideoSettings, Views
from dataloaders.samples import Sample
from dataloaders.video.preprocessing import resize_and_crop
from dataloaders.video.sampling import sample_frame_indices
from helpers.flags import path_of, with_value
from helpers.launching import torchrun
from helpers.runs import checkpoint, lines, rows_of
from helpers.tiny import TINY_TRAINING
from main_task_recognition import draw_shots, write_mean
from modules.model.heads import CosineHead
from modules.model.measures import WORDS
from modules.model.video_text import VideoTextModel
from modules.tasks.recognition import Predictions, RecognitionTask, read_templates

METRICS = ("top1", "top5", "mean_class")


def run(flags, output_dir, *more):
    return main_task_recognition.main([*flags, "--output_dir", str(output_dir), *more])


@pytest.fixture(scope="module")
def trained(tiny_recognition, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recognition")
    assert run(tiny_recognition, folder, *TINY_TRAINING, "--save_features", str(folder / "features")) == 0
    return folder


def test_a_run_leaves_what_retrieval_leaves_and_its_own_tables(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"config.json", "log.txt", "metrics.jsonl", "tensorboard", "last.pt", "best.pt", "results.json"} <= names
    results = json.loads((trained / "results.json").read_text())
    assert set(METRICS) < set(results) and results["dataset"] == "hmdb51"
    assert WORDS.keys() - results.keys() == {"clipped_steps"} and WORDS.keys() <= results["last_epoch"].keys()
    for entry in (*lines(trained, "train"), *lines(trained, "eval")):
        assert WORDS.keys() < entry.keys() and 1 < entry["tokens_per_gap"] <= 4
    predictions = rows_of(trained / "predictions.csv")
    assert list(predictions[0]) == ["video", "label", "prediction", "top5", "probability"]
    right = [row["label"] == row["prediction"] for row in predictions]
    assert 100 * np.mean(right) == pytest.approx(results["top1"])
    for row in predictions:
        names = row["top5"].split("; ")
        assert names[0] == row["prediction"] and sorted(names) == ["moving_left", "moving_right"]
    per_class = rows_of(trained / "per_class.csv")
    assert np.mean([float(row["top1"]) for row in per_class]) == pytest.approx(results["mean_class"], abs=1e-4)
    assert results["top1"] in [round(100 * hits / 6, 4) for hits in range(7)]
    for row in per_class:
        of_class = [right for right, video in zip(right, predictions, strict=True) if video["label"] == row["class"]]
        assert float(row["top1"]) == round(100 * sum(of_class) / len(of_class), 4)
    confusion = rows_of(trained / "confusion.csv")
    assert next(iter(confusion[0])) == "true class \\ predicted class"
    counts = np.array([[int(row[name]) for name in ("moving_left", "moving_right")] for row in confusion])
    assert counts.sum() == 6 and np.trace(counts) == sum(right)
    assert (trained / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_accuracy_is_that_of_the_saved_embeddings_and_class_texts(trained):
    features = trained / "features"
    text, video = np.load(features / "text.npy"), np.load(features / "video.npy")
    classes = (features / "text_ids.txt").read_text().splitlines()
    labels = (features / "labels.txt").read_text().splitlines()
    assert (features / "captions.txt").read_text().splitlines()[0] == "a video of a person moving left."
    np.testing.assert_allclose(np.linalg.norm(video, axis=1), 1, atol=1e-6)
    nearest = [classes[c] for c in (video @ text.T).argmax(1)]
    accuracy = 100 * np.mean([a == b for a, b in zip(nearest, labels, strict=True)])
    assert accuracy == pytest.approx(json.loads((trained / "results.json").read_text())["top1"])


def test_the_log_says_what_is_evaluated_and_what_the_metrics_mean(tiny_recognition, trained, tmp_path):
    log = (trained / "log.txt").read_text()
    assert "evaluating on 6 videos of 2 classes after each epoch" in log
    assert "none of 2 class prompts is longer than 12 tokens" in log
    assert log.count("mean_class: the mean over classes of a class's top1") == 2  # at the first evaluation and the end
    flags = ["--do_eval", "--method", "zero_shot", "--num_clips", "2", "--max_words", "5"]
    assert run(tiny_recognition, tmp_path, *flags) == 0
    log = (tmp_path / "log.txt").read_text()
    assert f"evaluating on 6 videos of 2 classes, 2 views of each; results go to {tmp_path}" in log
    assert "WARNING 2 of 2 class prompts were cut to 5 tokens" in log


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(tiny_recognition, trained, tmp_path):
    flags = [*TINY_TRAINING, "--save_features", str(tmp_path / "features")]
    result = torchrun(2, tiny_recognition, tmp_path, *flags, program="main_task_recognition.py")
    assert result.returncode == 0, result.stderr
    ours, theirs = lines(tmp_path, "train"), lines(trained, "train")
    for value in ("loss", "grad_norm"):
        assert [e[value] for e in ours] == pytest.approx([e[value] for e in theirs], rel=1e-3)
    assert (tmp_path / "predictions.csv").read_text().count("\n") == 7
    np.testing.assert_allclose(
        np.load(tmp_path / "features" / "video.npy"), np.load(trained / "features" / "video.npy"), atol=1e-3
    )


def test_zero_shot_needs_no_checkpoint_and_untrained_prompts_are_not_evaluated(tiny_recognition, tmp_path, capsys):
    assert run(tiny_recognition, tmp_path, "--do_eval", "--method", "zero_shot") == 0
    assert set(METRICS) < set(json.loads((tmp_path / "results.json").read_text()))
    assert run(tiny_recognition, tmp_path, "--do_eval") == 1
    assert "needs a checkpoint" in capsys.readouterr().err


def test_a_checkpoint_is_evaluated_in_several_views(tiny_recognition, trained, tmp_path):
    more = ["--do_eval", "--init_model", str(trained / "best.pt"), *TINY_TRAINING[7:]]
    assert run(tiny_recognition, tmp_path / "one", *more) == 0
    expected = json.loads((trained / "results.json").read_text())
    results = json.loads((tmp_path / "one" / "results.json").read_text())
    assert {m: results[m] for m in METRICS} == {m: expected[m] for m in METRICS}
    assert run(tiny_recognition, tmp_path / "many", *more, "--num_clips", "2", "--num_crops", "3") == 0
    one, many = (rows_of(tmp_path / name / "predictions.csv") for name in ("one", "many"))
    assert len(one) == len(many) == 6
    assert [row["probability"] for row in one] != [row["probability"] for row in many]
    # in the training's own folder an evaluation leaves its files beside those of the training
    before = {path.name: path.read_bytes() for path in trained.glob("*.*") if path.name != "log.txt"}
    assert run(tiny_recognition, trained, *more, "--num_clips", "2") == 0
    assert {name: (trained / name).read_bytes() for name in before} == before
    assert {"results_eval.json", "predictions_eval.csv", "confusion_eval.png"} <= {p.name for p in trained.iterdir()}


def test_views_count_by_their_mean_probability():
    samples = [Sample(str(i), str(i), Path("x"), ("a",), i % 3) for i in range(4)]
    dataset = EvaluationDataset(samples, VideoSettings(4, 24, 0), views=Views(2, 3))
    task = RecognitionTask(None, dataset, ["a", "b", "c"], ["a", "b", "c"], ["{class}"], 1, 0)
    generator = np.random.default_rng(0)
    text, video = generator.normal(size=(3, 5)), generator.normal(size=(4, 6, 5))
    got = task.predict(
        VideoTextModel(torch.nn.Identity(), torch.nn.Identity(), CosineHead(2.0)), text, video, None
    ).probabilities
    for i in range(4):
        views = np.exp(2.0 * video[i] @ text.T)
        np.testing.assert_allclose(got[i], (views / views.sum(1, keepdims=True)).mean(0))


def test_split_mean_runs_the_three_and_reports_their_mean(tiny_recognition, tmp_path, capsys):
    flags = [*TINY_TRAINING, "--epochs", "1", "--split", "mean", "--save_features", str(tmp_path / "features")]
    assert run(tiny_recognition, tmp_path, *flags) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["splits"]) == {"1", "2", "3"}
    for metric in METRICS:
        assert results[metric] == round(fmean(r[metric] for r in results["splits"].values()), 4)
    tested = [{row["video"] for row in rows_of(tmp_path / f"split{k}" / "predictions.csv")} for k in (1, 2, 3)]
    assert all(len(videos) == 6 for videos in tested) and len(set.union(*tested)) == 18
    assert (tmp_path / "features" / "split2" / "video.npy").exists()
    assert (results["max_frames"], results["precision"], results["videos"]) == (4, "fp32", 18)
    assert results["prepared"] == {name: {"videos": "as they are"} for name in ("training", "evaluation")}
    assert results["seconds"] > 0 and "mean over splits 1, 2, 3" in (tmp_path / "log.txt").read_text()
    # the same command again finds all of it done; an evaluation of the three checkpoints gives the same
    assert run(tiny_recognition, tmp_path, *flags) == 0
    more = ["--do_eval", "--split", "mean", "--init_model", str(tmp_path), *TINY_TRAINING[7:]]
    assert run(tiny_recognition, tmp_path / "eval", *more) == 0
    again = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert {m: again[m] for m in METRICS} == {m: results[m] for m in METRICS}
    assert run(tiny_recognition, tmp_path, *more[:4], str(tmp_path / "split1")) == 1
    assert "takes the folder of a --split mean run" in capsys.readouterr().err


def test_the_mean_of_splits_says_of_how_many_videos_it_is(tmp_path):
    one = dict.fromkeys(("top1", "top5", "mean_class", "seconds", "peak_memory_mb"), 50.0) | {"videos": 10, "texts": 2}
    one |= dict.fromkeys(("dataset", "method", "trainable_parameters", "clip", "max_frames", "max_words", "precision"))
    one |= {"prepared": {}}
    less = one | {"videos": 7, "thinned": {"videos": 7, "listed": 10, "missing": 2, "dropped": 1}}
    processes = SimpleNamespace(is_main=True)
    for name, splits in {"thinned": (one, less, less), "whole": (one, one, one)}.items():
        arguments = SimpleNamespace(common=SimpleNamespace(output_dir=tmp_path / name, do_train=True))
        write_mean(arguments, dict(zip("123", splits, strict=True)), processes)
    found = json.loads((tmp_path / "thinned" / "results.json").read_text())
    assert found["thinned"] == {"videos": 24, "listed": 30, "missing": 4, "dropped": 2} and found["videos"] == 24
    assert "(thinned test set: 24 of 30 videos)" in (tmp_path / "thinned" / "log.txt").read_text().splitlines()[-1]
    assert "thinned" not in (tmp_path / "whole" / "results.json").read_text()
    assert "thinned" not in (tmp_path / "whole" / "log.txt").read_text()


def test_a_broken_split_stops_the_mean_before_anything_trains(tiny_recognition, tiny_files, tmp_path, capsys):
    splits = shutil.copytree(tiny_files / "splits", tmp_path / "splits")
    with (splits / "moving_left_test_split3.txt").open("a") as file:
        file.write("gone.mp4 1 \n")
    flags = [str(splits) if flag == str(tiny_files / "splits") else flag for flag in tiny_recognition]
    assert run(flags, tmp_path / "out", *TINY_TRAINING, "--split", "mean") == 1
    assert "gone: no video file" in capsys.readouterr().err
    assert "gone: no video file" in (tmp_path / "out" / "log.txt").read_text()
    assert not (tmp_path / "out" / "split1").exists()


def test_a_training_does_not_remove_the_results_of_another_run(tiny_recognition, tmp_path, capsys):
    assert run(tiny_recognition, tmp_path, "--do_eval", "--method", "zero_shot") == 0
    assert run(tiny_recognition, tmp_path, *TINY_TRAINING) == 1
    assert "holds results.json but no last.pt" in capsys.readouterr().err


def test_few_shot_draws_a_list_and_leaves_it(tiny_recognition, tmp_path, capsys):
    flags = [*TINY_TRAINING, "--epochs", "1", "--shots", "4"]
    assert run(tiny_recognition, tmp_path, *flags) == 0
    drawn = rows_of(tmp_path / "shots.csv")
    assert [row["class"] for row in drawn] == ["moving_left"] * 4 + ["moving_right"] * 4
    assert len({row["video"] for row in drawn}) == 8
    assert checkpoint(tmp_path)["identity"]["training_set"].startswith("8 samples")
    assert run(tiny_recognition, tmp_path / "many", *TINY_TRAINING, "--shots", "100") == 1
    assert "2 classes have fewer training videos: moving_left, moving_right" in capsys.readouterr().err


def test_the_draw_depends_on_the_seed_and_the_class_alone():
    def split(names):
        samples = [
            Sample(f"{name}{i}", f"{name}{i}", Path("x"), (name,), label)
            for label, name in enumerate(names)
            for i in range(9)
        ]
        return RecognitionSplit(tuple(names), tuple(names), samples, [])

    def drawn(names, shots=3, seed=1):
        return {sample.sample_id for sample in draw_shots(split(names), shots, seed)}

    assert len(drawn(["a", "b"])) == 6
    assert {name for name in drawn(["a", "b", "c"]) if name[0] != "c"} == drawn(["a", "b"]) == drawn(["b", "a"])
    assert drawn(["a", "b"]) != drawn(["a", "b"], seed=2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shots", "-1"], "--shots must be at least 0"),
        (["--class_prompt", "a person"], "'a person' has no {class} in it"),
    ],
)
def test_flags_that_make_no_sense_are_refused(tiny_recognition, tmp_path, capsys, flags, message):
    assert run(tiny_recognition, tmp_path, *TINY_TRAINING, *flags) == 1
    assert message in capsys.readouterr().err


def test_one_crop_or_three(tiny_recognition, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tiny_recognition, tmp_path, *TINY_TRAINING, "--num_crops", "2")
    assert "--num_crops: invalid choice: 2 (choose from 1, 3)" in capsys.readouterr().err.replace("'", "")


def test_mirroring_is_refused_where_left_and_right_are_in_the_labels(tiny_recognition, tmp_path, capsys):
    assert run(tiny_recognition, tmp_path / "out", "--do_train", "--horizontal_flip") == 1
    assert "part of the class 'moving left'" in capsys.readouterr().err
    flags = ["--datatype", "ssv2", "--split_dir", str(tmp_path), "--features_path", str(tmp_path), "--do_train"]
    assert run(flags, tmp_path / "out", "--horizontal_flip") == 1
    assert "left and right are part of the labels of ssv2" in capsys.readouterr().err
    assert run(flags, tmp_path / "out", "--split", "2") == 1
    assert "ssv2 has split 1 only" in capsys.readouterr().err


def test_half_of_the_training_videos_are_mirrored_whole(tiny_files):
    samples = [
        Sample(str(i), f"video{i}", tiny_files / "dataset" / "videos" / f"video{i}.mp4", ("a",), 0) for i in range(20)
    ]
    plain, mirrored = (
        TrainingDataset(samples, VideoSettings(4, 24, 0, horizontal_flip=flip), replace_bad=False)
        for flip in (False, True)
    )
    turned = 0
    for i in range(20):
        ours, theirs = mirrored.read(0, i).frames, plain.read(0, i).frames
        turned += torch.equal(ours, theirs.flip(-1))
        assert torch.equal(ours, theirs) or torch.equal(ours, theirs.flip(-1))
    assert 4 <= turned <= 16


def test_metrics_against_their_definitions():
    generator = np.random.default_rng(0)
    probabilities, labels = generator.random((40, 7)), generator.integers(0, 6, 40)  # class 6 has no video
    metrics = Predictions(probabilities, labels).metrics()
    places = [
        sorted(range(7), key=lambda c, p=p: -p[c]).index(label) for p, label in zip(probabilities, labels, strict=True)
    ]
    assert metrics["top1"] == pytest.approx(100 * np.mean([place == 0 for place in places]))
    assert metrics["top5"] == pytest.approx(100 * np.mean([place < 5 for place in places]))
    per_class = [
        np.mean([place == 0 for place, of in zip(places, labels, strict=True) if of == label]) for label in range(6)
    ]
    assert metrics["mean_class"] == pytest.approx(100 * np.mean(per_class))
    confusion = Predictions(probabilities, labels).confusion()
    assert confusion.shape == (7, 7) and confusion.sum() == 40
    assert confusion.sum(1).tolist() == np.bincount(labels, minlength=7).tolist()
    assert 100 * np.trace(confusion) / 40 == pytest.approx(metrics["top1"])


def test_templates_are_averaged(tmp_path):
    path = tmp_path / "templates.txt"
    path.write_text("a photo of {class}.\n\n{class}, seen\n")
    templates = read_templates(str(path))
    assert templates == ["a photo of {class}.", "{class}, seen"]
    embeddings = {}

    def embed(captions, keys):
        return torch.stack([embeddings.setdefault(c, F.normalize(torch.randn(4), dim=0)) for c in captions])

    task = RecognitionTask(None, None, ["run", "jump"], ["run", "jump"], templates, 1, 0)
    model = VideoTextModel(embed_module(embed), torch.nn.Identity(), CosineHead(100.0))
    got = task.class_embeddings(model)
    for row, word in zip(got, ("run", "jump"), strict=True):
        expected = embeddings[f"a photo of {word}."] + embeddings[f"{word}, seen"]
        torch.testing.assert_close(row, F.normalize(expected, dim=0))
    path.write_text("\n")
    with pytest.raises(UserError, match="holds no template"):
        read_templates(str(path))
    path.write_bytes(b"{class} \xff")
    with pytest.raises(UserError, match="not a UTF-8 text file"):
        read_templates(str(path))
    assert read_templates("{class} " * 100) == [("{class} " * 100).strip()]


def embed_module(function):
    module = torch.nn.Module()
    module.forward = function
    return module


@pytest.mark.parametrize(("total", "num_frames", "num_clips"), [(24, 8, 3), (100, 12, 4), (13, 12, 2), (5, 8, 3)])
def test_views_in_time_take_the_parts_of_each_segment(total, num_frames, num_clips):
    views = [sample_frame_indices(total, num_frames, clip=c, num_clips=num_clips) for c in range(num_clips)]
    for clip, indices in enumerate(views):
        assert np.all(np.diff(indices) > 0) and indices[-1] < total
        if total > num_frames:
            middles = [(i + (clip + 0.5) / num_clips) * total / num_frames for i in range(num_frames)]
            assert indices.tolist() == [int(np.floor(m + 1e-9)) for m in middles]
    assert np.array_equal(
        sample_frame_indices(total, num_frames, clip=0, num_clips=1), sample_frame_indices(total, num_frames)
    )


def test_views_in_space_cut_along_the_long_side():
    wide = np.random.default_rng(0).integers(0, 256, (2, 8, 20, 3), dtype=np.uint8)
    pixels = torch.from_numpy(wide).permute(0, 3, 1, 2)
    for frames, whole in ((wide, pixels), (wide.transpose(0, 2, 1, 3), pixels.transpose(2, 3))):
        for place, start in ((0.0, 0), (0.5, 6), (1.0, 12)):
            axis = 3 if whole is pixels else 2
            assert torch.equal(resize_and_crop(frames, 8, place), whole.narrow(axis, start, 8))
    assert [Views(1, 3).place(crop) for crop in range(3)] == [0.0, 0.5, 1.0] and Views().place(0) == 0.5


def test_the_views_of_a_video_follow_each_other(tiny_files):
    sample = Sample("a", "a", tiny_files / "dataset" / "videos" / "video0.mp4", ("a",), 0)
    dataset = EvaluationDataset([sample, sample], VideoSettings(3, 24, 0), views=Views(2, 1))
    assert len(dataset) == 4
    first, second, again = (dataset.read(i).frames for i in (0, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_an_evaluation_needs_no_training_videos(tiny_recognition, tmp_path, capsys):
    everything = path_of(tiny_recognition, "--features_path")
    listed = {video.stem for video in everything.iterdir()}
    trained = tmp_path / "trained"
    assert run(tiny_recognition, trained, *TINY_TRAINING, "--epochs", "1") == 0
    tested = {row["video"] for row in rows_of(trained / "predictions.csv")}
    (tmp_path / "videos").mkdir()
    for video in everything.iterdir():
        if any(name.endswith(video.stem) for name in tested):
            (tmp_path / "videos" / video.name).write_bytes(video.read_bytes())
    flags = with_value(tiny_recognition, "--features_path", tmp_path / "videos")
    assert len(list((tmp_path / "videos").iterdir())) < len(listed)
    assert run(flags, tmp_path / "eval", "--do_eval", "--init_model", str(trained)) == 0
    assert not (tmp_path / "eval" / "missing_videos.csv").exists()
    assert run(flags, tmp_path / "train", *TINY_TRAINING) == 1
    assert "no video file" in capsys.readouterr().err

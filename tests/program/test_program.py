"""The retrieval program as a user runs it: training, resuming, processes, evaluation, what it leaves."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch

import main_task_retrieval
from helpers.faults import Killed
from helpers.paths import ROOT, shared_data
from helpers.runs import checkpoint, lines, run
from helpers.tiny import TINY_TRAINING
from modules.model.video_encoder import VideoEncoder
from modules.program import experiment
from modules.runtime.identity import clip_fingerprint
from modules.runtime.run_folder import RunFolder
from modules.tasks.metrics import retrieval_metrics, rounded
from modules.tasks.retrieval import RetrievalTask
from modules.training import trainer
from modules.training.step import Step
from modules.training.trainer import Trainer

METRICS = [f"{d}_{m}" for d in ("t2v", "v2t") for m in ("R1", "R5", "R10", "MdR", "MnR")]


def tensors_of(value, prefix=""):
    """All tensors and numbers in a nested structure, by path."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in tensors_of(item, f"{prefix}/{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, item in enumerate(value) for k, v in tensors_of(item, f"{prefix}/{i}").items()}
    return {prefix: value}


@pytest.fixture(scope="module")
def trained(tiny_run, tmp_path_factory):
    """A finished training on one process."""
    folder = tmp_path_factory.mktemp("trained")
    assert run(tiny_run, folder, *TINY_TRAINING) == 0
    return folder


def test_a_training_leaves_what_it_should(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"config.json", "log.txt", "metrics.jsonl", "tensorboard", "last.pt", "best.pt", "results.json"} <= names
    results = json.loads((trained / "results.json").read_text())
    assert set(METRICS) < set(results)
    assert results["dataset"] == "msrvtt" and results["method"] == "stop"
    model = checkpoint(trained)["model"]
    assert results["trainable_parameters"] == sum(t.numel() for t in model.values())
    assert not [name for name in model if not name.startswith("video_encoder.prompting.")]
    assert results["seconds"] > 0 and results["peak_memory_mb"] > 0
    config = json.loads((trained / "config.json").read_text())
    assert config["settings"]["num_regions"] == 3 and config["versions"]["torch"] == torch.__version__.split("+")[0]
    steps = lines(trained, "train")
    assert [entry["step"] for entry in steps] == list(range(1, 10))  # 22 videos, batches of 6: 3 a pass
    assert (
        steps[0]["lr"] == 1e-3 and 0 < steps[-1]["lr"] < 1e-4
    )  # too few steps to warm up; the rate of the step itself
    evaluations = lines(trained, "eval")
    assert [entry["epoch"] for entry in evaluations] == [1, 2, 3]
    best = max(reversed(evaluations), key=lambda entry: entry["t2v_R1"])
    assert results["epoch"] == best["epoch"] and results["t2v_R1"] == best["t2v_R1"]
    assert "best checkpoint so far, by t2v_R1 on the evaluation set" in (trained / "log.txt").read_text()


def test_percentages_and_ranks_have_at_most_four_decimals_in_files(trained):
    results = json.loads((trained / "results.json").read_text())
    evaluations = lines(trained, "eval")
    for metrics in (results, results["last_epoch"], *evaluations):
        assert all(metrics[name] == round(metrics[name], 4) for name in METRICS)
        for name in (name for name in METRICS if "_R" in name):  # 6 pairs: hits of 6, to the last digit
            assert metrics[name] in [round(100 * hits / 6, 4) for hits in range(7)]
    assert results["last_epoch"] == {k: v for k, v in evaluations[-1].items() if k not in ("kind", "step")}


def test_the_best_epoch_is_chosen_by_exact_metrics(tiny_run, tmp_path, monkeypatch):
    values = iter([50.00001, 50.000001, 50.0])  # equal to four decimals, where the later one would win
    original = RetrievalTask.evaluate
    monkeypatch.setattr(RetrievalTask, "evaluate", lambda *args: original(*args) | {"t2v_R1": next(values)})
    assert run(tiny_run, tmp_path, *TINY_TRAINING) == 0
    assert json.loads((tmp_path / "results.json").read_text())["epoch"] == 1
    assert [entry["t2v_R1"] for entry in lines(tmp_path, "eval")] == [50.0, 50.0, 50.0]


def test_the_log_says_what_will_be_done_and_where_it_stands(trained):
    log = (trained / "log.txt").read_text()
    plan = "training on 22 samples (22 videos), 3 steps an epoch x 3 epochs = 9 steps of 6 on 1 process(es) ("
    assert plan in log and f"evaluating on 6 texts and 6 videos after each epoch; results go to {trained}" in log
    steps = re.findall(r"epoch (\d)/3 step (\d)/9 loss \S+ gradient \S+ rate \S+, (.* left.*)", log)
    counted = [(int(epoch), int(step)) for epoch, step, _ in steps]
    assert counted == [((step - 1) // 3 + 1, step) for step in range(1, 10)]
    without = [left.endswith(" left without evaluations") for _, _, left in steps]
    assert without == [True] * 3 + [False] * 6  # until one has been timed
    first = re.search("reading the annotation files of msrvtt", log).start()
    assert first < log.index("loading CLIP") < log.index("training on") < log.index("epoch 1/3 step 1/9")
    # what the names of the metrics mean, before the first of them and at the end
    for place in (log.index("epoch 1/3: t2v_R1"), log.rindex(" t2v_R1 ")):
        assert "R1, R5, R10: percent of queries" in log[:place].splitlines()[-2]


def test_a_resumed_runs_log_counts_on_from_where_it_was(tiny_run, trained, tmp_path, monkeypatch):
    original = RetrievalTask.evaluate

    def dying(*args):
        if (tmp_path / "best.pt").exists():
            raise Killed
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(RetrievalTask, "evaluate", dying)
        with pytest.raises(Killed):
            run(tiny_run, tmp_path, *TINY_TRAINING)
    before = len((tmp_path / "log.txt").read_text())
    assert run(tiny_run, tmp_path, *TINY_TRAINING) == 0
    log = (tmp_path / "log.txt").read_text()[before:]
    assert f"continuing {tmp_path} at step 6 of 9" in log
    assert re.findall(r"epoch (\d)/3 step (\d)/9", log) == [("3", "7"), ("3", "8"), ("3", "9")]


def test_steps_that_take_long_are_logged_by_the_clock_and_in_no_other_file(tiny_run, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "INTERVAL", 0.0)
    assert run(tiny_run, tmp_path, *TINY_TRAINING, "--n_display", "4") == 0
    assert len(re.findall(r"epoch \d/3 step \d/9", (tmp_path / "log.txt").read_text())) == 9
    every = lines(trained, "train")
    kept = [  # a line is of its step alone, but for the share of the steps since the line before
        entry | {"clipped_steps": fmean(e["clipped_steps"] for e in every[entry["step"] - 4 : entry["step"]])}
        for entry in every
        if entry["step"] in (4, 8)
    ]
    assert lines(tmp_path, "train") == kept and lines(tmp_path, "eval") == lines(trained, "eval")


def test_captions_that_are_cut_are_counted_for_each_list(tiny_run, trained, tmp_path, capsys):
    log = (trained / "log.txt").read_text()
    assert "none of 22 training captions is longer than 12 tokens" in log
    assert "none of 6 evaluation captions is longer than 12 tokens" in log
    flags = [*tiny_run]
    pairs = list(csv.DictReader(Path(flags[flags.index("--val_csv") + 1]).read_text().splitlines()))
    for pair, words in zip(pairs, (1, 9, 10, 11, 14, 100), strict=True):
        pair["sentence"] = " ".join(["cat"] * words)
    flags[flags.index("--val_csv") + 1] = str(tmp_path / "long.csv")
    with (tmp_path / "long.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, pairs[0])
        writer.writeheader()
        writer.writerows(pairs)
    for max_words, said in (
        ("12", "3 of 6 evaluation captions were cut to 12 tokens"),
        ("16", "1 of 6 evaluation captions were cut to 16 tokens"),
    ):
        assert run(flags, tmp_path, "--do_eval", "--method", "zero_shot", "--max_words", max_words) == 0
        printed = capsys.readouterr().err
        assert f"WARNING {said}" in printed and "training captions" not in printed
        assert ("--max_words, up to 16" in printed) == (max_words != "16")


def test_more_words_than_clip_takes_are_refused_before_anything_is_read(tiny_run, tmp_path, capsys):
    assert run(tiny_run, tmp_path, "--do_eval", "--method", "zero_shot", "--max_words", "17") == 1
    message = capsys.readouterr().err
    assert "--max_words 17" in message and "16 tokens" in message and "reading" not in message


def test_a_program_says_that_it_starts_before_it_imports_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch is imported')")

    def first_words(program, *flags, **environment):
        environment = os.environ | {"PYTHONPATH": str(tmp_path)} | environment
        command = [sys.executable, str(ROOT / program), *flags]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stderr.splitlines()

    for name in ("main_task_retrieval.py", "main_task_recognition.py", "preprocess/check_videos.py"):
        said = first_words(name, "--do_eval")
        assert said[0].endswith(f"{Path(name).name} is starting: importing torch") and said[-1] == "torch is imported"
    assert first_words("main_task_retrieval.py", "--do_eval", RANK="1") == ["torch is imported"]
    assert first_words("main_task_retrieval.py", "--help") == ["torch is imported"]


def test_training_lowers_the_loss(tiny_run, tmp_path):
    flags = ["--epochs", "20", "--batch_size", "22", "--lr", "0.01", "--prompt_dropout", "0"]
    assert run(tiny_run, tmp_path, *TINY_TRAINING, *flags) == 0
    losses = [entry["loss"] for entry in lines(tmp_path, "train")]
    assert min(losses[-3:]) < losses[0] - 0.3


def test_clip_is_not_in_the_checkpoint_and_not_changed(tiny_run, trained, tmp_path):
    clip = Path(tiny_run[tiny_run.index("--pretrained_clip_name") + 1]) / "open_clip_model.safetensors"
    before = clip.read_bytes()
    fingerprint = checkpoint(trained)["identity"]["clip"]
    model = {}
    build = experiment.build_model

    def remembered(method, settings, loaded, *sizes):
        model["clip"] = loaded
        return build(method, settings, loaded, *sizes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "build_model", remembered)
        assert run(tiny_run, tmp_path, *TINY_TRAINING) == 0
    assert clip_fingerprint(model["clip"]) == fingerprint
    assert clip.read_bytes() == before


def test_flags_of_speed_and_memory_reach_the_encoder(tiny_run, trained, tmp_path):
    encoders = []
    forward = VideoEncoder.forward

    def watched(self, *arguments, **options):
        encoders.append(self)
        return forward(self, *arguments, **options)

    compiled = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VideoEncoder, "forward", watched)
        patch.setattr(VideoEncoder, "compile", lambda self, **options: compiled.append(options))
        assert run(tiny_run, tmp_path, *TINY_TRAINING, "--checkpoint_activations", "--compile") == 0
    assert encoders and all(encoder.checkpoint_activations for encoder in encoders)
    assert compiled == [{"dynamic": False}]
    assert (tmp_path / "metrics.jsonl").read_text() == (trained / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("owner", "method", "calls"),
    [
        *((Trainer, name, calls) for name in ("_compute", "_log_step") for calls in (1, 4, 8)),
        *((Step, "update", calls) for calls in (1, 4, 8)),
        *((RetrievalTask, "evaluate", calls) for calls in (0, 1)),
        *((RunFolder, "save_checkpoint", calls) for calls in range(1, 11)),  # also between best.pt and last.pt
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(tiny_run, trained, tmp_path, monkeypatch, owner, method, calls):
    original, count = getattr(owner, method), 0

    def dying(self, *args):
        nonlocal count
        count += 1
        if count > calls:
            raise Killed
        return original(self, *args)

    flags = [*TINY_TRAINING, "--save_steps", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, dying)
        with pytest.raises(Killed):
            run(tiny_run, tmp_path, *flags)
    assert run(tiny_run, tmp_path, *flags) == 0
    for name in ("last.pt", "best.pt"):
        ours, theirs = tensors_of(checkpoint(tmp_path, name)), tensors_of(checkpoint(trained, name))
        del ours["/position/seconds"], theirs["/position/seconds"]
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            same = torch.equal(value, theirs[key]) if isinstance(value, torch.Tensor) else value == theirs[key]
            assert same, key
    assert (tmp_path / "metrics.jsonl").read_text() == (trained / "metrics.jsonl").read_text()


def test_a_finished_run_is_not_trained_again(tiny_run, trained, capsys):
    before = (trained / "last.pt").read_bytes()
    assert run(tiny_run, trained, *TINY_TRAINING) == 0
    assert (trained / "last.pt").read_bytes() == before


def test_other_settings_are_not_continued_and_are_listed(tiny_run, trained, capsys):
    assert run(tiny_run, trained, *TINY_TRAINING, "--lr", "0.5", "--alpha", "0.1") == 1
    message = capsys.readouterr().err
    assert "lr: was 0.001, is 0.5" in message and "alpha: was 0.5, is 0.1" in message and "--resume never" in message
    assert "batch_size: was" not in message


def test_a_refused_run_changes_nothing(tiny_run, trained):
    before = {path: path.read_bytes() for path in trained.glob("*.*") if path.name != "log.txt"}
    assert run(tiny_run, trained, *TINY_TRAINING, "--lr", "0.5") == 1
    assert {path: path.read_bytes() for path in before} == before


def test_another_evaluation_set_is_not_continued(tiny_run, trained, tmp_path, capsys):
    flags = [*tiny_run]
    value = flags.index("--val_csv") + 1
    other = tmp_path / "other.csv"
    other.write_text("".join(Path(flags[value]).read_text().splitlines(keepends=True)[:-2]))
    flags[value] = str(other)
    assert run(flags, trained, *TINY_TRAINING) == 1
    assert "evaluation_set: was 6 samples" in capsys.readouterr().err


def test_a_missing_best_checkpoint_is_said_and_a_lone_one_not_overwritten(tiny_run, trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "best.pt").unlink()
    assert run(tiny_run, tmp_path / "run", *TINY_TRAINING) == 1
    assert "best.pt is missing" in capsys.readouterr().err
    shutil.copy(trained / "best.pt", tmp_path / "run" / "best.pt")
    (tmp_path / "run" / "last.pt").unlink()
    assert run(tiny_run, tmp_path / "run", *TINY_TRAINING) == 1
    assert "holds best.pt but no last.pt" in capsys.readouterr().err


def test_training_can_start_from_a_checkpoint(tiny_run, trained, tmp_path, capsys):
    flags = [*TINY_TRAINING, "--init_model", str(trained / "last.pt"), "--lr", "1e-30", "--epochs", "1"]
    assert run(tiny_run, tmp_path / "run", *flags) == 0
    for name, value in checkpoint(tmp_path / "run")["model"].items():
        torch.testing.assert_close(value, checkpoint(trained)["model"][name])
    assert run(tiny_run, trained, *flags) == 1
    assert "lies in --output_dir" in capsys.readouterr().err


def test_resume_never_starts_anew(tiny_run, tmp_path):
    flags = [*TINY_TRAINING[:1], "--epochs", "1", *TINY_TRAINING[3:]]
    assert run(tiny_run, tmp_path, *flags) == 0
    assert run(tiny_run, tmp_path, *flags, "--lr", "0.01", "--resume", "never") == 0
    assert [entry["step"] for entry in lines(tmp_path, "train")] == [1, 2, 3]


def test_the_number_of_decoding_workers_changes_nothing(tiny_run, trained, tmp_path):
    assert run(tiny_run, tmp_path, *TINY_TRAINING, "--num_thread_reader", "2") == 0
    assert (tmp_path / "metrics.jsonl").read_text() == (trained / "metrics.jsonl").read_text()


@pytest.mark.parametrize("precision", ["bf16", "fp16", "amp"])
def test_lower_precisions_train(tiny_run, trained, tmp_path, precision):
    assert run(tiny_run, tmp_path, *TINY_TRAINING, "--precision", precision) == 0
    ours, theirs = lines(tmp_path, "train"), lines(trained, "train")
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=0.1)
    assert all(np.isfinite(entry["loss"]) for entry in ours)
    assert all(value.dtype == torch.float32 for value in checkpoint(tmp_path)["model"].values())


def test_evaluating_a_checkpoint_gives_the_metrics_it_had_and_its_embeddings(tiny_run, trained, tmp_path):
    model_flags = TINY_TRAINING[7:]
    features = tmp_path / "features"
    more = ["--do_eval", "--init_model", str(trained / "best.pt"), "--save_features", str(features), *model_flags]
    assert run(tiny_run, tmp_path, *more) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    expected = json.loads((trained / "results.json").read_text())
    assert {m: results[m] for m in METRICS} == {m: expected[m] for m in METRICS}
    text, video = np.load(features / "text.npy"), np.load(features / "video.npy")
    for embeddings in (text, video):
        assert embeddings.shape == (6, 16) and embeddings.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    assert rounded(retrieval_metrics(text @ video.T)) == {m: results[m] for m in METRICS}
    with Path(tiny_run[tiny_run.index("--val_csv") + 1]).open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name, column in (("text_ids", "key"), ("video_ids", "video_id"), ("captions", "sentence")):
        assert (features / f"{name}.txt").read_text().splitlines() == [row[column] for row in rows]


def test_an_evaluation_in_a_trainings_folder_keeps_its_results(tiny_run, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    more = ["--do_eval", "--init_model", str(tmp_path / "run" / "last.pt"), *TINY_TRAINING[7:]]
    assert run(tiny_run, tmp_path / "run", *more) == 0
    for name in ("results.json", "config.json"):
        assert (tmp_path / "run" / name).read_bytes() == (trained / name).read_bytes()
    assert json.loads((tmp_path / "run" / "results_eval.json").read_text())["checkpoint"].endswith("last.pt")


def test_a_checkpoint_of_another_model_is_refused(tiny_run, trained, tmp_path, capsys):
    more = ["--do_eval", "--init_model", str(trained / "best.pt"), *TINY_TRAINING[7:]]
    assert run(tiny_run, tmp_path, *more, "--eta", "2") == 1
    assert "--eta 2.0, trained with 4.0" in capsys.readouterr().err
    (tmp_path / "damaged.pt").write_bytes(b"no checkpoint")
    more[2] = str(tmp_path / "damaged.pt")
    assert run(tiny_run, tmp_path, *more) == 1
    assert "damaged.pt cannot be read as a checkpoint" in capsys.readouterr().err


def test_untrained_prompts_are_not_evaluated(tiny_run, tmp_path, capsys):
    assert run(tiny_run, tmp_path, "--do_eval", "--method", "stop") == 1
    assert "--method stop needs a checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()


def test_zero_shot_needs_no_checkpoint_and_cannot_train(tiny_run, tmp_path, capsys):
    assert run(tiny_run, tmp_path, "--do_eval", "--method", "zero_shot") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["trainable_parameters"] == 0 and set(METRICS) < set(results)
    assert run(tiny_run, tmp_path, "--do_train", "--method", "zero_shot") == 1
    assert "nothing to train" in capsys.readouterr().err
    assert run(tiny_run, tmp_path) == 1
    assert "give --do_train" in capsys.readouterr().err


def test_shuffling_frames_changes_stop_but_not_mean_pooling(tiny_run, trained, tmp_path):
    stop = ["--do_eval", "--init_model", str(trained / "best.pt"), *TINY_TRAINING[7:]]
    videos = {}
    for name, flags in (("stop", stop), ("zero_shot", ["--do_eval", "--method", "zero_shot"])):
        for order in ("ordered", "shuffle"):
            features = tmp_path / name / order
            more = ["--eval_frame_order", order, "--save_features", str(features)]
            assert run(tiny_run, tmp_path, *flags, *more) == 0
            videos[name, order] = np.load(features / "video.npy")
    np.testing.assert_allclose(videos["zero_shot", "ordered"], videos["zero_shot", "shuffle"], atol=1e-6)
    assert np.abs(videos["stop", "ordered"] - videos["stop", "shuffle"]).max() > 1e-3


def test_annotation_errors_stop_the_run_before_training(tiny_run, tmp_path, capsys):
    flags = [*tiny_run]
    empty = tmp_path / "videos"
    empty.mkdir()
    flags[flags.index("--features_path") + 1] = str(empty)
    assert run(flags, tmp_path / "out", *TINY_TRAINING) == 1
    assert str(empty) in capsys.readouterr().err
    assert not (tmp_path / "out" / "last.pt").exists()
    assert run([*tiny_run, "--batch_size", "23"], tmp_path / "out", "--do_train") == 1
    assert "22 samples, fewer than one batch of 23" in capsys.readouterr().err


def test_a_batch_that_does_not_fit_is_refused_before_anything_slow(tiny_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(experiment, "load_clip", lambda *args: pytest.fail("CLIP was loaded"))
    flags = [*tiny_run, *TINY_TRAINING]
    assert run(flags, tmp_path / "out", "--batch_size", "23") == 1
    assert "22 samples, fewer than one batch of 23" in capsys.readouterr().err


def test_help_names_the_papers_symbols(capsys):
    for method, symbols in (("stop", ("N_s", "α", "β", "η", "ε")), ("zero_shot", ("--max_frames",))):
        with pytest.raises(SystemExit) as stopped:
            main_task_retrieval.main(["--method", method, "--help"])
        shown = capsys.readouterr().out
        assert stopped.value.code == 0 and all(symbol in shown for symbol in symbols)


def write_split(folder, videos, captions):
    """MSR-VTT's annotation files for some video files."""
    ids = [path.stem for path in videos]
    (folder / "split.csv").write_text("video_id\n" + "".join(f"{name}\n" for name in ids))
    pairs = [["key", "vid_key", "video_id", "sentence"]]
    pairs += [
        [f"ret{i}", f"msr{i}", name, caption] for i, (name, caption) in enumerate(zip(ids, captions, strict=True))
    ]
    with (folder / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows(pairs)
    sentences = [{"caption": c, "video_id": n, "sen_id": i} for i, (n, c) in enumerate(zip(ids, captions, strict=True))]
    (folder / "data.json").write_text(json.dumps({"videos": [], "sentences": sentences}))


def link_clips(folder, clips):
    """Real clips under names that are all different."""
    folder.mkdir()
    links = []
    for number, clip in enumerate(clips):
        links.append(folder / f"{clip.stem.replace('.', '_')}_{number}{clip.suffix}")
        links[-1].symlink_to(clip)
    return links


@pytest.mark.slow
def test_one_epoch_on_real_clips_with_a_damaged_one_reported_by_name(tiny_run, tmp_path, capsys):
    clips = sorted(shared_data("videos").iterdir())
    halves = {"train": clips[::2], "test": [clip for clip in clips[1::2] if clip.stem != "corrupted"]}
    if not any(clip.stem == "corrupted" for clip in halves["train"]):
        halves["train"].append(next(clip for clip in clips if clip.stem == "corrupted"))
    for name, half in halves.items():
        (tmp_path / name).mkdir()
        links = link_clips(tmp_path / name / "videos", half)
        write_split(tmp_path / name, links, [f"a clip of {link.stem.replace('_', ' ')}" for link in links])
    flags = [
        *tiny_run[:2],
        *("--features_path", str(tmp_path / "all"), "--train_csv", str(tmp_path / "train" / "split.csv")),
        *("--data_path", str(tmp_path / "train" / "data.json"), "--val_csv", str(tmp_path / "test" / "pairs.csv")),
        *("--max_frames", "4", "--max_words", "12", "--num_thread_reader", "0", "--precision", "fp32"),
    ]
    (tmp_path / "all").mkdir()
    for half in halves:
        for link in (tmp_path / half / "videos").iterdir():
            (tmp_path / "all" / link.name).symlink_to(link.resolve())
    batch = ["--batch_size", str(len(halves["train"])), "--epochs", "1"]
    training = [*TINY_TRAINING[:1], *batch, *TINY_TRAINING[5:]]
    assert run(flags, tmp_path / "out", *training) == 0
    assert "corrupted" in capsys.readouterr().err
    with (tmp_path / "out" / "bad_videos.csv").open(newline="") as file:
        bad = list(csv.DictReader(file))
    assert bad and all("corrupted" in row["video"] and row["reason"] for row in bad)
    assert set(METRICS) < set(json.loads((tmp_path / "out" / "results.json").read_text()))

    # the same with decoding workers: the same clip is read in its stead, and the reason comes through
    assert run(flags, tmp_path / "workers", *training, "--num_thread_reader", "2") == 0
    for name in ("bad_videos.csv", "metrics.jsonl"):
        assert (tmp_path / "workers" / name).read_text() == (tmp_path / "out" / name).read_text()
    capsys.readouterr()
    for workers in ("0", "2"):
        strict = ["--on_bad_video", "error", "--num_thread_reader", workers]
        assert run(flags, tmp_path / "strict", *training, *strict) == 1
        message = capsys.readouterr().err
        assert "corrupted" in message and "Traceback" not in message
    # in evaluation a bad video is always an error: leaving it out would change the metric
    write_split(tmp_path / "train", sorted((tmp_path / "train" / "videos").iterdir()), ["a"] * len(halves["train"]))
    flags[flags.index("--val_csv") + 1] = str(tmp_path / "train" / "pairs.csv")
    assert run(flags, tmp_path / "eval", "--do_eval", "--method", "zero_shot") == 1
    assert "corrupted" in capsys.readouterr().err

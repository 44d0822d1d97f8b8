"""Runs over bad, slow and missing videos: skipped ones are counted, listed and repeated; dropped ones are told."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import main_task_recognition
from dataloaders.items import TrainingDataset, VideoSettings
from dataloaders.samples import Sample
from dataloaders.video.decoding import BadVideoError
from dataloaders.video.reader import DecodingSettings, VideoReader
from dataloaders.video.sampling import FrameSampler
from helpers.faults import Killed, spoil
from helpers.flags import path_of, train_ids, with_value
from helpers.launching import torchrun
from helpers.runs import assert_equal, results, rows_of, run, state_of
from helpers.tiny import TINY_TRAINING
from modules.training.trainer import Trainer


@pytest.fixture
def own_videos(tiny_run, tmp_path):
    """The tiny run's flags with a folder of videos that may be changed, and that folder."""
    folder = tmp_path / "videos"
    shutil.copytree(path_of(tiny_run, "--features_path"), folder)
    return with_value(tiny_run, "--features_path", folder), folder


def test_a_skipped_video_is_counted_listed_and_replaced_by_the_same_one_every_time(own_videos, tmp_path):
    flags, folder = own_videos
    bad = train_ids(flags)[:2]
    for video_id in bad:
        spoil(folder, video_id)
    for name, workers in (("one", "0"), ("two", "2")):
        assert run(flags, tmp_path / name, *TINY_TRAINING, "--num_thread_reader", workers) == 0
    rows = rows_of(tmp_path / "one" / "bad_videos.csv")
    assert list(rows[0]) == ["step", "epoch", "sample", "attempt", "video", "reason"]
    assert {row["video"].split("/")[-1] for row in rows} == {f"{video_id}.mp4" for video_id in bad}
    assert all("decord" in row["reason"] or "OpenCV" in row["reason"] for row in rows)
    assert all(int(row["epoch"]) == -(-int(row["step"]) // 3) for row in rows)  # 3 steps an epoch
    assert results(tmp_path / "one")["bad_videos"] == len({row["video"] for row in rows}) == 2
    assert len(rows) > 2 and len({row["epoch"] for row in rows}) == 3  # each read is listed, a video counts once
    assert (tmp_path / "two" / "bad_videos.csv").read_bytes() == (tmp_path / "one" / "bad_videos.csv").read_bytes()
    assert_equal(state_of(tmp_path / "two"), state_of(tmp_path / "one"))


def test_too_many_bad_videos_stop_the_run_from_200_samples_on(own_videos, tmp_path, capsys):
    flags, folder = own_videos
    spoil(folder, train_ids(flags)[0])
    training = [*TINY_TRAINING, "--epochs", "12"]  # 216 samples, of which about 12 are bad
    assert run(flags, tmp_path / "run", *training) == 1
    message = capsys.readouterr().err
    assert "more than --max_bad_fraction 0.01" in message and "bad_videos.csv" in message
    step = state_of(tmp_path / "run")["position"]["step"]
    last = int(rows_of(tmp_path / "run" / "bad_videos.csv")[-1]["step"])
    assert step < last and (last - 1) * 6 >= 200 - 6 and last * 6 >= 200
    # the limit decides whether a run stops, not what it computes: it goes on under another one
    assert run(flags, tmp_path / "run", *training, "--max_bad_fraction", "0.1") == 0
    assert f"at step {step}" in capsys.readouterr().err
    assert run(flags, tmp_path / "whole", *training, "--max_bad_fraction", "0.1") == 0
    assert_equal(state_of(tmp_path / "run"), state_of(tmp_path / "whole"))
    for name in ("bad_videos.csv", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_resumed_run_repeats_what_the_clock_decided(tiny_run, tmp_path, monkeypatch):
    """Videos that were too slow once are read in time later; what was trained on must not change for it."""
    read, slow = VideoReader.read, set(train_ids(tiny_run)[:3])

    def too_slow(self, path, num_frames, sampler):
        if path.stem in slow and sampler.seed is not None:
            raise BadVideoError(path, "not decoded within 60 seconds")
        return read(self, path, num_frames, sampler)

    flags = [*TINY_TRAINING, "--save_steps", "100"]
    compute, count = Trainer._compute, 0

    def dying(self, *args):
        nonlocal count
        count += 1
        if count == 6:  # two steps behind the last checkpoint, which the first epoch's end made
            raise Killed
        return compute(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(VideoReader, "read", too_slow)
        assert run(tiny_run, tmp_path / "whole", *flags, "--epochs", "2") == 0
        patch.setattr(Trainer, "_compute", dying)
        with pytest.raises(Killed):
            run(tiny_run, tmp_path / "killed", *flags, "--epochs", "2")
    # the batch of the step in which it died is on record already
    recorded = rows_of(tmp_path / "killed" / "bad_videos.csv")
    assert recorded == rows_of(tmp_path / "whole" / "bad_videos.csv")
    assert state_of(tmp_path / "killed")["position"]["step"] == 3
    assert any(int(row["step"]) > 3 for row in recorded)
    assert run(tiny_run, tmp_path / "killed", *flags, "--epochs", "2") == 0  # nothing is too slow now
    assert_equal(state_of(tmp_path / "killed"), state_of(tmp_path / "whole"))
    for name in ("bad_videos.csv", "metrics.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_video_counts_once_also_if_the_videos_move_while_a_run_is_interrupted(own_videos, tmp_path, monkeypatch):
    flags, folder = own_videos
    bad = train_ids(flags)[:3]
    for video_id in bad:
        spoil(folder, video_id)
    training = [*TINY_TRAINING, "--save_steps", "100"]
    assert run(flags, tmp_path / "whole", *training) == 0
    compute, count = Trainer._compute, 0

    def dying(self, *args):
        nonlocal count
        count += 1
        if count == 6:  # its videos are on record, and will be drawn again
            raise Killed
        return compute(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_compute", dying)
        with pytest.raises(Killed):
            run(flags, tmp_path / "moved", *training)
    elsewhere = with_value(flags, "--features_path", folder.rename(tmp_path / "elsewhere"))
    assert run(elsewhere, tmp_path / "moved", *training) == 0
    assert results(tmp_path / "moved")["bad_videos"] == results(tmp_path / "whole")["bad_videos"] == len(bad)
    assert_equal(state_of(tmp_path / "moved"), state_of(tmp_path / "whole"))
    whole, moved = (rows_of(tmp_path / name / "bad_videos.csv") for name in ("whole", "moved"))
    assert len({row["video"] for row in moved}) > len(bad)  # in the one folder and in the other
    drawn = [[(row["step"], row["sample"], row["attempt"]) for row in rows] for rows in (whole, moved)]
    assert drawn[0] == drawn[1]


def test_samples_that_share_a_video_and_draws_in_anothers_stead_count_it_once(monkeypatch):
    samples = [Sample(f"sample{i}", f"video{i // 2}", Path(f"video{i // 2}.mp4"), ("text",)) for i in range(12)]
    dataset = TrainingDataset(samples, VideoSettings(4, 24, 0), replace_bad=True)

    def read(epoch, index, sample, skipped):
        if sample.video_id in ("video1", "video4"):
            raise BadVideoError(sample.path, "bad")
        return skipped

    monkeypatch.setattr(dataset, "_read", read)
    skipped = [video for epoch in range(5) for index in range(12) for video in dataset.read(epoch, index)]
    assert len(skipped) > 20 and max(video.attempt for video in skipped) > 0
    assert dataset.count_videos(skipped) == 2
    for path in ("video1.mp4", "video4.mp4"):
        assert dataset.count_videos([video for video in skipped if video.path == path]) == 1
    assert dataset.count_videos([]) == 0


def test_a_missing_training_video_is_an_error_unless_it_may_be_left_out(own_videos, tmp_path, capsys):
    flags, folder = own_videos
    gone = train_ids(flags)[3]
    (folder / f"{gone}.mp4").unlink()
    assert run(flags, tmp_path / "run", *TINY_TRAINING) == 1
    message = capsys.readouterr().err
    assert gone in message and "--allow_missing" in message and "--on_bad_eval_video" not in message
    assert not (tmp_path / "run" / "last.pt").exists()
    assert run(flags, tmp_path / "run", *TINY_TRAINING, "--allow_missing") == 0
    assert rows_of(tmp_path / "run" / "missing_videos.csv") == [{"list": "training", "video": gone}]
    assert results(tmp_path / "run")["missing_videos"] == 1
    assert "1 videos have no file and are left out" in capsys.readouterr().err


def test_a_list_of_missing_videos_allows_these_and_no_other(own_videos, tmp_path, capsys):
    flags, folder = own_videos
    tested = [row["video_id"] for row in rows_of(path_of(flags, "--val_csv"))]
    gone = [train_ids(flags)[3], tested[1]]
    listed = tmp_path / "missing.csv"
    listed.write_text("list,video\n" + "".join(f"any,{video}\n" for video in [*gone, tested[2], "no video"]))
    for video in gone:
        (folder / f"{video}.mp4").unlink()
    training = [*TINY_TRAINING, "--epochs", "1", "--allow_missing", str(listed)]
    assert run(flags, tmp_path / "run", *training) == 0
    missing = [{"list": "training", "video": gone[0]}, {"list": "evaluation", "video": gone[1]}]
    assert rows_of(tmp_path / "run" / "missing_videos.csv") == missing
    found = results(tmp_path / "run")
    assert found["thinned"] == {"videos": 5, "listed": 6, "missing": 1, "dropped": 0} and found["missing_videos"] == 2
    said = "thinned test set: 5 of 6 videos"
    log = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert any("epoch 1/1: t2v_R1" in line and f"({said})" in line for line in log)
    assert f"{said}, which changes the metrics: 1 have no file and 0 cannot be read" in log[-1]
    # the list that a run leaves is one; what a run is does not depend on how it is allowed
    capsys.readouterr()
    own = tmp_path / "run" / "missing_videos.csv"
    continued = [*TINY_TRAINING, "--epochs", "1"]
    assert run(flags, tmp_path / "run", *continued, "--allow_missing", str(own)) == 0
    assert run(flags, tmp_path / "run", *continued, "--allow_missing", "--on_bad_eval_video", "drop") == 0
    more = [train_ids(flags)[5], tested[4]]
    for video in more:
        (folder / f"{video}.mp4").unlink()
    capsys.readouterr()
    for drop in ([], ["--on_bad_eval_video", "drop"]):
        assert run(flags, tmp_path / "strict", *training, *drop) == 1
        message = capsys.readouterr().err
        assert f"--allow_missing {listed}: 2 problems" in message and gone[0] not in message
        for video, name in zip(more, ("training", "evaluation"), strict=True):
            assert f"{video}, of the {name} list: no video file, and not in this list" in message


def test_a_list_of_missing_videos_that_is_none_is_refused_at_once(tiny_run, tmp_path, capsys):
    other = tmp_path / "other.csv"
    other.write_text("name,reason\na,b\n")
    training = [*TINY_TRAINING, "--val_csv", "nowhere", "--allow_missing"]
    for path, reason in {
        other: "needs a column video, as in the missing_videos.csv that preprocess/check_videos.py writes",
        tmp_path / "gone.csv": f"no such file: {tmp_path / 'gone.csv'}",
    }.items():
        assert run(tiny_run, tmp_path / "run", *training, str(path)) == 1
        message = capsys.readouterr().err
        assert "--allow_missing" in message and reason in message and "Traceback" not in message


def test_bad_evaluation_videos_are_errors_or_leave_the_metric_of_the_others(own_videos, tmp_path, capsys):
    flags, folder = own_videos
    pairs = rows_of(path_of(flags, "--val_csv"))
    (folder / f"{pairs[1]['video_id']}.mp4").unlink()
    spoil(folder, pairs[4]["video_id"])
    zero_shot = ["--do_eval", "--method", "zero_shot"]
    assert run(flags, tmp_path / "strict", *zero_shot) == 1
    message = capsys.readouterr().err
    assert pairs[1]["video_id"] in message
    assert "--on_bad_eval_video drop" in message and "--allow_missing" not in message
    features = ["--save_features", str(tmp_path / "features")]
    assert run(flags, tmp_path / "dropped", *zero_shot, *features, "--on_bad_eval_video", "drop") == 0
    found = results(tmp_path / "dropped")
    assert (found["missing_videos"], found["dropped_videos"]) == (1, 1)
    assert found["thinned"] == {"videos": 4, "listed": 6, "missing": 1, "dropped": 1}
    assert rows_of(tmp_path / "dropped" / "missing_videos.csv")[0]["list"] == "evaluation"
    dropped = rows_of(tmp_path / "dropped" / "dropped_videos.csv")
    assert [row["video"] for row in dropped] == [pairs[4]["video_id"]] and dropped[0]["reason"]
    assert "which changes the metrics" in capsys.readouterr().err

    kept = [row for number, row in enumerate(pairs) if number not in (1, 4)]
    assert (tmp_path / "features" / "video_ids.txt").read_text().split() == [row["video_id"] for row in kept]
    assert np.load(tmp_path / "features" / "text.npy").shape == (4, 16)
    with (tmp_path / "kept.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, kept[0])
        writer.writeheader()
        writer.writerows(kept)
    assert run(with_value(flags, "--val_csv", tmp_path / "kept.csv"), tmp_path / "kept", *zero_shot) == 0
    expected = results(tmp_path / "kept")
    assert "thinned" not in expected and "thinned" not in (tmp_path / "kept" / "log.txt").read_text()
    names = [name for name in expected if name[:3] in ("t2v", "v2t")]
    assert len(names) == 10 and {n: found[n] for n in names} == {n: expected[n] for n in names}


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_video_that_cannot_be_decoded_stops_with_the_flag_that_goes_on(own_videos, tmp_path, capsys, workers):
    flags, folder = own_videos
    spoil(folder, train_ids(flags)[3])
    strict = ["--on_bad_video", "error", "--num_thread_reader", workers]
    assert run(flags, tmp_path / "training", *TINY_TRAINING, *strict) == 1
    message = capsys.readouterr().err
    assert train_ids(flags)[3] in message and "--on_bad_video skip" in message and "--on_bad_eval" not in message
    spoil(folder, rows_of(path_of(flags, "--val_csv"))[0]["video_id"])
    zero_shot = ["--do_eval", "--method", "zero_shot", "--num_thread_reader", workers]
    assert run(flags, tmp_path / "evaluation", *zero_shot) == 1
    message = capsys.readouterr().err
    assert "--on_bad_eval_video drop" in message and "--on_bad_video" not in message
    assert "Traceback" not in message


def test_no_flag_is_recommended_that_is_given(own_videos, tmp_path, capsys):
    flags, folder = own_videos
    for video in folder.iterdir():  # so that all that are read in place of one are bad too
        if video.stem in train_ids(flags):
            spoil(folder, video.stem)
    assert run(flags, tmp_path / "training", *TINY_TRAINING, "--on_bad_video", "skip") == 1
    message = capsys.readouterr().err
    assert "others drawn for" in message and "--on_bad_video" not in message


def test_a_video_dropped_once_stays_dropped_in_a_training(own_videos, tmp_path, monkeypatch):
    flags, folder = own_videos
    spoil(folder, rows_of(path_of(flags, "--val_csv"))[0]["video_id"])
    training = [*TINY_TRAINING, "--on_bad_eval_video", "drop", "--epochs", "2"]
    reads, read = [], VideoReader.read

    def counted(self, path, num_frames, sampler):
        if sampler.seed is None:
            reads.append(path.stem)
        return read(self, path, num_frames, sampler)

    monkeypatch.setattr(VideoReader, "read", counted)
    assert run(flags, tmp_path / "run", *training) == 0
    bad = rows_of(tmp_path / "run" / "dropped_videos.csv")[0]["video"]
    assert reads.count(bad) == 1 and results(tmp_path / "run")["dropped_videos"] == 1
    # and in what continues it
    (tmp_path / "run" / "results.json").unlink()
    assert run(flags, tmp_path / "run", *training) == 0
    assert reads.count(bad) == 1 and results(tmp_path / "run")["dropped_videos"] == 1


def test_recognition_leaves_a_bad_test_video_out_of_all_its_tables(tiny_recognition, tmp_path, capsys):
    folder = tmp_path / "videos"
    shutil.copytree(path_of(tiny_recognition, "--features_path"), folder)
    flags = with_value(tiny_recognition, "--features_path", folder)
    features = tmp_path / "features"
    zero_shot = ["--do_eval", "--method", "zero_shot", "--num_clips", "2", "--save_features", str(features)]
    assert main_task_recognition.main([*flags, "--output_dir", str(tmp_path / "all"), *zero_shot]) == 0
    before = rows_of(tmp_path / "all" / "predictions.csv")
    spoil(folder, before[1]["video"].split("/")[-1])
    strict = [*flags, "--output_dir", str(tmp_path / "strict"), *zero_shot]
    assert main_task_recognition.main(strict) == 1
    dropping = [*flags, "--output_dir", str(tmp_path / "drop"), *zero_shot, "--on_bad_eval_video", "drop"]
    assert main_task_recognition.main(dropping) == 0
    after = rows_of(tmp_path / "drop" / "predictions.csv")
    assert after == [row for number, row in enumerate(before) if number != 1]
    assert len(np.load(features / "video.npy")) == len(after)
    right = [row["label"] == row["prediction"] for row in after]
    assert results(tmp_path / "drop")["top1"] == pytest.approx(100 * np.mean(right))
    assert results(tmp_path / "drop")["dropped_videos"] == 1
    assert results(tmp_path / "drop")["thinned"]["listed"] == len(before) == len(after) + 1
    # and so it does with one without a file that a list names
    (folder / (before[0]["video"].split("/")[-1] + ".mp4")).unlink()
    listed = tmp_path / "missing.csv"
    listed.write_text(f"video\n{before[0]['video']}\n")
    command = [*flags, "--output_dir", str(tmp_path / "listed"), *zero_shot, "--on_bad_eval_video", "drop"]
    assert main_task_recognition.main([*command, "--allow_missing", str(listed)]) == 0
    assert rows_of(tmp_path / "listed" / "predictions.csv") == before[2:]
    counts = {"videos": len(before) - 2, "listed": len(before), "missing": 1, "dropped": 1}
    assert results(tmp_path / "listed")["thinned"] == counts
    listed.write_text("video\nno video\n")
    capsys.readouterr()
    assert main_task_recognition.main([*command, "--allow_missing", str(listed)]) == 1
    assert f"{before[0]['video']}, of the test list" in capsys.readouterr().err


def test_training_on_test_videos_is_a_warning_and_for_official_splits_an_error(tiny_run, tmp_path, capsys):
    own = tmp_path / "train.csv"
    test_id = rows_of(path_of(tiny_run, "--val_csv"))[2]["video_id"]
    own.write_text(path_of(tiny_run, "--train_csv").read_text().rstrip("\n") + f"\n{test_id}\n")
    data = json.loads(path_of(tiny_run, "--data_path").read_text())
    data["sentences"].append({"caption": "a test video", "video_id": test_id, "sen_id": 999_999})
    (tmp_path / "data.json").write_text(json.dumps(data))
    flags = with_value(with_value(tiny_run, "--train_csv", own), "--data_path", tmp_path / "data.json")
    assert run(flags, tmp_path / "run", *TINY_TRAINING, "--epochs", "1") == 0
    assert f"1 evaluation video is also trained on: {test_id}" in capsys.readouterr().err
    for name, source in (("MSRVTT_train.9k.csv", own), ("MSRVTT_JSFUSION_test.csv", path_of(tiny_run, "--val_csv"))):
        shutil.copy(source, tmp_path / name)
    flags = with_value(flags, "--train_csv", tmp_path / "MSRVTT_train.9k.csv")
    flags = with_value(flags, "--val_csv", tmp_path / "MSRVTT_JSFUSION_test.csv")
    assert run(flags, tmp_path / "official", *TINY_TRAINING) == 1
    message = capsys.readouterr().err
    assert test_id in message and "official" in message
    assert not (tmp_path / "official" / "last.pt").exists()


def patched_up(path):
    """Damage a video so that the decoder reports errors and returns all of its frames."""
    whole = path.read_bytes()
    for at in range(len(whole) // 3, len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        readable, good = (reads(path, decoder_errors) for decoder_errors in ("ignore", "reject"))
        if readable and not good:
            return
    raise AssertionError("no such damage found")


def reads(path, decoder_errors):
    reader = VideoReader(DecodingSettings(video_time_limit=20, decoder_errors=decoder_errors))
    try:
        return len(reader.read(path, 4, FrameSampler())) == 4
    except BadVideoError:
        return False
    finally:
        reader.close()


def test_frames_where_the_decoder_reports_errors_can_be_kept(own_videos, tmp_path, capsys):
    flags, folder = own_videos
    video_id = rows_of(path_of(flags, "--val_csv"))[0]["video_id"]
    patched_up(folder / f"{video_id}.mp4")
    zero_shot = ["--do_eval", "--method", "zero_shot"]
    assert run(flags, tmp_path, *zero_shot) == 1
    assert video_id in capsys.readouterr().err
    assert run(flags, tmp_path, *zero_shot, "--decoder_errors", "ignore") == 0
    assert run(flags, tmp_path, *zero_shot, "--video_time_limit", "0") == 1
    assert "--video_time_limit" in capsys.readouterr().err


@pytest.mark.slow
def test_a_bad_video_in_one_of_two_processes_is_recorded_once(own_videos, tmp_path):
    flags, folder = own_videos
    spoil(folder, train_ids(flags)[5])
    assert run(flags, tmp_path / "one", *TINY_TRAINING) == 0
    finished = torchrun(2, flags, tmp_path / "two", *TINY_TRAINING)
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "two" / "bad_videos.csv").read_bytes() == (tmp_path / "one" / "bad_videos.csv").read_bytes()
    assert len(rows_of(tmp_path / "one" / "bad_videos.csv")) > 1
    assert results(tmp_path / "two")["bad_videos"] == results(tmp_path / "one")["bad_videos"] == 1
    for name, value in state_of(tmp_path / "one")["model"].items():
        torch.testing.assert_close(state_of(tmp_path / "two")["model"][name], value, rtol=1e-3, atol=1e-4)

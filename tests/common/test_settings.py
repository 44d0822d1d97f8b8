"""Settings: every number has a range, flags out of it are named before anything starts, help says what is wanted."""

import argparse
import dataclasses
import math
import typing
from pathlib import Path

import pytest

import main_task_recognition
import main_task_retrieval
from common.settings import (
    Range,
    above,
    add_arguments,
    all_settings,
    at_least,
    between,
    from_arguments,
    range_problems,
    setting,
)
from helpers.flags import DATASETS, PROGRAMS
from modules.methods import METHODS
from modules.program.arguments import CommonSettings
from modules.training.trainer import TrainSettings
from preprocess import check_videos

CLASSES = {
    CommonSettings,
    TrainSettings,
    *(task for _, task in PROGRAMS.values()),
    *(method.settings for method in METHODS.values()),
    *(dataset.settings for dataset in DATASETS),
    check_videos.CheckSettings,
    check_videos.FolderSettings,
    check_videos.SplitChoice,
}


@pytest.mark.parametrize("settings", sorted(CLASSES, key=lambda settings: settings.__name__))
def test_every_number_has_a_range_that_its_default_is_in(settings):
    hints = typing.get_type_hints(settings)
    for field in dataclasses.fields(settings):
        kinds = {hints[field.name], *typing.get_args(hints[field.name])}
        if kinds & {int, float} and not field.metadata["choices"]:
            assert field.metadata["within"] is not None, field.name
            assert field.default is None or field.default in field.metadata["within"], field.name


@pytest.mark.parametrize(
    ("within", "inside", "outside", "text"),
    [
        (at_least(1), (1, 2, 1e9), (0, 0.999, math.inf, math.nan), "at least 1"),
        (above(0), (1e-9, 5), (0, -1, math.inf, math.nan), "above 0"),
        (between(0, 1), (0, 0.5, 1), (-1e-9, 1.001, -math.inf, math.nan), "0 to 1"),
        (between(0, 1, high_open=True), (0, 0.999), (1, -1, math.nan), "at least 0 and below 1"),
    ],
)
def test_a_range_holds_its_numbers_and_says_which_they_are(within, inside, outside, text):
    assert all(value in within for value in inside)
    assert not any(value in within for value in outside)
    assert str(within) == text


def test_a_number_that_need_not_be_given_is_not_out_of_range():
    @dataclasses.dataclass(frozen=True)
    class Optional:
        size: int | None = setting(None, "size", within=Range(1))

    assert range_problems(Optional()) == []
    assert range_problems(Optional(size=0)) == ["--size must be at least 1, found 0"]


OUT_OF_RANGE = {
    "--lr": "-1",
    "--warmup_proportion": "2",
    "--weight_decay": "-1",
    "--max_grad_norm": "-0.5",
    "--epochs": "0",
    "--batch_size": "0",
    "--save_steps": "0",
    "--n_display": "0",
    "--batch_size_val": "0",
    "--num_thread_reader": "-1",
    "--max_bad_fraction": "1.5",
    "--seed": "-1",
    "--max_frames": "0",
    "--max_words": "2",
    "--video_time_limit": "inf",
    "--prompt_dropout": "1.5",
    "--num_regions": "-1",
    "--alpha": "nan",
    "--beta": "-1",
    "--eta": "-4",
    "--epsilon": "0",
    "--spatial_width": "0",
    "--spatial_hidden": "0",
    "--temporal_width": "0",
}


def test_everything_out_of_range_is_in_one_message_and_nothing_has_started(tiny_run, tmp_path, capsys):
    flags = [word for flag in OUT_OF_RANGE.items() for word in flag]
    assert main_task_retrieval.main([*tiny_run, "--do_train", *flags, "--output_dir", str(tmp_path / "run")]) == 1
    message = capsys.readouterr().err
    for name, value in OUT_OF_RANGE.items():
        line = next(line for line in message.splitlines() if line.startswith(f"{name} must be "))
        assert str(float(line.split()[-1])) == str(float(value))
    assert not (tmp_path / "run").exists()


def test_a_flag_may_stand_alone_where_it_says_what_that_means():
    @dataclasses.dataclass(frozen=True)
    class Lenient:
        allow: Path | bool = setting(False, "a list, or anything", metavar="FILE", alone=True)
        folder: Path | None = setting(None, "a folder")

    parser = argparse.ArgumentParser()
    add_arguments(parser, Lenient, "flags")
    for given, allow in {"": False, "--allow": True, "--allow a.csv": Path("a.csv"), "--allow=b": Path("b")}.items():
        settings = from_arguments(Lenient, parser.parse_args([*given.split(), "--folder", "c"]))
        assert settings == Lenient(allow=allow, folder=Path("c"))
        assert all_settings(settings) == {"allow": allow if isinstance(allow, bool) else str(allow), "folder": "c"}
    assert "--allow [FILE]" in parser.format_help() and "default" not in parser.format_help()


def test_what_does_not_fit_together_is_in_the_same_message(tiny_run, tmp_path, capsys):
    flags = ["--do_train", "--lr", "-1", "--temporal_width", "65", "--video_time_limit", "1e10"]
    assert main_task_retrieval.main([*tiny_run, *flags, "--output_dir", str(tmp_path / "run")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert sorted(line.split()[0] for line in lines) == ["--lr", "--temporal_width", "--video_time_limit"]
    assert "2 heads, found 65" in str(lines) and "above 0 and at most 86400" in str(lines)
    assert not (tmp_path / "run").exists()
    flags = ["--do_train", "--method", "vop", "--num_prompts", "2", "--num_context_prompts", "3"]
    assert main_task_retrieval.main([*tiny_run, *flags, "--output_dir", str(tmp_path / "run")]) == 1
    assert "--num_context_prompts 3 is more than --num_prompts 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value"), [*OUT_OF_RANGE.items(), ("--shots", "-1"), ("--num_clips", "0")], ids=lambda part: part
)
def test_each_flag_out_of_range_is_refused_by_itself(tiny_recognition, tmp_path, capsys, flag, value):
    folder = tmp_path / "run"
    assert main_task_recognition.main([*tiny_recognition, "--do_train", flag, value, "--output_dir", str(folder)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"{flag} must be ")
    assert not folder.exists()


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_says_range_default_and_what_is_wanted_behind_a_short_usage(name, capsys):
    program, _ = PROGRAMS[name]
    with pytest.raises(SystemExit) as left:
        program.main(["--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0].endswith("[flags]") and text.splitlines()[1] == ""
    words = " ".join(text.split())
    assert "--max_grad_norm NORM a longer gradient is scaled down to this norm; 0 for no clipping" in words
    assert "--video_time_limit SECONDS" in words and "--output_dir FOLDER" in words
    assert "(0 to 1; default: 0.1)" in words and "(at least 0 and below 1; default: 0.1)" in words
    for flag in ("--lr", "--weight_decay", "--method", "--datatype"):
        assert f"{flag} " in words


@pytest.mark.parametrize("flags", [["--no_such_flag"], ["--lr", "fast"], ["--method", "none"], ["--resume"]])
def test_a_malformed_flag_is_said_in_two_lines(flags, capsys):
    with pytest.raises(SystemExit) as left:
        main_task_retrieval.main(["--do_train", "--val_csv", "list.csv", *flags])
    assert left.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and flags[0] in lines[1]

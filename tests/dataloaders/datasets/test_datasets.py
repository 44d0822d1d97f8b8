"""What a new dataset stands on: the registries, what readers of lists share, the settings of decoding."""

import csv

import pytest

from common.errors import UserError
from dataloaders.annotations import AnnotationError, raise_if_problems
from dataloaders.datasets import RECOGNITION, RETRIEVAL
from dataloaders.datasets.recognition.splits import RecognitionDataset
from dataloaders.datasets.retrieval.lists import Listed, RetrievalDataset, locate, one_download
from dataloaders.samples import Sample, VideoLocation
from dataloaders.tables import read_table
from dataloaders.video.reader import DecodingSettings
from dataloaders.video_files import VideoFiles


def test_each_task_has_datasets_of_its_kind_under_names_of_their_own():
    assert all(isinstance(dataset, RetrievalDataset) for dataset in RETRIEVAL.values())
    assert all(isinstance(dataset, RecognitionDataset) for dataset in RECOGNITION.values())
    assert RETRIEVAL and RECOGNITION and not set(RETRIEVAL) & set(RECOGNITION)


def read_pairs(table, folder, allow_missing=False):
    """A reader of another retrieval dataset, made of nothing but what readers share."""
    rows, problems = read_table(table, ["pair", "video_id", "text"], unique="pair")
    videos = VideoFiles(folder)
    located = locate(rows, videos, "evaluation", table, allow_missing)
    remedy = one_download("Other", "the CSV file (--pairs)", videos, "1.mp4")
    raise_if_problems(f"Other {table}", problems + located.problems, remedy, *located.remedies)
    samples = [
        Sample(row.values["pair"], row.values["video_id"], located.paths[row.values["video_id"]], (row.values["text"],))
        for row in rows
        if row.values["video_id"] in located.paths
    ]
    return Listed(samples, located.missing)


def write_pairs(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text", "pair", "video_id"], *rows])
    return path


def test_a_second_retrieval_dataset_needs_no_helpers_of_its_own(tmp_path):
    for name in ("1.mp4", "part/2.avi"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    table = write_pairs(tmp_path / "pairs.csv", [["a dog", "a", "1"], ["a cat, asleep", "b", "2"], ["", "b", "3"]])
    with pytest.raises(AnnotationError) as caught:
        read_pairs(table, tmp_path)
    message = str(caught.value)
    for part in ("line 4", "empty text", "pair b is there before, in line 3", "3: no video file", "1.mp4", "one Other"):
        assert part in message
    listed = read_pairs(write_pairs(table, [["a dog", "a", "1"], ["a cat", "b", "2"], ["x", "c", "3"]]), tmp_path, True)
    assert [(sample.sample_id, sample.path.name) for sample in listed.samples] == [("a", "1.mp4"), ("b", "2.avi")]
    assert listed.missing == ["3"]


def test_a_dataset_has_a_recipe_of_its_own():
    first = RetrievalDataset(VideoLocation, read_pairs, read_pairs, lambda settings: False)
    second = RetrievalDataset(VideoLocation, read_pairs, read_pairs, lambda settings: False, recipe={"max_words": 77})
    assert not first.recipe and second.recipe["max_words"] == 77


def test_settings_of_decoding_that_no_flag_takes_are_refused_together():
    with pytest.raises(UserError) as caught:
        DecodingSettings(video_time_limit=0, decoder_errors="perhaps")
    lines = str(caught.value).splitlines()
    assert [line.split()[0] for line in lines] == ["--video_time_limit", "--decoder_errors"]
    assert "above 0" in lines[0] and "reject or ignore" in lines[1]

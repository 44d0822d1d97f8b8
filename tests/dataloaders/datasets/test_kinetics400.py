"""The Kinetics-400 reader on CSV files in the published form, with most of their videos gone."""

import pytest

from dataloaders.annotations import AnnotationError
from dataloaders.datasets.recognition.kinetics400 import DATASET, read_split
from helpers.annotations import write_csv

HEADER = "label,youtube_id,time_start,time_end,split"
TRAIN = [
    "testifying,---QUuC4vJs,84,94,train",
    "abseiling,0347ZoDXyP0,95,105,train",
    "passing American football (in game),-0kjB0x8b2Y,0,10,train",
    "abseiling,0wR5jVB-WPk,417,427,train",
]
VALIDATION = [
    "abseiling,3caPS4FHFF8,36,46,validate",
    "testifying,zzzzzzzzzzz,1000,1010,validate",
]


def write(folder, train=TRAIN, validation=VALIDATION, header=HEADER, names=("train.csv", "validate.csv")):
    folder.mkdir(exist_ok=True)
    for name, rows in zip(names, (train, validation), strict=True):
        write_csv(folder / name, header, *rows, newline="\n")
    return folder


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


FLAT = [
    *("---QUuC4vJs_000084_000094.mp4", "0347ZoDXyP0_000095_000105.mp4", "-0kjB0x8b2Y_000000_000010.mkv"),
    *("0wR5jVB-WPk_000417_000427.webm", "3caPS4FHFF8_000036_000046.mp4", "zzzzzzzzzzz_001000_001010.mp4"),
]
FOLDERS = [
    *("testifying", "abseiling", "passing_American_football_(in_game)", "abseiling", "abseiling", "testifying"),
]


def refused(folder, videos, **more):
    with pytest.raises(AnnotationError) as caught:
        read_split(folder, videos, **more)
    return str(caught.value)


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("names", [("train.csv", "validate.csv"), ("k400_train.csv", "k400_val.csv")])
def test_videos_are_named_with_six_digit_seconds_in_class_folders_or_flat(tmp_path, flat, names):
    paths = FLAT if flat else [f"{folder}/{name}" for folder, name in zip(FOLDERS, FLAT, strict=True)]
    validation = [row.replace("validate", "val") for row in VALIDATION] if "val.csv" in names[1] else VALIDATION
    files = write(tmp_path / "csv", validation=validation, names=names)
    split = read_split(files, make(tmp_path / "videos", *paths))
    assert split.classes == split.texts == ("abseiling", "passing American football (in game)", "testifying")
    assert [(sample.label, sample.path.name) for sample in (*split.train, *split.test)] == [
        (label, name) for label, name in zip((2, 0, 1, 0, 0, 2), FLAT, strict=True)
    ]
    assert all(sample.captions == (split.texts[sample.label],) for sample in (*split.train, *split.test))
    assert split.train[3].sample_id == "abseiling/0wR5jVB-WPk_000417_000427"
    assert split.missing == ()


def test_missing_videos_are_listed_by_their_list_and_left_out_where_allowed(tmp_path):
    files = write(tmp_path / "csv")
    videos = make(tmp_path / "videos", FLAT[1], FLAT[4])
    message = refused(files, videos)
    assert "4 problems" in message and "--allow_missing" in message and "--on_bad_eval_video drop" in message
    assert f"line 2 of {files / 'train.csv'}: testifying/---QUuC4vJs_000084_000094: no video file" in message
    assert "4 problems" not in refused(files, videos, allow_missing=["training"])
    split = read_split(files, videos, allow_missing=["training", "test"])
    assert [sample.path.name for sample in (*split.train, *split.test)] == [FLAT[1], FLAT[4]]
    assert split.missing == (
        ("training", "testifying/---QUuC4vJs_000084_000094"),
        ("training", "passing American football (in game)/-0kjB0x8b2Y_000000_000010"),
        ("training", "abseiling/0wR5jVB-WPk_000417_000427"),
        ("test", "testifying/zzzzzzzzzzz_001000_001010"),
    )
    # the labels are those of the whole dataset, whatever is missing
    assert len(split.classes) == 3 and split.test[0].label == 0


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("abseiling,0347ZoDXyP0,95,105,test", "split 'test', needs train"),
        ("abseiling,0347ZoDXyP0,9.5,105,train", "time_start and time_end must be whole seconds: ['9.5', '105']"),
        ("abseiling,0347ZoDXyP0,-5,105,train", "must be whole seconds"),
        ("abseiling,,95,105,train", "empty youtube_id"),
        (",0347ZoDXyP0,95,105,train", "empty label"),
        ("abseiling,0347ZoDXyP0,95,105", "4 fields, the header has 5"),
        ("abseiling,0wR5jVB-WPk,417,427,train", "in the training list"),
    ],
)
def test_what_is_wrong_with_a_row_is_said_with_its_line(tmp_path, row, problem):
    files = write(tmp_path / "csv", train=[TRAIN[0], row, *TRAIN[2:]])
    message = refused(files, make(tmp_path / "videos", *FLAT))
    assert "1 problem\n" in message and problem in message
    assert f"line 3 of {files / 'train.csv'}" in message


def test_files_that_are_not_there_or_there_twice_are_named(tmp_path):
    videos = make(tmp_path / "videos", *FLAT)
    files = write(tmp_path / "csv")
    write_csv(
        files / "test.csv", "youtube_id,time_start,time_end,split", "a,1,2,test"
    )  # the published one has no labels
    assert len(read_split(files, videos).train) == 4
    write_csv(files / "val.csv", HEADER, *VALIDATION)
    message = refused(files, videos)
    assert "1 problem\n" in message and f"in {files}; found val.csv and validate.csv" in message
    (files / "train.csv").unlink()
    (files / "val.csv").unlink()
    message = refused(files, videos)
    assert "1 problem\n" in message and "train.csv" in message and "found none" in message
    (files / "validate.csv").write_text("label,time_start,time_end,split\n")
    assert "missing ['youtube_id']" in refused(files, videos)


def test_a_class_that_nothing_is_trained_on_is_named(tmp_path):
    files = write(tmp_path / "csv", validation=[VALIDATION[0], "Abseiling,zzzzzzzzzzz,1000,1010,validate"])
    message = refused(files, make(tmp_path / "videos", *FLAT))
    assert "class 'Abseiling' has test videos and no training videos" in message


def test_an_evaluation_looks_for_no_training_videos(tmp_path):
    files = write(tmp_path / "csv")
    settings = DATASET.settings(split_dir=files, features_path=make(tmp_path / "videos", *FLAT[4:]))
    split = DATASET.read(settings, "1", lists=["test"])
    assert not split.train and len(split.test) == 2 and len(split.classes) == 3

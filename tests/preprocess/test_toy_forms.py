"""The toy dataset in the published forms of other datasets: what their readers make of it; the videos are the same."""

import json
import re
from dataclasses import replace

import pytest

from dataloaders.datasets import RECOGNITION, RETRIEVAL
from preprocess import make_toy_dataset
from preprocess.make_toy_dataset import DatasetSettings, make_dataset, render_split
from preprocess.toy.forms import FORMS, MSRVTT, WORDINGS

SETTINGS = DatasetSettings(num_train=8, num_test=4, num_test_sets=1, num_frames=2, quantiser=40)
LISTS = {
    "vatex": {
        "train_json": "vatex_training_v1.0.json",
        "val_json": "vatex_validation_v1.0.json",
        "val_list": "test_list.txt",
    },
    "activity": {"train_json": "train.json", "val_json": "val_1.json"},
    "didemo": {"train_json": "train_data.json", "val_json": "test_data.json"},
    "msvd": {"train_list": "train_list.txt", "val_list": "test_list.txt", "data_path": "raw-captions.pkl"},
    "lsmdc": {"train_csv": "LSMDC16_annos_training.csv", "val_csv": "LSMDC16_challenge_1000_publictect.csv"},
}
IDS = {
    "vatex": r"[\w-]{11}_\d{6}_\d{6}",
    "activity": r"v_[\w-]{11}",
    "didemo": r"\d+@N\d\d_\d+_\w+",
    "msvd": r"[\w-]{11}_\d+_\d+",
    "lsmdc": r"\d{4}_\w+_\d\d\.\d\d\.\d\d\.\d{3}-\d\d\.\d\d\.\d\d\.\d{3}",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The dataset in every form."""
    root = tmp_path_factory.mktemp("forms")
    return {form: make_dataset(root / form, SETTINGS, form=form) for form in FORMS}


@pytest.fixture(scope="module")
def captions():
    """The captions of the videos in their order, of training and test."""
    return {split: [video.caption for video in render_split(SETTINGS, split)] for split in ("train", "test")}


def expected(form, caption):
    """The captions of a video in a form, as lists of what they may be."""
    words = caption.split()
    paragraph = f"There is {' '.join(words[:3])}. It is {' '.join(words[3:])}."
    several = [wording.format(caption) for wording in WORDINGS]
    return {
        "vatex": [several],
        "activity": [[paragraph]],
        "didemo": [[paragraph]],
        "msvd": [several[:count] for count in (3, 4, 5)],
        "lsmdc": [[f"{caption}."]],
    }[form]


@pytest.mark.parametrize("form", LISTS)
def test_the_reader_finds_every_video_and_its_captions(made, captions, form):
    dataset = RETRIEVAL[form]
    files = {name: made[form] / file for name, file in LISTS[form].items()}
    settings = dataset.settings(features_path=made[form] / "videos", **files)
    assert dataset.official(settings)
    for split, listed in (("train", dataset.read_train(settings)), ("test", dataset.read_eval(settings))):
        by_video = {}
        for sample in listed.samples:
            assert re.fullmatch(IDS[form], sample.video_id) and sample.path.is_file()
            by_video.setdefault(sample.video_id, []).extend(sample.captions)
        assert len(by_video) == len(captions[split])
        for found, caption in zip(by_video.values(), captions[split], strict=True):
            assert found in expected(form, caption)


def test_some_sentences_of_activitynet_are_not_in_the_order_of_time(made):
    entries = json.loads((made["activity"] / "train.json").read_text()).values()
    ordered = [entry["timestamps"] == sorted(entry["timestamps"]) for entry in entries]
    assert any(ordered) and not all(ordered)


def test_kinetics_has_the_motions_as_classes(made):
    dataset = RECOGNITION["kinetics400"]
    settings = dataset.settings(split_dir=made["kinetics400"] / "labels", features_path=made["kinetics400"] / "videos")
    split = dataset.read(settings, "1")
    motions = {split_name: [v.motion for v in render_split(SETTINGS, split_name)] for split_name in ("train", "test")}
    names = json.loads((made["kinetics400"] / "dataset.json").read_text())["motions"]
    for split_name, samples in (("train", split.train), ("test", split.test)):
        assert [split.classes[sample.label] for sample in samples] == [names[motion] for motion in motions[split_name]]
        for sample in samples:
            assert sample.path.parent.name == split.classes[sample.label]
            assert re.fullmatch(r"[\w-]{11}_\d{6}_\d{6}\.mp4", sample.path.name)


def test_the_videos_are_the_same_in_every_form(made):
    contents = {
        form: sorted(path.read_bytes() for path in (folder / "videos").rglob("*.mp4")) for form, folder in made.items()
    }
    assert len(contents[MSRVTT]) == 12
    assert all(content == contents[MSRVTT] for content in contents.values())


def test_a_dataset_in_one_form_is_not_taken_for_one_in_another(tmp_path, capsys):
    few = replace(SETTINGS, num_train=2, num_test=2)
    folder = make_dataset(tmp_path / "dataset", few, form="msvd")
    make_dataset(folder, few, form="msvd")
    assert "is there already" in capsys.readouterr().out
    with pytest.raises(FileExistsError):
        make_dataset(folder, few, form="lsmdc")
    with pytest.raises(FileExistsError):
        make_dataset(folder, few)
    make_dataset(folder, few, overwrite=True)
    assert (folder / "MSRVTT_data.json").is_file() and not (folder / "raw-captions.pkl").exists()
    assert "form" not in json.loads((folder / "dataset.json").read_text())  # as it was before there were others


def test_the_program_takes_a_form_and_makes_one_test_set(tmp_path, capsys):
    flags = ["--output_dir", str(tmp_path / "toy"), "--form", "lsmdc", "--num_train", "2", "--num_test", "2"]
    make_toy_dataset.main(flags)
    assert "LSMDC16_annos_training.csv" in capsys.readouterr().out
    assert len(list((tmp_path / "toy" / "videos").rglob("*.mp4"))) == 4

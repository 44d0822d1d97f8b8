"""The recognition readers on the real split files and on made-up ones in their published form."""

import json
from dataclasses import replace
from pathlib import PurePosixPath

import pytest

from dataloaders.annotations import AnnotationError, show
from dataloaders.datasets.recognition import hmdb51, kinetics400, ssv2, ucf101
from helpers.annotations import write_hmdb51, write_lines
from helpers.paths import shared_data

READERS = {"hmdb51": hmdb51, "ucf101": ucf101, "ssv2": ssv2, "kinetics400": kinetics400}


def make_videos(folder, names):
    """Empty files: a reader looks at names only."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    return folder


def write_json(path, content, encoding="utf-8"):
    return write_lines(path, *json.dumps(content, indent=1).split("\n"), newline="\r\n", encoding=encoding)


HMDB51_VIDEOS = [
    *("climb/a_0", "climb/b_1", "climb/c_2"),
    *("climb_stairs/Up#the_(old)_stairs!_&;_climb_f_cm_0", "climb_stairs/[tall] man climbs_1"),
]


def write_ucf101(folder, **form):
    """Three classes, of which one has files in another spelling, as in the real lists."""
    write_lines(folder / "classInd.txt", "1 YoYo", "2 HandstandPushups", "3 TaiChi", **form)
    write_lines(
        folder / "trainlist01.txt",
        "HandstandPushups/v_HandStandPushups_g08_c01.avi 2",
        "YoYo/v_YoYo_g08_c01.avi 1",
        "TaiChi/v_TaiChi_g08_c01.avi 3",
        **form,
    )
    write_lines(
        folder / "testlist01.txt",
        "TaiChi/v_TaiChi_g01_c01.avi",
        "HandstandPushups/v_HandStandPushups_g01_c01.avi",
        **form,
    )
    return folder


UCF101_VIDEOS = [
    *("HandstandPushups/v_HandStandPushups_g08_c01", "HandstandPushups/v_HandStandPushups_g01_c01"),
    *("YoYo/v_YoYo_g08_c01", "TaiChi/v_TaiChi_g08_c01", "TaiChi/v_TaiChi_g01_c01"),
]

SSV2_LABELS = {
    "Pushing something from left to right": "0",
    "Something falling like a rock": "2",
    "Pushing something from right to left": "1",
}


def ssv2_entry(video_id, template):
    label = template.replace("[something]", "a cup").replace("[Something]", "A cup")
    return {"id": video_id, "label": label, "template": template, "placeholders": ["a cup"]}


SSV2_TRAIN = [
    ssv2_entry("78687", "Pushing [something] from right to left"),
    ssv2_entry("42326", "[Something] falling like a rock"),
]
SSV2_TEST = [ssv2_entry("74225", "Pushing [something] from left to right")]
SSV2_VIDEOS = ["42326", "78687", "74225"]


def write_ssv2(folder, prefix="something-something-v2-", labels=SSV2_LABELS, train=SSV2_TRAIN, test=SSV2_TEST, **form):
    write_json(folder / f"{prefix}labels.json", labels, **form)
    write_json(folder / f"{prefix}train.json", train, **form)
    write_json(folder / f"{prefix}validation.json", test, **form)
    return folder


KINETICS_HEADER = "label,youtube_id,time_start,time_end,split"


def write_kinetics400(folder, **form):
    """Two classes in another order than the alphabet's, and a row of the published files with more than one word."""
    write_lines(
        folder / "train.csv",
        KINETICS_HEADER,
        "arm wrestling,-7kbO0v4hag,107,117,train",
        "abseiling,0347ZoDXyP0,95,105,train",
        **form,
    )
    write_lines(
        folder / "validate.csv",
        KINETICS_HEADER,
        "abseiling,3caPS4FHFF8,36,46,validate",
        '"arm wrestling",lL7NoKhPV_k,0,10,validate',
        **form,
    )
    return folder


KINETICS_VIDEOS = [
    *("arm wrestling/-7kbO0v4hag_000107_000117", "abseiling/0347ZoDXyP0_000095_000105"),
    *("abseiling/3caPS4FHFF8_000036_000046", "arm wrestling/lL7NoKhPV_k_000000_000010"),
]

MINIATURES = {
    "hmdb51": (write_hmdb51, HMDB51_VIDEOS),
    "ucf101": (write_ucf101, UCF101_VIDEOS),
    "ssv2": (write_ssv2, SSV2_VIDEOS),
    "kinetics400": (write_kinetics400, KINETICS_VIDEOS),
}


# Where the second and the third video are listed
PLACES = {
    "hmdb51": {
        "climb/b_1": "line 2 of climb_test_split1.txt",
        "climb/c_2": "line 3 of climb_test_split1.txt",
    },
    "ucf101": {
        "HandstandPushups/v_HandStandPushups_g01_c01": "line 2 of testlist01.txt",
        "YoYo/v_YoYo_g08_c01": "line 2 of trainlist01.txt",
    },
    "ssv2": {
        "78687": "entry 0 of something-something-v2-train.json",
        "74225": "entry 0 of something-something-v2-validation.json",
    },
    "kinetics400": {
        "abseiling/0347ZoDXyP0_000095_000105": "line 3 of {splits}/train.csv",
        "abseiling/3caPS4FHFF8_000036_000046": "line 2 of {splits}/validate.csv",
    },
}


def miniature(name, folder, suffix=".avi", flat=False, **form):
    """Split files and videos of a made-up dataset: the arguments of its `read_split`."""
    write, video_ids = MINIATURES[name]
    videos = [PurePosixPath(video_id).name if flat else video_id for video_id in video_ids]
    return write(folder / "splits", **form), make_videos(folder / "videos", [video + suffix for video in videos]), "1"


def problems_of(name, arguments):
    """The message with which a reader refuses its files."""
    with pytest.raises(AnnotationError) as caught:
        READERS[name].read_split(*arguments)
    return str(caught.value)


def rows(samples):
    return [(sample.video_id, sample.label, *sample.captions) for sample in samples]


def check_split(split, num_classes, num_train, num_test):
    """What holds for every split: labels within range, one text a class, and no video on both sides."""
    assert len(split.classes) == len(split.texts) == len(set(split.texts)) == num_classes
    assert (len(split.train), len(split.test)) == (num_train, num_test)
    for samples in (split.train, split.test):
        assert {sample.label for sample in samples} == set(range(num_classes))
        assert all(sample.captions == (split.texts[sample.label],) for sample in samples)
    everything = split.train + split.test
    assert len({sample.path for sample in everything}) == len({sample.sample_id for sample in everything})
    assert len({sample.path for sample in everything}) == num_train + num_test


# The real split files


@pytest.fixture(scope="module")
def hmdb51_videos(tmp_path_factory):
    """Every listed video, in class folders."""
    names = []
    for path in shared_data("hmdb51_splits").glob("*_test_split1.txt"):
        folder = path.name.removesuffix("_test_split1.txt")
        names += [f"{folder}/{line.split()[0]}" for line in path.read_text().splitlines()]
    return make_videos(tmp_path_factory.mktemp("hmdb51"), names)


@pytest.fixture(scope="module")
def ucf101_videos(tmp_path_factory):
    """Every listed video, compressed and in one folder."""
    folder = shared_data("ucf101_splits")
    lines = [
        *(folder / "trainlist01.txt").read_text().split("\n"),
        *(folder / "testlist01.txt").read_text().split("\n"),
    ]
    stems = [PurePosixPath(line.split()[0]).stem for line in lines if line]
    return make_videos(tmp_path_factory.mktemp("ucf101"), [f"{stem}.mp4" for stem in stems])


@pytest.mark.parametrize("name", "123")
def test_the_real_hmdb51_splits(hmdb51_videos, name):
    split = hmdb51.read_split(shared_data("hmdb51_splits"), hmdb51_videos, name)
    check_split(split, 51, 3570, 1530)
    assert list(split.classes) == sorted(path.name for path in hmdb51_videos.iterdir())
    assert {"brush hair", "climb", "climb stairs", "wave"} <= set(split.texts)
    for sample in split.train + split.test:
        assert sample.path == hmdb51_videos / f"{sample.video_id}.avi"
        assert sample.path.parent.name == split.classes[sample.label]


def test_hmdb51_keeps_the_marks_of_the_real_files(hmdb51_videos):
    folder = shared_data("hmdb51_splits")
    split = hmdb51.read_split(folder, hmdb51_videos, "2")
    marks = {"1": split.train, "2": split.test}
    for mark, samples in marks.items():
        expected = []
        for name in split.classes:
            lines = [line.split() for line in (folder / f"{name}_test_split2.txt").read_text().splitlines()]
            expected += [f"{name}/{file.removesuffix('.avi')}" for file, given in lines if given == mark]
        assert [sample.video_id for sample in samples] == expected


@pytest.mark.parametrize("name, num_train, num_test", [("1", 9537, 3783), ("2", 9586, 3734), ("3", 9624, 3696)])
def test_the_real_ucf101_splits(ucf101_videos, name, num_train, num_test):
    folder = shared_data("ucf101_splits")
    split = ucf101.read_split(folder, ucf101_videos, name)
    check_split(split, 101, num_train, num_test)
    lines = [line.split() for line in (folder / f"trainlist0{name}.txt").read_text().splitlines()]
    assert [(f"{sample.video_id}.avi", str(sample.label + 1)) for sample in split.train] == [tuple(x) for x in lines]
    lines = (folder / f"testlist0{name}.txt").read_text().split()
    assert [f"{sample.video_id}.avi" for sample in split.test] == lines
    for sample in split.train + split.test:
        assert sample.video_id.startswith(split.classes[sample.label] + "/")
        assert sample.path == ucf101_videos / f"{PurePosixPath(sample.video_id).name}.mp4"


def test_the_words_of_the_real_ucf101_classes(ucf101_videos):
    split = ucf101.read_split(shared_data("ucf101_splits"), ucf101_videos, "1")
    texts = dict(zip(split.classes, split.texts, strict=True))
    for name, text in texts.items():
        assert text == text.lower()
        assert text.replace(" ", "") == name.lower()
        assert len(text.split()) == sum(letter.isupper() for letter in name)
    assert texts["ApplyEyeMakeup"] == "apply eye makeup"
    assert texts["HandstandPushups"] == "handstand pushups"
    assert (texts["YoYo"], texts["TaiChi"], texts["Haircut"]) == ("yo yo", "tai chi", "haircut")


def test_a_missing_video_of_a_real_split_is_named(tmp_path):
    videos = make_videos(tmp_path, ["brush_hair/other.avi"])
    message = problems_of("hmdb51", (shared_data("hmdb51_splits"), videos, "1"))
    assert "5100 problems" in message
    assert "brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0: no video file in" in message
    assert "5090 more" in message


# Reading


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".MKV"])
def test_hmdb51(tmp_path, flat, suffix):
    split = hmdb51.read_split(*miniature("hmdb51", tmp_path, suffix, flat))
    assert split.classes == ("climb", "climb_stairs")
    assert split.texts == ("climb", "climb stairs")
    assert rows(split.train) == [
        ("climb/b_1", 0, "climb"),
        ("climb/c_2", 0, "climb"),
        ("climb_stairs/Up#the_(old)_stairs!_&;_climb_f_cm_0", 1, "climb stairs"),
    ]
    assert rows(split.test) == [
        ("climb/a_0", 0, "climb"),
        ("climb_stairs/[tall] man climbs_1", 1, "climb stairs"),
    ]
    for sample in split.train + split.test:
        assert sample.path.is_file()
        assert f"{sample.video_id}{suffix}".endswith(sample.path.name)


@pytest.mark.parametrize("flat", [False, True])
def test_ucf101(tmp_path, flat):
    split = ucf101.read_split(*miniature("ucf101", tmp_path, flat=flat))
    assert split.classes == ("YoYo", "HandstandPushups", "TaiChi")
    assert split.texts == ("yo yo", "handstand pushups", "tai chi")
    assert rows(split.train) == [
        ("HandstandPushups/v_HandStandPushups_g08_c01", 1, "handstand pushups"),
        ("YoYo/v_YoYo_g08_c01", 0, "yo yo"),
        ("TaiChi/v_TaiChi_g08_c01", 2, "tai chi"),
    ]
    assert [sample.label for sample in split.test] == [2, 1]
    assert all(sample.path.stem == PurePosixPath(sample.video_id).name for sample in split.train + split.test)


@pytest.mark.parametrize("flat", [False, True])
def test_copies_of_ucf101_with_another_spelling_are_found(tmp_path, flat):
    splits = write_ucf101(tmp_path / "splits")
    write_lines(splits / "testlist01.txt", "HandStandPushups/v_HandstandPushups_g01_c01.avi")
    names = [name.replace("HandStand", "Handstand") + ".avi" for name in UCF101_VIDEOS]
    videos = make_videos(tmp_path / "videos", [name.split("/")[flat] if flat else name for name in names])
    split = ucf101.read_split(splits, videos, "1")
    assert (split.train[0].label, split.test[0].label) == (1, 1)
    assert split.train[0].path.name == "v_HandstandPushups_g08_c01.avi"
    assert split.test[0].path.name == "v_HandstandPushups_g01_c01.avi"


def test_the_exact_name_goes_before_another_spelling(tmp_path):
    splits, videos, name = miniature("ucf101", tmp_path)
    other = videos / "YoYo" / "v_yoyo_g08_c01.avi"
    other.touch()
    if len(list(other.parent.iterdir())) == 1:
        pytest.skip("this file system does not tell upper from lower case")
    assert ucf101.read_split(splits, videos, name).train[1].path.name == "v_YoYo_g08_c01.avi"


@pytest.mark.parametrize("prefix", ["something-something-v2-", ""])
@pytest.mark.parametrize("suffix", [".webm", ".mp4"])
def test_ssv2(tmp_path, prefix, suffix):
    splits = write_ssv2(tmp_path / "splits", prefix)
    videos = make_videos(tmp_path / "videos", [video_id + suffix for video_id in SSV2_VIDEOS])
    split = ssv2.read_split(splits, videos)
    assert split.classes == (
        "Pushing something from left to right",
        "Pushing something from right to left",
        "Something falling like a rock",
    )
    assert split.texts == tuple(name.lower() for name in split.classes)
    assert rows(split.train) == [("78687", 1, split.texts[1]), ("42326", 2, split.texts[2])]
    assert rows(split.test) == [("74225", 0, split.texts[0])]
    assert [sample.path for sample in split.train] == [videos / f"78687{suffix}", videos / f"42326{suffix}"]


@pytest.mark.parametrize("form", [{"newline": "\r\n"}, {"newline": "\r"}, {"encoding": "utf-8-sig"}])
@pytest.mark.parametrize("name", ["hmdb51", "ucf101", "kinetics400"])
def test_line_ends_and_byte_order_marks_do_not_matter(tmp_path, name, form):
    read_split = READERS[name].read_split
    plain, other = read_split(*miniature(name, tmp_path)), read_split(*miniature(name, tmp_path, **form))
    assert other == plain


def test_a_byte_order_mark_in_json_does_not_matter(tmp_path):
    plain = ssv2.read_split(*miniature("ssv2", tmp_path))
    assert ssv2.read_split(*miniature("ssv2", tmp_path, encoding="utf-8-sig")) == plain


def test_the_same_name_in_two_class_folders_is_two_videos(tmp_path):
    splits = tmp_path / "splits"
    for name in ("run", "walk"):
        write_lines(splits / f"{name}_test_split1.txt", "0.avi 1 ", "1.avi 2 ")
    videos = make_videos(tmp_path / "videos", ["run/0.mp4", "run/1.mp4", "walk/0.mp4", "walk/1.mp4"])
    split = hmdb51.read_split(splits, videos, "1")
    assert [sample.path for sample in split.train] == [videos / "run/0.mp4", videos / "walk/0.mp4"]
    flat = make_videos(tmp_path / "flat", ["0.mp4", "1.mp4"])
    message = problems_of("hmdb51", (splits, flat, "1"))
    assert "2 problems" in message
    assert "walk/0: in the training list (line 1 of walk_test_split1.txt) and before in the training list" in message


@pytest.mark.parametrize("name", READERS)
def test_datasets_read_from_their_settings(tmp_path, name):
    dataset = READERS[name].DATASET
    splits, videos, _ = miniature(name, tmp_path)
    settings = dataset.settings(split_dir=splits, features_path=videos)
    assert dataset.read(settings, dataset.splits[0]) == READERS[name].read_split(splits, videos, "1")
    assert dataset.splits == (("1",) if name in ("ssv2", "kinetics400") else ("1", "2", "3"))
    assert dataset.left_right_matters == (name == "ssv2")


# Files that do not fit together


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("missing", ["splits", "videos"])
def test_a_missing_folder_is_named(tmp_path, name, missing):
    splits, videos, split = miniature(name, tmp_path)
    gone = tmp_path / "gone"
    message = problems_of(name, (gone, videos, split) if missing == "splits" else (splits, gone, split))
    assert str(gone) in message
    assert "--split_dir" in message and "--features_path" in message
    assert "no video file in" not in message
    if missing == "videos" or name in ("hmdb51", "kinetics400"):
        assert "1 problem\n" in message
    else:
        assert message.count("no such file") == 3


@pytest.mark.parametrize("name", READERS)
def test_a_folder_without_videos_is_one_problem(tmp_path, name):
    splits, videos, split = miniature(name, tmp_path, suffix=".txt")
    message = problems_of(name, (splits, videos, split))
    assert "1 problem\n" in message and "holds no videos" in message


@pytest.mark.parametrize("name", READERS)
def test_missing_videos_are_named_and_those_left_out_are_not(tmp_path, name):
    splits, videos, split = miniature(name, tmp_path)
    gone = MINIATURES[name][1][1:3]
    for video_id in gone:
        path = videos / f"{video_id}.avi"
        path.rename(path.with_name("._" + path.name))  # what a file manager leaves behind is no video
    message = problems_of(name, (splits, videos, split))
    assert "2 problems" in message
    for video_id in gone:
        assert f"{PLACES[name][video_id].format(splits=splits)}: {video_id}: no video file in {videos}\n" in message
    assert "left out" not in message


@pytest.mark.parametrize("name", READERS)
def test_two_files_for_one_video_are_refused(tmp_path, name):
    splits, videos, split = miniature(name, tmp_path)
    video_id = MINIATURES[name][1][0]
    (videos / f"{video_id}.mp4").touch()
    message = problems_of(name, (splits, videos, split))
    assert "1 problem\n" in message
    assert f"{video_id}: more than one video file in {videos}: {video_id}.avi, {video_id}.mp4" in message


@pytest.mark.parametrize("name", ["hmdb51", "ucf101", "kinetics400"])
def test_a_video_in_both_layouts_is_refused(tmp_path, name):
    splits, videos, split = miniature(name, tmp_path)
    file = MINIATURES[name][1][0] + ".avi"
    (videos / PurePosixPath(file).name).touch()
    files = ", ".join(sorted([file, PurePosixPath(file).name]))
    assert f"more than one video file in {videos}: {files}\n" in problems_of(name, (splits, videos, split))


def test_malformed_lines_of_hmdb51_are_named(tmp_path):
    splits, videos, split = miniature("hmdb51", tmp_path)
    lines = ["a_0.avi 2 ", "b_1.avi 3 ", "c_2.avi", "", "my c_2.avi ", "b_1 1", "b_1.avi one", "2"]
    write_lines(splits / "climb_test_split1.txt", *lines)
    message = problems_of("hmdb51", (splits, videos, split))
    assert "6 problems" in message
    assert "line 2 of climb_test_split1.txt: mark '3' is none of 1 (training), 2 (test) and 0 (unused)" in message
    assert "line 7 of climb_test_split1.txt: mark 'one'" in message
    for number, line in [(3, "c_2.avi"), (5, "my c_2.avi"), (6, "b_1 1"), (8, "2")]:
        assert f"line {number} of climb_test_split1.txt: needs a video file and a mark, found {line!r}" in message


def test_a_class_of_another_split_must_be_in_this_one(tmp_path):
    splits, videos, split = miniature("hmdb51", tmp_path)
    write_lines(splits / "wave_test_split2.txt", "w.avi 1 ")
    message = problems_of("hmdb51", (splits, videos, split))
    assert "1 problem\n" in message
    assert "class 'wave' has a file for another split and no wave_test_split1.txt" in message


def test_other_files_beside_the_splits_do_not_matter(tmp_path):
    splits, videos, split = miniature("hmdb51", tmp_path)
    plain = hmdb51.read_split(splits, videos, split)
    write_lines(splits / "class_list.txt", "climb", "wave")
    write_lines(splits / "._climb_test_split1.txt", "\x00")
    assert hmdb51.read_split(splits, videos, split) == plain


@pytest.mark.parametrize("mark, other", [("1", "2"), ("2", "1")])
def test_hmdb51_without_training_or_test_videos_is_refused(tmp_path, mark, other):
    splits, videos, split = miniature("hmdb51", tmp_path)
    for path in splits.iterdir():
        path.write_text("".join(line for line in path.open() if line.split()[-1:] != [mark]))
    message = problems_of("hmdb51", (splits, videos, split))
    assert "1 problem\n" in message and f"no video has mark {mark} in any file" in message


def test_classes_need_texts_that_tell_them_apart(tmp_path):
    splits, videos, split = miniature("hmdb51", tmp_path)
    for name in ("__", "climb__stairs"):
        write_lines(splits / f"{name}_test_split1.txt", "a.avi 1 ")
        make_videos(videos, [f"{name}/a.avi"])
    message = problems_of("hmdb51", (splits, videos, split))
    assert "2 problems" in message
    assert "class '__' has no text" in message
    assert "classes 'climb__stairs' and 'climb_stairs' are both shown to CLIP as 'climb stairs'" in message


@pytest.mark.parametrize(
    "name, reason",
    [("\ud800", "class '\\ud800' is not written in UTF-8"), ("\u200b", "class '\\u200b' has no text")],
)
def test_a_class_that_cannot_be_read_is_refused(tmp_path, name, reason):
    message = problems_of("ssv2", miniature("ssv2", tmp_path, labels=SSV2_LABELS | {name: "3"}))
    assert "1 problem\n" in message and reason in message


def test_an_unknown_split_is_refused(tmp_path):
    assert "no file *_test_split4.txt in" in problems_of("hmdb51", (*miniature("hmdb51", tmp_path / "a")[:2], "4"))
    message = problems_of("ucf101", (*miniature("ucf101", tmp_path / "b")[:2], "4"))
    assert "2 problems" in message and "trainlist04.txt" in message and "testlist04.txt" in message
    assert "no split 2" in problems_of("ssv2", (*miniature("ssv2", tmp_path / "c")[:2], "2"))


def test_malformed_lines_of_ucf101_are_named(tmp_path):
    splits, videos, split = miniature("ucf101", tmp_path)
    write_lines(
        splits / "trainlist01.txt", "YoYo/v_YoYo_g08_c01.avi", "v_YoYo_g08_c01.avi 1", "YoYo/v 1", "a/b/c.avi 1"
    )
    write_lines(splits / "testlist01.txt", "TaiChi/v_TaiChi_g01_c01.avi 3", "TaiChi/v_TaiChi_g01_c01.avi")
    message = problems_of("ucf101", (splits, videos, split))
    assert "5 problems" in message
    for number in (1, 2, 3, 4):
        assert f"line {number} of trainlist01.txt: needs Class/file.avi and a label, found" in message
    assert "line 1 of testlist01.txt: needs Class/file.avi alone, found 'TaiChi/v_TaiChi_g01_c01.avi 3'" in message


def test_labels_and_classes_of_ucf101_must_agree_with_classind(tmp_path):
    splits, videos, split = miniature("ucf101", tmp_path)
    write_lines(
        splits / "trainlist01.txt", "YoYo/v_YoYo_g08_c01.avi 2", "Waving/v.avi 1", "TaiChi/v_TaiChi_g08_c01.avi 3"
    )
    write_lines(splits / "testlist01.txt", "TaiChi/v_TaiChi_g01_c01.avi", "Waving/v.avi")
    message = problems_of("ucf101", (splits, videos, split))
    assert "3 problems" in message
    assert "line 1 of trainlist01.txt: label 2 for class 'YoYo', which is 1 in classInd.txt" in message
    assert "line 2 of trainlist01.txt: class 'Waving' is not in classInd.txt" in message
    assert "line 2 of testlist01.txt: class 'Waving' is not in classInd.txt" in message


@pytest.mark.parametrize(
    "lines, reason",
    [
        (["1 YoYo", "TaiChi", "x HandstandPushups"], "2 problems"),
        (["1 YoYo", "2 TaiChi", "2 Other"], "line 3 of classInd.txt: label or class is there before, in line 2"),
        (["1 YoYo", "2 TaiChi", "", "3 yoyo"], "line 4 of classInd.txt: label or class is there before, in line 1"),
        (["1 YoYo", "2 TaiChi", "9" * 5000 + " Other"], "line 3 of classInd.txt: needs a label and a class"),
        (["1 YoYo", "2 HandstandPushups", "4 TaiChi"], "the labels of 3 classes must be 1 to 3, missing [3]"),
        (["0 YoYo", "1 HandstandPushups", "2 TaiChi"], "missing [3]"),
        ([], "classInd.txt is empty"),
    ],
)
def test_a_bad_classind_is_reported_and_not_again_for_every_video(tmp_path, lines, reason):
    splits, videos, split = miniature("ucf101", tmp_path)
    write_lines(splits / "classInd.txt", *lines)
    message = problems_of("ucf101", (splits, videos, split))
    assert reason in message
    assert "is not in classInd.txt" not in message


@pytest.mark.parametrize(
    "content, reason",
    [
        ('[\n{"id": 1}, {', "line 2, column 13 of "),
        ("{", "cannot be read as JSON"),
        ("[]", "needs a list that is not empty, found []"),
        ('{"id": "1"}', "needs a list that is not empty"),
        ('["78687", {"id": 78687, "template": "x"}, {"id": "1"}, {"id": "", "template": "x"}]', "4 problems"),
    ],
)
def test_malformed_lists_of_ssv2_are_refused(tmp_path, content, reason):
    splits, videos, split = miniature("ssv2", tmp_path)
    (splits / "something-something-v2-train.json").write_text(content)
    assert reason in problems_of("ssv2", (splits, videos, split))


@pytest.mark.parametrize(
    "labels, reason",
    [
        ({"a": "0", "b": "2", "c": "3"}, "the labels of 3 classes must be 0 to 2, missing [1]"),
        ({"a": "1", "b": "2"}, "missing [0]"),
        ({"a": "0", "b": "0"}, "'b' and 'a' both have label 0"),
        ({"a": "zero"}, "label 'zero' of 'a' is not a number from 0"),
        ({"a": -1}, "label -1 of 'a' is not a number from 0"),
        ({"a": "9" * 5000}, "of 'a' is not a number from 0"),
        ({}, "needs an object that is not empty"),
    ],
)
def test_malformed_labels_of_ssv2_are_one_problem(tmp_path, labels, reason):
    splits, videos, split = miniature("ssv2", tmp_path, labels=labels)
    message = problems_of("ssv2", (splits, videos, split))
    assert "1 problem\n" in message and reason in message


def test_a_template_that_is_not_among_the_labels_is_named(tmp_path):
    test = [*SSV2_TEST, ssv2_entry("78688", "Pushing [something] up")]
    splits, videos, split = miniature("ssv2", tmp_path, test=test)
    message = problems_of("ssv2", (splits, videos, split))
    assert "1 problem\n" in message
    assert (
        "entry 1 of something-something-v2-validation.json: video 78688: template 'Pushing [something] up'" in message
    )


# A video on both sides


def test_a_test_video_in_the_training_list_is_named(tmp_path):
    splits, videos, split = miniature("hmdb51", tmp_path / "hmdb51")
    write_lines(splits / "climb_test_split1.txt", "a_0.avi 2 ", "b_1.avi 1 ", "a_0.avi 1 ")
    message = problems_of("hmdb51", (splits, videos, split))
    assert "1 problem\n" in message
    assert (
        "climb/a_0: in the test list (line 1 of climb_test_split1.txt) "
        "and before in the training list (line 3 of climb_test_split1.txt)"
    ) in message

    splits, videos, split = miniature("ucf101", tmp_path / "ucf101")
    # Another spelling does not make it another video.
    write_lines(splits / "testlist01.txt", "TaiChi/v_TaiChi_g01_c01.avi", "YoYo/v_yoYO_g08_c01.avi")
    message = problems_of("ucf101", (splits, videos, split))
    assert "1 problem\n" in message
    assert "(line 2 of testlist01.txt) and before in the training list (line 2 of trainlist01.txt)" in message

    splits, videos, split = miniature("ssv2", tmp_path / "ssv2", test=[*SSV2_TEST, *SSV2_TRAIN])
    message = problems_of("ssv2", (splits, videos, split))
    assert "2 problems" in message and "78687: in the test list" in message and "42326: in the test list" in message


def test_a_video_listed_twice_is_named(tmp_path):
    splits, videos, split = miniature("ssv2", tmp_path, train=[*SSV2_TRAIN, SSV2_TRAIN[0]])
    message = problems_of("ssv2", (splits, videos, split))
    assert "1 problem\n" in message
    assert (
        "78687: in the training list (entry 2 of something-something-v2-train.json) "
        "and before in the training list (entry 0 of something-something-v2-train.json)"
    ) in message


# Files that are no text


@pytest.mark.parametrize(
    "name, file, line",
    [
        ("hmdb51", "climb_test_split1.txt", 2),
        ("ucf101", "testlist01.txt", 2),
        ("ssv2", "something-something-v2-labels.json", 3),
    ],
)
@pytest.mark.parametrize("bad, reason", [("ü".encode("latin-1"), "not UTF-8"), (b"\0", "a NUL character")])
def test_a_file_that_is_no_text_is_one_problem_with_its_line(tmp_path, name, file, line, bad, reason):
    splits, videos, split = miniature(name, tmp_path)
    path = splits / file
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line - 1] = bad + lines[line - 1]
    path.write_bytes(b"".join(lines))
    message = problems_of(name, (splits, videos, split))
    assert f"line {line} of {path}: {reason}" in message
    assert message.count(str(path)) == (2 if "iconv" in message else 1)  # the second is in what to do


@pytest.mark.parametrize(
    "name, file",
    [
        ("hmdb51", "climb_test_split1.txt"),
        ("ucf101", "classInd.txt"),
        ("ssv2", "something-something-v2-train.json"),
    ],
)
@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf\r\n", None])
def test_an_empty_file_or_a_folder_in_its_place_is_a_problem(tmp_path, name, file, content):
    splits, videos, split = miniature(name, tmp_path)
    path = splits / file
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    message = problems_of(name, (splits, videos, split))
    assert f"{path} {'is empty' if content is not None else 'cannot be read: Is a directory'}\n" in message


# Videos without a file


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("allowed", [(), ("training",), ("test",), ("training", "test")])
def test_videos_without_a_file_are_left_out_of_the_lists_that_may_miss_them(tmp_path, name, allowed):
    splits, videos, split = miniature(name, tmp_path)
    read_split = READERS[name].read_split
    full = read_split(splits, videos, split)
    if len(full.test) == 1:  # leave one to test on
        test = [*SSV2_TEST, ssv2_entry("5", "Pushing [something] from left to right")]
        write_ssv2(splits, test=test)
        make_videos(videos, ["5.avi"])
        full = read_split(splits, videos, split)
    assert full.missing == ()
    gone = {"training": full.train[1], "test": full.test[0]}
    for sample in gone.values():
        sample.path.unlink()
    refused = [sample.video_id for list_name, sample in gone.items() if list_name not in allowed]
    if refused:
        with pytest.raises(AnnotationError) as caught:
            read_split(splits, videos, split, allow_missing=allowed)
        message = str(caught.value)
        assert f"{len(refused)} problem" in message
        assert all(f"{video_id}: no video file in {videos}" in message for video_id in refused)
        assert message.count("no video file") == len(refused)
        return
    settings = READERS[name].DATASET.settings(split_dir=splits, features_path=videos)
    for left in (
        read_split(splits, videos, split, allowed),
        READERS[name].DATASET.read(settings, split, allow_missing=allowed),
    ):
        assert left.train == [sample for sample in full.train if sample != gone["training"]]
        assert left.test == full.test[1:]
        assert (left.classes, left.texts) == (full.classes, full.texts)
        assert left.missing == (("training", gone["training"].video_id), ("test", gone["test"].video_id))


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("list_name", ["training", "test"])
def test_that_a_whole_list_is_missing_is_an_error_even_where_allowed(tmp_path, name, list_name):
    splits, videos, split = miniature(name, tmp_path)
    full = READERS[name].read_split(splits, videos, split)
    gone = full.train if list_name == "training" else full.test
    for sample in gone:
        sample.path.unlink()
    message = problems_of(name, (splits, videos, split, ("training", "test")))
    assert "1 problem\n" in message
    assert f"none of the {len(gone)} videos in the {list_name} list has a video file in {videos}" in message


@pytest.mark.parametrize("name", READERS)
def test_a_link_to_nothing_is_no_video_file(tmp_path, name):
    splits, videos, split = miniature(name, tmp_path)
    path = READERS[name].read_split(splits, videos, split).train[0].path
    path.rename(tmp_path / path.name)
    path.symlink_to(tmp_path / "gone.avi")
    message = problems_of(name, (splits, videos, split))
    assert "1 problem\n" in message and f"no video file in {videos}" in message
    path.unlink()
    path.symlink_to(tmp_path / path.name)
    assert READERS[name].read_split(splits, videos, split).train[0].path == path


# Videos in folders of their own


def move_below(videos, *parts):
    """The same tree a few folders further down."""
    inner = videos.joinpath(*parts)
    entries = list(videos.iterdir())
    inner.mkdir(parents=True)
    for entry in entries:
        entry.rename(inner / entry.name)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("flat", [False, True])
def test_videos_are_found_at_any_depth(tmp_path, name, flat):
    splits, videos, split = miniature(name, tmp_path, flat=flat)
    before = READERS[name].read_split(splits, videos, split)
    move_below(videos, "part.mp4", "all")
    after = READERS[name].read_split(splits, videos, split)
    inner = videos / "part.mp4" / "all"
    for samples, deep in ((before.train, after.train), (before.test, after.test)):
        assert [replace(sample, path=inner / sample.path.relative_to(videos)) for sample in samples] == deep
    assert (after.classes, after.texts, after.missing) == (before.classes, before.texts, ())


def test_class_folders_may_be_in_several_folders(tmp_path):
    splits, videos, split = miniature("hmdb51", tmp_path)
    (videos / "a").mkdir()
    (videos / "b").mkdir()
    (videos / "climb").rename(videos / "a" / "climb")
    (videos / "climb_stairs").rename(videos / "b" / "climb_stairs")
    read = hmdb51.read_split(splits, videos, split)
    folders = {"climb": videos / "a" / "climb", "climb_stairs": videos / "b" / "climb_stairs"}
    for sample in (*read.train, *read.test):
        assert sample.path.parent == folders[read.classes[sample.label]]


@pytest.mark.parametrize("name", ["hmdb51", "ucf101", "kinetics400"])
def test_a_video_of_another_class_does_not_stand_in_for_a_missing_one(tmp_path, name):
    splits, videos, split = miniature(name, tmp_path)
    sample, *_ = READERS[name].read_split(splits, videos, split).train
    other = next(folder for folder in videos.iterdir() if folder != sample.path.parent)
    (videos / "more").mkdir()
    sample.path.rename(other / sample.path.name)
    message = problems_of(name, (splits, videos, split))
    assert "1 problem\n" in message and f"{sample.video_id}: no video file in {videos}" in message
    other.rename(videos / "more" / other.name)
    assert f"{sample.video_id}: no video file in {videos}" in problems_of(name, (splits, videos, split))


@pytest.mark.parametrize("name", READERS)
def test_files_of_one_name_stop_only_what_asks_for_them(tmp_path, name):
    splits, videos, split = miniature(name, tmp_path)
    plain = READERS[name].read_split(splits, videos, split)
    make_videos(videos, ["test.avi", "test.mp4", "x/test.avi", "left out.avi", "left out.mp4"])
    assert READERS[name].read_split(splits, videos, split) == plain


@pytest.mark.parametrize("name", READERS)
def test_several_files_of_one_name_outside_of_class_folders_are_refused(tmp_path, name):
    splits, videos, split = miniature(name, tmp_path, flat=True)
    listed = MINIATURES[name][1][0]
    file = PurePosixPath(listed).name + ".avi"
    (videos / "x").mkdir()
    (videos / file).rename(videos / "x" / file)
    make_videos(videos, [f"y/{file}"])
    message = problems_of(name, (splits, videos, split))
    assert "1 problem\n" in message
    assert f"{listed}: more than one video file in {videos}: x/{file}, y/{file}\n" in message
    advice = "the list may give the path" if name == "ssv2" else "rename or move away all files but one"
    assert advice in message.splitlines()[-1] and "--allow_missing" not in message


# What helps


FIRST_FILES = {"hmdb51": "climb_test_split1.txt", "ucf101": "classInd.txt", "kinetics400": "train.csv"}


@pytest.mark.parametrize("name", READERS)
def test_a_remedy_is_one_for_its_list_and_its_problem(tmp_path, name):
    splits, videos, split = miniature(name, tmp_path)
    write_ssv2(splits, test=[*SSV2_TEST, ssv2_entry("5", "Pushing [something] from left to right")])
    if name == "ssv2":
        make_videos(videos, ["5.avi"])
    full = READERS[name].read_split(splits, videos, split)
    for gone, allowed, flags in [
        ([full.train[0]], (), {"--allow_missing"}),
        ([full.test[0]], (), {"--on_bad_eval_video drop"}),
        ([full.train[0], full.test[0]], (), {"--allow_missing", "--on_bad_eval_video drop"}),
        ([full.train[0], full.test[0]], ("training",), {"--on_bad_eval_video drop"}),
        ([full.train[0], full.test[0]], ("test",), {"--allow_missing"}),
        (full.test, (), set()),  # nothing would be left
        (full.test, ("test",), set()),
    ]:
        for sample in gone:
            sample.path.unlink()
        message = problems_of(name, (splits, videos, split, allowed))
        for sample in gone:
            sample.path.touch()
        assert {flag for flag in ("--allow_missing", "--on_bad_eval_video drop") if flag in message} == flags
        assert "--packed" not in message and "failed_videos.csv" not in message
    file = splits / FIRST_FILES.get(name, "train.json")
    file = file if file.exists() else splits / f"something-something-v2-{file.name}"
    file.write_text("{")
    message = problems_of(name, (splits, videos, split))
    assert "--allow_missing" not in message and "--on_bad_eval_video" not in message


# Paths in split files


OUTSIDE = ["../outside/x", "{outside}/x", "a/../../outside/x", "../../outside/x", "..\\outside\\x", "../x"]


def outside(tmp_path):
    """Videos beside the video folder, which joined paths would reach from it or from a class folder."""
    make_videos(tmp_path, ["x.avi"])
    return make_videos(tmp_path / "outside", ["x.avi"])


@pytest.mark.parametrize("form", OUTSIDE)
@pytest.mark.parametrize("inside", [False, True])
def test_no_file_name_of_hmdb51_leads_out_of_the_video_folder(tmp_path, form, inside):
    splits, videos, split = miniature("hmdb51", tmp_path)
    make_videos(videos, ["a/other.avi", *(["x.avi"] if inside else [])])  # nor to a video that has that name inside
    file = form.format(outside=outside(tmp_path)) + ".avi"
    with open(splits / "climb_test_split1.txt", "a") as lines:
        lines.write(f"{file} 1 \n")
    message = problems_of("hmdb51", (splits, videos, split))
    assert "1 problem\n" in message
    assert f"line 5 of climb_test_split1.txt: {show(f'climb/{file[:-4]}')}: no video file in {videos}" in message
    left = hmdb51.read_split(splits, videos, split, allow_missing=["training"])
    assert left.missing == (("training", f"climb/{file[:-4]}"),)
    assert all(videos in sample.path.parents for sample in left.train)


def test_no_class_of_hmdb51_leads_out_of_the_video_folder(tmp_path):
    splits, videos, split = miniature("hmdb51", tmp_path)
    outside(tmp_path)
    plain = hmdb51.read_split(splits, videos, split)
    for name in ("..", "..\\outside"):
        write_lines(splits / f"{name}_test_split1.txt", "x.avi 1 ")
    assert hmdb51.read_split(splits, videos, split) == plain  # names with a leading dot are no split files
    write_lines(splits / "a\\..\\outside_test_split1.txt", "x.avi 1 ")
    assert "outside/x: no video file" in problems_of("hmdb51", (splits, videos, split)).replace("\\", "/")


@pytest.mark.parametrize("form", OUTSIDE)
@pytest.mark.parametrize("class_name", ["YoYo", ".."])
def test_no_file_name_of_ucf101_leads_out_of_the_video_folder(tmp_path, form, class_name):
    splits, videos, split = miniature("ucf101", tmp_path)
    write_lines(splits / "classInd.txt", "1 YoYo", "2 HandstandPushups", "3 TaiChi", f"4 Z{class_name}")
    (splits / "classInd.txt").write_text((splits / "classInd.txt").read_text().replace("Z..", ".."))
    make_videos(videos, ["a/other.avi"])
    file = form.format(outside=outside(tmp_path)) + ".avi"
    label = 4 if class_name == ".." else 1
    lines = [f"YoYo/{file} 1", f"{file} {label}", "TaiChi/v_TaiChi_g08_c01.avi 3"]
    write_lines(splits / "trainlist01.txt", *lines)
    message = problems_of("ucf101", (splits, videos, split))
    assert "2 problems" in message
    assert "line 1 of trainlist01.txt: " in message and "line 2 of trainlist01.txt: " in message


@pytest.mark.parametrize("form", [*OUTSIDE, "outside/../78687", "/78687", "./78687"])
def test_no_id_of_ssv2_leads_out_of_the_video_folder(tmp_path, form):
    video_id = form.format(outside=outside(tmp_path))
    template = "Pushing [something] from left to right"
    splits, videos, split = miniature("ssv2", tmp_path, test=[*SSV2_TEST, ssv2_entry(video_id, template)])
    message = problems_of("ssv2", (splits, videos, split))
    assert "1 problem\n" in message
    assert f"entry 1 of something-something-v2-validation.json: {show(video_id)}: no video file in {videos}" in message
    assert ssv2.read_split(splits, videos, split, ["test"]).missing == (("test", video_id),)

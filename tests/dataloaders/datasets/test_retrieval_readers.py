"""The readers of VATEX, ActivityNet Captions, DiDeMo, MSVD and LSMDC on small files in exactly their published form."""

import json
import os
import pickle
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest

from dataloaders.annotations import AnnotationError
from dataloaders.datasets import RETRIEVAL
from dataloaders.datasets.retrieval.msvd import read_words
from helpers.annotations import write_lines
from helpers.paths import shared_data
from preprocess import convert_msvd_captions

NAMES = ("vatex", "activity", "didemo", "msvd", "lsmdc")


def write_json(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def make_videos(folder, *names):
    """Empty files: a reader looks at names only."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


# --- Small datasets in published form -----------------------------------------------------------------------
# Each writes its files and videos to a folder and returns the settings, and what each list holds: (sample, video,
# caption, file).

A, B, C = "Ptf_2VRj-V0_000122_000132", "-HhKdtvhdws_000001_000011", "_mVM1Yx0ZUc_000000_000010"


def vatex_entry(video_id, *captions):
    return {"videoID": video_id, "enCap": list(captions), "chCap": ["一个男人"] * len(captions)}


def ten(start):
    return [f"{start} said in way {number}" for number in range(10)]


def vatex(folder):
    settings = {
        "train_json": write_json(
            folder / "vatex_training_v1.0.json", [vatex_entry(C, *ten("A cat")), vatex_entry(A, *ten("A dog"))]
        ),
        "val_json": write_json(
            folder / "vatex_validation_v1.0.json",
            [vatex_entry("gone_000000_000010", *ten("?")), vatex_entry(B, *ten("A man"))],
        ),
        "val_list": write_lines(folder / "test_list.txt", B),
        "features_path": make_videos(folder / "videos", f"{A}.mp4", f"part/{B}.webm", f"{C}.mkv"),
    }
    return (
        settings,
        [
            (f"{video}#{k}", video, text, file)
            for video, texts, file in ((C, ten("A cat"), f"{C}.mkv"), (A, ten("A dog"), f"{A}.mp4"))
            for k, text in enumerate(texts)
        ],
        [(f"{B}#{k}", B, text, f"part/{B}.webm") for k, text in enumerate(ten("A man"))],
    )


def activity(folder):
    train = {
        # as the real files have them: a blank before later sentences, two that begin together, one that comes too late
        "v_QOlSCBRmfWY": {
            "duration": 82.73,
            "timestamps": [[0.83, 60.81], [0.83, 19.86], [56.26, 79.42], [0, 3]],
            "sentences": ["The girl dances.", " She is seen.", "  She ends.", " A title."],
        },
        "v_ehGHCYKzyZ8": {"duration": 61.72, "timestamps": [[3.09, 61.72]], "sentences": ["A man and a woman. "]},
    }
    val = {
        "v_uqiMw7tQ1Cc": {"duration": 9, "timestamps": [[5, 9], [0.28, 5]], "sentences": [" Then one.", "First one."]},
        "v_bXdq2zI1Ms0": {"duration": 9, "timestamps": [[0, 9]], "sentences": ["Another."]},
    }
    settings = {
        "train_json": write_json(folder / "train.json", train),
        "val_json": write_json(folder / "val_1.json", val),
        "features_path": make_videos(folder / "videos", *(f"{name}.mp4" for name in (*train, *val))),
    }
    return (
        settings,
        [
            ("v_QOlSCBRmfWY", "v_QOlSCBRmfWY", "A title. She is seen. The girl dances. She ends.", "v_QOlSCBRmfWY.mp4"),
            ("v_ehGHCYKzyZ8", "v_ehGHCYKzyZ8", "A man and a woman.", "v_ehGHCYKzyZ8.mp4"),
        ],
        [
            ("v_uqiMw7tQ1Cc", "v_uqiMw7tQ1Cc", "First one. Then one.", "v_uqiMw7tQ1Cc.mp4"),
            ("v_bXdq2zI1Ms0", "v_bXdq2zI1Ms0", "Another.", "v_bXdq2zI1Ms0.mp4"),
        ],
    )


def didemo_entry(video, description, start):
    return {
        "num_segments": 6,
        "description": description,
        "dl_link": "https://www.flickr.com/video_download.gne?id=1",
        "times": [[start, start], [start, start + 1], [0, 5]],
        "video": video,
        "annotation_id": 3,
    }


def didemo(folder):
    x, y, z = "12090392@N02_13482799053_87ef417396.mov", "54322086@N00_2408598493_274c77d26a.avi", "1@N00_2_a.3gp"
    train = [didemo_entry(y, "the dog jumps ", 4), didemo_entry(x, "a red car.", 0), didemo_entry(y, "a dog sits", 1)]
    settings = {
        "train_json": write_json(folder / "train_data.json", train),
        "val_json": write_json(folder / "test_data.json", [didemo_entry(z, "rain", 0), didemo_entry(z, "sun", 0)]),
        # compressed copies are in another container
        "features_path": make_videos(folder / "videos", *(f"{Path(name).stem}.mp4" for name in (x, y)), z),
    }
    x, y, z = (Path(name).stem for name in (x, y, z))
    return (
        settings,
        [(y, y, "the dog jumps a dog sits", f"{y}.mp4"), (x, x, "a red car.", f"{x}.mp4")],
        [(z, z, "rain sun", f"{z}.3gp")],
    )


P, Q, R = "-4wsuPCjDBc_5_15", "-DRy7rBg0IQ_31_37", "mv89psg6zh4_33_46"
WORDS = {
    R: [["a", "bird", "sings"], ["birds", "sing", "ü"]],
    P: [["a", "squirrel", "eats"]],
    "unlisted_0_1": [["a"], []],
    Q: [["a", "man"], ["the", "man", "runs", "."], ["he", "ran"]],
}


def msvd(folder, protocol=2):
    (folder / "raw-captions.pkl").write_bytes(pickle.dumps(WORDS, protocol=protocol))
    settings = {
        "train_list": write_lines(folder / "train_list.txt", Q, P),
        "val_list": write_lines(folder / "test_list.txt", R),
        "data_path": folder / "raw-captions.pkl",
        "features_path": make_videos(folder / "videos", f"{P}.avi", f"{Q}.avi", f"{R}.avi"),
    }
    rows = {
        video: [(f"{video}#{k}", video, " ".join(words), f"{video}.avi") for k, words in enumerate(WORDS[video])]
        for video in (P, Q, R)
    }
    return settings, rows[Q] + rows[P], rows[R]


K, L, M = (
    "0001_American_Beauty_00.00.51.926-00.00.54.129",
    "1001_Flight_00.00.05.930-00.00.10.930",
    "0001_American_Beauty_00.01.00.000-00.01.02.000",
)


def clip_line(clip, caption):
    return "\t".join([clip, "00.00.51.926", "00.00.54.129", "00.00.51.926", "00.00.54.129", caption])


def lsmdc(folder):
    train = [clip_line(L, 'SOMEONE says "hello, and leaves.'), clip_line(K, "A lawn."), clip_line(L, "A bed.")]
    settings = {
        "train_csv": write_lines(folder / "LSMDC16_annos_training.csv", *train),
        "val_csv": write_lines(folder / "LSMDC16_challenge_1000_publictect.csv", clip_line(M, "A rose, red.")),
        "features_path": make_videos(
            folder / "videos", *(f"{clip.rsplit('_', 1)[0]}/{clip}.avi" for clip in (K, L, M))
        ),
    }
    place = {clip: f"{clip.rsplit('_', 1)[0]}/{clip}.avi" for clip in (K, L, M)}
    return (
        settings,
        [
            (f"{L}#0", L, 'SOMEONE says "hello, and leaves.', place[L]),
            (f"{L}#1", L, "A bed.", place[L]),
            (f"{K}#0", K, "A lawn.", place[K]),
        ],
        [(f"{M}#0", M, "A rose, red.", place[M])],
    )


WRITERS = {"vatex": vatex, "activity": activity, "didemo": didemo, "msvd": msvd, "lsmdc": lsmdc}
LISTS = {  # the file that is the training list, and the one that is the evaluation list
    "vatex": ("train_json", "val_list"),
    "activity": ("train_json", "val_json"),
    "didemo": ("train_json", "val_json"),
    "msvd": ("train_list", "val_list"),
    "lsmdc": ("train_csv", "val_csv"),
}


def make(name, folder):
    """The settings of a small dataset, and what its lists hold."""
    folder.mkdir(exist_ok=True)
    settings, train, evaluation = WRITERS[name](folder)
    return RETRIEVAL[name].settings(**settings), train, evaluation


def shown(listed, settings):
    """What a list holds, in the form of `WRITERS`; also that a sample has one caption and a name of its own."""
    assert len({sample.sample_id for sample in listed.samples}) == len(listed.samples)
    return [
        (
            sample.sample_id,
            sample.video_id,
            *sample.captions,
            sample.path.relative_to(settings.features_path).as_posix(),
        )
        for sample in listed.samples
    ]


def refused(read, settings, *more):
    """The message with which a reader refuses its files."""
    with pytest.raises(AnnotationError) as caught:
        read(settings, *more)
    return str(caught.value)


def problems_of(read, settings, *more):
    """The problems that such a message lists."""
    headline, *problems, remedy = refused(read, settings, *more).splitlines()
    assert f"{len(problems)} problem" in headline and "--features_path" in remedy
    return [problem.removeprefix("  - ") for problem in problems]


# --- What all of them do ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_published_form_is_read(tmp_path, name):
    settings, train, evaluation = make(name, tmp_path)
    dataset = RETRIEVAL[name]
    assert shown(dataset.read_train(settings), settings) == train
    assert shown(dataset.read_eval(settings), settings) == evaluation
    assert dataset.read_train(settings).missing == dataset.read_eval(settings).missing == []
    assert all(sample.label is None and sample.test_set is None for sample in dataset.read_eval(settings).samples)


@pytest.mark.parametrize("name", NAMES)
def test_missing_videos_are_named_with_their_place_or_left_out_where_allowed(tmp_path, name):
    settings, train, _ = make(name, tmp_path)
    *_, (_, gone, _, file) = train
    (settings.features_path / file).unlink()
    read = RETRIEVAL[name].read_train
    (problem,) = problems_of(read, settings)
    assert problem.endswith(f": {gone}: no video file in {settings.features_path}")
    assert str(getattr(settings, LISTS[name][0])) in problem and problem.split(" of ")[0].split()[0] in (
        "line",
        "entry",
    )
    assert "--allow_missing" in refused(read, settings)
    listed = read(settings, allow_missing=True)
    assert listed.missing == [gone]
    assert shown(listed, settings) == [row for row in train if row[1] != gone]


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_evaluation_video_is_left_out_with_all_of_its_queries(tmp_path, name):
    settings, train, evaluation = make(name, tmp_path)
    for row in {row[3] for row in evaluation}:
        (settings.features_path / row).unlink()
    read = RETRIEVAL[name].read_eval
    assert "--on_bad_eval_video drop" not in refused(read, settings)  # nothing would be left
    assert "none of the" in refused(read, settings, True)
    assert shown(RETRIEVAL[name].read_train(settings), settings) == train


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file"),
        (b"", "is empty"),
        (b"  \r\n", "is empty"),
        (b"\xff\xfe{\0", "UTF-16"),
        (b'["\xe9"', "not UTF-8"),
    ],
)
def test_a_list_that_cannot_be_read_is_one_problem(tmp_path, name, part, content, reason):
    settings, *_ = make(name, tmp_path)
    path = getattr(settings, LISTS[name][part])
    path.unlink() if content is None else path.write_bytes(content)
    read = (RETRIEVAL[name].read_train, RETRIEVAL[name].read_eval)[part]
    (problem,) = problems_of(read, settings)
    assert reason in problem and str(path) in problem
    assert f"--{LISTS[name][part]}" in refused(read, settings)


@pytest.mark.parametrize("name", NAMES)
def test_line_ends_and_byte_order_marks_do_not_matter(tmp_path, name):
    settings, train, evaluation = make(name, tmp_path)
    for path in tmp_path.iterdir():
        if path.is_file() and path.suffix != ".pkl":
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert shown(RETRIEVAL[name].read_train(settings), settings) == train
    assert shown(RETRIEVAL[name].read_eval(settings), settings) == evaluation


@pytest.mark.parametrize("name", NAMES)
def test_training_without_a_list_says_which_flag_is_wanted(tmp_path, name):
    settings, *_ = make(name, tmp_path)
    wanted = LISTS[name][0]
    assert f"needs --{wanted}" in refused(RETRIEVAL[name].read_train, replace(settings, **{wanted: None}))


@pytest.mark.parametrize("name", NAMES)
def test_official_files_are_told_by_their_names(tmp_path, name):
    settings, *_ = make(name, tmp_path)
    official = RETRIEVAL[name].official
    assert official(settings)
    wanted = LISTS[name][0]
    assert not official(replace(settings, **{wanted: None}))
    assert not official(replace(settings, **{wanted: tmp_path / "mine.json"}))


def test_datasets_of_paragraphs_read_64_frames_and_64_words_and_others_12_and_32():
    sizes = {name: (RETRIEVAL[name].recipe["max_frames"], RETRIEVAL[name].recipe["max_words"]) for name in NAMES}
    assert {name for name, size in sizes.items() if size == (64, 64)} == {"activity", "didemo"}
    assert {size for name, size in sizes.items() if name not in ("activity", "didemo")} == {(12, 32)}
    # published (TABLES): GPUs x batch per GPU, epochs
    assert [RETRIEVAL["vatex"].recipe[key] for key in ("batch_size", "epochs")] == [8 * 64, 10]
    assert [RETRIEVAL["activity"].recipe[key] for key in ("batch_size", "epochs")] == [8 * 16, 10]


# --- VATEX --------------------------------------------------------------------------------------------------


def test_a_list_of_ids_takes_one_half_of_the_validation_videos_in_its_own_order(tmp_path):
    settings, *_ = make("vatex", tmp_path)
    ids = [f"{number:011d}_000000_000010" for number in range(30)]
    half = ids[28::-2]
    write_json(settings.val_json, [vatex_entry(video_id, *ten(video_id)) for video_id in ids])
    write_lines(settings.val_list, *half)
    make_videos(settings.features_path, *(f"{video_id}.mp4" for video_id in half))
    samples = RETRIEVAL["vatex"].read_eval(settings).samples
    assert list(dict.fromkeys(sample.video_id for sample in samples)) == half
    assert [sample.captions[0] for sample in samples] == [text for video_id in half for text in ten(video_id)]
    # without a list all count, and those of the other half have no videos here
    assert "15 problems" in refused(RETRIEVAL["vatex"].read_eval, replace(settings, val_list=None))


@pytest.mark.parametrize(
    "entry",
    [
        "text",
        {"videoID": A},
        *({"videoID": A, "enCap": captions} for captions in ([], "a dog", ["a", None])),
        *({"videoID": video_id, "enCap": ["a"]} for video_id in (3, " ")),
    ],
)
def test_an_entry_of_vatex_in_another_form_is_named(tmp_path, entry):
    settings, *_ = make("vatex", tmp_path)
    write_json(settings.train_json, [vatex_entry(C, "a cat"), entry])
    (problem,) = problems_of(RETRIEVAL["vatex"].read_train, settings)
    assert problem.startswith(f"entry 1 of {settings.train_json}: needs a text 'videoID' and a list of texts 'enCap'")


def test_all_that_is_wrong_with_vatex_is_in_one_message(tmp_path):
    settings, *_ = make("vatex", tmp_path)
    entries = [vatex_entry(B, "a", " \u200b"), vatex_entry(C, "", "b"), vatex_entry(B, "again"), vatex_entry("x", "y")]
    write_json(settings.val_json, entries)
    write_lines(settings.val_list, B, "", "unknown_000000_000010", B, "x")
    data, ids, videos = settings.val_json, settings.val_list, settings.features_path
    assert problems_of(RETRIEVAL["vatex"].read_eval, settings) == [
        f"line 4 of {ids}: {B} is there before, in line 1",
        f"entry 2 of {data}: {B} is there before, in entry 0 of {data}",
        f"line 3 of {ids}: unknown_000000_000010: no video file in {videos}",
        f"line 5 of {ids}: x: no video file in {videos}",
        f"entry 0 of {data}: {B}: caption 1: empty caption",
        f"line 3 of {ids}: unknown_000000_000010: unknown to {data}, no captions",
        f"entry 0 of {data}: {B}: caption 1: empty caption",
    ]


# --- ActivityNet Captions -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def activitynet(tmp_path_factory):
    """Settings on the real annotation files, with a file for every video."""
    folder = shared_data("activitynet")
    videos = tmp_path_factory.mktemp("activitynet")
    for name in ("train_list.txt", "val_1_list.txt"):
        make_videos(videos, *(f"{video_id}.mp4" for video_id in (folder / name).read_text().split()))
    return RETRIEVAL["activity"].settings(
        train_json=folder / "train.json", val_json=folder / "val_1.json", features_path=videos
    )


@pytest.mark.parametrize(("part", "count"), [("train", 10_009), ("val", 4_917)])
def test_the_real_paragraphs_of_activitynet(activitynet, part, count):
    read = RETRIEVAL["activity"].read_train if part == "train" else RETRIEVAL["activity"].read_eval
    samples = read(activitynet).samples
    real = json.loads(getattr(activitynet, f"{part}_json").read_text(encoding="utf-8"))
    assert len(samples) == len({sample.sample_id for sample in samples}) == count
    assert [sample.video_id for sample in samples] == list(real)
    reordered = 0
    for sample in samples:
        (paragraph,) = sample.captions
        rest, begin = paragraph, (-1.0, -1.0)
        left = list(zip(real[sample.video_id]["timestamps"], real[sample.video_id]["sentences"], strict=True))
        as_filed = " ".join(sentence.strip() for _, sentence in left)
        reordered += paragraph != as_filed
        while left:  # the slow way: the earliest sentence that is left comes next
            first = min(left, key=lambda pair: pair[0])
            left.remove(first)
            assert tuple(first[0]) >= begin and rest.startswith(first[1].strip())
            begin, rest = tuple(first[0]), rest[len(first[1].strip()) :].removeprefix(" ")
        assert rest == ""
    assert reordered == {"train": 546, "val": 293}[part]
    ids = replace(
        activitynet, **{f"{part}_list": activitynet.train_json.parent / f"{part}_list.txt".replace("val", "val_1")}
    )
    assert {sample.video_id for sample in read(ids).samples} == set(real)


def test_a_list_chooses_among_the_videos_of_activitynet(tmp_path):
    settings, train, _ = make("activity", tmp_path)
    chosen = replace(settings, train_list=write_lines(tmp_path / "list.txt", "v_ehGHCYKzyZ8"))
    assert shown(RETRIEVAL["activity"].read_train(chosen), chosen) == train[1:]


GOOD = {"duration": 2, "timestamps": [[0, 1], [1, 2]], "sentences": ["One.", "Two."]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"timestamps": [[0, 1]]}, "2 sentences and 1 timestamps"),
        ({"timestamps": [[0, 1], [1]]}, "needs a list of texts 'sentences' and one of [start, end] 'timestamps'"),
        ({"timestamps": [[0, 1], [1, "2"]]}, "needs a list"),
        ({"timestamps": [[0, 1], [1, float("nan")]]}, "needs a list"),
        ({"timestamps": None}, "needs a list"),
        ({"sentences": []}, "needs a list"),
        ({"sentences": "One."}, "needs a list"),
        ({"sentences": ["One.", " "]}, "caption 1: empty caption"),
        ({"sentences": ["One.", "half of \ud83d"]}, "caption 1: a caption with characters that are no text"),
    ],
)
def test_an_entry_of_activitynet_in_another_form_is_named(tmp_path, change, reason):
    settings, *_ = make("activity", tmp_path)
    write_json(settings.train_json, {"v_ehGHCYKzyZ8": GOOD, "v_QOlSCBRmfWY": GOOD | change})
    (problem,) = problems_of(RETRIEVAL["activity"].read_train, settings)
    assert problem.startswith(f"entry v_QOlSCBRmfWY of {settings.train_json}: ") and reason in problem


# --- DiDeMo -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry", [3, {"video": "a.avi"}, {"video": "", "description": "a"}, {"video": "a", "description": ["a"]}]
)
def test_an_entry_of_didemo_in_another_form_is_named(tmp_path, entry):
    settings, *_ = make("didemo", tmp_path)
    entries = json.loads(settings.train_json.read_text())
    write_json(settings.train_json, [*entries, entry, didemo_entry(entries[0]["video"], " ", 0)])
    assert problems_of(RETRIEVAL["didemo"].read_train, settings) == [
        f"entry 3 of {settings.train_json}: needs texts 'video' and 'description', found {entry!r}",
        f"entry 4 of {settings.train_json}: {Path(entries[0]['video']).stem}: empty caption",
    ]


# --- MSVD ---------------------------------------------------------------------------------------------------


class Payload:
    """Unpickled, it makes a file: code has run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


class Command(Payload):
    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


class Hidden(Payload):
    """Looks its code up through the attributes of what is harmless."""

    def __reduce__(self):
        return (getattr, (set, "__init_subclass__"))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", [Payload, Command])
def test_a_pickle_of_captions_runs_no_code(tmp_path, protocol, kind):
    settings, *_ = make("msvd", tmp_path)
    ran = tmp_path / "ran"
    content = pickle.dumps(WORDS | {"unlisted_1_2": [[kind(ran)]]}, protocol=protocol)
    settings.data_path.write_bytes(content)
    (problem,) = problems_of(RETRIEVAL["msvd"].read_train, settings)
    assert problem.startswith(f"{settings.data_path} cannot be read as a pickle of captions: it asks for ")
    assert "may be an attempt to run code" in problem
    assert convert_msvd_captions.main(["--input", str(settings.data_path), "--output", str(tmp_path / "x.json")]) == 1
    assert not ran.exists() and not (tmp_path / "x.json").exists()
    pickle.loads(content)  # so that the assertion above could fail
    assert ran.exists()


@pytest.mark.parametrize("value", [Hidden("x"), OrderedDict(a=1), Path("a"), print, int, 1j, type, bytearray(b"a")])
def test_a_pickle_of_anything_but_built_in_containers_and_texts_is_refused(tmp_path, value):
    path = tmp_path / "raw-captions.pkl"
    for protocol in (0, 2, 4):
        path.write_bytes(pickle.dumps({P: [["a"]], "x": value}, protocol=protocol))
        words, problems = read_words(path)
        assert words == {} and len(problems) == 1 and "it asks for" in problems[0]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_captions_are_read_from_a_pickle_of_any_age_and_from_the_json_made_of_it(tmp_path, protocol, capsys):
    path, target = tmp_path / "raw-captions.pkl", tmp_path / "raw-captions.json"
    path.write_bytes(pickle.dumps(WORDS, protocol=protocol))
    assert read_words(path) == (WORDS, [])
    assert convert_msvd_captions.main(["--input", str(path), "--output", str(target)]) == 0
    assert "4 videos" in capsys.readouterr().out
    words, problems = read_words(target)
    assert not problems and list(words.items()) == list(WORDS.items())


def test_a_pickle_of_python_2_is_read(tmp_path):
    path = tmp_path / "raw-captions.pkl"
    path.write_bytes(b"(dp0\nS'-4wsuPCjDBc_5_15'\np1\n(lp2\n(lp3\nS'a'\np4\naS'caf\\xc3\\xa9'\np5\naas.")
    assert read_words(path) == ({P: [["a", "café"]]}, [])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read as a pickle"),
        (b"not a pickle", "cannot be read as a pickle"),
        (pickle.dumps(WORDS)[:-20], "cannot be read as a pickle"),
        (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff.", "cannot be read as a pickle"),
        (pickle.dumps([1]), "needs a dictionary that is not empty, found [1]"),
        (pickle.dumps({}), "needs a dictionary that is not empty"),
        (pickle.dumps({P: [["a"]], 3: [["a"]]}), "entry 3 of"),
        (pickle.dumps({P: ["a squirrel"]}), f"entry {P} of"),
        (pickle.dumps({P: {("a", "b")}}), f"entry {P} of"),
        (pickle.dumps({P: [["a", 3]]}), "needs a text as id and a list of lists of words"),
        (pickle.dumps({P: []}), "needs a text as id and a list of lists of words"),
    ],
)
def test_captions_of_msvd_in_another_form_are_named(tmp_path, content, reason):
    path = tmp_path / "raw-captions.pkl"
    path.write_bytes(content)
    _, problems = read_words(path)
    assert len(problems) == 1 and reason in problems[0] and str(path) in problems[0]


def test_a_caption_without_words_matters_where_its_video_is_listed(tmp_path):
    settings, *_ = make("msvd", tmp_path)
    write_lines(settings.train_list, Q, "unlisted_0_1", "nowhere_0_1")
    make_videos(settings.features_path, "unlisted_0_1.avi", "nowhere_0_1.avi")
    data = settings.data_path
    assert problems_of(RETRIEVAL["msvd"].read_train, settings) == [
        f"entry unlisted_0_1 of {data}: unlisted_0_1: caption 1: empty caption",
        f"line 3 of {settings.train_list}: nowhere_0_1: unknown to {data}, no captions",
    ]


def test_captions_are_written_under_a_name_that_tells_them_from_a_pickle(tmp_path, capsys):
    (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps(WORDS))
    source = str(tmp_path / "raw-captions.pkl")
    assert convert_msvd_captions.main(["--input", source, "--output", source]) == 1
    assert ".json" in capsys.readouterr().err
    assert convert_msvd_captions.main(["--input", source, "--output", str(tmp_path / "none" / "x.json")]) == 1
    assert "cannot be written" in capsys.readouterr().err


# --- LSMDC --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (f"{K} A lawn.", "found 1 field: "),
        (clip_line(K, "A lawn.\tGreen."), "found 7 fields"),
        (clip_line(K, ""), f"{K}: empty caption"),
        (clip_line(" ", "A lawn."), "needs clip, four times and caption"),
        (clip_line(L, "\u200b"), f"{L}: empty caption"),
    ],
)
def test_a_line_of_lsmdc_in_another_form_is_named(tmp_path, line, reason):
    settings, *_ = make("lsmdc", tmp_path)
    write_lines(settings.train_csv, clip_line(L, "One."), "", line)
    (problem,) = problems_of(RETRIEVAL["lsmdc"].read_train, settings)
    assert problem.startswith(f"line 3 of {settings.train_csv}: ") and reason in problem

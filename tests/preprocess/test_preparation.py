"""How videos were prepared: what compressing and packing leave, and what runs say of it."""

import json
import shutil
from pathlib import Path

import av
import pytest

import main_task_recognition
import main_task_retrieval
from common.errors import UserError
from dataloaders.video.pack_index import PackIndex
from dataloaders.video.preparation import combine, preparation_of
from helpers.flags import without
from helpers.runs import results
from helpers.tiny import TINY_TRAINING
from helpers.videos import write_clip
from preprocess import compress_video, pack_frames

AS_THEY_ARE = {"videos": "as they are"}
NOT_RECORDED = {"videos": "not recorded"}
COMPRESSED = {"videos": "compressed", "fps": 5, "short_side": 32, "codec": "libx264", "crf": 30}
COMPRESSED |= {"pyav": av.__version__, "of": AS_THEY_ARE}
PACKED = {"videos": "packed", "format": "jpeg", "quality": 80, "fps": "5/2", "short_side": 24}
COMPRESSING = ["--fps", "5", "--size", "32", "--crf", "30"]
PACKING = ["--fps", "2.5", "--size", "24", "--quality", "80"]
PROGRAMS = {"retrieval": main_task_retrieval.main, "recognition": main_task_recognition.main}


def prepare(program, source, output, *options) -> int:
    flags = ["--input_root", source, "--output_root", output, "--num_workers", 1, *options]
    return program.main([str(flag) for flag in flags])


def refused(capsys, *arguments) -> str:
    """What a program prints that cannot start."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        prepare(*arguments)
    assert exit_info.value.code == 2
    return capsys.readouterr().err


def files(folder) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".mp4", ".avi"))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """``raw`` videos, and these ``compressed``."""
    root = tmp_path_factory.mktemp("made")
    for name in ("a.mp4", "class x/b.avi"):
        write_clip(root / "raw" / name, 12, codec="mpeg4")
    assert prepare(compress_video, root / "raw", root / "compressed", *COMPRESSING) == 0
    return root


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """A copy, to change."""
    return Path(shutil.copytree(made, tmp_path / "made"))


def note_of(folder: Path, name: str = "compress_video.json") -> dict:
    return json.loads((folder / name).read_text())


def write_note(folder: Path, content: dict, name: str = "compress_video.json") -> None:
    (folder / name).write_text(json.dumps(content))


# --- What is known of files ---------------------------------------------------------------------------------


def test_files_are_what_lies_beside_them_says(made, folder, tmp_path):
    assert preparation_of(files(made / "raw")) == AS_THEY_ARE
    assert preparation_of(files(made / "compressed")) == COMPRESSED
    assert preparation_of([made / "compressed" / "class x" / "b.mp4"]) == COMPRESSED
    link, part = tmp_path / "link", tmp_path / "part"
    link.symlink_to(made / "compressed" / "class x")
    part.mkdir()
    (part / "b.mp4").symlink_to(made / "compressed" / "class x" / "b.mp4")
    assert preparation_of([link / "b.mp4"]) == preparation_of([part / "b.mp4"]) == COMPRESSED
    shutil.copy(made / "raw" / "class x" / "b.avi", folder / "compressed" / "c.avi")  # nothing that is left ends so
    assert preparation_of([folder / "compressed" / "c.avi"]) == AS_THEY_ARE


def test_what_was_prepared_twice_says_both(folder):
    pack, again = folder / "pack", folder / "again"
    assert prepare(pack_frames, folder / "compressed", pack, *PACKING) == 0
    index = PackIndex.open(pack)
    assert preparation_of([pack / "a.mp4"], index) == PACKED | {"of": COMPRESSED}
    assert prepare(compress_video, folder / "compressed", again, "--fps", "30000/1001") == 0
    record = preparation_of(files(again))
    assert record["fps"] == "30000/1001" and record["of"] == COMPRESSED


def test_videos_prepared_in_several_ways_are_all_named(made):
    both = {"videos": "in several ways", "ways": [AS_THEY_ARE, COMPRESSED]}
    assert preparation_of([*files(made / "raw"), *files(made / "compressed"), *files(made / "raw")]) == both
    assert combine([AS_THEY_ARE, both]) == both == combine([both, COMPRESSED])


def test_a_record_has_no_place_in_it_and_goes_where_the_videos_go(made, folder):
    (folder / "compressed").rename(folder / "moved")
    assert preparation_of(files(folder / "moved")) == preparation_of(files(made / "compressed"))
    for note in (made / "compressed" / "compress_video.json", folder / "moved" / "compress_video.json"):
        assert str(made) not in note.read_text() and "/" not in note.read_text()


# --- Continuing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", [compress_video, pack_frames])
def test_videos_prepared_in_another_way_are_not_added(folder, program, capsys):
    options = COMPRESSING if program is compress_video else PACKING
    name = f"{program.__name__.rpartition('.')[2]}.json"
    output = folder / "output"
    assert prepare(program, folder / "raw", output, *options) == 0
    before = note_of(output, name)
    assert before["of"] == AS_THEY_ARE
    message = refused(capsys, program, folder / "compressed", output, *options)
    assert name in message and '"compressed"' in message and "another --output_root" in message
    write_note(output, {key: value for key, value in before.items() if key not in ("of", "codec", "pyav")}, name)
    assert prepare(program, folder / "raw", output, *options) == 0  # made before there was a record of it: continued
    assert "of" not in note_of(output, name)
    pack = PackIndex.open(output) if program is pack_frames else None
    assert preparation_of([output / "a.mp4"], pack)["of"] == NOT_RECORDED
    if program is pack_frames:
        write_note(output, before, name)
        assert prepare(program, folder / "compressed", output, *options, "--overwrite") == 0
        assert note_of(output, name)["of"] == COMPRESSED


def test_another_pyav_continues_what_one_began(folder):
    note = note_of(folder / "compressed")
    write_note(folder / "compressed", note | {"pyav": "1.0"})
    (folder / "compressed" / "a.mp4").unlink()
    assert prepare(compress_video, folder / "raw", folder / "compressed", *COMPRESSING) == 0
    assert preparation_of(files(folder / "compressed")) == COMPRESSED | {"pyav": "1.0"}


def test_a_run_that_ends_before_its_first_video_leaves_a_whole_note(folder, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(compress_video, "compress", interrupt)
    assert prepare(compress_video, folder / "raw", folder / "new", *COMPRESSING) == 130
    monkeypatch.undo()
    assert preparation_of([folder / "new" / "a.mp4"]) == COMPRESSED
    assert prepare(compress_video, folder / "raw", folder / "new", *COMPRESSING) == 0


def test_raw_videos_in_the_folder_of_compressed_ones_are_refused(folder, capsys):
    message = refused(capsys, compress_video, folder / "raw", folder, *COMPRESSING)
    assert "--input_root lies in --output_root" in message and not (folder / "compress_video.json").exists()


BROKEN = [
    "",
    "[]",
    '{"fps": "3", "size": 224}',
    '{"fps": "x", "size": 224, "crf": 23}',
    '{"fps": Infinity, "size": 224, "crf": 23}',
    "[" * 100_000,
]


@pytest.mark.parametrize("text", [*BROKEN, '{"fps": "3", "size": 224, "crf": 23, "of": 1}'])
def test_a_broken_note_is_named(folder, text, capsys):
    note = folder / "compressed" / "compress_video.json"
    note.write_text(text)
    with pytest.raises(UserError, match=r"compress_video\.json"):
        preparation_of(files(folder / "compressed"))
    assert str(note) in refused(capsys, compress_video, folder / "raw", folder / "compressed", *COMPRESSING)
    assert str(note) in refused(capsys, pack_frames, folder / "compressed", folder / "pack")


# --- Runs ---------------------------------------------------------------------------------------------------


def prepared_in(folder: Path) -> dict:
    """What both files of a run say."""
    config = json.loads((folder / "config.json").read_text())
    assert config["prepared"] == results(folder)["prepared"]
    return config["prepared"]


@pytest.fixture(scope="module")
def tiny_compressed(tiny_files, tmp_path_factory) -> Path:
    """The tiny run's videos, compressed to fewer frames than they have."""
    output = tmp_path_factory.mktemp("tiny") / "compressed"
    assert prepare(compress_video, tiny_files / "dataset" / "videos", output, *COMPRESSING) == 0
    return output


@pytest.mark.parametrize("task", list(PROGRAMS))
def test_an_evaluation_names_its_own_videos(task, tiny_compressed, tmp_path, request):
    flags = request.getfixturevalue({"retrieval": "tiny_run", "recognition": "tiny_recognition"}[task])
    evaluation = ["--do_eval", "--method", "zero_shot", "--output_dir"]
    pack = tmp_path / "pack"
    assert prepare(pack_frames, tiny_compressed, pack, *PACKING) == 0
    places = {
        "as they are": (flags, AS_THEY_ARE),
        "compressed": ([*flags, "--features_path", str(tiny_compressed)], COMPRESSED),
        "packed": ([*without(flags, "--features_path"), "--packed", str(pack)], PACKED | {"of": COMPRESSED}),
    }
    for name in places if task == "retrieval" else ["packed"]:
        given, record = places[name]
        assert PROGRAMS[task]([*given, *evaluation, str(tmp_path / name)]) == 0
        assert prepared_in(tmp_path / name) == {"evaluation": record}


def test_a_training_names_all_videos_that_it_read_also_when_it_is_continued(tiny_run, tiny_compressed, tmp_path):
    training = [*tiny_run, *TINY_TRAINING, "--epochs", "1", "--output_dir", str(tmp_path / "run")]
    assert main_task_retrieval.main(training) == 0
    assert prepared_in(tmp_path / "run") == {"training": AS_THEY_ARE, "evaluation": AS_THEY_ARE}
    training += ["--features_path", str(tiny_compressed)]
    both = {"videos": "in several ways", "ways": [AS_THEY_ARE, COMPRESSED]}
    assert main_task_retrieval.main(training) == 0  # files count by what they hold: no other run
    assert prepared_in(tmp_path / "run") == {"training": both, "evaluation": both}
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count('WARNING training videos: were {"videos": "as they are"}, are {"videos": "compressed"') == 1
    assert main_task_retrieval.main([*training, "--resume", "never"]) == 0  # what was is no part of a new run
    assert prepared_in(tmp_path / "run") == {"training": COMPRESSED, "evaluation": COMPRESSED}


def test_a_note_that_cannot_be_read_stops_no_run(tiny_run, tiny_compressed, tmp_path):
    videos = Path(shutil.copytree(tiny_compressed, tmp_path / "videos"))
    (videos / "compress_video.json").write_text("{")
    flags = ["--do_eval", "--method", "zero_shot", "--features_path", str(videos), "--output_dir", str(tmp_path / "o")]
    assert main_task_retrieval.main([*tiny_run, *flags]) == 0
    assert prepared_in(tmp_path / "o") == {"evaluation": NOT_RECORDED}
    assert (
        f"WARNING how the evaluation videos were prepared is not recorded: {videos}"
        in (tmp_path / "o" / "log.txt").read_text()
    )

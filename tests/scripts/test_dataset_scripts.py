"""The datasets' scripts from the first line to results, each on the toy dataset in its dataset's published form."""

import json
import os
import subprocess
import sys

import pytest

from helpers.launching import ENVIRONMENT
from helpers.paths import ROOT
from helpers.runs import rows_of
from helpers.tiny import make_tiny_clip, save_clip_folder
from preprocess import convert_msvd_captions
from preprocess.make_toy_dataset import DatasetSettings, make_dataset

pytestmark = pytest.mark.slow
SETTINGS = DatasetSettings(num_train=12, num_test=4, num_test_sets=1, num_frames=9)
# what makes a run a matter of seconds
TINY = [
    *("--max_frames", "4", "--max_words", "12", "--num_thread_reader", "0", "--precision", "fp32", "--epochs", "1"),
    *("--batch_size", "4", "--n_display", "1"),
]
TINY_STOP = [
    *("--num_regions", "3", "--spatial_width", "8", "--spatial_hidden", "12", "--temporal_width", "8"),
    *("--text_prompts", "2"),
]
# of each script: the form, and how many training samples, queries and test videos it has
SCRIPTS = {
    "vatex": ("vatex", 120, 40, 4),
    "activitynet": ("activity", 12, 4, 4),
    "didemo": ("didemo", 12, 4, 4),
    "msvd": ("msvd", 48, 15, 4),
    "lsmdc": ("lsmdc", 12, 4, 4),
    "kinetics400": ("kinetics400", 12, 2, 4),
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder with the program, this interpreter as its .venv, and the tiny CLIP."""
    root = tmp_path_factory.mktemp("checkout")
    for path in (*ROOT.glob("main_task_*.py"), *(ROOT / name for name in ("common", "dataloaders", "modules"))):
        (root / path.name).symlink_to(path)
    (root / "scripts").mkdir()
    for path in (ROOT / "scripts").glob("*.sh"):
        (root / "scripts" / path.name).write_text("" if path.name == "setup.sh" else path.read_text())
    python = root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    save_clip_folder(root / "clip", make_tiny_clip().model)
    return root


def run_script(checkout, name, dataset, *flags, **environment):
    """Run a dataset's script on a folder in its form; the folder that the run leaves."""
    output = checkout / "runs" / "-".join([name, *environment])
    paths = {"DATA": dataset, "SPLITS": dataset / "labels", "VIDEOS": dataset / "videos", "OUTPUT": output}
    given = {key: str(value) for key, value in (paths | environment).items()}
    done = subprocess.run(
        ["bash", f"scripts/{name}.sh", "--pretrained_clip_name", str(checkout / "clip"), *TINY, *flags],
        cwd=checkout,
        env=os.environ | ENVIRONMENT | {"GPUS": "1"} | given,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return output


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_trains_and_tests_on_the_toy_dataset_in_its_datasets_form(checkout, tmp_path, name):
    form, samples, texts, videos = SCRIPTS[name]
    dataset = make_dataset(tmp_path / form, SETTINGS, form=form)
    output = run_script(checkout, name, dataset, *TINY_STOP)
    results = json.loads((output / "results.json").read_text())
    assert (results["dataset"], results["videos"], results["texts"]) == (form, videos, texts)
    assert results["missing_videos"] == 0
    steps = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in steps) == samples // 4
    assert (output / "best.pt").is_file()


def test_kinetics_goes_on_without_the_videos_that_are_gone_and_counts_them(checkout, tmp_path):
    dataset = make_dataset(tmp_path / "toy", SETTINGS, form="kinetics400")
    videos = sorted((dataset / "videos").rglob("*.mp4"), key=lambda path: path.name)
    gone = [videos[0], videos[-1]]  # of training and of test
    for path in gone:
        path.unlink()
    output = run_script(checkout, "kinetics400", dataset, *TINY_STOP, GONE="2")
    results = json.loads((output / "results.json").read_text())
    assert (results["missing_videos"], results["videos"]) == (2, 3)
    listed = {row["list"]: row["video"] for row in rows_of(output / "missing_videos.csv")}
    assert listed == {
        name: f"{path.parent.name}/{path.stem}" for name, path in zip(("training", "test"), gone, strict=True)
    }


def test_msvd_takes_its_captions_as_json(checkout, tmp_path):
    dataset = make_dataset(tmp_path / "toy", SETTINGS, form="msvd")
    source, target = dataset / "raw-captions.pkl", dataset / "captions.json"
    assert convert_msvd_captions.main(["--input", str(source), "--output", str(target)]) == 0
    source.unlink()
    output = run_script(checkout, "msvd", dataset, "--method", "zero_shot", CAPTIONS=str(target))
    assert json.loads((output / "results.json").read_text())["texts"] == SCRIPTS["msvd"][2]

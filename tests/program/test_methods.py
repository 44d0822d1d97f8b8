"""Every method end to end: it trains, goes on, is evaluated by itself, shares its work, and leaves what it can."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest

import main_task_recognition
import main_task_retrieval
from dataloaders.datasets import RECOGNITION, RETRIEVAL
from helpers import methods
from helpers.faults import Killed
from helpers.launching import torchrun
from helpers.paths import ROOT
from helpers.runs import assert_equal, lines, results, run, state_of
from modules.methods import METHODS
from modules.model.measures import WORDS
from modules.program.arguments import CommonSettings, parse_arguments
from modules.runtime.run_folder import RunFolder
from modules.tasks.metrics import retrieval_metrics_of_embeddings, rounded
from modules.training.trainer import TrainSettings

TRAINING = ["--do_train", "--epochs", "2", "--batch_size", "6", "--n_display", "1"]
FORMS = [form for form, (method, _) in methods.FORMS.items() if METHODS[method].trains]


# each method takes some seconds: one of the frozen ones, and the one whose head scores pairs, stand for all
FAST = ("vop", "tightTransf")
GATED = ("stop", "stop_own", "stop_controls", "stop_without_intra")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in FORMS],
)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def flags(name):
    # a rate at which CLIP changes visibly, too
    own = methods.flags_of(name)
    return [*TRAINING, *own, "--lr", "0.01", *(["--coef_lr", "0.1"] if "clip4clip" in own else [])]


@pytest.fixture(scope="module")
def trained(tiny_run, flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    assert run(tiny_run, folder, *flags) == 0
    return folder


def metrics_of(values):
    return {key: value for key, value in values.items() if key.startswith(("t2v", "v2t", "top", "mean_class"))}


def test_it_trains_and_is_evaluated_without_flags(tiny_run, name, trained, tmp_path, capsys):
    losses = [entry["loss"] for entry in lines(trained, "train")]
    assert np.isfinite(losses).all() and len(set(losses)) == len(losses)
    flags = ["--do_eval", "--init_model", str(trained / "best.pt")]
    assert run(tiny_run, tmp_path, *flags) == 0
    assert metrics_of(results(tmp_path)) == metrics_of(results(trained))
    status = run(tiny_run, tmp_path / "saved", *flags, "--save_features", str(tmp_path / "features"))
    if name == "tightTransf":
        assert status == 1 and not (tmp_path / "features").exists()
        assert "scores each pair" in capsys.readouterr().err
    else:
        assert status == 0
        text, video = (np.load(tmp_path / "features" / f"{of}.npy") for of in ("text", "video"))
        np.testing.assert_allclose(np.linalg.norm(video, axis=1), 1, atol=1e-5)
        assert rounded(retrieval_metrics_of_embeddings(text, video)) == metrics_of(results(tmp_path))


def test_the_gate_is_seen_where_there_is_one(name, trained):
    gated = name in GATED
    expected = WORDS.keys() if gated else {"clipped_steps"}
    for entry in (*lines(trained, "train"), *lines(trained, "eval")):
        assert WORDS.keys() & entry.keys() == expected
    assert WORDS.keys() & results(trained).keys() == expected - {"clipped_steps"}
    assert ("tokens_per_gap" in (trained / "log.txt").read_text()) == gated


def test_it_goes_on_to_the_same_bits(tiny_run, flags, trained, tmp_path, monkeypatch):
    log, calls = RunFolder.log_metrics, []

    def killed(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise Killed
        log(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log_metrics", killed)
        with pytest.raises(Killed):
            run(tiny_run, tmp_path, *flags, "--save_steps", "1")
    assert run(tiny_run, tmp_path, *flags, "--save_steps", "1") == 0
    assert_equal(state_of(tmp_path, "best.pt"), state_of(trained, "best.pt"))
    assert (tmp_path / "metrics.jsonl").read_bytes() == (trained / "metrics.jsonl").read_bytes()


def test_it_recognises_actions(tiny_recognition, flags, tmp_path):
    out = ["--output_dir", str(tmp_path / "train")]
    assert main_task_recognition.main([*tiny_recognition, *out, *flags, "--num_clips", "2"]) == 0
    out = ["--output_dir", str(tmp_path / "eval"), "--init_model", str(tmp_path / "train" / "best.pt")]
    assert main_task_recognition.main([*tiny_recognition, *out, "--do_eval", "--num_clips", "2"]) == 0
    found = [json.loads((tmp_path / part / "results.json").read_text()) for part in ("train", "eval")]
    assert metrics_of(found[0]) == metrics_of(found[1]) and len(metrics_of(found[0])) == 3


@pytest.mark.slow
def test_two_processes_compute_the_same(tiny_run, flags, tmp_path):
    more = [*flags, "--precision", "fp64"]
    assert run(tiny_run, tmp_path / "one", *more) == 0
    finished = torchrun(2, tiny_run, tmp_path / "two", *more)
    assert finished.returncode == 0, finished.stderr
    one, two = ([entry["loss"] for entry in lines(tmp_path / part, "train")] for part in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-9)
    assert [metrics_of(entry) for entry in lines(tmp_path / "two", "eval")] == [
        metrics_of(entry) for entry in lines(tmp_path / "one", "eval")
    ]


def test_a_flag_counts_before_the_datasets_default_and_that_before_the_methods(monkeypatch, capsys):
    monkeypatch.setitem(METHODS, "ours", replace(METHODS["zero_shot"], recipe={"lr": 0.5, "epochs": 7, "max_words": 9}))
    monkeypatch.setitem(RETRIEVAL, "data", replace(RETRIEVAL["msrvtt"], recipe={"epochs": 8, "max_words": 10}))
    files = ["--features_path", "x", "--val_csv", "x", "--method", "ours", "--datatype", "data"]

    def parse(*flags):
        arguments = parse_arguments([*files, *flags], "", RETRIEVAL, main_task_retrieval.RetrievalSettings)
        return arguments.train.lr, arguments.train.epochs, arguments.common.max_words

    assert parse() == (0.5, 8, 10)
    assert parse("--max_words", "11", "--lr", "0.25") == (0.25, 8, 11)
    with pytest.raises(SystemExit):
        parse("--help")
    shown = " ".join(capsys.readouterr().out.split())
    for default in ("peak learning rate (above 0; default: 0.5)", "training set (at least 1; default: 8)"):
        assert default in shown


@pytest.mark.parametrize("dataset", RECOGNITION)
def test_the_scripts_of_recognition_say_what_is_the_datasets_and_what_the_methods(dataset):
    flags = ["--datatype", dataset, "--method", "efficient_prompt", "--split_dir", "x", "--features_path", "x"]
    given = parse_arguments(flags, "", RECOGNITION, main_task_recognition.RecognitionSettings)
    recipe, own = RECOGNITION[dataset].recipe, METHODS["efficient_prompt"].recipe
    assert (given.train.lr, given.train.weight_decay) == (own["lr"], own["weight_decay"])
    assert given.train.batch_size == recipe.get("batch_size", own["batch_size"])
    script = " ".join((ROOT / "scripts" / f"{dataset}.sh").read_text().replace("\n#", "").split())
    batches = f"batches of {recipe['batch_size']} and " if "batch_size" in recipe else ""
    assert f"the rest are defaults: {batches}{recipe['epochs']} epochs are the dataset's" in script
    assert ("batches, rate, decay and words are the method's" in script) == (not batches)


def test_recipes_name_flags_and_values_that_these_take():
    defaults = {field.name: field for part in (CommonSettings, TrainSettings) for field in fields(part)}
    for owner in (*METHODS.values(), *RETRIEVAL.values(), *RECOGNITION.values()):
        for name, value in owner.recipe.items():
            within = defaults[name].metadata["within"]
            assert within is None or value in within

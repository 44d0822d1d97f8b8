"""Every method end to end: it trains, goes on, is evaluated by itself, shares its work, and leaves what it can."""

import json

import numpy as np
import pytest

import main_task_recognition
from helpers.faults import Killed
from helpers.launching import torchrun
from helpers.runs import assert_equal, lines, results, run, state_of
from modules.runtime.run_folder import RunFolder
from modules.tasks.metrics import retrieval_metrics_of_embeddings, rounded

TRAINING = ["--do_train", "--epochs", "2", "--batch_size", "6", "--n_display", "1"]
FLAGS = {
    **{
        name: ["--method", "clip4clip", "--sim_header", name]
        for name in ("meanP", "seqLSTM", "seqTransf", "tightTransf")
    },
    "vop": ["--method", "vop", "--num_prompts", "4", "--num_context_prompts", "2", "--num_joint_layers", "1"],
}


@pytest.fixture(scope="module", params=list(FLAGS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def flags(name):
    # a rate at which CLIP changes visibly, too
    return [*TRAINING, *FLAGS[name], "--lr", "0.01", *(["--coef_lr", "0.1"] if name != "vop" else [])]


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

"""What a checkpoint holds of a model, and what an evaluation takes from it."""

import json

import pytest
import torch

import main_task_recognition
from helpers.faults import Killed, poison_losses
from helpers.flags import without
from helpers.runs import checkpoint, lines, results, run
from helpers.tiny import TINY_TRAINING, make_tiny_clip, save_clip_folder
from modules.methods import METHODS
from modules.methods.base import Method
from modules.methods.zero_shot import ZeroShotSettings
from modules.training.trainer import Trainer

METRICS = ("t2v_R1", "t2v_MnR", "v2t_MnR")
FLAGS_OF_TRAINING = TINY_TRAINING[:7]  # those of the program; what follows is the method's


class Normalised(torch.nn.Module):
    """Video embeddings through a linear layer and a BatchNorm, whose statistics are persistent buffers."""

    def __init__(self, encoder, width):
        super().__init__()
        self.encoder = encoder
        self.linear = torch.nn.Linear(width, width)
        self.norm = torch.nn.BatchNorm1d(width, momentum=0.5)
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def forward(self, *arguments):
        output = self.encoder(*arguments)
        embedding = self.norm(self.linear(output["embedding"]))
        return output | {"embedding": torch.nn.functional.normalize(embedding, dim=-1)}


def build_normalised(clip, settings, num_frames, max_words):
    model = METHODS["zero_shot"].build(clip, settings, num_frames, max_words)
    model.video_encoder = Normalised(model.video_encoder, clip.model.visual.output_dim)
    return model


@pytest.fixture
def normalised(monkeypatch):
    """A method that adds buffers, under the name ``normalised``."""
    method = Method("a linear layer with BatchNorm", ZeroShotSettings, build_normalised, trains=True)
    monkeypatch.setitem(METHODS, "normalised", method)
    return ["--method", "normalised", *FLAGS_OF_TRAINING, "--lr", "0.05"]


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    return [name for name, value in ours.items() if not torch.equal(value, theirs[name])]


def test_buffers_of_a_method_are_saved_and_loaded(tiny_run, tmp_path, normalised):
    assert run(tiny_run, tmp_path / "train", *normalised) == 0
    state = checkpoint(tmp_path / "train", "best.pt")["model"]
    prefix = "video_encoder.norm."
    assert {name for name in state if name.startswith(prefix)} == {
        prefix + name for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    assert state[prefix + "running_mean"].abs().max() > 0
    assert not [name for name in state if "scratch" in name]
    evaluated = ["--do_eval", "--init_model", str(tmp_path / "train" / "best.pt")]
    assert run(tiny_run, tmp_path / "eval", *evaluated) == 0
    for name in METRICS:
        assert results(tmp_path / "eval")[name] == results(tmp_path / "train")[name]


def test_a_missing_buffer_is_refused_like_a_parameter(tiny_run, tmp_path, normalised, capsys):
    assert run(tiny_run, tmp_path / "train", *normalised, "--epochs", "1") == 0
    content = checkpoint(tmp_path / "train", "best.pt")
    mean = content["model"].pop("video_encoder.norm.running_mean")
    torch.save(content, tmp_path / "without.pt")
    content["model"]["video_encoder.norm.running_mean"] = mean[:3]
    torch.save(content, tmp_path / "shorter.pt")
    for name, words in (("without", "running_mean: missing"), ("shorter", "running_mean: expected (16,), found (3,)")):
        assert run(tiny_run, tmp_path / "eval", "--do_eval", "--init_model", str(tmp_path / f"{name}.pt")) == 1
        assert words in capsys.readouterr().err


def test_a_resumed_run_has_the_buffers_of_an_uninterrupted_one(tiny_run, tmp_path, normalised, monkeypatch):
    assert run(tiny_run, tmp_path / "whole", *normalised) == 0
    compute, count = Trainer._compute, 0

    def dying(self, *args):
        nonlocal count
        outcome = compute(self, *args)  # the forward pass has changed the buffers
        count += 1
        if count == 5:
            self._save("last.pt")  # as a signal in the middle of a step does
            raise Killed
        return outcome

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_compute", dying)
        with pytest.raises(Killed):
            run(tiny_run, tmp_path / "parts", *normalised)
    assert run(tiny_run, tmp_path / "parts", *normalised) == 0
    assert same(checkpoint(tmp_path / "parts")["model"], checkpoint(tmp_path / "whole")["model"]) == []


def test_a_step_that_is_left_out_leaves_the_buffers_as_they_were(tiny_run, tmp_path, normalised, monkeypatch):
    poison_losses(monkeypatch, lambda call: call > 3)
    assert run(tiny_run, tmp_path / "left", *normalised, "--on_nonfinite", "skip") == 0
    monkeypatch.undo()
    monkeypatch.setitem(METHODS, "normalised", Method("", ZeroShotSettings, build_normalised, trains=True))
    poison_losses(monkeypatch, lambda call: call > 3)
    assert run(tiny_run, tmp_path / "stopped", *normalised) == 1
    left, stopped = checkpoint(tmp_path / "left")["model"], checkpoint(tmp_path / "stopped")["model"]
    assert (
        same({n: v for n, v in left.items() if "norm.r" in n}, {n: v for n, v in stopped.items() if "norm.r" in n})
        == []
    )


def train(tiny_run, folder, **values):
    flags = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    assert run(tiny_run, folder, *TINY_TRAINING, "--epochs", "1", *flags) == 0


@pytest.fixture(scope="module")
def trained(tiny_run, tmp_path_factory):
    """A training at 4 frames, 12 words and settings of the method that are not its defaults."""
    folder = tmp_path_factory.mktemp("checkpoints") / "trained"
    train(tiny_run, folder)
    return folder


def test_an_evaluation_takes_method_settings_frames_and_words_from_the_checkpoint(tiny_run, trained, tmp_path):
    flags = without(tiny_run, "--max_frames", "--max_words")
    assert run(flags, tmp_path, "--do_eval", "--init_model", str(trained / "best.pt")) == 0
    found, expected = results(tmp_path), results(trained)
    for name in METRICS:
        assert found[name] == expected[name]
    settings = json.loads((tmp_path / "config.json").read_text())["settings"]
    before = json.loads((trained / "config.json").read_text())["settings"]
    for name in ("method", "num_regions", "spatial_width", "temporal_width", "max_frames", "max_words"):
        assert settings[name] == before[name]
    assert "was trained with" not in (tmp_path / "log.txt").read_text()


def test_results_say_what_they_are_of(tiny_run, trained, tmp_path):
    clip = tiny_run[tiny_run.index("--pretrained_clip_name") + 1]
    expected = {"clip": clip, "max_frames": 4, "max_words": 12, "precision": "fp32", "texts": 6, "videos": 6}
    assert results(trained).items() >= expected.items()
    evaluated = ["--do_eval", "--init_model", str(trained / "best.pt"), "--max_frames", "3", "--precision", "bf16"]
    assert run(without(tiny_run, "--max_frames", "--precision"), tmp_path, *evaluated) == 0
    assert results(tmp_path).items() >= (expected | {"max_frames": 3, "precision": "bf16"}).items()


@pytest.mark.parametrize(("flag", "value", "trained_with"), [("--max_frames", "3", "4"), ("--max_words", "8", "12")])
def test_other_frames_or_words_are_taken_and_said(tiny_run, trained, tmp_path, flag, value, trained_with):
    flags = [*without(tiny_run, flag), flag, value]
    assert run(flags, tmp_path, "--do_eval", "--init_model", str(trained / "best.pt")) == 0
    assert results(tmp_path)[flag.removeprefix("--")] == int(value)
    warning = next(line for line in (tmp_path / "log.txt").read_text().splitlines() if "WARNING" in line)
    assert f"{flag} {value}" in warning and f"best.pt was trained with {trained_with}" in warning


def test_flags_of_the_method_that_disagree_are_named_with_both_values(tiny_run, trained, tmp_path, capsys):
    flags = [
        "--do_eval",
        "--init_model",
        str(trained / "best.pt"),
        "--num_regions",
        "2",
        "--alpha",
        "0.5",
        "--eta",
        "1",
    ]
    assert run(tiny_run, tmp_path / "run", *flags) == 1
    message = capsys.readouterr().err
    assert "--num_regions 2, trained with 3" in message and "--eta 1.0, trained with 4.0" in message
    assert "alpha" not in message and not (tmp_path / "run").exists()
    assert run(tiny_run, tmp_path / "run", *flags[:3], "--method", "zero_shot") == 1
    assert "--method zero_shot, trained with stop" in capsys.readouterr().err


def test_what_matters_in_training_only_may_differ(tiny_run, trained, tmp_path):
    flags = ["--do_eval", "--init_model", str(trained / "best.pt"), "--prompt_dropout", "0.5", "--lr", "0.7"]
    assert run(tiny_run, tmp_path, *flags) == 0
    assert results(tmp_path)["t2v_MnR"] == results(trained)["t2v_MnR"]


def test_a_clip_that_differs_is_named(tiny_run, trained, tmp_path, capsys):
    other = save_clip_folder(tmp_path / "other", make_tiny_clip(seed=1).model)
    flags = [*without(tiny_run, "--pretrained_clip_name"), "--pretrained_clip_name", str(other)]
    own = tiny_run[tiny_run.index("--pretrained_clip_name") + 1]
    assert run(flags, tmp_path / "eval", "--do_eval", "--init_model", str(trained / "best.pt")) == 1
    assert f"clip: was {own} (" in (said := capsys.readouterr().err) and f"is {other} (" in said
    assert run(flags, trained, *TINY_TRAINING, "--epochs", "1") == 1
    assert f"clip: was {own} (" in (said := capsys.readouterr().err) and f"is {other} (" in said


def test_splits_are_evaluated_as_they_were_trained(tiny_recognition, tmp_path):
    flags = [*tiny_recognition, *TINY_TRAINING, "--epochs", "1", "--split", "mean"]
    assert main_task_recognition.main([*flags, "--output_dir", str(tmp_path / "train")]) == 0
    evaluated = [*without(tiny_recognition, "--max_frames"), "--do_eval", "--split", "mean"]
    evaluated += ["--init_model", str(tmp_path / "train"), "--output_dir", str(tmp_path / "eval")]
    assert main_task_recognition.main(evaluated) == 0
    assert results(tmp_path / "eval")["top1"] == results(tmp_path / "train")["top1"]
    for name in ("tokens_per_gap", "gaps_without_tokens", "frame_variation"):
        of_splits = [split[name] for split in results(tmp_path / "train")["splits"].values()]
        assert len(of_splits) == 3
        assert results(tmp_path / "eval")[name] == pytest.approx(sum(of_splits) / 3, abs=1e-4)
    one = json.loads((tmp_path / "eval" / "split1" / "results.json").read_text())
    assert (one["max_frames"], one["texts"]) == (4, 2) and one["videos"] > 0


def test_max_grad_norm_0_does_not_clip(tiny_run, tmp_path):
    """The weights move, and as far as with a norm that no gradient reaches."""
    for norm in ("0", "1e30", "1e-3"):
        train(tiny_run, tmp_path / norm, max_grad_norm=norm, weight_decay=0)
    states = {norm: checkpoint(tmp_path / norm)["model"] for norm in ("0", "1e30")}
    assert same(states["0"], states["1e30"]) == []
    norms = {norm: [entry["grad_norm"] for entry in lines(tmp_path / norm, "train")] for norm in ("0", "1e-3")}
    assert norms["0"][0] == norms["1e-3"][0] > 0
    for norm, share in (("0", 0.0), ("1e30", 0.0), ("1e-3", 1.0)):
        for kind in ("train", "eval"):
            assert {entry["clipped_steps"] for entry in lines(tmp_path / norm, kind)} == {share}
    first = checkpoint(tmp_path / "0")["optimizer"]["state"][0]["exp_avg"]
    clipped = checkpoint(tmp_path / "1e-3")["optimizer"]["state"][0]["exp_avg"]
    assert first.abs().max() > 10 * clipped.abs().max()


def test_a_checkpoint_is_also_found_by_its_folder(tiny_run, tmp_path, capsys):
    assert run(tiny_run, tmp_path / "train", *TINY_TRAINING) == 0
    assert run(tiny_run, tmp_path / "eval", "--do_eval", "--init_model", str(tmp_path / "train")) == 0
    again = ["--init_model", str(tmp_path / "train"), "--resume", "never"]
    assert run(tiny_run, tmp_path / "train", *TINY_TRAINING, *again) == 1
    assert "lies in --output_dir" in capsys.readouterr().err
    assert (tmp_path / "train" / "best.pt").exists()


def test_folders_that_cannot_be_written_to_are_said_before_anything_is_computed(tiny_run, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run(tiny_run, tmp_path / "file", *TINY_TRAINING) == 1
    assert "--output_dir" in capsys.readouterr().err
    assert run(tiny_run, tmp_path / "run", *TINY_TRAINING, "--save_features", str(tmp_path / "file")) == 1
    assert "--save_features" in capsys.readouterr().err
    assert not (tmp_path / "run" / "last.pt").exists()

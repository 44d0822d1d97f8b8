"""What a run logs of its gates and its gradients: STOP's tokens a gap, and how often the gradient was clipped."""

import re
from statistics import fmean
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.faults import Killed, poison_losses
from helpers.runs import assert_equal, checkpoint, lines, results, run, state_of
from helpers.tiny import TINY_TRAINING
from modules.model.measures import WORDS, means
from modules.model.video_encoder import VideoEncoder
from modules.training.trainer import Trainer

GATE = ["tokens_per_gap", "gaps_without_tokens", "frame_variation"]
NORM, LEFT_OUT = 0.3, 3  # which some gradients reach and others do not; a step
# two lines, of which each is of several steps; some gaps stay below the floor
FLAGS = [
    *(*TINY_TRAINING, "--n_display", "4", "--batch_size_val", "4", "--epsilon", "0.05"),
    *("--max_grad_norm", str(NORM), "--on_nonfinite", "skip"),
]


@pytest.fixture(scope="module")
def watched(tiny_run, tmp_path_factory):
    """A training of 9 steps: its folder, (N^t, W^t) of each gap in each forward pass, and the norm of each gradient."""
    seen = SimpleNamespace(folder=tmp_path_factory.mktemp("watched"), trained=[], evaluated=[], norms={})
    forward, compute = VideoEncoder.forward, Trainer._compute

    def look(self, frames, num_frames, sample_keys=None, return_details=False):
        output = forward(self, frames, num_frames, sample_keys, return_details=True)
        gaps = [(b, i) for b, n in enumerate(num_frames.tolist()) for i in range(n - 1)]
        of_layers = [(layer["num_temporal_prompts"], layer["frame_variation"]) for layer in output["layers"]]
        values = [(n_t[gap].item(), w_t[gap].item()) for n_t, w_t in of_layers for gap in gaps]
        (seen.trained if self.training else seen.evaluated).append(values)
        return output

    def count(self, *args):
        gradient = compute(self, *args)
        seen.norms[self.position.step + 1] = gradient.norm
        return gradient

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VideoEncoder, "forward", look)
        patch.setattr(Trainer, "_compute", count)
        poison_losses(patch, lambda call: call == LEFT_OUT)
        assert run(tiny_run, seen.folder, *FLAGS) == 0
    return seen


def expected(values):
    """The measures of pairs (N^t, W^t)."""
    tokens, variation = zip(*values, strict=True)
    return dict(zip(GATE, (fmean(tokens), tokens.count(0) / len(tokens), fmean(variation)), strict=True))


def measured(entry):
    return {name: entry[name] for name in GATE}


def test_a_logged_step_has_the_values_of_that_step(watched):
    entries = lines(watched.folder, "train")
    assert [entry["step"] for entry in entries] == [4, 8] and len(watched.trained) == 9
    for entry in entries:
        assert measured(entry) == pytest.approx(expected(watched.trained[entry["step"] - 1]), abs=1e-12)
        assert 0 < entry["gaps_without_tokens"] < 1


def test_an_evaluation_has_the_means_of_all_its_videos(watched):
    batches = iter(watched.evaluated)
    each = [expected(first + second) for first, second in zip(batches, batches, strict=True)]  # 6 videos, 4 at a time
    assert len(each) == 4  # after each epoch and in the end
    for entry, values in zip([*lines(watched.folder, "eval"), results(watched.folder)], each, strict=True):
        assert measured(entry) == pytest.approx(values, abs=1e-4)


def test_clipped_steps_are_of_those_since_the_line_or_the_evaluation_before(watched):
    clipped = {step: norm > NORM for step, norm in watched.norms.items() if step != LEFT_OUT}
    assert len(clipped) == 8 and 0 < sum(clipped.values()) < 8

    def share(first, last):
        return fmean(clipped[step] for step in range(first, last + 1) if step != LEFT_OUT)

    for kind, parts in (("train", {4: 1, 8: 5}), ("eval", {3: 1, 6: 4, 9: 7})):  # evaluations are rounded
        found = {entry["step"]: entry["clipped_steps"] for entry in lines(watched.folder, kind)}
        assert found == pytest.approx({last: share(first, last) for last, first in parts.items()}, abs=1e-4)


def test_tensorboard_and_the_log_have_what_the_lines_have(watched):
    board = EventAccumulator(str(watched.folder / "tensorboard")).Reload()
    for kind in ("train", "eval"):
        for name in WORDS:
            found = {event.step: event.value for event in board.Scalars(f"{kind}/{name}")}
            assert found == pytest.approx({entry["step"]: entry[name] for entry in lines(watched.folder, kind)})
    log = (watched.folder / "log.txt").read_text()
    for entry in lines(watched.folder, "train"):
        shown = " ".join(f"{name} {entry[name]:.2f}" for name in WORDS)
        assert re.search(rf"step {entry['step']}/9 loss .* rate \S+, {shown}, .* left", log)
    for place in (log.index("epoch 1/3: t2v_R1"), log.rindex(" t2v_R1 ")):
        assert f"; tokens_per_gap: {WORDS['tokens_per_gap']}; " in log[:place].splitlines()[-2]


def test_a_run_that_goes_on_between_two_lines_writes_the_same(tiny_run, watched, tmp_path, monkeypatch):
    compute, count = Trainer._compute, 0

    def dying(self, *args):
        nonlocal count
        count += 1
        if count > 6:
            raise Killed
        return compute(self, *args)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "_compute", dying)
        poison_losses(patch, lambda call: call == LEFT_OUT)
        run(tiny_run, tmp_path, *FLAGS, "--save_steps", "1")
    steps, clipped = checkpoint(tmp_path)["position"]["since_line"]
    assert steps == 2 and clipped == sum(watched.norms[step] > NORM for step in (5, 6))
    assert run(tiny_run, tmp_path, *FLAGS, "--save_steps", "1") == 0
    assert (tmp_path / "metrics.jsonl").read_bytes() == (watched.folder / "metrics.jsonl").read_bytes()
    assert_equal(state_of(tmp_path), state_of(watched.folder))


def test_a_checkpoint_from_before_the_counts_is_continued(tiny_run, tmp_path, monkeypatch):
    def dying(self, epoch):
        raise Killed

    flags = [*TINY_TRAINING, "--epochs", "2"]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "_evaluate_epoch", dying)
        run(tiny_run, tmp_path, *flags)
    content = checkpoint(tmp_path)
    assert content["position"].pop("since_line") == (0, 0)
    assert content["position"].pop("since_evaluation")[0] == 3
    torch.save(content, tmp_path / "last.pt")
    assert run(tiny_run, tmp_path, *flags) == 0
    shares = ["clipped_steps" in entry for entry in lines(tmp_path, "eval")]
    assert shares == [False, True]  # of the first epoch's steps nothing is known


def test_a_mean_of_nothing_is_left_out():
    shares = [{"a": [1.5, 2.0], "b": [0.0, 0.0]}, {}, {"a": [0.5, 2.0], "b": [0.0, 0.0]}]
    assert means(shares) == {"a": 0.5} and means([{}]) == {}

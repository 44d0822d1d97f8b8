"""UniPT: what is added to CLIP's embeddings, token by token, and what a training step keeps."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.functional import linear

from common.errors import UserError
from helpers.methods import disturb, make_model
from helpers.tiny import random_videos
from modules.methods.adapters.unipt import ParallelTower

T = 4


def answered(parallel, states, final, at):
    """One sequence: a list of (S, D), (E,) and the place of the token that was read → (E,), as the paper says it."""
    query = linear(final.relu(), parallel.map_anchor.weight, parallel.map_anchor.bias)
    answers, scores = [], []
    for state, weight, bias in zip(states, parallel.map_weights, parallel.map_biases, strict=True):
        mapped = linear(state.relu(), weight, bias)
        weights = [max(torch.dot(query, token), torch.tensor(0.0)) for token in mapped]
        together = max(sum(weights), torch.tensor(1e-6))
        answers.append(sum(w / together * token for w, token in zip(weights, mapped, strict=True)) + mapped[at])
        scores.append(linear(query * mapped.mean(0), parallel.gate.weight, parallel.gate.bias)[0])
    gates = torch.stack(scores).softmax(0)
    mixed = sum(gate * answer for gate, answer in zip(gates, answers, strict=True))
    return final + linear(mixed.relu(), parallel.map_output.weight, parallel.map_output.bias)


@pytest.fixture(scope="module")
def model():
    return disturb(make_model("unipt", num_frames=T)).double().eval()


def test_frames_are_embedded_as_the_equations_say_token_by_token(model):
    tower, parallel = model.video_encoder.tower, model.video_encoder.readout.parallel
    videos, lengths = random_videos(2, T), [T, 2]
    with torch.no_grad():
        found = model.encode_video(videos, torch.tensor(lengths))["embedding"]
        for video, length, embedding in zip(videos, lengths, found, strict=True):
            frames = []
            for frame in video[:length]:
                cls, patches = tower.embed(tower.normalize(frame[None]))
                states = [torch.cat([cls[None], patches[0]])]
                for block in tower.blocks:
                    states.append(block(states[-1][None])[0])
                frames.append(F.normalize(answered(parallel, states, tower.project(states[-1][0]), 0), dim=0))
            torch.testing.assert_close(embedding, F.normalize(torch.stack(frames).mean(0), dim=0))


def test_captions_are_embedded_as_the_equations_say_up_to_their_end(model):
    encoder = model.text_encoder
    tower, captions = encoder.tower, ["what a !; here", "a red circle moving left"]
    ids = encoder.tokenize(captions)
    assert (ids[0, : ids[0].argmax()] == 0).any()  # "!" has the id of padding, and is a word all the same
    with torch.no_grad():
        for row, embedding in zip(ids, encoder(captions), strict=True):
            end = int(row.argmax())
            states = [tower.embed(row[None])[0, : end + 1]]
            for block in tower.blocks:
                states.append(block(states[-1][None], mask=tower.causal_mask(end + 1))[0])
            final = tower.project(states[-1][None], torch.tensor([end]))[0]
            torch.testing.assert_close(embedding, F.normalize(answered(encoder.parallel, states, final, end), dim=0))


def test_without_any_positive_score_the_token_that_was_read_answers():
    parallel = ParallelTower(2, 3, 4)
    with torch.no_grad():
        parallel.map_anchor.weight.zero_()
        parallel.map_anchor.bias.zero_()
        states, final = [torch.rand(1, 5, 3) for _ in range(2)], torch.randn(1, 4)
        expected = answered(parallel, [state[0] for state in states], final[0], 2)
        torch.testing.assert_close(parallel(states, final, torch.tensor([2]))[0], expected)


def saved_by(run):
    """How many numbers a computation keeps for its gradients, each tensor once, without parameters."""
    kept = {}

    def pack(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    return sum(kept.values()), output


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_of_a_tower_a_training_step_keeps_each_state_once(precision):
    model = make_model("unipt", num_frames=T).train()
    videos, lengths = random_videos(8, T), torch.full((8,), T)
    with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
        kept, output = saved_by(lambda: model.encode_video(videos, lengths, torch.arange(8))["embedding"])
    states = 4 * 8 * T * 10 * 32  # of 1 + 9 tokens in 3 blocks
    assert states <= kept <= 1.6 * states  # beside them vectors a frame, which are many at this size
    output.sum().backward()
    tower = model.video_encoder.tower
    assert all(parameter.grad is None for parameter in tower.parameters())


def test_all_of_the_maps_train_and_clip_does_not():
    model = make_model("unipt", num_frames=T).train()
    assert all(".parallel." in name for name, _ in model.trainable_parameters())
    video = model.encode_video(random_videos(3, T), torch.tensor([T, 3, 4]), torch.arange(3))["embedding"]
    text = model.encode_text(["a", "b c", "d"])
    F.cross_entropy(model.similarity(text, video), torch.arange(3)).backward()
    for name, parameter in model.trainable_parameters():
        assert parameter.grad is not None, name
        if name.endswith("gate.bias"):  # added to all layers' scores alike, of which the softmax takes no note
            assert parameter.grad.abs() < 1e-6, name
        else:
            assert parameter.grad.abs().max() > 1e-6, name
    decaying = {id(how.parameter) for how in model.how_parameters_train() if how.decays}
    for name, parameter in model.trainable_parameters():
        assert (id(parameter) in decaying) == ("bias" not in name), name


def test_merged_frames_are_refused():
    with pytest.raises(UserError, match="--merge_frames: UniPT"):
        make_model("unipt", merge_frames="1")

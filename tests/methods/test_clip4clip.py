"""CLIP4Clip: what trains, at which rate, and what its headers compute."""

import pytest
import torch

from common.errors import UserError
from helpers.tiny import make_tiny_clip, random_videos
from modules.methods import METHODS
from modules.methods.video.clip4clip import HEADERS, Clip4ClipSettings, TightTransformer
from modules.program.build import build_model
from modules.runtime.compute import Compute
from modules.runtime.precision import Precision
from modules.runtime.processes import Processes
from modules.tasks import embedding
from modules.training.step import Step

T = 5
IN_CLIP = 123_540_993 - 1  # without the scale of similarities
# per section 1 of the paper's own code: the LSTM; positions and four blocks; these with what makes a score of them
OF_HEADER = {
    "meanP": 1,
    "seqLSTM": 1 + 2_101_248,
    "seqTransf": 1 + 12_648_960,
    "tightTransf": 12_648_960 + 2 * 512 + 512 * 512 + 512 + 512 + 1,
}


def make(header="meanP", clip=None, num_frames=T, max_words=12):
    return build_model(
        "clip4clip", Clip4ClipSettings(sim_header=header), clip or make_tiny_clip(), num_frames, max_words, 0
    )


@pytest.mark.parametrize("header", HEADERS)
def test_as_many_parameters_train_as_in_the_original(vit_b_32, header):
    model = make(header, vit_b_32, num_frames=12, max_words=32)
    assert model.num_trainable() == IN_CLIP + OF_HEADER[header]
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {
        *(f"video_encoder.tower.{n}" for n in ("class_embedding", "positional_embedding", "conv1.weight")),
        *(f"video_encoder.tower.ln_pre.{n}" for n in ("weight", "bias")),
        *(f"text_encoder.tower.{n}" for n in ("positional_embedding", "token_embedding.weight")),
    }


@pytest.mark.parametrize("header", HEADERS)
def test_what_was_in_clip_trains_at_a_smaller_rate(header):
    model = make(header)
    factors = {id(parameter): rate for parameter, rate, _ in model.how_parameters_train()}
    for name, parameter in model.trainable_parameters():
        in_clip = ".tower." in name or name == "head.log_scale"
        assert factors[id(parameter)] == (1e-3 if in_clip else 1.0), name


def test_mean_p_before_training_is_zero_shot():
    videos, num_frames = random_videos(3, T), torch.tensor([T, 2, 4])
    texts = ["a red circle", "something else", "a"]
    clip4clip = make().eval()
    zero_shot = METHODS["zero_shot"]
    other = build_model("zero_shot", zero_shot.settings(), make_tiny_clip(), T, 12, 0).eval()
    found = [model.encode_video(videos, num_frames)["embedding"] for model in (clip4clip, other)]
    assert torch.equal(*found)
    text = [model.encode_text(texts) for model in (clip4clip, other)]
    torch.testing.assert_close(*text)
    torch.testing.assert_close(clip4clip.similarity(text[0], found[0]), other.similarity(text[1], found[1]))


def similarities(model, videos, num_frames):
    video = model.encode_video(videos, num_frames)["embedding"]
    return model.similarity(model.encode_text(["a red circle", "a blue cross"]), video)


@pytest.mark.parametrize("header", HEADERS)
def test_padding_and_neighbours_change_nothing_and_order_does(header):
    model = make(header).double().eval()
    videos, num_frames = random_videos(3, T), torch.tensor([T, 2, 4])
    together = similarities(model, videos, num_frames)
    other = videos.clone()
    other[1, 2:] = 7  # padding
    torch.testing.assert_close(similarities(model, other, num_frames), together)
    for i, n in enumerate(num_frames.tolist()):
        alone = similarities(model, videos[i : i + 1, :n], num_frames[i : i + 1])
        torch.testing.assert_close(alone[:, 0], together[:, i])
    change = (similarities(model, videos[:, [1, 0, *range(2, T)]], num_frames) - together).abs()[:, 1].max()
    assert (change < 1e-9) == (header == "meanP")


def test_frame_headers_add_to_what_the_frames_were():
    model = make("seqLSTM").eval()
    for parameter in model.video_encoder.readout.parameters():
        parameter.data.zero_()  # an LSTM without weights gives zeros
    videos, num_frames = random_videos(2, T), torch.tensor([T, 3])
    torch.testing.assert_close(
        model.encode_video(videos, num_frames)["embedding"], make().eval().encode_video(videos, num_frames)["embedding"]
    )


def test_transformers_start_from_clips_first_text_blocks_and_leave_them_alone():
    clip = make_tiny_clip()
    model = make("seqTransf", clip)
    tower, readout = model.text_encoder.tower, model.video_encoder.readout
    assert torch.equal(readout.positions, tower.positional_embedding) and readout.positions.requires_grad
    ours, theirs = readout.blocks[0].layer.mlp.c_fc.weight, tower.blocks[0].layer.mlp.c_fc.weight
    assert torch.equal(ours, theirs) and ours is not theirs
    with pytest.raises(UserError, match="16 positions"):
        make("tightTransf", num_frames=16)


def test_pairs_are_scored_one_by_one_and_dropped_out_each_by_itself():
    head = TightTransformer(make_tiny_clip().text_tower(), T).double()
    text, video = torch.randn(3, 16).double(), torch.randn(4, T, 16).double()
    video[1, 2:] = 0
    scores = head.eval()(text, video)
    for i in range(3):
        for j in range(4):
            torch.testing.assert_close(head(text[i : i + 1], video[j : j + 1])[0, 0], scores[i, j])
    head.train()
    keys = torch.arange(4)
    dropped = head(text, video, keys)
    assert (dropped != scores).all() and torch.equal(head(text, video, keys), dropped)
    same = head(text[:1].expand(2, -1), video, keys)
    assert (same[0] != same[1]).all()  # two equal texts, with masks of their own
    torch.testing.assert_close(head(text, video[2:], keys[2:]), dropped[:, 2:])


def test_the_trained_scale_does_not_grow_above_clips():
    model = make().train()
    with torch.no_grad():
        model.head.log_scale += 5
    assert model.head.scale.item() == pytest.approx(100)
    model.head.scale.backward()
    assert model.head.log_scale.grad > 0


def test_pairs_are_scored_in_blocks_of_texts_and_of_videos(monkeypatch):
    model = make("tightTransf").eval()
    text, video = torch.randn(5, 16).numpy(), torch.randn(7, T, 16).numpy()
    compute = Compute(Processes(0, 1, torch.device("cpu")), Precision("fp32", torch.device("cpu")))
    expected = model.similarity(torch.from_numpy(text), torch.from_numpy(video)).detach()
    sizes = []
    monkeypatch.setattr(embedding, "PAIRS", 3)
    model.head.register_forward_hook(lambda _, args, out: sizes.append(out.numel()))
    torch.testing.assert_close(torch.from_numpy(embedding.score_pairs(model, text, video, compute)), expected)
    assert max(sizes) == 3 and len(sizes) == 5 * 3


def test_the_rate_that_is_logged_is_that_of_new_modules():
    step = Step(make("seqTransf"), None, Compute(None, Precision("fp32", torch.device("cpu"))), 1e-4, 0.2, 1.0, 10, 0.5)
    assert step.rate == pytest.approx(1e-4 / 5)
    assert sorted(group["lr"] for group in step.optimizer.param_groups) == pytest.approx([2e-8, 2e-8, 2e-5, 2e-5])

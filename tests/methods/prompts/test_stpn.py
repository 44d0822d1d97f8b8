"""STPN: what supports a frame, what the predictors make of it, and where the prompts stand."""

import pytest
import torch
import torch.nn.functional as F

from common.errors import UserError
from helpers.methods import disturb, make_model
from helpers.tiny import random_videos
from modules.methods.prompts.stpn import supporting

T = 4
FORMS = ["stpn", "stpn_mixer", "stpn_deep"]


def attention_of(predictor, support):
    """The transformer predictor's equations, over the support tokens (N, D) of one frame in one sequence."""
    queries, keys = predictor.norm_queries(predictor.queries), predictor.norm_support(support)
    found = []
    for head in range(predictor.num_heads):
        d = queries.shape[1] // predictor.num_heads
        q, k, v = (
            to(x)[:, head * d : (head + 1) * d]
            for to, x in ((predictor.to_query, queries), (predictor.to_key, keys), (predictor.to_value, keys))
        )
        found.append((q @ k.T / d**0.5).softmax(-1) @ v)
    normed = predictor.norm_out(predictor.out(torch.cat(found, dim=1)) + predictor.queries)
    return predictor.feed_forward(normed) + normed


def mixture_of(predictor, support, num_tokens):
    """The mixer's equations over the support tokens of one frame."""
    mean = support.view(-1, num_tokens, support.shape[1]).mean(0)
    hidden = predictor.across_tokens(predictor.norm_support(mean).T)
    return predictor.across_channels(predictor.norm_prompts(hidden).T)


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_two_passes_frame_by_frame(form):
    model = disturb(make_model(form, predictor_width=64)).double().eval()  # two heads
    tower, prompting = model.video_encoder.tower, model.video_encoder.prompting
    videos, lengths = random_videos(3, T), [T, 3, 1]
    found = model.encode_video(videos, torch.tensor(lengths))["embedding"]
    for video, n, got in zip(videos, lengths, found, strict=True):
        cls, patches = tower.embed(tower.normalize(video[:n]))
        frames = [torch.cat([cls[None], patches[t]]) for t in range(n)]
        last = []
        for frame in frames:
            for block in tower.blocks:
                frame = block(frame[None])[0]
            last.append(frame)
        directions = []
        for t, tokens in enumerate(frames):
            support = torch.cat([last[s] for s in range(n) if s != t] or [last[t]])
            if form == "stpn_mixer":
                predicted = mixture_of(prompting.predictor, support, len(tokens))
            else:
                predicted = attention_of(prompting.predictor, support)
            for layer, block in enumerate(tower.blocks):
                if layer == 0 or prompting.deep:
                    prompts = prompting.to_prompts[layer](predicted)
                out = block(torch.cat([tokens[:1], prompts, tokens[1:]])[None])[0]
                prompts, tokens = out[1 : 1 + len(prompts)], torch.cat([out[:1], out[1 + len(prompts) :]])
            directions.append(F.normalize(tower.project(tokens[0]), dim=-1))
        torch.testing.assert_close(got, F.normalize(torch.stack(directions).mean(0), dim=-1))


def test_all_other_real_frames_support_a_frame_and_one_alone_itself():
    real = torch.tensor([[True, True, True, False], [True, False, False, False]])
    assert supporting(real).int().tolist() == [
        [[0, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0]],
        [[1, 0, 0, 0]] * 4,
    ]


@pytest.mark.parametrize("form", FORMS)
def test_no_gradient_flows_through_the_first_pass(form):
    model = make_model(form).train()
    seen = []
    predictor = model.video_encoder.prompting.predictor
    predictor.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.video_encoder.tower.conv1.weight.requires_grad_(True)  # as if something before it were trained
    model.encode_video(random_videos(2, T), torch.tensor([T, T]), torch.arange(2))["embedding"].sum().backward()
    assert len(seen) == 1 and not seen[0].requires_grad
    assert all(parameter.grad.any() for parameter in predictor.parameters())


@torch.no_grad()
def test_extreme_logits_leave_the_support_of_a_frame_exact():
    """Where a frame outweighs all others, those that it does not support still see theirs."""
    model = make_model("stpn").double()
    predictor = model.video_encoder.prompting.predictor
    predictor.to_query.weight.mul_(1e4)
    tokens, real = torch.randn(1, T, 10, 32).double(), torch.ones(1, T, dtype=torch.bool)
    found = predictor(tokens, supporting(real))
    for t in range(T):
        support = torch.cat([tokens[0, s] for s in range(T) if s != t])
        torch.testing.assert_close(found[0, t], attention_of(predictor, support))


@torch.no_grad()
@pytest.mark.parametrize("predictor", ["transformer", "mixer"])
def test_a_still_video_stays_its_picture_where_frames_are_merged(predictor):
    videos = random_videos(2, 1).expand(-1, T, -1, -1, -1)
    plain, merged = (
        disturb(make_model("stpn", predictor=predictor, merge_frames=layers)).double().eval() for layers in ("", "0,2")
    )
    lengths = torch.tensor([T, 3])
    one, other = (model.encode_video(videos, lengths)["embedding"] for model in (plain, merged))
    torch.testing.assert_close(one, other)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="--merge_frames 1: --depth deep has prompts for each frame"):
        make_model("stpn_deep", merge_frames="1")
    with pytest.raises(UserError, match="--predictor_width must be a multiple of its 3 heads, found 97"):
        make_model("stpn", predictor_width=97)
    with pytest.raises(UserError, match="--predictor_width must be at least 1, found 0"):
        make_model("stpn", predictor_width=0)

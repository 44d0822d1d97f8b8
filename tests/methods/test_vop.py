"""VoP(F+C): what trains, and that its prompts are what was added."""

from dataclasses import replace

import open_clip
import pytest
import torch
import torch.nn.functional as F

from common.errors import UserError
from helpers.tiny import TINY_CONFIG, make_tiny_clip, random_videos
from modules.methods.prompts.vop import VopSettings
from modules.program.build import build_model

T = 5
TINY = {"num_prompts": 4, "num_context_prompts": 2, "num_joint_layers": 1}


def make(clip=None, **settings):
    return build_model("vop", VopSettings(**TINY | settings), clip or make_tiny_clip(), T, 12, 0)


def test_as_many_parameters_train_as_the_paper_counts(vit_b_32):
    model = build_model("vop", VopSettings(), vit_b_32, 12, 69, 0)
    positions = model.video_encoder.prompting.positions
    assert positions.numel() == 9_216  # which the paper does not count
    assert model.num_trainable() - positions.numel() == 14_269_440


def test_padding_and_neighbours_change_nothing_and_order_does():
    model = make().double().eval()
    with torch.no_grad():
        model.video_encoder.prompting.positions += torch.randn(T, 32)
    videos, num_frames = random_videos(3, T), torch.tensor([T, 2, 4])
    together = model.encode_video(videos, num_frames)["embedding"]
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(3).double())
    other = videos.clone()
    other[1, 2:] = 7  # padding
    torch.testing.assert_close(model.encode_video(other, num_frames)["embedding"], together)
    for i in range(3):
        alone = model.encode_video(videos[i : i + 1], num_frames[i : i + 1])["embedding"]
        torch.testing.assert_close(alone[0], together[i])
    swapped = model.encode_video(videos[:, [1, 0, *range(2, T)]], num_frames)["embedding"]
    assert (swapped - together).abs().amax(1).min() > 1e-6
    with pytest.raises(UserError, match="expected 5, found 4"):
        model.encode_video(videos[:, :4], num_frames.clamp(max=4))


def attend(block, tokens, extra):
    """A block over tokens (N, D), with prompts (K, D) whose outputs are dropped."""
    return block(torch.cat([tokens, extra])[None])[0, : len(tokens)]


def test_the_image_tower_is_what_the_equations_say_frame_by_frame():
    model = (
        build_model("vop", VopSettings(**TINY | {"num_joint_layers": 2}), make_deep_clip(), T, 12, 0).double().eval()
    )
    prompting, tower = model.video_encoder.prompting, model.video_encoder.tower
    with torch.no_grad():
        for parameter in (prompting.learned, prompting.joint, prompting.positions):
            parameter += torch.randn_like(parameter)
        videos, num_frames = random_videos(2, T), torch.tensor([T, 3])
        found = model.encode_video(videos, num_frames)["embedding"]
        for video, n, got in zip(videos, num_frames, found, strict=True):
            cls, patches = tower.embed(tower.normalize(video[:n]))
            frames = [torch.cat([cls[None], patches[t]]) for t in range(n)]  # of (1 + P, D)
            for layer in (0, 1):
                made = prompting.context(torch.stack([f[0] for f in frames])[None], n[None])[0]
                learned = prompting.learned[layer]
                learned = tower.ln_pre(learned) if layer == 0 else learned
                frames = [attend(tower.blocks[layer], f, torch.cat([learned, made[t]])) for t, f in enumerate(frames)]
            frames = [f + prompting.positions[t] for t, f in enumerate(frames)]
            tokens = torch.cat(frames)
            for layer in (2, 3):
                tokens = attend(tower.blocks[layer], tokens, prompting.joint[layer - 2])
            of_frames = F.normalize(tower.project(tokens[:: 1 + tower.num_patches]), dim=-1)
            torch.testing.assert_close(got, F.normalize(of_frames.mean(0), dim=-1))


def make_deep_clip():
    """A tiny CLIP of four layers."""
    torch.manual_seed(0)
    config = TINY_CONFIG | {"vision_cfg": TINY_CONFIG["vision_cfg"] | {"layers": 4}}
    tiny = make_tiny_clip()
    return replace(tiny, model=open_clip.CLIP(**config).eval())


@pytest.mark.parametrize(("make_clip", "frame_layers", "joint"), [(make_tiny_clip, 2, 1), (make_deep_clip, 2, 2)])
def test_the_last_third_of_the_layers_is_joint_where_no_number_is_given(make_clip, frame_layers, joint):
    prompting = make(make_clip(), num_joint_layers=None).video_encoder.prompting
    assert (len(prompting.learned), len(prompting.joint)) == (frame_layers, joint)


def test_a_frames_prompts_are_made_of_all_frames_class_tokens():
    prompting = make().double().video_encoder.prompting
    cls = torch.randn(2, T, 32).double()
    lengths = torch.tensor([T, 3])
    made = prompting.context(cls, lengths)
    assert made.shape == (2, T, 2, 32)
    alone = prompting.context(cls[1:, :3], lengths[1:])
    torch.testing.assert_close(made[1:, :3], alone)
    cls[0, 4] += 1
    assert (prompting.context(cls, lengths)[0] != made[0]).any(-1).all()  # also the first: it reads both ways


def test_text_prompts_are_tokens_behind_the_start_whose_outputs_are_dropped():
    model = make().double()
    encoder, tower = model.text_encoder, model.text_encoder.tower
    captions = ["a red circle moving left", "a"]
    ids = encoder.tokenize(captions)
    with torch.no_grad():
        for layer, prompts in enumerate(encoder.prompting.learned):
            prompts += torch.randn_like(prompts)
            start, words = tower.token_embedding(ids[:, :1]), tower.token_embedding(ids[:, 1:])
            if layer == 0:  # inserted, then embedded like any token
                tokens = torch.cat([start, prompts.expand(2, -1, -1), words], dim=1)
                tokens = tokens + tower.positional_embedding[: tokens.shape[1]]
            else:
                tokens = torch.cat([tokens[:, :1], prompts.expand(2, -1, -1), tokens[:, 1 + len(prompts) :]], dim=1)
            causal = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
            tokens = tower.blocks[layer](tokens, mask=causal)
        expected = F.normalize(tower.project(tokens, ids.argmax(1) + len(prompts)), dim=-1)
        torch.testing.assert_close(encoder(captions), expected)


def test_prompts_take_positions_of_the_text(tiny_clip):
    with pytest.raises(UserError, match=r"13 is more than .* 12 tokens"):
        build_model("vop", VopSettings(**TINY), tiny_clip, T, 13, 0)
    with pytest.raises(UserError, match="below the 3 layers of this CLIP"):
        make(num_joint_layers=3)
    with pytest.raises(UserError, match="--num_context_prompts 5 is more"):
        make(num_context_prompts=5)


def test_clip_stays_as_it_is_and_all_prompts_get_a_gradient():
    model = make().train()
    assert all("prompting" in name for name, _ in model.trainable_parameters())
    video = model.encode_video(random_videos(3, T), torch.tensor([T, 3, 4]), torch.arange(3))["embedding"]
    text = model.encode_text(["a", "b c", "d"])
    F.cross_entropy(model.similarity(text, video), torch.arange(3)).backward()
    for name, parameter in model.trainable_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name

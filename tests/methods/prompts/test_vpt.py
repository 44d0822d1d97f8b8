"""VPT: its prompts are tokens of each frame whose outputs are dropped."""

import math

import pytest
import torch
import torch.nn.functional as F

from helpers.methods import disturb, make_model
from helpers.tiny import random_videos

T = 4


def test_prompts_are_tokens_of_each_frame_that_are_replaced_at_every_layer():
    model = disturb(make_model("vpt")).double().eval()
    tower, learned = model.video_encoder.tower, model.video_encoder.prompting.learned
    videos, lengths = random_videos(2, T), [T, 3]
    with torch.no_grad():
        found = model.encode_video(videos, torch.tensor(lengths))["embedding"]
        for video, n, got in zip(videos, lengths, found, strict=True):
            directions = []
            for frame in video[:n]:
                cls, patches = tower.embed(tower.normalize(frame[None]))
                tokens = torch.cat([cls[None], patches[0]])
                for block, prompts in zip(tower.blocks, learned, strict=True):
                    tokens = block(torch.cat([tokens[:1], prompts, tokens[1:]])[None])[0]  # behind the class token
                    tokens = torch.cat([tokens[:1], tokens[1 + len(prompts) :]])
                directions.append(F.normalize(tower.project(tokens[0]), dim=-1))
            torch.testing.assert_close(got, F.normalize(torch.stack(directions).mean(0), dim=-1))


def test_the_first_values_fill_the_references_range():
    model = make_model("vpt", num_prompts=200)
    learned, bound = model.video_encoder.prompting.learned, math.sqrt(6 / (3 * 8 * 8 + 32))
    assert 0.99 * bound < learned.max() <= bound and -bound <= learned.min() < -0.99 * bound
    assert learned.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_text_prompts_stand_in_every_layer_and_none_by_default():
    with torch.no_grad():
        plain, prompted = make_model("vpt"), disturb(make_model("vpt_text"))
        captions = ["a red circle", "a"]
        unprompted = make_model("zero_shot").encode_text(captions)
        assert torch.equal(plain.encode_text(captions), unprompted)
        assert (prompted.encode_text(captions) - unprompted).abs().amax(1).min() > 1e-4
    names = {name for name, _ in plain.trainable_parameters()}
    assert names == {"video_encoder.prompting.learned"}
    more = {name: tuple(p.shape) for name, p in prompted.trainable_parameters()}
    assert more.pop("text_encoder.prompting.learned") == (1, 2, 16) and more.keys() == names

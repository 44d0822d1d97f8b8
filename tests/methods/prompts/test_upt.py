"""UPT: every frame has its own prompts in every layer, and both towers' are made side by side."""

import pytest
import torch
import torch.nn.functional as F

from common.errors import UserError
from helpers.methods import disturb, make_model
from helpers.tiny import random_videos

T = 4


@torch.no_grad()
def test_each_frame_has_its_own_prompts_in_every_layer():
    model = disturb(make_model("upt")).double().eval()
    tower, prompts = model.video_encoder.tower, model.video_encoder.prompting.generator.video()
    assert prompts.shape == (3, T, 2, 32)
    videos, lengths = random_videos(2, T), [T, 3]
    found = model.encode_video(videos, torch.tensor(lengths))["embedding"]
    for video, n, got in zip(videos, lengths, found, strict=True):
        directions = []
        for t, frame in enumerate(video[:n]):
            cls, patches = tower.embed(tower.normalize(frame[None]))
            tokens = torch.cat([cls[None], patches[0]])
            for block, of_layer in zip(tower.blocks, prompts, strict=True):
                tokens = block(torch.cat([tokens, of_layer[t]])[None])[0, : len(tokens)]
            directions.append(F.normalize(tower.project(tokens[0]), dim=-1))
        torch.testing.assert_close(got, F.normalize(torch.stack(directions).mean(0), dim=-1))


@torch.no_grad()
def test_the_prompts_of_either_tower_depend_on_those_of_the_other():
    generator = disturb(make_model("upt")).text_encoder.prompting.generator
    num_text, text, video = generator.num_text, generator.text(), generator.video()
    generator.table[0, -1] += torch.randn(32)  # the last frame's, of the first layer
    assert ((generator.text()[0] - text[0]).abs().amax(-1) > 1e-4).all()
    generator.table[0, :num_text] += torch.randn(num_text, 32)
    now = generator.video()
    assert ((now[0, :-1] - video[0, :-1]).abs().amax(-1) > 1e-4).all()
    assert torch.equal(now[1:], video[1:])  # each layer's are made by themselves


def test_as_many_prompts_fit_as_the_model_was_built_for():
    with pytest.raises(UserError, match=r"UPT .* expected 4, found 3"):
        make_model("upt").encode_video(random_videos(1, 3), torch.tensor([3]))

"""VPT: its prompts are tokens of each frame whose outputs are dropped."""

import math

import pytest
import torch
import torch.nn.functional as F

from common.errors import UserError
from common.settings import range_problems
from helpers.methods import disturb, make_model
from helpers.tiny import random_videos
from modules.methods.prompts.vpt import VptSettings

T = 4


@pytest.mark.parametrize("form", ["vpt", "vpt_frames"])
def test_prompts_are_tokens_of_each_frame_that_are_replaced_at_every_layer(form):
    model = disturb(make_model(form)).double().eval()
    tower, prompting = model.video_encoder.tower, model.video_encoder.prompting
    videos, lengths = random_videos(2, T), [T, 3]
    with torch.no_grad():
        found = model.encode_video(videos, torch.tensor(lengths))["embedding"]
        for video, n, got in zip(videos, lengths, found, strict=True):
            directions = []
            for place, frame in enumerate(video[:n]):
                prompts_of_layers = prompting.learned
                if form == "vpt_frames":
                    prompts_of_layers = torch.cat([prompting.learned, prompting.of_each_frame[:, place]], dim=1)
                cls, patches = tower.embed(tower.normalize(frame[None]))
                tokens = torch.cat([cls[None], patches[0]])
                for block, prompts in zip(tower.blocks, prompts_of_layers, strict=True):
                    tokens = block(torch.cat([tokens[:1], prompts, tokens[1:]])[None])[0]  # behind the class token
                    tokens = torch.cat([tokens[:1], tokens[1 + len(prompts) :]])
                directions.append(F.normalize(tower.project(tokens[0]), dim=-1))
            torch.testing.assert_close(got, F.normalize(torch.stack(directions).mean(0), dim=-1))


def test_prompts_of_each_frame_tie_the_model_to_its_length_and_fit_no_merged_frames():
    model = make_model("vpt_frames")
    with pytest.raises(UserError, match=r"--frame_prompts.*expected 4, found 3"):
        model.encode_video(random_videos(1, 3), torch.tensor([3]))
    assert "--merge_frames" in range_problems(VptSettings(frame_prompts=2, merge_frames="1"))[0]
    assert not range_problems(VptSettings(frame_prompts=2))


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

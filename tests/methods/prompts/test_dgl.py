"""DGL: who attends to whom, what makes the prompts, and where they stand in a text."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from common.errors import UserError
from helpers.methods import disturb, make_model
from helpers.tiny import random_videos
from modules.methods.prompts.dgl import GlobalLocalScope
from modules.methods.prompts.generators import PromptGenerator
from modules.model.prompting import Extra, Prompted, VideoTokens

T, P, D = 4, 9, 32
GENERATORS = ["dgl_linear", "dgl_transformer"]


def masked_block(block, tokens, mask):
    """A block over one sequence (N, D), whose mask (N, N) says which keys each token attends to."""
    return block(tokens[None], mask=mask)[0]


def sees(frames, num_local, num_global):
    """Who attends to whom in one sequence of a video, written out pair by pair: (N, N) bool."""
    owners = [t for t in range(frames) for _ in range(1 + P + num_local)] + ["video"] * num_global
    return torch.tensor([[of == "video" or other in (of, "video") for other in owners] for of in owners])


@torch.no_grad()
@pytest.mark.parametrize("form", GENERATORS)
def test_the_image_tower_is_one_sequence_with_a_mask_written_out(form):
    model = disturb(make_model(form)).double().eval()
    tower, prompting = model.video_encoder.tower, model.video_encoder.prompting
    videos, lengths = random_videos(2, T), [T, 3]
    found = model.encode_video(videos, torch.tensor(lengths))["embedding"]
    local = prompting.generator.video().expand(-1, T, -1, -1)  # (L, T, K, D)
    for video, n, got in zip(videos, lengths, found, strict=True):
        cls, patches = tower.embed(tower.normalize(video[:n]))
        frames = [torch.cat([cls[None], patches[t]]) for t in range(n)]
        shared = prompting.global_prompts
        mask = sees(n, local.shape[2], len(shared))
        for layer, block in enumerate(tower.blocks):
            tokens = torch.cat([torch.cat([frames[t], local[layer, t]]) for t in range(n)] + [shared])
            out = masked_block(block, tokens, mask)
            frames = [part[: 1 + P] for part in out[: -len(shared)].split(1 + P + local.shape[2])]
            shared = out[-len(shared) :]
        torch.testing.assert_close(got, F.normalize(tower.project(shared[0]), dim=-1))


@torch.no_grad()
def test_a_frame_learns_of_another_only_through_the_global_prompts(tiny_clip):
    torch.manual_seed(0)
    tower, scope = tiny_clip.vision_tower(), GlobalLocalScope()
    tokens = VideoTokens(
        torch.randn(1, T, D), torch.randn(1, T, P, D), torch.ones(1, T, dtype=torch.bool), carried=torch.randn(1, 2, D)
    )
    changed = tokens.patches.clone()
    changed[0, 1, 5] += 3 * torch.randn(D)
    one, other = (
        scope.block(tower.blocks[0], Prompted(t, Extra.of_frames(torch.ones(2, D))))
        for t in (tokens, tokens.change(patches=changed))
    )
    same = (one.cls == other.cls).all(-1)[0]
    assert same.tolist() == [True, False, True, True] and (one.carried != other.carried).any(-1).all()
    after = [scope.block(tower.blocks[1], Prompted(out)) for out in (one, other)]
    assert (after[0].cls != after[1].cls).any(-1).all()  # a layer later all know


@torch.no_grad()
def test_frames_that_were_merged_weigh_as_those_they_stand_for(tiny_clip):
    """Two equal frames merged are to the global prompts what they were side by side."""
    torch.manual_seed(0)
    tower, scope = tiny_clip.vision_tower(), GlobalLocalScope()
    cls, patches, carried = torch.randn(1, 2, D), torch.randn(1, 2, P, D), torch.randn(1, 3, D)
    real = torch.tensor([[True] * 4])
    twice = VideoTokens(cls.repeat_interleave(2, 1), patches.repeat_interleave(2, 1), real, carried=carried)
    merged = scope.merge(twice)
    assert merged.cls.shape[1] == 2 and torch.equal(merged.carried, carried)
    extra = Extra.of_frames(torch.randn(2, D))
    one, other = (scope.block(tower.blocks[0], Prompted(tokens, extra)) for tokens in (twice, merged))
    torch.testing.assert_close(one.carried, other.carried)
    torch.testing.assert_close(one.patches[:, ::2], other.patches)
    single = scope.block(tower.blocks[0], Prompted(VideoTokens(cls, patches, real[:, :2], carried=carried), extra))
    assert (single.carried - other.carried).abs().max() > 1e-4  # half the weight is something else


@torch.no_grad()
def test_the_linear_generators_text_prompts_are_maps_of_the_image_towers():
    model = disturb(make_model("dgl_linear"))
    generator = model.video_encoder.prompting.generator
    assert generator is model.text_encoder.prompting.generator
    (text,) = generator.text()  # the tiny CLIP has one text layer
    for prompt, prefix, postfix in zip(generator.learned[0], text[:2], text[2:], strict=True):
        torch.testing.assert_close(prefix, generator.to_prefix.weight @ prompt + generator.to_prefix.bias)
        torch.testing.assert_close(postfix, generator.to_postfix.weight @ prompt + generator.to_postfix.bias)
    assert torch.equal(generator.video()[:, 0], generator.learned)


@pytest.mark.parametrize(("image", "text", "expected"), [(12, 12, range(12)), (4, 2, [0, 2]), (3, 5, [0, 0, 1, 1, 2])])
def test_a_text_tower_of_another_depth_takes_prompts_of_layers_spread_over_the_image_towers(image, text, expected):
    towers = SimpleNamespace(num_layers=image), SimpleNamespace(num_layers=text)
    assert PromptGenerator(*towers, num_postfix=0).text_layers.tolist() == list(expected)


@torch.no_grad()
def test_the_transformer_reads_each_layers_rows_by_themselves():
    generator = disturb(make_model("dgl_transformer")).double().video_encoder.prompting.generator
    assert generator.table.shape == (3, 3 + 1 + 2 * T, D)
    first, _, last = generator.to_text
    for layer, rows in enumerate(generator.table):
        layer_block = generator.block.layer
        read = layer_block.ln_1(rows)[None]
        rows = rows + layer_block.attn(read, read, read, need_weights=False)[0][0]
        rows = rows + layer_block.mlp(layer_block.ln_2(rows))
        for frame in range(T):  # consecutive pairs behind the text's
            torch.testing.assert_close(generator.video()[layer, frame], rows[4 + 2 * frame : 6 + 2 * frame])
        if layer == 0:
            hidden = first(rows[:4])
            torch.testing.assert_close(generator.text()[0], last(hidden * torch.sigmoid(1.702 * hidden)))


@torch.no_grad()
@pytest.mark.parametrize("form", GENERATORS)
def test_postfix_prompts_stand_before_the_end_which_alone_sees_them(form):
    model = disturb(make_model(form)).double()
    encoder, tower = model.text_encoder, model.text_encoder.tower
    (prompts,) = encoder.prompting.generator.text()
    num_postfix = encoder.prompting.generator.num_postfix
    prefix, postfix = prompts[: len(prompts) - num_postfix], prompts[len(prompts) - num_postfix :]
    captions = ["", "a", "a red circle moving left"]
    ids = encoder.tokenize(captions)
    for caption, found in zip(ids, encoder(captions), strict=True):
        end = caption.argmax()
        words = tower.embed(caption[None])[0, : end + 1]  # positions before prompts are inserted, which have none
        tokens = torch.cat([words[:1], prefix, words[1:end], postfix, words[end:]])
        out = masked_block(tower.blocks[0], tokens, torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril())
        expected = tower.ln_final(out[-1]) @ tower.text_projection
        torch.testing.assert_close(found, F.normalize(expected, dim=-1))


@pytest.mark.parametrize("form", GENERATORS)
def test_the_generator_works_once_for_a_batch_of_any_size(form, monkeypatch):
    model = make_model(form)
    calls = []
    generator = model.video_encoder.prompting.generator
    for name in ("video", "text"):
        make = getattr(generator, name)
        monkeypatch.setattr(generator, name, lambda make=make, name=name: calls.append(name) or make())
    model.train()
    for encoder in (model.video_encoder, model.text_encoder):
        encoder.checkpoint_activations = True
    video = model.encode_video(random_videos(3, T), torch.tensor([T, T, T]), torch.arange(3))["embedding"]
    text = model.encode_text(["a", "b", "c"], torch.arange(3))
    model.similarity(text, video).diagonal().sum().backward()
    assert calls == ["video", "text"]
    assert generator.video().ndim == 4  # no batch


def test_merging_is_refused_where_each_frame_has_its_prompts():
    with pytest.raises(UserError, match="--merge_frames 1: this method has prompts for each frame"):
        make_model("dgl_transformer", merge_frames="1")
    model = make_model("dgl_linear", merge_frames="1")  # whose frames have all the same
    assert model.encode_video(random_videos(2, T), torch.tensor([T, 1]))["embedding"].isfinite().all()

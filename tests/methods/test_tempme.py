"""TempMe: what merges, clip by clip, what is left of a video, and what its blocks still compute."""

import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from common.errors import UserError
from helpers.methods import disturb, make_model
from helpers.tiny import make_clip_without_values, make_tiny_clip, random_videos
from modules.clip.block import Block
from modules.methods import METHODS
from modules.methods.video.tempme import Step, TempmeSettings, join_layers, make_steps, match, merge, prime_factors
from modules.program.build import build_model

T = 4
EVERY_OTHER = slice(1, None, 2), slice(0, None, 2)


def groups_of(keys, giving, receiving, count):
    """Which patches become one, in the new order: keys (P, K) and lists of places → lists of places."""
    best = {}
    for giver in giving:
        likeness = [float(F.cosine_similarity(keys[giver], keys[to], dim=0)) for to in receiving]
        best[giver] = (max(likeness), receiving[likeness.index(max(likeness))])
    merged = sorted(giving, key=lambda giver: -best[giver][0])[:count]
    groups = [[to, *(giver for giver in merged if best[giver][1] == to)] for to in receiving]
    return groups + [[giver] for giver in giving if giver not in merged]


def mixed(patches, sizes, groups):
    """Patches (P, D) as means over groups, weighted by sizes (P,), and the sizes of these."""
    means = [sum(sizes[i] * patches[i] for i in group) / sum(sizes[i] for i in group) for group in groups]
    return torch.stack(means), torch.stack([sum(sizes[i] for i in group) for group in groups])


@pytest.mark.parametrize("parts", [EVERY_OTHER, (slice(3, None), slice(0, 3))])
def test_patches_merge_as_a_slow_loop_merges_them(parts):
    generator = torch.Generator().manual_seed(0)
    keys, patches = (torch.randn(5, 9, n, generator=generator, dtype=torch.float64) for n in (4, 6))
    sizes = torch.randint(1, 4, (5, 9), generator=generator).double()
    for count in range(4):
        shares, new_sizes = match(keys, sizes, *parts, count)
        found = merge(patches, shares)
        for row in range(5):
            giving, receiving = (list(range(9))[part] for part in parts)
            groups = groups_of(keys[row], giving, receiving, count)
            expected, expected_sizes = mixed(patches[row], sizes[row], groups)
            torch.testing.assert_close(found[row], expected)
            assert torch.equal(new_sizes[row], expected_sizes)


def test_padding_merges_first_and_weighs_nothing():
    keys, patches = torch.randn(1, 8, 4).double(), torch.randn(1, 8, 6).double()
    sizes = torch.tensor([[2.0, 1, 0, 0, 3, 0, 1, 1]]).double()  # of the giving ones places 3 and 5 are padding
    shares, new_sizes = match(keys, sizes, *EVERY_OTHER, count=2)
    assert torch.equal(new_sizes, torch.tensor([[2.0, 0, 3, 1, 1, 1]]).double())
    assert torch.equal(merge(patches, shares)[0, [0, 2, 3, 4, 5]], patches[0, [0, 4, 6, 1, 7]])
    shares, new_sizes = match(keys, sizes, *EVERY_OTHER, count=4)  # all that give, none of them into padding
    assert new_sizes.sum() == 8 and new_sizes[0, 1] == 0
    other = torch.where(sizes[..., None] > 0, keys, torch.randn(1, 8, 4).double())
    assert torch.equal(match(other, sizes, *EVERY_OTHER, count=4)[0], shares)


def slow_embedding(model, video):
    """A video (T, 3, H, W) without padding, clip by clip and patch by patch → (E,)."""
    encoder = model.video_encoder
    tower, prompting = encoder.tower, encoder.prompting
    cls, patches = tower.embed(tower.normalize(video))
    clips = [(cls[None], of_frame, torch.ones(len(of_frame)).double()) for of_frame in patches]
    joins = 0
    for block, step in zip(tower.blocks, prompting.steps, strict=True):
        if step.group > 1:
            vectors, joined = prompting.vectors[joins], []
            joins += 1
            for start in range(0, len(clips), step.group):
                members = clips[start : start + step.group]
                as_read = torch.cat([of_clip for _, of_clip, _ in members])
                first = len(members[0][1])
                everything = list(range(len(as_read)))
                groups = groups_of(as_read, everything[first:], everything[:first], step.across)
                moved = [(c + v, p + v, s) for (c, p, s), v in zip(members, vectors[start:], strict=False)]
                classes, of_clip, sizes = (torch.cat(part) for part in zip(*moved, strict=True))
                joined.append((classes, *mixed(of_clip, sizes, groups)))
            clips = joined
        after = []
        for classes, of_clip, sizes in clips:
            x, k = torch.cat([classes, of_clip]), len(classes)
            read, attn = block.layer.ln_1(x), block.layer.attn
            projected = F.linear(read, attn.in_proj_weight, attn.in_proj_bias) + block.beside_projection(read)
            query, key, value = (part.unflatten(-1, (attn.num_heads, -1)) for part in projected.chunk(3, dim=-1))
            logits = torch.einsum("qhd,khd->hqk", query, key) / math.sqrt(key.shape[-1])
            logits = logits + torch.cat([torch.zeros(k).double(), sizes.log()])
            out = torch.einsum("hqk,khd->qhd", logits.softmax(-1), value).flatten(1)
            x = x + F.linear(out, attn.out_proj.weight, attn.out_proj.bias)
            places = list(range(len(of_clip)))
            groups = groups_of(key.mean(1)[k:], places[1::2], places[::2], step.within)
            of_clip, sizes = mixed(x[k:], sizes, groups)
            x = torch.cat([x[:k], of_clip])
            x = x + block.layer.mlp(block.layer.ln_2(x))
            after.append((x[:k], x[k:], sizes))
        clips = after
    frames = F.normalize(tower.project(torch.cat([classes for classes, _, _ in clips])), dim=-1)
    return F.normalize(frames.mean(0), dim=0)


@pytest.mark.parametrize(
    ("num_frames", "more"), [(4, {}), (6, {"merge_across": 50, "merge_within": 20}), (3, {"merge_patches": 4})]
)
def test_a_video_is_embedded_as_a_slow_loop_embeds_it(num_frames, more):
    model = disturb(make_model("tempme", num_frames=num_frames, **more)).double().eval()
    videos = random_videos(2, num_frames)
    with torch.no_grad():
        found = model.encode_video(videos, torch.full((2,), num_frames))["embedding"]
        for video, embedding in zip(videos, found, strict=True):
            torch.testing.assert_close(embedding, slow_embedding(model, video))


def test_all_patches_of_real_frames_are_in_those_that_are_left():
    model = disturb(make_model("tempme", num_frames=T)).double().eval()
    encoder, seen = model.video_encoder, []
    encoder.readout.cls_only = False
    readout = encoder.readout.forward
    encoder.readout.forward = lambda tower, tokens: seen.append(tokens) or readout(tower, tokens)
    videos, lengths = random_videos(4, T), torch.tensor([4, 3, 2, 1])
    with torch.no_grad():
        whole = model.encode_video(videos, lengths)["embedding"]
        encoder.readout.cls_only = True  # the last block's other tokens are read by nobody
        torch.testing.assert_close(model.encode_video(videos, lengths)["embedding"], whole)
    sizes = seen[0].patch_sizes
    assert sizes.shape[:2] == (4, 1) and torch.equal(sizes.sum((1, 2)), 9 * lengths.double())


def test_the_published_settings_layer_by_layer():
    steps = make_steps(TempmeSettings(), 12, 12, 49)
    joined = [Step(2, 20, 4), Step(2, 26, 6), Step(3, 50, 11), Step(1, 0, 10)]
    assert steps == [Step(1, 0, 2)] * 8 + joined


class Multiplications(TorchFunctionMode):
    """Counts the multiplications of linear maps of tokens to their own width or more, and of attention."""

    def __init__(self, width):
        super().__init__()
        self.width, self.total = width, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        # the maps of low rank can be added to the weights that they stand beside
        if func is F.linear and min(args[1].shape) >= self.width:
            self.total += args[0].numel() * args[1].shape[0]
        if func is torch.addmm:
            self.total += args[1].numel() * args[2].shape[1]
        if func is F.scaled_dot_product_attention:
            query, key = args[0], args[1]
            self.total += 2 * query.numel() * key.shape[-2]
        return func(*args, **kwargs or {})


def run_on_nothing(method, monkeypatch):
    """Tokens behind each block, and multiplications in all of them, of one video of 12 frames at ViT-B/32."""
    clip, tokens, feed_forward = make_clip_without_values(), [], Block.feed_forward_branch
    with torch.device("meta"):
        model = build_model(method, METHODS[method].settings(), clip, 12, 32, 0).eval()
        videos, lengths = torch.empty(1, 12, 3, 224, 224, dtype=torch.uint8), torch.empty(1, dtype=torch.int64)
    model.video_encoder.readout.cls_only = False

    def counted(block, x):
        tokens.append(x.shape[:-1].numel())
        return feed_forward(block, x)

    with monkeypatch.context() as patch, torch.no_grad(), Multiplications(width=768) as count:
        patch.setattr(Block, "feed_forward_branch", counted)
        patch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # which no tensor without values knows
        model.to("meta").encode_video(videos, lengths)
    return tokens, count.total


def test_tokens_and_multiplications_are_as_published(monkeypatch):
    tokens, multiplications = run_on_nothing("zero_shot", monkeypatch)
    assert set(tokens) == {600} and round(multiplications / 1e9, 1) == 51.5
    tokens, multiplications = run_on_nothing("tempme", monkeypatch)
    assert tokens == [12 * (50 - 2 * layer) for layer in range(1, 9)] + [6 * 44, 3 * 56, 107, 97]
    assert round(multiplications / 1e9, 1) == 33.3


@pytest.mark.parametrize(
    ("num_frames", "num_layers", "layers"),
    [(12, 12, [8, 9, 10]), (12, 24, [16, 18, 20]), (8, 4, [1, 2, 3]), (4, 3, [1, 2]), (7, 12, [8]), (1, 12, [])],
)
def test_clips_are_joined_before_layers_that_scale_and_stay_distinct(num_frames, num_layers, layers):
    groups = prime_factors(num_frames)
    assert math.prod(groups) == num_frames and groups == sorted(groups)
    assert join_layers(len(groups), num_layers) == layers


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"prime factors, 4, and this CLIP has 3"):
        make_model("tempme", num_frames=16)
    with pytest.raises(UserError, match="--merge_frames: TempMe"):
        make_model("tempme", merge_frames="1")


def test_it_starts_from_clip():
    clip = make_tiny_clip()
    pictures = random_videos(3, 1)
    captions = ["a red circle moving left", "a"]
    text = F.normalize(clip.model.encode_text(clip.tokenizer(captions, context_length=16)), dim=-1)
    model = make_model("tempme", clip, num_frames=1, merge_patches=0, merge_within=0)
    with torch.no_grad():
        expected = clip.model.encode_image(model.video_encoder.tower.normalize(pictures[:, 0]), normalize=True)
        found = model.encode_video(pictures, torch.ones(3, dtype=torch.int64))["embedding"]
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(model.encode_text(captions), text)


@pytest.mark.parametrize("trained", [False, True])
def test_low_rank_changes_and_learned_vectors_train_and_nothing_else(trained):
    model = make_model("tempme", num_frames=T).train()
    if trained:
        disturb(model)
    video = model.encode_video(random_videos(3, T), torch.tensor([T, 3, 1]), torch.arange(3))["embedding"]
    text = model.encode_text(["a", "b c", "d"])
    F.cross_entropy(model.similarity(text, video), torch.arange(3)).backward()
    names = {name for name, _ in model.trainable_parameters()}
    assert len(names) == 2 * (3 + 1) + 2  # of a block's change two matrices, and two joins
    for name, parameter in model.trainable_parameters():
        assert parameter.grad.isfinite().all()
        # beside a matrix of zeros the other has no gradient yet
        assert (parameter.grad.abs().max() > 0) == (trained or not name.endswith("down.weight")), name

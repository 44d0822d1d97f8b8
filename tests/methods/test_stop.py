"""STOP's equations against slow loops, and what must not change a video's embedding."""

import math
from functools import partial
from types import SimpleNamespace

import av
import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F

from common.errors import UserError
from dataloaders.video.decoding import read_video
from dataloaders.video.preprocessing import resize_and_crop
from helpers.tiny import TINY_CONFIG, make_tiny_clip, random_videos
from modules.clip.block import Block
from modules.clip.loader import LoadedCLIP
from modules.kernels.convolutions import DepthwiseConv3d
from modules.methods import METHODS, zero_shot
from modules.methods.stop import inter_frame, intra_frame
from modules.methods.stop.inter_frame import InterFramePrompting, TemporalPrompter
from modules.methods.stop.intra_frame import IntraFrameOutput, IntraFramePrompting, SpatialPrompter, select_regions
from modules.methods.stop.stop import StopSettings, build, build_prompting
from modules.model.dropout import fold_in_each, row_seeds
from modules.model.measures import add_up, means, numbers
from modules.model.prompting import Extra, Prompted, VideoTokens
from modules.model.scopes import FrameScope, JointScope
from modules.model.tokens import extend_in_time, grid_conv3d, real_frames

D, GRID, P, T, B = 8, 3, 9, 5, 3
VARIANTS = [(scope, prompting) for scope in ("joint", "frame") for prompting in ("per_layer", "once")]


def tokens(seed=0, batch=B, length=T, width=D):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, P, width, dtype=torch.float64, generator=generator)


def make_intra(**changes):
    torch.manual_seed(1)
    settings = dict(num_regions=2, alpha=0.3, normalize_dynamics=True, straight_through=True) | changes
    prompter = SpatialPrompter(D, GRID, bottleneck=4, hidden=6, dropout=0.0)
    torch.nn.init.normal_(prompter.linear_out.weight)
    torch.nn.init.normal_(prompter.linear_out.bias)
    return IntraFramePrompting(D, GRID, prompter=prompter, **settings).double()


def make_inter(**changes):
    torch.manual_seed(2)
    settings = dict(eta=3.5, beta=0.7, epsilon=0.01) | changes
    prompter = TemporalPrompter(D, GRID, math.ceil(settings["eta"]), bottleneck=4, dropout=0.0)
    return InterFramePrompting(D, GRID, prompter=prompter, **settings).double()


def make_stop(clip, live=True, **settings):
    torch.manual_seed(3)
    settings = dict(num_regions=3, spatial_width=8, spatial_hidden=12, temporal_width=8) | settings
    model = build(clip, StopSettings(**settings), num_frames=T, max_words=12)
    for module in model.modules() if live else ():
        if isinstance(module, SpatialPrompter):  # P^s starts without effect; here it has one
            torch.nn.init.normal_(module.linear_out.weight, std=0.3)
    return model.eval()


def as_tokens(patches, real):
    """Patches (B, T, P, D) of videos with a class token."""
    return JointScope().join(VideoTokens(torch.zeros_like(patches[:, 0, :1]), patches, real))


def extend_as_written(tokens, real):
    last = tokens[torch.arange(len(tokens)), real.sum(1) - 1]
    filled = torch.where(real[:, :, None, None], tokens, last[:, None])
    return torch.cat([filled[:, :1], filled, filled[:, -1:]], dim=1)


def differences_as_written(tokens, real):
    return (tokens[:, 1:] - tokens[:, :-1]) * real[:, 1:, None, None]


def as_written(intra, tokens, read, attention_map, kept):
    """Intra-frame prompting with P^s at every patch, h + (r + (W^s − sg(W^s)))·p, in place of at the chosen ones."""
    real = tokens.real
    extended = extend_as_written(read, real)
    dynamics = intra.temporal_dynamics(extended)
    scores = intra.alpha * attention_map + (1 - intra.alpha) * dynamics
    chosen, regions = select_regions(scores.detach(), intra.num_regions, real)
    features = intra.prompter.features(extended)
    # where a patch is not chosen, dropout has no part in the gradient of the selection
    prompts = intra.prompter.linear_out(intra.prompter.linear_in(features).relu())
    factors = torch.ones_like(prompts)
    if kept is not None:
        of_chosen = intra.prompter.dropout.keep(torch.ones_like(kept, dtype=factors.dtype), kept)
        of_chosen = of_chosen.unflatten(1, (real.shape[1], -1))
        factors = factors.scatter(2, chosen[..., None].expand_as(of_chosen), of_chosen)
    with_mean = prompts * factors
    regions = regions + (scores - scores.detach()) * real[..., None]
    changed = tokens.change(patches=tokens.patches + regions[..., None] * with_mean)
    return IntraFrameOutput(JointScope().join(changed), regions, dynamics, scores)


def convolve(weight, volume, time_pad):
    """A depthwise 3×3×3 convolution by loops: volume(t, y, x) gives (D,), zero outside the grid."""
    out = torch.zeros(T if time_pad == "frames" else T - 1, P, D, dtype=torch.float64)
    for t in range(len(out)):
        for y in range(GRID):
            for x in range(GRID):
                for dt in (-1, 0, 1):
                    for dy in (-1, 0, 1):
                        for dx in (-1, 0, 1):
                            if 0 <= y + dy < GRID and 0 <= x + dx < GRID:
                                tap = weight[:, 0, dt + 1, dy + 1, dx + 1]
                                out[t, y * GRID + x] += tap * volume(t + dt, (y + dy) * GRID + x + dx)
    return out


# intra-frame


@pytest.mark.parametrize("classes", [1, T])
def test_attention_map_is_softmax_of_query_and_keys(classes):
    tower = make_tiny_clip().vision_tower().double()
    generator = torch.Generator().manual_seed(0)
    cls = torch.randn(B, classes, 32, dtype=torch.float64, generator=generator)
    patches = torch.randn(B, T, P, 32, dtype=torch.float64, generator=generator)
    block = tower.blocks[1]
    attn = block.layer.attn
    w_q, w_k, _ = attn.in_proj_weight.chunk(3)
    b_q, b_k, _ = attn.in_proj_bias.chunk(3)
    got = block.class_attention(cls, patches)
    for b in range(B):
        for t in range(T):
            expected = 0
            for head in range(block.num_heads):
                part = slice(head * 16, head * 16 + 16)
                query = w_q[part] @ cls[b, t if classes > 1 else 0] + b_q[part]
                scores = torch.stack([(w_k[part] @ patch + b_k[part]) @ query / 4 for patch in patches[b, t]])
                expected += scores.softmax(0) / block.num_heads
            torch.testing.assert_close(got[b, t], expected)


@pytest.mark.parametrize("normalized", [True, False])
def test_temporal_dynamics_against_loops_with_padding(normalized):
    intra = make_intra(normalize_dynamics=normalized)
    h = tokens()
    num_frames = torch.tensor([5, 3, 1])
    extended = extend_in_time(h, real_frames(num_frames, T))
    got = intra.temporal_dynamics(extended)
    for b, n in enumerate(num_frames.tolist()):
        filtered = convolve(
            intra.dynamics.weight, lambda t, j, b=b, n=n: h[b, min(max(t, 0), n - 1), j], time_pad="frames"
        )
        expected = filtered.square().sum(-1) / D
        if normalized:
            expected = expected / expected.sum(-1, keepdim=True)
        torch.testing.assert_close(got[b, :n], expected[:n])


def test_region_scores_weigh_attention_against_dynamics():
    intra = make_intra(alpha=0.3)
    h, attention = tokens(), torch.rand(B, T, P, dtype=torch.float64).softmax(-1)
    out = intra(as_tokens(h, torch.ones(B, T, dtype=torch.bool)), h, attention, None)
    torch.testing.assert_close(out.region_scores, 0.3 * attention + 0.7 * out.temporal_dynamics)


@pytest.mark.parametrize("num_regions", [1, 4, P])
def test_regions_are_the_largest_scores_of_each_frame(num_regions):
    scores = torch.rand(B, T, P, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    real = real_frames(torch.tensor([5, 2, 1]), T)
    _, regions = select_regions(scores, num_regions, real)
    for b in range(B):
        for t in range(T):
            if not real[b, t]:
                assert not regions[b, t].any()
                continue
            assert regions[b, t].sum() == num_regions
            for j in range(P):
                better = sum(scores[b, t, k] > scores[b, t, j] for k in range(P))
                assert regions[b, t, j] == float(better < num_regions)


def test_ties_go_to_the_lower_index():
    scores = torch.tensor([0.2, 0.5, 0.2, 0.2, 0.1, 0.2, 0.2, 0.2, 0.2]).view(1, 1, P)
    _, regions = select_regions(scores, 3, torch.ones(1, 1, dtype=torch.bool))
    assert regions.flatten().tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0]


def test_prompts_are_added_at_the_chosen_patches_only():
    intra = make_intra().eval()
    h, attention = tokens(), torch.rand(B, T, P, dtype=torch.float64)
    real = real_frames(torch.tensor([5, 3, 1]), T)
    out = intra(as_tokens(h, real), h, attention, None)
    patches = out.tokens.patches
    extended = extend_in_time(h, real)
    for b in range(B):
        for t in range(T):
            # P^s on the three frames alone: what it sees is exactly h_{i−1}, h_i, h_{i+1}
            three = extended[b : b + 1, t : t + 3]
            prompts = intra.prompter.prompts(intra.prompter.features(three), None)[0, 0]
            for j in range(P):
                expected = h[b, t, j] + out.region_weights[b, t, j] * prompts[j]
                torch.testing.assert_close(patches[b, t, j], expected)
                assert bool(out.region_weights[b, t, j]) == bool((patches[b, t, j] != h[b, t, j]).any())


@pytest.mark.parametrize("straight_through", [True, False])
def test_training_and_evaluation_prompt_alike(straight_through):
    intra = make_intra(straight_through=straight_through)
    h, attention = tokens(), torch.rand(B, T, P, dtype=torch.float64)
    real = real_frames(torch.tensor([5, 3, 1]), T)
    trained = intra.train()(as_tokens(h, real), h, attention, None)
    evaluated = intra.eval()(as_tokens(h, real), h, attention, None)
    torch.testing.assert_close(trained.tokens.patches, evaluated.tokens.patches)
    assert set(trained.region_weights.unique().tolist()) == {0.0, 1.0}


def test_straight_through_is_what_gives_the_selection_a_gradient():
    h, attention = tokens(), torch.rand(B, T, P, dtype=torch.float64)
    for straight_through in (True, False):
        intra = make_intra(straight_through=straight_through).train()
        intra(as_tokens(h, torch.ones(B, T, dtype=torch.bool)), h, attention, None).tokens.patches.sum().backward()
        assert (intra.dynamics.weight.grad is not None) == straight_through


@pytest.mark.parametrize("prompters", ["shared", "own"])
def test_what_dropout_leaves_differs_by_layer_and_sample_and_not_by_the_length(tiny_clip, prompters):
    model = make_stop(tiny_clip, prompters=prompters, prompt_dropout=0.3).train()
    encoder = model.video_encoder
    keys = fold_in_each(torch.tensor([5, 6]), encoder.tower.num_layers)

    def drawn(length):
        patches = torch.zeros(2, length, P, encoder.tower.width)
        return encoder.prompting.draws(keys, as_tokens(patches, torch.ones(2, length, dtype=torch.bool)))

    of_long, of_short = drawn(T), drawn(2)
    assert len(of_long) == encoder.tower.num_layers
    for long, short in zip(of_long, of_short, strict=True):
        assert long[2] is None
        for kept, of_few in zip(long[:2], short[:2], strict=True):
            assert 0.6 < kept.double().mean() < 0.8
            assert torch.equal(kept[:, : of_few.shape[1]], of_few)  # of padded or merged frames nothing is read
            assert not torch.equal(kept[0], kept[1])
    for use in (0, 1):
        assert not torch.equal(of_long[0][use], of_long[1][use])
    assert drawn(1)[0][1].shape == (2, 0, encoder.tower.width)


@pytest.mark.parametrize("settings", [{}, {"merge_frames": "1"}, {"prompters": "own", "prompt_layers": "1"}])
def test_in_training_too_a_video_does_not_depend_on_padding_or_neighbours(settings):
    model = make_stop(make_tiny_clip(), prompt_dropout=0.3, **settings).double().train()
    videos, lengths, keys = random_videos(3, T), torch.tensor([3, 1, T]), torch.tensor([8, 9, 10])
    with torch.no_grad():
        together = model.encode_video(videos, lengths, keys)["embedding"]
        for at, length in enumerate(lengths.tolist()):
            alone = model.encode_video(videos[at : at + 1, :length], lengths[at : at + 1], keys[at : at + 1])
            torch.testing.assert_close(alone["embedding"][0], together[at])
        assert not torch.allclose(model.encode_video(videos, lengths, keys + 1)["embedding"], together)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_those_of_prompts_made_at_every_patch(dropout):
    h, attention = tokens().requires_grad_(), torch.rand(B, T, P, dtype=torch.float64)
    real, intra = real_frames(torch.tensor([5, 3, 1]), T), make_intra().train()
    intra.prompter.dropout.p = dropout
    kept = intra.prompter.kept(row_seeds(torch.arange(B) + 10, T * intra.num_regions)) if dropout else None

    inputs = [h, *intra.parameters()]
    weights = tokens(seed=9)
    out, plain = (prompt(as_tokens(h, real), h, attention, kept) for prompt in (intra, partial(as_written, intra)))
    torch.testing.assert_close(out.tokens.patches, plain.tokens.patches)
    found, expected = (
        torch.autograd.grad((one.tokens.patches * weights).sum() + one.region_weights.pow(2).sum(), inputs)
        for one in (out, plain)
    )
    for one, other in zip(found, expected, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("length", "time_padding", "depth"), [(1, 1, 3), (2, 1, 3), (5, 1, 3), (3, 0, 3), (7, 0, 3), (2, 0, 2), (6, 0, 2)]
)
def test_depthwise_gradients_are_those_of_the_general_convolution(length, time_padding, depth):
    torch.manual_seed(4)
    conv = DepthwiseConv3d(D, time_padding, depth).double()
    general = torch.nn.Conv3d(D, D, (depth, 3, 3), padding=(time_padding, 1, 1), groups=D, bias=False).double()
    general.load_state_dict(conv.state_dict())
    x = tokens(length=length).requires_grad_()
    results = []
    for module in (conv, general):
        out = grid_conv3d(module, x, GRID)
        results.append((out, *torch.autograd.grad(out.pow(3).sum(), [x, module.weight])))
    for one, other in zip(*results, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other)


# inter-frame


@torch.no_grad()
def test_frame_variation_and_counts_against_loops_with_padding():
    inter = make_inter()
    h = tokens()
    regions = (torch.rand(B, T, P, generator=torch.Generator().manual_seed(1)) < 0.3).double()
    num_frames = torch.tensor([5, 3, 1])
    out = inter(h, regions, real_frames(num_frames, T), None)
    for b, n in enumerate(num_frames.tolist()):
        difference = h[b, 1:n] - h[b, : n - 1]

        def volume(i, j, difference=difference, n=n):
            return difference[i, j] if 0 <= i < n - 1 else torch.zeros(D, dtype=torch.float64)

        filtered = convolve(inter.dynamics.weight, volume, time_pad="gaps")
        raw = []
        for i in range(n - 1):
            total = 0
            for j in range(P):
                total += (1 + 0.7 * regions[b, i + 1, j]) * (filtered[i, j] ** 2).sum()
            raw.append(total / (P * D))
        for i in range(T - 1):
            expected = raw[i] / max(raw) if i < n - 1 else 0.0
            torch.testing.assert_close(out.frame_variation[b, i], torch.as_tensor(expected, dtype=torch.float64))
            count = math.ceil(3.5 * float(expected) - 1e-12)
            assert out.num_temporal_prompts[b, i] == count
            assert out.mask[b, i].tolist() == [slot < count for slot in range(4)]


def test_changes_below_the_floor_count_as_still():
    inter = make_inter(epsilon=0.01)
    h = tokens(batch=1)
    still = h[:, :1].expand(-1, T, -1, -1)
    noisy = still + 0.01 * tokens(seed=9, batch=1)
    real, regions = torch.ones(1, T, dtype=torch.bool), torch.zeros(1, T, P, dtype=torch.float64)
    assert inter(h, regions, real, None).num_temporal_prompts.max() == 4
    for video in (still, noisy):
        out = inter(video, regions, real, None)
        assert not out.mask.any() and not out.frame_variation.any()


def test_a_still_gap_in_a_moving_video_gets_no_tokens():
    inter = make_inter(epsilon=0.01)
    h = tokens(batch=1)
    h[:, 2:] = h[:, 2:3] + 1e-6 * h[:, 2:]  # frames 2, 3 and 4 show the same but for rounding
    out = inter(h, torch.zeros(1, T, P, dtype=torch.float64), torch.ones(1, T, dtype=torch.bool), None)
    assert out.num_temporal_prompts[0, :2].min() > 0
    # N^t looks one gap to each side, so gap 2 still sees the change in gap 1; gap 3 sees none
    assert out.num_temporal_prompts[0, 3] == 0 and out.frame_variation[0, 3] == 0


def test_tokens_of_a_gap_do_not_depend_on_padding():
    inter = make_inter()
    h, regions = tokens(), torch.zeros(B, T, P, dtype=torch.float64)
    padded = inter(h, regions, real_frames(torch.tensor([3, 3, 3]), T), None)
    alone = inter(h[:, :3], regions[:, :3], torch.ones(B, 3, dtype=torch.bool), None)
    torch.testing.assert_close(padded.tokens[:, :2], alone.tokens)
    torch.testing.assert_close(padded.frame_variation[:, :2], alone.frame_variation)


def test_variation_reaches_the_tokens():
    prompter = make_inter().prompter
    differences, gaps = tokens(length=T - 1), torch.ones(B, T - 1, dtype=torch.bool)
    variation = torch.rand(B, T - 1, dtype=torch.float64)
    base = prompter(differences, torch.zeros_like(variation), gaps, None)
    added = prompter(differences, variation, gaps, None) - base
    torch.testing.assert_close(added, variation[:, :, None, None] * prompter.variation_weight.expand_as(added))


# sequences


def test_a_frame_sees_the_tokens_of_the_gaps_beside_it():
    gaps = torch.arange(1, T).double().view(1, T - 1, 1, 1).expand(2, -1, 2, D)  # each token says which gap it is of
    mask = torch.ones(2, T - 1, 2, dtype=torch.bool)
    extra = Extra.of_gaps(gaps, mask=mask)
    videos = VideoTokens(torch.zeros(2, 1, D), torch.zeros(2, T, P, D), torch.ones(2, T, dtype=torch.bool))
    seen, seen_mask = FrameScope().arrange(extra, videos)
    seen, seen_mask = seen.view(2, T, 4, D)[..., 0], seen_mask.view(2, T, 4)
    for t in range(T):
        visible = seen[0, t][seen_mask[0, t]].tolist()
        assert visible == [g for gap in (t, t + 1) if 1 <= gap <= T - 1 for g in [gap] * 2]
    joint, joint_mask = JointScope().arrange(extra, videos)
    assert joint.shape == (2, (T - 1) * 2, D) and joint_mask.all()


@pytest.mark.parametrize("gap", range(T - 1))
def test_a_gaps_tokens_change_the_frames_beside_it_and_no_other(tiny_clip, gap):
    model = make_stop(tiny_clip, attention_scope="frame", prompting="once", num_regions=0, eta=2.0)
    prompting, tower = model.video_encoder.prompting, model.video_encoder.tower
    frames = []
    model.video_encoder.readout.register_forward_hook(lambda _, args, out: frames.append(tower.project(args[1].cls)))
    make_tokens = prompting.inter_frame.prompter.forward

    def changed(*args):
        made = make_tokens(*args)
        made[:, gap] += 3 * torch.randn(tower.width)
        return made

    model.encode_video(random_videos(1, T), torch.tensor([T]))
    prompting.inter_frame.prompter.forward = changed
    model.encode_video(random_videos(1, T), torch.tensor([T]))
    change = (frames[1] - frames[0]).abs().amax(-1)[0]
    assert [t for t in range(T) if change[t] > 1e-5] == [gap, gap + 1]


@pytest.mark.parametrize("scope", [JointScope(), FrameScope()])
def test_a_scope_takes_apart_what_it_joined(scope):
    patches = tokens()
    cls = torch.randn(B, 1 if scope.name == "joint" else T, D, dtype=torch.float64)
    before = VideoTokens(cls, patches, torch.ones(B, T, dtype=torch.bool))
    extra = Extra.of_frames(torch.randn(B, T, 3, D, dtype=torch.float64))

    def block(sequences, extra, mask, num_queries, read):
        return sequences[:, :num_queries]

    after = scope.block(block, Prompted(before, extra, carry=True))
    assert after.carried.shape[1] == (3 * T if scope.name == "joint" else 3)
    carried = after.carried
    for tokens_after in (after, scope.block(block, Prompted(after)), scope.block(block, Prompted(after.change()))):
        assert torch.equal(tokens_after.cls, cls) and torch.equal(tokens_after.patches, patches)
        assert torch.equal(tokens_after.carried, carried)
    assert torch.equal(scope.block(block, Prompted(after), cls_only=True).cls, cls)


@pytest.mark.parametrize(("scope", "prompting"), VARIANTS)
def test_masked_slots_change_nothing(tiny_clip, scope, prompting):
    model = make_stop(tiny_clip, attention_scope=scope, prompting=prompting)
    videos, num_frames = random_videos(2, T), torch.tensor([T, 3])
    inter = model.video_encoder.prompting.inter_frame
    plain = model.encode_video(videos, num_frames)["embedding"]
    make_tokens = inter.prompter.forward

    def filled(differences, variation, real_gaps, kept):
        made = make_tokens(differences, variation, real_gaps, kept)
        counts = torch.ceil(inter.eta * variation)
        exists = torch.arange(made.shape[2]) < counts[..., None]
        assert not exists.all()
        return torch.where(exists[..., None], made, torch.randn_like(made) * 50)

    inter.prompter.forward = filled
    torch.testing.assert_close(model.encode_video(videos, num_frames)["embedding"], plain, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("scope", "prompting"), VARIANTS)
def test_an_embedding_depends_on_its_own_video_alone(tiny_clip, scope, prompting):
    model = make_stop(tiny_clip, attention_scope=scope, prompting=prompting)
    videos, num_frames = random_videos(4, T), torch.tensor([T, 3, 1, 4])
    batch = model.encode_video(videos, num_frames)["embedding"]
    order = torch.tensor([2, 0, 3, 1])
    shuffled = model.encode_video(videos[order], num_frames[order])["embedding"]
    torch.testing.assert_close(shuffled, batch[order], atol=1e-5, rtol=0)
    for i, n in enumerate(num_frames.tolist()):
        alone = model.encode_video(videos[i : i + 1, :n], num_frames[i : i + 1])["embedding"]
        torch.testing.assert_close(alone[0], batch[i], atol=1e-5, rtol=0)
    torch.testing.assert_close(batch.norm(dim=-1), torch.ones(4))


@pytest.mark.parametrize(("scope", "prompting"), VARIANTS)
def test_a_still_video_gets_no_tokens_even_after_training(tiny_clip, scope, prompting):
    model = make_stop(tiny_clip, attention_scope=scope, prompting=prompting, prompt_dropout=0.0)
    optimizer = torch.optim.AdamW([p for _, p in model.trainable_parameters()], lr=1e-2)
    videos, full = random_videos(4, T), torch.full((4,), T)
    for step in range(3):
        model.train()
        embedding = model.encode_video(videos, full, torch.arange(4) + step)["embedding"]
        optimizer.zero_grad()
        F.cross_entropy(10 * embedding @ embedding.detach().roll(1, 0).T, torch.arange(4)).backward()
        optimizer.step()
    model.eval()
    still = videos[:, :1].expand(-1, T, -1, -1, -1)
    for video, expected in ((still, False), (videos, True)):
        for layer in model.encode_video(video, full, return_details=True)["layers"]:
            assert bool(layer["num_temporal_prompts"].any()) == expected


def test_a_still_picture_encoded_as_video_gets_no_tokens(tiny_clip, tmp_path):
    generator = np.random.default_rng(0)
    picture = np.kron(generator.integers(0, 256, (6, 6, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    moving = np.stack([np.roll(picture, 4 * t, axis=1) for t in range(20)])
    model = make_stop(tiny_clip)
    for name, frames, expected in (("still", np.repeat(picture[None], 20, 0), False), ("moving", moving, True)):
        with av.open(str(tmp_path / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
            container.mux(stream.encode())
        decoded, n = read_video(tmp_path / f"{name}.mp4", T)
        video = resize_and_crop(decoded[:n], 24)[None]
        for layer in model.encode_video(video, torch.tensor([n]), return_details=True)["layers"]:
            assert bool(layer["num_temporal_prompts"].any()) == expected


@pytest.mark.parametrize(("scope", "prompting"), VARIANTS)
def test_edges_one_frame_all_patches_no_tokens(tiny_clip, scope, prompting):
    videos = random_videos(2, T)
    for settings in ({"num_regions": P}, {"eta": 0.0}, {"num_regions": 0}, {"eta": 0.5}):
        model = make_stop(tiny_clip, attention_scope=scope, prompting=prompting, **settings)
        for length, num_frames in ((T, [T, 1]), (1, [1, 1])):
            out = model.encode_video(videos[:, :length], torch.tensor(num_frames), return_details=True)
            assert out["embedding"].isfinite().all()
            for layer in out["layers"]:
                assert not layer.get("num_temporal_prompts", torch.zeros(2, 1))[1].any()
    # one real frame has no gaps: the same with and without inter-frame prompts
    single = random_videos(2, 1), torch.tensor([1, 1])
    ways = [make_stop(tiny_clip, attention_scope=scope, prompting=prompting, eta=eta) for eta in (4.0, 0.0)]
    ways[1].video_encoder.prompting.intra_frame = ways[0].video_encoder.prompting.intra_frame
    embeddings = [way.encode_video(*single)["embedding"] for way in ways]
    torch.testing.assert_close(*embeddings)
    everywhere = make_stop(tiny_clip, attention_scope=scope, prompting=prompting, num_regions=P)
    for layer in everywhere.encode_video(videos, torch.tensor([T, T]), return_details=True)["layers"]:
        assert layer["discriminative_regions"].all()
    no_tokens = make_stop(tiny_clip, eta=0.0)
    assert no_tokens.video_encoder.prompting.inter_frame is None
    assert not [name for name, _ in no_tokens.trainable_parameters() if "inter_frame" in name]


@pytest.mark.parametrize(
    "settings",
    [{"num_regions": P + 1}, {"num_regions": -1}, {"alpha": 1.5}, {"beta": -1.0}, {"eta": -1.0}, {"epsilon": 0.0}],
)
def test_settings_out_of_range_are_refused(tiny_clip, settings):
    with pytest.raises(UserError, match=f"found {next(iter(settings.values()))}"):
        make_stop(tiny_clip, live=False, **settings)


def test_details_carry_the_papers_terms(tiny_clip):
    layers = make_stop(tiny_clip).encode_video(random_videos(2, T), torch.tensor([T, 3]), return_details=True)["layers"]
    assert len(layers) == 3
    shapes = {name: tuple(value.shape) for name, value in layers[0].items()}
    assert shapes == {
        "frame_sizes": (2, T),
        "attention_map": (2, T, P),
        "temporal_dynamics": (2, T, P),
        "region_scores": (2, T, P),
        "discriminative_regions": (2, T, P),
        "frame_variation": (2, T - 1),
        "num_temporal_prompts": (2, T - 1),
        "temporal_prompts": (2, T - 1, 4, 32),
    }


@pytest.mark.parametrize(("scope", "prompting"), VARIANTS)
@pytest.mark.parametrize("way", ["evaluation", "training", "checkpointed"])
def test_what_is_measured_are_means_of_the_details_over_real_gaps(tiny_clip, scope, prompting, way):
    settings = dict(attention_scope=scope, prompting=prompting, eta=3.5, prompt_dropout=0.0)
    model = make_stop(tiny_clip, **settings).train(way != "evaluation")
    model.video_encoder.checkpoint_activations = way == "checkpointed"
    videos, num_frames = random_videos(4, T), torch.tensor([T, 3, 1, 2])
    videos[0, 3:] = videos[0, 2]  # a gap without tokens
    out = model.encode_video(videos, num_frames, torch.arange(4), return_details=True)
    counts, variations = [], []
    for layer in out["layers"]:
        for b, n in enumerate(num_frames.tolist()):
            counts += layer["num_temporal_prompts"][b, : n - 1].tolist()
            variations += layer["frame_variation"][b, : n - 1].tolist()
    assert len(counts) == (4 + 2 + 0 + 1) * (3 if prompting == "per_layer" else 1) and 0 in counts
    measured = means([numbers(out["measures"])])
    expected = {
        "tokens_per_gap": sum(counts) / len(counts),
        "gaps_without_tokens": counts.count(0) / len(counts),
        "frame_variation": sum(variations) / len(variations),
    }
    assert list(measured) == list(expected) and measured == pytest.approx(expected, abs=1e-12)
    assert not any(value.requires_grad for value in out["measures"].values())


@pytest.mark.parametrize(("scope", "prompting"), VARIANTS)
def test_what_is_measured_does_not_depend_on_how_videos_are_shared_out(tiny_clip, scope, prompting):
    model = make_stop(tiny_clip, attention_scope=scope, prompting=prompting, eta=3.5)
    videos, num_frames = random_videos(6, T), torch.tensor([T, 3, 1, 4, T, 2])
    whole = means([numbers(model.encode_video(videos, num_frames)["measures"])])
    for sizes, processes in (([2, 4], 1), ([2, 4], 2), ([1, 2, 3], 3), ([5, 1], 2)):
        shares = [{} for _ in range(processes + 1)]  # the last process has no video
        parts = zip(videos.split(sizes), num_frames.split(sizes), strict=True)
        for number, (part, frames) in enumerate(parts):
            length = int(frames.max())  # with no more padding than it needs
            measures = model.encode_video(part[:, :length], frames)["measures"]
            shares[number % processes] = add_up(shares[number % processes], measures)
        assert means([numbers(share) for share in shares]) == pytest.approx(whole, abs=1e-6)


def test_a_gate_that_is_closed_is_seen(tiny_clip):
    open_gate, closed = (make_stop(tiny_clip, epsilon=epsilon) for epsilon in (1e-6, 1e9))
    batch = random_videos(2, T), torch.tensor([T, 3])
    measured = means([numbers(closed.encode_video(*batch)["measures"])])
    assert measured == {"tokens_per_gap": 0.0, "gaps_without_tokens": 1.0, "frame_variation": 0.0}
    measured = means([numbers(open_gate.encode_video(*batch)["measures"])])
    assert measured["tokens_per_gap"] > 1 and measured["gaps_without_tokens"] == 0


@pytest.mark.parametrize(("settings", "num_frames"), [({"eta": 0.0}, [T, 3]), ({}, [1, 1])])
@pytest.mark.parametrize("length", [1, T])
def test_nothing_is_measured_where_there_is_no_gap(tiny_clip, settings, num_frames, length):
    num_frames = torch.tensor(num_frames).clamp(max=length)
    out = make_stop(tiny_clip, **settings).encode_video(random_videos(2, length), num_frames)
    assert means([numbers(out["measures"])]) == {}


def test_nothing_is_measured_by_a_method_without_a_gate(tiny_clip):
    model = METHODS["zero_shot"].build(tiny_clip, METHODS["zero_shot"].settings(), T, 12)
    assert model.encode_video(random_videos(2, T), torch.tensor([T, 3]))["measures"] == {}


# the frozen CLIP


def test_zero_shot_is_open_clips_mean_over_frames(tiny_clip):
    model = METHODS["zero_shot"].build(tiny_clip, METHODS["zero_shot"].settings(), T, 12)
    videos, num_frames = random_videos(3, T), [T, 2, 1]
    got = model.encode_video(videos, torch.tensor(num_frames))["embedding"]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (tiny_clip.mean, tiny_clip.std))
    for video, n, embedding in zip(videos, num_frames, got, strict=True):
        frames = F.normalize(tiny_clip.model.encode_image((video[:n] / 255 - mean) / std), dim=-1)
        torch.testing.assert_close(embedding, F.normalize(frames.mean(0), dim=0), atol=1e-5, rtol=0)
    assert model.num_trainable() == 0


def test_a_frozen_clip_computes_the_same_in_training_mode():
    model = zero_shot.build(make_tiny_clip(), zero_shot.ZeroShotSettings(), T, 12)
    videos, num_frames = random_videos(2, T), torch.tensor([T, 3])
    ids = model.text_encoder.tokenize(["a red circle", "a"])
    found = []
    for mode in (True, False):
        model.train(mode)
        # the tower itself: what `encode_text` has embedded once it keeps
        found.append((model.encode_video(videos, num_frames)["embedding"], model.text_encoder._embed(ids)))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_clip_is_bit_identical_after_training():
    clip = make_tiny_clip()
    before = {name: value.clone() for name, value in clip.model.state_dict().items()}
    model = make_stop(clip)
    model.train()
    parameters = [p for _, p in model.trainable_parameters()]
    assert {id(p) for p in parameters} == {id(p) for p in model.video_encoder.prompting.parameters()}
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.2)
    for step in range(2):
        keys = torch.arange(2) + step
        embedding = model.encode_video(random_videos(2, T), torch.tensor([T, T]), keys)["embedding"]
        (embedding @ model.encode_text(["a b", "c d"]).T).diagonal().sum().backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in clip.model.state_dict().items())


@pytest.mark.parametrize(("scope", "prompting"), VARIANTS)
def test_checkpointed_activations_give_the_same_gradients_and_keep_less(scope, prompting):
    clip = make_tiny_clip()
    model = make_stop(clip, attention_scope=scope, prompting=prompting).double().train()
    gradients, kept = [], []
    for checkpointed in (False, True):
        model.video_encoder.checkpoint_activations = checkpointed
        sizes = {}

        def keep(tensor, sizes=sizes):
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = model.encode_video(random_videos(3, T), torch.tensor([T, T, 4]), torch.arange(3), True)
        assert len(out["layers"]) == (3 if prompting == "per_layer" else 1)
        parameters = [p for _, p in model.trainable_parameters()]
        gradients.append(torch.autograd.grad(out["embedding"][:, 0].sum(), parameters))
        kept.append(sum(sizes.values()))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert kept[1] < kept[0] / 3


@pytest.mark.parametrize(
    ("scope", "prompting", "checkpointed"),
    [("joint", "per_layer", False), ("frame", "once", False), ("joint", "per_layer", True), ("frame", "once", True)],
)
@pytest.mark.slow
def test_a_compiled_encoder_is_one_graph_and_computes_the_same(scope, prompting, checkpointed):
    model = make_stop(make_tiny_clip(), attention_scope=scope, prompting=prompting).double().train()
    model.video_encoder.checkpoint_activations = checkpointed
    frames, num_frames, keys = random_videos(3, T), torch.tensor([T, T, 4]), torch.arange(3)
    parameters = [p for _, p in model.trainable_parameters()]
    results = []
    for compiled in (False, True):
        if compiled:  # without a C++ compiler, which not every machine has
            model.video_encoder.compile(dynamic=False, fullgraph=True, backend="aot_eager")
        out = model.encode_video(frames, num_frames, keys)
        gradients = torch.autograd.grad(out["embedding"][:, 0].sum(), parameters)
        assert len(out["measures"]) == 3
        results.append((out["embedding"], *out["measures"].values(), *gradients))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("scope", "prompting"), VARIANTS)
def test_every_trainable_tensor_has_a_gradient(scope, prompting):
    clip = make_tiny_clip()
    model = make_stop(clip, attention_scope=scope, prompting=prompting, time_embedding=True).double().train()
    embedding = model.encode_video(random_videos(3, T), torch.tensor([T, T, 4]), torch.arange(3))["embedding"]
    weights = torch.randn(embedding.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (embedding * weights).sum().backward()
    for name, parameter in model.trainable_parameters():
        # rounding in float64 leaves 1e-17 or so
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-9, name


def test_the_number_of_parameters_at_the_defaults_on_vit_b_32():
    prompting = build_prompting(SimpleNamespace(width=768, grid=7, num_layers=12), StopSettings(), num_frames=12)
    total = sum(p.numel() for p in prompting.parameters())
    assert total == 2_066_756 <= 7_530_000
    per_token = (prompting.inter_frame.prompter.to_tokens, prompting.inter_frame.prompter.expand)
    every_patch = total - sum(p.numel() for part in per_token for p in part.parameters())
    assert every_patch <= 4_000_000


def test_time_embedding_changes_with_the_order_and_ties_the_model_to_its_length(tiny_clip):
    model = make_stop(tiny_clip, time_embedding=True)
    videos, full = random_videos(2, T), torch.tensor([T, T])
    embedding = model.video_encoder.prompting.time_embedding
    without = model.encode_video(videos, full)["embedding"]
    torch.nn.init.normal_(embedding.frames)
    assert (model.encode_video(videos, full)["embedding"] - without).abs().max() > 1e-3
    with pytest.raises(UserError, match="expected T = 5, found 4"):
        model.encode_video(videos[:, :4], torch.tensor([4, 4]))


def test_without_prompts_the_joint_scope_cannot_see_order_and_stop_can(tiny_clip):
    videos, full = random_videos(2, T), torch.tensor([T, T])
    backwards = videos.flip(1)
    for settings, sees_order in (({"ablate": "both", "text_prompts": 1}, False), ({}, True)):
        model = make_stop(tiny_clip, **settings)
        change = model.encode_video(videos, full)["embedding"] - model.encode_video(backwards, full)["embedding"]
        assert (change.abs().max() > 1e-4) == sees_order


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_a_block_in_parts_is_open_clips_own(quick_gelu):
    torch.manual_seed(5)
    model = open_clip.CLIP(**TINY_CONFIG | {"quick_gelu": quick_gelu}).double().eval().requires_grad_(False)
    clip = LoadedCLIP(model, None, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    x = torch.randn(2, 10, 32, dtype=torch.float64, requires_grad=True)
    for layer, block in enumerate(model.visual.transformer.resblocks):
        results = []
        for out in (clip.vision_tower().blocks[layer](x), block(x)):
            results.append((out, torch.autograd.grad(out.pow(3).sum(), x)[0]))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)


def feed_forward_as_written(block, tokens):
    return block.layer.mlp(block.layer.ln_2(tokens))


@pytest.mark.parametrize("prompting", ["per_layer", "once"])
def test_fifty_steps_are_those_of_the_equations_as_written(prompting):
    """In fp64: a rounding of fp32 may choose another region, and then both ways part."""

    def train():
        clip = make_tiny_clip()
        model = make_stop(clip, prompting=prompting, prompt_dropout=0.0).double().train()
        optimizer = torch.optim.AdamW([p for _, p in model.trainable_parameters()], lr=1e-3)
        text = model.encode_text(["a b", "c d", "e f", "g h"])
        losses = []
        for step in range(50):
            video = model.encode_video(random_videos(4, T, seed=step % 5), torch.tensor([T, T, T - 1, T]))
            loss = F.cross_entropy(model.similarity(text, video["embedding"]), torch.arange(4))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return torch.tensor(losses, dtype=torch.float64)

    found = train()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IntraFramePrompting, "forward", as_written)
        patch.setattr(DepthwiseConv3d, "forward", torch.nn.Conv3d.forward)
        patch.setattr(inter_frame, "frame_differences", differences_as_written)
        patch.setattr(inter_frame, "mean_square", lambda x: x.square().mean(-1))
        patch.setattr(intra_frame, "mean_square", lambda x: x.square().mean(-1))
        patch.setattr(Block, "feed_forward_branch", feed_forward_as_written)
        expected = train()
    assert expected[-5:].mean() < expected[:5].mean() - 0.1  # it learnt something
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)

"""What is read of a video attends to: maps of every method, as pictures need them, against slow loops."""

import math

import pytest
import torch

from helpers.methods import FORMS, disturb, make_model
from helpers.tiny import random_videos
from modules.clip.block import Block
from modules.methods.video import tempme

T, P, LAYERS = 4, 9, 3


def encode(model, lengths=(T, 3), frames=T, **asked):
    with torch.no_grad():
        return model.eval().encode_video(random_videos(len(lengths), frames), torch.tensor(lengths), **asked)


def looked_at(model, **kwargs):
    return encode(model, **kwargs, return_details=True, return_rollout=True)


@pytest.fixture
def attended(monkeypatch):
    """What `Block.attend` was given, a list (query, key, mask) in the order of its calls."""
    calls, attend = [], Block.attend

    def spy(self, query, key, value, mask=None):
        calls.append((query, key, mask))
        return attend(self, query, key, value, mask)

    monkeypatch.setattr(Block, "attend", spy)
    return calls


def slow_shares(query, key, mask, sequence, place):
    """How much the token at a place of a sequence attends to each key: the mean over heads, number by number."""
    keys, heads, width = key.shape[2], query.shape[1], query.shape[3]
    shares = [0.0] * keys
    for head in range(heads):
        logits = []
        for at in range(keys):
            q, k = query[sequence, head, place].tolist(), key[sequence, head, at].tolist()
            logit = sum(a * b for a, b in zip(q, k, strict=True)) / math.sqrt(width)
            if mask is not None:
                of = mask.expand(len(query), *mask.shape[1:])[sequence, 0, 0, at]
                logit = logit + of.item() if of.is_floating_point() else logit if of else -math.inf
            logits.append(logit)
        largest = max(logits)
        powers = [math.exp(logit - largest) for logit in logits]
        shares = [share + power / sum(powers) / heads for share, power in zip(shares, powers, strict=True)]
    return shares


@pytest.mark.parametrize("form", FORMS)
def test_every_method_has_maps_and_asking_for_them_changes_nothing(form):
    model = disturb(make_model(form))
    out = looked_at(model)
    assert torch.equal(out["embedding"], encode(model)["embedding"])
    maps, rollout = out["readout_attention"], out["attention_rollout"]
    assert maps.shape == (LAYERS, 2, T, P) and rollout.shape == (2, T, P)
    for found in (*maps, rollout):
        assert (found >= 0).all() and (found[1, 3] == 0).all(), "padding is in no map"
        assert (found.sum(-1) <= 1 + 1e-5).all() and (found[:, :3].sum(-1) > 0).all()
    if form.startswith(("stop", "dgl", "tempme", "vop")):  # the last layer reads the video as one sequence
        assert (maps[-1].sum((1, 2)) <= 1 + 1e-5).all() and (rollout.sum((1, 2)) <= 1 + 1e-5).all()
    assert [sizes.tolist() for sizes in out["frame_sizes"]] == [[[1.0] * T, [1.0, 1.0, 1.0, 0.0]]] * LAYERS


@pytest.mark.parametrize("form", ["stop", "dgl_linear", "zero_shot", "unipt"])
def test_without_being_asked_nothing_is_computed_for_maps(form, monkeypatch):
    model, plain = make_model(form), encode(make_model(form))
    monkeypatch.setattr(Block, "shares", None)
    with pytest.raises(TypeError):
        looked_at(model)
    calls = []
    by_heads = Block.by_heads
    monkeypatch.setattr(Block, "by_heads", lambda *args: calls.append(1) or by_heads(*args))
    assert encode(model).keys() == {"embedding", "measures"} == plain.keys()
    assert len(calls) == LAYERS * (2 if form == "dgl_linear" else 1)


@pytest.mark.parametrize("scope", ["joint", "frame"])
@pytest.mark.parametrize("prompting", ["per_layer", "once"])
@pytest.mark.parametrize("lengths", [(T, 2), (1, 3)])
def test_maps_of_stop_equal_a_slow_loop(scope, prompting, lengths, attended):
    model = disturb(make_model("stop", attention_scope=scope, prompting=prompting))
    encode(model, lengths)
    of_layers = list(attended)
    attended.clear()
    maps = encode(model, lengths, return_details=True)["readout_attention"]
    assert len(of_layers) == LAYERS
    for found, (query, key, mask) in zip(maps, of_layers, strict=True):
        for video, length in enumerate(lengths):
            for frame in range(length):
                sequence, first = (video, 1 + frame * P) if scope == "joint" else (video * T + frame, 1)
                shares = slow_shares(query, key, mask, sequence, 0)[first : first + P]
                assert found[video, frame].tolist() == pytest.approx(shares, abs=1e-6)


def test_the_map_of_dgl_is_the_first_global_prompts(attended):
    model = disturb(make_model("dgl_linear"))
    encode(model)
    of_video = attended[1::2]
    attended.clear()
    maps = encode(model, return_details=True)["readout_attention"]
    for found, (query, key, mask) in zip(maps, of_video, strict=True):
        per_frame = (key.shape[2] - query.shape[2]) // T  # class token, patches and local prompts
        for video, frame in ((0, 0), (0, 3), (1, 2)):
            shares = slow_shares(query, key, mask, video, 0)[frame * per_frame :][1 : 1 + P]
            assert found[video, frame].tolist() == pytest.approx(shares, abs=1e-6)


def test_the_joint_layers_of_vop_have_the_mean_over_their_class_tokens(attended):
    model = disturb(make_model("vop"))
    encode(model)
    query, key, mask = attended[-1]
    attended.clear()
    found = encode(model, return_details=True)["readout_attention"][-1]
    for video, length in enumerate((T, 3)):
        rows = [slow_shares(query, key, mask, video, cls) for cls in range(length)]
        mean = torch.tensor(rows).mean(0)[T : T + T * P].view(T, P)
        assert torch.allclose(found[video], mean, atol=1e-6)


@pytest.mark.parametrize("scope", ["joint", "frame"])
def test_a_merged_patch_shares_its_map_among_its_frames(scope, attended):
    """Layer 1 has frames of (3, 2) as pairs and one alone; of a pair each has half."""
    model = disturb(make_model("stop", attention_scope=scope, merge_frames="1"), 0.05)
    encode(model, (5, 3), 5)
    query, key, mask = attended[1]
    attended.clear()
    out = encode(model, (5, 3), 5, return_details=True)
    assert [sizes.tolist() for sizes in out["frame_sizes"]] == [
        [[1.0] * 5, [1.0, 1.0, 1.0, 0.0, 0.0]],
        *[[[2.0, 2.0, 1.0], [2.0, 1.0, 0.0]]] * 2,
    ]
    for video, groups in enumerate(([(0, 1), (2, 3), (4,)], [(0, 1), (2,)])):
        for group, frames in enumerate(groups):
            sequence, first = (video, 1 + group * P) if scope == "joint" else (video * 3 + group, 1)
            shares = slow_shares(query, key, mask, sequence, 0)[first : first + P]
            for frame in frames:
                found = out["readout_attention"][1, video, frame].tolist()
                assert found == pytest.approx([share / len(frames) for share in shares], abs=1e-6)


def test_the_maps_of_tempme_divide_merged_patches_among_what_they_were_made_of(attended, monkeypatch):
    """Followed by lists of the frames' patches that each one holds."""
    model = disturb(make_model("tempme", merge_patches=2))
    shares_of, real = [], tempme.match

    def match(*args):
        shares, sizes = real(*args)
        shares_of.append(shares)
        return shares, sizes

    monkeypatch.setattr(tempme, "match", match)
    encode(model, (T,))
    calls, merged = list(attended), list(shares_of)
    attended.clear()
    maps = encode(model, (T,), return_details=True)["readout_attention"]

    held = [[(frame, patch)] for frame in range(T) for patch in range(P)]  # of the patches in order, clip by clip
    clips = T
    for layer, step in enumerate(model.video_encoder.prompting.steps):
        if step.group > 1:
            clips //= step.group
            held = after(held, merged.pop(0))
        query, key, mask = calls[layer]
        classes, per_clip = T // clips, len(held) // clips
        expected = torch.zeros(T, P)
        for at, members in enumerate(held):
            clip, place = divmod(at, per_clip)
            rows = [slow_shares(query, key, mask, clip, cls)[classes + place] for cls in range(classes)]
            for frame, patch in members:
                expected[frame, patch] = sum(rows) / classes / len(members)
        assert torch.allclose(maps[layer, 0], expected, atol=1e-6)
        if layer < LAYERS - 1 and step.within:
            held = after(held, merged.pop(0))
    assert clips == 1 and not merged and len(held) < T * P


def after(held, shares):
    """What each patch holds behind a merging (N, P′, P)."""
    groups, per_group = len(shares), shares.shape[2]
    return [
        [member for old in range(per_group) if shares[group, new, old] > 0 for member in held[group * per_group + old]]
        for group in range(groups)
        for new in range(shares.shape[1])
    ]


@pytest.mark.parametrize("form", ["stop_without_both", "stop", "zero_shot"])
def test_rollout_is_the_product_of_all_layers(form, attended):
    """Of one video of three frames without padding: (I + A) / 2 of layer upon layer, from the class tokens."""
    model = disturb(make_model(form))
    encode(model, (3,), 3)
    calls = list(attended)
    attended.clear()
    found = encode(model, (3,), 3, return_rollout=True)["attention_rollout"][0]
    frames = 3 if form == "zero_shot" else 1  # sequences
    count = 1 + 3 * P // frames
    for sequence in range(frames):
        rows = torch.eye(count)
        for query, key, mask in calls:
            attention = torch.zeros(count, count)
            for place in range(query.shape[2]):  # the last layer has the class token's alone
                attention[place] = torch.tensor(slow_shares(query, key, mask, sequence, place)[:count])
            rows = (torch.eye(count) + attention) / 2 @ rows
        of = found[sequence] if frames > 1 else found
        assert torch.allclose(of.flatten(), rows[0, 1:], atol=1e-6)
    assert "attention_rollout" not in encode(model, (3,), 3, return_details=True)


def test_rollout_of_merged_frames_keeps_what_each_frame_gave():
    """Equal frames that are merged have equal maps, and the map is that of any of them."""
    model = disturb(make_model("stop", merge_frames="1,2", ablate="inter"))
    video = random_videos(1, 1).expand(-1, T, -1, -1, -1)
    with torch.no_grad():
        out = model.eval().encode_video(video, torch.tensor([T]), return_details=True, return_rollout=True)
    for maps in (*out["readout_attention"], out["attention_rollout"]):
        assert torch.allclose(maps[0], maps[0, :1].expand(T, -1), atol=1e-6)


@pytest.mark.parametrize("form", ["stop", "zero_shot", "dgl_linear", "vpt"])
def test_the_maps_of_a_video_do_not_depend_on_its_padding_and_neighbours(form):
    model = disturb(make_model(form))
    videos = random_videos(2, T)
    with torch.no_grad():
        both, alone = (
            model.eval().encode_video(v, torch.tensor(n), return_details=True, return_rollout=True)
            for v, n in ((videos, [T, 2]), (videos[1:, :2], [2]))
        )
    assert torch.allclose(both["readout_attention"][:, 1, :2], alone["readout_attention"][:, 0], atol=1e-5)
    assert torch.allclose(both["attention_rollout"][1, :2], alone["attention_rollout"][0], atol=1e-5)


def test_maps_come_without_a_gradient_and_keep_that_of_the_embedding():
    model = make_model("stop").train()
    keys, gradients = torch.arange(2), []
    for asked in (False, True):
        model.video_encoder.checkpoint_activations = asked
        model.zero_grad()
        out = model.encode_video(random_videos(2, T), torch.tensor([T, 3]), keys, return_details=asked)
        out["embedding"].sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert not out["readout_attention"].requires_grad
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("form", ["stop", "dgl_linear", "tempme", "zero_shot"])
def test_maps_keep_full_precision_where_blocks_have_a_low_one(form):
    """A patch's own features are 1 exactly: what rollout divides among patches is not rounded on the way."""
    model = disturb(make_model(form))
    exact = looked_at(model)
    with torch.autocast("cpu", torch.bfloat16):
        rough = looked_at(model)
    for name in ("readout_attention", "attention_rollout"):
        assert rough[name].dtype == torch.float32
        assert not torch.equal(rough[name], rough[name].bfloat16().float())
        assert torch.allclose(rough[name], exact[name], atol=0.01)

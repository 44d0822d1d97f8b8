"""Frames merged in pairs: what is merged, what it weighs, and what must not change."""

import pytest
import torch

from common.errors import UserError
from helpers.tiny import make_tiny_clip, random_videos
from modules.methods import METHODS
from modules.methods.base import parse_layers
from modules.methods.stop.stop import StopSettings
from modules.model.prompting import Prompted, VideoTokens
from modules.model.scopes import FrameScope
from modules.model.tokens import merge_pairs, merge_sizes
from modules.program.build import build_model

T = 5
SMALL = {"num_regions": 3, "spatial_width": 8, "spatial_hidden": 12, "temporal_width": 8}


def make(method="stop", num_frames=T, **settings):
    torch.manual_seed(0)
    settings = METHODS[method].settings(**(SMALL if method == "stop" else {}) | settings)
    model = build_model(method, settings, make_tiny_clip(), num_frames, 12, 0).double().eval()
    if method == "stop":
        for part in model.modules():
            if hasattr(part, "linear_out"):
                torch.nn.init.normal_(part.linear_out.weight, std=0.3)
    return model


def embed(model, videos, lengths, **more):
    return model.encode_video(videos, torch.as_tensor(lengths), **more)["embedding"]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5])
def test_merged_frames_are_means_by_how_many_frames_they_stand_for(length):
    values = torch.randn(2, length, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[3, 1, 2, 1, 4][:length], [2, 1, 0, 0, 0][:length]])
    merged, counts = merge_pairs(values, sizes), merge_sizes(sizes)
    for video in range(2):
        for pair in range((length + 1) // 2):
            places = [t for t in (2 * pair, 2 * pair + 1) if t < length]
            count = sum(sizes[video, t] for t in places)
            assert counts[video, pair] == count
            if count == 0:
                assert not merged[video, pair].any()
                continue
            expected = sum(sizes[video, t] * values[video, t] for t in places) / count
            torch.testing.assert_close(merged[video, pair], expected)
            if len([t for t in places if sizes[video, t]]) == 1:  # a pair with one real frame is that frame
                assert torch.equal(merged[video, pair], values[video, places[0]])


SETTINGS = [
    ("stop", {}),
    ("stop", {"prompting": "once"}),
    ("stop", {"attention_scope": "frame"}),
    ("stop", {"attention_scope": "frame", "prompting": "once"}),
    ("stop", {"frame_weight": "sum"}),
    ("stop", {"prompters": "own", "prompt_layers": "0,2"}),
    ("zero_shot", {}),
    ("clip4clip", {"sim_header": "seqLSTM"}),
    ("dgl_linear", {}),
    ("stpn", {}),
]


@pytest.mark.parametrize("scope", ["joint", "frame"])
def test_the_numbers_of_frames_go_with_the_frames(scope):
    """VoP reads them on the CPU, and the others the mask."""
    model, seen = make(attention_scope=scope, merge_frames="0,2"), []
    prompting = model.video_encoder.prompting
    before = prompting.before
    prompting.before = lambda tower, layer, tokens, keys: seen.append(tokens) or before(tower, layer, tokens, keys)
    embed(model, random_videos(4, T), [T, 4, 2, 1])
    assert [tokens.lengths.tolist() for tokens in seen] == [[3, 2, 1, 1], [3, 2, 1, 1], [2, 1, 1, 1]]
    assert all(torch.equal(tokens.lengths, tokens.real.sum(1)) for tokens in seen)


@pytest.mark.parametrize(("method", "settings"), SETTINGS)
@pytest.mark.parametrize("layers", ["1", "0,1,2", "2"])
def test_padding_and_neighbours_change_nothing(method, settings, layers):
    model = make(method, merge_frames=layers, **settings)
    videos, lengths = random_videos(4, T), [T, 4, 2, 1]
    together = embed(model, videos, lengths)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(4).double())
    for i, n in enumerate(lengths):
        torch.testing.assert_close(embed(model, videos[i : i + 1, :n], [n])[0], together[i])
    assert (together[:3] - embed(make(method, **settings), videos, lengths)[:3]).abs().amax(1).min() > 1e-6
    # one frame cannot be merged
    torch.testing.assert_close(together[3], embed(make(method, **settings), videos, lengths)[3])


@pytest.mark.parametrize(
    "settings",
    [{}, {"attention_scope": "frame"}, {"prompting": "once"}, {"attention_scope": "frame", "prompting": "once"}],
)
def test_a_still_videos_embedding_stays_its_pictures(settings):
    model = make(merge_frames="0,1,2", **settings)
    still = random_videos(2, 1).expand(-1, T, -1, -1, -1)
    picture = embed(model, still[:, :1], [1, 1])
    for length in range(1, T + 1):
        torch.testing.assert_close(embed(model, still[:, :length], [length] * 2), picture)


@pytest.mark.parametrize("scope", ["joint", "frame"])
def test_without_prompts_merged_copies_weigh_as_the_frames_that_they_are(scope):
    """Each frame shown twice and merged before the first layer is the video itself."""
    settings = {"ablate": "both", "text_prompts": 1, "attention_scope": scope}
    for weight in ("mean", "sum") if scope == "joint" else ("mean",):
        videos = random_videos(2, 3)
        twice = videos.repeat_interleave(2, dim=1)
        merged = embed(make(frame_weight=weight, merge_frames="0", **settings), twice, [6, 4])
        plain = embed(make(frame_weight=weight, **settings), twice, [6, 4])
        torch.testing.assert_close(merged, plain)


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"prompting": "once"}])
def test_what_tokens_weigh_as_keys_in_one_sequence(settings):
    """Behind a merge: patches as many frames as they hold, tokens of gaps the mean of the frames beside them."""
    found = {}
    model = make(frame_weight="sum", merge_frames="1", eta=2.0, epsilon=1e-9, ablate="intra", **settings)
    block = model.video_encoder.tower.blocks[1]
    attend = block.attention_branch

    def attention(read, extra, mask, num_queries):
        found["weights"] = mask[:, 0, 0].exp()
        return attend(read, extra, mask, num_queries)

    block.attention_branch = attention
    layers = model.encode_video(random_videos(1, 5), torch.tensor([5]), return_details=True)["layers"]
    patches = torch.tensor([2.0, 2.0, 1.0]).repeat_interleave(9)
    weights = found["weights"][0].float()
    torch.testing.assert_close(weights[: 1 + 27], torch.cat([torch.ones(1), patches]))
    of_gaps = weights[28:].view(2, 2)
    if settings:  # made before the merge of frames 0 and 1, 2 and 3: the gaps between the pairs stay, of weight one
        shown = layers[0]["num_temporal_prompts"][0, 1::2]
        expected = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    else:
        shown = layers[1]["num_temporal_prompts"][0]
        expected = torch.tensor([[2.0, 2.0], [1.5, 1.5]])
    for gap in range(2):
        for slot in range(2):
            assert of_gaps[gap, slot] == (expected[gap, slot] if slot < shown[gap] else 0)


@torch.no_grad()
def test_a_frames_own_sequence_keeps_the_tokens_outside_the_pair():
    model = make(attention_scope="frame", prompting="once", num_regions=0, eta=2.0, epsilon=1e-9, merge_frames="1")
    seen = {}
    for layer in (0, 1):
        block = model.video_encoder.tower.blocks[layer]

        def forward(tokens, extra, mask, num_queries, read, layer=layer, run=block.forward):
            seen[layer] = tokens.detach(), mask
            out = run(tokens, extra, mask, num_queries, read)
            seen[layer, "out"] = out
            return out

        block.forward = forward
    model.encode_video(random_videos(1, 5), torch.tensor([5]))
    before = seen[0, "out"][:, 10:]  # (5, 4, D): two of the gap before each frame, two of the gap behind it
    after, mask = seen[1][0][:, 10:], seen[1][1][:, 0, 0, 10:]
    assert after.shape[:2] == (3, 4)
    for pair in range(3):
        torch.testing.assert_close(after[pair, :2], before[2 * pair, :2])
        if 2 * pair + 1 < 5:
            torch.testing.assert_close(after[pair, 2:], before[2 * pair + 1, 2:])
    assert torch.isneginf(mask[0, :2]).all() and torch.isneginf(mask[2, 2:]).all()  # beyond the ends
    # beside patches that stand for two frames a token of one weighs half
    shown = mask.exp()[1].unique().tolist()
    assert set(shown) <= {0.0, 0.5} and 0.5 in shown


def test_maps_name_the_frames_that_they_stand_for_and_only_real_gaps_are_measured():
    model = make(merge_frames="1,2")
    out = model.encode_video(random_videos(2, T), torch.tensor([T, 3]), return_details=True)
    assert [layer["frame_sizes"].int().tolist() for layer in out["layers"]] == [
        [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]],
        [[2, 2, 1], [2, 1, 0]],
        [[4, 1], [3, 0]],
    ]
    gaps = (4 + 2) + (2 + 1) + (1 + 0)
    assert out["measures"]["tokens_per_gap"][1] == gaps
    made = sum(layer["num_temporal_prompts"][layer["frame_sizes"][:, 1:] > 0].sum().item() for layer in out["layers"])
    assert out["measures"]["tokens_per_gap"][0] == made


def test_without_the_flag_nothing_is_another():
    videos, lengths = random_videos(3, T), [T, 3, 1]
    for settings in ({}, {"attention_scope": "frame", "prompting": "once"}):
        one, other = make(**settings), make(merge_frames="", **settings)
        assert torch.equal(embed(one, videos, lengths), embed(other, videos, lengths))


def test_prompts_are_made_before_the_layers_that_are_named():
    videos, lengths = random_videos(2, T), [T, 3]
    named = make(prompt_layers="0,2").encode_video(videos, torch.tensor(lengths), return_details=True)
    assert len(named["layers"]) == 2
    assert torch.equal(embed(make(prompt_layers="0,1,2"), videos, lengths), embed(make(), videos, lengths))
    own = make(prompters="own", prompt_layers="2")
    assert len(own.video_encoder.prompting.inter_frame) == 1


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("stop", {"merge_frames": "1,3"}, "names layer 3: this CLIP has layers 0 to 2"),
        ("stop", {"merge_frames": "1,1"}, "--merge_frames names a layer twice"),
        ("stop", {"merge_frames": "one"}, "--merge_frames must be numbers"),
        ("stop", {"merge_frames": "1", "time_embedding": True}, "--time_embedding has an embedding for each frame"),
        ("stop", {"prompt_layers": "7"}, "--prompt_layers names layer 7"),
        ("stop", {"prompt_layers": "1,x"}, "--prompt_layers must be numbers"),
        ("stop", {"prompt_layers": "1", "prompting": "once"}, "--prompting once prompts before the first layer only"),
        ("clip4clip", {"merge_frames": "1", "sim_header": "seqTransf"}, "has a position for each frame"),
        ("vop", {"merge_frames": "1", "num_joint_layers": 1}, "has a position for each frame"),
    ],
)
def test_what_makes_no_sense_is_refused(method, settings, message):
    with pytest.raises(UserError, match=message):
        make(method, **settings)


def test_layers_are_read_in_any_order():
    assert parse_layers("8, 4") == (4, 8) and parse_layers("") == ()
    settings = StopSettings(merge_frames="8, 4", prompt_layers="2,0")
    assert settings.merge_before == (4, 8)
    assert settings == StopSettings(merge_frames="4,8", prompt_layers="0,2")


def test_gradients_flow_through_merged_frames():
    model = make(merge_frames="1").train()
    videos, keys = random_videos(2, T), torch.arange(2)
    embedding = model.encode_video(videos, torch.tensor([T, 4]), keys)["embedding"]
    (embedding * torch.randn(embedding.shape, dtype=torch.float64)).sum().backward()
    for name, parameter in model.trainable_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-9, name


@torch.no_grad()
def test_tokens_of_a_frame_that_belong_to_no_gap_weigh_in_a_merged_one_as_before(tiny_clip):
    """Two equal frames merged are the frame itself, with what is carried beside it."""
    scope, block = FrameScope(), tiny_clip.vision_tower().blocks[0]
    cls, patches, carried = torch.randn(2, 1, 32), torch.randn(2, 1, 9, 32), torch.randn(2, 3, 32)
    real = torch.ones(2, 4, dtype=torch.bool)
    single = VideoTokens(cls, patches, real[:, :1], carried=carried)
    repeated = VideoTokens(
        cls.repeat(1, 4, 1), patches.repeat(1, 4, 1, 1), real, carried=carried.repeat_interleave(4, dim=0)
    )
    merged = scope.merge(scope.merge(repeated))
    assert merged.cls.shape == cls.shape
    expected, found = (scope.block(block, Prompted(tokens)) for tokens in (single, merged))
    torch.testing.assert_close(found.cls, expected.cls)
    torch.testing.assert_close(found.carried, expected.carried)

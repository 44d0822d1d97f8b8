"""STOP's choices beside the equations: what frames weigh, what decays, the text side, adapters, widths."""

import json
from dataclasses import replace
from types import SimpleNamespace

import open_clip
import pytest
import torch

from common.errors import UserError
from common.settings import range_problems
from helpers.paths import ROOT
from helpers.runs import checkpoint, run
from helpers.tiny import TINY_CONFIG, TINY_TRAINING, make_tiny_clip, random_videos
from modules.kernels.convolutions import DepthwiseConv3d
from modules.methods import METHODS
from modules.methods.adapters.bottleneck import BottleneckAdapter
from modules.methods.stop.inter_frame import InterFramePrompting
from modules.methods.stop.intra_frame import IntraFramePrompting
from modules.methods.stop.stop import WIDTHS, StopSettings, build_prompting
from modules.model.tokens import grid_conv3d
from modules.program.build import build_model
from modules.program.loading import load_run
from modules.runtime.precision import PRECISIONS, choose_precision
from modules.training.optimization import build_optimizer

T, D, P = 5, 32, 9
SMALL = {"num_regions": 3, "spatial_width": 8, "spatial_hidden": 12, "temporal_width": 8}
CAPTIONS = ["a red circle", "a", "blue square moving left and right"]


def make(clip=None, **settings):
    return build_model("stop", StopSettings(**SMALL | settings), clip or make_tiny_clip(), T, 12, 0).eval()


def alive(model):
    """The model with prompters that have an effect from the start, as after training."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.trainable_parameters():
        if not parameter.any():
            with torch.no_grad():
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
            assert parameter.any(), name
    return model


# what frames weigh


@pytest.mark.parametrize("num_frames", [T, 3, 1])
def test_a_still_videos_embedding_is_the_pictures_where_frames_weigh_as_their_mean(num_frames):
    pictures = random_videos(2, 1)
    videos = pictures.expand(-1, T, -1, -1, -1).clone()
    videos[:, num_frames:] = 7  # padding
    lengths = torch.full((2,), num_frames)
    zero_shot = build_model("zero_shot", METHODS["zero_shot"].settings(), make_tiny_clip(), T, 12, 0).eval()
    picture = zero_shot.encode_video(pictures, torch.ones(2, dtype=torch.long))["embedding"]
    for weight, same in (("mean", True), ("sum", num_frames == 1)):
        embedding = make(frame_weight=weight).encode_video(videos, lengths)["embedding"]
        assert ((embedding - picture).abs().max() < 1e-6) == same, weight


@pytest.mark.parametrize("prompting", ["per_layer", "once"])
@pytest.mark.parametrize("num_frames", [T, 3])
def test_frames_that_are_repeated_weigh_no_more(prompting, num_frames):
    """Prompts that the model adds are the same for the same frames; only what they weigh could differ."""
    model = alive(make(prompting=prompting, num_regions=P, eta=0.0)).double()
    frames = random_videos(2, 1).expand(-1, num_frames, -1, -1, -1)
    one = model.encode_video(frames[:, :1], torch.ones(2, dtype=torch.long))["embedding"]
    several = model.encode_video(frames, torch.full((2,), num_frames))["embedding"]
    torch.testing.assert_close(several, one)


@torch.no_grad()
@pytest.mark.parametrize("prompting", ["per_layer", "once"])
def test_patches_and_temporal_tokens_weigh_a_frames_share_in_every_block(prompting):
    """In place of one each, so that the tokens' share beside the patches stays what it is."""
    masks = {}
    lengths = torch.tensor([T, 3])
    for weight in ("mean", "sum"):
        model = alive(make(frame_weight=weight, prompting=prompting)).double()
        for layer, block in enumerate(model.video_encoder.tower.blocks):

            def attention(read, extra, mask, num_queries, key=(weight, layer), block=block):
                masks[key] = mask[:, 0, 0]
                return type(block).attention_branch(block, read, extra, mask, num_queries)

            block.attention_branch = attention
        model.encode_video(random_videos(2, T), lengths)
    for layer in range(3):
        shown, weights = masks["sum", layer], masks["mean", layer].exp()
        assert shown[:, 1 + T * P :].any() and (weights[:, 1 + T * P :] > 0).any()  # there are temporal tokens
        torch.testing.assert_close(weights[:, 0], torch.ones(2).double())
        exists = torch.where(weights > 0, 1.0, 0.0)
        torch.testing.assert_close(weights[:, 1:], exists[:, 1:] / lengths.double()[:, None])
        same = slice(None) if prompting == "once" or layer == 0 else slice(1 + T * P)  # tokens made alike
        assert torch.equal(exists[:, same].bool(), shown[:, same])


# what decays


def test_n_s_and_n_t_do_not_decay_and_other_weights_do():
    model = make(text_prompts=2, side_adapters=4, time_embedding=True)
    optimizer = build_optimizer(model.how_parameters_train(), lr=0.1, weight_decay=0.2)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    kernels = {id(module.weight) for module in model.modules() if isinstance(module, DepthwiseConv3d)}
    assert len(kernels) == 2 and len(decay) == sum(1 for _ in model.trainable_parameters())
    for name, parameter in model.trainable_parameters():
        expected = 0.0 if parameter.ndim == 1 or id(parameter) in kernels else 0.2
        assert decay[id(parameter)] == expected, name


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_frame_variation_does_not_depend_on_the_scale_of_n_t(scale):
    model = make().double()
    noise = torch.randint(-3, 4, (2, T, 3, 24, 24), generator=torch.Generator().manual_seed(1))
    still = random_videos(2, 1).expand(-1, T, -1, -1, -1)
    videos = torch.cat([random_videos(2, T), (still.long() + noise).clamp(0, 255).to(torch.uint8)])

    def variation():
        layers = model.encode_video(videos, torch.full((4,), T), return_details=True)["layers"]
        return torch.stack([layer["frame_variation"] for layer in layers])

    before = variation()
    with torch.no_grad():
        model.video_encoder.prompting.inter_frame.dynamics.weight *= scale
    after = variation()
    assert before[:, :2].max() == 1
    assert ((before == 0) == (after == 0)).all()
    torch.testing.assert_close(after, before)


def test_an_older_checkpoint_says_what_changed_and_can_be_evaluated_but_not_continued(tiny_run, tmp_path, capsys):
    assert run(tiny_run, tmp_path / "run", *TINY_TRAINING, "--epochs", "1", "--frame_weight", "sum") == 0
    for name in ("last.pt", "best.pt"):
        content = checkpoint(tmp_path / "run", name)
        for setting in ("frame_weight", "text_prompts", "side_adapters", "prompters", "spatial_reduce"):
            del content["identity"][setting]
        content["model"]["video_encoder.prompting.inter_frame.dynamics.weight"].fill_(0.1)  # 27·0.01
        groups = content["optimizer"]["param_groups"]
        undecayed = next(group for group in groups if group["weight_decay"] == 0)
        groups[-1]["params"].append(undecayed["params"].pop(0))
        torch.save(content, tmp_path / "run" / name)
    said = "it is 0.27 times what it was"
    assert run(tiny_run, tmp_path / "eval", "--do_eval", "--init_model", str(tmp_path / "run")) == 0
    assert said in (tmp_path / "eval" / "log.txt").read_text()
    assert load_run(tmp_path / "run").settings.frame_weight == "sum"
    capsys.readouterr()
    assert run(tiny_run, tmp_path / "run", *TINY_TRAINING, "--epochs", "1", "--frame_weight", "sum") == 1
    assert "of an earlier version" in capsys.readouterr().err


# the text side


def deep_clip():
    """The tiny CLIP with two text layers."""
    torch.manual_seed(0)
    config = TINY_CONFIG | {"text_cfg": TINY_CONFIG["text_cfg"] | {"layers": 2}}
    return replace(make_tiny_clip(), model=open_clip.CLIP(**config).eval().requires_grad_(False))


def test_text_prompts_are_seen_by_all_but_the_start_token_at_no_position():
    model = make(deep_clip(), text_prompts=3).double()
    encoder = model.text_encoder
    assert encoder.context_length == 16 and encoder.prompting.learned.shape == (2, 3, 16)
    assert 0.01 < encoder.prompting.learned.std() < 0.03
    with torch.no_grad():
        encoder.prompting.learned.normal_()
    found = model.encode_text(CAPTIONS)
    tower, ids = encoder.tower, encoder.tokenize(CAPTIONS)
    tokens = tower.embed(ids)
    mask = torch.full((12, 15), -torch.inf).double().triu(1)
    mask[:, 12:] = 0
    mask[0, 12:] = -torch.inf
    for block, learned in zip(tower.blocks, encoder.prompting.learned, strict=True):
        layer = block.layer
        read = layer.ln_1(torch.cat([tokens, learned.expand(3, -1, -1)], dim=1))
        tokens = tokens + layer.attn(read[:, :12], read, read, attn_mask=mask, need_weights=False)[0]
        tokens = tokens + layer.mlp(layer.ln_2(tokens))
    expected = tower.project(tokens, ids.argmax(-1))
    torch.testing.assert_close(found, torch.nn.functional.normalize(expected, dim=-1))


def test_a_side_adapter_adds_a_tenth_of_its_bottleneck_to_what_the_mlp_adds():
    model = alive(make(side_adapters=4)).double()
    block = model.video_encoder.tower.blocks[1]
    adapter, layer = block.beside_mlp, block.layer
    tokens = torch.randn(2, 6, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    read = layer.ln_1(tokens)
    after = tokens + layer.attn(read, read, read, need_weights=False)[0]
    hidden = (after @ adapter.down.weight.T + adapter.down.bias).clamp_min(0)
    beside = 0.1 * (hidden @ adapter.up.weight.T + adapter.up.bias)
    torch.testing.assert_close(block(tokens), after + layer.mlp(layer.ln_2(after)) + beside)
    assert beside.abs().max() > 0.01 and adapter.down.out_features == 4


def test_captions_are_embedded_anew_where_the_text_side_trains_and_kept_where_it_does_not():
    for settings, trains in (({}, False), ({"text_prompts": 2}, True), ({"side_adapters": 2}, True)):
        model = make(**settings).train()
        assert model.encode_text(CAPTIONS).requires_grad == trains
        before = model.encode_text(CAPTIONS).detach()
        alive(model)
        with torch.no_grad():
            for name, parameter in model.trainable_parameters():
                if name.startswith("text_encoder"):
                    parameter += torch.randn_like(parameter)
        assert bool((model.encode_text(CAPTIONS) - before).abs().max() > 1e-4) == trains


def test_side_adapters_start_without_effect_and_stand_in_both_towers(vit_b_32):
    plain, adapted = make(), make(side_adapters=4)
    videos, lengths = random_videos(2, T), torch.tensor([T, 3])
    assert torch.equal(
        plain.encode_video(videos, lengths)["embedding"], adapted.encode_video(videos, lengths)["embedding"]
    )
    torch.testing.assert_close(plain.encode_text(CAPTIONS), adapted.encode_text(CAPTIONS))
    alive(adapted)
    for encode in (lambda model: model.encode_video(videos, lengths)["embedding"], lambda m: m.encode_text(CAPTIONS)):
        assert (encode(plain) - encode(adapted)).abs().max() > 1e-3
    added = build_model("stop", StopSettings(side_adapters=32), vit_b_32, 12, 32, 0).num_trainable()
    assert added - build_model("stop", StopSettings(), vit_b_32, 12, 32, 0).num_trainable() == 999_168
    for module in vit_b_32.model.modules():  # they stand beside CLIP's layers, not in them
        assert not isinstance(module, BottleneckAdapter)


def test_every_added_parameter_gets_a_gradient_and_a_videos_embedding_is_its_own():
    model = alive(make(text_prompts=2, side_adapters=4, prompters="own", spatial_reduce=6)).double().train()
    videos, lengths = random_videos(3, T), torch.tensor([T, T, 4])
    keys = torch.arange(3)
    video = model.encode_video(videos, lengths, keys)["embedding"]
    weights = torch.randn(video.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ((video + model.encode_text(CAPTIONS, keys)) * weights).sum().backward()
    for name, parameter in model.trainable_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-9, name
    model.eval()
    together = model.encode_video(videos, lengths)["embedding"]
    alone = model.encode_video(videos[2:, :4], lengths[2:])["embedding"]
    torch.testing.assert_close(alone[0], together[2])


# widths


def prompters(**settings):
    vit_b_32 = SimpleNamespace(width=768, grid=7, num_layers=12)
    return build_prompting(vit_b_32, StopSettings(**settings), num_frames=12)


def count(**settings):
    return sum(p.numel() for p in prompters(**settings).parameters())


def test_each_layers_own_prompters_keep_to_the_papers_number_of_parameters():
    assert count(prompters="own") <= 7_530_000
    assert count(prompters="own") == 12 * count(**WIDTHS["own"])
    assert count(prompters="own") + 12 * 8 * 512 <= 7_530_000  # with the text prompts


def test_of_a_layers_own_prompters_few_parameters_act_at_every_patch():
    own = prompters(prompters="own")
    spatial, temporal = own.intra_frame[0].prompter, own.inter_frame[0].prompter
    elsewhere = (spatial.linear_in, spatial.linear_out, temporal.to_tokens, temporal.expand)
    at_every_patch = [own.intra_frame[0], own.inter_frame[0]]
    counts = [sum(p.numel() for module in part for p in module.parameters()) for part in (at_every_patch, elsewhere)]
    assert counts[0] - counts[1] - temporal.variation_weight.numel() <= 1_000_000 / 3


def test_the_documentation_has_the_numbers_of_parameters():
    page = (ROOT / "docs" / "method.md").read_text()
    for title, settings in (
        ("defaults", {}),
        ("`--spatial_reduce 64`", {"spatial_reduce": 64}),
        ("`--prompters own`", {"prompters": "own"}),
    ):
        prompting = prompters(**settings)
        parts = [[], [], [], []]
        for module in prompting.modules():
            if isinstance(module, IntraFramePrompting | InterFramePrompting):
                first = 0 if isinstance(module, IntraFramePrompting) else 2
                parts[first] += module.dynamics.parameters()
                parts[first + 1] += module.prompter.parameters()
        counts = [sum(p.numel() for p in part) for part in parts]
        assert sum(counts) == sum(p.numel() for p in prompting.parameters())
        assert f"| {title} | {' | '.join(f'{n:,}' for n in [*counts, sum(counts)])} |" in page
    assert f"adds {12 * 8 * 512:,} and `--side_adapters 32` 999,168" in page


def test_a_layers_own_prompters_prompt_that_layer():
    model = alive(make(prompters="own"))
    videos, lengths = random_videos(2, T), torch.tensor([T, 3])

    def layers():
        return model.encode_video(videos, lengths, return_details=True)["layers"]

    before = layers()
    with torch.no_grad():
        model.video_encoder.prompting.inter_frame[1].prompter.variation_weight += 1
    changed = [
        not torch.equal(a["temporal_prompts"], b["temporal_prompts"]) for a, b in zip(before, layers(), strict=True)
    ]
    assert changed[:2] == [False, True]


def test_widths_follow_the_prompters_unless_they_are_given():
    assert StopSettings().temporal_width == WIDTHS["shared"]["temporal_width"]
    own = StopSettings(prompters="own", temporal_width=32)
    assert own.temporal_width == 32 and own.spatial_width == WIDTHS["own"]["spatial_width"]
    assert not range_problems(own)
    with pytest.raises(UserError, match="--prompters own"):
        make(prompters="own", prompting="once")


def test_a_linear_before_the_first_convolution_leaves_it_as_many_channels():
    with_linear = make(spatial_reduce=6).video_encoder.prompting.intra_frame.prompter
    assert with_linear.reduce.weight.shape == (6, D) and with_linear.conv_in.in_channels == 6
    assert count(spatial_reduce=64) < count() - 1_000_000
    tokens = torch.randn(2, T + 2, P, D)
    by_hand = grid_conv3d(with_linear.conv_in, tokens @ with_linear.reduce.weight.T + with_linear.reduce.bias, 3)
    expected = grid_conv3d(with_linear.conv_out, by_hand.clamp_min(0), 3)
    torch.testing.assert_close(with_linear.features(tokens), expected)
    state = make().video_encoder.prompting.intra_frame.prompter.state_dict()
    assert not [name for name in state if name.startswith("reduce")]  # an older checkpoint's names


# precision


@pytest.mark.parametrize("name", PRECISIONS)
def test_regions_and_counts_are_never_chosen_in_tf32(name, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    choose_precision(name, torch.device("cpu"))
    assert not torch.backends.cudnn.allow_tf32


# what is left out

HALVES = {"none": {"intra", "inter"}, "intra": {"inter"}, "inter": {"intra"}, "both": set()}


@pytest.mark.parametrize("settings", [{}, {"prompters": "own"}, {"prompting": "once"}, {"time_embedding": True}])
@pytest.mark.parametrize("ablate", HALVES)
def test_what_is_left_out_is_not_there_and_all_that_is_there_trains(ablate, settings):
    model = alive(make(ablate=ablate, text_prompts=2, **settings)).train()
    prompting = model.video_encoder.prompting
    there = {"intra": prompting.intra_frame, "inter": prompting.inter_frame}
    assert {half for half, prompter in there.items() if prompter is not None} == HALVES[ablate]
    output = model.encode_video(random_videos(3, T), torch.tensor([T, 3, T]), torch.arange(3), return_details=True)
    for layer in output["layers"]:
        assert ("discriminative_regions" in layer) == ("intra" in HALVES[ablate])
        assert ("frame_variation" in layer) == ("inter" in HALVES[ablate])
    assert bool(output["measures"]) == ("inter" in HALVES[ablate])
    similarity = model.similarity(model.encode_text(CAPTIONS, torch.arange(3)), output["embedding"])
    torch.nn.functional.cross_entropy(similarity, torch.arange(3)).backward()
    for name, parameter in model.trainable_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("ablate", "numbers"),
    [("intra", {"num_regions": 0}), ("inter", {"eta": 0.0}), ("both", {"num_regions": 0, "eta": 0})],
)
def test_leaving_out_has_one_name_however_it_is_said(ablate, numbers):
    assert StopSettings(ablate=ablate) == StopSettings(**numbers) == StopSettings(ablate=ablate, **numbers)
    assert StopSettings(**numbers).ablate == ablate
    assert StopSettings().ablate == "none"


def test_the_halves_are_the_whole():
    whole, *halves = (make(ablate=ablate).num_trainable() for ablate in ("none", "intra", "inter"))
    assert sum(halves) == whole and min(halves) > 0


def test_with_both_halves_left_out_something_else_must_train():
    with pytest.raises(UserError, match=r"--ablate both leaves nothing to train: give --text_prompts.* zero_shot"):
        make(num_regions=0, eta=0.0)
    for trains in ({"text_prompts": 1}, {"side_adapters": 2}, {"time_embedding": True}):
        assert make(ablate="both", **trains).num_trainable() > 0


def test_a_checkpoint_says_what_was_left_out_and_another_is_refused(tiny_run, tmp_path, capsys):
    small = [*TINY_TRAINING, "--epochs", "1"]
    assert run(tiny_run, tmp_path / "train", *small, "--ablate", "inter") == 0
    identity = checkpoint(tmp_path / "train", "best.pt")["identity"]
    assert identity["eta"] == 0 and "ablate" not in identity  # as before there was the flag
    evaluated = ["--do_eval", "--init_model", str(tmp_path / "train" / "best.pt")]
    for flags in ([], ["--ablate", "inter"], ["--eta", "0"]):
        assert run(tiny_run, tmp_path / "eval", *evaluated, *flags) == 0
        settings = json.loads((tmp_path / "eval" / "config.json").read_text())["settings"]
        assert (settings["ablate"], settings["eta"], settings["num_regions"]) == ("inter", 0, 3)
    assert run(tiny_run, tmp_path / "other", *evaluated, "--ablate", "both", "--text_prompts", "1") == 1
    assert run(tiny_run, tmp_path / "other", *evaluated, "--eta", "2") == 1
    assert "--eta 2.0, trained with 0" in capsys.readouterr().err
    assert run(tiny_run, tmp_path / "train", *small) == 1  # another model does not go on in its folder
    assert "eta: was 0.0, is 4.0" in capsys.readouterr().err
    assert run(tiny_run, tmp_path / "none", *small, "--ablate", "both") == 1
    assert "--ablate both leaves nothing to train" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


# the controls


def run_controls(model, videos, lengths, keys=None):
    return model.encode_video(videos, lengths, keys, return_details=True)["layers"]


def test_dynamics_of_differences_are_those_of_a_kernel_whose_sum_over_time_is_zero_and_see_change_alone():
    torch.manual_seed(5)
    intra = build_prompting(make_tiny_clip().vision_tower(), StopSettings(**SMALL, dynamics_input="differences"), T)
    intra = intra.intra_frame.double()
    h = torch.randn(2, T + 2, P, D, dtype=torch.float64)
    before, behind = intra.dynamics.weight.unbind(2)  # of h_i − h_{i−1} and of h_{i+1} − h_i
    of_frames = torch.nn.Conv3d(D, D, 3, padding=(0, 1, 1), groups=D, bias=False).double()
    with torch.no_grad():
        of_frames.weight.copy_(torch.stack([-before, before - behind, behind], dim=2))
        strength = grid_conv3d(of_frames, h, 3).square().mean(-1)
        torch.testing.assert_close(intra.temporal_dynamics(h), strength / strength.sum(-1, keepdim=True))
        h[:, :, 0] = h[:, :1, 0]  # a corner that stands still, beside neighbours that do not
        h[:, :4] = h[:, :1]  # the first frames are one picture
        dynamics = intra.temporal_dynamics(h)
    assert (dynamics[:, :2] == 0).all() and (dynamics[:, 3:] > 0).all()


def test_a_still_videos_embedding_is_the_pictures_where_dynamics_are_of_differences():
    pictures = random_videos(2, 1)
    model = alive(make(dynamics_input="differences"))
    videos = pictures.expand(-1, T, -1, -1, -1).contiguous()
    embeddings = [
        model.encode_video(frames, torch.full((2,), frames.shape[1]))["embedding"] for frames in (videos, pictures)
    ]
    torch.testing.assert_close(*embeddings, rtol=0, atol=1e-5)


def test_random_regions_are_drawn_of_the_sample_its_step_and_its_layer_in_training():
    model = alive(make(selection="random")).train()
    videos, lengths, keys = random_videos(1, T).expand(3, -1, -1, -1, -1), torch.full((3,), T), torch.tensor([5, 6, 5])
    drawn = torch.stack([layer["discriminative_regions"] for layer in run_controls(model, videos, lengths, keys)])
    assert (drawn.sum(-1) == 3).all() and set(drawn.unique().tolist()) == {0, 1}
    assert torch.equal(drawn[:, 0], drawn[:, 2]) and not torch.equal(drawn[:, 0], drawn[:, 1])
    flat = drawn[:, :2].flatten(0, 2)  # (L·2·T, P): all draws but for those that are equal
    assert len(flat.unique(dim=0)) > len(flat) / 2
    other = run_controls(model, random_videos(3, T, seed=9), lengths, keys)  # nothing of the video is in them
    assert torch.equal(drawn, torch.stack([layer["discriminative_regions"] for layer in other]))


@torch.no_grad()
def test_random_regions_are_every_patch_as_often_as_another():
    model = make(selection="random").train()
    keys = torch.arange(400) * 7919
    layer = run_controls(model, random_videos(1, T).expand(400, -1, -1, -1, -1), torch.full((400,), T), keys)[1]
    often = layer["discriminative_regions"].flatten(0, 1).mean(0)  # 2,000 frames: standard error 0.0105
    assert (often - 3 / P).abs().max() < 0.045


def test_in_evaluation_random_regions_differ_by_frame_and_layer_and_are_every_videos():
    model = alive(make(selection="random")).double().eval()
    videos, lengths = random_videos(3, T), torch.tensor([T, T, 4])
    layers = run_controls(model, videos, lengths)
    drawn = torch.stack([layer["discriminative_regions"] for layer in layers])
    assert torch.equal(drawn[:, 0], drawn[:, 1])
    assert len({tuple(row.tolist()) for row in drawn[:, 0].flatten(0, 1)}) > T
    together = model.encode_video(videos, lengths)["embedding"]
    alone = model.encode_video(videos[2:, :4], lengths[2:])["embedding"]
    torch.testing.assert_close(alone[0], together[2])
    assert "region_scores" not in layers[0] and "attention_map" not in layers[0]


def test_prompts_are_added_where_random_regions_are():
    model = alive(make(selection="random", ablate="inter")).double().eval()
    encoder, seen = model.video_encoder, []
    before = encoder.prompting.before

    def spy(tower, layer, tokens, draws):
        patches = tokens.patches.clone()
        prompted = before(tower, layer, tokens, draws)
        changed = (prompted.tokens.patches - patches).abs().sum(-1) > 0
        seen.append(torch.equal(changed, prompted.details["discriminative_regions"].bool()))
        return prompted

    encoder.prompting.before = spy
    model.encode_video(random_videos(2, T), torch.tensor([T, 3]))
    assert seen == [True] * 3


def test_a_constant_count_is_every_real_gaps_also_of_a_still_video():
    model = make(token_count="constant", eta=2.5).eval()
    still = random_videos(1, 1).expand(-1, T, -1, -1, -1)
    layers = run_controls(model, torch.cat([random_videos(1, T), still]), torch.tensor([T, 3]))
    for layer in layers:
        assert layer["num_temporal_prompts"].tolist() == [[3] * (T - 1), [3, 3, 0, 0]]
    by_variation = run_controls(make(eta=2.5), still, torch.tensor([T]))
    assert not by_variation[0]["num_temporal_prompts"].any()


def test_all_of_the_controls_trains_and_none_has_more_parameters():
    whole = make().num_trainable()
    n_s = 27 * D
    for settings, count in (
        ({"selection": "random"}, whole - n_s),
        ({"token_count": "constant"}, whole),
        ({"selection": "random", "prompters": "own"}, make(prompters="own").num_trainable() - 3 * n_s),
    ):
        model = alive(make(**settings)).double().train()
        assert model.num_trainable() == count
        video = model.encode_video(random_videos(3, T), torch.tensor([T, T, 4]), torch.arange(3))["embedding"]
        (video * torch.randn(video.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
        for name, parameter in model.trainable_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 1e-9, name

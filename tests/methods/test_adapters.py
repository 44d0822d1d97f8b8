"""Biases, adapters and LoRA: where they stand, what they compute, where they start and what of them trains."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from helpers.methods import disturb, make_model
from helpers.tiny import random_videos
from modules.methods.adapters.between import SpaceTimeAdapter
from modules.methods.adapters.parallel import ParallelAdapter
from modules.model.readouts import Frames

T, D, GRID = 4, 32, 3
CAPTIONS = ["a red circle", "a", "blue square moving left and right"]
LENGTHS = torch.tensor([T, 2, 1])
METHODS = ["bias", "adapter_attn", "adapter_ffn", "lora", "visual_text_adapter", "video_text_adapter"]


def towers(model):
    return model.video_encoder.tower, model.text_encoder.tower


def both(model, keys=None, lengths=LENGTHS, videos=None):
    """The embeddings of some videos and of some captions."""
    videos = random_videos(3, T) if videos is None else videos
    video = model.encode_video(videos, lengths, keys)["embedding"]
    return torch.cat([video, model.encode_text(CAPTIONS, keys)])


def gradients(model, embeddings):
    weights = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model.zero_grad()
    (embeddings * weights).sum().backward()
    return {name: p.grad for name, p in model.trainable_parameters()}


# all of them


@pytest.mark.parametrize("method", METHODS)
def test_training_starts_from_clip(method):
    made, clip = make_model(method).eval(), make_model("zero_shot").eval()
    torch.testing.assert_close(both(made), both(clip), rtol=0, atol=1e-6)
    disturb(made)
    assert (both(made) - both(clip)).abs().amax(1).min() > 1e-4  # each video, and each caption


@pytest.mark.parametrize("method", METHODS)
def test_everything_has_a_gradient_that_has_an_effect(method):
    model = disturb(make_model(method)).double().train()
    for name, gradient in gradients(model, both(model, torch.arange(3))).items():
        if method == "video_text_adapter" and name.startswith("video_encoder.tower.blocks.2."):
            assert gradient is None, name  # nothing reads the last block's patches
        else:
            assert gradient.abs().max() > 1e-9, name


@pytest.mark.parametrize("method", METHODS)
def test_weights_decay_and_biases_do_not(method):
    model = make_model(method)
    weights = {id(p) for name, p in model.trainable_parameters() if name.endswith("weight")}
    decays = {id(parameter): decays for parameter, _, decays in model.how_parameters_train()}
    assert decays == {id(p): id(p) in weights for _, p in model.trainable_parameters()}
    assert bool(weights) == (method != "bias")


@pytest.mark.parametrize("method", ["adapter_attn", "video_text_adapter", "lora"])
def test_gradients_of_activations_that_are_computed_again_are_the_same(method):
    """Also where the model has run on other videos since."""
    found = []
    for again in (False, True):
        model = disturb(make_model(method, adapter_dropout=0.5)).double().train()
        model.video_encoder.checkpoint_activations = model.text_encoder.checkpoint_activations = again
        one = both(model, torch.arange(3))
        other = both(model, torch.arange(3) + 7, LENGTHS.flip(0), random_videos(3, T, seed=1))
        found.append(gradients(model, one + other.square()))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        if gradient is None:
            assert found[1][name] is None
        else:
            torch.testing.assert_close(found[1][name], gradient, msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_merged_videos_depend_on_themselves_alone(method):
    model = disturb(make_model(method, merge_frames="1,2")).double().eval()
    videos = random_videos(3, T)
    found = both(model)[:3]
    for video, length, expected in zip(videos, LENGTHS, found, strict=True):
        alone = model.encode_video(video[None, :length], length[None])["embedding"]
        torch.testing.assert_close(alone[0], expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("length", [1, 2, T])
def test_bf16_is_near_fp32(method, length):
    model = disturb(make_model(method), 0.05).train()
    found = []
    for low in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            embeddings = both(model, torch.arange(3), torch.full((3,), length), random_videos(3, length))
        found.append((embeddings, gradients(model, embeddings.double())))
    (exact, exact_gradients), (near, near_gradients) = found
    assert near.dtype == torch.float32
    assert F.cosine_similarity(near, exact).min() > 0.999
    flat = [
        torch.cat([gradient.flatten() for gradient in of.values() if gradient is not None])
        for of in (exact_gradients, near_gradients)
    ]
    assert F.cosine_similarity(*flat, dim=0) > 0.99


# biases


def test_all_biases_train_and_nothing_else():
    model = make_model("bias")
    trained = {name for name, _ in model.trainable_parameters()}
    assert trained == {name for name, _ in model.named_parameters() if name.endswith("bias")}
    block = {"ln_1.bias", "ln_2.bias", "attn.in_proj_bias", "attn.out_proj.bias", "mlp.c_fc.bias", "mlp.c_proj.bias"}
    expected = {"video_encoder.tower.ln_pre.bias", "video_encoder.tower.ln_post.bias"}
    expected |= {f"video_encoder.tower.blocks.{i}.layer.{name}" for i in range(3) for name in block}
    expected |= {"text_encoder.tower.ln_final.bias"} | {f"text_encoder.tower.blocks.0.layer.{name}" for name in block}
    assert trained == expected


def test_keys_biases_change_nothing():
    model = make_model("bias").double().eval()
    before = both(model)
    for tower in towers(model):
        for block in tower.blocks:
            with torch.no_grad():
                block.layer.attn.in_proj_bias[tower.width : 2 * tower.width] += 1
    torch.testing.assert_close(both(model), before)


# in parallel


@pytest.mark.parametrize(("method", "place"), [("adapter_attn", "beside_attention"), ("adapter_ffn", "beside_mlp")])
def test_a_parallel_adapter_adds_a_tenth_of_its_bottleneck_to_its_branch(method, place):
    model = disturb(make_model(method)).double().eval()
    for tower in towers(model):
        for block in tower.blocks:
            layer, adapter = block.layer, getattr(block, place)
            tokens = torch.randn(2, 6, tower.width, dtype=torch.float64)

            def beside(x, adapter=adapter):
                hidden = (x @ adapter.down.weight.T + adapter.down.bias).clamp_min(0)
                return 0.1 * (hidden @ adapter.up.weight.T + adapter.up.bias)

            read = layer.ln_1(tokens)
            after = tokens + layer.attn(read, read, read, need_weights=False)[0]
            after = after + beside(tokens) if method == "adapter_attn" else after
            expected = after + layer.mlp(layer.ln_2(after))
            expected = expected + beside(after) if method == "adapter_ffn" else expected
            torch.testing.assert_close(block(tokens), expected)
            torch.testing.assert_close(block(tokens, num_queries=1), expected[:, :1])
            assert beside(tokens).abs().max() > 1e-3


def test_parallel_adapters_start_as_lora_does():
    for method, settings in (("adapter_attn", {}), ("adapter_ffn", {"adapter_width": 16})):
        adapters = [m for m in make_model(method, **settings).modules() if isinstance(m, ParallelAdapter)]
        assert len(adapters) == 4
        for adapter in adapters:
            assert adapter.down.out_features == settings.get("adapter_width", 4)
            assert not any(tensor.any() for tensor in (adapter.up.weight, adapter.up.bias, adapter.down.bias))
            bound = adapter.down.in_features**-0.5  # √(6 / ((1 + a²)·D)) with a = √5
            assert 0.8 * bound < adapter.down.weight.abs().max() <= bound


@pytest.mark.parametrize(("method", "place"), [("adapter_attn", "beside_attention"), ("adapter_ffn", "beside_mlp")])
def test_dropout_is_drawn_for_each_video_frame_and_caption(method, place):
    model = disturb(make_model(method, adapter_dropout=0.5)).double().train()
    still, lengths = random_videos(1, 1).expand(3, T, -1, -1, -1), torch.full((3,), T)
    keys, outputs = torch.tensor([5, 6, 5]), []
    first = getattr(model.video_encoder.tower.blocks[0], place)
    hook = first.dropout.register_forward_hook(lambda module, arguments, output: outputs.extend(output))
    embedded = both(model, keys, lengths, still)
    hook.remove()
    assert torch.equal(embedded[0], embedded[2]) and (embedded[0] - embedded[1]).abs().max() > 1e-4
    for one, other in itertools.combinations(outputs[: 2 * T], 2):  # frames of two videos, all of one picture
        assert not torch.equal(one, other)
    # padding and neighbours have no part in it
    alone = model.encode_video(still[1:2, :2], torch.tensor([2]), keys[1:2])["embedding"]
    among = model.encode_video(still, torch.tensor([T, 2, 1]), keys)["embedding"]
    torch.testing.assert_close(alone[0], among[1])
    one, other = (model.encode_text(["a", "a"], torch.tensor(pair)) for pair in ([5, 6], [6, 5]))
    torch.testing.assert_close(one, other.flip(0))
    assert (one[0] - one[1]).abs().max() > 1e-4
    for encode in (lambda: model.encode_video(still, lengths), lambda: model.encode_text(CAPTIONS)):
        with pytest.raises(ValueError, match="needs one key a sample"):
            encode()
    model.eval()
    assert torch.equal(both(model, keys, lengths, still), both(model, None, lengths, still))


# LoRA


def test_lora_is_a_change_of_the_joined_projections():
    model = disturb(make_model("lora", lora_scale=0.5), 0.3).double().eval()
    changed = make_model("zero_shot").double().eval()
    for own, other in zip(towers(model), towers(changed), strict=True):
        for block, plain in zip(own.blocks, other.blocks, strict=True):
            down, up = block.beside_projection.down.weight, block.beside_projection.up.weight
            assert down.shape == (2, own.width) and up.shape == (3 * own.width, 2)
            with torch.no_grad():
                plain.layer.attn.in_proj_weight += 0.5 * up @ down
    torch.testing.assert_close(both(model), both(changed))
    block, plain = (of.video_encoder.tower.blocks[0] for of in (model, changed))
    tokens, extra = (torch.randn(2, n, D, dtype=torch.float64) for n in (5, 3))
    torch.testing.assert_close(block(tokens, extra, num_queries=2), plain(tokens, extra, num_queries=2))


# between attention and MLP


def test_an_adapter_between_adds_its_bottleneck_to_what_attention_leaves():
    model = disturb(make_model("visual_text_adapter", adapter_scale=0.7)).double().eval()
    for tower in towers(model):
        for block in tower.blocks:
            layer, adapter = block.layer, block.between
            tokens = torch.randn(2, 6, tower.width, dtype=torch.float64)
            read = layer.ln_1(tokens)
            after = tokens + layer.attn(read, read, read, need_weights=False)[0]
            hidden = after @ adapter.down.weight.T + adapter.down.bias
            hidden = hidden * torch.sigmoid(1.702 * hidden)
            after = after + 0.7 * (hidden @ adapter.up.weight.T + adapter.up.bias)
            torch.testing.assert_close(block(tokens), after + layer.mlp(layer.ln_2(after)))


def slow_space_time_adapter(adapter, frames):
    """What an ST-Adapter adds to the patches of one video (T, P, D), place by place."""
    hidden = frames @ adapter.down.weight.T + adapter.down.bias
    hidden = hidden.unflatten(1, (GRID, GRID))
    seen = torch.zeros_like(hidden)
    length = len(frames)
    for t, i, j in itertools.product(range(length), range(GRID), range(GRID)):
        for a, b, c in itertools.product((-1, 0, 1), repeat=3):
            if 0 <= t + a < length and 0 <= i + b < GRID and 0 <= j + c < GRID:
                seen[t, i, j] += adapter.conv.weight[:, 0, 1 + a, 1 + b, 1 + c] * hidden[t + a, i + b, j + c]
    seen = seen * torch.sigmoid(1.702 * seen)
    return (seen @ adapter.up.weight.T + adapter.up.bias).flatten(1, 2)


@torch.no_grad()
def test_video_adapters_convolve_the_patches_of_each_videos_real_frames():
    model = disturb(make_model("video_text_adapter"), 0.2).double().eval()
    tower = model.video_encoder.tower
    videos = random_videos(3, T)
    found = both(model)[:3]
    for video, length, got in zip(videos, LENGTHS, found, strict=True):
        cls, patches = tower.embed(tower.normalize(video[:length]))
        tokens = torch.cat([cls.expand(length, 1, -1), patches], dim=1)
        for block in tower.blocks:
            layer = block.layer
            read = layer.ln_1(tokens)
            tokens = tokens + layer.attn(read, read, read, need_weights=False)[0]
            added = slow_space_time_adapter(block.between, tokens[:, 1:])
            assert added.abs().mean() > 1e-2
            tokens = torch.cat([tokens[:, :1], tokens[:, 1:] + added], dim=1)
            tokens = tokens + layer.mlp(layer.ln_2(tokens))
        of_frames = F.normalize(tower.project(tokens[:, 0]), dim=-1)
        torch.testing.assert_close(got, F.normalize(of_frames.mean(0), dim=-1))


@torch.no_grad()
def test_a_frame_reaches_as_far_as_the_layers_and_no_other_video():
    """Class tokens see what the block before did, so that three blocks carry a patch over two frames."""
    model = disturb(make_model("video_text_adapter", num_frames=8)).double().eval()
    model.video_encoder.readout = Frames()
    videos = random_videos(2, 8)
    other = videos.clone()
    other[0, 3] = 255 - other[0, 3]
    lengths = torch.tensor([8, 8])
    one, two = (model.encode_video(v, lengths)["embedding"] for v in (videos, other))
    changed = (one - two).abs().amax(-1) > 1e-9
    assert changed[0].tolist() == [1 <= t <= 5 for t in range(8)]
    assert not changed[1].any()


def test_in_the_first_step_the_convolution_trains_and_what_is_around_it_waits():
    model = make_model("video_text_adapter").double().train()
    found = gradients(model, both(model))
    for layer in (0, 1):
        name = f"video_encoder.tower.blocks.{layer}.between"
        assert found[f"{name}.conv.weight"].any() and found[f"{name}.up.bias"].any()
        assert not any(found[f"{name}.{other}"].any() for other in ("down.weight", "down.bias", "up.weight"))
    adapter = model.video_encoder.tower.blocks[0].between
    assert isinstance(adapter, SpaceTimeAdapter) and adapter.conv.bias is None
    assert not any(tensor.any() for tensor in (adapter.conv.weight, adapter.down.bias, adapter.up.bias))
    assert adapter.down.weight.any() and adapter.up.weight.any()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["adapter_attn", "lora", "video_text_adapter"])
def test_a_compiled_encoder_is_one_graph_and_computes_the_same(method):
    model = disturb(make_model(method)).double().train()
    results = []
    for compiled in (False, True):
        if compiled:
            model.video_encoder.checkpoint_activations = True
            model.video_encoder.compile(dynamic=False, fullgraph=True, backend="aot_eager")
        embedding = model.encode_video(random_videos(3, T), LENGTHS, torch.arange(3))["embedding"]
        parameters = [p for name, p in model.trainable_parameters() if ".blocks.0." in name and "video" in name]
        results.append((embedding, *torch.autograd.grad(embedding[:, 0].sum(), parameters)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)

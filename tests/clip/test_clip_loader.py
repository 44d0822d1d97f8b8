"""Weight sources: OpenAI's release form, open_clip folders, and what is refused."""

import hashlib
import json
import random
import socket
import time

import huggingface_hub
import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from common.errors import UserError
from helpers.tiny import TINY_CONFIG, make_tiny_clip, save_clip_folder
from modules.clip.loader import (
    OPENAI_NAMES,
    LoadedCLIP,
    WeightsError,
    known_context_length,
    load_clip,
    published_file,
    unknown_host,
)
from modules.clip.vision import UnsupportedCLIP
from modules.model import text_encoder
from modules.model.text_encoder import GROUP, TextEncoder


class Holder(torch.nn.Module):
    """A module tree that holds tensors under given names; what an archive of OpenAI's is to a loader."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def save_openai_archive(model, path, resolution, change=lambda state: None):
    """Save a CLIP as OpenAI released its own: TorchScript, half precision, three extra buffers."""
    open_clip.model.convert_weights_to_fp16(model)
    state = dict(model.state_dict())
    change(state)
    buffers = {"input_resolution": resolution, "context_length": model.context_length, "vocab_size": model.vocab_size}
    root = Holder()
    state |= {k: torch.tensor(v) for k, v in buffers.items()}
    for name, tensor in state.items():
        *parents, leaf = name.split(".")
        module = root
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, Holder())
            module = module._modules[parent]
        if name in buffers:
            module.register_buffer(leaf, tensor)
        else:
            module.register_parameter(leaf, torch.nn.Parameter(tensor, requires_grad=False))
    torch.jit.script(root).save(str(path))


@pytest.fixture(scope="module")
def vit_b_32(tmp_path_factory):
    """A folder with a random ViT-B/32 under OpenAI's file name."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    save_openai_archive(open_clip.create_model("ViT-B-32-quickgelu"), folder / "ViT-B-32.pt", 224)
    return folder


def test_vit_b_32_in_openais_form_equals_open_clips_own_loader(vit_b_32):
    path = vit_b_32 / "ViT-B-32.pt"
    ours = load_clip("ViT-B/32", vit_b_32, trust_weights=True)
    theirs = open_clip.load_openai_model(str(path), precision="fp32", device="cpu")
    assert (ours.mean, ours.std) == (theirs.visual.image_mean, theirs.visual.image_std)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    texts = open_clip.get_tokenizer("ViT-B-32")(["a video of a dog", "two people talk"])
    with torch.no_grad():
        torch.testing.assert_close(ours.model.encode_image(images), theirs.encode_image(images))
        torch.testing.assert_close(ours.model.encode_text(texts), theirs.encode_text(texts))
        # plain ViT-B-32 is another model: GELU instead of QuickGELU
        plain = open_clip.create_model("ViT-B-32")
        plain.load_state_dict(ours.model.state_dict())
        assert (plain.eval().encode_image(images) - theirs.encode_image(images)).abs().max() > 1e-3
        tower = ours.vision_tower()
        cls, patches = tower.embed(images)
        tokens = torch.cat([cls.expand(2, 1, -1), patches], dim=1)
        for layer in range(tower.num_layers):
            tokens = tower.blocks[layer](tokens)
        torch.testing.assert_close(tower.project(tokens[:, 0]), theirs.encode_image(images), atol=1e-5, rtol=1e-4)
    assert not any(p.requires_grad or p.dtype != torch.float32 for p in ours.model.parameters())
    by_path = load_clip(str(path), trust_weights=True)
    torch.testing.assert_close(by_path.model.visual.proj, ours.model.visual.proj)


def test_a_wrong_checksum_is_refused_and_says_so(vit_b_32):
    path = vit_b_32 / "ViT-B-32.pt"
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    expected = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
    assert published_file("ViT-B-32") == ("ViT-B-32.pt", expected)
    with pytest.raises(WeightsError, match=f"(?s){expected}.*{found}.*--trust_weights"):
        load_clip("ViT-B/32", vit_b_32)
    with pytest.raises(WeightsError, match=f"(?s)one of OpenAI's releases.*{found}.*--trust_weights"):
        load_clip(str(path))


def test_wrong_shapes_are_refused_even_when_trusted(tmp_path):
    torch.manual_seed(0)
    config = {"embed_dim": 64, "quick_gelu": True}
    config |= {"vision_cfg": {"image_size": 64, "patch_size": 32, "width": 64, "layers": 1, "head_width": 64}}
    config |= {"text_cfg": {"context_length": 77, "vocab_size": 512, "width": 64, "heads": 1, "layers": 1}}
    save_openai_archive(open_clip.CLIP(**config), tmp_path / "ViT-B-32.pt", 64)
    with pytest.raises(WeightsError, match=r"(?s)expected \(768, 3, 32, 32\), found \(64, 3, 32, 32\)"):
        load_clip("ViT-B/32", tmp_path, trust_weights=True)
    assert load_clip(str(tmp_path / "ViT-B-32.pt"), trust_weights=True).image_size == 64

    def change(state):
        state["visual.proj"] = state["visual.proj"][:, :8].clone()

    save_openai_archive(open_clip.CLIP(**config), tmp_path / "cut.pt", 64, change)
    with pytest.raises(WeightsError, match=r"(?s)cut\.pt.*visual\.proj"):
        load_clip(str(tmp_path / "cut.pt"), trust_weights=True)


@pytest.mark.parametrize("content", [b"", b"no weights", None])
def test_a_file_that_is_no_archive_is_refused(tmp_path, content):
    path = tmp_path / "weights.pt"
    if content is None:
        torch.save({"visual.proj": torch.zeros(1)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"weights\.pt: expected a TorchScript archive"):
        load_clip(str(path), trust_weights=True)


def test_an_open_clip_folder_loads_with_its_own_architecture(tmp_path):
    made = make_tiny_clip()
    loaded = load_clip(str(save_clip_folder(tmp_path / "clip", made.model)))
    assert loaded.vision_tower().blocks[0].num_heads == 2 and loaded.image_size == 24
    image = torch.randn(1, 3, 24, 24)
    torch.testing.assert_close(loaded.model.encode_image(image), made.model.encode_image(image))


def test_a_folder_that_is_incomplete_or_does_not_fit_is_refused(tmp_path):
    made = make_tiny_clip()
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"open_clip_config\.json is missing"):
        load_clip(str(tmp_path / "empty"))
    wider = TINY_CONFIG | {"vision_cfg": TINY_CONFIG["vision_cfg"] | {"image_size": 32}}
    folder = save_clip_folder(tmp_path / "other", made.model, wider)
    with pytest.raises(WeightsError, match=r"positional_embedding: expected \(17, 32\), found \(10, 32\)"):
        load_clip(str(folder))
    (folder / "open_clip_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(WeightsError, match="not a safetensors file"):
        load_clip(str(folder))


@pytest.mark.parametrize(
    ("name", "message"),
    [("ViT-Z/99", "no such file, folder or model"), ("ViT-B-32:laion9", "open_clip knows .*laion2b_s34b_b79k")],
)
def test_unknown_names_are_refused_with_what_there_is(name, message):
    with pytest.raises(WeightsError, match=message):
        load_clip(name)


def test_towers_of_another_structure_are_refused():
    tiny = make_tiny_clip()
    averaged = open_clip.CLIP(**TINY_CONFIG | {"vision_cfg": TINY_CONFIG["vision_cfg"] | {"pool_type": "avg"}})
    for model, message in (
        (open_clip.create_model("RN50"), "ModifiedResNet"),
        (averaged, "attention pooling instead of a class token"),
    ):
        with pytest.raises(UnsupportedCLIP, match=message):
            LoadedCLIP(model, tiny.tokenizer, tiny.mean, tiny.std).vision_tower()


# captions


def test_captions_are_cut_with_start_and_end_kept(tiny_clip):
    encoder = TextEncoder(tiny_clip.text_tower(), tiny_clip.tokenizer, max_words=6)
    tokens = encoder.tokenize(["one two three four five six seven", "one"])
    start, end = 49406, 49407
    assert tokens.shape == (2, 6)
    assert tokens[0, 0] == start and tokens[0, 5] == end and not tokens[1, 3:].any()
    assert tokens[1].tolist()[:3] == [start, tiny_clip.tokenizer(["one"])[0, 1].item(), end]
    with pytest.raises(UserError, match="found 2"):
        TextEncoder(tiny_clip.text_tower(), tiny_clip.tokenizer, max_words=2)
    with pytest.raises(UserError, match=r"17 is more than .* 16 tokens"):
        TextEncoder(tiny_clip.text_tower(), tiny_clip.tokenizer, max_words=17)


def test_only_so_many_captions_are_kept(tiny_clip, monkeypatch):
    monkeypatch.setattr(text_encoder, "MAX_KEPT", 3)
    encoder = TextEncoder(tiny_clip.text_tower(), tiny_clip.tokenizer, max_words=6)
    words = ["one", "two", "three", "four", "five"]
    together = encoder(words)
    assert list(encoder._kept) == words[2:]
    assert torch.equal(encoder(words[:1]), together[:1]) and list(encoder._kept) == [*words[3:], "one"]


class OtherTokenizer:
    """One that, like open_clip's wrappers, cannot be asked for tokens alone; pads with 49407, the end, or with 1."""

    def __init__(self, tokenizer, pads_with_end: bool, class_token_last: bool = False):
        self.tokenizer, self.last = tokenizer, [5] * class_token_last
        self.padding = 49407 if pads_with_end else 1

    def __call__(self, texts, context_length):
        room = context_length - 2 - len(self.last)
        rows = []
        for text in texts:
            tokens = [49406, *self.tokenizer.encode(text)[:room], 49407]
            rows.append([*tokens, *[self.padding] * (context_length - len(self.last) - len(tokens)), *self.last])
        return torch.tensor(rows)


def test_cut_captions_are_counted_whatever_they_are_made_of(tiny_clip):
    generator = random.Random(0)
    parts = ["a", "cat", "walking", "zxqvkj", "!!!", "don't", "12", "#!#", "  ", "<start_of_text>"]
    parts += ["&amp;", "&amp;lt;", "&#x1D160;", "\x0b", "\x1c", "x\x00y", "\n"]
    parts += ["\u00e9t\u00e9", "\u0958", "\u0130", "\u4e2d\u6587", "\U0001f600", "\ufb03"]
    captions = [
        generator.choice(["", " "]).join(generator.choices(parts, k=generator.randint(0, 12))) for _ in range(400)
    ]
    captions += captions[:50]  # what is listed twice counts twice
    for max_words in (3, 6, 12, 16):
        expected = sum(len(tiny_clip.tokenizer.encode(caption)) + 2 > max_words for caption in captions)
        assert 0 < expected < len(captions)
        encoder = TextEncoder(tiny_clip.text_tower(), tiny_clip.tokenizer, max_words)
        assert encoder.count_cut(captions) == expected
        for flags in ((True,), (False,)):
            other = OtherTokenizer(tiny_clip.tokenizer, *flags)
            assert TextEncoder(tiny_clip.text_tower(), other, max_words).count_cut(captions) == expected
    other = OtherTokenizer(tiny_clip.tokenizer, False, class_token_last=True)
    expected = sum(len(tiny_clip.tokenizer.encode(caption)) + 3 > 12 for caption in captions)
    assert TextEncoder(tiny_clip.text_tower(), other, 12).count_cut(captions) == expected


def test_counting_takes_each_word_apart_once(tiny_clip, monkeypatch):
    generator = random.Random(0)
    words = [f"word{generator.randrange(10**6)}" for _ in range(50)]
    captions = [" ".join(generator.choices(words, k=14)) for _ in range(2000)]
    encoder = TextEncoder(tiny_clip.text_tower(), tiny_clip.tokenizer, max_words=16)
    calls = []
    encode = tiny_clip.tokenizer.encode
    monkeypatch.setattr(tiny_clip.tokenizer, "encode", lambda text: calls.append(text) or encode(text))
    assert encoder.count_cut(captions) == 2000
    assert sorted(calls) == sorted(set(words))


def test_the_context_is_known_before_weights_are_loaded(tmp_path):
    assert {known_context_length(name) for name in OPENAI_NAMES} == {77}
    assert known_context_length("ViT-B-32:laion2b_s34b_b79k") == 77
    folder = save_clip_folder(tmp_path / "clip", make_tiny_clip().model)
    assert known_context_length(str(folder)) == 16
    (folder / "open_clip_config.json").write_text("[]")
    for name in (folder, folder / "open_clip_model.safetensors", tmp_path / "none"):
        assert known_context_length(str(name)) is None


def test_a_captions_embedding_does_not_depend_on_when_it_was_needed(tiny_clip):
    captions = [f"caption number {i}" for i in range(GROUP + 3)]

    def encoder():
        return TextEncoder(tiny_clip.text_tower(), tiny_clip.tokenizer, max_words=12)

    together, one_by_one = encoder(), encoder()
    whole = together(captions)
    for i in reversed(range(len(captions))):
        one_by_one([captions[i]])
    assert torch.equal(one_by_one(captions), whole)
    padded = F.pad(together.tokenize(captions), (0, 4))  # to the context
    expected = F.normalize(tiny_clip.model.encode_text(padded), dim=-1)
    torch.testing.assert_close(whole, expected)


def test_each_caption_is_embedded_once(tiny_clip, monkeypatch):
    encoder = TextEncoder(tiny_clip.text_tower(), tiny_clip.tokenizer, max_words=12)
    encoder(["a", "b"])
    monkeypatch.setattr(encoder, "_embed", lambda tokens: pytest.fail("embedded again"))
    assert encoder(["b", "a", "b"]).shape == (3, 16)


# downloads


@pytest.fixture
def hub_model(tmp_path, monkeypatch):
    """An open_clip name of the tiny CLIP in a repository of the hub's, and the folder that keeps downloads."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny-test.json").write_text(json.dumps(TINY_CONFIG))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", list(open_clip.factory._MODEL_CONFIG_PATHS))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    open_clip.add_model_config(tmp_path / "configs")
    weights = open_clip.pretrained._pcfg(hf_hub="nobody/tiny-test/", quick_gelu=True)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-test", {"made": weights})
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return "tiny-test:made", tmp_path / "downloads"


def no_addresses(asked):
    """A resolver that knows no name and remembers what it was asked."""

    def resolve(host, *args, **kwargs):
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    return resolve


def test_without_a_network_a_download_is_refused_before_it_is_tried(hub_model, monkeypatch, caplog):
    name, downloads = hub_model
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", no_addresses(asked))
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waited to try again"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "https://hub.example:8443")
    with pytest.raises(WeightsError, match=r"hub\.example cannot be resolved.*network connection\?$"):
        load_clip(name, downloads)
    assert set(asked) == {"hub.example"} and len(asked) == 1  # the hub's client has not asked as well
    with pytest.raises(WeightsError, match=r"network connection\? Or put ViT-B-32\.pt in the folder given by"):
        load_clip("ViT-B/32", downloads)
    assert not caplog.records  # of a client that advises to unset HF_HUB_OFFLINE, which nobody has set
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_an_earlier_download_is_taken_without_a_network(hub_model, monkeypatch):
    name, downloads = hub_model
    made = make_tiny_clip().model
    repository, commit = downloads / "models--nobody--tiny-test", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    kept = repository / "snapshots" / commit / "open_clip_model.safetensors"
    save_file(dict(made.state_dict()), kept)
    monkeypatch.setattr(socket, "getaddrinfo", no_addresses([]))
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waited to try again"))
    loaded = load_clip(name, downloads)
    assert torch.equal(loaded.model.visual.proj, made.visual.proj)
    kept.write_bytes(b"cut off")
    with pytest.raises(WeightsError) as raised:  # what is wrong is the file, not the network
        load_clip(name, downloads)
    assert "resolved" not in str(raised.value)


def test_behind_a_proxy_names_are_the_proxys_to_resolve(monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", no_addresses(asked))
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert unknown_host("https://hub.example/models") == "hub.example"
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    asked.clear()
    assert unknown_host("https://hub.example/models") is None and not asked
    assert unknown_host("http://hub.example") == "hub.example"  # the proxy is for the other kind
    monkeypatch.setenv("no_proxy", "hub.example")
    assert unknown_host("https://hub.example/models") == "hub.example"
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **kwargs: [host])
    assert unknown_host("https://hub.example/models") is None

"""Efficient Prompt: where its vectors stand among the words, and its transformer over frames."""

import pytest
import torch
import torch.nn.functional as F

from common.errors import UserError
from helpers.methods import disturb, make_model
from helpers.tiny import random_videos

T, P, Q = 4, 3, 1


@torch.no_grad()
def test_vectors_stand_before_the_words_and_between_them_and_the_end():
    model = disturb(make_model("efficient_prompt", prefix_prompts=P, postfix_prompts=Q)).double()
    encoder, tower, table = model.text_encoder, model.text_encoder.tower, model.text_encoder.prompting.table
    assert table.shape == (16, 16)  # a row for each position of the tower
    captions = ["", "a", "a red circle moving left", "one two three four five six seven eight nine ten eleven"]
    for caption, found in zip(captions, encoder(captions), strict=True):
        words = encoder.tokenizer.encode(caption)[: 12 - 2]
        sequence = [tower.token_embedding.weight[49406], *table[1 : 1 + P]]  # the start's id, and then the end's
        sequence += [tower.token_embedding.weight[word] for word in words]
        sequence += [*table[len(sequence) : len(sequence) + Q], tower.token_embedding.weight[49407]]
        tokens = torch.stack(sequence) + tower.positional_embedding[: len(sequence)]
        for block in tower.blocks:
            tokens = block(tokens[None], mask=torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril())[0]
        expected = tower.ln_final(tokens[-1]) @ tower.text_projection
        torch.testing.assert_close(found, F.normalize(expected, dim=-1))


def test_the_words_are_cut_to_what_the_vectors_leave():
    assert make_model("efficient_prompt", prefix_prompts=P, postfix_prompts=Q).text_encoder.context_length == 16 - 4
    with pytest.raises(UserError, match=r"12 is more than .* 11 tokens"):
        make_model("efficient_prompt", prefix_prompts=P, postfix_prompts=2)
    with pytest.raises(UserError, match=r"--prefix_prompts 7 and --postfix_prompts 7 leave .* at most 13 together"):
        make_model("efficient_prompt", prefix_prompts=7, postfix_prompts=7)
    make_model("efficient_prompt", prefix_prompts=7, postfix_prompts=6, max_words=3)


@torch.no_grad()
def test_frames_are_read_with_their_positions_and_their_plain_mean_is_taken():
    model = disturb(make_model("efficient_prompt")).double().eval()
    readout = model.video_encoder.readout
    videos, lengths = random_videos(2, T), [T, 3]
    found = model.encode_video(videos, torch.tensor(lengths))["embedding"]
    frames = make_model("zero_shot").double().video_encoder
    for video, n, got in zip(videos, lengths, found, strict=True):
        x = []
        for frame, position in zip(video[:n], readout.positions, strict=False):
            cls, patches = frames.tower.embed(frames.tower.normalize(frame[None]))
            tokens = torch.cat([cls[None], patches[0]])[None]
            for block in frames.tower.blocks:
                tokens = block(tokens)
            x.append(frames.tower.project(tokens[0, 0]) + position)  # of the length that it has
        x = torch.stack(x)
        for block in readout.blocks:
            layer = block.layer
            read = layer.ln_1(x)[None]
            x = x + layer.attn(read, read, read, need_weights=False)[0][0]
            x = x + layer.mlp(layer.ln_2(x))
        torch.testing.assert_close(got, F.normalize(x.mean(0), dim=-1))


def test_similarities_are_cosines_over_a_temperature():
    model = make_model("efficient_prompt")
    vectors = F.normalize(torch.randn(3, 16), dim=-1)
    torch.testing.assert_close(model.similarity(vectors[:1], vectors), vectors[:1] @ vectors.T / 0.07)


def test_merging_is_refused_where_each_frame_has_a_position():
    with pytest.raises(UserError, match="--merge_frames 1: Efficient Prompt has a position for each frame"):
        make_model("efficient_prompt", merge_frames="1")

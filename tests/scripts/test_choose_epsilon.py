"""What ε is chosen from: the shares are the method's own, and the documents say what was measured."""

import json

import pytest
import torch

from helpers.tiny import make_tiny_clip, random_videos
from helpers.videos import write_video
from modules.methods.stop.inter_frame import InterFramePrompting, TemporalPrompter
from modules.methods.stop.stop import StopSettings
from modules.model.readouts import Mean
from modules.model.scopes import JointScope
from modules.model.video_encoder import VideoEncoder
from scripts.choose_epsilon import (
    KINDS,
    REAL,
    RECORD,
    STILL,
    Plan,
    gap_shares,
    main,
    make_encoder,
    measure,
    propose,
    separation,
)


def make_inter(epsilon):
    torch.manual_seed(0)
    inter = InterFramePrompting(4, 2, 4.0, 0.7, epsilon, TemporalPrompter(4, 2, 4, bottleneck=4, dropout=0.0)).double()
    weight = inter.dynamics.weight.data
    weight /= (27 * weight.square().mean()).sqrt()  # N^t's scale as it is drawn, exactly
    return inter


def test_a_share_is_where_a_gap_begins_to_count_as_still():
    generator = torch.Generator().manual_seed(0)
    read = torch.randn(2, 5, 4, 4, dtype=torch.float64, generator=generator)
    real = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    differences = (read[:, 1:] - read[:, :-1]) * real[:, 1:, None, None]
    regions = (torch.rand(2, 5, 4, generator=generator) < 0.5).double()
    given = read, differences, regions, real
    shares = gap_shares(make_inter(1.0), *given).detach()
    for video, gap in ((0, 0), (0, 3), (1, 1)):
        share = float(shares[video, gap])
        assert make_inter(share * 0.999).frame_variation(*given)[video, gap] > 0
        assert make_inter(share * 1.001).frame_variation(*given)[video, gap] == 0


def test_listening_changes_nothing_and_hears_every_layer_and_seed():
    clip, videos, lengths = make_tiny_clip(), random_videos(2, 5), torch.tensor([5, 3])
    encoder = make_encoder(clip, "joint", Plan(num_frames=5, seeds=(0, 1)))
    shares = measure(encoder, videos, lengths)
    assert shares.shape == (3 * 2, 2, 4)
    assert torch.equal(shares.isnan(), torch.tensor([[False] * 4, [False] * 2 + [True] * 2]).expand(6, -1, -1))
    plain = VideoEncoder(clip.vision_tower(), JointScope(mean_of_frames=True), Mean())
    assert torch.equal(encoder(videos, lengths)["embedding"], plain(videos, lengths)["embedding"])


def test_a_quick_measurement_on_a_video_and_one_that_is_none(tiny_files, tmp_path, capsys):
    videos = tmp_path / "videos"
    videos.mkdir()
    write_video(videos / "moving.mp4", frames=16)
    write_video(videos / "short.mp4", frames=3)  # measured, and decides nothing
    (videos / "empty.mp4").touch()
    record = tmp_path / "epsilon.json"
    flags = ["--quick", "--videos", videos, "--clip", tiny_files / "clip", "--record", record]
    main([str(flag) for flag in flags])
    content = json.loads(record.read_text())
    assert list(content["left_out"]) == ["empty.mp4"] and str(tmp_path) not in record.read_text()
    names = [(row["video"], row["num_frames"], row["scope"]) for row in content["videos"]]
    assert names == [
        (*video, scope) for video in (("moving.mp4", 12), ("short.mp4", 3)) for scope in ("joint", "frame")
    ]
    assert {found[kind]["video"] for found in content["separation"] for kind in KINDS} == {"moving.mp4"}
    for row in content["videos"]:
        assert row[STILL]["largest"] < 0.01 * row[REAL]["largest_gap_at_least"]
        for kind in KINDS:
            assert 0 <= row[kind]["smallest"] <= row[kind]["median"] <= row[kind]["largest"]
            assert row[kind]["largest_gap_at_least"] <= row[kind]["largest_gap_median"] <= row[kind]["largest"]
    printed = capsys.readouterr().out
    main(["--table", "--record", str(record)])
    assert capsys.readouterr().out == printed


def test_epsilon_is_proposed_between_and_only_where_there_is_a_between():
    found = {"real": {"share": 0.01}, "still": {"share": 1e-6}, "noisy": {"share": 1e-4}, "keyframes": {"share": 1.0}}
    assert propose([found]) == 0.001
    assert propose([found, found | {"noisy": {"share": 0.02}}]) is None


# --- What is written down -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded():
    return json.loads(RECORD.read_text())


def test_what_separates_is_of_the_videos_that_were_measured(recorded):
    which = dict.fromkeys((found["clip"], found["scope"]) for found in recorded["separation"])
    deciding = [row for row in recorded["videos"] if row["num_frames"] == recorded["settings"]["num_frames"]]
    assert recorded["separation"] == [separation(deciding, *pair) for pair in which]


def test_the_default_lies_between_still_pictures_and_real_clips(recorded):
    epsilon = StopSettings().epsilon
    assert epsilon == recorded["epsilon"]
    for found in recorded["separation"]:
        for kind in ("still", "noisy"):
            assert found[kind]["share"] < epsilon
        assert epsilon < found["real"]["share"]

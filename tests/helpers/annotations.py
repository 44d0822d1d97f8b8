"""Annotation files of datasets in their published form."""

import json


def write_captions(path, captions):
    """`MSRVTT_data.json` in its published form from a list of (video id, caption)."""
    video_ids = list(dict.fromkeys(video_id for video_id, _ in captions))
    videos = [
        {
            "category": 9,
            "url": "https://www.youtube.com/watch?v=9lZi22qLlEo",
            "video_id": video_id,
            "start time": 137.72,
            "end time": 149.44,
            "split": "train",
            "id": number,
        }
        for number, video_id in enumerate(video_ids)
    ]
    sentences = [
        {"caption": caption, "video_id": video_id, "sen_id": number}
        for number, (video_id, caption) in enumerate(captions)
    ]
    path.write_text(json.dumps({"info": {"year": "2016"}, "videos": videos, "sentences": sentences}))
    return path


def write_csv(path, header, *rows, newline="\r\n", encoding="utf-8"):
    """A table of such lines, whose line ends and encoding may be other than the published ones."""
    path.write_bytes((newline.join([header, *rows]) + newline).encode(encoding))
    return path


def write_lines(path, *lines, newline="\n", encoding="utf-8"):
    """A text file of such lines, in folders that are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + newline for line in lines).encode(encoding))
    return path


def write_hmdb51(folder, **form):
    """Two classes whose order by file name is not that by class name; names as odd as the real ones."""
    write_lines(
        folder / "climb_stairs_test_split1.txt",
        "Up#the_(old)_stairs!_&;_climb_f_cm_0.avi 1 ",
        "left out.avi 0 ",
        "[tall] man climbs_1.avi 2 ",
        **form,
    )
    write_lines(folder / "climb_test_split1.txt", "a_0.avi 2 ", "b_1.avi 1 ", "c_2.avi 1 ", "", **form)
    return folder

"""From a dataset's annotation and video files to batches, in the order of the way that a video takes.

`datasets` reads annotation files (`annotations`) into `samples`, with `video_files` found by their names; `video`
decodes, samples and resizes frames; `items` are samples as tensors, and `batches` items side by side. `bad_videos` is
for those that cannot be read. Nothing here knows of a model.
"""

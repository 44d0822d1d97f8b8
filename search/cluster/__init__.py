"""Embedding videos on a Ray cluster, whose workers are handed parts of the list of videos.

A worker does with a part what one machine does with its whole list (`windows.embed_videos`). What it gives comes back
through Ray and is written into the index folder: no file is shared but the videos, which each node finds at the same
paths, and the project with its weights. A finished part is two files, ``parts/NAME.npz`` with the embeddings and
``parts/NAME.failures.json`` with its videos and why the bad ones are bad; the latter is written last. NAME is a hash of
all that they depend on, so that a later run takes what fits it and nothing else.

Whatever order parts are finished in, their videos are put into the index in the order of the list, as one machine does
it. So the index is the same to the bit, and it grows while the cluster works.
"""

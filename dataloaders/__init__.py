"""From a dataset's annotation and video files to batches: readers, video decoding, preprocessing."""

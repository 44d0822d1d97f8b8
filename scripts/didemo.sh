#!/usr/bin/env bash
# STOP on DiDeMo: paragraphs, trained on the training and tested on the test videos, CLIP ViT-B/32, 64 frames, 64 words,
# batches of 128, 10 epochs, rate 1e-3.
#   bash scripts/didemo.sh
#   GPUS=1 bash scripts/didemo.sh --batch_size 16 --output_dir runs/didemo_16
# The same command continues an interrupted run. Every path is an environment variable with a default; arguments behind
# the script's name override its settings; --method runs another method, as scripts/msrvtt.sh says, with this dataset's
# batch, epochs, frames and words.
#
# Download to data/didemo/:
#   train_data.json, val_data.json and test_data.json from the repository of LocalizingMoments, folder data
#   the videos, of Flickr, under the names in these files
# Compress the videos to 3 frames a second and a short side of 224 pixels, of longer ones the first 30 seconds, which the
# descriptions are of:
#   .venv/bin/python preprocess/compress_video.py --max_seconds 30 --input_root VIDEOS \
#     --output_root data/didemo/videos_3fps
# and if they are packed (PACKED), pack these: what packs and reads the originals knows no 30 seconds.
#
# Frames and words are customary; the rest of the setting is ours, as on ActivityNet but for clipping, untried at this
# scale, and there is no published number to aim at here: the sources at hand have neither on DiDeMo.
# Expect, by arithmetic and not yet measured with this code: some 8,400 training videos make some 65 steps an epoch; a GPU
# holds 128 / GPUS videos of 64 frames a step. --checkpoint_activations trades time for memory, --merge_frames accuracy.
set -euo pipefail
cd "$(dirname "$0")/.."

DATA=${DATA:-data/didemo}                     # train_data.json, test_data.json
VIDEOS=${VIDEOS:-$DATA/videos_3fps}           # what preprocess/compress_video.py made
DATASET=didemo
STOP=(--text_prompts 8 --max_grad_norm 4)     # as on MSR-VTT
source scripts/retrieval_settings.sh "$@"     # PACKED, PRETRAINED, OUTPUT

# the rest are the dataset's own defaults: batches of 128, 10 epochs, 64 frames and 64 words; the rate is STOP's
exec bash scripts/launch.sh main_task_retrieval.py "${FLAGS[@]}" --datatype didemo \
  --train_json "$DATA/train_data.json" --val_json "$DATA/test_data.json" "$@"

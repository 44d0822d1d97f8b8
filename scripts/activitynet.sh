#!/usr/bin/env bash
# STOP on ActivityNet Captions, the published run's setting: paragraphs, trained on the training videos and tested on
# val_1, CLIP ViT-B/32, 64 frames, 64 words, global batch 128 (there 8 GPUs x 16), 10 epochs, rate 1e-3.
#   bash scripts/activitynet.sh
#   GPUS=1 bash scripts/activitynet.sh --batch_size 16 --output_dir runs/activitynet_16
# The same command continues an interrupted run. Every path is an environment variable with a default; arguments behind
# the script's name override its settings; --method runs another method, as scripts/msrvtt.sh says, with this dataset's
# batch, epochs, frames and words.
#
# Download to data/activitynet/:
#   train.json and val_1.json: captions.zip from the page of ActivityNet Captions (Dense-Captioning Events in Videos)
#   the videos of ActivityNet, named v_<youtube id>.mp4 or in any other container, from ActivityNet's page
#   (activity-net.org), which also gives those that are gone from YouTube
# Compress the videos to 3 frames a second and a short side of 224 pixels:
#   .venv/bin/python preprocess/compress_video.py --input_root VIDEOS --output_root data/activitynet/videos_3fps
#
# The setting is the published one; the sources at hand have no published numbers on ActivityNet to aim at.
# Expect, by arithmetic and not yet measured with this code: 10,009 training videos make 78 steps an epoch, 780 in all; a
# GPU holds 128 / GPUS videos of 64 frames a step. --checkpoint_activations trades time for memory, --merge_frames
# accuracy.
set -euo pipefail
cd "$(dirname "$0")/.."

DATA=${DATA:-data/activitynet}                # train.json, val_1.json
VIDEOS=${VIDEOS:-$DATA/videos_3fps}           # what preprocess/compress_video.py made
DATASET=activitynet
STOP=(  # what the published run set
  --text_prompts 8          # the published numbers were trained with prompts in both towers
  # there 8 processes average gradients that hold their own rows' share only, an eighth of the true one, and clip that at
  # 1; here the gradient is the true one
  --max_grad_norm 8
)
source scripts/retrieval_settings.sh "$@"     # PACKED, PRETRAINED, OUTPUT

# the rest are the dataset's own defaults: batches of 128, 10 epochs, 64 frames and 64 words; the rate is STOP's
exec bash scripts/launch.sh main_task_retrieval.py "${FLAGS[@]}" --datatype activity \
  --train_json "$DATA/train.json" --val_json "$DATA/val_1.json" "$@"

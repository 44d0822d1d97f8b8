#!/usr/bin/env bash
# STOP on Something-Something V2, trained on its training and tested on its validation set, CLIP ViT-B/32, 12 frames, one view.
#   bash scripts/ssv2.sh
#   GPUS=1 bash scripts/ssv2.sh --epochs 5
# The same command continues an interrupted run. Every path is an environment variable with a default; arguments behind
# the script's name override its settings.
#
# Download:
#   labels (something-something-v2-train.json, -validation.json, -labels.json) from Qualcomm's page, to data/ssv2/labels/
#   20bn-something-something-v2-00 and -01 from the same page, joined and unpacked to one folder of .webm files
# Compress the videos to 12 frames a second, since the clips are a few seconds long, and a short side of 224 pixels:
#   .venv/bin/python preprocess/compress_video.py --fps 12 --input_root VIDEOS --output_root data/ssv2/videos_12fps
#
# The paper's sources at hand state neither its figures on this dataset nor its training settings: batch, epochs and rate
# are ours, untried at this scale, and there is no published number to aim at here.
# Expect: 20 GB for the original videos and as much again while they are unpacked.
# 168,913 training videos make 1,319 steps an epoch at batch 128. Time and memory have not been measured with this code.
set -euo pipefail
cd "$(dirname "$0")/.."

SPLITS=${SPLITS:-data/ssv2/labels}
VIDEOS=${VIDEOS:-data/ssv2/videos_12fps}
PACKED=${PACKED:-}                            # what preprocess/pack_frames.py --fps 12 made; read in place of VIDEOS
PRETRAINED=${PRETRAINED:-data/pretrained}     # ViT-B-32.pt; downloaded to here if it is missing
OUTPUT=${OUTPUT:-runs/ssv2}

FRAMES=(--features_path "$VIDEOS")
if [ -n "$PACKED" ]; then FRAMES=(--packed "$PACKED"); fi
TASK=--do_train
case " $* " in *" --method zero_shot "* | *" --method=zero_shot "*) TASK=--do_eval ;; esac  # nothing to train

# the rest are defaults: 10 epochs are the dataset's, whatever the --method; batches, rate, decay and words are the
# method's, for STOP batches of 128 and a rate of 1e-3; 12 frames are the program's
exec bash scripts/launch.sh main_task_recognition.py \
  "$TASK" --method stop --datatype ssv2 \
  --pretrained_clip_name ViT-B/32 --pretrained_dir "$PRETRAINED" \
  --split_dir "$SPLITS" "${FRAMES[@]}" \
  --num_thread_reader 8 --output_dir "$OUTPUT" "$@"

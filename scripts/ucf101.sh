#!/usr/bin/env bash
# STOP on UCF101, the three official splits and their mean, CLIP ViT-B/32, 12 frames, one view.
#   bash scripts/ucf101.sh
#   GPUS=1 bash scripts/ucf101.sh --split 1 --shots 16
# The same command continues an interrupted run. Every path is an environment variable with a default; arguments behind
# the script's name override its settings.
#
# Download:
#   UCF101TrainTestSplits-RecognitionTask.zip from UCF101's page at CRCV, unpacked to data/ucf101/ucfTrainTestlist/
#   UCF101.rar from the same page, unpacked to one folder a class
# Compress the videos to 12 frames a second, since the clips are a few seconds long, and a short side of 224 pixels:
#   .venv/bin/python preprocess/compress_video.py --fps 12 --input_root VIDEOS --output_root data/ucf101/videos_12fps
#
# The paper's sources at hand state neither its figures on this dataset nor its training settings: batch, epochs and rate
# are ours, untried at this scale, and there is no published number to aim at here.
# Expect: 7 GB for the original videos and less for the compressed ones.
# 9,537 training videos in split 1 make 149 steps an epoch at batch 64. Time and memory have not been measured with this code.
set -euo pipefail
cd "$(dirname "$0")/.."

SPLITS=${SPLITS:-data/ucf101/ucfTrainTestlist}
VIDEOS=${VIDEOS:-data/ucf101/videos_12fps}
PACKED=${PACKED:-}                            # what preprocess/pack_frames.py --fps 12 made; read in place of VIDEOS
PRETRAINED=${PRETRAINED:-data/pretrained}     # ViT-B-32.pt; downloaded to here if it is missing
OUTPUT=${OUTPUT:-runs/ucf101}

FRAMES=(--features_path "$VIDEOS")
if [ -n "$PACKED" ]; then FRAMES=(--packed "$PACKED"); fi
TASK=--do_train
case " $* " in *" --method zero_shot "* | *" --method=zero_shot "*) TASK=--do_eval ;; esac  # nothing to train

# the rest are defaults: batches of 64 and 20 epochs are the dataset's, whatever the --method; rate, decay and words
# are the method's, for STOP a rate of 1e-3; 12 frames are the program's
exec bash scripts/launch.sh main_task_recognition.py \
  "$TASK" --method stop --datatype ucf101 \
  --pretrained_clip_name ViT-B/32 --pretrained_dir "$PRETRAINED" \
  --split_dir "$SPLITS" "${FRAMES[@]}" --split mean \
  --num_thread_reader 8 --output_dir "$OUTPUT" "$@"

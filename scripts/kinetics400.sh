#!/usr/bin/env bash
# STOP on Kinetics-400, trained on its training and tested on its validation videos, CLIP ViT-B/32, 12 frames, 4 clips x 3
# crops at test.
#   bash scripts/kinetics400.sh
#   GPUS=1 bash scripts/kinetics400.sh --shots 16 --output_dir runs/kinetics400_16
# The same command continues an interrupted run. Every path is an environment variable with a default; arguments behind
# the script's name override its settings.
#
# Download:
#   the official train.csv and validate.csv (label,youtube_id,time_start,time_end,split) to data/kinetics400/labels/
#   the videos, clips of 10 seconds named <youtube id>_<start>_<end>.mp4 with six-digit seconds, in class folders or not
# Many of them are gone from YouTube and every copy lacks others: those without a file are left out of training and test,
# missing_videos.csv of the run lists them, results.json counts them, and results are then those of a smaller test set.
# --allow_missing FILE, a list that preprocess/check_videos.py makes, leaves out these and no others.
# Compress the videos to 12 frames a second, which is more than 4 clips of 12 frames need, and a short side of 224 pixels:
#   .venv/bin/python preprocess/compress_video.py --fps 12 --input_root VIDEOS \
#     --output_root data/kinetics400/videos_12fps
#
# The paper's sources at hand state neither figures on this dataset nor training settings: batch, epochs and rate are
# ours, untried at this scale, and there is no published number to aim at here.
# Expect: some 240,000 training videos, less those that are gone, make some 1,900 steps an epoch at batch 128. Time and
# memory have not been measured with this code.
set -euo pipefail
cd "$(dirname "$0")/.."

DATA=${DATA:-data/kinetics400}                # labels/train.csv and labels/validate.csv
SPLITS=${SPLITS:-$DATA/labels}
VIDEOS=${VIDEOS:-$DATA/videos_12fps}          # what preprocess/compress_video.py made
PACKED=${PACKED:-}                            # what preprocess/pack_frames.py --fps 12 made; read in place of VIDEOS
PRETRAINED=${PRETRAINED:-data/pretrained}     # ViT-B-32.pt; downloaded to here if it is missing
OUTPUT=${OUTPUT:-runs/kinetics400}

FRAMES=(--features_path "$VIDEOS")
if [ -n "$PACKED" ]; then FRAMES=(--packed "$PACKED"); fi
TASK=--do_train
case " $* " in *" --method zero_shot "* | *" --method=zero_shot "*) TASK=--do_eval ;; esac  # nothing to train

# the rest are defaults: batches of 128 and 10 epochs are the dataset's, whatever the --method; rate, decay and words are
# the method's, for STOP a rate of 1e-3; 12 frames are the program's
exec bash scripts/launch.sh main_task_recognition.py \
  "$TASK" --method stop --datatype kinetics400 \
  --pretrained_clip_name ViT-B/32 --pretrained_dir "$PRETRAINED" \
  --split_dir "$SPLITS" "${FRAMES[@]}" --num_clips 4 --num_crops 3 \
  --allow_missing --on_bad_eval_video drop \
  --num_thread_reader 8 --output_dir "$OUTPUT" "$@"

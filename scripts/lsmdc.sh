#!/usr/bin/env bash
# STOP on LSMDC: trained on the training and tested on the 1,000 test clips, CLIP ViT-B/32, 12 frames, 32 words, batches
# of 128, 5 epochs, rate 1e-3.
#   bash scripts/lsmdc.sh
#   GPUS=1 bash scripts/lsmdc.sh --batch_size 64 --output_dir runs/lsmdc_64
# The same command continues an interrupted run. Every path is an environment variable with a default; arguments behind
# the script's name override its settings; --method runs another method, as scripts/msrvtt.sh says, with this dataset's
# batch, epochs, frames and words.
#
# Download to data/lsmdc/, from LSMDC's page, which asks for a form and gives a password:
#   LSMDC16_annos_training.csv, LSMDC16_annos_val.csv and LSMDC16_challenge_1000_publictect.csv
#   the clips, .avi files in a folder a film
# Compress the videos to 12 frames a second and a short side of 224 pixels, since clips are a few seconds long:
#   .venv/bin/python preprocess/compress_video.py --fps 12 --input_root VIDEOS --output_root data/lsmdc/videos_12fps
# and if they are packed (PACKED), pack them with --fps 12, too.
#
# The setting is ours, that of MSR-VTT, untried at this scale, and there is no published number to aim at here: the sources
# at hand have neither on LSMDC.
# Expect, by arithmetic and not yet measured with this code: some 100,000 training captions make some 790 steps an epoch.
set -euo pipefail
cd "$(dirname "$0")/.."

DATA=${DATA:-data/lsmdc}                      # LSMDC16_annos_training.csv, LSMDC16_challenge_1000_publictect.csv
VIDEOS=${VIDEOS:-$DATA/videos_12fps}          # what preprocess/compress_video.py made
DATASET=lsmdc
STOP=(--text_prompts 8 --max_grad_norm 4)     # as on MSR-VTT
source scripts/retrieval_settings.sh "$@"     # PACKED, PRETRAINED, OUTPUT

# the rest are the dataset's own defaults: batches of 128, 5 epochs, 12 frames and 32 words; the rate is STOP's
exec bash scripts/launch.sh main_task_retrieval.py "${FLAGS[@]}" --datatype lsmdc \
  --train_csv "$DATA/LSMDC16_annos_training.csv" --val_csv "$DATA/LSMDC16_challenge_1000_publictect.csv" "$@"

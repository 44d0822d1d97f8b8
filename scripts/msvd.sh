#!/usr/bin/env bash
# STOP on MSVD: every caption a sample, tested on the 670 test videos with all captions as queries, CLIP ViT-B/32, 12
# frames, 32 words, batches of 128, 5 epochs, rate 1e-3.
#   bash scripts/msvd.sh
#   GPUS=1 bash scripts/msvd.sh --batch_size 64 --output_dir runs/msvd_64
# The same command continues an interrupted run. Every path is an environment variable with a default; arguments behind
# the script's name override its settings; --method runs another method, as scripts/msrvtt.sh says, with this dataset's
# batch, epochs, frames and words.
#
# Download to data/msvd/:
#   train_list.txt, val_list.txt, test_list.txt and raw-captions.pkl: msvd_data.zip from the releases of CLIP4Clip
#   YouTubeClips.tar from MSVD's page at the University of Texas, unpacked to one folder of .avi files
# The captions are a pickle; it is read without running anything in it. To be rid of it, once:
#   .venv/bin/python preprocess/convert_msvd_captions.py --input data/msvd/raw-captions.pkl \
#     --output data/msvd/captions.json
#   CAPTIONS=data/msvd/captions.json bash scripts/msvd.sh
# Compress the videos to 3 frames a second and a short side of 224 pixels:
#   .venv/bin/python preprocess/compress_video.py --input_root VIDEOS --output_root data/msvd/videos_3fps
#
# The setting is ours, that of MSR-VTT, untried at this scale, and there is no published number to aim at here: the sources
# at hand have neither on MSVD.
# Expect, by arithmetic and not yet measured with this code: 48,774 training pairs make 381 steps an epoch, 1,905 in all.
set -euo pipefail
cd "$(dirname "$0")/.."

DATA=${DATA:-data/msvd}                       # train_list.txt, test_list.txt, raw-captions.pkl
VIDEOS=${VIDEOS:-$DATA/videos_3fps}           # what preprocess/compress_video.py made
CAPTIONS=${CAPTIONS:-$DATA/raw-captions.pkl}  # or what preprocess/convert_msvd_captions.py made of it
DATASET=msvd
STOP=(--text_prompts 8 --max_grad_norm 4)     # as on MSR-VTT
source scripts/retrieval_settings.sh "$@"     # PACKED, PRETRAINED, OUTPUT

# the rest are the dataset's own defaults: batches of 128, 5 epochs, 12 frames and 32 words; the rate is STOP's
exec bash scripts/launch.sh main_task_retrieval.py "${FLAGS[@]}" --datatype msvd \
  --train_list "$DATA/train_list.txt" --val_list "$DATA/test_list.txt" --data_path "$CAPTIONS" "$@"

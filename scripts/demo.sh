#!/usr/bin/env bash
# Shows the whole program at work on a machine with no dataset and no weights.
#   bash scripts/demo.sh
# Makes .venv, a small video dataset and a tiny CLIP (both kept under runs/toy/), trains STOP on them through
# main_task_retrieval.py, evaluates it against the frozen CLIP, and prints a table. About 10 minutes on two CPU cores
# after the installation, about 5 on a second run. Leaves runs/demo/zero_shot, runs/demo/stop and runs/demo/stop_shuffled.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
python=.venv/bin/python
# threads that wait asleep: spinning ones bring training to a crawl when anything else runs on the machine
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} OMP_WAIT_POLICY=PASSIVE CUDA_VISIBLE_DEVICES=

$python preprocess/make_toy_dataset.py --output_dir runs/toy/dataset
$python preprocess/pretrain_toy_clip.py --output_dir runs/toy/clip

data=(
  --pretrained_clip_name runs/toy/clip --features_path runs/toy/dataset/videos
  --train_csv runs/toy/dataset/train.csv --data_path runs/toy/dataset/MSRVTT_data.json
  --val_csv runs/toy/dataset/test.csv --max_frames 8 --max_words 20 --precision fp32 --num_thread_reader 1
)
# prompters sized for a CLIP of width 64, and a rate and dropout for 216 steps instead of 7,030; the rest are the defaults
stop=(--method stop --spatial_width 32 --spatial_hidden 64 --temporal_width 32 --prompt_dropout 0)
run() { $python main_task_retrieval.py "${data[@]}" "$@" --output_dir "$out" --save_features "$out/features"; }

out=runs/demo/zero_shot
run --do_eval --method zero_shot
out=runs/demo/stop
run --do_train "${stop[@]}" --epochs 6 --batch_size 36 --lr 3e-3 --mask_same_video --n_display 12 --resume never
out=runs/demo/stop_shuffled
run --do_eval "${stop[@]}" --init_model runs/demo/stop/best.pt --eval_frame_order shuffle

$python scripts/demo_table.py "zero-shot, mean pooling=runs/demo/zero_shot" "STOP=runs/demo/stop" \
  "STOP, test frames shuffled=runs/demo/stop_shuffled"

#!/usr/bin/env bash
# Shows the whole program at work on a machine with no dataset and no weights.
#   bash scripts/demo.sh                text-video retrieval; leaves runs/demo/{zero_shot,stop,stop_shuffled}
#   bash scripts/demo.sh recognition    action recognition; leaves runs/demo_recognition/{zero_shot,stop,stop_shuffled}
#   bash scripts/demo.sh search         finds moments in long videos; leaves runs/demo_search, and shows its page at the end
# The last one needs runs/demo/stop and trains it where it is not there. SEARCH_DEMO_SERVE=no ends it without the page.
# Makes .venv, a small video dataset, a pack of its frames and a tiny CLIP (all kept under runs/toy/), trains STOP on them
# through the main program of the task, evaluates it against the frozen CLIP, prints a table and writes a report, whose
# path it prints. 6 to 12 minutes on two quiet CPU cores, by the processor, after the installation; 4 to 5 on a second run.
set -euo pipefail
cd "$(dirname "$0")/.."
task=${1:-retrieval}
bash scripts/setup.sh
python=.venv/bin/python
# threads that wait asleep: spinning ones bring training to a crawl when anything else runs on the machine
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} OMP_WAIT_POLICY=PASSIVE CUDA_VISIBLE_DEVICES=

# kept while their settings are the same; the CLIP, which keeps one core busy, is trained beside the rest
$python preprocess/pretrain_toy_clip.py --output_dir runs/toy/clip --overwrite &
pretraining=$!
trap 'kill $pretraining 2>/dev/null || true' EXIT
$python preprocess/make_toy_dataset.py --output_dir runs/toy/dataset --overwrite
# all of its frames, to the bit as each run would decode them in each epoch
$python preprocess/pack_frames.py --input_root runs/toy/dataset/videos --output_root runs/toy/frames --fps 8 \
  --format raw --overwrite
wait $pretraining
trap - EXIT

data=(
  --pretrained_clip_name runs/toy/clip --packed runs/toy/frames
  --max_frames 8 --max_words 20 --precision fp32 --num_thread_reader 1
)
case $task in
  retrieval)
    runs=runs/demo epochs=5 batch_size=36
    data+=(
      --train_csv runs/toy/dataset/train.csv --data_path runs/toy/dataset/MSRVTT_data.json
      --val_csv runs/toy/dataset/test.csv --mask_same_video
    ) ;;
  recognition)
    runs=runs/demo_recognition epochs=5 batch_size=18
    # the classes are the motions; the prompt is one that the toy text tower was trained on
    data+=(
      --datatype hmdb51 --split_dir runs/toy/dataset/testTrainMulti_7030_splits --class_prompt "something {class}"
    ) ;;
  search)
    [ -f runs/demo/stop/best.pt ] || bash scripts/demo.sh retrieval
    ;;
  *)
    echo "demo: the task is retrieval, recognition or search, found $task" >&2
    exit 1 ;;
esac
if [ "$task" = search ]; then
  out=runs/demo_search
  $python scripts/moments/shots.py --dataset runs/toy/dataset --output_dir $out/videos
  rm -rf $out/zero_shot $out/stop  # an index belongs to one model
  cut=(--window 3 --stride 1.5)
  $python -m search index $out/videos --index_dir $out/zero_shot --method zero_shot \
    --pretrained_clip_name runs/toy/clip --max_frames 8 --max_words 20 "${cut[@]}"
  $python -m search index $out/videos --index_dir $out/stop --run runs/demo/stop "${cut[@]}"
  $python scripts/moments/measure.py --videos $out/videos --record $out/search_toy.json \
    "zero-shot, mean pooling=$out/zero_shot" "STOP=$out/stop"
  [ "${SEARCH_DEMO_SERVE:-yes}" = no ] && exit 0
  echo "Try: a red circle moving left, or anything of a colour, a shape and a motion. Ctrl-C ends it."
  exec $python -m search serve --index_dir $out/stop --generic_texts $out/videos/generic.txt
fi
# prompters sized for a CLIP of width 64, and a rate and dropout for some 200 to 400 steps; the rest are the defaults
stop=(--method stop --spatial_width 32 --spatial_hidden 64 --temporal_width 32 --prompt_dropout 0)
run() {
  local out=$runs/$1
  shift
  $python "main_task_$task.py" "${data[@]}" "$@" --output_dir "$out" --save_features "$out/features"
}

run zero_shot --do_eval --method zero_shot
run stop --do_train "${stop[@]}" --epochs $epochs --batch_size $batch_size --lr 3e-3 --n_display 12 --resume never
run stop_shuffled --do_eval "${stop[@]}" --init_model "$runs/stop/best.pt" --eval_frame_order shuffle

$python scripts/demo_table.py "$task" --record "$runs/table.json" "zero-shot, mean pooling=$runs/zero_shot" "STOP=$runs/stop" \
  "STOP, test frames shuffled=$runs/stop_shuffled"
# curves, settings and pictures of some test videos, in one file for a browser
report=$($python scripts/report.py "$runs/stop" "$runs/zero_shot")
echo "report: $report"
echo "$((SECONDS / 60)) min $((SECONDS % 60)) s"

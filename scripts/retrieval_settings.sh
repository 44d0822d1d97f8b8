# What the scripts of the retrieval datasets share. They source it, in the repository's folder:
#   DATASET=msrvtt                 runs go to runs/$DATASET, those of other methods to runs/${DATASET}_METHOD
#   VIDEOS=videos                  the default of that variable: what preprocess/compress_video.py made
#   STOP=(--text_prompts 8)        flags of STOP's own
#   source scripts/retrieval_settings.sh "$@"
# It sets FLAGS: the task, the weights, the videos, where the run goes and, for --method stop, the default, those of STOP.
PACKED=${PACKED:-}                            # what preprocess/pack_frames.py made; read in place of VIDEOS
PRETRAINED=${PRETRAINED:-data/pretrained}     # ViT-B-32.pt; downloaded to here if it is missing

method=stop before=
for flag in "$@"; do  # the last one given counts
  if [ "$before" = --method ]; then method=$flag; fi
  case $flag in --method=*) method=${flag#--method=} ;; esac
  before=$flag
done
task=--do_train own=() folder=runs/${DATASET}_$method
case $method in
  stop) folder=runs/$DATASET own=(--method stop "${STOP[@]}") ;;
  zero_shot) task=--do_eval ;;
esac
OUTPUT=${OUTPUT:-$folder}

frames=(--features_path "$VIDEOS")
if [ -n "$PACKED" ]; then frames=(--packed "$PACKED"); fi
FLAGS=(
  "$task" --pretrained_clip_name ViT-B/32 --pretrained_dir "$PRETRAINED" "${frames[@]}"
  --num_thread_reader 8 --output_dir "$OUTPUT" ${own[@]+"${own[@]}"}
)

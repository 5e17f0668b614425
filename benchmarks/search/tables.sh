#!/bin/sh
# Make the tables that come with the package, or some of them:
#
#     LEANFLEET_DATA=FOLDER benchmarks/search/tables.sh [digits-cnn ...]
#
# A table that was begun is gone on with; one that is finished in runs/tables is only put in place. Remove it and its
# picture there to make it anew. The small networks have no budget, and take 5 and 10 minutes of two cores; those of
# CIFAR-10 get 45 minutes, the deepest 100: the machine decides how much of `fast` fits in.
set -eu
cd "$(dirname "$0")/../.."
leanfleet=${LEANFLEET:-.venv/bin/leanfleet}
work=runs/tables place=src/leanfleet/subnet/luts
mkdir -p "$work" "$place"

table() {
    network=$1 data=$2 budget=${3:+--budget $3}
    out=$work/$network.lut
    if [ ! -f "$out" ]; then
        resume=
        [ ! -f "$out.partial" ] || resume=--resume
        "$leanfleet" search "$network" --data "$data" --seed 0 -o "$out" $budget $resume
    fi
    fingerprint=$("$leanfleet" lut "$out" --json | sed -n 's/^ *"fingerprint": "\([0-9a-f]*\)".*/\1/p')
    [ -n "$fingerprint" ] || { echo "$out: no fingerprint" >&2; exit 1; }
    rm -f "$place/$network"-????????????????.lut
    cp "$out" "$place/$network-$fingerprint.lut"
    echo "$place/$network-$fingerprint.lut"
}

for network in ${*:-digits-cnn femnist-cnn densenet-bc-19 resnet-20 densenet-bc-40}; do
    case $network in
        digits-cnn) table "$network" digits ;;
        femnist-cnn) table "$network" mnist_writers ;;
        densenet-bc-19) table "$network" cifar10 45m ;;
        resnet-20) table "$network" cifar10 45m ;;
        densenet-bc-40) table "$network" cifar10 100m ;;
        *) echo "$network: no table of it comes with the package" >&2; exit 2 ;;
    esac
done

#!/bin/sh
# Plays the game by itself on a screen that nobody sees, with the libtrion that is installed below PREFIX: with two
# budgets, which must give the same conversation. Needs love, xvfb-run and a software OpenGL (libgl1-mesa-dri).
#
#     examples/game/test.sh PREFIX [PICTURE]
set -eu

prefix=${1:?usage: test.sh PREFIX [PICTURE]}
game=$(dirname "$0")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for lib in "$prefix"/lib/libtrion.so "$prefix"/lib64/libtrion.so "$prefix"/lib/*/libtrion.so; do
    [ -e "$lib" ] && break
done
[ -e "$lib" ] || { echo "no libtrion.so below $prefix" >&2; exit 1; }

play() { # NAME BUDGET DRAW-EVERY
    SDL_AUDIODRIVER=dummy LIBGL_ALWAYS_SOFTWARE=1 XDG_RUNTIME_DIR=$work timeout 300 \
        xvfb-run -a -s "-screen 0 1280x800x24" love "$game" --lib "$lib" --header "$prefix/include/trion.h" \
        --budget-ms "$2" --draw-every "$3" --test "$work/$1.png" --transcript "$work/$1.txt" || {
        echo "the game failed with a budget of $2 ms" >&2
        exit 1
    }
    [ -s "$work/$1.png" ] || { echo "no picture" >&2; exit 1; }
}

play long 2 1
play short 0.5 20
cmp "$work/long.txt" "$work/short.txt" || { echo "another budget, another conversation" >&2; exit 1; }
[ -z "${2-}" ] || cp "$work/long.png" "$2"
cat "$work/long.txt"

#!/bin/bash
# One LoRA on hosts without a scheduler, from one of them or from your desk. docs/clusters.md
# explains it.
#
#   HOSTFILE=my-hosts bash examples/ssh/train.sh [launcher options] -- [training flags]
#
# `ssh HOST` must work without a question, and this folder and mindbooth be at the same place on all.
if [ $# -eq 0 ]; then
    set -- -- --config examples/dog.yaml
fi

exec mindbooth launch --hostfile "${HOSTFILE:-examples/ssh/hostfile}" "$@" \
    --resume_from_checkpoint latest

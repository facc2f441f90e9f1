#!/bin/bash
# Boot command of a ModelArts training job with a custom image. docs/clusters.md explains it.
#
#   bash ${MA_JOB_DIR}/mindbooth/examples/modelarts/start.sh [launcher options] -- [training flags]
#
# ModelArts runs it once a node. (As the boot file of a preset image it would run once a card; the
# launcher refuses that.) SHARED_DIR is a folder on an SFS Turbo that is mounted on all nodes.
set -e
shared=${SHARED_DIR:?the folder that all nodes share}

if [ $# -eq 0 ]; then
    set -- -- --config "$(cd "$(dirname "$0")/.." && pwd)/dog.yaml"
fi

cd "$shared"
# In place of this script: ModelArts' TERM reaches the launcher, and its status is the job's.
exec mindbooth launch "$@" --latent_cache_dir "$shared/cache" --resume_from_checkpoint latest

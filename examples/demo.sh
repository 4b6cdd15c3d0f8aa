#!/bin/sh
# The main job on real input: three adapters in, merged adapters out, verified and exported.
# Everything it writes lies in .lorahub-demo, which it makes anew.
set -eu
cd "$(dirname "$0")/.."
LORAHUB_HOME="$PWD/.lorahub-demo"
HF_HOME="$LORAHUB_HOME/huggingface"
export LORAHUB_HOME HF_HOME
unset LORAHUB_DATABASE_URL LORAHUB_ENDPOINT LORAHUB_TOKEN_ENV
rm -rf "$LORAHUB_HOME"

show() {
    printf '\n$ lorahub %s\n' "$*"
    lorahub "$@"
}

show pull examples/adapters/languages examples/adapters/packages examples/adapters/manuals
show ls
show compare languages packages manuals
show merge languages packages manuals --method cat --name everything
show merge languages:0.6 packages:0.6 manuals:0.6 --method svd --rank 8 --name small
show verify small
show export small "$LORAHUB_HOME/exported"
show lineage small
show ls --source merge

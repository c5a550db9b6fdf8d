#!/usr/bin/env bash
# Hold other libraries' own code against the vectors, each in a virtual environment of its own.
#
#     benchmarks/conformance/peers.sh                      # all of them
#     benchmarks/conformance/peers.sh trl_1_16 rlax_0_1_9  # some
#
# Environments are made once, in $PEER_VENVS (default .peers/, which git ignores), about 1 GB each.
# Results go to benchmarks/results/conformance-NAME.json; PEERS.md says what they mean. A CPU is
# enough; where pip would fetch torch with CUDA, PIP_EXTRA_INDEX_URL can name an index of CPU builds.
set -euo pipefail
cd "$(dirname "$0")/../.."

venvs=${PEER_VENVS:-.peers}
torch=$(grep '^torch==' constraints.txt)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
export PYTHONPATH=$PWD TQDM_DISABLE=1

install() { # what a peer needs, pinned; --no-deps where its files are read and never imported
    case $1 in
    trl_1_16) pip install -q -c constraints.txt "$torch" trl==1.16.0 ;;
    trl_1_12) pip install -q -c constraints.txt "$torch" trl==1.12.0 ;;
    torchtune_0_6_1) # the last torchao with the module that torchtune imports
        pip install -q -c constraints.txt "$torch" torchtune==0.6.1 torchao==0.10.0 ;;
    liger_0_8_5) pip install -q -c constraints.txt "$torch" numpy liger_kernel==0.8.5 ;;
    openrlhf_0_11_2)
        pip install -q -c constraints.txt "$torch" numpy
        pip install -q --no-deps openrlhf==0.11.2 ;;
    verl_0_9_1)
        pip install -q -c constraints.txt "$torch" numpy
        pip install -q --no-deps verl==0.9.1 ;;
    rlax_0_1_9) pip install -q -c constraints.txt rlax==0.1.9 jax==0.10.2 ;;
    esac
}

all=(trl_1_16 trl_1_12 torchtune_0_6_1 liger_0_8_5 openrlhf_0_11_2 verl_0_9_1 rlax_0_1_9)
mkdir -p "$venvs"
[ -n "${PEER_VENVS:-}" ] || echo '*' >"$venvs/.gitignore"

[ $# -gt 0 ] || set -- "${all[@]}"
for peer in "$@"; do
    if [[ " ${all[*]} " != *" $peer "* ]]; then
        echo "$peer is no peer; take some of: ${all[*]}" >&2
        exit 2
    fi
done
for peer in "$@"; do
    if [ ! -e "$venvs/$peer/ready" ]; then
        rm -rf "${venvs:?}/$peer"
        python3 -m venv "$venvs/$peer"
        (. "$venvs/$peer/bin/activate"; install "$peer")
        touch "$venvs/$peer/ready"
    fi
    # 1 says that something differs: that is what is looked for
    "$venvs/$peer/bin/python" -m benchmarks.conformance --implementation "$peer" \
        --output "benchmarks/results/conformance-$peer.json" || [ $? -eq 1 ]
    echo
done

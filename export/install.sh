#!/usr/bin/env bash
# Installs what the kits and their tests need: missing Debian packages (as root), and npm's packages from the lock files.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

missing=()
need() { "${@:2}" >/dev/null 2>&1 || missing+=("$1"); }
need nodejs command -v node
need npm command -v npm
need chromium command -v chromium
need cmake command -v cmake
need g++ command -v g++
need make command -v make
need libstb-dev test -e /usr/include/stb/stb_image.h
need nlohmann-json3-dev test -e /usr/include/nlohmann/json.hpp
if ((${#missing[@]})); then
    if ((EUID)) || ! command -v apt-get >/dev/null; then
        echo "nf-zoo: error: the kits' tests need these Debian packages; install them as root: ${missing[*]}" >&2
        exit 2
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends "${missing[@]}" >/dev/null
fi

# The package of onnxruntime-node has the CPU library. Its install script would fetch the CUDA library.
export ONNXRUNTIME_NODE_INSTALL=skip
for kit in node browser; do
    npm ci --prefix "$kit" --no-audit --no-fund --loglevel=error
done

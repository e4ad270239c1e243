#!/usr/bin/env bash
# Makes a base image for deploy/Dockerfile from Debian's packages, where no image registry can be reached:
#   deploy/base-image.sh [TAG] [SUITE]     default: shardhold/base:local, trixie (Python 3.13)
# and then: BASE_IMAGE=shardhold/base:local docker compose build, or docker build --build-arg BASE=shardhold/base:local …
#
# Needs root, mmdebstrap (in Debian: apt install mmdebstrap) and a Docker engine. Packages come from MIRROR, or from
# the first source of this machine where it is a Debian, and are verified by the keys of Debian's archive. The image has
# Python with its venv module, the C++ library that grpcio needs, and Debian's essential packages; apt is not in it.
set -euo pipefail

tag=${1:-shardhold/base:local}
suite=${2:-trixie}

fail() { echo "base-image: $1" >&2; exit "${2:-1}"; }

docker info >/dev/null 2>&1 || fail "no Docker engine answers" 3
command -v mmdebstrap >/dev/null || fail "mmdebstrap is missing: apt install mmdebstrap" 3

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The mirror that this machine uses itself, unless another one is named.
find_mirror() {
    [[ -n ${MIRROR-} ]] && { echo "$MIRROR"; return; }
    local sources=/etc/apt/sources.list.d/debian.sources
    [[ -r $sources ]] && sed -nE 's/^URIs: *([^ ]+).*/\1/p' "$sources" | head -n 1
}
mirror=$(find_mirror)

mmdebstrap --quiet --variant=essential --include=python3,python3-venv,libstdc++6 \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    "$suite" "$work/base.tar" "${mirror:-http://deb.debian.org/debian}"
docker import --change 'CMD ["python3"]' --message "Debian $suite with Python, made by deploy/base-image.sh" \
    "$work/base.tar" "$tag" >/dev/null
echo "base-image: $tag has $(docker run --rm --network none "$tag" python3 -V)," \
    "$(docker image inspect --format '{{.Size}}' "$tag" | awk '{printf "%.0f MB", $1 / 1e6}')"

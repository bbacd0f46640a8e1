#!/usr/bin/env bash
# Real programs through the proxy, on both engines, over IPv4, IPv6 and Unix sockets: redis-benchmark, wrk, curl, pgbench, iperf3, and
# a WebSocket session. Files of so many MiB go there and back: `ci/proxy.sh 2048`; 64 if it is not said.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly MEBIBYTES=${1:-64}
readonly clients=${DUOPOLL_TEST_CLIENTS:-${XDG_CACHE_HOME:-$HOME/.cache}/duopoll-clients}
# Where nginx is, which others than root do not look into.
PATH=$PATH:/usr/sbin
pg=$(find /usr/lib/postgresql -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n 1)
missing=$([ -n "$pg" ] || echo postgresql)
for tool in redis-server nginx curl wrk iperf3; do command -v "$tool" >/dev/null || missing=yes; done
if [ -n "$missing" ]; then
    sudo=$([ "$(id -u)" = 0 ] || echo sudo)
    $sudo apt-get update --quiet
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes --no-install-recommends \
        redis-server redis-tools nginx-light curl wrk iperf3 postgresql
    pg=$(find /usr/lib/postgresql -maxdepth 2 -name bin | sort -V | tail -n 1)
fi
ci/clients.sh
cargo build --quiet --release --package duopoll-proxy
readonly proxy=${CARGO_TARGET_DIR:-target}/release/proxy

work=$(mktemp --directory)
chmod 755 "$work"
trap 'kill $(jobs -p) 2>/dev/null; wait; rm -rf "$work"' EXIT

# Waits until somebody listens: `listening HOST:PORT` or `listening PATH`.
listening() {
    for _ in $(seq 500); do
        case $1 in
            /*) [ -S "$1" ] && return ;;
            *) (exec 3<>"/dev/tcp/${1%:*}/${1##*:}") 2>/dev/null && return ;;
        esac
        sleep 0.02
    done
    echo "nobody listens at $1" >&2
    exit 1
}

# ---- the upstreams, each at a TCP port on all addresses and at a Unix socket ----
readonly REDIS=7101 WEB=7102 POSTGRES=7103 IPERF=7104 SOCKET=7105 FRONT=7110
redis-server --port $REDIS --bind 127.0.0.1 ::1 --unixsocket "$work/redis" --save "" --appendonly no \
    --dir "$work" >/dev/null &

mkdir "$work/web" "$work/body"
chmod 777 "$work/web" "$work/body"
cat >"$work/nginx.conf" <<END
daemon off;
pid $work/nginx.pid;
events { worker_connections 4096; }
http {
    access_log off;
    client_max_body_size 0;
    client_body_temp_path $work/body;
    server {
        listen 127.0.0.1:$WEB;
        listen [::1]:$WEB;
        listen unix:$work/nginx;
        listen 127.0.0.1:$((WEB + 100)) http2;
        listen [::1]:$((WEB + 100)) http2;
        listen unix:$work/nginx2 http2;
        root $work/web;
        dav_methods PUT;
    }
}
END
nginx -c "$work/nginx.conf" -e "$work/nginx.log" &

as_postgres() {
    if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi
}
mkdir "$work/postgres" "$work/sockets"
[ "$(id -u)" != 0 ] || chown postgres "$work/postgres" "$work/sockets"
as_postgres "$pg/initdb" --auth=trust --username=postgres --pgdata="$work/postgres" >/dev/null
as_postgres "$pg/postgres" -D "$work/postgres" -p $POSTGRES -c listen_addresses='127.0.0.1,::1' \
    -c unix_socket_directories="$work/sockets" -c fsync=off >"$work/postgres.log" 2>&1 &

iperf3 --server --port $IPERF >/dev/null 2>&1 &
cat >"$work/server.py" <<'END'
import asyncio, sys
import websockets

async def main(port, path):
    async def echo(socket):
        async for message in socket:
            await socket.send(message)
    await websockets.serve(echo, ["127.0.0.1", "::1"], port, max_size=None)
    await websockets.unix_serve(echo, path, max_size=None)
    await asyncio.Future()

asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
END
"$clients/python/bin/python" "$work/server.py" $SOCKET "$work/websocket" 2>/dev/null &
cat >"$work/client.py" <<'END'
import asyncio, sys
import websockets

async def main(where):
    if where.startswith("/"):
        connecting = websockets.unix_connect(where, "ws://localhost/", max_size=None)
    else:
        connecting = websockets.connect(f"ws://{where}/", max_size=None)
    async with connecting as socket:
        for length in [0, 1, 125, 126, 65535, 65536, 1 << 20, 5 << 20] * 3:
            message = bytes(length % 251 for _ in range(1)) * length
            await socket.send(message)
            assert await socket.recv() == message
        await socket.ping()

asyncio.run(main(sys.argv[1]))
END

listening 127.0.0.1:$REDIS; listening 127.0.0.1:$WEB; listening 127.0.0.1:$POSTGRES; listening 127.0.0.1:$IPERF
listening 127.0.0.1:$SOCKET; listening "$work/websocket"
openssl enc -aes-128-ctr -nosalt -pass pass:file </dev/zero 2>/dev/null | head -c "${MEBIBYTES}M" >"$work/web/file" || true
sum=$(sha256sum <"$work/web/file")
as_postgres "$pg/pgbench" --quiet --initialize --scale 2 -h 127.0.0.1 -p $POSTGRES postgres 2>/dev/null

# ---- the proxy in front of them ----
front=
# through UPSTREAM_PORT UPSTREAM_SOCKET LISTEN_SOCKET: starts the proxy, and says in `at` where clients connect to.
through() {
    local listen upstream
    case $family in
        v4) upstream=127.0.0.1:$1 listen=127.0.0.1:$FRONT at=127.0.0.1 ;;
        v6) upstream=[::1]:$1 listen=[::1]:$FRONT at=::1 ;;
        unix) upstream=unix:$2 listen=unix:$3 at=$3 ;;
        # From TCP to a Unix socket, for what cannot connect to one.
        mixed) upstream=unix:$2 listen=127.0.0.1:$FRONT at=127.0.0.1 ;;
    esac
    "$proxy" --engine "$engine" --listen "$listen" --upstream "$upstream" --health-interval 0 >"$work/ready" 2>"$work/proxy.log" &
    front=$!
    for _ in $(seq 500); do [ -s "$work/ready" ] && break; sleep 0.02; done
    grep --quiet "engine=$engine" "$work/ready" || { cat "$work/proxy.log" >&2; exit 1; }
    case $listen in unix:*) chmod 777 "$3" ;; esac
}

# Ends the proxy, which has nothing to cut off.
done_with() {
    kill -TERM "$front"
    wait "$front"
    if grep --quiet "closed by force" "$work/proxy.log"; then
        cat "$work/proxy.log" >&2
        exit 1
    fi
    : >"$work/ready"
    echo "$engine $family: $1"
}

# The place of a host in a URL.
host() {
    case $1 in *:*) echo "[$1]" ;; *) echo "$1" ;; esac
}

files() {
    local url=http://localhost flags=(--unix-socket "$at")
    case $family in unix) ;; *) url=http://$(host "$at"):$FRONT flags=() ;; esac
    [ "$(curl --silent --fail "${flags[@]}" "$@" "$url/file" | sha256sum)" = "$sum" ]
    curl --silent --fail "${flags[@]}" "$@" --upload-file "$work/web/file" "$url/uploaded"
    [ "$(sha256sum <"$work/web/uploaded")" = "$sum" ]
    rm "$work/web/uploaded"
}

for engine in epoll uring; do
    for family in v4 v6 unix; do
        through $REDIS "$work/redis" "$work/front"
        where=(-h "$at" -p $FRONT)
        [ $family != unix ] || where=(-s "$at")
        redis-benchmark "${where[@]}" -t set,get,lrange_600 -n 20000 -P 4 -q >"$work/out"
        [ "$(grep --count 'requests per second' "$work/out")" -ge 3 ]
        done_with redis-benchmark

        through $WEB "$work/nginx" "$work/front"
        files
        done_with "curl, HTTP/1.1, $MEBIBYTES MiB there and back"

        through $((WEB + 100)) "$work/nginx2" "$work/front"
        files --http2-prior-knowledge
        done_with "curl, HTTP/2, $MEBIBYTES MiB there and back"

        mkdir -p "$work/fronts"
        through $POSTGRES "$work/sockets/.s.PGSQL.$POSTGRES" "$work/fronts/.s.PGSQL.$FRONT"
        [ $family != unix ] || at=$work/fronts
        as_postgres "$pg/pgbench" -h "$at" -p $FRONT --client 8 --transactions 200 --no-vacuum postgres >"$work/out" 2>&1
        grep --quiet "actually processed: 1600/1600" "$work/out"
        as_postgres "$pg/psql" -h "$at" -p $FRONT --tuples-only --command "select count(*) from pgbench_history" \
            postgres >"$work/out"
        done_with "pgbench and psql"

        through $SOCKET "$work/websocket" "$work/front"
        where=$(host "$at"):$FRONT
        [ $family != unix ] || where=$at
        "$clients/python/bin/python" "$work/client.py" "$where"
        done_with "a WebSocket"
    done
    for family in v4 v6 mixed; do
        through $WEB "$work/nginx" "$work/front"
        wrk --threads 1 --connections 64 --duration 2 "http://$(host "$at"):$FRONT/" >"$work/out"
        if grep --quiet "Socket errors" "$work/out"; then
            cat "$work/out" >&2
            exit 1
        fi
        done_with wrk
    done
    for family in v4 v6; do
        through $IPERF "" ""
        for direction in "" --reverse --bidir; do
            iperf3 --client "$at" --port $FRONT --parallel 4 --time 2 $direction >"$work/out"
            grep --quiet "iperf Done" "$work/out"
        done
        done_with "iperf3 in both directions"
    done
done

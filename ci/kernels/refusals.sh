#!/bin/sh
# Where the system refuses io_uring: `auto` serves on epoll and says why, `uring` fails and explains. Needs the echo
# example and busybox; runs on the host, and as root in a virtual machine, where it may touch sysctls (OWN_KERNEL=yes).
#
# usage: refusals.sh ECHO [BUSYBOX]
set -eu
echo=$1
busybox=${2:-/bin/busybox}
work=$(mktemp -d)
chmod 755 "$work"
# Where everybody may run it.
cp "$echo" "$work/echo"
trap 'rm -rf "$work"' EXIT

fail() {
    echo "FAILED: $*"
    cat "$work/out" "$work/err"
    exit 1
}

# run USER MEMLOCK_KIB ENGINE POLLERS: starts the server, and waits until it is ready or over. Who is not root cannot be
# somebody else.
run() {
    # What the one before has said is no answer, and the shell below may begin late.
    : >"$work/out"
    : >"$work/err"
    command="ulimit -l $2 && exec $work/echo --listen 127.0.0.1:0 --engine $3 --pollers $4"
    if [ "$1" = root ] || [ "$(id -u)" != 0 ]; then
        sh -c "$command" >"$work/out" 2>"$work/err" &
    elif [ "${OWN_KERNEL:-}" = yes ]; then
        su -s /bin/sh "$1" -c "$command" >"$work/out" 2>"$work/err" &
    else
        setpriv --reuid "$1" --regid nogroup --clear-groups sh -c "$command" >"$work/out" 2>"$work/err" &
    fi
    server=$!
    for _ in $(seq 300); do
        if [ -s "$work/out" ] || ! kill -0 "$server" 2>/dev/null; then return; fi
        sleep 0.1
    done
    fail "neither ready nor over after 30 s"
}

complaint_has() {
    for part in "$@"; do
        grep -q -- "$part" "$work/err" || fail "no \`$part\` in what it says"
    done
}

# served ENGINE: the server of `run` answers, on this engine.
served() {
    grep -q " engine=$1 " "$work/out" || fail "does not serve on $1"
    port=$(sed -n 's/^listening on 127.0.0.1:\([0-9]*\) .*/\1/p' "$work/out")
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        reply=$(printf served | "$busybox" nc -w 10 127.0.0.1 "$port")
        [ "$reply" = served ] || fail "answers \`$reply\`"
    done
    kill -TERM "$server"
    wait "$server" || fail "ends with code $?"
}

# refused TEXT...: the server of `run` has failed, and explained.
refused() {
    code=0
    wait "$server" || code=$?
    [ "$code" = 1 ] || fail "ends with code $code instead of 1"
    complaint_has "likely cause" remedy "$@"
}

# Rings count as locked memory on some kernels and not on others: both ends are right, silence is not.
for kib in 64 0; do
    run nobody "$kib" uring 8
    if [ -s "$work/out" ]; then
        served uring
        echo "ok: $kib KiB of locked memory, 8 pollers: uring serves"
    else
        # The ring may be the last to fit, and its registered memory too much.
        refused "io_uring_\(setup\|register\)" RLIMIT_MEMLOCK
        echo "ok: $kib KiB of locked memory, 8 pollers: uring explains: $(cat "$work/err")"
    fi
    run nobody "$kib" auto 8
    if grep -q engine=uring "$work/out"; then
        served uring
        echo "ok: $kib KiB of locked memory, 8 pollers: auto serves, the first poller on uring"
    else
        complaint_has "likely cause" RLIMIT_MEMLOCK
        served epoll
        echo "ok: $kib KiB of locked memory, 8 pollers: auto serves on epoll and says why"
    fi
done

sysctl=/proc/sys/kernel/io_uring_disabled
if [ "${OWN_KERNEL:-}" != yes ]; then
    echo "not run: kernel.io_uring_disabled, which would concern the whole host"
elif [ ! -e "$sysctl" ]; then
    echo "not run: kernel.io_uring_disabled, which this kernel does not have"
else
    for value in 1 2; do
        user=$([ "$value" = 1 ] && echo nobody || echo root)
        echo "$value" >"$sysctl"
        run "$user" 8192 auto 1
        complaint_has io_uring_setup "io_uring_disabled is $value" remedy
        served epoll
        echo "ok: kernel.io_uring_disabled=$value: auto serves on epoll and says why"
        run "$user" 8192 uring 1
        refused io_uring_setup "io_uring_disabled is $value"
        echo "ok: kernel.io_uring_disabled=$value: uring explains: $(cat "$work/err")"
    done
    echo 1 >"$sysctl"
    run root 8192 uring 1
    served uring
    echo "ok: kernel.io_uring_disabled=1: root is served on uring"
fi

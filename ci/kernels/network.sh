#!/usr/bin/env bash
# network.sh SINK COMMAND...: in a network namespace of its own, a tap device and behind it a sink for what a machine
# sends; then the command, which is the machine.
set -euo pipefail
sink=$1
shift
ip link set lo up
ip tuntap add tap0 mode tap vnet_hdr
ip address add 10.9.0.1/24 dev tap0
ip link set tap0 up
"$sink" sink --listen 10.9.0.1:9000 >/dev/null &
trap 'kill %1' EXIT
"$@"

#!/usr/bin/env bash
# The tests on the kernels of three Debian releases, each in a virtual machine: one line for each kernel and engine.
# docs/kernels.md says what the lines mean.
#
# `ci/kernels.sh [KERNEL [ENGINE [TEST]]]` runs a part: `ci/kernels.sh 6.12 uring every_byte`.
# KERNEL_MODULES="virtio_net" loads modules of the kernel package first, with what they depend on.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly KERNELS=(5.10 6.1 6.12)
# `refusals` is for what is refused to the program: see ci/kernels/refusals.sh. `device` is for sends without a copy over
# a network device, on kernels whose io_uring has them.
readonly ENGINES=(epoll uring auto refusals device)
readonly DEVICE_KERNELS=" 6.1 6.12 "
# What epoll needs is the same from the oldest on, and the newest is much like the host's; what asks for no engine depends on what there
# is at either end. Without being asked for they are not run elsewhere.
readonly EPOLL_KERNELS=" 5.10 "
readonly AUTO_KERNELS=" 6.12 "
# What tells the families apart lies above what the kernels differ in: each has one of them, and all where it is asked for.
declare -rA FAMILY=([5.10]=unix [6.1]=v6 [6.12]=v4)
# The tests that run: those of the facade and the unit tests of both engines.
readonly PACKAGES=(duopoll duopoll-epoll duopoll-uring)
readonly TRIPLE=x86_64-unknown-linux-gnu
# A machine that is not done after so long has failed, and is ended.
readonly VM_LIMIT_SECONDS=${VM_LIMIT_SECONDS:-900}
readonly VM_MEMORY_MIB=2048
readonly VM_PROCESSORS=2
# How long QEMU may take to show that KVM works.
readonly KVM_LIMIT_SECONDS=15

readonly cache=${XDG_CACHE_HOME:-$HOME/.cache}/duopoll-kernels
target=$(realpath -m "${CARGO_TARGET_DIR:-target}/kernels")
readonly target
readonly work=$target/machine
only_kernel=${1:-} only_engine=${2:-} only_test=${3:-}
failures=0

die() {
    echo "ci/kernels.sh: $*" >&2
    exit 1
}

# The Debian release that has a kernel.
release_of() {
    case $1 in
        5.10) echo bullseye ;;
        6.1) echo bookworm ;;
        6.12) echo trixie ;;
        *) die "no Debian release is known for kernel $1: ${KERNELS[*]}" ;;
    esac
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

install_tools() {
    if ! command -v qemu-system-x86_64 >/dev/null || ! command -v redis-benchmark >/dev/null; then
        as_root apt-get update --quiet || die "QEMU cannot be had"
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes --no-install-recommends \
            qemu-system-x86 redis-tools || die "QEMU cannot be had"
    fi
}

# apt_of RELEASE COMMAND...: apt with package lists of its own for a release. Touches nothing of the host's.
apt_of() {
    local release=$1 command=$2 state=$cache/apt/$1
    shift 2
    "$command" --quiet -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$state/sources" \
        -o Dir::State::Lists="$state/lists" -o Dir::State::Status="$state/installed" \
        -o Dir::Cache="$state/cache" -o APT::Sandbox::User=root "$@"
}

update_release() {
    local release=$1 state=$cache/apt/$1 codename file
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    rm -rf "$state"
    mkdir -p "$state/sources" "$state/lists/partial" "$state/cache/archives/partial"
    # As if nothing was installed.
    : >"$state/installed"
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources}; do
        # Debian's own archives, and not what others offer for Debian.
        if [ -n "$codename" ] && [ -e "$file" ] &&
            grep --quiet --extended-regexp '/debian(-security)?/?( |$)' "$file"; then
            sed "s/\b$codename/$release/g" "$file" >"$state/sources/$(basename "$file")"
        fi
    done
    [ -n "$(ls "$state/sources")" ] || die "this host's apt knows no Debian archive to take kernels from"
    apt_of "$release" apt-get update >"$state/update.log" 2>&1 ||
        { cat "$state/update.log" >&2; die "the package lists of $release cannot be had"; }
}

# Unpacks a package of a release.
unpack() {
    local release=$1 package=$2 to=$3 download
    download=$(mktemp -d)
    (cd "$download" && apt_of "$release" apt-get download "$package" >/dev/null) ||
        die "the package $package of $release cannot be had"
    mkdir -p "$to"
    dpkg-deb --extract "$download"/*.deb "$to"
    rm -r "$download"
}

# A kernel and a busybox for it, downloaded once: remove the cache to have newer ones.
fetch_kernel() {
    local kernel=$1 release package
    [ ! -e "$cache/$kernel" ] || return 0
    release=$(release_of "$kernel")
    echo "fetching kernel $kernel from Debian's $release"
    update_release "$release"
    package=$(apt_of "$release" apt-cache depends linux-image-cloud-amd64 |
        sed -n "s/.*Depends: \(linux-image-$kernel\.[^ ]*\)/\1/p")
    [ -n "$package" ] || die "$release has no package of kernel $kernel"
    rm -rf "$cache/$kernel.partial"
    unpack "$release" "$package" "$cache/$kernel.partial"
    unpack "$release" busybox-static "$cache/$kernel.partial"
    # Where they are differs from release to release.
    ln "$(find "$cache/$kernel.partial" -path '*/bin/busybox')" "$cache/$kernel.partial/busybox"
    mv "$cache/$kernel.partial" "$cache/$kernel"
    rm -r "$cache/apt"
}

# Builds the tests and the examples static, and lists which test belongs to which engine: to epoll and uring what is
# named after them, to auto the rest.
build_tests() {
    local packages=() built path name engine
    for name in "${PACKAGES[@]}"; do packages+=(--package "$name"); done
    built=$(CARGO_TARGET_DIR=$target RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" \
        cargo test --no-run --target "$TRIPLE" "${packages[@]}" --features duopoll/zerocopy --message-format json-render-diagnostics |
        sed -n 's/.*"name":"\([^"]*\)".*"overflow_checks":[a-z]*,"test":true.*"executable":"\([^"]*\)".*/\1 \2/p')
    [ -n "$built" ] || die "no test was built"

    rm -rf "$work"
    mkdir -p "$work/root/bin" "$work/root/tests/examples" "$work/plan"
    while read -r name path; do
        strip -o "$work/root/tests/$name" "$path"
        "$path" --list --format terse 2>/dev/null | sed -n 's/: test$//p' >"$work/names"
        for engine in epoll uring; do
            grep --extended-regexp "^${engine}(_|:)" "$work/names" >"$work/plan/$name.$engine" || true
        done
        grep --invert-match --extended-regexp '^(epoll|uring)(_|:)' "$work/names" >"$work/plan/$name.auto" || true
    done <<<"$built"
    for name in examples/*.rs; do
        name=$(basename "$name" .rs)
        # Some need features that are not built here.
        [ -e "$target/$TRIPLE/debug/examples/$name" ] || continue
        strip -o "$work/root/tests/examples/$name" "$target/$TRIPLE/debug/examples/$name"
    done
    # A crate of its own, whose tests the host runs: what they test lies above what the kernels differ in, and takes minutes.
    CARGO_TARGET_DIR=$target RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" cargo build \
        --target "$TRIPLE" --package duopoll-redis
    strip -o "$work/root/tests/examples/redis" "$target/$TRIPLE/debug/redis"
    # It needs iproute2 and namespaces.
    rm "$work"/plan/veth.*
    if [ -n "$only_test" ]; then
        for path in "$work"/plan/*; do
            sed -i "/$only_test/!d" "$path"
        done
    fi
    # What is not run, and why: nothing is left out in silence.
    echo "not run: duopoll-core's tests, which make no system call but mmap; doc tests; the benches' tests"
    echo "not run: veth, which needs more of a machine than there is; the Redis example's tests, which the host runs"
    [ -z "$only_test" ] || echo "not run: tests that have no $only_test in their names"
    for name in "$work"/plan/*.auto; do
        name=$(basename "$name" .auto)
        [ -n "$only_test" ] || cat "$work"/plan/"$name".* | grep --quiet . ||
            echo "not run: $name, which has no test in this build"
    done
    find "$work/plan" -empty -delete
    CARGO_TARGET_DIR=$target RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" cargo build --release \
        --target "$TRIPLE" --package duopoll-benches --no-default-features --features zerocopy --bin zerocopy
    strip -o "$work/root/bin/zerocopy" "$target/$TRIPLE/release/zerocopy"
}

# Everything of the machine that does not depend on the kernel.
lay_out_root() {
    local root=$work/root client
    mkdir -p "$root"/{bin,dev,etc,modules}
    cp ci/kernels/init "$root/init"
    cp ci/kernels/refusals.sh "$root/refusals.sh"
    chmod +x "$root/init"
    echo 'root:x:0:0::/:/bin/sh
nobody:x:65534:65534::/:/bin/sh' >"$root/etc/passwd"
    echo 'root:x:0:
nogroup:x:65534:' >"$root/etc/group"
    echo '127.0.0.1 localhost
::1 localhost' >"$root/etc/hosts"
    echo 'hosts: files' >"$root/etc/nsswitch.conf"
    # The clients are not static: their libraries come along.
    for client in redis-cli redis-benchmark; do
        cp --dereference "$(command -v $client)" "$root/bin/"
        ldd "$(command -v $client)" | grep --only-matching '/[^ ]*' |
            while read -r library; do cp --dereference --parents "$library" "$root"; done
    done
}

# add_module KERNEL NAME: a module and what it depends on, in the order of loading.
add_module() {
    local kernel=$1 name=$2 modules=$work/root/modules file needed
    ! compgen -G "$modules/*-$name.ko" >/dev/null || return 0
    file=$(find "$cache/$kernel" -name "${name//[_-]/[_-]}.ko*" | head -n 1)
    if [ -z "$file" ]; then
        grep --quiet --recursive --include modules.builtin "/${name//[_-]/[_-]}.ko" "$cache/$kernel" ||
            die "kernel $kernel has no module $name"
        return 0
    fi
    case $file in
        *.xz) xz --decompress --stdout "$file" ;;
        *.zst) zstd --decompress --stdout --quiet "$file" ;;
        *) cat "$file" ;;
    esac >"$work/$name.ko"
    for needed in $(strings "$work/$name.ko" | sed -n 's/^depends=//p' | tr , ' '); do
        add_module "$kernel" "$needed"
    done
    mv "$work/$name.ko" "$modules/$(printf %03d "$(find "$modules" -name '*.ko' | wc -l)")-$name.ko"
}

make_initrd() {
    local kernel=$1 module
    rm -f "$work"/root/modules/*.ko
    for module in virtio_pci virtio_net ${KERNEL_MODULES:-}; do add_module "$kernel" "$module"; done
    cp "$cache/$kernel/busybox" "$work/root/bin/busybox"
    ln -sf busybox "$work/root/bin/sh"
    rm -rf "$work/root/plan"
    cp -r "$work/plan" "$work/root/plan"
    if [ -z "$only_kernel" ]; then
        echo "not run: on $kernel, unless it is asked for (ci/kernels.sh $kernel), tests of other families than ${FAMILY[$kernel]}"
        sed -i --regexp-extended "/_(v4|v6|unix)::/{/_${FAMILY[$kernel]}::/!d}" "$work"/root/plan/*
        find "$work/root/plan" -empty -delete
    fi
    (cd "$work/root" && find . | bin/busybox cpio -o -H newc 2>/dev/null) | gzip -1 >"$work/initrd-$kernel"
}

# How QEMU runs on this host: KVM if a kernel boots with it, else emulation.
accelerator=()
choose_accelerator() {
    local kernel=$1
    accelerator=(-accel "tcg,thread=multi" -cpu Nehalem)
    if [ -w /dev/kvm ]; then
        local kvm=(-accel kvm -cpu host) output
        # Without an initrd it ends in a panic, which is enough.
        output=$(timeout --kill-after 1 "$KVM_LIMIT_SECONDS" qemu-system-x86_64 "${kvm[@]}" -m 256 -display none \
            -serial stdio -monitor none -no-reboot -kernel "$cache/$kernel"/boot/vmlinuz-* \
            -append "console=ttyS0 panic=-1" </dev/null 2>/dev/null) || true
        [[ $output != *"Unable to mount root"* ]] || accelerator=("${kvm[@]}")
    fi
}

# boot KERNEL ENGINE LOG
boot() {
    local prefix=() device=(-nic none)
    if [ "$2" = device ]; then
        # A network namespace of the machine's own, in which nothing else is.
        prefix=(unshare --net ci/kernels/network.sh "$work/root/bin/zerocopy")
        device=(-netdev "tap,id=net,ifname=tap0,script=no,downscript=no" -device virtio-net-pci,netdev=net,romfile=)
        [ "$(id -u)" = 0 ] || prefix=(sudo "${prefix[@]}")
    fi
    timeout --kill-after 5 $((VM_LIMIT_SECONDS + 20)) nice "${prefix[@]}" qemu-system-x86_64 "${accelerator[@]}" \
        -m "$VM_MEMORY_MIB" -smp "$VM_PROCESSORS" -display none -serial stdio -monitor none -no-reboot "${device[@]}" \
        -kernel "$cache/$1"/boot/vmlinuz-* -initrd "$work/initrd-$1" \
        -append "console=ttyS0 panic=-1 loglevel=5 engine=$2 limit_seconds=$VM_LIMIT_SECONDS" </dev/null 2>&1 |
        tr -d '\r' >"$3" || echo "FAILED: QEMU ended with an error" >>"$3"
}

# finish VERDICT KERNEL ENGINE REPORT START LOG: one line, and what there is to see of a failure.
finish() {
    printf '%-6s %-8s %-9s %s (%s s)\n' "$1" "$2" "$3" "$4" "$((SECONDS - $5))"
    if [ "$1" != ok ]; then
        failures=$((failures + 1))
        echo "--- what failed, and the end of $6"
        awk '/^failures:$/ { shown = 1 } /^test result:/ { shown = 0 } shown' "$6"
        tail -n 5 "$6"
        echo "---"
    fi
}

# One machine.
run() {
    local kernel=$1 engine=$2 log=$target/$1-$2.log start=$SECONDS version planned passed verdict report
    boot "$kernel" "$engine" "$log"
    # Emulated processors sometimes trip over a kernel that patches its own code. What dies before init has begun has seen
    # nothing of ours.
    for _ in 1 2; do
        if grep --quiet '^kernel: ' "$log"; then break; fi
        printf 'again  %-8s %-9s the kernel did not come up: %s\n' "$kernel" "$engine" "$(grep --max-count 1 --extended-regexp 'Oops|panic' "$log")"
        boot "$kernel" "$engine" "$log"
    done
    version=$(sed -n 's/^kernel: .*Debian \([0-9.]*\).*/\1/p' "$log")
    verdict=ok
    grep --quiet '^the end$' "$log" || verdict=FAILED
    ! grep --quiet --extended-regexp '^FAILED|Kernel panic|BUG:|WARNING:' "$log" || verdict=FAILED
    if [ "$engine" = refusals ]; then
        grep --quiet '^refusals: code 0$' "$log" || verdict=FAILED
        report=$(refusals_of "$log")
    elif [ "$engine" = device ]; then
        [ "$(grep --count '^without a copy: .* code 0$' "$log")" = 2 ] || verdict=FAILED
        report="both engines send without a copy over virtio-net"
    else
        planned=$(cat "$work"/root/plan/*."$engine" 2>/dev/null | wc -l)
        passed=$(sed -n 's/^test result: .* \([0-9]*\) passed;.*/\1/p' "$log" |
            awk '{ sum += $1 } END { print sum + 0 }')
        [ "$passed" = "$planned" ] || verdict=FAILED
        report="$passed of $planned tests$(sed -n 's/^engine report: [a-z]*: /; /p' "$log" | head -n 1)"
    fi
    finish "$verdict" "${version:-$kernel}" "$engine" "$report" "$start" "$log"
}

refusals_of() {
    echo "$(grep --count '^ok: ' "$1") checks$(sed -n 's/^not run: /; not run: /p' "$1")"
}

# What can be refused on the host without touching it.
run_host() {
    local log=$target/host-refusals.log start=$SECONDS verdict=ok
    ci/kernels/refusals.sh "$work/root/tests/examples/echo" "$work/root/bin/busybox" >"$log" 2>&1 || verdict=FAILED
    finish "$verdict" host refusals "$(refusals_of "$log")" "$start" "$log"
}

is_planned() {
    case $2 in
        epoll) [[ $EPOLL_KERNELS == *" $1 "* ]] ;;
        auto) [[ $AUTO_KERNELS == *" $1 "* ]] ;;
    esac
}

[ "$(uname -m)" = x86_64 ] || die "the machines are x86_64, and are made from a host that is"
[ -z "$only_kernel" ] || release_of "$only_kernel" >/dev/null
install_tools
for kernel in ${only_kernel:-"${KERNELS[@]}"}; do fetch_kernel "$kernel"; done
build_tests
lay_out_root
choose_accelerator "${only_kernel:-${KERNELS[0]}}"
echo "machines: ${accelerator[*]}, $VM_PROCESSORS processors"
for kernel in ${only_kernel:-"${KERNELS[@]}"}; do
    make_initrd "$kernel"
    for engine in ${only_engine:-"${ENGINES[@]}"}; do
        [ "$engine" != device ] || [[ $DEVICE_KERNELS == *" $kernel "* ]] || continue
        if [ -z "$only_kernel" ] && ! is_planned "$kernel" "$engine"; then
            echo "not run: $engine on $kernel, unless it is asked for: ci/kernels.sh $kernel $engine"
            continue
        fi
        run "$kernel" "$engine"
    done
done
[ -n "${only_engine#refusals}" ] || run_host
[ "$failures" = 0 ] || die "$failures machines failed"

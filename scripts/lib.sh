# shellcheck shell=bash
# Shared by the scripts here: what they need is installed, and what they do in the network stays in
# namespaces of their own.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin

say() { printf '\n== %s\n' "$*"; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# The programs that the labs and the demo use, each with the Debian package that has it; and those that only tests
# and benches use.
LAB_PROGRAMS=(
    ip=iproute2 nft=nftables unshare=util-linux ping=iputils-ping curl=curl nginx=nginx-light iperf3=iperf3
    traceroute=traceroute socat=socat cmp=diffutils jq=jq
)
TEST_PROGRAMS=(
    ss=iproute2 tcpdump=tcpdump mtr=mtr-tiny dig=dnsutils dnsmasq=dnsmasq-base ethtool=ethtool tshark=tshark
    mandoc=mandoc strace=strace systemd-analyze=systemd promtool=prometheus chromium=chromium
    chromedriver=chromium-driver openssl=openssl nfcapd=nfdump smcrouted=smcroute ssmping=ssmping iperf=iperf
    ffmpeg=ffmpeg
    etcd=etcd-server etcdctl=etcd-client iptables-legacy=iptables bird=bird2
)

# need WHY PROGRAM=PACKAGE…: installs the packages whose program is missing.
need() {
    local why=$1 pair packages=()
    shift
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null || packages+=("${pair#*=}")
    done
    [ ${#packages[@]} -gt 0 ] || return 0
    mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)
    echo "Installing ${packages[*]}, which $why."
    command -v apt-get >/dev/null ||
        die "this is not Debian; install the equivalents of: ${packages[*]}"
    [ "$(id -u)" = 0 ] || command -v sudo >/dev/null ||
        die "this needs root, and sudo is not installed; as root: apt-get install ${packages[*]}"
    # Debian starts the services of what it installs (a web server among them), now and at each boot. The
    # tests run their own: those that come with these packages are not started, and disabled.
    # shellcheck disable=SC2016 # The shell that is root expands it.
    as_root '
        policy=/usr/sbin/policy-rc.d
        wanted() { ls /etc/systemd/system/multi-user.target.wants 2>/dev/null; }
        before=$(wanted)
        if ! [ -e $policy ]; then
            trap "rm -f $policy" EXIT
            trap "exit 130" INT TERM
            printf "#!/bin/sh\nexit 101\n" >$policy && chmod +x $policy
        fi
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@" >/dev/null || exit
        for unit in $(wanted); do
            case $unit in
                *.service) echo "$before" | grep -qxF "$unit" || systemctl --quiet disable "$unit" ;;
            esac
        done' "${packages[@]}"
}

# as_root SCRIPT [ARGUMENT…]
as_root() {
    if [ "$(id -u)" = 0 ]; then
        sh -c "$1" sh "${@:2}"
    elif command -v sudo >/dev/null; then
        echo "(as root, through sudo)"
        sudo sh -c "$1" sh "${@:2}"
    else
        die "this needs root, and sudo is not installed; run as root: $1"
    fi
}

need_rust() {
    command -v cargo >/dev/null || die "cargo is not installed; install Rust: https://rustup.rs"
    # Not gcc: the C library that it links with is only recommended there.
    need "links what Rust compiles" cc=build-essential
}

need_tests() {
    need "the tests use" "${TEST_PROGRAMS[@]}"
    need_lab
}

need_lab() {
    need "the network in namespaces uses" "${LAB_PROGRAMS[@]}"
    [ -e /dev/net/tun ] || as_root "modprobe tun" || true
    [ -e /dev/net/tun ] || die "/dev/net/tun is missing: load the module tun, or in a container pass --device /dev/net/tun"
    if ! { [ -r /dev/net/tun ] && [ -w /dev/net/tun ]; }; then
        die "you may not open /dev/net/tun: run this as root, or let everybody (which is the usual" \
            "setting, and gives no rights over the network): sudo chmod 0666 /dev/net/tun"
    fi
    local why
    why=$(namespaces true 2>&1) ||
        die "you may not make network namespaces ($why): run this as root, or allow unprivileged user" \
            "namespaces (sysctl user.max_user_namespaces; on Ubuntu" \
            "kernel.apparmor_restrict_unprivileged_userns=0; in Docker --privileged)"
}

# namespaces COMMAND…: runs it in network, mount and process namespaces of its own, in which it is
# root. They vanish with it, and with them all that it started.
namespaces() {
    local user=()
    [ "$(id -u)" = 0 ] || user=(--user --map-root-user)
    unshare "${user[@]}" --net --mount --pid --fork --kill-child -- "$@"
}

# Copies the core and its tests into DIR, as a package of the root's name without the shell: it builds in a
# fraction of the time. Files that are the same keep their time, so that only the rest is built again.
core_tree() { # DIR
    local file list
    list=$(mktemp)
    mkdir -p "$1"
    git ls-files -z --cached --others --exclude-standard -- crates tests/gateway tests/sim Cargo.lock |
        while IFS= read -r -d '' file; do [ ! -e "$file" ] || printf '%s\0' "$file"; done >"$list"
    while IFS= read -r -d '' file; do
        cmp -s "$file" "$1/$file" || install -D -m 644 "$file" "$1/$file"
    done <"$list"
    (cd "$1" && find crates tests -type f -print0) | sort -z |
        comm -z -23 - <(sort -z "$list") | (cd "$1" && xargs -0 --no-run-if-empty rm)
    core_manifest >"$list"
    cmp -s "$list" "$1/Cargo.toml" || cp "$list" "$1/Cargo.toml"
    [ -e "$1/lib.rs" ] || touch "$1/lib.rs"
    rm "$list"
}

core_manifest() {
    sed -n '/^\[workspace/,/^\[package\]/p' Cargo.toml | sed '$d'
    cat <<'MANIFEST'
[package]
name = "tandemgw"
version.workspace = true
edition.workspace = true

[lib]
path = "lib.rs"

[dev-dependencies]
base64.workspace = true
bytes.workspace = true
etherparse.workspace = true
ipnet.workspace = true
log.workspace = true
proptest.workspace = true
serde_json.workspace = true
tandemgw-core.workspace = true
testkit.workspace = true

[[test]]
name = "gateway"
path = "tests/gateway/main.rs"

[[test]]
name = "sim"
path = "tests/sim/main.rs"

[profile.dev.package.tandemgw-core]
opt-level = 1
MANIFEST
}

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

# The programs that the tests and the demo use, each with the Debian package that has it.
LAB_PROGRAMS=(
    ip=iproute2 ss=iproute2 nft=nftables unshare=util-linux ping=iputils-ping curl=curl
    nginx=nginx-light iperf3=iperf3 tcpdump=tcpdump traceroute=traceroute dig=dnsutils
    dnsmasq=dnsmasq-base socat=socat ethtool=ethtool cmp=diffutils jq=jq tshark=tshark
    mandoc=mandoc strace=strace systemd-analyze=systemd promtool=prometheus
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
        die "this is no Debian; install the equivalents of: ${packages[*]}"
    # Debian's package starts a web server on port 80; the tests run their own instead.
    local no_services='printf "#!/bin/sh\nexit 101\n" > /usr/sbin/policy-rc.d &&
        chmod +x /usr/sbin/policy-rc.d'
    local install="DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends"
    if [ -e /usr/sbin/policy-rc.d ]; then
        as_root "{ apt-get update -qq && $install ${packages[*]}; } >/dev/null"
    else
        as_root "apt-get update -qq && $no_services && { $install ${packages[*]} >/dev/null; s=\$?; } ;
            rm -f /usr/sbin/policy-rc.d; exit \${s:-1}"
    fi
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        sh -c "$1"
    elif command -v sudo >/dev/null; then
        echo "(as root, through sudo)"
        sudo sh -c "$1"
    else
        die "this needs root, and there is no sudo; run as root: $1"
    fi
}

need_rust() {
    command -v cargo >/dev/null || die "there is no cargo; install Rust: https://rustup.rs"
    need "links what Rust compiles" cc=gcc
}

need_lab() {
    need "the network tests use" "${LAB_PROGRAMS[@]}"
    [ -e /dev/net/tun ] || as_root "modprobe tun" || true
    [ -e /dev/net/tun ] || die "there is no /dev/net/tun: load the module tun, or in a container pass --device /dev/net/tun"
    if ! { [ -r /dev/net/tun ] && [ -w /dev/net/tun ]; }; then
        die "you may not open /dev/net/tun: run this as root, or let everybody (which is the usual" \
            "setting, and gives no rights over the network): sudo chmod 0666 /dev/net/tun"
    fi
    namespaces true 2>/dev/null ||
        die "you may not make network namespaces: run this as root, or allow unprivileged user" \
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

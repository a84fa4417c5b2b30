# shellcheck shell=bash
# What both demos use. From here on we are in namespaces of our own: nothing can touch the machine's
# network, and all of it vanishes at the end.

failures=0
exec 3>&1 # for what is shown from within a check
ok() { printf '   \e[32mok\e[0m    %s\n' "$*"; }
bad() {
    printf '   \e[31mFAILED\e[0m %s\n' "$*"
    failures=$((failures + 1))
}
[ -t 1 ] || {
    ok() { printf '   ok     %s\n' "$*"; }
    bad() { printf '   FAILED %s\n' "$*"; failures=$((failures + 1)); }
}
# holds TEXT COMMAND…: the command must succeed. fails TEXT COMMAND…: it must not.
holds() { local text=$1; shift; if "$@" >/dev/null 2>&1; then ok "$text"; else bad "$text  ($*)"; fi; }
fails() { local text=$1; shift; if "$@" >/dev/null 2>&1; then bad "$text  ($*)"; else ok "$text"; fi; }
# equal TEXT WANTED GOT
equal() { if [ "$2" = "$3" ]; then ok "$1: $3"; else bad "$1: $3, not $2"; fi; }

mac_of() { at "$1" ip -o link show "$2" | sed 's/.*link.ether \([^ ]*\).*/\1/'; }
at() { nsenter --net="/run/netns/$1" -- "${@:2}"; }

# namespace NAME…: network namespaces without the checks that only cost time here.
namespace() {
    local ns
    for ns in "$@"; do
        ip netns add "$ns"
        # shellcheck disable=SC2016
        at "$ns" sh -c 'for f in all default; do
            echo 0 > /proc/sys/net/ipv4/conf/$f/rp_filter
            echo 0 > /proc/sys/net/ipv6/conf/$f/accept_dad; done'
        at "$ns" ip link set lo up
    done
}

switch() {
    namespace "$1"
    at "$1" ip link add br0 type bridge
    at "$1" ip link set br0 up
}

# plug HOST INTERFACE SWITCH
plug() {
    ip link add "$2" netns "$1" type veth peer name "$1-$2" netns "$3"
    at "$3" ip link set "$1-$2" master br0
    at "$3" ip link set "$1-$2" up
}

address() {
    at "$1" ip addr add "$3" dev "$2"
    at "$1" ip addr add "$4" dev "$2" nodad
    at "$1" ip link set "$2" up
}

start_servers() {
    head -c 67108864 /dev/urandom >"$DEMO_DIR/file"
    cat >"$DEMO_DIR/nginx.conf" <<CONFIG
daemon off; master_process off; user root root; pid $DEMO_DIR/pid; error_log /dev/null;
events { }
http {
    access_log off; sendfile on;
    client_body_temp_path $DEMO_DIR/t1; proxy_temp_path $DEMO_DIR/t2;
    fastcgi_temp_path $DEMO_DIR/t3; uwsgi_temp_path $DEMO_DIR/t4; scgi_temp_path $DEMO_DIR/t5;
    server {
        listen 80; listen [::]:80; root $DEMO_DIR;
        location = /whoami { return 200 \$remote_addr; }
    }
}
CONFIG
    at server nginx -p "$DEMO_DIR" -c "$DEMO_DIR/nginx.conf" 2>/dev/null &
    at server iperf3 -s >/dev/null &
    wait_for at server curl -sf http://127.0.0.1/whoami
}

wait_for() {
    local _
    for _ in {1..100}; do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    return 1
}

# finish LOG…: ends the demo, with the logs if something failed.
finish() {
    if [ $failures -gt 0 ]; then
        local log
        for log in "$@"; do
            printf '\n--- %s\n' "$log"
            cat "$log"
        done
        die "$failures of the checks failed"
    fi
    say "All held."
}

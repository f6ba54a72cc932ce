#!/bin/bash
# Workloads to try a cluster with: on each of three nodes some network namespaces, with the addresses of the lab.
set -euo pipefail

usage() {
    cat <<'END'
Make endpoints to try a cluster with, on node NUMBER of 1 to 3, whose address is 172.31.0.1NUMBER. As root:

  endpoints.sh network NUMBER NAME=ROLE…   a network namespace for each, behind veth-NAME, and the ways to all others
  endpoints.sh register NUMBER NAME=ROLE…  make them known to the cluster, each with its label role=ROLE

The endpoints of node 1 have 10.31.1.10, 10.31.1.11, … and fd00:31:1::a, fd00:31:1::b, …; both commands may be repeated.
END
}

fail() { printf 'endpoints.sh: %s\n' "$1" >&2; exit "${2:-1}"; }

main() {
    case ${1-} in
        network | register) ;;
        -h | --help) usage; exit 0 ;;
        *) fail "'${1-}' is nothing to do; allowed: network, register; see endpoints.sh --help" 2 ;;
    esac
    local what=$1 number=${2-} endpoint place=10
    [[ $number =~ ^[1-3]$ ]] || fail "'$number' is no node; allowed: 1, 2, 3" 2
    shift 2
    for endpoint in "$@"; do
        [[ $endpoint =~ ^[a-z0-9]{1,10}=[a-z0-9]+$ ]] || fail "'$endpoint' is no endpoint; allowed: NAME=ROLE" 2
    done
    [ "$(id -u)" = 0 ] || fail "needs root: run it with sudo"
    if [ "$what" = network ]; then connect_node "$number"; fi
    for endpoint in "$@"; do
        "${what}_endpoint" "${endpoint%=*}" "${endpoint#*=}" "$number" $place
        place=$((place + 1))
    done
}

connect_node() {
    local own=172.31.0.1$1 device other
    device=$(ip -o address show to "$own" | awk '{ print $2 }')
    [ -n "$device" ] || fail "node $1 has the address $own, but no interface here has it"
    sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
    ip address replace "fd00:31::1$1/64" dev "$device" nodad
    for other in 1 2 3; do
        [ $other != "$1" ] || continue
        ip route replace 10.31.$other.0/24 via 172.31.0.1$other
        ip -6 route replace fd00:31:$other::/64 via fd00:31::1$other
    done
}

network_endpoint() {
    local name=$1 number=$3 gateway=10.31.$3.1 gateway6=fd00:31:$3::1 device=veth-$1 address address6
    address=10.31.$number.$4 address6=$(printf 'fd00:31:%s::%x' "$number" "$4")
    [ -e "/run/netns/$name" ] || ip netns add "$name"
    ip link show dev "$device" >/dev/null 2>&1 || ip link add "$device" type veth peer name eth0 netns "$name"

    ip address replace "$gateway/32" dev "$device"
    ip address replace "$gateway6/128" dev "$device" nodad
    ip link set "$device" up
    ip route replace "$address/32" dev "$device" src "172.31.0.1$number"
    ip -6 route replace "$address6/128" dev "$device" src "fd00:31::1$number"

    ip -n "$name" link set lo up
    ip -n "$name" address replace "$address/32" dev eth0
    ip -n "$name" address replace "$address6/128" dev eth0 nodad
    ip -n "$name" link set eth0 up
    # The room that a stamp takes: of routes, as an interface would drop what arrives longer than its own MTU.
    ip -n "$name" route replace "$gateway/32" dev eth0 mtu 1484
    ip -n "$name" route replace default via "$gateway" dev eth0 mtu 1484
    ip -n "$name" -6 route replace "$gateway6/128" dev eth0 mtu 1484
    ip -n "$name" -6 route replace default via "$gateway6" dev eth0 mtu 1484
}

register_endpoint() {
    nfq-enforcer endpoint add "$1" --ip "10.31.$3.$4" --ip "$(printf 'fd00:31:%s::%x' "$3" "$4")" \
        --label "role=$2" --interface "veth-$1"
}

main "$@"

#!/bin/bash
# Prepare four machines for the demo of the lab: a router with the world behind it, and three nodes with workloads in
# network namespaces.
set -euo pipefail

usage() {
    cat <<'END'
Prepare machines of one segment for the demo. They have the addresses 172.31.0.200 (the router, perhaps with the store)
and 172.31.0.1NUMBER (node NUMBER, of 1 to 3). As root:

  endpoints.sh router                      forward between the machines; a network namespace 'world' behind this one
  endpoints.sh network NUMBER NAME=ROLE…   a network namespace for each, behind veth-NAME, and routes to all others
  endpoints.sh register NUMBER NAME=ROLE…  register them in the cluster, each with its label role=ROLE
  endpoints.sh tools                       install the programs that the demo runs on the machines
  endpoints.sh operator KEY                give root here this private key, to operate the other machines by ssh
  endpoints.sh operated KEY                authorize this public key for root here

The endpoints of node 1 have 10.31.1.10, 10.31.1.11, … and fd00:31:1::a, fd00:31:1::b, …; the name n3 stands for node 3
itself, which then has 172.31.0.23 too, for its operator. Node 3 and the workloads of the others reach each other
through the router. All commands may be repeated.
END
}

readonly ROUTER=172.31.0.200 ROUTER6=fd00:31::c8
readonly WORLD=172.31.2.100 WORLD6=fd00:31:0:2::64

fail() { printf 'endpoints.sh: %s\n' "$1" >&2; exit "${2:-1}"; }

main() {
    case ${1-} in
        router) as_root; make_router ;;
        network | register) nodes_own "$@" ;;
        tools) as_root; install_tools ;;
        operator | operated) trust "$@" ;;
        -h | --help) usage ;;
        *) fail "'${1-}' is not a command; allowed: router, network, register, tools, operator, operated; see endpoints.sh --help" 2 ;;
    esac
}

as_root() { [ "$(id -u)" = 0 ] || fail "needs root: run it with sudo"; }

nodes_own() {
    local what=$1 number=${2-} endpoint place=10
    [[ $number =~ ^[1-3]$ ]] || fail "'$number' is no node; allowed: 1, 2, 3" 2
    shift 2
    for endpoint in "$@"; do
        [[ $endpoint =~ ^[a-z0-9]{1,10}=[a-z0-9]+$ ]] || fail "'$endpoint' is no endpoint; allowed: NAME=ROLE" 2
    done
    as_root
    if [ "$what" = network ]; then connect_node "$number"; fi
    for endpoint in "$@"; do
        if [ "${endpoint%=*}" = "n$number" ]; then
            "${what}_itself" "${endpoint%=*}" "${endpoint#*=}" "$number"
        else
            "${what}_endpoint" "${endpoint%=*}" "${endpoint#*=}" "$number" $place
            place=$((place + 1))
        fi
    done
}

# --- the network -------------------------------------------------------------

device_of() {
    local device
    device=$(ip -o address show to "$1" | awk 'NR == 1 { print $2 }')
    [ -n "$device" ] || fail "this machine is to have the address $1, but no interface here has it"
    printf '%s' "${device%@*}"
}

make_router() {
    local device number
    device=$(device_of $ROUTER)
    # No ICMP redirects: they would lead the machines of the segment around the router, which must stay on the path.
    sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
        net.ipv4.conf.all.send_redirects=0 "net.ipv4.conf.$device.send_redirects=0"
    ip address replace $ROUTER6/64 dev "$device" nodad
    for number in 1 2 3; do
        ip route replace 10.31.$number.0/24 via 172.31.0.1$number
        ip -6 route replace fd00:31:$number::/64 via fd00:31::1$number
    done
    hang_namespace world veth-world 172.31.2.1 fd00:31:0:2::1 $WORLD $WORLD6 1500
    sysctl -q -w net.ipv4.conf.veth-world.rp_filter=2 # nodes drop its packets with forged addresses, not this router
}

connect_node() {
    local device other via via6
    device=$(device_of "172.31.0.1$1")
    sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
    ip address replace "fd00:31::1$1/64" dev "$device" nodad
    for other in 1 2 3; do
        [ $other != "$1" ] || continue
        via=172.31.0.1$other via6=fd00:31::1$other
        if [ $other = 3 ] || [ "$1" = 3 ]; then via=$ROUTER via6=$ROUTER6; fi
        ip route replace 10.31.$other.0/24 via $via
        ip -6 route replace fd00:31:$other::/64 via $via6
    done
    ip route replace $WORLD/32 via $ROUTER
    ip -6 route replace $WORLD6/128 via $ROUTER6
}

network_endpoint() {
    local name=$1 number=$3 address=10.31.$3.$4 address6
    address6=$(printf 'fd00:31:%s::%x' "$number" "$4")
    # Room for a stamp: in the MTU of routes, because an interface drops packets that arrive longer than its own MTU.
    hang_namespace "$name" "veth-$name" "10.31.$number.1" "fd00:31:$number::1" "$address" "$address6" 1484
    ip route replace "$address/32" dev "veth-$name" src "172.31.0.1$number"
    ip -6 route replace "$address6/128" dev "veth-$name" src "fd00:31::1$number"
}

network_itself() {
    ip address replace "172.31.0.2$3/24" dev "$(device_of "172.31.0.1$3")"
}

# hang_namespace NAME DEVICE GATEWAY GATEWAY6 ADDRESS ADDRESS6 MTU: a namespace behind an interface of this machine
hang_namespace() {
    local name=$1 device=$2 gateway=$3 gateway6=$4 address=$5 address6=$6 mtu=$7
    [ -e "/run/netns/$name" ] || ip netns add "$name"
    ip link show dev "$device" >/dev/null 2>&1 || ip link add "$device" type veth peer name eth0 netns "$name"

    ip address replace "$gateway/32" dev "$device"
    ip address replace "$gateway6/128" dev "$device" nodad
    ip link set "$device" up
    ip route replace "$address/32" dev "$device"
    ip -6 route replace "$address6/128" dev "$device"

    ip -n "$name" link set lo up
    ip -n "$name" address replace "$address/32" dev eth0
    ip -n "$name" address replace "$address6/128" dev eth0 nodad
    ip -n "$name" link set eth0 up
    ip -n "$name" route replace "$gateway/32" dev eth0 mtu "$mtu"
    ip -n "$name" route replace default via "$gateway" dev eth0 mtu "$mtu"
    ip -n "$name" -6 route replace "$gateway6/128" dev eth0 mtu "$mtu"
    ip -n "$name" -6 route replace default via "$gateway6" dev eth0 mtu "$mtu"
}

# --- the cluster -------------------------------------------------------------

register_endpoint() {
    nfq-enforcer endpoint add "$1" --ip "10.31.$3.$4" --ip "$(printf 'fd00:31:%s::%x' "$3" "$4")" \
        --label "role=$2" --interface "veth-$1"
}

register_itself() {
    nfq-enforcer endpoint add "$1" --ip "172.31.0.1$3" --ip "fd00:31::1$3" --label "role=$2"
}

# --- the operator ------------------------------------------------------------

install_tools() {
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300)
    "${apt[@]}" update
    "${apt[@]}" install --yes --no-install-recommends iproute2 iptables openssh-client python3 tcpdump
}

trust() {
    local key=${2-}
    { [ -f "$key" ] && [ -r "$key" ]; } || fail "'$key' is no key: it cannot be read" 2
    as_root
    install -d -m 700 /root/.ssh
    if [ "$1" = operated ]; then
        touch /root/.ssh/authorized_keys
        chmod 600 /root/.ssh/authorized_keys
        grep -qxF -f "$key" /root/.ssh/authorized_keys || cat "$key" >>/root/.ssh/authorized_keys
        return
    fi
    install -m 600 "$key" /root/.ssh/nfq-enforcer
    touch /root/.ssh/config
    grep -q '^Host 172.31.0.\*$' /root/.ssh/config || cat >>/root/.ssh/config <<'END'
Host 172.31.0.*
    IdentityFile /root/.ssh/nfq-enforcer
    StrictHostKeyChecking accept-new
END
}

main "$@"

#!/bin/bash
# Set a host up: as the store of a cluster, or as a node. A second run changes only settings that differ.
set -euo pipefail
shopt -s inherit_errexit

usage() {
    cat <<'END'
Set this host (Debian 12, Ubuntu 24.04) up as the store of a cluster, or as a node. As root:

  provision.sh store [--bind ADDRESS] [--prefix NAME] [--password-file FILE]
  provision.sh node --store URL [--interface NAME] [--name NAME] [--password-file FILE]

store: a Redis server of its own beside any other on this host: redis-server@nfq-enforcer, port 6379. Only its user
    'nfqe' can log in, and can use the keys of one cluster.
  --bind ADDRESS        address for connections of nodes (default: the first global address of this host)
  --prefix NAME         the prefix of the cluster's keys in Redis (default: nfqe)
  --password-file FILE  the password of 'nfqe' (default: /etc/nfq-enforcer/store-password, created if missing)
    The connections are not encrypted: reserve this network for the nodes, or use your own server with TLS.

node: the agent as a service, installed in /opt/nfq-enforcer from the repository that contains this script.
  --store URL           address of the cluster's store: redis://nfqe@ADDRESS:6379, also rediss:// and redis+sentinel://;
                        'memory:' for a host that works alone, with documents in /etc/nfq-enforcer/documents
  --interface NAME      the interface that leads to the other nodes, or one of its addresses: the node's addresses are
                        those of this interface, and stamps are believed there (default: as the agent detects them)
  --name NAME           the node's name (default: the host's name)
  --password-file FILE  the store's password; it is copied to /etc/nfq-enforcer/store-password

An agent configuration that was changed by hand is kept; the new one is then written beside it.
Exit status: 0 done, 1 something failed, 2 the arguments cannot be used.
END
}

readonly ETC=/etc/nfq-enforcer
readonly STATE=/var/lib/nfq-enforcer
readonly PASSWORD=$ETC/store-password
readonly PROGRAM=/opt/nfq-enforcer
readonly INSTANCE=nfq-enforcer
readonly REDIS_CONF=/etc/redis/redis-$INSTANCE.conf
readonly REDIS_DATA=/var/lib/redis/$INSTANCE # below the only folder that Debian's unit allows it to write to
readonly NODE_PACKAGES=(build-essential conntrack iproute2 iptables libnetfilter-queue-dev libnfnetlink-dev nftables
    python3-dev python3-venv)

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
changed= # yes: a file has changed since the service was started

say() { printf '%s\n' "$*"; }
warn() { printf 'provision.sh: %s\n' "$*" >&2; }
fail() { warn "$1"; exit 1; }
refuse() { warn "$1; see provision.sh --help"; exit 2; }

main() {
    case ${1-} in
        store | node) ;;
        -h | --help) usage; exit 0 ;;
        '') refuse "the role of this host is missing; allowed: store, node" ;;
        *) refuse "'$1' is not a role of a host; allowed: store, node" ;;
    esac
    local role=$1
    shift
    "read_options_of_$role" "$@"
    [ "$(id -u)" = 0 ] || fail "needs root: run it with sudo"
    command -v apt-get >/dev/null || fail "apt-get is missing: this script supports Debian 12 and Ubuntu 24.04"
    "set_up_$role"
}

# --- arguments ---------------------------------------------------------------

bind='' prefix=nfqe store='' interface='' name='' password_file=''

read_options_of_store() {
    while [ $# -gt 0 ]; do
        case $1 in
            --bind) bind=$(value "$@") ;;
            --prefix) prefix=$(value "$@") ;;
            --password-file) password_file=$(value "$@") ;;
            -h | --help) usage; exit 0 ;;
            *) refuse "'$1' is not an option of 'store'; allowed: --bind, --prefix, --password-file" ;;
        esac
        shift 2
    done
    [[ $prefix =~ ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$ ]] || refuse "--prefix '$prefix': allowed are letters, digits and . _ -"
    [[ $bind =~ ^[0-9A-Fa-f.:]*$ ]] || refuse "--bind '$bind' is not an address"
    check_password_file
}

read_options_of_node() {
    while [ $# -gt 0 ]; do
        case $1 in
            --store) store=$(value "$@") ;;
            --interface) interface=$(value "$@") ;;
            --name) name=$(value "$@") ;;
            --password-file) password_file=$(value "$@") ;;
            -h | --help) usage; exit 0 ;;
            *) refuse "'$1' is not an option of 'node'; allowed: --store, --interface, --name, --password-file" ;;
        esac
        shift 2
    done
    [ -n "$store" ] || refuse "a node needs --store URL; 'memory:' for a host that works alone"
    # printable ASCII without quotes and backslashes needs no escape in a quoted YAML string
    [[ $store =~ ^(memory:|(redis|rediss|redis\+sentinel|rediss\+sentinel)://[^[:space:]\"\\]+)$ ]] ||
        refuse "--store is not a URL of a store; allowed: memory:, redis://…, rediss://…, redis+sentinel://…"
    [[ ! $store =~ ://[^/]*:[^/]*@ ]] ||
        refuse "--store contains a password, which every user of this host could read: put it into a --password-file"
    [[ $name =~ ^[A-Za-z0-9._-]*$ ]] || refuse "--name '$name': allowed are letters, digits and . _ -"
    [[ $interface =~ ^[A-Za-z0-9._:@-]*$ ]] || refuse "--interface '$interface' is no name of an interface"
    if [ "$store" = memory: ] && [ -n "$password_file" ]; then
        refuse "--password-file: the store memory: has no password"
    fi
    check_password_file
}

value() {
    if [ $# -lt 2 ] || [ -z "$2" ]; then refuse "$1 needs a value"; fi
    printf '%s' "$2"
}

check_password_file() {
    [ -n "$password_file" ] || return 0
    if ! [ -f "$password_file" ] || ! [ -r "$password_file" ]; then
        refuse "--password-file $password_file cannot be read; allowed: a regular file"
    fi
    [ "$(stat -Lc %s "$password_file")" -le 4096 ] || refuse "--password-file $password_file has more than 4096 bytes"
    [ -n "$(tr -d '\r\n' <"$password_file")" ] || refuse "--password-file $password_file is empty"
}

# --- both roles --------------------------------------------------------------

install_packages() {
    local package missing=()
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    say "installing the packages ${missing[*]}"
    # RUNLEVEL: where systemd does not run, the services of a package are not started.
    local apt=(env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -q -o DPkg::Lock::Timeout=300)
    quietly "${apt[@]}" update
    quietly "${apt[@]}" install --yes --no-install-recommends "${missing[@]}"
}

# quietly COMMAND…: run it, show its output only if it fails
quietly() {
    "$@" >"$work/said" 2>&1 && return
    cat "$work/said" >&2
    fail "failed: $*"
}

# put NEW FILE MODE OWNER: give the file this content, mode and owner
put() {
    if cmp -s "$1" "$2"; then
        chmod "$3" "$2"
        chown "$4" "$2"
        return
    fi
    install -m "$3" -o "${4%:*}" -g "${4#*:}" "$1" "$2"
    say "written: $2"
    changed=yes
}

keep_password() {
    install -d -m 755 $ETC
    if [ -n "$password_file" ]; then
        tr -d '\r\n' <"$password_file" >"$work/password"
        echo >>"$work/password"
    elif [ -s $PASSWORD ]; then
        cat $PASSWORD >"$work/password"
    else
        head -c 32 /dev/urandom | sha256sum | cut -d ' ' -f 1 >"$work/password"
    fi
    put "$work/password" $PASSWORD 600 root:root
}

# run_service NAME COMMAND: enable the service; start it, or restart it if a file has changed
run_service() {
    if [ ! -d /run/systemd/system ]; then
        say "systemd does not run here; this starts it: $2"
        return
    fi
    systemctl daemon-reload
    systemctl --quiet enable "$1"
    local verb=start
    [ -z "$changed" ] || verb=restart
    systemctl $verb "$1" || fail "$1 does not start; see: journalctl -u $1"
    say "$1 is running"
}

# --- store -------------------------------------------------------------------

set_up_store() {
    local was_there=
    [ ! -x /usr/bin/redis-server ] || was_there=yes
    install_packages iproute2 redis-server
    # The package starts a server without a password on the loopback address. An earlier server is left alone.
    if [ -z "$was_there" ] && [ -d /run/systemd/system ]; then systemctl --quiet disable --now redis-server; fi
    [ -n "$bind" ] || bind=$(global_addresses | head -n 1)
    [ -n "$bind" ] || fail "this host has no global address; name one with --bind"

    keep_password
    install -d -m 750 -o redis -g redis $REDIS_DATA
    redis_configuration >"$work/redis.conf"
    put "$work/redis.conf" $REDIS_CONF 640 root:redis
    install -d /etc/systemd/system/redis-server@$INSTANCE.service.d
    unit_addition >"$work/network.conf"
    put "$work/network.conf" /etc/systemd/system/redis-server@$INSTANCE.service.d/network.conf 644 root:root
    run_service redis-server@$INSTANCE "setpriv --reuid redis --regid redis --clear-groups redis-server $REDIS_CONF"

    local host=$bind
    [[ $bind != *:* ]] || host="[$bind]"
    local url=redis://nfqe@$host:6379
    [ "$prefix" = nfqe ] || url+="?prefix=$prefix"
    say "on each node, with a copy of $PASSWORD: provision.sh node --store '$url' --password-file FILE"
}

redis_configuration() {
    local digest
    digest=$(tr -d '\n' <$PASSWORD | sha256sum | cut -d ' ' -f 1)
    cat <<END
# Written by provision.sh of nfq_enforcer, which overwrites it at each run: the store of a cluster.
bind $bind
port 6379
dir $REDIS_DATA
logfile ""
daemonize no

# A change that was confirmed to a node is on the disk a second later; no key is evicted for lack of memory.
appendonly yes
appendfsync everysec
maxmemory-policy noeviction

# The password is in $PASSWORD; this is its SHA-256.
user default off
user nfqe on #$digest resetkeys ~$prefix:* resetchannels &$prefix:* -@all +@connection +@read +@write +@transaction +time +eval +evalsha +script|load +publish +subscribe -function -@dangerous +info
END
}

unit_addition() {
    cat <<'END'
# Written by provision.sh of nfq_enforcer: the server can only listen on an address that already exists.
[Unit]
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
RestartSec=1
END
}

# --- node --------------------------------------------------------------------

set_up_node() {
    install_packages "${NODE_PACKAGES[@]}"
    install_program
    if [ -n "$password_file" ]; then keep_password; fi
    install -d -m 755 $ETC
    if [ "$store" = memory: ]; then install -d -m 755 $ETC/documents; fi
    agent_configuration >"$work/agent.yaml"
    keep_configuration
    groupadd --system --force nfq-enforcer # of the API's socket
    put "$here/nfq-enforcer.service" /etc/systemd/system/nfq-enforcer.service 644 root:root
    run_service nfq-enforcer "nfq-enforcer agent"
}

# The program is installed again only when a file in the repository has changed.
install_program() {
    local tree
    tree=$(readlink -f "$here/../..")
    [ -f "$tree/setup.cfg" ] && [ -d "$tree/nfq_enforcer/core" ] ||
        fail "$here is not in the repository of nfq_enforcer: clone it, and run nfq_enforcer/systemd/provision.sh there"
    mkdir "$work/tree" # pip builds in the tree, which may belong to another user or be read-only
    cp -RL "$tree"/{setup.cfg,pyproject.toml,README.md,LICENSE,requirements,nfq_enforcer} "$work/tree"
    find "$work/tree" -name __pycache__ -prune -exec rm -rf {} +
    local print
    print=$(cd "$work/tree" && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum)
    if [ "$(cat $PROGRAM/.installed 2>/dev/null)" != "$print" ] || ! $PROGRAM/bin/nfq-enforcer version >/dev/null 2>&1; then
        say "installing the program in $PROGRAM"
        rm -f $PROGRAM/.installed
        quietly python3 -m venv --clear $PROGRAM
        # the packages are those of the lock, the tools that build them included
        local pip=("$PROGRAM/bin/pip" install --no-build-isolation)
        quietly "${pip[@]}" --require-hashes -r "$work/tree/requirements/build.txt"
        quietly "${pip[@]}" --require-hashes -r "$work/tree/requirements/run.txt"
        quietly "${pip[@]}" --no-deps "$work/tree"
        install_help
        printf '%s\n' "$print" >$PROGRAM/.installed
        changed=yes
    fi
    local link=/usr/local/bin/nfq-enforcer doc=/usr/local/share/doc/nfq_enforcer/README.md
    [ "$(readlink $link)" = $PROGRAM/bin/nfq-enforcer ] || ln -sfn $PROGRAM/bin/nfq-enforcer $link
    cmp -s "$tree/README.md" $doc || install -D -m 644 "$tree/README.md" $doc
}

# The man pages, and the completion of each shell in the folder where it looks for those of local programs.
install_help() {
    local share=/usr/local/share program=$PROGRAM/bin/nfq-enforcer
    quietly $PROGRAM/bin/python -m nfq_enforcer.cli.man_pages $share/man/man1
    mkdir "$work/completion"
    local shell
    for shell in bash fish zsh; do $program completion $shell >"$work/completion/$shell"; done
    install -D -m 644 "$work/completion/bash" $share/bash-completion/completions/nfq-enforcer
    install -D -m 644 "$work/completion/fish" $share/fish/vendor_completions.d/nfq-enforcer.fish
    install -D -m 644 "$work/completion/zsh" $share/zsh/site-functions/_nfq-enforcer
}

agent_configuration() {
    local body
    body=$(
        if [ -n "$name$interface" ]; then echo "node:"; fi
        if [ -n "$name" ]; then echo "  name: \"$name\""; fi
        if [ -n "$interface" ]; then interface_settings; fi
        echo "store: \"$(with_password_file)\""
        if [ "$store" = memory: ]; then echo "documents: [$ETC/documents]"; else echo "state: $STATE"; fi
    )
    cat <<END
# Written by provision.sh, which keeps it once it is changed by hand; the keys are in nfq_enforcer/agent/config.py.
# $(digest_of "$body")
$body
END
}

interface_settings() {
    local device addresses
    device=$(ip -o address show to "$interface" 2>/dev/null | awk 'NR == 1 { print $2 }') || true # a name is no address
    device=${device:-$interface}
    ip link show dev "$device" >/dev/null 2>&1 || fail "--interface $interface: no interface has this name or address"
    addresses=$(global_addresses dev "$device" | paste -sd ' ')
    [ -n "$addresses" ] || fail "--interface $interface: it has no global address for the other nodes to reach this one"
    echo "  ips: [\"${addresses// /\", \"}\"]"
    echo "  cluster_interfaces: [\"$device\"]"
}

global_addresses() {
    ip -o address show scope global "$@" | awk '$3 ~ /^inet/ { sub("/.*", "", $4); print $4 }'
}

with_password_file() {
    local with=$store
    if [ -n "$password_file" ]; then
        if [[ $store == *\?* ]]; then with+="&"; else with+="?"; fi
        with+=password_file=$PASSWORD
    fi
    printf '%s' "$with"
}

digest_of() { printf '%s\n' "$1" | sha256sum | cut -d ' ' -f 1; }

# A file that still has the digest in its second line was not changed by hand.
keep_configuration() {
    local file=$ETC/agent.yaml
    if [ ! -e $file ] || cmp -s "$work/agent.yaml" $file ||
        [ "$(sed -n 's/^# \([0-9a-f]\{64\}\)$/\1/p' $file | head -n 1)" = "$(digest_of "$(sed 1,2d $file)")" ]; then
        put "$work/agent.yaml" $file 600 root:root
        rm -f $file.new
        return
    fi
    install -m 600 "$work/agent.yaml" $file.new
    warn "$file was changed by hand and is kept; the one from these arguments is in $file.new"
}

main "$@"

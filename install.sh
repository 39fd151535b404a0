#!/bin/sh
# Installs mussel on this machine and starts it. Run it again to upgrade or to change the flags.
#
#   sudo ./install.sh [server flags]           from a checkout (builds) or from an unpacked release (does not)
#   sudo ./install.sh agent --server https://first:6443 --token K10...       a node of a cluster that exists
#
# Environment, all optional:
#   INSTALL_MUSSEL_EXEC          command and flags for the service, as the arguments of this script
#   INSTALL_MUSSEL_BIN           a mussel binary to install instead of building one
#   INSTALL_MUSSEL_BIN_DIR       where binary and scripts go              (/usr/local/bin)
#   INSTALL_MUSSEL_SYSTEMD_DIR   where the unit goes                      (/etc/systemd/system)
#   INSTALL_MUSSEL_NAME          service name becomes mussel-<name>       (mussel)
#   INSTALL_MUSSEL_SKIP_DEPS     true: install no packages and no Rust
#   INSTALL_MUSSEL_SKIP_ENABLE   true: write everything, enable and start nothing
#   INSTALL_MUSSEL_SKIP_START    true: enable, but do not start
#   INSTALL_MUSSEL_FORCE_RESTART true: restart even if nothing changed
#   MUSSEL_*, HTTP_PROXY, HTTPS_PROXY, NO_PROXY are given to the service.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
BIN_DIR=${INSTALL_MUSSEL_BIN_DIR:-/usr/local/bin}
SYSTEMD_DIR=${INSTALL_MUSSEL_SYSTEMD_DIR:-/etc/systemd/system}
SERVICE=mussel${INSTALL_MUSSEL_NAME:+-$INSTALL_MUSSEL_NAME}

info() { echo "[mussel] $*"; }
warn() { echo "[mussel] warning: $*" >&2; }
fail() { echo "[mussel] error: $*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# --- what to run ------------------------------------------------------------------------------------------------------

[ "$(id -u)" = 0 ] || fail "must be root: sudo $0 $*"
case "$SERVICE" in *[!a-zA-Z0-9._-]*) fail "INSTALL_MUSSEL_NAME may hold letters, digits, dots, dashes and underscores" ;; esac

# The first word is the command, unless it is a flag; without one, MUSSEL_URL makes this machine an agent.
# shellcheck disable=SC2086
set -- ${INSTALL_MUSSEL_EXEC:-} "$@"
case "${1:-}" in
    server | agent) COMMAND=$1; shift ;;
    "" | -*) COMMAND=server; [ -z "${MUSSEL_URL:-}" ] || COMMAND=agent ;;
    *) fail "unknown command $1; the first argument is 'server', 'agent' or a flag" ;;
esac

# Quotes each argument so that it survives both systemd's and the shell's reading.
quoted() { for word in "$@"; do printf " '%s'" "$(printf %s "$word" | sed "s/'/'\\\\''/g")"; done; }
FLAGS=$(quoted "$@")

# The value that a flag has on our command line, or else in our environment; the config file is left to mussel.
flag() { # flag name, environment name, default
    found=${2:+$(eval "printf %s \"\${$2:-}\"")}
    next=
    eval "set -- \"\$1\" \"\$3\" $FLAGS"
    name=$1; default=$2; shift 2
    for word in "$@"; do
        [ -n "$next" ] && { found=$word; next=; continue; }
        case "$word" in --"$name"=*) found=${word#*=} ;; --"$name") next=1 ;; esac
    done
    printf %s "${found:-$default}"
}
DATA_DIR=$(flag data-dir MUSSEL_DATA_DIR /var/lib/mussel)
RUN_DIR=$(flag run-dir MUSSEL_RUN_DIR /run/mussel)
CGROUP_ROOT=$(flag cgroup-root MUSSEL_CGROUP_ROOT /)
KUBECONFIG_FILE=$(flag write-kubeconfig MUSSEL_WRITE_KUBECONFIG /etc/mussel/mussel.yaml)

if [ -d /run/systemd/system ] && have systemctl; then INIT=systemd; else INIT=none; fi

# --- what it needs ----------------------------------------------------------------------------------------------------

get_packages() {
    if [ "${INSTALL_MUSSEL_SKIP_DEPS:-}" = true ]; then fail "missing: $*; install them, or do not set INSTALL_MUSSEL_SKIP_DEPS"; fi
    info "installing $*"
    if have apt-get; then
        export DEBIAN_FRONTEND=noninteractive
        set -- apt-get install -y -qq --no-install-recommends "$@"
        apt-get update -qq >/dev/null || warn "apt-get update failed; going on with the package lists that are there"
    elif have dnf; then set -- dnf install -y -q "$@"
    elif have zypper; then set -- zypper -q install -y "$@"
    elif have apk; then set -- apk add -q "$@"
    elif have pacman; then set -- pacman -S --noconfirm --needed "$@"
    else fail "no package manager that I know; install $* by hand"; fi
    said=$("$@" 2>&1 >/dev/null) || fail "could not install packages: $(printf %s "$said" | tail -n 1); install them by hand: $*"
}

packages() {
    set --
    have iptables-restore || set -- "$@" iptables
    have modprobe || set -- "$@" kmod
    [ -e /etc/ssl/certs/ca-certificates.crt ] || [ -e /etc/pki/tls/certs/ca-bundle.crt ] || [ -e /etc/ssl/ca-bundle.pem ] ||
        set -- "$@" ca-certificates
    if [ $# = 0 ] || [ "${INSTALL_MUSSEL_SKIP_DEPS:-}" = true ]; then return 0; fi
    get_packages "$@"
}

kernel() {
    [ "$(uname -s)" = Linux ] || fail "mussel runs on Linux"
    for module in overlay br_netfilter nf_conntrack iptable_nat; do modprobe "$module" 2>/dev/null || true; done
    grep -qw overlay /proc/filesystems ||
        fail "the kernel has no overlayfs; boot a kernel with CONFIG_OVERLAY_FS (Debian: apt-get install linux-image-$(dpkg --print-architecture 2>/dev/null || uname -m))"
    [ -e /proc/sys/net/bridge/bridge-nf-call-iptables ] ||
        fail "the kernel has no br_netfilter; boot a kernel with CONFIG_BRIDGE_NETFILTER, or install its modules package (Ubuntu on Raspberry Pi: linux-modules-extra-raspi)"
    iptables -w -t nat -S >/dev/null 2>&1 ||
        fail "iptables does not work here: $(iptables -w -t nat -S 2>&1 | head -n 1); the kernel needs CONFIG_NF_NAT and iptables or nf_tables support"
    memory=yes
    if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
        grep -qw memory /sys/fs/cgroup/cgroup.controllers || memory=no
    elif ! awk '$1 == "memory" && $4 == 1 { found = 1 } END { exit !found }' /proc/cgroups; then
        memory=no
    fi
    if [ $memory = no ]; then
        line=/boot/cmdline.txt
        [ -e /boot/firmware/cmdline.txt ] && line=/boot/firmware/cmdline.txt
        fail "the memory control group is off; add 'cgroup_memory=1 cgroup_enable=memory' to the line in $line (Raspberry Pi) or to the kernel's command line, and reboot"
    fi
}

# --- the binary -------------------------------------------------------------------------------------------------------

# Is there a cargo, and is it new enough for this source?
have_rust() {
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$here/Cargo.toml")
    have cargo || return 1
    found=$(cd "$here" && cargo --version 2>/dev/null | awk '{ print $2 }')
    [ -n "$found" ] && [ "$(printf '%s\n%s\n' "$wanted" "$found" | sort -V | head -n 1)" = "$wanted" ]
}

# Puts Rust's own toolchain below target/, so that nothing of it is left on the machine when the checkout is removed.
get_rust() {
    export RUSTUP_HOME="$here/target/rust/rustup" CARGO_HOME="$here/target/rust/cargo"
    PATH="$CARGO_HOME/bin:$PATH"
    have_rust && return 0
    case $(uname -m) in
        x86_64 | aarch64) host=$(uname -m)-unknown-linux-gnu ;;
        *) fail "there is no Rust toolchain for $(uname -m) that I know; install cargo $wanted or later and run this again" ;;
    esac
    have curl || get_packages curl ca-certificates
    info "installing Rust (https://rustup.rs) into $here/target/rust"
    url=https://static.rust-lang.org/rustup/dist/$host/rustup-init
    mkdir -p "$here/target/rust"
    init=$here/target/rust/rustup-init
    { curl --proto '=https' --tlsv1.2 -fsS --retry 3 -o "$init" "$url" && sum=$(curl --proto '=https' --tlsv1.2 -fsS --retry 3 "$url.sha256"); } ||
        fail "Rust could not be downloaded; install cargo $wanted or later by hand and run this again"
    [ "$(sha256sum "$init" | cut -d' ' -f1)" = "${sum%% *}" ] || fail "the download of rustup-init is damaged; run this again"
    chmod 0755 "$init"
    "$init" -y -q --no-modify-path --profile minimal --default-toolchain stable >/dev/null ||
        fail "Rust could not be installed; install cargo $wanted or later by hand and run this again"
    rm -f "$init"
    have_rust || fail "the Rust that was installed is older than $wanted"
}

build() {
    have cargo || PATH="$PATH:${HOME:-/root}/.cargo/bin"
    have_rust || get_rust
    # The libc is linked in, for which its development files are needed also where there is a compiler.
    if have dnf; then libc=glibc-static; elif have zypper; then libc=glibc-devel-static; elif have pacman; then libc=glibc; else libc=libc6-dev; fi
    if ! have cc || ! echo 'int main(void) { return 0; }' | cc -static -x c -o /dev/null - 2>/dev/null; then get_packages gcc $libc; fi
    info "building with cargo $found (some minutes the first time)"
    "$here/packaging/build.sh" >&2 || fail "the build failed"
}

binary() {
    if [ -n "${INSTALL_MUSSEL_BIN:-}" ]; then
        source=$INSTALL_MUSSEL_BIN
    elif [ -f "$here/mussel" ]; then
        source=$here/mussel
    elif [ -f "$here/Cargo.toml" ]; then
        build
        source=$("$here/packaging/build.sh" --print)
    else
        fail "no binary beside this script and no checkout to build from"
    fi
    [ -f "$source" ] || fail "$source does not exist"
    version=$("$source" --version) || fail "$source does not run on this machine"
    if cmp -s "$source" "$BIN_DIR/mussel"; then CHANGED=no; else
        mkdir -p "$BIN_DIR"
        # Moved into place: the running binary (its shims re-execute it) is never half written.
        cp "$source" "$BIN_DIR/.mussel.new"
        chmod 0755 "$BIN_DIR/.mussel.new"
        mv -f "$BIN_DIR/.mussel.new" "$BIN_DIR/mussel"
        CHANGED=yes
    fi
    info "$version in $BIN_DIR"
}

kubectl_tool() {
    have kubectl && return 0
    [ "${INSTALL_MUSSEL_SKIP_DEPS:-}" = true ] && return 0
    info "installing kubectl"
    case $(uname -m) in x86_64) arch=amd64 ;; aarch64) arch=arm64 ;; armv7l) arch=arm ;; *) arch=$(uname -m) ;; esac
    url=https://dl.k8s.io/release/$("$BIN_DIR/mussel" --version | sed 's/.*\(v[0-9.]*\).*/\1/')/bin/linux/$arch/kubectl
    if have curl && curl -fsSL --connect-timeout 10 -o "$BIN_DIR/.kubectl.new" "$url" 2>/dev/null; then
        chmod 0755 "$BIN_DIR/.kubectl.new"
        # The link tells the uninstaller that this kubectl came with mussel.
        mv -f "$BIN_DIR/.kubectl.new" "$BIN_DIR/mussel-kubectl"
        ln -sf mussel-kubectl "$BIN_DIR/kubectl"
    else
        rm -f "$BIN_DIR/.kubectl.new"
        { have apt-get && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends kubernetes-client; } >/dev/null 2>&1 ||
            warn "kubectl is not installed and could not be; get it from https://kubernetes.io/docs/tasks/tools"
    fi
}

# --- service ----------------------------------------------------------------------------------------------------------

# Writes standard input to $1 with mode $2; notes whether anything changed.
put() {
    mkdir -p "$(dirname "$1")"
    new=$1.new
    (umask 077; cat >"$new")
    chmod "$2" "$new"
    if cmp -s "$new" "$1"; then rm -f "$new"; else mv -f "$new" "$1"; CHANGED=yes; fi
}

environment() {
    env | grep -E '^(MUSSEL_[A-Z0-9_]*|HTTPS?_PROXY|NO_PROXY|https?_proxy|no_proxy)=' | sort || true
}

service_systemd() {
    environment | put "$SYSTEMD_DIR/$SERVICE.service.env" 0600
    unit=$here/systemd/mussel.service
    [ -f "$unit" ] || fail "$unit is missing"
    # In a unit, % begins a specifier and $ a variable.
    exec_line=$(printf %s "$BIN_DIR/mussel $COMMAND$FLAGS" | sed 's/%/%%/g; s/\$/$$/g')
    awk -v exec_line="$exec_line" -v env="$SYSTEMD_DIR/$SERVICE.service.env" '
        /^ExecStart=/ { print "ExecStart=" exec_line; next }
        /^EnvironmentFile=.*service.env/ { print "EnvironmentFile=-" env; next }
        { print }' "$unit" | put "$SYSTEMD_DIR/$SERVICE.service" 0644
    [ "${INSTALL_MUSSEL_SKIP_ENABLE:-}" = true ] && return 0
    systemctl daemon-reload
    systemctl enable "$SERVICE" >/dev/null 2>&1 || fail "systemctl enable $SERVICE failed"
    [ "${INSTALL_MUSSEL_SKIP_START:-}" = true ] && return 0
    if [ "$CHANGED" = yes ] || [ "${INSTALL_MUSSEL_FORCE_RESTART:-}" = true ] || ! systemctl -q is-active "$SERVICE"; then
        info "starting $SERVICE (log: journalctl -u $SERVICE)"
        # An agent is up when it has joined, which may take until somebody mends its token.
        if [ $COMMAND = agent ]; then block=--no-block; else block=; fi
        # shellcheck disable=SC2086
        systemctl restart $block "$SERVICE" || fail "$SERVICE did not start: $(journalctl -u "$SERVICE" -n 3 -o cat 2>/dev/null)"
    fi
}

# Where there is no systemd: a script that starts mussel under a loop that restarts it, as an LSB init script.
service_script() {
    environment | sed "s/'/'\\\\''/g; s/=\(.*\)/='\1'/; s/^/export /" | put "/etc/mussel/$SERVICE.env" 0600
    put "/etc/init.d/$SERVICE" 0755 <<SCRIPT
#!/bin/sh
### BEGIN INIT INFO
# Provides:          $SERVICE
# Required-Start:    \$network \$local_fs
# Required-Stop:
# Default-Start:     2 3 4 5
# Default-Stop:      0 1 6
# Short-Description: Mussel: Kubernetes for the edge
### END INIT INFO
PIDFILE=/run/$SERVICE.pid
LOG=/var/log/$SERVICE.log
running() { [ -s "\$PIDFILE" ] && kill -0 "\$(cat "\$PIDFILE")" 2>/dev/null; }
case "\${1:-}" in
    start)
        running && exit 0
        [ -f /etc/mussel/$SERVICE.env ] && . /etc/mussel/$SERVICE.env
        ulimit -n 1048576 2>/dev/null || true
        # The loop ends when it is told to (TERM), and passes that on; pods live on either way.
        setsid sh -c '
            trap "stop=1; kill \\\$child 2>/dev/null" TERM
            stop=; while [ -z "\$stop" ]; do
                $BIN_DIR/mussel "\$@" & child=\$!
                wait \$child; wait \$child 2>/dev/null
                [ -n "\$stop" ] || sleep 5
            done' mussel-loop $COMMAND$FLAGS >>"\$LOG" 2>&1 </dev/null &
        echo \$! >"\$PIDFILE" ;;
    stop)
        running || exit 0
        pid=\$(cat "\$PIDFILE")
        kill "\$pid"
        for _ in \$(seq 1 300); do kill -0 "\$pid" 2>/dev/null || break; sleep 0.1; done
        rm -f "\$PIDFILE" ;;
    restart | force-reload) "\$0" stop && "\$0" start ;;
    status) if running; then echo "$SERVICE is running"; else echo "$SERVICE is not running"; exit 3; fi ;;
    *) echo "usage: \$0 start|stop|restart|status" >&2; exit 2 ;;
esac
SCRIPT
    [ "${INSTALL_MUSSEL_SKIP_ENABLE:-}" = true ] && return 0
    have update-rc.d && update-rc.d "$SERVICE" defaults >/dev/null 2>&1
    [ "${INSTALL_MUSSEL_SKIP_START:-}" = true ] && return 0
    if [ "$CHANGED" = yes ] || [ "${INSTALL_MUSSEL_FORCE_RESTART:-}" = true ]; then "/etc/init.d/$SERVICE" stop; fi
    info "starting $SERVICE (no systemd here; log: /var/log/$SERVICE.log)"
    "/etc/init.d/$SERVICE" start
}

scripts() {
    put "$BIN_DIR/mussel-killall.sh" 0755 <<SCRIPT
#!/bin/sh
# Stops mussel and all its pods and undoes its network set-up; data stays.
[ "\$(id -u)" = 0 ] || exec sudo "\$0" "\$@"
if [ -d /run/systemd/system ]; then systemctl stop $SERVICE 2>/dev/null; fi
[ -x /etc/init.d/$SERVICE ] && /etc/init.d/$SERVICE stop
exec "$BIN_DIR/mussel" killall --data-dir '$DATA_DIR' --run-dir '$RUN_DIR' --cgroup-root '$CGROUP_ROOT'
SCRIPT
    put "$BIN_DIR/$SERVICE-uninstall.sh" 0755 <<SCRIPT
#!/bin/sh
# Takes mussel off this machine, with its pods and its data.
[ "\$(id -u)" = 0 ] || exec sudo "\$0" "\$@"
"$BIN_DIR/mussel-killall.sh"
if [ -d /run/systemd/system ]; then
    systemctl disable $SERVICE 2>/dev/null
    systemctl reset-failed $SERVICE 2>/dev/null
fi
command -v update-rc.d >/dev/null 2>&1 && [ -e /etc/init.d/$SERVICE ] && update-rc.d -f $SERVICE remove >/dev/null 2>&1
rm -f '$SYSTEMD_DIR/$SERVICE.service' '$SYSTEMD_DIR/$SERVICE.service.env' /etc/init.d/$SERVICE /etc/mussel/$SERVICE.env \\
    /var/log/$SERVICE.log /run/$SERVICE.pid
if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
rm -f '$KUBECONFIG_FILE'
# Only our pods' logs: others may keep theirs in the same place.
for pod in '$DATA_DIR'/agent/kubelet/pods/*; do rm -rf /var/log/pods/*_"\${pod##*/}"; done
rm -rf /etc/mussel '$DATA_DIR' '$RUN_DIR'
for link in /var/log/containers/*.log; do [ -e "\$link" ] || rm -f "\$link"; done
rmdir /var/log/pods /var/log/containers 2>/dev/null
if [ "\$(readlink "$BIN_DIR/kubectl")" = mussel-kubectl ]; then rm -f "$BIN_DIR/kubectl" "$BIN_DIR/mussel-kubectl"; fi
rm -f "$BIN_DIR/mussel" "$BIN_DIR/mussel-killall.sh" "$BIN_DIR/$SERVICE-uninstall.sh"
echo "[mussel] removed"
SCRIPT
}

# --- go ---------------------------------------------------------------------------------------------------------------

wait_ready() {
    [ "${INSTALL_MUSSEL_SKIP_ENABLE:-}" = true ] || [ "${INSTALL_MUSSEL_SKIP_START:-}" = true ] && return 0
    [ $COMMAND = server ] || { wait_joined; return; }
    have kubectl || { info "started; get kubectl and use KUBECONFIG=$KUBECONFIG_FILE"; return 0; }
    info "waiting for the node to be Ready"
    deadline=$(($(date +%s) + 180))
    while [ "$(date +%s)" -lt $deadline ]; do
        if KUBECONFIG=$KUBECONFIG_FILE kubectl get nodes --no-headers 2>/dev/null | grep -qE '[[:space:]]Ready'; then
            KUBECONFIG=$KUBECONFIG_FILE kubectl get nodes
            info "ready. Next:"
            echo "  export KUBECONFIG=$KUBECONFIG_FILE"
            echo "  kubectl get pods -A"
            return 0
        fi
        sleep 0.5
    done
    if [ $INIT = systemd ]; then log="journalctl -u $SERVICE"; else log="cat /var/log/$SERVICE.log"; fi
    fail "the node is not Ready after 180 s; see $log, which ends with
$($log 2>/dev/null | tail -n 5)"
}

# An agent has nobody's kubeconfig; what it keeps of the cluster tells that it was let in.
wait_joined() {
    info "waiting for the cluster to take this machine"
    deadline=$(($(date +%s) + 60))
    while [ "$(date +%s)" -lt $deadline ]; do
        [ ! -e "$DATA_DIR/agent/kubelet.kubeconfig" ] || { info "joined; see it with: kubectl get nodes"; return 0; }
        sleep 0.5
    done
    if [ $INIT = systemd ]; then log="journalctl -u $SERVICE"; else log="cat /var/log/$SERVICE.log"; fi
    fail "not joined after 60 s; it is tried on. See $log, which ends with
$($log 2>/dev/null | tail -n 5)"
}

packages
kernel
binary
[ $COMMAND = agent ] || kubectl_tool
scripts
if [ $INIT = systemd ]; then service_systemd; else service_script; fi
wait_ready

#!/data/data/com.termux/files/usr/bin/sh
# Takes away what install.sh brought: the agent, its data and the boot script.
#
#   sh uninstall.sh [--keep-engine]
#
# Packages and the main host's own data stay; it says what is left.

set -eu

folder="$HOME/.local/share/llama-rpc-supervisor"
boot_script="$HOME/.termux/boot/10-llama-rpc-agent"
most_s=20

say() {
    printf '%s\n' "$*"
}

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

has() {
    command -v "$1" >/dev/null 2>&1
}

# What the kernel says of process $1 from its state on; its name before that may hold anything.
facts_of() {
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    printf '%s' "${stat##*) }"
}

# Whether process $1 that began at $2 still runs; what nobody has reaped yet does not.
is_alive() {
    # shellcheck disable=SC2046 # its fields are wanted one by one
    set -- "$2" $(facts_of "$1")
    [ $# -ge 21 ] && [ "$2" != Z ] || return 1
    began=$1
    shift 20
    [ "$1" = "$began" ]
}

# The boot script recorded the process, so no other one is ended, whatever its name.
stop_agent() {
    recorded=$(cat "$folder/agent.pid" 2>/dev/null) || recorded=''
    pid=${recorded%% *}
    began=${recorded##* }
    if [ -n "$pid" ] && is_alive "$pid" "$began"; then
        kill "$pid"
        waited_s=0
        while is_alive "$pid" "$began"; do
            if [ "$waited_s" -ge "$most_s" ]; then
                kill -9 "$pid"
                say "the agent (process $pid) did not end within $most_s s and was killed"
                break
            fi
            sleep 1
            waited_s=$((waited_s + 1))
        done
        say "stopped the agent (process $pid)"
    fi
    ! is_locked "$folder/agent/agent.lock" ||
        fail "an agent that was not started by $boot_script still runs; end it with Ctrl-C in its session, then this again"
}

# Whether a process holds lock $1. The kernel gives it back when that one ends.
is_locked() {
    [ -e "$1" ] || return 1
    waited_s=0
    while ! lock_is_free "$1"; do
        waited_s=$((waited_s + 1))
        [ "$waited_s" -lt 5 ] || return 0
        sleep 1
    done
    return 1
}

lock_is_free() {
    if has flock; then
        flock -n "$1" true
    elif has python; then
        python -c 'import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)' "$1" 2>/dev/null
    fi
}

release_wake_lock() {
    if has termux-wake-unlock; then
        termux-wake-unlock || say "the wake lock could not be released; do it in Termux's notification"
    fi
}

remove_files() {
    rm -f "$boot_script"
    for name in agent.pyz join-code pin llama-cpp-bin agent.pid doctor.sh; do
        rm -f "$folder/$name" "$folder/$name.new"
    done
    for path in "$folder"/agent/* "$folder"/agent/.[!.]*; do
        if [ "$keep_engine" = no ] || [ "$path" != "$folder/agent/engines" ]; then
            rm -rf "$path"
        fi
    done
    remove_main_host
    # Last of all, so that a run that was cut short can be repeated.
    rm -f "$folder/uninstall.sh" "$folder/uninstall.sh.new"
    rmdir "$folder/agent" "$folder" 2>/dev/null || true
}

# What --main-host brought. Keys, settings and records are worth more than their room.
remove_main_host() {
    [ -d "$folder/program" ] || return 0
    rm -rf "$folder/program"
    rm -f "$PREFIX/bin/supervisor"
    say "removed the supervisor program as well"
}

say_what_is_left() {
    say "removed the agent, its data and its boot script"
    if [ -d "$folder/agent/engines" ]; then
        say "left: the engine, in $folder/agent/engines"
    fi
    if [ -d "$folder/supervisor" ]; then
        say "left: keys and records of this main host, in $folder/supervisor (rm -r it if nobody needs them)"
    fi
    say "left: Termux's packages (pkg uninstall python-psutil termux-api, and python or curl if nothing else uses them)"
    say "On the main host, 'supervisor remove NAME' makes it forget this device."
}

main() {
    keep_engine=no
    for argument in "$@"; do
        case $argument in
            --keep-engine) keep_engine=yes ;;
            *)
                printf 'usage: sh uninstall.sh [--keep-engine]\n' >&2
                exit 2
                ;;
        esac
    done
    ! is_locked "$folder/supervisor/supervisor.lock" ||
        fail "this phone is a main host that runs; end 'supervisor up' with Ctrl-C in its session, then this again"
    stop_agent
    release_wake_lock
    remove_files
    say_what_is_left
}

# The last line, and in braces, so that a download cut short runs nothing.
{ main "$@"; }

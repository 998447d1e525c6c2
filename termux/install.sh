#!/data/data/com.termux/files/usr/bin/sh
# Makes a phone with Termux a worker: installs what is missing, fetches the agent from the main
# host, has it started at every boot, and starts it. A second run changes nothing but what is new.
#
#   sh install.sh JOIN_CODE PIN [--no-start]
#
# JOIN_CODE and PIN come from the main host ('supervisor invite'); with - for JOIN_CODE it is read
# from SUPERVISOR_JOIN_CODE. LLAMA_CPP_BIN may name the folder of the llama.cpp programs.

set -eu

folder="$HOME/.local/share/llama-rpc-supervisor"
engines="$folder/agent/engines"
boot_script="$HOME/.termux/boot/10-llama-rpc-agent"

say() {
    printf '%s\n' "$*"
}

warn() {
    printf 'warning: %s\n' "$*" >&2
}

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

has() {
    command -v "$1" >/dev/null 2>&1
}

read_arguments() {
    code=''
    pin=''
    must_start=yes
    for argument in "$@"; do
        case $argument in
            --no-start) must_start=no ;;
            --*) usage ;;
            *)
                if [ -z "$code" ]; then
                    code=$argument
                elif [ -z "$pin" ]; then
                    pin=$argument
                else
                    usage
                fi
                ;;
        esac
    done
    [ -n "$pin" ] || usage
    [ "$code" != - ] || code=${SUPERVISOR_JOIN_CODE:-}
    case $code in
        */*/*/* | /* | */ | *//* | *[[:space:]]*) bad_code ;;
        *:*/*/*) ;;
        *) bad_code ;;
    esac
    endpoints=${code%%/*}
    case $pin in
        sha256//*=) ;;
        *) fail "the pin does not begin with sha256// and end with =; copy it again, whole" ;;
    esac
}

usage() {
    printf 'usage: sh install.sh JOIN_CODE PIN [--no-start]\n' >&2
    exit 2
}

bad_code() {
    fail "the join code is not of the form ADDRESS:PORT/TOKEN/FINGERPRINT; copy it again, whole"
}

install_missing() {
    if ! has python || ! has curl; then
        has pkg || fail "there is no pkg command; run this in Termux (https://f-droid.org/packages/com.termux)"
        pkg install -y python curl ||
            fail "pkg could not install python and curl; check the network, run 'pkg update', then this again"
    fi
    python -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "the agent needs Python 3.11 or newer; run 'pkg upgrade', then this again"
    python -c 'import psutil' 2>/dev/null || install_optional python-psutil
    has termux-battery-status || install_optional termux-api
}

install_optional() {
    if ! has pkg || ! pkg install -y "$1"; then
        warn "$1 could not be installed; the agent runs without it but knows less about the phone"
    fi
}

# Fetches file $1 of the main host into $2, from the first of its addresses that answers. Its
# certificate names a role, not an address, hence -k; what is trusted is the pinned key.
fetch() {
    rest=$endpoints
    reasons=''
    while [ -n "$rest" ]; do
        endpoint=${rest%%,*}
        rest=${rest#"$endpoint"}
        rest=${rest#,}
        status=0
        reason=$(curl -fsSk --noproxy '*' --connect-timeout 5 --speed-time 30 --pinnedpubkey "$pin" \
            -o "$2" "https://$endpoint/files/$1" 2>&1) || status=$?
        case $status in
            0) return ;;
            90) reason="its key is not the pinned one" ;;
        esac
        reasons="$reasons${reasons:+; }$endpoint: $reason"
    done
    fail "cannot fetch $1 ($reasons); check that 'supervisor up' runs on the main host and that both are on one network, or get a new code and pin there"
}

# Moves $1 to $2 with mode $3; an equal file stays as it is.
place() {
    chmod "$3" "$1"
    if cmp -s "$1" "$2"; then
        rm -f "$1"
        chmod "$3" "$2"
    else
        mv -f "$1" "$2"
    fi
}

install_agent() {
    umask 077
    mkdir -p "$engines" "${boot_script%/*}"
    trap 'rm -f "$folder"/*.new' EXIT
    fetch agent.pyz "$folder/agent.pyz.new"
    fetch boot-agent "$folder/boot-agent.new"
    version=$(python "$folder/agent.pyz.new" --version) ||
        fail "the agent does not run on this Python; run 'pkg upgrade', then this again"
    printf '%s\n' "$code" >"$folder/join-code.new"
    place "$folder/agent.pyz.new" "$folder/agent.pyz" 600
    place "$folder/boot-agent.new" "$boot_script" 700
    place "$folder/join-code.new" "$folder/join-code" 600
    say "agent $version is in $folder"
}

# Termux:Boot knows nothing of the shell's variables, so the folder is written down.
remember_engine() {
    [ -n "${LLAMA_CPP_BIN:-}" ] || return 0
    path=$(cd "$LLAMA_CPP_BIN" 2>/dev/null && pwd) ||
        fail "LLAMA_CPP_BIN names $LLAMA_CPP_BIN, which is no folder; name that of ggml-rpc-server"
    printf '%s\n' "$path" >"$folder/llama-cpp-bin.new"
    place "$folder/llama-cpp-bin.new" "$folder/llama-cpp-bin" 600
}

advise_engine() {
    remembered=$(cat "$folder/llama-cpp-bin" 2>/dev/null) || remembered=''
    for path in "$remembered" "$engines"/* "$engines"/*/bin; do
        for name in ggml-rpc-server rpc-server; do
            if [ -x "$path/$name" ]; then
                say "llama.cpp programs are in $path"
                return
            fi
        done
    done
    say ""
    say "llama.cpp is still missing (Termux's own package has no RPC). No compiler is needed: from"
    say "https://github.com/ggml-org/llama.cpp/releases take the build that the main host runs"
    say "('supervisor engine list' there), for Android 9 or newer, and start the agent again:"
    say "  tar -xzf llama-bNNNN-bin-android-arm64.tar.gz -C $engines"
    say "A folder elsewhere is named by LLAMA_CPP_BIN when this script runs."
}

advise_android() {
    say ""
    say "So that Android lets the agent run:"
    say "- Settings > Apps > Termux > Battery: Unrestricted; the same for Termux:Boot, Termux:API."
    say "- Install Termux:Boot from where Termux came from and open it once; it starts the agent"
    say "  after every boot, with $boot_script"
    advise_phantom_processes
    say "- Keep the phone on its charger."
    say ""
}

# Android 12 and newer end child processes of apps, and those that use the processor, as ours do.
advise_phantom_processes() {
    sdk=$(getprop ro.build.version.sdk 2>/dev/null) || sdk=''
    switch=$(getprop persist.sys.fflag.override.settings_enable_monitor_phantom_procs 2>/dev/null) || switch=''
    case $sdk in
        '' | *[!0-9]*) sdk=34 ;;
    esac
    if [ "$sdk" -lt 31 ] || [ "$switch" = false ]; then
        return
    fi
    if [ "$sdk" -ge 34 ]; then
        say "- Developer options: switch on 'Disable child process restrictions', and leave them on."
    elif [ "$sdk" -ge 32 ]; then
        say "- Stop Android from ending child processes; on a computer with adb:"
        say "  adb shell settings put global settings_enable_monitor_phantom_procs false"
    else
        say "- Stop Android from ending child processes; on a computer with adb:"
        say "  adb shell device_config set_sync_disabled_for_tests persistent"
        say "  adb shell device_config put activity_manager max_phantom_processes 2147483647"
    fi
}

main() {
    read_arguments "$@"
    install_missing
    install_agent
    remember_engine
    advise_engine
    advise_android
    if [ "$must_start" = no ]; then
        say "start the agent with: sh $boot_script"
        return
    fi
    exec sh "$boot_script"
}

# The last line, so that a download cut short runs nothing.
main "$@"

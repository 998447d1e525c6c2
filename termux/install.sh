#!/data/data/com.termux/files/usr/bin/sh
# Makes a phone with Termux a worker: installs what is missing, fetches the agent from the main
# host, has it started at every boot, and starts it. A second run changes nothing but what is new.
#
#   sh install.sh JOIN_CODE PIN [--no-start]
#   sh install.sh --main-host [--from PATH_OR_URL]      makes the phone the main host instead
#
# JOIN_CODE and PIN come from the main host ('supervisor invite'); with - for JOIN_CODE it is read
# from SUPERVISOR_JOIN_CODE. The engine comes from there, too, unless LLAMA_CPP_BIN names the folder
# of llama.cpp programs that are on the phone already.

set -eu

folder="$HOME/.local/share/llama-rpc-supervisor"
boot_script="$HOME/.termux/boot/10-llama-rpc-agent"
least_mib=300

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
    printf 'usage: sh install.sh JOIN_CODE PIN [--no-start], or --main-host [--from PATH_OR_URL]\n' >&2
    exit 2
}

bad_code() {
    fail "the join code is not of the form ADDRESS:PORT/TOKEN/FINGERPRINT; copy it again, whole"
}

# Sets $sdk, the API level of Android; 34 where it cannot be read, for the advice.
check_phone() {
    has pkg || fail "there is no pkg command; run this in Termux (https://f-droid.org/packages/com.termux)"
    sdk=$(getprop ro.build.version.sdk 2>/dev/null) || sdk=''
    case $sdk in
        '' | *[!0-9]*) sdk=34 ;;
    esac
    [ "$sdk" -ge 28 ] ||
        fail "this is Android API level $sdk, and llama.cpp's release needs 28 (Android 9); take another phone"
    machine=$(uname -m)
    if [ "$machine" != aarch64 ] && [ -z "${LLAMA_CPP_BIN:-}" ]; then
        fail "llama.cpp has no release for Android on $machine, only for aarch64; take another phone, or name a folder with programs of your own by LLAMA_CPP_BIN"
    fi
    check_origin
    check_room
}

# The one of the Play Store targets a newer Android, which keeps apps from running what they fetched.
check_origin() {
    case "${TERMUX_APP__APK_RELEASE:-${TERMUX_APK_RELEASE:-}} ${TERMUX_VERSION:-}" in
        GOOGLE_PLAY* | *' googleplay'*) target_sdk=35 ;;
        *) target_sdk=${TERMUX_APP__TARGET_SDK:-28} ;;
    esac
    case $target_sdk in
        *[!0-9]*) target_sdk=28 ;;
    esac
    if [ "$target_sdk" -ge 29 ]; then
        warn "this Termux is from the Play Store, where Android may refuse to run the engine and there is no Termux:Boot; the one from https://f-droid.org/packages/com.termux is without these limits"
    fi
}

check_room() {
    free_kib=$(df -Pk "$HOME" 2>/dev/null | {
        read -r _ && read -r _ _ _ free _ && printf '%s' "$free"
    }) || free_kib=''
    case $free_kib in
        '' | *[!0-9]*) return ;;
    esac
    free_mib=$((free_kib / 1024))
    [ "$free_mib" -lt "$least_mib" ] || return 0
    [ -r "$folder/agent.pyz" ] ||
        fail "$free_mib MiB are free in $HOME, and Python, agent and engine need $least_mib; free some room, then this again"
    warn "only $free_mib MiB are free in $HOME; a new engine may not fit"
}

install_missing() {
    if ! has python || ! has curl; then
        pkg install -y python curl ||
            fail "pkg could not install python and curl; check the network, run 'pkg update', then this again"
    fi
    python -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "the agent needs Python 3.11 or newer; run 'pkg upgrade', then this again"
    python -c 'import psutil' 2>/dev/null || install_optional python-psutil
    has termux-battery-status || install_optional termux-api
}

install_optional() {
    if ! pkg install -y "$1"; then
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
    mkdir -p "$folder" "${boot_script%/*}"
    trap 'rm -f "$folder"/*.new' EXIT
    fetch agent.pyz "$folder/agent.pyz.new"
    for name in boot-agent doctor.sh uninstall.sh; do
        fetch "$name" "$folder/$name.new"
    done
    version=$(python "$folder/agent.pyz.new" --version) ||
        fail "the agent does not run on this Python; run 'pkg upgrade', then this again"
    printf '%s\n' "$code" >"$folder/join-code.new"
    printf '%s\n' "$pin" >"$folder/pin.new"
    place "$folder/agent.pyz.new" "$folder/agent.pyz" 600
    place "$folder/boot-agent.new" "$boot_script" 700
    for name in join-code pin doctor.sh uninstall.sh; do
        place "$folder/$name.new" "$folder/$name" 600
    done
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

say_what_comes() {
    say ""
    if [ -r "$folder/llama-cpp-bin" ]; then
        say "It uses the llama.cpp programs in $(cat "$folder/llama-cpp-bin")."
    else
        say "Once it has joined, the engine comes from the main host by itself; no compiler is needed."
    fi
    say "What the phone lacks for the work: sh $folder/doctor.sh"
    say "To be rid of all this:             sh $folder/uninstall.sh"
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
    switch=$(getprop persist.sys.fflag.override.settings_enable_monitor_phantom_procs 2>/dev/null) || switch=''
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
    if [ "${1:-}" = --main-host ]; then
        shift
        other="$(dirname "$0")/main-host.sh"
        [ -r "$other" ] ||
            fail "--main-host works from a checkout of the project, which has main-host.sh beside install.sh; fetch that first"
        check_phone
        exec sh "$other" "$@"
    fi
    read_arguments "$@"
    check_phone
    install_missing
    install_agent
    remember_engine
    say_what_comes
    advise_android
    if [ "$must_start" = no ]; then
        say "start the agent with: sh $boot_script"
        return
    fi
    exec sh "$boot_script"
}

# The last line, and in braces, so that a download cut short runs nothing.
{ main "$@"; }

#!/data/data/com.termux/files/usr/bin/sh
# Says what keeps a phone from working as a device: what was found, whether it is well, and the one
# thing to do. It needs no Python; where Python works, the agent's own doctor has its say after it.
#
#   sh doctor.sh
#
# It ends with 1 if something blocks.

set -eu

folder="$HOME/.local/share/llama-rpc-supervisor"
boot_script="$HOME/.termux/boot/10-llama-rpc-agent"
# Termux and its companions have one user id, so that they see each other's folders.
prefix=${PREFIX:-}
apps=${prefix%/com.termux/files/usr}
f_droid=https://f-droid.org/packages
most_s=10
blocking=0

has() {
    command -v "$1" >/dev/null 2>&1
}

# One finding: ok, warning, blocks or unknown; the check; what was found; what to do.
tell() {
    printf '%-8s %s: %s\n' "$1" "$2" "$3"
    [ -z "${4:-}" ] || printf '         do: %s\n' "$4"
    [ "$1" != blocks ] || blocking=1
}

# Runs a command for at most $most_s seconds, with its output in $scratch/answer; 124 when the time was
# over. In a group of its own, so that what it started ends with it; 'timeout' is not everywhere.
within_limit() {
    rm -f "$scratch/answer" "$scratch/status"
    # shellcheck disable=SC2016 # for the shell that it starts
    wait_for_it='"$@" >"$0/answer" 2>/dev/null; echo $? >"$0/status"'
    if has setsid; then
        setsid sh -c "$wait_for_it" "$scratch" "$@" </dev/null &
        group=-$!
    else
        sh -c "$wait_for_it" "$scratch" "$@" </dev/null &
        group=$!
    fi
    waited_s=0
    while [ ! -s "$scratch/status" ]; do
        if [ "$waited_s" -ge "$most_s" ]; then
            kill -9 "$group" 2>/dev/null || true
            wait "${group#-}" 2>/dev/null || true
            return 124
        fi
        sleep 1
        waited_s=$((waited_s + 1))
    done
    return "$(cat "$scratch/status")"
}

property() {
    getprop "$1" 2>/dev/null || true
}

check_termux() {
    if [ -z "${TERMUX_VERSION:-}" ] && ! has pkg; then
        tell blocks Termux "this is not Termux" "run this in Termux ($f_droid/com.termux)"
        return
    fi
    case "${TERMUX_APP__APK_RELEASE:-${TERMUX_APK_RELEASE:-}} ${TERMUX_VERSION:-}" in
        GOOGLE_PLAY* | *' googleplay'*) target_sdk=35 ;;
        *) target_sdk=${TERMUX_APP__TARGET_SDK:-28} ;;
    esac
    if [ "$target_sdk" -ge 29 ] 2>/dev/null; then
        tell warning Termux "from the Play Store (targets API level $target_sdk): Android may refuse to run the engine, and there is no Termux:Boot" \
            "uninstall it and take the one from $f_droid/com.termux"
    else
        tell ok Termux "version ${TERMUX_VERSION:-unknown}, targets API level $target_sdk"
    fi
}

check_android() {
    sdk=$(property ro.build.version.sdk)
    case $sdk in
        '' | *[!0-9]*)
            tell unknown Android "its version cannot be read"
            sdk=34
            ;;
        *)
            if [ "$sdk" -lt 28 ]; then
                tell blocks Android "API level $sdk, and llama.cpp's release needs 28 (Android 9)" "take another phone"
            else
                tell ok Android "$(property ro.build.version.release) (API level $sdk)"
            fi
            ;;
    esac
    machine=$(uname -m)
    if [ "$machine" = aarch64 ]; then
        tell ok Processor "$machine"
    elif [ -r "$folder/llama-cpp-bin" ]; then
        tell warning Processor "$machine, for which llama.cpp has no Android release; programs of your own are used"
    else
        tell blocks Processor "$machine, for which llama.cpp has no Android release" \
            "take a phone with aarch64, or build llama.cpp yourself and name its folder by LLAMA_CPP_BIN"
    fi
}

check_storage() {
    case $(cd "$HOME" && pwd -P) in
        /sdcard* | /storage/* | /mnt/*)
            tell blocks Storage "$HOME is on shared storage, where no program may run and locks do not hold" \
                "set HOME to Termux's own folder and install again"
            return
            ;;
    esac
    free_kib=$(df -Pk "$HOME" 2>/dev/null | {
        read -r _ && read -r _ _ _ free _ && printf '%s' "$free"
    }) || free_kib=''
    case $free_kib in
        '' | *[!0-9]*) tell unknown Storage "free room in $HOME cannot be read" ;;
        *)
            free_mib=$((free_kib / 1024))
            if [ "$free_mib" -lt 300 ]; then
                tell warning Storage "$free_mib MiB free in $HOME; a new engine may not fit" "free some room"
            else
                tell ok Storage "$free_mib MiB free in $HOME"
            fi
            ;;
    esac
}

check_programs() {
    is_python_good=no
    if ! has python; then
        tell blocks Python "not there" "pkg install python"
    elif ! version=$(python -c 'import ssl, sys, zlib; print("%d.%d.%d" % sys.version_info[:3]); sys.exit(sys.version_info < (3, 11))' 2>/dev/null); then
        tell blocks Python "${version:-it does not start}${version:+, and the agent needs 3.11}" "pkg upgrade"
    else
        is_python_good=yes
        if python -c 'import psutil' 2>/dev/null; then
            tell ok Python "$version, with psutil"
        else
            tell warning Python "$version, without psutil: the agent knows less of the phone" "pkg install python-psutil"
        fi
    fi
    if has curl; then
        tell ok curl "there"
    else
        tell blocks curl "not there" "pkg install curl"
    fi
}

check_agent() {
    missing=''
    for name in agent.pyz join-code; do
        [ -r "$folder/$name" ] || missing="$missing${missing:+ and }$name"
    done
    if [ -n "$missing" ]; then
        tell blocks Agent "$missing is not in $folder" "run the line for phones that 'supervisor invite' prints on the main host"
    else
        tell ok Agent "in $folder"
    fi
    if [ ! -r "$boot_script" ]; then
        tell warning "Boot script" "$boot_script is not there" "run the line for phones again"
    elif [ ! -d "$apps/com.termux.boot" ]; then
        tell warning Termux:Boot "the app is not there, so nothing starts after a boot" "install $f_droid/com.termux.boot and open it once"
    else
        tell ok Termux:Boot "there, with $boot_script; it must have been opened once"
    fi
}

check_battery() {
    if ! has termux-battery-status; then
        tell warning Termux:API "termux-battery-status is not there, so heat and battery are not watched" "pkg install termux-api"
        return
    fi
    if [ -z "$scratch" ]; then
        tell unknown Termux:API "there is no room to ask it in"
        return
    fi
    status=0
    within_limit termux-battery-status || status=$?
    if [ "$status" = 124 ]; then
        tell warning Termux:API "termux-battery-status did not answer within $most_s s, so heat and battery are not watched" \
            "install $f_droid/com.termux.api and set its battery to Unrestricted"
    elif [ "$status" = 0 ] && grep -q '"percentage"' "$scratch/answer"; then
        tell ok Termux:API "it answers; battery at $(sed -n 's/.*"percentage": *\([0-9.]*\).*/\1/p' "$scratch/answer") %"
    else
        tell warning Termux:API "termux-battery-status gives no battery" "pkg upgrade termux-api, and install $f_droid/com.termux.api"
    fi
}

check_staying_alive() {
    if has termux-wake-lock; then
        tell ok "Wake lock" "the boot script takes it; Termux's notification says 'wake lock held'"
    else
        tell warning "Wake lock" "termux-wake-lock is not there, so processor and Wi-Fi sleep with the screen" "pkg install termux-tools"
    fi
    switch=$(property persist.sys.fflag.override.settings_enable_monitor_phantom_procs)
    if [ "$sdk" -lt 31 ] || [ "$switch" = false ]; then
        tell ok "Phantom processes" "Android leaves child processes alone"
    elif [ "$sdk" -ge 34 ]; then
        tell warning "Phantom processes" "Android may end the engine when it works in the background" \
            "Developer options: switch on 'Disable child process restrictions', and leave them on"
    elif [ "$sdk" -ge 32 ]; then
        tell warning "Phantom processes" "Android may end the engine when it works in the background" \
            "adb shell settings put global settings_enable_monitor_phantom_procs false"
    else
        tell warning "Phantom processes" "Android may end the engine when there are many processes" \
            "adb shell device_config put activity_manager max_phantom_processes 2147483647"
    fi
    tell unknown "Battery exemption" "Android does not tell Termux" \
        "Settings > Apps > Termux > Battery: Unrestricted; the same for Termux:Boot and Termux:API"
}

check_main_host() {
    code=$(cat "$folder/join-code" 2>/dev/null) || code=''
    pin=$(cat "$folder/pin" 2>/dev/null) || pin=''
    if [ -z "$code" ] || [ -z "$pin" ]; then
        tell unknown "Main host" "this phone has not joined one" "run the line for phones that 'supervisor invite' prints there"
        return
    fi
    has curl || return 0
    rest=${code%%/*}
    reasons=''
    while [ -n "$rest" ]; do
        endpoint=${rest%%,*}
        rest=${rest#"$endpoint"}
        rest=${rest#,}
        status=0
        reason=$(curl -fsSk --noproxy '*' --connect-timeout 5 --max-time 20 --pinnedpubkey "$pin" \
            -o /dev/null "https://$endpoint/authority.pem" 2>&1) || status=$?
        case $status in
            0)
                tell ok "Main host" "$endpoint answers with the pinned key"
                return
                ;;
            90)
                tell blocks "Main host" "$endpoint answers with another key than the pinned one" \
                    "if the main host is new, run the line for phones that it prints now; if not, somebody else answers there"
                return
                ;;
        esac
        reasons="$reasons${reasons:+; }$reason"
    done
    tell blocks "Main host" "${code%%/*} does not answer ($reasons)" \
        "start 'supervisor up' there, and bring both into one network (no guest Wi-Fi, no VPN)"
}

main() {
    scratch=$(mktemp -d 2>/dev/null) || scratch=''
    trap '[ -z "$scratch" ] || rm -rf "$scratch"' EXIT
    check_termux
    check_android
    check_storage
    check_programs
    check_agent
    check_battery
    check_staying_alive
    check_main_host
    if [ "$is_python_good" = yes ] && [ -r "$folder/agent.pyz" ]; then
        printf '\n'
        status=0
        python "$folder/agent.pyz" doctor || status=$?
        case $status in
            0) ;;
            1) blocking=1 ;;
            *) printf 'the agent has no doctor of its own yet (status %s)\n' "$status" ;;
        esac
    fi
    return "$blocking"
}

# The last line, and in braces, so that a download cut short runs nothing.
{ main "$@"; }

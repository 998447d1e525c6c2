#!/bin/sh
# Makes a Mac or a Linux host (WSL2 too) a worker: finds or installs Python, fetches the agent from
# the main host, and starts it. Run again, it changes nothing but what is new.
#
#   sh join.sh [JOIN_CODE PIN] [--service | --no-start] [-- ARGUMENTS OF THE AGENT]
#
# JOIN_CODE and PIN come from the main host ('supervisor invite'); with - for JOIN_CODE it is read
# from SUPERVISOR_JOIN_CODE. Both are kept, so that later runs need neither.
# --service has the agent started at every boot, --no-start only installs it.

set -eu

download="$HOME/.llama-join.sh"
uv_line='curl -LsSf https://astral.sh/uv/install.sh | sh'
wanted_names='python3 python3.14 python3.13 python3.12 python3.11'

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

usage() {
    printf 'usage: sh join.sh [JOIN_CODE PIN] [--service | --no-start] [-- ARGUMENTS OF THE AGENT]\n' >&2
    exit 2
}

# Sets $folder, where agents/cli.py has it.
find_folder() {
    system=$(uname -s)
    [ -z "${TERMUX_VERSION:-}" ] || fail "this is Termux; take the line for phones from the main host"
    case $system in
        Darwin) folder="$HOME/Library/Application Support" ;;
        MINGW* | MSYS* | CYGWIN*) fail "the agent does not run on Windows itself; run this line in WSL2" ;;
        *) folder="$HOME/.local/share" ;;
    esac
    folder="${XDG_DATA_HOME:-$folder}/llama-rpc-supervisor"
}

take_word() {
    if [ -z "$code" ]; then
        code=$1
    elif [ -z "$pin" ]; then
        pin=$1
    else
        usage
    fi
}

# Checks $code and $pin; without them, takes those of the run before.
read_invitation() {
    is_invited=yes
    if [ -z "$code" ]; then
        is_invited=no
        { code=$(cat "$folder/join-code") && pin=$(cat "$folder/pin"); } 2>/dev/null ||
            fail "this host has not joined yet; run the whole line that 'supervisor invite' prints on the main host"
    fi
    [ "$code" != - ] || code=${SUPERVISOR_JOIN_CODE:-}
    [ -n "$pin" ] || usage
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

bad_code() {
    fail "the join code is not of the form ADDRESS:PORT/TOKEN/FINGERPRINT; copy it again, whole"
}

# macOS has a python3 that asks whether to install the developer tools, and theirs is too old.
is_of_apple() {
    [ "$system" = Darwin ] || return 1
    case $1 in
        /usr/bin/*) return 0 ;;
    esac
    # shellcheck disable=SC3013 # every sh of a Mac knows it
    [ "$1" -ef /usr/bin/python3 ]
}

is_good_python() {
    [ -x "$1" ] && [ ! -d "$1" ] && ! is_of_apple "$1" &&
        "$1" -c 'import ssl, sys, zlib; sys.exit(sys.version_info < (3, 11))' </dev/null >/dev/null 2>&1
}

# Sets $python to one that is new enough, from PATH, Homebrew, python.org, pyenv or uv.
find_python() {
    rest="$PATH:/opt/homebrew/bin:/usr/local/bin:/home/linuxbrew/.linuxbrew/bin:$HOME/.local/bin"
    rest="$rest:/Library/Frameworks/Python.framework/Versions/Current/bin"
    while [ -n "$rest" ]; do
        place=${rest%%:*}
        rest=${rest#"$place"}
        rest=${rest#:}
        for name in $wanted_names; do
            if is_good_python "$place/$name"; then
                python="$place/$name"
                return 0
            fi
        done
    done
    for python in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/python3; do
        ! is_good_python "$python" || return 0
    done
    if find_program uv; then
        python=$("$program" python find --system '>=3.11' 2>/dev/null) && is_good_python "$python"
        return
    fi
    return 1
}

# Sets $program to $1 from PATH or from where its installer puts it.
find_program() {
    program=$(command -v "$1" 2>/dev/null) && return 0
    for place in "$HOME/.local/bin" /opt/homebrew/bin /usr/local/bin /home/linuxbrew/.linuxbrew/bin; do
        program="$place/$1"
        if [ -x "$program" ]; then
            return 0
        fi
    done
    return 1
}

is_root() {
    [ "$(id -u)" = 0 ]
}

may_be_root() {
    is_root || { has sudo && sudo -n true 2>/dev/null; }
}

as_root() {
    if is_root; then "$@"; else sudo -n "$@"; fi </dev/null
}

# Sets $manager and $packages, in which the first that gives a new Python will do.
find_manager() {
    for manager in apt-get dnf pacman zypper apk; do
        if has "$manager"; then
            break
        fi
        manager=''
    done
    case $manager in
        apt-get | dnf) packages=$wanted_names ;;
        pacman) packages=python ;;
        zypper) packages='python3 python313 python312 python311' ;;
        apk) packages=python3 ;;
    esac
    [ -n "$manager" ]
}

install_package() {
    case $manager in
        apt-get) as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q "$1" ;;
        dnf) as_root dnf install -y "$1" ;;
        pacman) as_root pacman -S --noconfirm --needed "$1" ;;
        zypper) as_root zypper --non-interactive install "$1" ;;
        apk) as_root apk add "$1" ;;
    esac
}

install_python() {
    say "there is no Python 3.11 or newer here; installing one"
    if find_program uv && "$program" python install 3.13 && find_python; then
        return
    fi
    if ! is_root && find_program brew && NONINTERACTIVE=1 "$program" install python3 </dev/null && find_python; then
        return
    fi
    if [ "$system" != Darwin ] && find_manager && may_be_root; then
        [ "$manager" != apt-get ] || as_root apt-get update -q || true
        for package in $packages; do
            if install_package "$package" && find_python; then
                return
            fi
        done
    fi
    advise_python
}

advise_python() {
    advice="type '$uv_line'"
    if [ "$system" != Darwin ] && find_manager; then
        # What is there already is too old, so its newer sibling has to come.
        package=${packages%% *}
        if has python3 && [ "$package" != "$packages" ]; then
            package=${packages##* }
        fi
        case $manager in
            pacman) advice="type 'sudo pacman -S $package'" ;;
            apk) advice="type 'apk add $package' as root" ;;
            *) advice="type 'sudo $manager install $package'" ;;
        esac
        advice="$advice, or without root '$uv_line'"
    fi
    fail "there is no Python 3.11 or newer here, and none could be installed without questions; $advice, then this line again"
}

# Fetches file $1 of the main host into $2, from the first of its addresses that answers. Its
# certificate names a role, not an address, hence -k; what is trusted is the pinned key.
fetch() {
    rest=$endpoints
    reasons=''
    is_refused=no
    while [ -n "$rest" ]; do
        endpoint=${rest%%,*}
        rest=${rest#"$endpoint"}
        rest=${rest#,}
        status=0
        reason=$(curl -fsSk --noproxy '*' --connect-timeout 5 --speed-time 30 --pinnedpubkey "$pin" \
            -o "$2" "https://$endpoint/files/$1" 2>&1) || status=$?
        case $status in
            0) return 0 ;;
            90)
                reason="its key is not the pinned one"
                is_refused=yes
                ;;
        esac
        reasons="$reasons${reasons:+; }$endpoint: $reason"
    done
    return 1
}

# Moves $1 to $2; an equal file stays as it is.
place() {
    if cmp -s "$1" "$2"; then
        rm -f "$1"
    else
        mv -f "$1" "$2"
    fi
}

install_agent() {
    mkdir -p "$folder" || fail "cannot make the folder $folder; free room, or set XDG_DATA_HOME to another place"
    if ! fetch agent.pyz "$folder/agent.pyz.new"; then
        # Run again where all is there, it starts what there is: the agent itself waits for its main host.
        if [ "$is_invited" = no ] && [ "$is_refused" = no ] && [ -r "$folder/agent.pyz" ]; then
            warn "cannot look for a newer agent ($reasons)"
            return
        fi
        fail "cannot fetch agent.pyz ($reasons); check that 'supervisor up' runs on the main host and that both are on one network, or get a new line there"
    fi
    version=$("$python" "$folder/agent.pyz.new" --version </dev/null) ||
        fail "the agent does not run with $python; install a newer Python, then run this line again"
    place "$folder/agent.pyz.new" "$folder/agent.pyz"
    say "agent $version is in $folder, run by $python"
}

remember() {
    printf '%s\n' "$code" >"$folder/join-code.new"
    printf '%s\n' "$pin" >"$folder/pin.new"
    place "$folder/join-code.new" "$folder/join-code"
    place "$folder/pin.new" "$folder/pin"
    if [ "$0" = "$folder/join.sh" ] || [ ! -r "$0" ]; then
        return
    fi
    cat "$0" >"$folder/join.sh.new"
    place "$folder/join.sh.new" "$folder/join.sh"
}

clean_up() {
    rm -f "$folder"/*.new
    # What the line fetched is in the folder now.
    [ "$0" != "$download" ] || rm -f "$download"
}

main() {
    code=''
    pin=''
    must_start=yes
    is_service=no
    while [ $# -gt 0 ]; do
        case $1 in
            --no-start) must_start=no ;;
            --service) is_service=yes ;;
            --)
                shift
                break
                ;;
            --*) usage ;;
            *) take_word "$1" ;;
        esac
        shift
    done
    umask 077
    find_folder
    trap clean_up EXIT
    read_invitation
    has curl || fail "curl is missing; install it with this system's packages, then run this line again"
    find_python || install_python
    install_agent
    remember
    clean_up
    if [ "$must_start" = no ]; then
        say "start the agent with: sh '$folder/join.sh'"
        return
    fi
    # In the environment, not among the arguments, which the process list shows.
    SUPERVISOR_JOIN_CODE=$code
    export SUPERVISOR_JOIN_CODE
    if [ "$is_service" = yes ]; then
        exec "$python" "$folder/agent.pyz" service install - "$@"
    fi
    say "joining; the engine comes from the main host by itself, Ctrl-C ends it, and 'sh \"$folder/join.sh\" --service' has it started at every boot"
    exec "$python" "$folder/agent.pyz" join - "$@"
}

# The last line, and in braces, so that a download cut short runs nothing.
{ main "$@"; }

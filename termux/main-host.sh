#!/data/data/com.termux/files/usr/bin/sh
# Makes a phone with Termux the main host: 'supervisor up' runs on it then.
#
#   sh install.sh --main-host [--from PATH_OR_URL]
#
# PATH_OR_URL is a checkout or a wheel of the project (default: the checkout that holds this file).
# Nothing is compiled: pip first tries everything without installing, and what has no wheel for this
# Python is named. A second run updates what is there.

set -eu

folder="$HOME/.local/share/llama-rpc-supervisor"
program="$folder/program"
# Termux's users build what PyPI has no Android wheels of: here pydantic-core, which is Rust.
more_wheels=https://termux-user-repository.github.io/pypi/
instead="or take a computer as the main host, and let this phone join it"
export PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1

say() {
    printf '%s\n' "$*"
}

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

read_arguments() {
    source=''
    while [ $# -gt 0 ]; do
        case $1 in
            --from)
                [ $# -ge 2 ] || usage
                source=$2
                shift
                ;;
            *) usage ;;
        esac
        shift
    done
    if [ -z "$source" ]; then
        source=$(cd "$(dirname "$0")/.." && pwd)
        [ -r "$source/pyproject.toml" ] ||
            fail "$source is no checkout of the project; name one, or a wheel, with --from"
    fi
}

usage() {
    printf 'usage: sh install.sh --main-host [--from PATH_OR_URL]\n' >&2
    exit 2
}

# Both are compiled and have no Android wheels on PyPI; Termux has packages of them.
install_packages() {
    if ! python -c 'import cryptography, pip, psutil' 2>/dev/null; then
        pkg install -y python python-pip python-psutil python-cryptography ||
            fail "pkg could not install python, python-pip, python-psutil and python-cryptography; check the network, run 'pkg update', then this again"
    fi
    python -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "the supervisor needs Python 3.11 or newer; run 'pkg upgrade', then this again"
    version=$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
}

# Prints the requirements of wheel $1 without those named after it.
requirements_of() {
    python - "$@" <<'EOF'
import email, re, sys, zipfile

wheel, *left_out = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive:
    path = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    told = email.message_from_bytes(archive.read(path))
for line in told.get_all("Requires-Dist", []):
    name = re.match(r"[\w.-]+", line)[0].lower().replace("_", "-")
    if "extra ==" not in line and name not in left_out:
        print(line)
EOF
}

# Runs pip with its output in $scratch/said.
pip_says() {
    python -m pip "$@" >"$scratch/said" 2>&1
}

# Why the last pip_says failed, in one line.
reason() {
    said=''
    while read -r line; do
        case $line in
            ERROR:*) said=${line#ERROR: } ;;
        esac
    done <"$scratch/said"
    printf '%s' "${said:-pip gave no reason}"
}

# Writes $scratch/requirements.txt, and sets $own and $hub to wheels. huggingface-hub asks for hf-xet,
# which is Rust and only speeds downloads up, and for pyyaml, which needs no compiler but has no wheel.
collect() {
    scratch=$(mktemp -d) || fail "cannot make a folder for what pip fetches; free some room, then this again"
    trap 'rm -rf "$scratch"' EXIT
    pip_says wheel --no-deps --wheel-dir "$scratch/own" "$source" ||
        fail "pip cannot make a wheel of $source ($(reason)); name a checkout or a wheel of the project with --from"
    for own in "$scratch"/own/*.whl; do :; done
    requirements_of "$own" huggingface-hub >"$scratch/requirements.txt"
    wanted=$(requirements_of "$own" | grep '^huggingface-hub') || wanted=huggingface-hub
    pip_says download --no-deps --only-binary=:all: --dest "$scratch/hub" "$wanted" ||
        fail "pip cannot fetch $wanted ($(reason)); check the network, then this again"
    for hub in "$scratch"/hub/*.whl; do :; done
    requirements_of "$hub" hf-xet pyyaml >>"$scratch/requirements.txt"
}

try_out() {
    say "trying what Python $version on this phone can have, without installing it"
    if ! pip_says install --dry-run --only-binary=:all: --extra-index-url "$more_wheels" -r "$scratch/requirements.txt"; then
        name_missing
    fi
    pip_says install --dry-run --no-deps --no-binary pyyaml 'pyyaml>=5.1' ||
        fail "pyyaml cannot be had ($(reason)); check the network, then this again, $instead"
}

# Ends, and says for each requirement that cannot be had what to do.
name_missing() {
    general=$(reason)
    missing=''
    while read -r requirement; do
        name=${requirement%%[!A-Za-z0-9._-]*}
        # Of pydantic it is its other half that may be missing; others need pydantic themselves.
        set -- --no-deps
        [ "$name" != pydantic ] || set --
        if pip_says install --dry-run --only-binary=:all: --extra-index-url "$more_wheels" "$@" "$requirement"; then
            continue
        fi
        missing="$missing${missing:+, }$name"
        case $name in
            psutil | cryptography) printf 'error: %s has no wheel for Android; pkg install python-%s\n' "$name" "$name" >&2 ;;
            pydantic) printf 'error: pydantic has no wheel of its part pydantic-core for Python %s on Android, neither at PyPI nor at %s; try pkg install python-pydantic-core, %s\n' "$version" "$more_wheels" "$instead" >&2 ;;
            *) printf 'error: %s has no wheel for Python %s on Android (%s); run pkg upgrade for another Python, %s\n' "$name" "$version" "$(reason)" "$instead" >&2 ;;
        esac
    done <"$scratch/requirements.txt"
    fail "nothing was installed, for pip cannot have ${missing:-all of it together}: $general"
}

# Its own environment, which sees Termux's packages; made anew after Termux went to a newer Python.
install_all() {
    mkdir -p "$folder"
    found=$("$program/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || found=''
    if [ "$found" != "$version" ]; then
        rm -rf "$program"
        python -m venv --system-site-packages --without-pip "$program" ||
            fail "cannot make $program; free some room, then this again"
    fi
    into_it install --only-binary=:all: --extra-index-url "$more_wheels" -r "$scratch/requirements.txt"
    into_it install --no-deps --no-binary pyyaml 'pyyaml>=5.1'
    into_it install --no-deps "$hub"
    into_it install --no-deps --force-reinstall "$own"
}

into_it() {
    "$program/bin/python" -m pip "$@" >"$scratch/said" 2>&1 ||
        fail "pip could not install into $program ($(reason)); check network and free room, then this again"
}

write_command() {
    command_file="$PREFIX/bin/supervisor"
    cat >"$scratch/supervisor" <<EOF
#!$PREFIX/bin/sh
# Made by install.sh --main-host. Without the wake lock, processor and Wi-Fi sleep with the screen.
if [ "\${1:-}" = up ] && command -v termux-wake-lock >/dev/null 2>&1; then
    termux-wake-lock || true
fi
exec "$program/bin/python" -P -m supervisor "\$@"
EOF
    chmod 700 "$scratch/supervisor"
    cmp -s "$scratch/supervisor" "$command_file" || mv -f "$scratch/supervisor" "$command_file"
    "$command_file" --help >/dev/null ||
        fail "$command_file was installed and does not run; send what it says above with a report"
}

main() {
    read_arguments "$@"
    umask 077
    install_packages
    collect
    try_out
    install_all
    write_command
    say "This phone can be the main host now. First the engine, then the start:"
    say "  supervisor engine install"
    say "  supervisor up"
    say "What it lacks for the work: sh $(dirname "$0")/doctor.sh"
}

# The last line, and in braces, so that a download cut short runs nothing.
{ main "$@"; }

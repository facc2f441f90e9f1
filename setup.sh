#!/usr/bin/env bash
# Makes .venv and installs mindbooth into it, at the versions of constraints.txt.
# Called by `make setup`; usage: bash setup.sh [extra,...]. PYTHON=/path/to/python chooses the Python.
# A second run with nothing changed returns at once. A .venv that was left half-made, belongs to a
# moved checkout or has lost its Python is made anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
here=$(pwd -P)
venv=$here/.venv
stamp=$venv/mindbooth-setup       # what was installed; written last
unfinished=$venv/unfinished       # there from the first step to the last
wanted=${1:-}

base_gb=5 # .venv and, while it is filled, pip's temporary files
compare_gb=6

say() { printf 'setup: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}

# The version that CANDIDATE really runs as, if mindbooth can use it.
usable() {
    "$1" -c 'import sys, venv, ensurepip
version = sys.version_info[:2]
sys.exit(version not in ((3, 10), (3, 11)) or print("%d.%d" % version))' 2>/dev/null
}

# Every python that may do, best first. A name on PATH can be a shim that only fails: all are listed.
candidates() {
    local name
    if [ -n "${PYTHON:-}" ]; then
        printf '%s\n' "$PYTHON"
        return
    fi
    for name in python3.11 python3.10 python3 python; do
        type -ap "$name" || true
    done
    local pyenv=${PYENV_ROOT:-$HOME/.pyenv}/versions
    printf '%s\n' "$pyenv"/3.11.*/bin/python "$pyenv"/3.10.*/bin/python
}

find_python() {
    local candidate
    while read -r candidate; do
        if usable "$candidate" >/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done < <(candidates)
    fail "needs Python 3.10 or 3.11 (MindSpore 2.7.1 has no wheel for others), found none: install python3.11 and python3.11-venv, or pass PYTHON=/path/to/python3.11."
}

# Why .venv cannot be kept; nothing if it can.
reason_to_replace() {
    local version
    version=$(usable "$venv/bin/python") || true
    if [ -e "$unfinished" ]; then
        echo "was left unfinished"
    elif ! grep -qs -F -e "VIRTUAL_ENV=\"$venv\"" -e "VIRTUAL_ENV=$venv" -e "VIRTUAL_ENV='$venv'" "$venv/bin/activate"; then
        echo "was made for another folder"
    elif [ -z "$version" ]; then
        echo "has no working Python 3.10 or 3.11"
    elif [ -n "${PYTHON:-}" ] && [ "$(usable "$PYTHON")" != "$version" ]; then
        echo "has Python $version, not that of PYTHON=$PYTHON"
    fi
}

keepable() {
    [ -e "$venv" ] || return 1
    local reason
    reason=$(reason_to_replace)
    [ -z "$reason" ] && return
    say ".venv $reason: making it anew."
    return 1
}

# Line 1 of the stamp: a digest of what decides the packages; line 2: the extras installed so far.
digest() { cat constraints.txt setup.cfg pyproject.toml | cksum; }
installed_extras() { sed -n 2p "$stamp" 2>/dev/null || true; }
union() { printf '%s\n' "$1" "$2" | tr ', ' '\n' | sed '/^$/d' | sort -u | paste -sd, -; }

check_space() {
    local need=$base_gb free
    case ",$1," in *,compare,*) need=$compare_gb ;; esac
    free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1000000) }')
    [ "$free" -ge "$need" ] || fail "needs $need GB of disk in $here, $free GB are free."
    case ",$1," in *,compare,*) say "where pip chooses a CUDA build of torch, several GB more." ;; esac
    say "making .venv with $2; takes $need GB of disk ($free GB free) and some minutes."
}

[ -z "${PYTHON:-}" ] || usable "$PYTHON" >/dev/null ||
    fail "PYTHON=$PYTHON does not run as Python 3.10 or 3.11 with venv; name one that does."

if command -v flock >/dev/null; then # two runs at once would take each other's .venv for unfinished
    mkdir -p build
    exec 9>build/setup.lock
    flock 9
fi

if keepable; then
    update=yes
    extras=$(union "$(installed_extras)" "$wanted")
    if [ "$(head -n 1 "$stamp" 2>/dev/null)" = "$(digest)" ] && [ "$(installed_extras)" = "$extras" ]; then
        exit 0
    fi
    say "bringing .venv up to date."
else
    update=
    extras=$(union "" "$wanted")
    python=$(find_python)
    check_space "$extras" "$python"
    rm -rf "$venv"
    mkdir "$venv"
    : >"$unfinished"
    "$python" -m venv "$venv"
fi

: >"$unfinished"
trap 'exit 130' INT TERM # pip turns an interrupt into an ordinary failure
quiet=(-qq) # in a log only what went wrong
[ -t 1 ] && quiet=()
"$venv/bin/python" -m pip install ${quiet[@]+"${quiet[@]}"} --no-input --disable-pip-version-check \
    -c constraints.txt -e ".${extras:+[$extras]}" || {
    [ -z "$update" ] || rm "$unfinished" # what was complete before is kept
    fail "pip could not install the packages (its message is above); run make setup again when that is mended."
}
printf '%s\n%s\n' "$(digest)" "$extras" >"$stamp"
rm "$unfinished"
say "done: $("$venv/bin/python" -V), extras: ${extras:-none}."

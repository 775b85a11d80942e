# Sourced by every command in bin/: makes .venv on first use and installs what setup.cfg names.
#
#   NUN_EXTRAS   extras of setup.cfg that the caller needs ("" by default; bin/test and bin/lint say "dev")
#   NUN_VENV     where the virtual environment lives (default: .venv beside setup.cfg)
#   NUN_PYTHON   the Python that makes it (default: the first of python3.11 ... python3 that is new enough)
#
# One stamp line remembers what stands: the checksum of setup.cfg and pyproject.toml, the checkout's place, the extras.
# So a second start costs one comparison; a changed dependency, a moved checkout or a missing extra is mended by the
# next command. A lock keeps two first starts from installing over each other. All that is said goes to stderr.

NUN_ROOT=$(readlink -f -- "$0") # through symlinks, and from any directory
NUN_ROOT=${NUN_ROOT%/*/*}
NUN_VENV=${NUN_VENV:-$NUN_ROOT/.venv}
NUN_EXTRAS=${NUN_EXTRAS:-}
unset PYTHONOPTIMIZE # it would strip the assertions that guard the data

nun_find_python() {
    for candidate in ${NUN_PYTHON:-python3.11 python3.12 python3.13 python3.14 python3}; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
    echo "nun: Python 3.11 or newer is needed and none was found on PATH (set NUN_PYTHON to name one)" >&2
    return 1
}

# True when the stamp is of this setup.cfg and this place; leaves the extras that it names in $extras.
nun_stamp_is_current() {
    extras=,
    { read -r sum extras place <"$NUN_VENV/nun-installed"; } 2>/dev/null || return 1
    [ "$sum" = "$wanted" ] && [ "$place" = "$NUN_ROOT" ]
}

nun_is_installed() {
    nun_stamp_is_current || return 1
    [ -x "$NUN_VENV/bin/python" ] || return 1
    for extra in $(nun_words "$NUN_EXTRAS"); do
        case $extras in *",$extra,"*) ;; *) return 1 ;; esac
    done
}

nun_words() {
    [ -n "$1" ] || return 0
    printf '%s\n' "$1" | tr ',' ' '
}

nun_make_venv() {
    # A venv without pip was cut short while it was made: making it again mends it.
    [ -x "$NUN_VENV/bin/python" ] && "$NUN_VENV/bin/python" -c 'import pip' 2>/dev/null && return 0
    python=$(nun_find_python) || return 1
    "$python" -c 'import ensurepip, venv' 2>/dev/null || {
        echo "nun: $python cannot make virtual environments (on Debian: apt-get install python3-venv)" >&2
        return 1
    }
    echo "nun: making $NUN_VENV (first use)" >&2
    "$python" -m venv "$NUN_VENV" >&2
}

nun_install() {
    nun_make_venv || return 1
    # What another command asked for before stays: its packages are upgraded too.
    for extra in $(nun_words "$NUN_EXTRAS"); do
        case $extras in *",$extra,"*) ;; *) extras=$extras$extra, ;; esac
    done
    names=${extras#,}
    names=${names%,}
    echo "nun: installing the packages that setup.cfg names${names:+ (and for $names)}" >&2
    "$NUN_VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
        --editable "$NUN_ROOT${names:+[$names]}" >&2 || {
        echo "nun: the installation failed, see above; the next command tries again" >&2
        return 1
    }
    printf '%s %s %s\n' "$wanted" "$extras" "$NUN_ROOT" >"$NUN_VENV/nun-installed.new" &&
        mv "$NUN_VENV/nun-installed.new" "$NUN_VENV/nun-installed"
}

nun_bootstrap() {
    wanted=$(cat "$NUN_ROOT/setup.cfg" "$NUN_ROOT/pyproject.toml" | cksum) || return 1
    wanted=${wanted% *}-${wanted#* }
    nun_is_installed && return 0
    mkdir -p "$NUN_VENV" || return 1
    (
        flock 9 || exit 1
        nun_is_installed || nun_install
    ) 9>"$NUN_VENV/.lock"
}

nun_bootstrap || exit 1
PATH=$NUN_VENV/bin:$PATH
export PATH

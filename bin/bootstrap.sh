# Sourced by every command in bin/: makes .venv on first use and installs what setup.cfg names.
#
#   NUN_EXTRAS   extras of setup.cfg that the caller needs ("" by default; bin/test and bin/lint say "dev")
#   NUN_VENV     where the virtual environment lives (default: .venv beside setup.cfg)
#   NUN_PYTHON   the Python that makes it (default: the first of python3.11 ... python3 that is new enough)
#
# A stamp per set of extras remembers the checksum of setup.cfg, so a second start costs nothing and a changed
# dependency is installed by the next command. A lock keeps two first starts from installing over each other.

NUN_ROOT=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
NUN_VENV=${NUN_VENV:-$NUN_ROOT/.venv}
NUN_EXTRAS=${NUN_EXTRAS:-}

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

nun_install() {
    [ -x "$NUN_VENV/bin/python" ] || {
        python=$(nun_find_python) || return 1
        echo "nun: making $NUN_VENV (first use)" >&2
        "$python" -m venv "$NUN_VENV" || return 1
    }
    target=$NUN_ROOT${NUN_EXTRAS:+[$NUN_EXTRAS]}
    echo "nun: installing ${NUN_EXTRAS:-run-time} packages named in setup.cfg" >&2
    "$NUN_VENV/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$target" >&2 || {
        echo "nun: the installation failed; see above" >&2
        return 1
    }
}

nun_bootstrap() {
    stamp=$NUN_VENV/installed-$(printf %s "${NUN_EXTRAS:-none}" | tr -c 'a-z\n' '-')
    wanted=$(cksum <"$NUN_ROOT/setup.cfg")
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && return 0
    mkdir -p "$NUN_VENV" || return 1
    (
        flock 9 || exit 1
        [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && exit 0
        nun_install && printf '%s\n' "$wanted" >"$stamp"
    ) 9>"$NUN_VENV/.lock"
}

nun_bootstrap || exit 1
PATH=$NUN_VENV/bin:$PATH
export PATH

# What examples/demo and tests/run share: packages, and a build whose noise is only seen when it fails.  Sourced, not run.
# SPDX-License-Identifier: MIT

# shellcheck disable=SC2034,SC2086 # lists of packages are meant to be split
find_missing() {
    missing=
    for package; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
    done
}

# want_packages PACKAGE...: install what is missing when root, else go on without.
want_packages() {
    find_missing "$@"
    if [ "$(id -u)" = 0 ]; then
        need_packages "$@"
    elif [ -n "$missing" ]; then
        echo "Some checks will be skipped: not installed are$missing"
    fi
}

# need_packages PACKAGE...: install what is missing when root, else say what to install ($optional_packages among it).
need_packages() {
    find_missing "$@"
    [ -n "$missing" ] || return 0
    if ! command -v apt-get >/dev/null; then
        echo "Not a Debian system: install the equivalents of$missing" >&2
        exit 1
    fi
    if [ "$(id -u)" != 0 ]; then
        printf 'Packages are missing. As root:\n\n    apt-get update && apt-get install -y --no-install-recommends%s\n\n' \
            "$missing${optional_packages:+ $optional_packages}" >&2
        exit 1
    fi
    echo "Installing$missing ..."
    quietly apt-get update
    quietly env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing
}

# quietly COMMAND...: run it; show what it printed only if it failed, and stop then.
quietly() {
    quiet_log=$(mktemp)
    if "$@" >"$quiet_log" 2>&1; then
        rm -f "$quiet_log"
    else
        echo "Failed: $*" >&2
        cat "$quiet_log" >&2
        rm -f "$quiet_log"
        exit 1
    fi
}

optional_packages=
build_packages="gcc libc6-dev meson ninja-build pkg-config libcjson-dev libutf8proc-dev libpcre2-dev"

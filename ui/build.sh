#!/bin/sh
# Build the explorer into the package, where the server and the wheel find it, when it is older than its source.
# With --if-possible a machine without Node.js, or without a way to the packages, is told so and is no failure.
# With --test its tests are run instead.
set -eu

cd "$(dirname "$0")"
built=../src/bloodbank/http/static/index.html
installed=node_modules/.installed
needed="20.19"

give_up() {
    echo "$1" >&2
    [ "${optional:-}" ] || exit 1
    [ -f "$built" ] || echo "Everything else works; the page at / says how to build it." >&2
    exit 0
}

case "${1:-}" in
--if-possible) optional=yes ;;
--test) tests=yes ;;
esac

if [ -z "${tests:-}" ] && [ -f "$built" ] && [ -z "$(find . -path ./node_modules -prune -o -path ./test -prune -o -type f -newer "$built" -print)" ]; then
    [ "${optional:-}" ] || echo "The explorer is up to date."
    exit 0
fi
command -v npm >/dev/null && command -v node >/dev/null ||
    give_up "The explorer is not built: it needs Node.js $needed or newer, with npm. Install them and run: make ui"
node -e 'const [major, minor] = process.versions.node.split(".").map(Number); process.exit(major > 20 || (major === 20 && minor >= 19) ? 0 : 1)' ||
    give_up "The explorer is not built: it needs Node.js $needed or newer, and this is $(node --version). Install a newer one and run: make ui"

[ "${tests:-}" ] || echo "Building the explorer" >&2
if [ ! -f "$installed" ] || [ package-lock.json -nt "$installed" ]; then
    npm ci --silent --no-fund --no-audit >&2 || give_up "The explorer is not built: its packages could not be installed. npm ci in ui/ says why."
    touch "$installed"
fi
[ -z "${tests:-}" ] || exec npm run --silent test
npm run --silent build >node_modules/.build.log 2>&1 || {
    cat node_modules/.build.log >&2
    give_up "The explorer is not built: its source has an error, shown above."
}

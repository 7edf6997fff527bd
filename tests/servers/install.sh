#!/bin/sh
# Make sure that rabbitmq-server and redis-server are there, for the tests, which start them themselves, curl, which the
# tests of the documentation run, and Chromium, in which the explorer is tested.
set -eu

missing=""
for program in rabbitmq-server redis-server curl; do
    # Debian keeps server programs in sbin, which is not on every user's PATH.
    PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v "$program" >/dev/null || missing="$missing $program"
done
browser=chromium
for program in chromium chromium-browser google-chrome; do
    command -v "$program" >/dev/null && browser=""
done
[ -n "$browser" ] && missing="$missing $browser"
[ -z "$missing" ] && exit 0

if command -v apt-get >/dev/null; then
    if [ "$(id -u)" = 0 ]; then
        as_root=""
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        as_root="sudo -n"
    else
        echo "The tests need$missing. Run: sudo apt-get install$missing" >&2
        exit 1
    fi
    echo "Installing$missing from the system's packages"
    $as_root apt-get update -qq
    # shellcheck disable=SC2086  # the list is split on purpose
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing >/dev/null
elif command -v brew >/dev/null; then
    echo "The tests need$missing. Run: brew install rabbitmq redis && brew install --cask chromium" >&2
    exit 1
else
    echo "The tests need$missing. Install them with your system's packages and try again." >&2
    exit 1
fi

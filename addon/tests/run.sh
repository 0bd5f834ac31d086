#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs the add-on's tests: without Blender, in Blender without a window, and in a
# window under Xvfb. What is not installed is skipped with a word, unless
# VIZPEER_TEST_STRICT is set. No part runs longer than its time limit.
#
#   BLENDER        the Blender to use (blender)
#   VIZPEER_SHOTS  a folder to keep the window's pictures in
set -u
cd "$(dirname "$0")" || exit 1

blender=${BLENDER:-blender}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
mkdir -p "$work/scripts/addons" "$work/home" "$work/shots"
ln -s "$PWD/../vizpeer" "$work/scripts/addons/vizpeer"

# Nothing of this machine's own farm or Blender may have a say.
unset VIZPEER_DATA_DIR VIZPEER_API VIZPEER_TOKEN VIZPEER_CA_FILE VIZPEER_CA_FINGERPRINT
export HOME="$work/home" XDG_DATA_HOME="$work/home/data" XDG_CONFIG_HOME="$work/home/config"
export BLENDER_USER_SCRIPTS="$work/scripts" PYTHONDONTWRITEBYTECODE=1 PYTHONWARNINGS=ignore
export VIZPEER_SHOTS="${VIZPEER_SHOTS:-$work/shots}"
mkdir -p "$VIZPEER_SHOTS"

failed=0

# part NAME SECONDS COMMAND…: runs one part and shows its output only if it fails.
part() {
	name=$1 seconds=$2
	shift 2
	if timeout -k 5 "$seconds" "$@" >"$work/log" 2>&1; then
		echo "ok    addon: $name$(sed -n 's/^Ran \([0-9]*\) tests in \(.*\)$/ (\1 tests, \2)/p' "$work/log")"
	else
		code=$?
		failed=1
		cat "$work/log"
		echo "FAIL  addon: $name (exit code $code; 124: longer than $seconds s)"
	fi
}

skip() {
	echo "skip  addon: $1: $2 is not installed"
	[ -z "${VIZPEER_TEST_STRICT:-}" ] || failed=1
}

has() { command -v "$1" >/dev/null 2>&1; }

if has python3; then
	part "modules without a Blender around them" 180 python3 -m unittest
else
	skip "modules without a Blender around them" python3
fi

if has "$blender"; then
	part "Blender without a window" 180 \
		"$blender" -b --factory-startup -noaudio --python-exit-code 3 -P blender_submit.py
	if has xvfb-run; then
		part "Blender in a window" 180 \
			xvfb-run -a -s "-screen 0 1280x1000x24" \
			"$blender" --factory-startup -noaudio --window-geometry 0 0 1280 1000 --python-exit-code 3 -P blender_window.py
	else
		skip "Blender in a window" xvfb-run
	fi
else
	skip "Blender without and with a window" "$blender"
fi

exit $failed

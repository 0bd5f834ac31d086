#!/bin/sh
# Installs the named Debian packages that this machine lacks, with apt-get and
# as root or through sudo. Where that is not possible it says how to get them,
# and fails.
#
#   sh .ci/install.sh blender bubblewrap
set -eu

# command_of names the program that tells whether a package is there.
command_of() {
	case $1 in
	bubblewrap) echo bwrap ;;
	xvfb) echo Xvfb ;;
	iproute2) echo ip ;;
	nftables) echo nft ;;
	*) echo "$1" ;;
	esac
}

missing=
for package in "$@"; do
	command -v "$(command_of "$package")" >/dev/null 2>&1 || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

advice() {
	echo "Missing on this machine:$missing" >&2
	case $(uname -s) in
	Darwin) echo "Install Blender with \`brew install --cask blender\` or from https://www.blender.org/download/." >&2 ;;
	*) echo "Install them with this system's package manager; Blender is also at https://www.blender.org/download/." >&2 ;;
	esac
	exit 1
}

command -v apt-get >/dev/null 2>&1 || advice
as_root=
if [ "$(id -u)" != 0 ]; then
	command -v sudo >/dev/null 2>&1 || advice
	as_root=sudo
fi

# Blender needs these to render with Eevee on a machine without a display.
case $missing in
*blender*) missing="$missing libegl1 libegl-mesa0 libgl1-mesa-dri" ;;
esac

echo "Installing:$missing"
install() {
	# The list of packages is made of words, so it is not quoted.
	# shellcheck disable=SC2086
	$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing >/dev/null
}
$as_root apt-get update -q >/dev/null || true # lists that are there may do
install || advice

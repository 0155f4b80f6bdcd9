#!/usr/bin/env bash
# Tries the wheel on Pythons that this machine does not have, each in a system of its own (debootstrap; as root, on Debian).
#   release/other-pythons.sh BUNDLE [EXTRA …]      3.12 (Ubuntu 24.04), 3.13 (Debian 13), 3.14 (Debian unstable)
# The extras that train bring a CUDA build of torch (GBytes) on these Pythons where the registry has no other.
set -euo pipefail
cd "$(dirname "$0")/.."
bundle=$1
shift
systems=${SYSTEMS:-/tmp/distilrec-systems}
mkdir -p "$systems"

try() { # name, suite, mirror, script of debootstrap
  local root=$systems/$1
  if [ ! -x "$root/usr/bin/python3" ]; then
    debootstrap --no-check-gpg --variant=minbase --components=main,universe \
      --include=python3,python3-venv,ca-certificates "$2" "$root" "$3" "$4" > "$root.log" 2>&1 ||
      { tail -3 "$root.log"; return 1; }
  fi
  cp /etc/resolv.conf "$root/etc/"
  cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
  rm -rf "$root/work" && mkdir -p "$root/work"
  cp -r dist release "$root/work/"
  cp -r "$bundle" "$root/work/bundle"
  mountpoint -q "$root/proc" || mount --bind /proc "$root/proc"
  chroot "$root" python3 /work/release/packages.py --bundle /work/bundle --extras "${@:5}"
  umount "$root/proc"
}

try noble noble http://archive.ubuntu.com/ubuntu gutsy "${@:-none}"
try trixie trixie http://deb.debian.org/debian trixie "${@:-none}"
try sid sid http://deb.debian.org/debian sid "${@:-none}"

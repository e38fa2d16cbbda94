#!/usr/bin/env bash
# Make sure that there is a redis-server: the one of the distribution, installed where that is allowed.
set -euo pipefail
if command -v redis-server >/dev/null; then
  exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "Installing redis-server ..."
  # The tests start servers of their own; the system's must not run beside them.
  policy=$(mktemp)
  printf "#!/bin/sh\nexit 101\n" >"$policy"
  chmod 755 "$policy"
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    mv "$policy" /usr/sbin/policy-rc.d
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends redis-server >/dev/null
  exit 0
fi
echo "The tests need redis-server 6.2 or newer, and it can't be installed from here: expected root and apt-get." >&2
echo "Install it yourself, such as by: sudo apt-get install redis-server" >&2
exit 1

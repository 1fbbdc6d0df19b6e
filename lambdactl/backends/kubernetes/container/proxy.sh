#!/bin/sh
# The proxy's container: HAProxy on a copy of what is mounted, and on a new copy whenever that changes, by a reload that
# cuts no request. A copy that HAProxy does not take is left aside, and the one before stays in use.
set -u
base=${LAMBDACTL_PROXY:-/lambdactl/proxy}
source=$base/config # a Secret: haproxy.cfg, service.NAME, auth.NAME, model.NAME, and version, the sum of them
folder=$base/run    # a volume of its own; folder/etc is the copy in use
number=0
now=

# fail TEXT: end with a reason that the API tells.
fail() {
  echo "$1"
  printf 'start-failed: %s' "$1" 2>/dev/null >"${LAMBDACTL_MESSAGE:-/lambdactl/message}" || :
  exit 1
}

version() { cat "$source/version" 2>/dev/null; }

# copy FOLDER: lay the files out as the configuration names them; fails when they change meanwhile.
copy() {
  before=$(version) && rm -rf "$1" && mkdir -p "$1/services" "$1/auth" && cp "$source/haproxy.cfg" "$1/haproxy.cfg" ||
    return 1
  : >"$1/models.map"
  for file in "$source"/*.*; do
    name=${file##*/}
    case $name in
      service.*) cp "$file" "$1/services/${name#service.}.cfg" ;;
      auth.*) cp "$file" "$1/auth/${name#auth.}" ;;
      model.*) cat "$file" >>"$1/models.map" ;;
    esac || return 1
  done
  [ "$(version)" = "$before" ]
}

# take: use a new copy, if HAProxy takes it. The files are only read when it starts and when it reloads.
take() {
  last=$number
  copy "$folder/$((number + 1))" || return 2
  number=$((number + 1))
  ln -sfn "$number" "$folder/etc"
  if said=$(haproxy -c -f "$folder/etc/haproxy.cfg" -f "$folder/etc/services" 2>&1); then
    now=$before
    rm -rf "${folder:?}/$last"
    return 0
  fi
  ln -sfn "$last" "$folder/etc"
  why=$(printf '%s\n' "$said" | grep -m 1 'ALERT' || printf 'no reason given')
  printf '%s\n' "$said"
  return 1
}

command -v haproxy >/dev/null || fail 'the image has no haproxy in its PATH'
rm -rf "${folder:?}"/*
until take; do
  [ "$?" -eq 2 ] || fail "its HAProxy does not take the configuration ($why)"
  sleep 1
done
haproxy -W -f "$folder/etc/haproxy.cfg" -f "$folder/etc/services" -p "$folder/haproxy.pid" &
proxy=$!
# In order: what is under way is answered, nothing new is taken.
stopping=
trap 'stopping=yes; kill -USR1 "$proxy" 2>/dev/null' TERM INT
refused=
while kill -0 "$proxy" 2>/dev/null; do
  sleep 1 &
  wait $!
  seen=$(version) || continue
  [ -z "$stopping" ] && [ "$seen" != "$now" ] && [ "$seen" != "$refused" ] || continue
  take && kill -USR2 "$proxy"
  [ "$?" -ne 1 ] || refused=$seen
done
wait "$proxy"
exit $?

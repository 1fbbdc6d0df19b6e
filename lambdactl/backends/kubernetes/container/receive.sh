#!/bin/sh
# What a run brings along, into a rank that waits for its start: pieces of tar archives, from the controller by the API's
# exec, from another rank by SSH, or from the files volume. A piece is named INDEX.NUMBER (of which tree, in which order).
#   receive begin                 when the entrypoint knows the rank's places: says what the image has
#   receive parts LIST            standard input is a tar of pieces, and of the file LIST: a line "NAME SIZE SHA256" each
#   receive pass ADDRESS          sends the pieces that standard input lists to another rank
#   receive place                 puts every archive where it belongs
# and with a files volume, whose files are named by the sha256 of what is in them (docs/kubernetes.md):
#   receive have TREE [AGE SIZE]  which pieces of a tree it lacks; removes what nobody has used for AGE minutes, or, the least
#                                 used first, what is above SIZE bytes
#   receive learn TREE            standard input is the tree: a line "NUMBER SIZE SHA256" for each of its pieces
#   receive store LIST [all]      as `parts`, into the volume; where it is full, what is not in use goes (not with `all`)
#   receive fetch TREE...         takes trees from it; says which pieces are not there, or are not what they are named
#   receive load                  takes what bin/trees names from it, and places it, by itself
#   receive keep [TREE...]        counts these trees, or what bin/trees names, as used now
# and of a service, whose replicas start without anybody who could send something:
#   receive mounted               takes what is in content/, INDEX.NUMBER of a gzip file each, and places it, by itself
# Exit codes: 3 pieces came damaged, 1 everything else, with a sentence on standard error.
# POSIX shell; besides what the entrypoint needs: tar, wc, rm, mv, ls; sha256sum where there is one, find for the volume.

base=${LAMBDACTL_DIR:-/lambdactl}
parts=$base/data/parts
volume=$base/store/trees
fresh=60 # minutes for which what was used is never removed: a run may be about to take it
PATH=${PATH:+$PATH:}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
umask 022

fail() {
  printf '%s\n' "$1" >&2
  exit "${2:-1}"
}

# The tools that this needs: says which one is not there.
lacking() {
  for tool in tar wc rm mv ls; do
    command -v "$tool" >/dev/null || { echo "$tool"; return 0; }
  done
  return 1
}

begin() {
  naps=0
  until [ -s "$base/run/places" ]; do
    naps=$((naps + 1))
    [ "$naps" -lt 600 ] || fail "the rank does not get ready to take files"
    sleep 0.1 2>/dev/null || sleep 1
  done
  if tool=$(lacking); then echo "lacks $tool"; exit 0; fi
  prepare
  # Where other ranks reach it, and it them.
  address=-
  if [ -e "$base/run/reachable" ] && command -v ssh >/dev/null; then address=${LAMBDACTL_NODE_IP:--}; fi
  sums=-
  if command -v sha256sum >/dev/null; then sums=sha256; fi
  echo "has $address $sums"
}

prepare() {
  mkdir -p "$parts" && rm -rf "$parts"/* "$parts"/.new.*
}

# Where things go; the entrypoint wrote it down.
read_places() {
  { IFS= read -r dir; IFS= read -r repo_dir; IFS= read -r home; IFS= read -r uid; IFS= read -r gid; } <"$base/run/places"
}

receiving() { echo >"$base/run/receiving"; } 2>/dev/null # the entrypoint's patience begins anew

# unpack_into FOLDER LIST: standard input's pieces into FOLDER/.new..., which becomes $new, and checks each of them
unpack_into() {
  case $2 in "" | *[!a-z0-9.]* | .*) fail "'$2' is not the name of a list" ;; esac
  # Pods share a volume, and their process ids are alike.
  number=0 new=$1/.new.${HOSTNAME-}.$$
  until mkdir "$new" 2>/dev/null; do
    number=$((number + 1)) new=$1/.new.${HOSTNAME-}.$$.$number
    [ "$number" -lt 100 ] || fail "$1 cannot be written"
  done
  if ! said=$(tar -xf - -C "$new" 2>&1); then
    rm -rf "$new"
    case $said in *"o space left"* | *"uota exceeded"*) fail "what the run brings along cannot be stored: $said" ;; esac
    fail "the pieces came damaged: $said" 3
  fi
  [ -s "$new/$2" ] || { rm -rf "$new"; fail "the pieces came without their list" 3; }
  while read -r name size sum; do
    case $name$sum in *[!a-f0-9.]* | .*) rm -rf "$new"; fail "'$name' is not the name of a piece" ;; esac
    if [ ! -f "$new/$name" ] || [ "$size" != $(($(wc -c <"$new/$name"))) ]; then
      rm -rf "$new"
      fail "the piece $name has another size" 3
    fi
    ! command -v sha256sum >/dev/null || echo "$sum  $new/$name" >>"$new/.sums"
  done <"$new/$2"
  if [ -e "$new/.sums" ] && ! sha256sum -c "$new/.sums" >/dev/null 2>&1; then
    rm -rf "$new"
    fail "a piece has another checksum" 3
  fi
}

parts() {
  receiving
  unpack_into "$parts" "$1"
  rm -f "$new/$1" "$new/.sums"
  mv "$new"/* "$parts/" && rm -rf "$new"
}

pass() {
  # shellcheck source=/dev/null
  . "$base/bin/settings"
  list=list.$$
  cat >"$parts/$list" || exit 1
  echo "lambdactl $(cat "$base/run/host_ed25519.pub")" >"$base/run/known_hosts.$$"
  set -- "$1" "$list"
  while read -r name _; do set -- "$@" "$name"; done <"$parts/$list"
  address=$1
  shift
  receiving
  # shellcheck disable=SC2154  # of the settings
  (cd "$parts" && tar -cf - "$@") |
    ssh -F /dev/null -p "$lambdactl_port" -i "$base/run/id_ed25519" -o IdentitiesOnly=yes -o BatchMode=yes \
      -o ConnectTimeout=10 -o ServerAliveInterval=15 -o LogLevel=ERROR -o HostKeyAlias=lambdactl \
      -o StrictHostKeyChecking=yes -o GlobalKnownHostsFile=/dev/null -o "UserKnownHostsFile=$base/run/known_hosts.$$" \
      "$address" "lambdactl-receive parts $list"
  rc=$?
  rm -f "$parts/$list" "$base/run/known_hosts.$$"
  exit "$rc"
}

# --- The files volume ------------------------------------------------------------------------------------------------------

# named FILE SHA256: whether a file is what its name says; anybody who may run in the namespace can write the volume
named() {
  # shellcheck disable=SC2046  # two words
  [ -f "$1" ] && set -- "$2" $(sha256sum <"$1") && [ "$1" = "$2" ]
}

have() {
  set -- "$1" "${2-}" "${3-0}"
  mkdir -p "$volume" 2>/dev/null
  chmod 0777 "$volume" 2>/dev/null
  [ -w "$volume" ] || { echo closed; exit 0; }
  named "$volume/$1" "$1" || { rm -f "$volume/$1"; tidy "$2" "$3"; echo unknown; exit 0; }
  tree=$volume/$1 age=$2 most=$3
  set -- "$tree"
  while read -r _ _ sum; do
    if [ -f "$volume/$sum" ]; then set -- "$@" "$volume/$sum"; else echo "lacks $sum"; fi
  done <"$tree"
  touch -c "$@" 2>/dev/null # they count as used now
  tidy "$age" "$most"
  echo known
}

# tidy AGE SIZE; without them nothing is removed
tidy() {
  [ -n "$1" ] || return 0
  command -v find >/dev/null || return 0
  find "$volume" -name '.new.*' -mmin "+$fresh" -prune -exec rm -rf {} \; 2>/dev/null
  find "$volume" -type f -mmin "+$1" -exec rm -f {} \; 2>/dev/null
  [ "$2" != 0 ] || return 0
  old=" $(find "$volume" -type f -mmin "+$fresh" -exec echo {} \; | tr '\n' ' ')"
  total=0
  # The newest first; of numbers and names in hexadecimal, the first blank-separated words and the last one are plain.
  ls -lnt "$volume" | while read -r _ _ _ _ size rest; do
    case $size in "" | *[!0-9]*) continue ;; esac
    total=$((total + size)) name=${rest##* }
    [ "$total" -gt "$2" ] || continue
    case $old in *"/$name "*) rm -f "$volume/$name" ;; esac
  done
}

learn() {
  new=$volume/.new.${HOSTNAME-}.$$
  cat >"$new" || { rm -f "$new"; fail "the files volume cannot be written"; }
  named "$new" "$1" || { rm -f "$new"; fail "the tree came damaged" 3; }
  chmod 0666 "$new" && mv "$new" "$volume/$1"
}

store() {
  receiving
  said=$( (unpack_into "$volume" "$1" && rm -f "$new/.sums" && take_in "$1") 2>&1) && return 0
  rc=$?
  # A full volume is nobody's problem before all that is not in use has gone.
  case $said in *"o space left"* | *"uota exceeded"*) if [ "${2-}" != all ]; then tidy "$fresh" 0; rc=3; fi ;; esac
  fail "$said" "$rc"
}

take_in() {
  while read -r name _ sum; do
    # As new as it is: in the archive it is from 1970, which tidy would take for unused.
    touch "$new/$name" && chmod 0666 "$new/$name" && mv "$new/$name" "$volume/$sum" || exit 1
  done <"$new/$1"
  rm -rf "$new"
}

fetch() {
  index=0
  for tree; do
    if ! named "$volume/$tree" "$tree"; then
      echo "unknown $tree"
    else
      cat "$volume/$tree" >"$parts/.tree" || exit 1
      named "$parts/.tree" "$tree" || fail "a tree in the files volume changes while it is read"
      touch -c "$volume/$tree" 2>/dev/null # it counts as used now, with all its pieces
      : >"$parts/.sums"
      while read -r number _ sum; do
        receiving
        # A copy of its own is checked, which nobody else can change.
        cat "$volume/$sum" >"$parts/$index.$number" 2>"$parts/.said" || case $(cat "$parts/.said") in
          *"o space left"* | *"uota exceeded"*) fail "what the run brings along cannot be stored: $(cat "$parts/.said")" ;;
        esac
        touch -c "$volume/$sum" 2>/dev/null
        echo "$sum  $parts/$index.$number" >>"$parts/.sums"
      done <"$parts/.tree"
      [ ! -s "$parts/.sums" ] || sha256sum -c "$parts/.sums" 2>/dev/null >"$parts/.found"
      while read -r name state; do
        case $state in OK) continue ;; esac
        name=${name%:} name=${name##*/}
        rm -f "$parts/$name"
        while read -r sum path; do
          [ "${path##*/}" != "$name" ] || rm -f "$volume/$sum" # the next run brings it again
        done <"$parts/.sums"
        echo "lacks $name"
      done <"$parts/.found"
    fi
    index=$((index + 1))
  done
  rm -f "$parts/.tree" "$parts/.sums" "$parts/.found" "$parts/.said"
}

keep() {
  # shellcheck disable=SC2046  # one word a tree
  [ $# != 0 ] || set -- $(cat "$base/bin/trees")
  for tree; do
    if [ -f "$volume/$tree" ]; then used "$tree"; fi
  done
}

# used TREE: it counts as used now, with all its pieces
used() {
  tree=$volume/$1
  set -- "$tree"
  while read -r _ _ sum; do
    set -- "$@" "$volume/$sum"
    [ $# -lt 500 ] || { touch -c "$@" 2>/dev/null; set --; }
  done <"$tree"
  [ $# = 0 ] || touch -c "$@" 2>/dev/null
}

# What an earlier start of this container has left on the pod's own volume, which outlives it.
again() { rm -rf "$base/data/work" "$base/run/delivered"; }

mounted() {
  if tool=$(lacking); then fail "the image has no $tool, which 'files' and 'repos' need"; fi
  command -v gzip >/dev/null || fail "the image has no gzip, which 'files' and 'repos' of a service need"
  prepare || exit 1
  again
  while IFS=' ' read -r index _ <&3; do
    cat "$base/content/$index".* | gzip -dc >"$parts/$index.0" || fail "what the service takes with it cannot be unpacked"
  done 3<"$base/bin/content"
  place
}

load() {
  if tool=$(lacking); then fail "the image has no $tool, which 'files' need"; fi
  command -v sha256sum >/dev/null || fail "the image has no sha256sum, which files from a volume need"
  prepare || exit 1
  again
  # shellcheck disable=SC2046,SC2086  # one word a tree; all that is said on one line
  said=$(fetch $(cat "$base/bin/trees")) || exit 1
  [ -z "$said" ] || fail "the files volume has not all of the files any more ($(echo $said)); apply the file again"
  place
}

# --- Into its place --------------------------------------------------------------------------------------------------------

# expand PATH: an absolute path; ~ is the home of the run's user, and relative paths start at the working directory
expand() {
  case $1 in
    "~") target=$home ;;
    "~/"*) target=$home/${1#"~/"} ;;
    /*) target=$1 ;;
    . | ./) target=$dir ;;
    *) target=$dir/${1#./} ;;
  esac
  [ "$target" = / ] || target=${target%/}
}

# folder PATH: makes it with all above it, for the run's user
folder() {
  [ ! -d "$1" ] || return 0
  case ${1%/*} in "" | "$1") ;; *) (folder "${1%/*}") || return 1 ;; esac
  mkdir "$1" || return 1
  [ "$uid" = 0 ] || chown "$uid:$gid" "$1" 2>/dev/null || :
}

# archive_of INDEX: the whole tar; its pieces go as they are read
archive_of() {
  for piece in "$parts/$1".*; do
    cat "$piece" || exit 1
    rm -f "$piece"
  done
}

# unpack INDEX FOLDER: archives belong to root; a user that is known by name gets what is in them.
unpack() {
  if [ "$uid" = 0 ] || [ "$(id -u 2>/dev/null)" != 0 ]; then
    archive_of "$1" | tar -xpf - -C "$2"
  else
    own=$parts/.own
    rm -rf "$own" && mkdir "$own" && archive_of "$1" | tar -xpf - -C "$own" && chown -hR "$uid:$gid" "$own" || return 1
    # Not the folder itself, which may be somebody else's.
    set -- "$2"
    for name in "$own"/* "$own"/.[!.]* "$own"/..?*; do
      if [ -e "$name" ] || [ -h "$name" ]; then set -- "$@" "./${name##*/}"; fi
    done
    into=$1
    shift
    [ $# = 0 ] || (cd "$own" && tar -cf - "$@") | tar -xpf - -C "$into" || return 1
    rm -rf "$own"
  fi
}

place() {
  read_places
  while IFS=' ' read -r index kind if_exists path <&3; do
    into=
    case $kind in
      repo)
        target=$repo_dir into=$repo_dir
        if [ -d "$target" ] && [ -n "$(ls -A "$target")" ]; then
          if [ "$if_exists" = skip ]; then rm -f "$parts/$index".*; continue; fi
          fail "the repository cannot be checked out: $target exists and is not empty; remove it, choose another 'path', or write if_exists: skip"
        fi
        ;;
      file)
        expand "$path"
        into=${target%/*}
        [ ! -d "$target" ] || fail "$target is a folder on this rank, and the upload is a file"
        ;;
      *)
        expand "$path"
        into=$target
        ;;
    esac
    folder "${into:-/}" || fail "the folder $into cannot be made"
    unpack "$index" "${into:-/}" || fail "it cannot be unpacked in ${into:-/}"
  done 3<"$base/bin/content"
  rm -rf "$parts"/* "$parts"/.[!.]*
  : >"$base/run/delivered"
}

command=$1
shift
"$command" "$@"

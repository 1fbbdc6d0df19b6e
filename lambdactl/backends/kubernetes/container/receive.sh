#!/bin/sh
# What a run brings along, from the controller into a rank that waits for its start. The API executes this in the rank:
#   receive begin                 when the entrypoint knows the rank's places: says what the image has
#   receive part NAME SIZE SUM    standard input is one piece of an archive; SUM is its sha256
#   receive place                 puts every archive where it belongs
# Exit codes: 3 a piece came damaged, 1 everything else, with a sentence on standard error.
# POSIX shell; besides what the entrypoint needs: tar, wc, rm, mv, ls; sha256sum where there is one.

base=${LAMBDACTL_DIR:-/lambdactl}
parts=$base/data/parts
PATH=${PATH:+$PATH:}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
umask 022

fail() {
  printf '%s\n' "$1" >&2
  exit "${2:-1}"
}

begin() {
  naps=0
  until [ -s "$base/run/places" ]; do
    naps=$((naps + 1))
    [ "$naps" -lt 600 ] || fail "the rank does not get ready to take files"
    sleep 0.1 2>/dev/null || sleep 1
  done
  for tool in tar wc rm mv ls; do
    command -v "$tool" >/dev/null || { echo "lacks $tool"; exit 0; }
  done
  mkdir -p "$parts" && rm -f "$parts"/* "$parts"/.new.*
  read_places
  echo "has $uid $gid"
}

# Where things go; the entrypoint wrote it down.
read_places() {
  { IFS= read -r dir; IFS= read -r repo_dir; IFS= read -r home; IFS= read -r uid; IFS= read -r gid; } <"$base/run/places"
}

part() {
  : >"$base/run/receiving" # the entrypoint's patience begins anew
  new=$parts/.new.$1.$$
  cat >"$new" || { rm -f "$new"; fail "what the run brings along cannot be stored"; }
  set -- "$1" "$2" "$3" $(wc -c <"$new")
  [ "$2" = "$4" ] || { rm -f "$new"; fail "$4 bytes of $2 came" 3; }
  if command -v sha256sum >/dev/null; then
    set -- "$1" "$3" $(sha256sum <"$new")
    [ "$2" = "$3" ] || { rm -f "$new"; fail "the piece has another checksum" 3; }
  fi
  mv "$new" "$parts/$1"
}

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
    for piece in "$parts/$index".*; do
      cat "$piece" || exit 1
      rm -f "$piece"
    done | tar -xpf - -C "${into:-/}" || fail "it cannot be unpacked in $into"
  done 3<"$base/bin/content"
  : >"$base/run/delivered"
}

command=$1
shift
"$command" "$@"

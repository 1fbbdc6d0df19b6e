# What sshd runs for every login to a rank: the environment of the rank's commands first, then what was asked for.
# Before the start, other ranks bring what the run takes with it (receive.sh); when it has been placed, nobody does.
case ${SSH_ORIGINAL_COMMAND-} in
  "lambdactl-receive parts "*)
    if [ ! -e "${1%/run}/bin/content" ] || [ -e "$1/delivered" ]; then exit 1; fi
    LAMBDACTL_DIR=${1%/run}
    export LAMBDACTL_DIR
    exec /bin/sh "$LAMBDACTL_DIR/bin/receive" parts "${SSH_ORIGINAL_COMMAND##* }"
    ;;
esac
# A login as root becomes the run's user first: a login as that user needs a shell and a password entry that many lack.
if [ -s "$1/user" ] && [ "$(id -u)" = 0 ]; then
  lambdactl_user=$(cat "$1/user")
  if command -v setpriv >/dev/null 2>&1 && setpriv --help 2>/dev/null | grep -q init-groups; then
    exec setpriv --reuid="$lambdactl_user" --regid="$(id -g "$lambdactl_user")" --init-groups /bin/sh "$0" "$1"
  fi
  exec su -s /bin/sh "$lambdactl_user" -c "exec /bin/sh '$0' '$1'"
fi
lambdactl_term=${TERM-}
# shellcheck source=/dev/null
. "$1/env"
[ -z "$lambdactl_term" ] || TERM=$lambdactl_term
lambdactl_shell=${SHELL:-}
[ -x "$lambdactl_shell" ] || lambdactl_shell=/bin/sh
unset lambdactl_term
# In a dev environment people work where its commands do.
[ ! -e "$1/dev" ] || cd "$DSTACK_WORKING_DIR" 2>/dev/null || :
if [ -n "${SSH_ORIGINAL_COMMAND+set}" ]; then
  exec "$lambdactl_shell" -c "$SSH_ORIGINAL_COMMAND"
fi
exec "$lambdactl_shell" -l

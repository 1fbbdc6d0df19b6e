# What sshd runs for every login to a rank: the environment of the rank's commands first, then what was asked for.
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

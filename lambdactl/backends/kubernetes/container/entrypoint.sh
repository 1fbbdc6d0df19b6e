#!/bin/sh
# The first process of a rank's container: waits until all ranks have an address, prepares SSH between them, runs the
# commands, passes the stop signal on, and ends with the commands' exit code.
#
# POSIX shell, for dash and busybox ash; the image needs nothing but /bin/sh, cat, mkdir, chmod, sleep and date. Around it:
#   bin/   this file, `settings` (sh assignments), `ranks` (job id and GPUs, a line a rank), `script`, `login`
#   pod/   `peers` (addresses in rank order) and `go`, two annotations of the pod that the kubelet writes here
#   keys/  `id_ed25519`, `id_ed25519.pub`, `host_ed25519`, `host_ed25519.pub`: of this run only
#   run/   what is made here: `hostfile`, `ssh_config`, `env`, `started` ...; in memory
# All names of variables begin with lambdactl_, because an assignment would change a variable of the user's environment.

lambdactl_base=${LAMBDACTL_DIR:-/lambdactl}
lambdactl_run=$lambdactl_base/run
lambdactl_path=${PATH-}
PATH=${PATH:+$PATH:}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
umask 077
# Line ends as the commands write them; container runtimes see to that, not all of them.
[ ! -t 1 ] || stty -onlcr <&1 2>/dev/null
# shellcheck source=/dev/null
. "$lambdactl_base/bin/settings"
lambdactl_rank=$((${LAMBDACTL_RANK:-${JOB_COMPLETION_INDEX:-0}} + ${LAMBDACTL_FIRST_RANK:-0}))
lambdactl_uid=$(id -u 2>/dev/null || echo 0)
# A container that the kubelet starts again finds what the one before it has left.
for lambdactl_n in pid exit_code silent; do
  [ ! -e "$lambdactl_run/$lambdactl_n" ] || : >"$lambdactl_run/$lambdactl_n"
done
rm -f "$lambdactl_run/idle" 2>/dev/null

# fail SENTENCE: what the run's state will say; the code is the one of `docker run` for a container that cannot start.
lambdactl_fail() {
  printf 'lambdactl: %s\n' "$1" >&2
  { printf 'start-failed: %s' "$1" >"${LAMBDACTL_MESSAGE_FILE:-$lambdactl_base/message}"; } 2>/dev/null
  lambdactl_end 125
}

lambdactl_end() {
  [ -z "${lambdactl_sshd_pid-}" ] || kill "$lambdactl_sshd_pid" 2>/dev/null
  [ -z "${lambdactl_killer-}" ] || kill "$lambdactl_killer" 2>/dev/null
  [ -z "${lambdactl_guard-}" ] || kill "$lambdactl_guard" 2>/dev/null
  [ -z "${lambdactl_keeper-}" ] || kill "$lambdactl_keeper" 2>/dev/null
  [ -z "${lambdactl_watcher-}" ] || kill "$lambdactl_watcher" 2>/dev/null
  exit "$1"
}

lambdactl_nap() { sleep 0.1 2>/dev/null || sleep 1; }

# passwd_of NAME-OR-NUMBER: sets lambdactl_name, lambdactl_home, lambdactl_login_shell. Images often have no getent.
lambdactl_passwd_of() {
  lambdactl_name=
  while IFS=: read -r lambdactl_n _ lambdactl_u _ _ lambdactl_h lambdactl_s; do
    if [ "$lambdactl_n" = "$1" ] || [ "$lambdactl_u" = "$1" ]; then
      lambdactl_name=$lambdactl_n lambdactl_home=$lambdactl_h lambdactl_login_shell=$lambdactl_s
      return 0
    fi
  done </etc/passwd 2>/dev/null
  return 1
}

# --- Stopping: SIGTERM becomes the run's own stop signal; after the grace time everything of the job is killed ---------

lambdactl_signal_job() {
  read -r lambdactl_pid 2>/dev/null <"$lambdactl_run/pid" || return 0
  kill "-$1" "-$lambdactl_pid" 2>/dev/null || kill "-$1" "$lambdactl_pid" 2>/dev/null
}

lambdactl_on_term() {
  [ -n "${lambdactl_started-}" ] || lambdactl_end 143
  [ -z "${lambdactl_killer-}" ] || return 0
  lambdactl_signal_job "$lambdactl_signal"
  { sleep "$lambdactl_grace"; lambdactl_signal_job KILL; } >/dev/null 2>&1 &
  lambdactl_killer=$!
}
trap lambdactl_on_term TERM

# --- utilization_policy: the end of a run whose GPUs idle; where nvidia-smi gives no answer, the window begins anew -------

lambdactl_guard_gpus() {
  trap - TERM
  lambdactl_pause=$((lambdactl_util_window / 5))
  [ "$lambdactl_pause" -le 10 ] || lambdactl_pause=10
  lambdactl_since=$(date +%s)
  while sleep "$lambdactl_pause"; do
    lambdactl_now=$(date +%s)
    lambdactl_use=$(nvidia-smi --query-gpu=index,utilization.gpu --format=csv,noheader,nounits) || lambdactl_use=
    [ -n "$lambdactl_use" ] || lambdactl_since=$lambdactl_now
    while IFS=', ' read -r lambdactl_index lambdactl_percent; do
      case $lambdactl_index in "" | *[!0-9]*) continue ;; esac
      case $lambdactl_percent in "" | *[!0-9]*) continue ;; esac
      # When it was last seen at work: a variable of each GPU, whose index is a number.
      if [ "$lambdactl_percent" -ge "$lambdactl_util_min" ]; then eval "lambdactl_busy_$lambdactl_index=$lambdactl_now"; fi
      eval "lambdactl_last=\${lambdactl_busy_$lambdactl_index-0}"
      [ "$lambdactl_last" -ge "$lambdactl_since" ] || lambdactl_last=$lambdactl_since
      if [ $((lambdactl_now - lambdactl_last)) -ge "$lambdactl_util_window" ]; then
        printf 'utilization-policy: GPU %s was below %s%% for %s s' "$lambdactl_index" "$lambdactl_util_min" \
          "$lambdactl_util_window" >"${LAMBDACTL_MESSAGE_FILE:-$lambdactl_base/message}"
        : >"$lambdactl_run/idle"
        lambdactl_signal_job "$lambdactl_signal"
        sleep "$lambdactl_grace"
        lambdactl_signal_job KILL
        return
      fi
    done <<EOF
$lambdactl_use
EOF
  done
}

# --- Who runs the commands -----------------------------------------------------------------------------------------------

lambdactl_become=
if [ -n "$lambdactl_user" ]; then
  lambdactl_passwd_of "${lambdactl_user%%:*}" ||
    lambdactl_fail "the image $lambdactl_image has no user ${lambdactl_user%%:*}; give 'user' as a number, or use another image."
  lambdactl_group=${lambdactl_user#"$lambdactl_name"}
  lambdactl_group=${lambdactl_group#:}
  HOME=$lambdactl_home USER=$lambdactl_name LOGNAME=$lambdactl_name
  export HOME USER LOGNAME
  if command -v setpriv >/dev/null 2>&1 && setpriv --help 2>/dev/null | grep -q init-groups; then
    lambdactl_become="setpriv --reuid=$lambdactl_name --regid=${lambdactl_group:-$(id -g "$lambdactl_name")} --init-groups"
  elif [ -n "$lambdactl_group" ]; then
    lambdactl_fail "the image $lambdactl_image has no setpriv (util-linux), which 'user' with a group needs; give it as numbers."
  elif ! command -v su >/dev/null 2>&1; then
    lambdactl_fail "the image $lambdactl_image has neither setpriv nor su, which 'user' by name needs; give it as a number."
  fi
else
  lambdactl_passwd_of "$lambdactl_uid" || lambdactl_home=${HOME:-/}
  HOME=${HOME:-$lambdactl_home}
  export HOME
fi

# --- Where its files, its repository and its commands belong ---------------------------------------------------------------

# expand PATH BASE: sets lambdactl_place; ~ is the user's home, relative paths start at BASE
lambdactl_expand() {
  case $1 in
    "~") lambdactl_place=$HOME ;;
    "~/"*) lambdactl_place=$HOME/${1#"~/"} ;;
    /*) lambdactl_place=$1 ;;
    "" | . | ./) lambdactl_place=$2 ;;
    *) lambdactl_place=$2/${1#./} ;;
  esac
}
lambdactl_repo_dir=
if [ -n "$lambdactl_repo" ]; then
  # A home folder is never empty: without a working directory it is a folder of the run's own.
  lambdactl_place=$lambdactl_base/data/work
  [ -z "$lambdactl_dir" ] || lambdactl_expand "$lambdactl_dir" "$HOME"
  lambdactl_expand "$lambdactl_repo" "$lambdactl_place"
  lambdactl_repo_dir=$lambdactl_place
fi
lambdactl_expand "${lambdactl_dir:-${lambdactl_repo_dir:-$HOME}}" "$HOME"
lambdactl_dir=$lambdactl_place
{
  printf '%s\n' "$lambdactl_dir" "$lambdactl_repo_dir" "$HOME"
  if [ -n "$lambdactl_user" ]; then
    id -u "$lambdactl_name"
    id -g "$lambdactl_name"
  else
    echo "$lambdactl_uid"
    id -g 2>/dev/null || echo 0
  fi
} >"$lambdactl_run/places.new"
if [ -n "$lambdactl_user" ]; then printf '%s' "$lambdactl_name" >"$lambdactl_run/user"; fi

# --- SSH between the ranks: this rank's server; listening before anybody is told to go -----------------------------------

lambdactl_find_sshd() {
  for lambdactl_sshd in "$(command -v sshd 2>/dev/null)" /usr/sbin/sshd /usr/local/sbin/sshd; do
    if [ -n "$lambdactl_sshd" ] && [ -x "$lambdactl_sshd" ]; then return 0; fi
  done
  return 1
}

lambdactl_start_sshd() {
  if [ "$lambdactl_uid" = 0 ]; then mkdir -p /run/sshd /var/empty 2>/dev/null; fi
  for lambdactl_key in id_ed25519 id_ed25519.pub host_ed25519 host_ed25519.pub; do
    cat "$lambdactl_base/keys/$lambdactl_key" >"$lambdactl_run/$lambdactl_key" || return 1
  done
  cat "$lambdactl_run/id_ed25519.pub" >"$lambdactl_run/authorized_keys"
  {
    echo "Port $lambdactl_port"
    # The kubelet's port-forward comes from this pod's own loopback.
    echo "ListenAddress 127.0.0.1"
    [ -z "${LAMBDACTL_NODE_IP-}" ] || echo "ListenAddress $LAMBDACTL_NODE_IP"
    echo "HostKey $lambdactl_run/host_ed25519"
    echo "AuthorizedKeysFile $lambdactl_run/authorized_keys"
    printf '%s\n' "PidFile none" "StrictModes no" "UsePAM no" "UseDNS no" "PasswordAuthentication no" \
      "KbdInteractiveAuthentication no" "PermitRootLogin prohibit-password" "PrintMotd no" "AcceptEnv LANG LC_*" \
      "MaxStartups 500" "MaxSessions 500" "ClientAliveInterval 30" "LogLevel INFO"
    for lambdactl_sftp in /usr/lib/openssh/sftp-server /usr/libexec/openssh/sftp-server /usr/lib/ssh/sftp-server; do
      if [ -x "$lambdactl_sftp" ]; then echo "Subsystem sftp $lambdactl_sftp"; break; fi
    done
    # Logins, and so mpirun's remote daemons, see the environment of this rank and of the image, which sshd would drop.
    echo "ForceCommand /bin/sh $lambdactl_base/bin/login $lambdactl_run"
  } >"$lambdactl_run/sshd_config"
  "$lambdactl_sshd" -D -e -f "$lambdactl_run/sshd_config" </dev/null >"$lambdactl_run/sshd.log" 2>&1 &
  lambdactl_sshd_pid=$!
  while kill -0 "$lambdactl_sshd_pid" 2>/dev/null; do
    case $(cat "$lambdactl_run/sshd.log" 2>/dev/null) in *"Server listening on"*) return 0 ;; esac
    lambdactl_nap
  done
  lambdactl_sshd_pid=
  return 1
}

if [ -n "$lambdactl_ssh" ]; then
  lambdactl_missing=
  lambdactl_find_sshd || lambdactl_missing="no sshd (package openssh-server)"
  if [ "$lambdactl_rank" = 0 ] && [ "$lambdactl_ssh" != login ] && ! command -v ssh >/dev/null 2>&1; then
    lambdactl_missing="${lambdactl_missing:+$lambdactl_missing and }no ssh (package openssh-client)"
  fi
  if [ -z "$lambdactl_missing" ] && ! lambdactl_start_sshd; then
    lambdactl_missing="an sshd that does not start ($(tail -n 1 "$lambdactl_run/sshd.log" 2>/dev/null))"
  fi
  if [ -n "$lambdactl_missing" ]; then
    lambdactl_have_ssh=
    [ "$lambdactl_ssh" != login ] ||
      lambdactl_fail "the image $lambdactl_image has $lambdactl_missing, by which a dev environment is entered; use an image that has it, such as lambdactl's default image."
    [ "$lambdactl_ssh" != need ] ||
      lambdactl_fail "the image $lambdactl_image has $lambdactl_missing, and the commands reach the other ranks by SSH; use an image that has it, such as lambdactl's default image."
  else
    lambdactl_have_ssh=yes
  fi
else
  lambdactl_have_ssh=
fi

# From here on the rank takes files: from the controller, and, where there is an sshd, from other ranks.
[ -z "$lambdactl_have_ssh" ] || : >"$lambdactl_run/reachable"
mv "$lambdactl_run/places.new" "$lambdactl_run/places" 2>/dev/null || cat "$lambdactl_run/places.new" >"$lambdactl_run/places"
lambdactl_from=
if [ -e "$lambdactl_base/bin/trees" ]; then lambdactl_from=load; elif [ -e "$lambdactl_base/content" ]; then lambdactl_from=mounted; fi
if [ -n "$lambdactl_from" ]; then
  lambdactl_said=$(/bin/sh "$lambdactl_base/bin/receive" "$lambdactl_from" 2>&1) || lambdactl_fail "$lambdactl_said"
fi
# A replica may run for longer than the volume keeps what nobody uses, and another one starts after that.
if [ "$lambdactl_from" = load ] && [ -n "${lambdactl_alone-}" ]; then
  { while sleep 1800; do /bin/sh "$lambdactl_base/bin/receive" keep; done; } >/dev/null 2>&1 &
  lambdactl_keeper=$!
fi

# --- Everybody's address -------------------------------------------------------------------------------------------------

lambdactl_since=$(date +%s)
until [ -n "${lambdactl_alone-}" ] || { [ -s "$lambdactl_base/pod/go" ] && [ -s "$lambdactl_base/pod/peers" ]; }; do
  if [ -e "$lambdactl_run/receiving" ]; then
    rm -f "$lambdactl_run/receiving"
    lambdactl_since=$(date +%s)
  fi
  [ $(($(date +%s) - lambdactl_since)) -lt "$lambdactl_patience" ] ||
    lambdactl_fail "waited $lambdactl_patience s for the other ranks' addresses; the machine that submitted the run went away before it had started (\`lambdactl attach\` goes on from any other)."
  lambdactl_nap
done

[ ! -e "$lambdactl_base/bin/content" ] || [ -e "$lambdactl_run/delivered" ] ||
  lambdactl_fail "was told to start before the run's files had come; start it with one version of lambdactl on all machines."

lambdactl_ips= lambdactl_index=0 lambdactl_all_gpus=0 lambdactl_newline='
'
if [ -n "${lambdactl_alone-}" ]; then lambdactl_peers=${LAMBDACTL_NODE_IP-}; else lambdactl_peers=$(cat "$lambdactl_base/pod/peers"); fi
for lambdactl_ip in $lambdactl_peers; do
  lambdactl_ips=$lambdactl_ips${lambdactl_ips:+$lambdactl_newline}$lambdactl_ip
  [ "$lambdactl_index" != 0 ] || lambdactl_master=$lambdactl_ip
  [ "$lambdactl_index" != "$lambdactl_rank" ] || lambdactl_own_ip=$lambdactl_ip
  lambdactl_index=$((lambdactl_index + 1))
done
[ "$lambdactl_index" = "$lambdactl_nodes" ] ||
  lambdactl_fail "was told of $lambdactl_index addresses for $lambdactl_nodes ranks; this is a bug in lambdactl."

: >"$lambdactl_run/hostfile"
: >"$lambdactl_run/addresses"
lambdactl_index=0
while read -r lambdactl_id lambdactl_gpus lambdactl_file <&3 && read -r lambdactl_ip <&4; do
  lambdactl_all_gpus=$((lambdactl_all_gpus + lambdactl_gpus))
  if [ "$lambdactl_gpus" = 0 ]; then echo "$lambdactl_ip"; else echo "$lambdactl_ip slots=$lambdactl_gpus"; fi >>"$lambdactl_run/hostfile"
  if [ "$lambdactl_index" = "$lambdactl_rank" ]; then
    lambdactl_job_id=$lambdactl_id lambdactl_own_gpus=$lambdactl_gpus lambdactl_script=$lambdactl_base/bin/$lambdactl_file
  fi
  echo "s/@lambdactl-address-$lambdactl_index@/$lambdactl_ip/g" >>"$lambdactl_run/addresses"
  lambdactl_index=$((lambdactl_index + 1))
done 3<"$lambdactl_base/bin/ranks" 4<<EOF
$lambdactl_ips
EOF
chmod 0644 "$lambdactl_run/hostfile"
case $(cat "$lambdactl_script") in
  *@lambdactl-address-*)
    sed -f "$lambdactl_run/addresses" "$lambdactl_script" >"$lambdactl_run/script" ||
      lambdactl_fail "the image $lambdactl_image has no sed, which commands with an IP_ADDRESS need; use an image that has it."
    lambdactl_script=$lambdactl_run/script
    ;;
esac

# --- The commands' environment: what the user sets (it is here already) wins -----------------------------------------------

# default NAME VALUE
lambdactl_default() {
  eval "[ -n \"\${$1+set}\" ] || $1=\$2"
  # shellcheck disable=SC2163  # the variable whose name is in $1
  export "$1"
}

lambdactl_default DSTACK_RUN_ID "$lambdactl_run_id"
lambdactl_default DSTACK_JOB_ID "$lambdactl_job_id"
lambdactl_default DSTACK_RUN_NAME "$lambdactl_run_name"
lambdactl_default DSTACK_REPO_ID "$lambdactl_repo_id"
lambdactl_default DSTACK_REPO_DIR "${lambdactl_repo_dir:-$lambdactl_dir}"
lambdactl_default DSTACK_WORKING_DIR "$lambdactl_dir"
lambdactl_default DSTACK_NODES_IPS "$lambdactl_ips"
lambdactl_default DSTACK_MASTER_NODE_IP "$lambdactl_master"
lambdactl_default DSTACK_NODE_IP "$lambdactl_own_ip"
lambdactl_default DSTACK_NODE_RANK "$lambdactl_rank"
lambdactl_default DSTACK_NODES_NUM "$lambdactl_nodes"
lambdactl_default DSTACK_GPUS_PER_NODE "$lambdactl_own_gpus"
lambdactl_default DSTACK_GPUS_NUM "$lambdactl_all_gpus"
lambdactl_default DSTACK_MPI_HOSTFILE "$lambdactl_run/hostfile"
for lambdactl_n in OMPI_ALLOW_RUN_AS_ROOT OMPI_ALLOW_RUN_AS_ROOT_CONFIRM PRTE_ALLOW_RUN_AS_ROOT PRTE_ALLOW_RUN_AS_ROOT_CONFIRM; do
  lambdactl_default "$lambdactl_n" 1
done

# --- SSH between the ranks: the client's side, and the wait until every peer answers ---------------------------------------

lambdactl_write_ssh_config() {
  printf 'lambdactl %s\n' "$(cat "$lambdactl_run/host_ed25519.pub")" >"$lambdactl_run/known_hosts"
  {
    # shellcheck disable=SC2086  # one word an address
    echo Host $lambdactl_ips
    printf '  %s\n' "Port $lambdactl_port" "IdentityFile $lambdactl_run/id_ed25519" "IdentitiesOnly yes" \
      "HostKeyAlias lambdactl" "UserKnownHostsFile $lambdactl_run/known_hosts" "GlobalKnownHostsFile /dev/null" \
      "StrictHostKeyChecking yes" "LogLevel ERROR" "ServerAliveInterval 30"
  } >"$lambdactl_run/ssh_config"
  # ssh goes by the home folder in /etc/passwd, not by $HOME. Where it cannot be written, mpirun is told by variables.
  if mkdir -p "$lambdactl_home/.ssh" 2>/dev/null && touch "$lambdactl_home/.ssh/config" 2>/dev/null; then
    lambdactl_old=$(cat "$lambdactl_home/.ssh/config")
    case $lambdactl_old in
      *"Include $lambdactl_run/ssh_config"*) ;;
      *) printf 'Include %s\n\n%s\n' "$lambdactl_run/ssh_config" "$lambdactl_old" >"$lambdactl_home/.ssh/config" ;;
    esac
  else
    lambdactl_default OMPI_MCA_plm_rsh_agent "ssh -F $lambdactl_run/ssh_config"
    lambdactl_default PRTE_MCA_plm_ssh_agent "ssh -F $lambdactl_run/ssh_config"
  fi
}

# Every peer is asked at once, again and again for half a minute; rank 0's commands start when all have answered.
lambdactl_await_peers() {
  lambdactl_since=$(date +%s)
  for lambdactl_ip in $lambdactl_ips; do
    (
      until ssh -F "$lambdactl_run/ssh_config" -o BatchMode=yes -o ConnectTimeout=5 "$lambdactl_ip" true </dev/null >/dev/null 2>&1; do
        if [ $(($(date +%s) - lambdactl_since)) -ge 30 ]; then
          echo "$lambdactl_ip" >>"$lambdactl_run/silent"
          break
        fi
        sleep 1
      done
    ) &
    lambdactl_asked="${lambdactl_asked-} $!"
  done
  # shellcheck disable=SC2086  # process ids
  wait $lambdactl_asked
  [ ! -s "$lambdactl_run/silent" ] ||
    printf 'lambdactl: rank 0 gets no answer by SSH on port %s from: %s\n' "$lambdactl_port" "$(cat "$lambdactl_run/silent")" >&2
}

if [ -n "$lambdactl_have_ssh" ]; then
  lambdactl_write_ssh_config
fi
lambdactl_ours=$PATH
PATH=${lambdactl_path:-$PATH}
export -p >"$lambdactl_run/env"
PATH=$lambdactl_ours
if [ -n "$lambdactl_user" ]; then chown -R "$lambdactl_name" "$lambdactl_run"; fi
chmod 0755 "$lambdactl_run" 2>/dev/null
if [ -n "$lambdactl_have_ssh" ] && [ "$lambdactl_ssh" = need ] && [ "$lambdactl_rank" = 0 ]; then
  # In the background, because a shell that waits for a foreground command hears no signal.
  (lambdactl_await_peers) &
  wait $!
fi

# --- A dev environment: who is connected, and the end when nobody has been for too long ------------------------------------

# Connections to this pod's sshd, also those that only forward: it has one child each.
lambdactl_count_sessions() {
  lambdactl_sessions=0
  for lambdactl_stat in /proc/[0-9]*/stat; do
    { read -r lambdactl_line <"$lambdactl_stat"; } 2>/dev/null || continue
    # "pid (name) state ppid ...", and the name may have anything in it.
    lambdactl_line=${lambdactl_line##*) }
    lambdactl_line=${lambdactl_line#* }
    [ "${lambdactl_line%% *}" != "$lambdactl_sshd_pid" ] || lambdactl_sessions=$((lambdactl_sessions + 1))
  done
}

lambdactl_watch_idle() {
  until [ -e "$lambdactl_run/up" ]; do sleep 1; done
  lambdactl_last=$(date +%s) lambdactl_busy= lambdactl_sign= lambdactl_seen=
  while sleep 2; do
    lambdactl_now=$(date +%s)
    lambdactl_present=$(cat "$lambdactl_base/pod/present" 2>/dev/null)
    if [ "$lambdactl_present" != "$lambdactl_seen" ]; then
      lambdactl_seen=$lambdactl_present
      lambdactl_sign=$lambdactl_now
      [ "$lambdactl_present" != gone ] || lambdactl_sign= lambdactl_last=$lambdactl_now
    fi
    # A machine that gives no sign for two minutes is gone.
    [ -z "$lambdactl_sign" ] || [ $((lambdactl_now - lambdactl_sign)) -lt 120 ] || lambdactl_sign=
    lambdactl_count_sessions
    if [ "$lambdactl_sessions" = 0 ]; then lambdactl_busy=; else lambdactl_busy=${lambdactl_busy:-$lambdactl_now}; fi
    # A connection of less than ten seconds is not counted.
    if [ -n "$lambdactl_sign" ] || { [ -n "$lambdactl_busy" ] && [ $((lambdactl_now - lambdactl_busy)) -ge 10 ]; }; then
      lambdactl_last=$lambdactl_now
    fi
    lambdactl_idle=$lambdactl_last
    [ -z "$lambdactl_sign$lambdactl_busy" ] || lambdactl_idle=
    printf 'sessions=%s\nidle_since=%s\n' "$lambdactl_sessions" "$lambdactl_idle" >"$lambdactl_run/sessions"
    lambdactl_limit=$(cat "$lambdactl_base/pod/inactivity" 2>/dev/null)
    if [ -n "$lambdactl_limit" ] && [ -n "$lambdactl_idle" ] && [ $((lambdactl_now - lambdactl_last)) -ge "$lambdactl_limit" ]; then
      echo "$lambdactl_limit" >"$lambdactl_run/unused"
      lambdactl_signal_job "$lambdactl_signal"
      sleep "$lambdactl_grace"
      lambdactl_signal_job KILL
      return
    fi
  done
}

if [ -n "${lambdactl_dev-}" ]; then
  lambdactl_name=
  [ -n "$lambdactl_user" ] && lambdactl_passwd_of "${lambdactl_user%%:*}"
  [ -n "$lambdactl_name" ] || lambdactl_passwd_of "$lambdactl_uid" || lambdactl_name=$lambdactl_uid
  printf 'user=%s\ndirectory=%s\n' "$lambdactl_name" "$lambdactl_dir" >"$lambdactl_run/dev"
  chmod 0644 "$lambdactl_run/dev"
  lambdactl_watch_idle >/dev/null 2>&1 &
  lambdactl_watcher=$!
fi

# --- The commands ----------------------------------------------------------------------------------------------------------

if [ -z "$lambdactl_shell" ]; then
  if [ -x /bin/bash ]; then lambdactl_shell=/bin/bash; else lambdactl_shell=/bin/sh; fi
fi
command -v "$lambdactl_shell" >/dev/null 2>&1 ||
  lambdactl_fail "the image $lambdactl_image has no $lambdactl_shell; set 'shell: sh', or use an image that has it."
mkdir -p "$lambdactl_dir" 2>/dev/null
if [ -n "$lambdactl_user" ]; then chown "$lambdactl_name" "$lambdactl_dir" 2>/dev/null; fi
cd "$lambdactl_dir" || lambdactl_fail "the working directory $lambdactl_dir cannot be entered in the image $lambdactl_image."
umask 022
ulimit -l unlimited 2>/dev/null
ulimit -c 0 2>/dev/null

# A shell without job control starts background commands with SIGINT ignored, for good. With a terminal (the pod has one)
# there is job control; where there is none, GNU env sets the signals back.
lambdactl_reset=
set -m 2>/dev/null
case $- in
  *m*) ;;
  *) if env --default-signal=INT,QUIT true 2>/dev/null; then lambdactl_reset="env --default-signal=INT,QUIT"; fi ;;
esac
# A session of its own, so that no program is stopped for touching a terminal that it does not control.
lambdactl_session=
if command -v setsid >/dev/null 2>&1; then lambdactl_session=setsid; fi
# shellcheck disable=SC2016  # for the inner shell
lambdactl_inner='PATH=$3; echo $$ >"$1"; shift 3; exec "$@"'
lambdactl_started=yes
(
  if [ -n "$lambdactl_user" ] && [ -z "$lambdactl_become" ]; then
    # shellcheck disable=SC2016,SC2086
    $lambdactl_session $lambdactl_reset /bin/sh -c 'echo $$ >"$1"; exec su -s /bin/sh "$2" -c "exec \"\$0\" \"\$@\"" -- "$3" "$4"' - \
      "$lambdactl_run/pid" "$lambdactl_name" "$lambdactl_shell" "$lambdactl_script" </dev/null
  else
    # shellcheck disable=SC2086
    $lambdactl_session $lambdactl_reset $lambdactl_become /bin/sh -c "$lambdactl_inner" - "$lambdactl_run/pid" - \
      "${lambdactl_path:-$PATH}" "$lambdactl_shell" "$lambdactl_script" </dev/null
  fi
  lambdactl_rc=$?
  echo "$lambdactl_rc" >"$lambdactl_run/exit_code"
  exit "$lambdactl_rc"
) &
lambdactl_job=$!
set +m 2>/dev/null

until [ -s "$lambdactl_run/pid" ] || [ -s "$lambdactl_run/exit_code" ]; do lambdactl_nap; done
[ -z "${lambdactl_killer-}" ] || lambdactl_signal_job "$lambdactl_signal"  # it was asked to stop in this very moment
: >"$lambdactl_run/started"
if [ -n "$lambdactl_util_window" ]; then
  lambdactl_guard_gpus >/dev/null 2>&1 &
  lambdactl_guard=$!
fi

while :; do
  wait "$lambdactl_job"
  lambdactl_rc=$?
  # A trap ends `wait` early; the job's own word counts.
  if [ -s "$lambdactl_run/exit_code" ]; then
    lambdactl_rc=$(cat "$lambdactl_run/exit_code")
    break
  fi
  kill -0 "$lambdactl_job" 2>/dev/null || break
done
lambdactl_signal_job KILL
# A rank that was ended for its idle GPUs has not done its work, whatever its commands say.
if [ -e "$lambdactl_run/idle" ] && [ "$lambdactl_rc" = 0 ]; then lambdactl_rc=130; fi
if [ -s "$lambdactl_run/unused" ]; then
  # Nothing went wrong.
  lambdactl_rc=0
  { printf 'inactivity: nobody was connected for %s s' "$(cat "$lambdactl_run/unused")" >"${LAMBDACTL_MESSAGE_FILE:-$lambdactl_base/message}"; } 2>/dev/null
fi
lambdactl_end "$lambdactl_rc"

#!/usr/bin/env bash
# Runs on every host of a TPU slice. `plmjax launch --target=tpu-vm` fills in the words in
# double braces, copies this file to all hosts, and calls it over ssh; by hand, do the same
# with the gcloud commands that `--dry_run` prints.
#
#   bash {{name}}.sh install      unpack and install plmjax
#   bash {{name}}.sh run ID       start the run, or continue to watch it; exit with its code
#   bash {{name}}.sh code ID      print the exit code of the run
#
# The run does not depend on the ssh connection: if that breaks, gcloud calls `run ID`
# again, which continues to watch it.
set -u
export PYTHONUNBUFFERED=1
mkdir -p "$HOME/{{name}}/attempts"
cd "$HOME/{{name}}" || exit 2
command=({{command}})

install() {
  set -e
  # The tarball's folders are those of the directory that you launched from.
  tar -xzf "$HOME/{{name}}.tar.gz"
  {{install}}
}

alive() { kill -0 "$(cat "$1/pid")" 2>/dev/null; }

start() { # attempts/ID
  mkdir -p "$1"
  cp "$HOME/{{name}}.sh" "$1/script"
  # A separate session, which outlives ssh. SIGTERM goes to all of the session: the shell
  # waits for Python, which saves, and then writes the code.
  setsid nohup bash -c 'trap : TERM
    "$@"
    echo $? > "$0/code.new" && mv "$0/code.new" "$0/code"' "$1" "${command[@]}" \
    > "$1/log" 2>&1 < /dev/null &
  echo $! > "$1/pid"
}

stop() { # attempts/ID
  kill -TERM -- "-$(cat "$1/pid")"
  for _ in $(seq {{grace_seconds}}); do
    alive "$1" || return 0
    sleep 1
  done
  kill -KILL -- "-$(cat "$1/pid")"
}

run() { # ID
  local old here=attempts/$1
  if [ ! -e "$here" ]; then
    for old in attempts/*/; do
      old=${old%/}
      if [ -L "$old" ] || [ ! -e "$old/pid" ] || ! alive "$old"; then
        continue
      fi
      if cmp -s "$HOME/{{name}}.sh" "$old/script"; then
        # A restarted launcher watches the run that the last launcher started.
        ln -s "${old#attempts/}" "$here"
      else
        stop "$old"
      fi
    done
    [ -e "$here" ] || start "$here"
  fi
  tail -n +1 -F --pid="$(cat "$here/pid")" "$here/log"
  exit "$(code "$1")"
}

# No code means that the shell itself was killed.
code() { cat "attempts/$1/code" 2>/dev/null || echo 137; }

"$@"

#!/usr/bin/env bash
# The processes of one run on this machine. `plmjax launch --target=local` starts the same
# ones and does better: it marks their output and ends all when one fails. This file shows
# what it starts; by hand, fill in what stands in double braces.
set -u
cd {{directory}} || exit 2
trap 'kill $(jobs -p) 2>/dev/null' TERM INT
{{process}}
code=0
for job in $(jobs -p); do
  wait "$job" || code=$?
done
exit "$code"

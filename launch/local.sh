#!/usr/bin/env bash
# Starts the processes of one run on this machine. Prefer `plmjax launch --target=local`,
# which starts the same processes, marks their output, and ends all when one fails. To use
# this file by hand, fill in the words in double braces. NPROC is the number of threads
# for computing on the CPU: with fewer, processes that wait for each other may hang.
set -u
cd {{directory}} || exit 2
trap 'kill $(jobs -p) 2>/dev/null' TERM INT
{{process}}
code=0
for job in $(jobs -p); do
  wait "$job" || code=$?
done
exit "$code"

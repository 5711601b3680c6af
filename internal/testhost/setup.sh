# PID 1 of a test host. Runs with namespaces of its own already, in which the test process mounts what the host has (setup.go).
set -eu
read -r _
# This a process in the host's PID namespace has to do.
mount -t proc proc /proc
echo ready
# Bash reaps orphans while it waits. The read ends when the test process is gone.
read -r _ || true

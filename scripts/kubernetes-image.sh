#!/usr/bin/env bash
# Builds the image of packaging/kubernetes/Containerfile by podman, and writes it as an OCI archive in which it is called
# localhost/bulkhead:built. Its base is not pulled from a registry, but made here of Debian's packages.
#   scripts/kubernetes-image.sh FILE
set -euo pipefail
cd "$(dirname "$0")/.."

out=${1:?usage: $0 FILE}
for program in bulkhead bulkhead-cni bulkhead-kube-proxy; do
	[[ -x bin/$program ]] || {
		echo "kubernetes-image: there is no bin/$program; run make build" >&2
		exit 1
	}
done
for tool in podman mmdebstrap; do
	command -v "$tool" >/dev/null || {
		echo "kubernetes-image: there is no $tool; run scripts/deps.sh test" >&2
		exit 1
	}
done

mkdir -p "$(dirname "$out")"
work=$(mktemp -d)
trap 'rm -rf "$work" "$out.new"' EXIT
# Layers as plain directories, and steps in a chroot: nothing of it needs mounts that could be left, nor is seen by the host's own podman.
podman=(podman --root "$work/storage" --runroot "$work/run" --storage-driver vfs --cgroup-manager cgroupfs --events-backend none --log-level error)
base=$(sed -n 's/^FROM //p' packaging/kubernetes/Containerfile)
suite=${base#*:}
mmdebstrap --quiet --variant=apt "${suite%-slim}" "$work/base.tar"
"${podman[@]}" import -q "$work/base.tar" "docker.io/library/$base" >/dev/null
rm "$work/base.tar"
"${podman[@]}" build -q --pull=never --isolation chroot --network host -t localhost/bulkhead:built -f packaging/kubernetes/Containerfile . >/dev/null
"${podman[@]}" save -q --format oci-archive -o "$out.new" localhost/bulkhead:built
mv "$out.new" "$out"

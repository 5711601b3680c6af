# Sourced by the scripts that run tests in a virtual machine: Debian's cloud kernel, its modules, and QEMU's accelerator.
# shellcheck shell=bash

# vm_kernel DIR unpacks Debian's cloud kernel into DIR and prints its version. Packages are kept in .cache/kernel; the
# newest of them has to do where the archive cannot be reached.
vm_kernel() {
	local dir=$1 meta=linux-image-cloud-amd64 cache=$PWD/.cache/kernel package deb
	mkdir -p "$cache" "$dir"
	package=$(apt-cache depends "$meta" | awk '$1 == "Depends:" { print $2; exit }')
	if [[ -z $package ]]; then
		echo "vm: apt knows no package $meta; run apt-get update" >&2
		return 1
	fi
	deb=$(find "$cache" -name "${package}_*.deb" | sort -V | tail -1)
	if [[ -z $deb ]]; then
		(cd "$cache" && timeout 300 apt-get -qq -o APT::Sandbox::User=root download "$package" >&2) || true
		deb=$(find "$cache" -name 'linux-image-*.deb' | sort -V | tail -1)
	fi
	if [[ -z $deb ]]; then
		echo "vm: package $package cannot be downloaded, and there is none in $cache; put one there" >&2
		return 1
	fi
	dpkg-deb -x "$deb" "$dir"
	ls "$dir/lib/modules"
}

# vm_modules DIR VERSION MODULE... prints the files of modules and of what they need, in the order to load them.
vm_modules() {
	local dir=$1 version=$2 m
	shift 2
	depmod -b "$dir" "$version"
	for m in "$@"; do
		modprobe -d "$dir" -S "$version" --show-depends "$m"
	done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }'
}

# vm_accel prints what QEMU is to run with.
vm_accel() {
	if [[ -w /dev/kvm ]] && timeout 20 qemu-system-x86_64 -accel kvm -machine none -display none -monitor stdio <<<quit >/dev/null 2>&1; then
		echo kvm:tcg
	else
		echo tcg
	fi
}

# vm_tree ROOT PACKAGE... copies the files of installed packages, and of all that they depend on, below ROOT. No package
# script runs and nothing is downloaded.
vm_tree() {
	local root=$1 name
	shift
	for name in bin sbin lib lib64; do
		mkdir -p "$root/usr/$name"
		ln -s "usr/$name" "$root/$name"
	done
	# shellcheck disable=SC2016 # the fields are dpkg's
	dpkg-query -W -f='${db:Status-Status}\t${Package}\t${Provides}\t${Pre-Depends}, ${Depends}\n' |
		awk -F '\t' -v wanted="$*" '
		function names(text, out,   n, i, parts) { # "a (>= 1) | b, c:any" to a, b, c
			n = split(text, parts, /[,|]/)
			for (i = 1; i <= n; i++) { gsub(/\(.*|:.*| /, "", parts[i]); out[i] = parts[i] }
			return n
		}
		$1 == "installed" {
			depends[$2] = $4; n = names($3, p)
			for (i = 1; i <= n; i++) if (p[i] != "") provider[p[i]] = $2
		}
		END {
			top = split(wanted, queue, " ")
			for (at = 1; at <= top; at++) {
				name = queue[at]
				if (!(name in depends)) name = provider[name]
				if (name == "" || done[name]++) continue
				print name
				n = names(depends[name], p)
				for (i = 1; i <= n; i++) queue[++top] = p[i]
			}
		}' | xargs dpkg-query -L | sed -nE 's#^/(bin|sbin|lib|lib64)(/|$)#/usr/\1\2#; s#^/([^.].*)#\1#p' | sort -u |
		grep -vE '^(usr/share/(doc|man|locale|info|lintian|perl|zoneinfo|i18n|bash-completion)|usr/lib/[^/]*/(perl|gconv))(/|$)' |
		while read -r path; do [[ ! -e /$path && ! -L /$path ]] || printf '%s\0' "$path"; done |
		tar -C / --null --no-recursion --files-from=- -cf - | tar -C "$root" -xf -
	ldconfig -r "$root"
}

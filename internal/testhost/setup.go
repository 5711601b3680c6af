package testhost

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// stage is where the upper directories of overlays are while they are made.
const stage = "/mnt"

// setUp makes the host's mounts and settings, on a thread in its namespaces that is thrown away. It is no script: with a process for each
// mount, hosts took a tenth of the time of all tests.
func setUp(name string) error {
	// Nothing that is mounted here may reach the real machine; within the host "/" is shared, as systemd has it.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make all mounts private: %w", err)
	}
	for _, step := range []func() error{mountFiles, mountSys} {
		if err := step(); err != nil {
			return err
		}
	}
	if err := unix.Unmount(stage, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", stage, err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make all mounts shared: %w", err)
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set its name: %w", err)
	}
	return settings()
}

type mounted struct{ source, at, kind, options string }

func mountAll(all ...mounted) error {
	for _, m := range all {
		if err := unix.Mount(m.source, m.at, m.kind, 0, m.options); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.kind, m.at, err)
		}
	}
	return nil
}

func makeDirs(in string, names ...string) error {
	for _, n := range names {
		if err := os.MkdirAll(filepath.Join(in, n), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// mountFiles: /etc and /var/lib stay readable but written copies land in memory, so the machine keeps no trace.
func mountFiles() error {
	if err := mountAll(mounted{"testhost", stage, "tmpfs", "mode=755"}); err != nil {
		return err
	}
	if err := makeDirs(stage, "etc", "etc.work", "lib", "lib.work", "cgroup"); err != nil {
		return err
	}
	err := mountAll(
		mounted{"testhost-etc", "/etc", "overlay", "lowerdir=/etc,upperdir=" + stage + "/etc,workdir=" + stage + "/etc.work"},
		mounted{"testhost-lib", "/var/lib", "overlay", "lowerdir=/var/lib,upperdir=" + stage + "/lib,workdir=" + stage + "/lib.work"})
	if err != nil {
		return err
	}
	if err := makeDirs("/var/lib", "bulkhead"); err != nil {
		return err
	}
	// An overlay cannot carry another overlay's upper directory, and the daemon unpacks images here.
	if err := mountAll(mounted{"bulkhead", "/var/lib/bulkhead", "tmpfs", "mode=700"}, mounted{"run", "/run", "tmpfs", "mode=755"}); err != nil {
		return err
	}
	return makeDirs("/run", "netns", "lock", "bulkhead")
}

// mountSys: a new sysfs shows this network namespace's devices, but hides the cgroup mounts, which are carried over.
func mountSys() error {
	const cgroups, kept = "/sys/fs/cgroup", stage + "/cgroup"
	has, err := isMount(cgroups)
	if err != nil {
		return err
	}
	if has {
		if err := unix.Mount(cgroups, kept, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("keep the cgroups: %w", err)
		}
	}
	if err := mountAll(mounted{"sysfs", "/sys", "sysfs", ""}); err != nil {
		return err
	}
	if has {
		if err := unix.Mount(kept, cgroups, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("carry the cgroups over: %w", err)
		}
		if err := unix.Unmount(kept, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", kept, err)
		}
	}
	return mountAll(mounted{"bpf", "/sys/fs/bpf", "bpf", "mode=700"})
}

func isMount(path string) (bool, error) {
	var at, above unix.Stat_t
	if err := unix.Stat(path, &at); err != nil {
		return false, fmt.Errorf("look at %s: %w", path, err)
	}
	if err := unix.Stat(filepath.Dir(path), &above); err != nil {
		return false, fmt.Errorf("look at %s: %w", filepath.Dir(path), err)
	}
	return at.Dev != above.Dev, nil
}

// settings: new namespaces inherit the IPv4 settings of the real machine; a test wants the same ones everywhere.
func settings() error {
	all := [][2]string{{"ipv4/ip_forward", "0"}} // first: it sets others
	for _, i := range []string{"all", "default"} {
		all = append(all, [][2]string{
			{"ipv4/conf/" + i + "/rp_filter", "2"},
			{"ipv6/conf/" + i + "/accept_dad", "0"}, // addresses work at once
			{"ipv6/conf/" + i + "/accept_ra", "0"},
		}...)
	}
	for _, s := range all {
		if err := os.WriteFile("/proc/sys/net/"+s[0], []byte(s[1]), 0); err != nil {
			return err
		}
	}
	return nil
}

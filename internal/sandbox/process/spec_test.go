package process

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/bulkhead-net/bulkhead/api"
)

var update = flag.Bool("update", false, "write the golden files anew")

func hostV1() *cgroups {
	c := &cgroups{mode: cgroupHybrid, v1: map[string]string{}, unified: "/sys/fs/cgroup/unified"}
	for _, n := range []string{"cpu", "cpuacct", "cpuset", "memory", "pids", "devices", "freezer", "blkio"} {
		c.v1[n] = "/sys/fs/cgroup/" + n
	}
	return c
}

func hostV2() *cgroups {
	return &cgroups{mode: cgroupV2, unified: "/sys/fs/cgroup", v2: []string{"cpu", "cpuset", "memory", "pids", "io"}}
}

func testFacts(c *cgroups) facts {
	own := slices.DeleteFunc(capabilityNames(), func(s string) bool { return s == "CAP_SYS_RESOURCE" })
	return facts{
		rootfs: "/run/b/rootfs", etc: "/run/b/etc", cgroupsPath: "/bulkhead/b", cgroups: c,
		user: account{home: "/root"}, propagation: "rprivate", capabilities: own,
		hardLimits: map[string]uint64{"nofile": 1024}, swapLimit: true, noSeccomp: true,
	}
}

// TestSpec holds the documents that runtimes are given.
func TestSpec(t *testing.T) {
	image := api.ImageConfig{
		Entrypoint: []string{"/entry"}, Cmd: []string{"serve"}, Env: []string{"PATH=/bin", "A=image", "nonsense"}, WorkingDir: "/srv",
	}
	cases := map[string]struct {
		spec  api.ContainerSpec
		facts func(*facts)
	}{
		"plain": {},
		"limits": {spec: api.ContainerSpec{
			Resources: api.Resources{CPUs: 1.5, CPUShares: 512, CPUSet: "0-1", Memory: 64 << 20, Pids: 50},
			Ulimits:   []api.Ulimit{{Name: "nofile", Soft: 2048, Hard: 4096}, {Name: "core"}},
		}},
		"hardened": {spec: api.ContainerSpec{
			ReadOnly: true, NoNewPrivileges: true, CapDrop: []string{"all"}, CapAdd: []string{"net_bind_service"},
			Sysctls: map[string]string{"net.ipv4.ip_forward": "1", "kernel.shmmax": "65536"},
		}, facts: func(f *facts) { f.user = account{uid: 1000, gid: 1001, groups: []uint32{1002}, home: "/home/app"} }},
		"privileged": {spec: api.ContainerSpec{Privileged: true, CapDrop: []string{"SYS_ADMIN"}}},
		"command": {spec: api.ContainerSpec{
			TTY: true, Entrypoint: []string{"/bin/sh", "-c"}, Args: []string{"echo"}, WorkingDir: "/tmp/../opt",
			Env: []string{"A=user", "HOME=/elsewhere"}, NetworkMode: "container:web",
		}},
		"guest": {
			spec:  api.ContainerSpec{Isolation: isolationVM, Resources: api.Resources{CPUs: 1.5, CPUShares: 512, CPUSet: "0", Memory: 64 << 20, Pids: 50}, Sysctls: map[string]string{"net.ipv4.ip_forward": "1"}},
			facts: func(f *facts) { *f = guestFacts(api.SandboxConfig{}, *f) },
		},
		"v2": {facts: func(f *facts) { f.cgroups = hostV2() }, spec: api.ContainerSpec{Resources: api.Resources{CPUs: 0.25, Memory: 32 << 20, MemorySwap: -1}}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			f := testFacts(hostV1())
			if c.facts != nil {
				c.facts(&f)
			}
			cfg := api.SandboxConfig{Spec: c.spec, Image: image, Hostname: "box", NetnsPath: "/run/netns/hns-b"}
			spec, warnings, err := (&Runtime{}).buildSpec(cfg, f)
			must(t, err)
			data, err := json.MarshalIndent(map[string]any{"spec": spec, "warnings": warnings}, "", "  ")
			must(t, err)
			golden(t, filepath.Join("testdata", "spec-"+name+".json"), string(data)+"\n")
		})
	}
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	must(t, err)
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// TestSpecRefusals: what cannot be done is said, and never dropped.
func TestSpecRefusals(t *testing.T) {
	noMemory := func(f *facts) { delete(f.cgroups.v1, "memory") }
	cases := map[string]struct {
		spec  api.ContainerSpec
		facts func(*facts)
		want  string
	}{
		"no command":             {spec: api.ContainerSpec{Entrypoint: []string{""}}, want: "no command"},
		"NUL":                    {spec: api.ContainerSpec{Args: []string{"a\x00b"}}, want: "NUL"},
		"huge argument":          {spec: api.ContainerSpec{Args: []string{strings.Repeat("a", 200<<10)}}, want: "longer"},
		"huge environment":       {spec: api.ContainerSpec{Env: slices.Repeat([]string{"A=" + strings.Repeat("a", 100<<10)}, 1)}, want: ""},
		"env without value":      {spec: api.ContainerSpec{Env: []string{"A"}}, want: "NAME=VALUE"},
		"env without name":       {spec: api.ContainerSpec{Env: []string{"=A"}}, want: "NAME=VALUE"},
		"unknown capability":     {spec: api.ContainerSpec{CapAdd: []string{"FLY"}}, want: "no capability"},
		"capability not ours":    {spec: api.ContainerSpec{CapAdd: []string{"SYS_RESOURCE"}}, want: "does not have"},
		"sysctl of the host":     {spec: api.ContainerSpec{Sysctls: map[string]string{"kernel.core_pattern": "|x"}}, want: "would change the host"},
		"sysctl with a path":     {spec: api.ContainerSpec{Sysctls: map[string]string{"net./../kernel.core_pattern": "|x"}}, want: "not the name"},
		"sysctl with dots":       {spec: api.ContainerSpec{Sysctls: map[string]string{"net..x": "1"}}, want: "not the name"},
		"sysctl of another":      {spec: api.ContainerSpec{NetworkMode: "container:web", Sysctls: map[string]string{"net.core.somaxconn": "1"}}, want: "another container"},
		"sysctl of two lines":    {spec: api.ContainerSpec{Sysctls: map[string]string{"net.core.somaxconn": "1\n2"}}, want: "one line"},
		"kernel.shm look-alike":  {spec: api.ContainerSpec{Sysctls: map[string]string{"kernel.shmx": "1"}}, want: "would change the host"},
		"unknown ulimit":         {spec: api.ContainerSpec{Ulimits: []api.Ulimit{{Name: "wishes"}}}, want: "no limit"},
		"ulimit upside down":     {spec: api.ContainerSpec{Ulimits: []api.Ulimit{{Name: "core", Soft: 2, Hard: 1}}}, want: "above the hard"},
		"ulimit twice":           {spec: api.ContainerSpec{Ulimits: []api.Ulimit{{Name: "core"}, {Name: "CORE"}}}, want: "twice"},
		"little memory":          {spec: api.ContainerSpec{Resources: api.Resources{Memory: 4096}}, want: "least possible"},
		"swap without memory":    {spec: api.ContainerSpec{Resources: api.Resources{MemorySwap: 32 << 20}}, want: "needs resources.memory too"},
		"swap below memory":      {spec: api.ContainerSpec{Resources: api.Resources{Memory: 64 << 20, MemorySwap: 32 << 20}}, want: "counts memory too"},
		"no memory controller":   {spec: api.ContainerSpec{Resources: api.Resources{Memory: 64 << 20}}, facts: noMemory, want: "lack the memory controller"},
		"no swap accounting":     {spec: api.ContainerSpec{Resources: api.Resources{Memory: 64 << 20, MemorySwap: 64 << 20}}, facts: func(f *facts) { f.swapLimit = false }, want: "does not account swap"},
		"negative processors":    {spec: api.ContainerSpec{Resources: api.Resources{CPUs: -1}}, want: "cpus"},
		"few shares":             {spec: api.ContainerSpec{Resources: api.Resources{CPUShares: 1}}, want: "cpuShares"},
		"cpu set of words":       {spec: api.ContainerSpec{Resources: api.Resources{CPUSet: "all"}}, want: "cpuSet"},
		"negative processes":     {spec: api.ContainerSpec{Resources: api.Resources{Pids: -5}}, want: "pids"},
		"seccomp that is no doc": {spec: api.ContainerSpec{Seccomp: "relaxed"}, want: "seccomp"},
		"seccomp saying nothing": {spec: api.ContainerSpec{Seccomp: "{}"}, want: "says nothing"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			f := testFacts(hostV1())
			if c.facts != nil {
				c.facts(&f)
			}
			_, _, err := buildSpec(api.SandboxConfig{Spec: c.spec, Image: api.ImageConfig{Cmd: []string{"x"}}}, f)
			if c.want == "" {
				must(t, err)
				return
			}
			if name == "no command" {
				_, _, err = buildSpec(api.SandboxConfig{Spec: c.spec}, f)
			}
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one that says %q", err, c.want)
			}
		})
	}
}

func TestSeccompDefault(t *testing.T) {
	f := testFacts(hostV1())
	f.noSeccomp = false
	cfg := api.SandboxConfig{Image: api.ImageConfig{Cmd: []string{"x"}}}
	spec, _, err := buildSpec(cfg, f)
	must(t, err)
	allowed := func(s *specs.Spec, call string) bool {
		return slices.ContainsFunc(s.Linux.Seccomp.Syscalls, func(c specs.LinuxSyscall) bool {
			return c.Action == specs.ActAllow && slices.Contains(c.Names, call)
		})
	}
	if !allowed(spec, "openat") || allowed(spec, "mount") {
		t.Error("the default profile does not allow openat, or allows mount")
	}
	cfg.Spec.CapAdd = []string{"SYS_ADMIN"}
	spec, _, err = buildSpec(cfg, f)
	must(t, err)
	if !allowed(spec, "mount") {
		t.Error("with CAP_SYS_ADMIN the profile still refuses mount")
	}
	cfg.Spec.Seccomp = "unconfined"
	spec, _, err = buildSpec(cfg, f)
	must(t, err)
	if spec.Linux.Seccomp != nil {
		t.Error("unconfined has a profile")
	}
}

func TestMountPlan(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Symlink("/", filepath.Join(dir, "link")))
	r := &Runtime{stateDir: "/state", volumeDir: "/volumes", recursiveReadOnly: true}
	cases := map[string]struct {
		mounts  []api.Mount
		volumes []string
		want    string // mounts as text, or what the error says
	}{
		"bind":                    {mounts: []api.Mount{{Type: "bind", Source: dir, Target: "/a"}}, want: "bind /a rbind,rprivate"},
		"bind read-only":          {mounts: []api.Mount{{Type: "bind", Source: dir, Target: "/a", ReadOnly: true}}, want: "bind /a rbind,rprivate,rro,ro"},
		"bind not recursive":      {mounts: []api.Mount{{Type: "bind", Source: dir, Target: "/a", Options: []string{"bind", "ro", "nosuid"}}}, want: "bind /a bind,rprivate,nosuid,ro"},
		"nested comes later":      {mounts: []api.Mount{{Type: "tmpfs", Target: "/a/b"}, {Type: "tmpfs", Target: "/a"}}, want: "tmpfs /a nosuid,nodev,noexec; tmpfs /a/b nosuid,nodev,noexec"},
		"tmpfs":                   {mounts: []api.Mount{{Type: "tmpfs", Target: "/a", Options: []string{"size=64m", "exec", "mode=1777"}}}, want: "tmpfs /a nosuid,nodev,size=64m,exec,mode=1777"},
		"volume":                  {mounts: []api.Mount{{Type: "volume", Source: "data", Target: "/a"}}, want: "bind /a rbind,rprivate"},
		"image volume":            {volumes: []string{"/v"}, want: "bind /v rbind,rprivate,nodev"},
		"image volume taken":      {volumes: []string{"/v/"}, mounts: []api.Mount{{Type: "tmpfs", Target: "/v"}}, want: "tmpfs /v nosuid,nodev,noexec"},
		"no such source":          {mounts: []api.Mount{{Type: "bind", Source: dir + "/none", Target: "/a"}}, want: "make it first"},
		"relative source":         {mounts: []api.Mount{{Type: "bind", Source: "x", Target: "/a"}}, want: "not an absolute path"},
		"relative target":         {mounts: []api.Mount{{Type: "tmpfs", Target: "a"}}, want: "not an absolute path"},
		"over the root":           {mounts: []api.Mount{{Type: "tmpfs", Target: "/a/.."}}, want: "would hide the image"},
		"over /proc":              {mounts: []api.Mount{{Type: "tmpfs", Target: "/dev/../proc/sys"}}, want: "nothing can be mounted"},
		"twice":                   {mounts: []api.Mount{{Type: "tmpfs", Target: "/a"}, {Type: "tmpfs", Target: "/a/."}}, want: "mounted twice"},
		"volume with a path":      {mounts: []api.Mount{{Type: "volume", Source: "../../etc", Target: "/a"}}, want: "not the name of a volume"},
		"unknown type":            {mounts: []api.Mount{{Type: "nfs", Target: "/a"}}, want: "not bind, volume or tmpfs"},
		"unknown option":          {mounts: []api.Mount{{Type: "bind", Source: dir, Target: "/a", Options: []string{"z"}}}, want: "unknown mount option"},
		"overlay option":          {mounts: []api.Mount{{Type: "tmpfs", Target: "/a", Options: []string{"lowerdir=/"}}}, want: "unknown tmpfs option"},
		"tmpfs with source":       {mounts: []api.Mount{{Type: "tmpfs", Source: "/x", Target: "/a"}}, want: "has no source"},
		"image volume is hostile": {volumes: []string{"../x"}, want: "not an absolute path"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			cfg := api.SandboxConfig{ID: strings.Repeat("a", 64), Spec: api.ContainerSpec{Mounts: c.mounts}, Image: api.ImageConfig{Volumes: c.volumes}}
			plan, err := r.planMounts(cfg)
			var got []string
			for _, m := range plan.mounts {
				got = append(got, m.Type+" "+m.Destination+" "+strings.Join(m.Options, ","))
			}
			text := strings.Join(got, "; ")
			if err != nil {
				text = err.Error()
				if !errors.Is(err, ErrInvalid) || !strings.Contains(text, c.want) {
					t.Errorf("error %v, want one that says %q", err, c.want)
				}
			} else if text != c.want {
				t.Errorf("got  %s\nwant %s", text, c.want)
			}
		})
	}
}

func TestSignals(t *testing.T) {
	for s, want := range map[string]int{"TERM": 15, "sigkill": 9, "10": 10, "RTMIN+3": 37, "SIGRTMAX-1": 63, "": 0, "0": 0, "65": 0, "NOPE": 0, "-9": 0, "9x": 0, "RTMIN+99": 0} {
		sig, err := parseSignal(s)
		if int(sig) != want || (err != nil) != (want == 0) {
			t.Errorf("%q: %d, %v", s, sig, err)
		}
	}
}

func TestDetachKeys(t *testing.T) {
	keys := []byte{16, 17} // ctrl-p ctrl-q
	for _, c := range []struct {
		in       []string
		out      string
		detached bool
	}{
		{in: []string{"abc"}, out: "abc"},
		{in: []string{"a\x10\x11b"}, out: "a", detached: true},
		{in: []string{"a\x10", "\x11"}, out: "a", detached: true},
		{in: []string{"a\x10", "b"}, out: "a\x10b"},
		{in: []string{"\x10\x10\x11"}, out: "\x10", detached: true},
		{in: []string{"\x10\x10", "x"}, out: "\x10\x10x"},
	} {
		d := detachScanner{keys: keys}
		var out string
		var detached bool
		for _, p := range c.in {
			o, done := d.scan([]byte(p))
			out, detached = out+string(o), detached || done
		}
		if out != c.out || detached != c.detached {
			t.Errorf("%q: %q, %v", c.in, out, detached)
		}
	}
}

// TestDaemonsOOMScoreIsItsOwn: the unit has the kernel spare the daemon, and containers shall not be spared with it.
func TestDaemonsOOMScoreIsItsOwn(t *testing.T) {
	for own, want := range map[string]string{"-500\n": "0", "0\n": "inherited", "200\n": "inherited", "much": "error"} {
		f := testFacts(hostV2())
		var err error
		f.oomScore, err = oomScore(own)
		s, _, specErr := buildSpec(api.SandboxConfig{Spec: api.ContainerSpec{Args: []string{"x"}}}, f)
		if specErr != nil {
			t.Fatal(specErr)
		}
		got := "inherited"
		if s.Process.OOMScoreAdj != nil {
			got = strconv.Itoa(*s.Process.OOMScoreAdj)
		}
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("with %q for the daemon: %s, want %s", own, got, want)
		}
	}
}

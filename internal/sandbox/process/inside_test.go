package process

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/api"
)

// TestInside looks around from inside containers.
func TestInside(t *testing.T) {
	b := newBed(t)
	b.file("srv/data/file", "image\n")
	bind := t.TempDir()
	must(t, os.WriteFile(filepath.Join(bind, "f"), []byte("bound\n"), 0o644))
	cases := map[string]struct {
		script string
		change func(*api.SandboxConfig)
		want   string
		code   int
	}{
		"private files":   {script: "cat /etc/hosts /etc/resolv.conf /etc/hostname; hostname", want: "127.0.0.1 localhost\nnameserver 192.0.2.1\nbox\nbox\n"},
		"process 1":       {script: "echo $$; test $(ls /proc | grep -c '^[0-9]') -le 4 && echo alone", want: "1\nalone\n"},
		"root":            {script: "id; echo $HOME", want: "uid=0(root) gid=0(root) groups=0(root)\n/root\n"},
		"user by name":    {script: "id; echo $HOME; pwd", change: func(c *api.SandboxConfig) { c.Spec.User = "app" }, want: "uid=1000(app) gid=1001(app) groups=1001(app),1002(extra)\n/home/app\n/\n"},
		"user by number":  {script: "id; echo $HOME", change: func(c *api.SandboxConfig) { c.Image.User = "77:88" }, want: "uid=77 gid=88 groups=88\n/\n"},
		"working dir":     {script: "pwd; stat -c %a .", change: func(c *api.SandboxConfig) { c.Spec.WorkingDir = "/new/dir" }, want: "/new/dir\n755\n"},
		"capabilities":    {script: "grep CapEff /proc/self/status", want: "CapEff:\t00000000a80425fb\n"},
		"no capabilities": {script: "grep CapEff /proc/self/status; grep CapBnd /proc/self/status", change: func(c *api.SandboxConfig) { c.Spec.CapDrop = []string{"ALL"} }, want: "CapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n"},
		"user's bounds":   {script: "grep CapEff /proc/self/status; grep CapBnd /proc/self/status", change: func(c *api.SandboxConfig) { c.Spec.User = "app" }, want: "CapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb\n"},
		"seccomp":         {script: "grep Seccomp: /proc/self/status; mount -t tmpfs x /tmp 2>/dev/null || echo refused", want: "Seccomp:\t2\nrefused\n"},
		"unconfined":      {script: "grep Seccomp: /proc/self/status", change: func(c *api.SandboxConfig) { c.Spec.Seccomp = "unconfined" }, want: "Seccomp:\t0\n"},
		"no new rights":   {script: "grep NoNewPrivs /proc/self/status", change: func(c *api.SandboxConfig) { c.Spec.NoNewPrivileges = true }, want: "NoNewPrivs:\t1\n"},
		"read-only":       {script: "touch /x 2>/dev/null || echo root; touch /etc/hosts 2>/dev/null || echo hosts; touch /dev/shm/x && echo shm", change: func(c *api.SandboxConfig) { c.Spec.ReadOnly = true }, want: "root\nhosts\nshm\n"},
		"writable":        {script: "echo x >/x && echo y >>/etc/hosts && cat /x && tail -n1 /etc/hosts", want: "x\ny\n"},
		"masked":          {script: "ls /sys/firmware | wc -l; echo 1 2>/dev/null >/proc/sys/kernel/panic || echo refused; echo 1 2>/dev/null >/proc/sysrq-trigger || echo refused", want: "0\nrefused\nrefused\n"},
		"sysctl": {script: "sysctl -n kernel.shmmni net.ipv4.ip_unprivileged_port_start net.ipv4.ip_forward", change: func(c *api.SandboxConfig) {
			c.Spec.Sysctls = map[string]string{"kernel.shmmni": "77", "net.ipv4.ip_forward": "1"}
		}, want: "77\n0\n1\n"},
		"devices": {script: "echo x >/dev/null && head -c 3 /dev/zero | od -An -tx1; ls /dev/vda 2>/dev/null || echo none", want: " 00 00 00\nnone\n"},
		"ulimit":  {script: "ulimit -n; ulimit -Hn", change: func(c *api.SandboxConfig) { c.Spec.Ulimits = []api.Ulimit{{Name: "nofile", Soft: 100, Hard: 200}} }, want: "100\n200\n"},
		"bind":    {script: "cat /b/f; echo new >/b/g", change: func(c *api.SandboxConfig) { c.Spec.Mounts = []api.Mount{{Type: "bind", Source: bind, Target: "/b"}} }, want: "bound\n"},
		"bind read-only": {script: "touch /b/x 2>/dev/null || echo refused", change: func(c *api.SandboxConfig) {
			c.Spec.Mounts = []api.Mount{{Type: "bind", Source: bind, Target: "/b", ReadOnly: true}}
		}, want: "refused\n"},
		"tmpfs": {script: "grep ' /t ' /proc/mounts", change: func(c *api.SandboxConfig) {
			c.Spec.Mounts = []api.Mount{{Type: "tmpfs", Target: "/t", Options: []string{"size=1m"}}}
		}, want: "tmpfs /t tmpfs rw,nosuid,nodev,noexec,relatime,size=1024k 0 0\n"},
		"tmpfs on a directory of the image": {script: "ls -ld /srv | cut -c1-10", change: func(c *api.SandboxConfig) {
			c.Spec.Mounts = []api.Mount{{Type: "tmpfs", Target: "/srv", Options: []string{"mode=701"}}}
		}, want: "drwx-----x\n"},
		"image volume": {script: "cat /srv/data/file; echo x >/srv/data/own", change: func(c *api.SandboxConfig) { c.Image.Volumes = []string{"/srv/data"} }, want: "image\n"},
		"privileged":   {script: "grep Seccomp: /proc/self/status; mount -t tmpfs x /tmp && echo mounted; ls /dev/loop-control /dev/kmsg 2>/dev/null | head -n 1", change: func(c *api.SandboxConfig) { c.Spec.Privileged = true }, want: "Seccomp:\t0\nmounted\n/dev/kmsg\n"},
		"not found":    {script: "exec /none", want: "/bin/sh: exec: line 0: /none: not found\n", code: 127},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			cfg := b.config("/bin/sh", "-c", c.script)
			if c.change != nil {
				c.change(&cfg)
			}
			out, code := b.run(cfg)
			if out != c.want || code != c.code {
				t.Errorf("exit code %d, output %q\nwant %d, %q", code, out, c.code, c.want)
			}
		})
	}
	if text, err := os.ReadFile(filepath.Join(bind, "g")); err != nil || string(text) != "new\n" {
		t.Errorf("the bind mount did not reach the host: %q, %v", text, err)
	}
	if exists(filepath.Join(b.layer, "x")) || exists(filepath.Join(b.layer, "new")) {
		t.Error("a container wrote into the image")
	}
}

func TestVolumes(t *testing.T) {
	b := newBed(t)
	b.file("srv/data/file", "image\n")
	must(t, os.Chown(filepath.Join(b.layer, "srv/data/file"), 1000, 1001))
	must(t, os.Symlink("/etc/passwd", filepath.Join(b.layer, "srv/data/link")))
	must(t, unix.Chmod(filepath.Join(b.layer, "srv/data"), 0o1777))
	mounts := []api.Mount{{Type: "volume", Source: "vol", Target: "/srv/data"}}
	cfg := b.config("/bin/sh", "-c", "stat -c '%n %u %g %a' /srv/data /srv/data/file; ls -l /srv/data/link | grep -o 'link ->.*'; echo mine >/srv/data/file")
	cfg.Spec.Mounts = mounts
	out, code := b.run(cfg)
	if want := "/srv/data 0 0 1777\n/srv/data/file 1000 1001 644\nlink -> /etc/passwd\n"; out != want || code != 0 {
		t.Errorf("first: %d, %q", code, out)
	}
	cfg = b.config("/bin/cat", "/srv/data/file")
	cfg.Spec.Mounts = mounts
	if out, _ := b.run(cfg); out != "mine\n" {
		t.Errorf("the next container sees %q", out)
	}
	entries, err := os.ReadDir(b.r.volumeDir)
	must(t, err)
	if len(entries) != 1 {
		t.Errorf("%d volumes, want one", len(entries))
	}
}

func TestWritableLayerSurvives(t *testing.T) {
	b := newBed(t)
	cfg := b.config("/bin/sh", "-c", "cat /kept; cat /srv/v/kept; echo again; echo layer >/kept; echo volume >/srv/v/kept")
	cfg.Image.Volumes = []string{"/srv/v"}
	b.wait(b.start(cfg))
	must(t, b.r.Delete(b.ctx(), cfg.ID))
	b.wait(b.start(cfg)) // an ended one is cleared by Create, too
	b.wait(b.start(cfg))
	if out := b.logs(cfg.ID); !strings.HasSuffix(out, "layer\nvolume\nagain\n") || strings.Count(out, "again") != 3 {
		t.Errorf("log of three runs: %q", out)
	}
	must(t, b.r.Remove(b.ctx(), cfg.ID))
	if ids, err := b.r.List(b.ctx()); err != nil || len(ids) > 0 {
		t.Errorf("removed, but listed: %v, %v", ids, err)
	}
}

// TestHostileImages: nothing an image holds makes us look, write or hang outside.
func TestHostileImages(t *testing.T) {
	b := newBed(t)
	outside := t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "passwd"), []byte("evil:x:0:0::/:/bin/sh\n"), 0o644))
	link := func(name, to string) func(string) {
		return func(layer string) {
			must(t, os.RemoveAll(filepath.Join(layer, name)))
			must(t, os.MkdirAll(filepath.Dir(filepath.Join(layer, name)), 0o755))
			must(t, os.Symlink(to, filepath.Join(layer, name)))
		}
	}
	cases := map[string]struct {
		spoil  func(layer string)
		change func(*api.SandboxConfig)
		want   string // what the error says; empty: it runs
	}{
		"passwd is a link out": {
			spoil:  link("etc/passwd", strings.Repeat("../", 20)+outside[1:]+"/passwd"),
			change: func(c *api.SandboxConfig) { c.Spec.User = "evil" }, want: "unable to find user evil",
		},
		"passwd is a pipe": {
			spoil: func(l string) {
				must(t, os.Remove(filepath.Join(l, "etc/passwd")))
				must(t, unix.Mkfifo(filepath.Join(l, "etc/passwd"), 0o644))
			},
			change: func(c *api.SandboxConfig) { c.Spec.User = "app" }, want: "not a regular file",
		},
		"passwd is huge": {
			spoil:  func(l string) { must(t, os.Truncate(filepath.Join(l, "etc/passwd"), 1<<30)) },
			change: func(c *api.SandboxConfig) { c.Spec.User = "app" }, want: "larger than",
		},
		"passwd loops":          {spoil: link("etc/passwd", "passwd"), change: func(c *api.SandboxConfig) { c.Spec.User = "app" }, want: "too many levels"},
		"working dir leads out": {spoil: link("w", outside), change: func(c *api.SandboxConfig) { c.Spec.WorkingDir = "/w/made" }, want: "not a directory"},
		"volume leads out":      {spoil: link("v", outside), change: func(c *api.SandboxConfig) { c.Image.Volumes = []string{"/v"} }},
		"volume is a file":      {spoil: func(string) {}, change: func(c *api.SandboxConfig) { c.Image.Volumes = []string{"/etc/passwd"} }, want: "a volume is a directory"},
		"mount leads out": {spoil: link("m", outside+"/mounted"), change: func(c *api.SandboxConfig) {
			c.Spec.Mounts = []api.Mount{{Type: "tmpfs", Target: "/m/x"}}
		}},
		"hosts leads out":   {spoil: link("etc/hosts", outside+"/hosts"), change: func(*api.SandboxConfig) {}},
		"etc leads out":     {spoil: link("etc", outside+"/etc"), change: func(*api.SandboxConfig) {}},
		"proc leads out":    {spoil: link("proc", outside+"/proc"), change: func(*api.SandboxConfig) {}, want: "proc"},
		"unknown user":      {spoil: func(string) {}, change: func(c *api.SandboxConfig) { c.Spec.User = "nobody-here" }, want: "unable to find user"},
		"no such program":   {spoil: func(string) {}, change: func(c *api.SandboxConfig) { c.Spec.Args = []string{"/none"} }, want: "no such file"},
		"no such layer":     {spoil: func(string) {}, change: func(c *api.SandboxConfig) { c.Layers = []string{"/none"} }, want: "no such file"},
		"no layers":         {spoil: func(string) {}, change: func(c *api.SandboxConfig) { c.Layers = nil }, want: "no layers"},
		"no such namespace": {spoil: func(string) {}, change: func(c *api.SandboxConfig) { c.NetnsPath = "/run/netns/none" }, want: "/run/netns/none"},
		"isolation":         {spoil: func(string) {}, change: func(c *api.SandboxConfig) { c.Spec.Isolation = "vm" }, want: "isolation"},
		"id is a path":      {spoil: func(string) {}, change: func(c *api.SandboxConfig) { c.ID = "../../" + strings.Repeat("a", 58) }, want: "not 64 hexadecimal"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			must(t, os.RemoveAll(b.layer))
			b.makeLayer()
			c.spoil(b.layer)
			cfg := b.config("/bin/true")
			c.change(&cfg)
			err := b.r.Create(b.ctx(), cfg)
			if c.want == "" && err == nil {
				must(t, b.r.Remove(b.ctx(), cfg.ID))
			} else if c.want == "" && strings.Contains(b.r.runtimeBinary, "crun") && strings.Contains(name, "leads out") {
				t.Logf("crun follows no link that leads nowhere: %v", err)
			} else if err == nil || !strings.Contains(strings.ToLower(err.Error()), c.want) {
				t.Errorf("error %v, want one that says %q", err, c.want)
			}
			entries, rerr := os.ReadDir(outside)
			must(t, rerr)
			if len(entries) != 1 {
				t.Errorf("outside there is now %v", entries)
			}
			if err != nil && isID(cfg.ID) && (exists(b.r.bundle(cfg.ID)) || exists(b.r.exitFile(cfg.ID))) {
				t.Error("a container that could not be made is still there")
			}
		})
	}
}

// TestManyLayers needs more options than a page holds.
func TestManyLayers(t *testing.T) {
	b := newBed(t)
	cfg := b.config("/bin/sh", "-c", "cat /which; ls /only | wc -l")
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 30), "with, comma:colon")
	cfg.Layers = nil
	for i := range 120 {
		layer := filepath.Join(dir, randomHex(16))
		must(t, os.MkdirAll(filepath.Join(layer, "only"), 0o755))
		must(t, os.WriteFile(filepath.Join(layer, "only", randomHex(8)), nil, 0o644))
		if i < 2 {
			must(t, os.WriteFile(filepath.Join(layer, "which"), []byte{'0' + byte(i), '\n'}, 0o644))
		}
		cfg.Layers = append(cfg.Layers, layer)
	}
	cfg.Layers = append(cfg.Layers, b.layer)
	if out, code := b.run(cfg); out != "0\n120\n" || code != 0 {
		t.Errorf("exit code %d, output %q", code, out)
	}
}

func TestCheck(t *testing.T) {
	b := newBed(t)
	cfg := b.config("/bin/true")
	cfg.Spec.Ulimits = []api.Ulimit{{Name: "nofile", Soft: 1, Hard: 1 << 40}}
	warnings, err := b.r.Check(cfg)
	must(t, err)
	own, err := ownCapabilities()
	must(t, err)
	if has := strings.Contains(strings.Join(own, " "), "CAP_SYS_RESOURCE"); (len(warnings) == 0) != has {
		t.Errorf("warnings %v, may raise limits: %v", warnings, has)
	}
	cfg.Spec.Mounts = []api.Mount{{Type: "bind", Source: "/none", Target: "/x"}}
	if _, err := b.r.Check(cfg); !errors.Is(err, ErrInvalid) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such source: %v", err)
	}
}

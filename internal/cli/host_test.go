package cli

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
)

// hostNamed has the daemon know a host of containers beside its other containers.
func hostNamed(t *testing.T) *daemon {
	t.Helper()
	d := newDaemon(t)
	d.Containers = append(d.Containers, api.Container{
		ID: strings.Repeat("e", 64), Name: "edge", Spec: api.ContainerSpec{Image: "i", Host: &api.ContainerHost{}}, State: api.ContainerState{Status: api.StatusRunning},
	})
	ready := api.Host{ID: strings.Repeat("e", 64), Name: "edge", Image: "bulkhead-host", State: api.StatusRunning, Addresses: []string{"10.71.0.10/24", "fd71::10/64"}, Disk: 8 << 30, Ready: true, Version: "1.0.0", Kernel: "6.1.0"}
	d.Hosts = []api.Host{ready}
	return d
}

func TestHostCreate(t *testing.T) {
	d := hostNamed(t)
	d.Hosts = append([]api.Host{{Name: "edge", State: api.StatusRunning, Problem: "it is starting"}}, d.Hosts...)
	out, errs, code := call(t, d.socket, "host", "create", "--image", "registry.example/host", "--network", "lab:ip=10.0.0.7", "-m", "2g", "--disk", "20g", "-p", "8080:80", "edge", "--pool", "10.99.0.0/16")
	if code != 0 || out != "made\n" || !strings.Contains(errs, "no swap limit") {
		t.Fatalf("exit code %d, %q, %q", code, out, errs)
	}
	var spec api.ContainerSpec
	asked := strings.Join(d.noted(), "\n")
	for line := range strings.Lines(asked) {
		if _, body, ok := strings.Cut(line, "POST /v1/containers {"); ok {
			if err := json.Unmarshal([]byte("{"+body), &spec); err != nil {
				t.Fatal(err)
			}
		}
	}
	if spec.Name != "edge" || spec.Host == nil || spec.Host.Disk != 20<<30 || spec.Resources.Memory != 2<<30 || spec.Isolation != "vm" ||
		spec.Restart.Name != "unless-stopped" || strings.Join(spec.Args, " ") != "--pool 10.99.0.0/16" || len(spec.Networks) != 1 || len(spec.Publish) != 1 || *spec.StopTimeout != 60 {
		t.Errorf("asked for %+v, %+v", spec, asked)
	}
	if n := strings.Count(asked, "GET /v1/hosts/"); n != 2 {
		t.Errorf("it was asked %d times until it was ready", n)
	}

	d = hostNamed(t)
	d.fail["POST /v1/containers/"+strings.Repeat("f", 64)+"/start"] = api.Errorf(api.KindInternal, "the guest is silent")
	if _, errs, code = call(t, d.socket, "host", "create", "--image", "registry.example/host", "edge"); code != exitFailed || !strings.Contains(errs, "the guest is silent") {
		t.Errorf("one that does not start: exit code %d, %q", code, errs)
	}
	if asked := strings.Join(d.noted(), "\n"); !strings.Contains(asked, "DELETE /v1/containers/"+strings.Repeat("f", 64)) {
		t.Errorf("what did not start is left: %s", asked)
	}

	d = hostNamed(t)
	d.Hosts[0] = api.Host{State: api.StatusExited, Problem: "the VM ended"}
	if _, errs, code = call(t, d.socket, "host", "create", "--image", "registry.example/host", "edge"); code != exitFailed || !strings.Contains(errs, "host made has ended: it is exited: the VM ended") || !strings.Contains(errs, "bulkhead logs made") {
		t.Errorf("one that ends: exit code %d, %q", code, errs)
	}
	d.Hosts[0] = api.Host{State: api.StatusRunning, Problem: "no answer"}
	if _, errs, code = call(t, d.socket, "host", "create", "--image", "registry.example/host", "--wait", "1ms", "edge"); code != exitFailed || !strings.Contains(errs, "is not ready after 1ms: no answer") {
		t.Errorf("one that is not ready: exit code %d, %q", code, errs)
	}
	for args, want := range map[string]string{
		"host create":                     "the name is missing",
		"host create edge":                "there is no image bulkhead-host here",
		"host create --wait -1s edge":     "--wait -1s is negative",
		"host create --disk much edge":    `"much" is not a size`,
		"host create --network none edge": "",
		"host rm web":                     "container web is no host of containers",
		"host rm nobody":                  `host "nobody" does not exist`,
		"host shell web":                  "container web is no host of containers",
		"host shell":                      "the host is missing",
	} {
		if _, errs, code := call(t, d.socket, strings.Fields(args)...); code == 0 || !strings.Contains(errs, want) {
			t.Errorf("%s: exit code %d, %q", args, code, errs)
		}
	}
}

func TestHostCommands(t *testing.T) {
	d := hostNamed(t)
	d.Hosts = append(d.Hosts, api.Host{Name: "slow", State: api.StatusRunning, Problem: "it is starting"})
	out, errs, code := call(t, d.socket, "host", "ls")
	if code != 0 {
		t.Fatal(errs)
	}
	golden(t, "host-ls.txt", out)
	if out, errs, code = call(t, d.socket, "host", "shell", "edge", "id", "-u"); code != 0 {
		t.Errorf("exit code %d, %q, %q", code, out, errs)
	}
	if out, errs, code = call(t, d.socket, "host", "rm", "-f", "edge"); code != 0 || out != "edge\n" {
		t.Errorf("exit code %d, %q, %q", code, out, errs)
	}
	asked := strings.Join(d.noted(), "\n")
	if !strings.Contains(asked, `/v1/containers/edge/exec {"args":["id","-u"],"openStdin":true,"privileged":true}`) || !strings.Contains(asked, "DELETE /v1/containers/edge?force=true") {
		t.Errorf("asked for %s", asked)
	}
	for line, want := range map[string]string{"host rm ": "edge", "host shell e": "edge", "--host e": "edge"} {
		out, _, _ := call(t, d.socket, append([]string{"__complete"}, strings.Split(line, " ")...)...)
		if first, _, _ := strings.Cut(out, "\n"); first != want {
			t.Errorf("%q completes to %q", line, out)
		}
	}
}

// TestOnHost holds whose daemon a command reaches.
func TestOnHost(t *testing.T) {
	outer, inner := hostNamed(t), newDaemon(t)
	outer.inner = inner
	inner.Containers = []api.Container{{ID: strings.Repeat("1", 64), Name: "inside", State: api.ContainerState{Status: api.StatusRunning}}}
	env := map[string]string{"BULKHEAD_HOST": "edge", "LANG": "C.UTF-8"}
	for name, get := range map[string]func() (string, string, int){
		"by the flag": func() (string, string, int) { return call(t, outer.socket, "--host", "edge", "ps", "-o", "name") },
		"by the environment": func() (string, string, int) {
			return callWith(t, outer.socket, nil, env, "--host", "edge", "ps", "-o", "name")
		},
	} {
		if out, errs, code := get(); code != 0 || !strings.HasPrefix(out, "inside\n") {
			t.Errorf("%s: exit code %d, %q, %q", name, code, out, errs)
		}
	}
	if asked := strings.Join(outer.noted(), "\n"); !strings.Contains(asked, "POST /v1/hosts/edge/api") {
		t.Errorf("the outer daemon was asked for %q", asked)
	}
	outer.inner = nil
	if _, errs, code := call(t, outer.socket, "-H", "none", "ps"); code != exitFailed || !strings.Contains(errs, `host "none" does not exist`) || !strings.Contains(errs, "next: bulkhead host ls") {
		t.Errorf("of no host: exit code %d, %q", code, errs)
	}
	// What is done on this machine is not done on another.
	ran := false
	var b strings.Builder
	code := Main(t.Context(), Deps{Stdout: &b, Stderr: &b, Extra: []*cobra.Command{{Use: "reset", RunE: func(*cobra.Command, []string) error { ran = true; return nil }}}}, []string{"--host", "edge", "reset"})
	if code != exitFailed || ran || !strings.Contains(b.String(), "works on the machine that it runs on, and not on host edge") {
		t.Errorf("exit code %d, ran: %v, %q", code, ran, b.String())
	}
}

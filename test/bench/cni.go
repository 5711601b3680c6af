package bench

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	cniDir   = "/usr/lib/cni"
	netavark = "/usr/lib/podman/netavark"
	// ourPlugin lies beside our program.
	ourPlugin = "bulkhead-cni"
)

// cni attaches as a container engine does with a list of plugins, one after the other, each a process with its configuration on
// standard input, in a namespace of its own.
type cni struct {
	home    int
	plugins []string
}

func newCNI(plugins ...string) (*cni, error) {
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	c := &cni{home, plugins}
	for _, p := range plugins {
		if _, missing := os.Stat(c.program(p)); missing != nil {
			return nil, missing
		}
	}
	return c, err
}

func (c *cni) program(plugin string) string {
	if plugin == ourPlugin {
		return filepath.Join(filepath.Dir(os.Getenv("BENCH_BINARY")), plugin)
	}
	return filepath.Join(cniDir, plugin)
}

func (c *cni) attach(i int) error {
	ns, err := newNamespace(c.home, namespaceOf(c.plugins[0], i), nil)
	if err != nil {
		return err
	}
	var result json.RawMessage
	for _, p := range c.plugins {
		if result, err = c.call("ADD", p, ns, i, result); err != nil {
			return err
		}
	}
	return nil
}

func (c *cni) detach(i int) error {
	ns := filepath.Join("/run/netns", namespaceOf(c.plugins[0], i))
	for _, p := range slices.Backward(c.plugins) {
		if _, err := c.call("DEL", p, ns, i, nil); err != nil {
			return err
		}
	}
	return removeNamespace(ns)
}

func namespaceOf(plugin string, i int) string { return fmt.Sprintf("%s-%d", plugin, i) }

// call runs a plugin with the protocol's environment and returns its result. The peers get IPv4 alone, which is less than ours does.
func (c *cni) call(command, plugin, ns string, i int, prev json.RawMessage) (json.RawMessage, error) {
	conf := map[string]any{"cniVersion": "0.4.0", "name": "bench", "type": plugin}
	switch plugin {
	case "bridge":
		conf["bridge"], conf["isGateway"], conf["ipMasq"], conf["hairpinMode"] = "cni0", true, true, true
		conf["ipam"] = map[string]any{
			"type": "host-local", "dataDir": "/run/cni",
			"ranges": [][]map[string]string{{{"subnet": "10.88.0.0/16"}}},
			"routes": []map[string]string{{"dst": "0.0.0.0/0"}},
		}
	case "portmap", ourPlugin:
		conf["runtimeConfig"] = map[string]any{"portMappings": []map[string]any{
			{"hostPort": firstPort + i, "containerPort": containerPort, "protocol": "tcp"},
		}}
	}
	if prev != nil {
		conf["prevResult"] = prev
	}
	cmd := exec.CommandContext(context.Background(), c.program(plugin))
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+command, fmt.Sprintf("CNI_CONTAINERID=bench%d", i), "CNI_NETNS="+ns, "CNI_IFNAME=eth0", "CNI_PATH="+cniDir)
	return told(cmd, conf)
}

// told runs a program with a document on its standard input, and returns what it says.
func told(cmd *exec.Cmd, doc any) ([]byte, error) {
	in, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	cmd.Stdin = bytes.NewReader(in)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s%s", strings.Join(cmd.Args, " "), err, out.Bytes(), errOut.Bytes())
	}
	return out.Bytes(), nil
}

// varkCaller attaches as Podman does by netavark, one process each way. Addresses are the caller's affair there.
type varkCaller struct{ home int }

func newNetavark() (*varkCaller, error) {
	if _, err := os.Stat(netavark); err != nil {
		return nil, err
	}
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	return &varkCaller{home}, err
}

func (v *varkCaller) attach(i int) error {
	ns, err := newNamespace(v.home, namespaceOf("netavark", i), nil)
	if err != nil {
		return err
	}
	return v.call("setup", ns, i)
}

func (v *varkCaller) detach(i int) error {
	ns := filepath.Join("/run/netns", namespaceOf("netavark", i))
	if err := v.call("teardown", ns, i); err != nil {
		return err
	}
	return removeNamespace(ns)
}

func (v *varkCaller) call(verb, ns string, i int) error {
	id := func(s string) string { return hex.EncodeToString(fmt.Appendf(nil, "%-32s", s)) }
	doc := map[string]any{
		"container_id": id(fmt.Sprint("c", i)), "container_name": fmt.Sprint("c", i),
		"port_mappings": []map[string]any{{"container_port": containerPort, "host_ip": "", "host_port": firstPort + i, "protocol": "tcp", "range": 1}},
		"networks":      map[string]any{"bench": map[string]any{"static_ips": []string{fmt.Sprintf("10.89.%d.%d", 1+i/250, 2+i%250)}, "interface_name": "eth0"}},
		"network_info": map[string]any{"bench": map[string]any{
			"name": "bench", "id": id("bench"), "driver": "bridge", "network_interface": "podman1",
			"subnets":      []map[string]string{{"subnet": "10.89.0.0/16", "gateway": "10.89.0.1"}},
			"ipv6_enabled": false, "internal": false, "dns_enabled": false, "ipam_options": map[string]string{"driver": "host-local"},
		}},
	}
	_, err := told(exec.CommandContext(context.Background(), netavark, verb, ns), doc)
	return err
}

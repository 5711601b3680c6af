package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const cniDir = "/usr/lib/cni"

// cni attaches as a container engine does with Debian's plugins: bridge (with host-local) and then portmap, each a
// process with its configuration on standard input. Only IPv4, which is less than what they are compared with.
type cni struct{ home int }

func newCNI() (*cni, error) {
	for _, p := range []string{"bridge", "portmap", "host-local"} {
		if _, err := os.Stat(filepath.Join(cniDir, p)); err != nil {
			return nil, err
		}
	}
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	return &cni{home}, err
}

func (c *cni) attach(i int) error {
	ns, err := newNamespace(c.home, fmt.Sprintf("cni-%d", i), nil)
	if err != nil {
		return err
	}
	prev, err := c.call("ADD", "bridge", ns, i, nil)
	if err != nil {
		return err
	}
	_, err = c.call("ADD", "portmap", ns, i, prev)
	return err
}

func (c *cni) detach(i int) error {
	ns := fmt.Sprintf("/run/netns/cni-%d", i)
	if _, err := c.call("DEL", "portmap", ns, i, nil); err != nil {
		return err
	}
	if _, err := c.call("DEL", "bridge", ns, i, nil); err != nil {
		return err
	}
	return removeNamespace(ns)
}

// call runs a plugin with the protocol's environment and returns its result.
func (c *cni) call(command, plugin, ns string, i int, prev json.RawMessage) (json.RawMessage, error) {
	conf := map[string]any{"cniVersion": "0.4.0", "name": "bench", "type": plugin}
	if plugin == "bridge" {
		conf["bridge"], conf["isGateway"], conf["ipMasq"], conf["hairpinMode"] = "cni0", true, true, true
		conf["ipam"] = map[string]any{
			"type": "host-local", "dataDir": "/run/cni",
			"ranges": [][]map[string]string{{{"subnet": "10.88.0.0/16"}}},
			"routes": []map[string]string{{"dst": "0.0.0.0/0"}},
		}
	} else {
		conf["runtimeConfig"] = map[string]any{"portMappings": []map[string]any{
			{"hostPort": firstPort + i, "containerPort": containerPort, "protocol": "tcp"},
		}}
	}
	if prev != nil {
		conf["prevResult"] = prev
	}
	in, err := json.Marshal(conf)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(context.Background(), filepath.Join(cniDir, plugin))
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+command, fmt.Sprintf("CNI_CONTAINERID=bench%d", i), "CNI_NETNS="+ns, "CNI_IFNAME=eth0", "CNI_PATH="+cniDir)
	cmd.Stdin = bytes.NewReader(in)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s%s", plugin, command, err, out.Bytes(), errOut.Bytes())
	}
	return out.Bytes(), nil
}

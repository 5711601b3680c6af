package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// criName is what the test binary is called by a story that speaks to containerd as kubelet does, by its Container Runtime Interface:
//
//	cri ready                                   succeeds when the runtime finds its network ready
//	cri pull IMAGE
//	cri sandbox POD ATTEMPT CGROUP [HOST:PORT]  prints the sandbox's ID; ports are TCP
//	cri run SANDBOX CONTAINER IMAGE COMMAND…    prints the container's ID
//	cri exec ID COMMAND…
//	cri address SANDBOX                         prints its addresses, one a line
//	cri stop SANDBOX, cri rm SANDBOX
const criName = "cri"

const criSocket = "unix:///run/containerd/containerd.sock"

type criClient struct {
	runtime cri.RuntimeServiceClient
	images  cri.ImageServiceClient
	out     io.Writer
}

func criMain(args []string) error {
	verbs := map[string]struct {
		least int
		do    func(*criClient, context.Context, []string) error
	}{
		"ready": {0, (*criClient).ready}, "pull": {1, (*criClient).pull}, "sandbox": {3, (*criClient).sandbox}, "run": {4, (*criClient).run},
		"exec": {2, (*criClient).exec}, "address": {1, (*criClient).address}, "stop": {1, (*criClient).stop}, "rm": {1, (*criClient).rm},
	}
	if len(args) == 0 || verbs[args[0]].do == nil || len(args)-1 < verbs[args[0]].least {
		return fmt.Errorf("usage: %s VERB ARGUMENT…", criName)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return withCRI(func(c *criClient) error { return verbs[args[0]].do(c, ctx, args[1:]) })
}

func withCRI(do func(*criClient) error) error {
	conn, err := grpc.NewClient(criSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	return do(&criClient{cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn), os.Stdout})
}

func (c *criClient) ready(ctx context.Context, _ []string) error {
	r, err := c.runtime.Status(ctx, &cri.StatusRequest{})
	if err != nil {
		return err
	}
	for _, condition := range r.GetStatus().GetConditions() {
		if !condition.GetStatus() {
			return errors.New(condition.GetType() + ": " + condition.GetMessage())
		}
	}
	return nil
}

func (c *criClient) pull(ctx context.Context, args []string) error {
	_, err := c.images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: args[0]}})
	return err
}

// criPod is what kubelet says of a pod each time that it makes a sandbox for it.
func criPod(name string, attempt uint32, cgroup string) *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "shop", Uid: "uid-of-" + name, Attempt: attempt},
		Hostname: name, LogDirectory: "/run/pods/" + name,
		Linux: &cri.LinuxPodSandboxConfig{CgroupParent: cgroup, SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_POD, Pid: cri.NamespaceMode_CONTAINER, Ipc: cri.NamespaceMode_POD},
		}},
	}
}

func (c *criClient) sandbox(ctx context.Context, args []string) error {
	attempt, err := strconv.ParseUint(args[1], 10, 32)
	if err != nil {
		return err
	}
	pod := criPod(args[0], uint32(attempt), args[2])
	for _, p := range args[3:] {
		var host, port int32
		if _, err := fmt.Sscanf(p, "%d:%d", &host, &port); err != nil {
			return err
		}
		pod.PortMappings = append(pod.PortMappings, &cri.PortMapping{Protocol: cri.Protocol_TCP, HostPort: host, ContainerPort: port})
	}
	r, err := c.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pod})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(c.out, r.GetPodSandboxId())
	return err
}

func (c *criClient) run(ctx context.Context, args []string) error {
	status, err := c.runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: args[0]})
	if err != nil {
		return err
	}
	about := status.GetStatus().GetMetadata()
	made, err := c.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: args[0], SandboxConfig: criPod(about.GetName(), about.GetAttempt(), ""),
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: args[1]}, Image: &cri.ImageSpec{Image: args[2]}, Command: args[3:],
			LogPath: args[1] + ".log", Linux: &cri.LinuxContainerConfig{},
		},
	})
	if err != nil {
		return err
	}
	if _, err := c.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: made.GetContainerId()}); err != nil {
		return err
	}
	_, err = fmt.Fprintln(c.out, made.GetContainerId())
	return err
}

func (c *criClient) exec(ctx context.Context, args []string) error {
	r, err := c.runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: args[0], Cmd: args[1:], Timeout: 10})
	if err != nil {
		return err
	}
	if _, err := c.out.Write(r.GetStdout()); err != nil {
		return err
	}
	if r.GetExitCode() != 0 {
		return fmt.Errorf("exit code %d: %s", r.GetExitCode(), strings.TrimSpace(string(r.GetStderr())))
	}
	return nil
}

func (c *criClient) address(ctx context.Context, args []string) error {
	r, err := c.runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: args[0]})
	if err != nil {
		return err
	}
	network := r.GetStatus().GetNetwork()
	lines := []string{network.GetIp()}
	for _, more := range network.GetAdditionalIps() {
		lines = append(lines, more.GetIp())
	}
	_, err = fmt.Fprintln(c.out, strings.Join(lines, "\n"))
	return err
}

func (c *criClient) stop(ctx context.Context, args []string) error {
	_, err := c.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: args[0]})
	return err
}

func (c *criClient) rm(ctx context.Context, args []string) error {
	_, err := c.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: args[0]})
	return err
}

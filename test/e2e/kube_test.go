package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"
)

// kubeName is what the test binary is called by a story that has a manifest's DaemonSet on its host, as kubelet would make its pod:
//
//	kube apply MANIFEST NODE ADDRESS CGROUP   prints the sandbox's ID once the pod is ready
//
// Secrets are directories below /run/kube/secrets. What a manifest says that this does not know is an error.
const kubeName = "kube"

type kubePod struct {
	*criClient
	node, address string
	maps          map[string]map[string]string
	sandbox       string
	config        *cri.PodSandboxConfig
	spec          *core.PodSpec
}

func kubeMain(args []string) error {
	if len(args) != 5 || args[0] != "apply" {
		return fmt.Errorf("usage: %s apply MANIFEST NODE ADDRESS CGROUP", kubeName)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return withCRI(func(c *criClient) error {
		p := &kubePod{criClient: c, node: args[2], address: args[3], maps: map[string]map[string]string{}}
		set, err := p.read(args[1])
		if err != nil {
			return err
		}
		p.spec = &set.Spec.Template.Spec
		p.config = criPod(set.Name, 0, args[4])
		p.config.Metadata.Namespace = set.Namespace
		p.config.Linux.SecurityContext.Privileged = true
		if p.spec.HostNetwork { // the node's host name, too
			p.config.Hostname = ""
			p.config.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
		}
		return p.start(ctx)
	})
}

// read takes the manifest as the API server does when it is strict: a member that is not of the API is an error.
func (p *kubePod) read(file string) (set apps.DaemonSet, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return set, err
	}
	for doc := range bytes.SplitSeq(text, []byte("\n---\n")) {
		var what runtime.TypeMeta
		if err := yaml.Unmarshal(doc, &what); err != nil {
			return set, err
		}
		var m core.ConfigMap
		switch what.APIVersion + "/" + what.Kind {
		case "v1/Namespace":
			err = yaml.UnmarshalStrict(doc, &core.Namespace{})
		case "v1/ConfigMap":
			err = yaml.UnmarshalStrict(doc, &m)
			p.maps[m.Name] = m.Data
		case "apps/v1/DaemonSet":
			err = yaml.UnmarshalStrict(doc, &set)
		default:
			err = fmt.Errorf("what is a %s of %s?", what.Kind, what.APIVersion)
		}
		if err != nil {
			return set, err
		}
	}
	if set.Spec.Selector == nil || set.Spec.Selector.MatchLabels["app"] != set.Spec.Template.Labels["app"] {
		return set, errors.New("the DaemonSet does not select its own pods")
	}
	return set, nil
}

func (p *kubePod) start(ctx context.Context) error {
	made, err := p.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config})
	if err != nil {
		return err
	}
	p.sandbox = made.GetPodSandboxId()
	for i := range p.spec.InitContainers {
		c := &p.spec.InitContainers[i]
		id, err := p.container(ctx, c)
		if err != nil {
			return fmt.Errorf("init container %s: %w", c.Name, err)
		}
		if err := p.ended(ctx, id); err != nil {
			return fmt.Errorf("init container %s: %w", c.Name, err)
		}
	}
	for i := range p.spec.Containers {
		c := &p.spec.Containers[i]
		id, err := p.container(ctx, c)
		if err != nil {
			return fmt.Errorf("container %s: %w", c.Name, err)
		}
		if err := p.hooks(ctx, c, id); err != nil {
			return fmt.Errorf("container %s: %w", c.Name, err)
		}
	}
	_, err = fmt.Fprintln(p.out, p.sandbox)
	return err
}

// hooks runs what is to be done after the start, and waits until the container says that it is ready.
func (p *kubePod) hooks(ctx context.Context, c *core.Container, id string) error {
	if c.Lifecycle != nil {
		r, err := p.runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: c.Lifecycle.PostStart.Exec.Command, Timeout: 30})
		if err != nil {
			return err
		}
		if r.GetExitCode() != 0 {
			return fmt.Errorf("postStart: exit code %d: %s%s", r.GetExitCode(), r.GetStdout(), r.GetStderr())
		}
	}
	for c.ReadinessProbe != nil {
		r, err := p.runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: c.ReadinessProbe.Exec.Command, Timeout: int64(c.ReadinessProbe.TimeoutSeconds)})
		if err != nil {
			return err
		}
		if r.GetExitCode() == 0 {
			break
		}
		<-time.After(100 * time.Millisecond)
	}
	return nil
}

func (p *kubePod) ended(ctx context.Context, id string) error {
	for {
		r, err := p.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
		if err != nil {
			return err
		}
		if s := r.GetStatus(); s.GetState() == cri.ContainerState_CONTAINER_EXITED {
			if s.GetExitCode() != 0 {
				return fmt.Errorf("exit code %d", s.GetExitCode())
			}
			return nil
		}
		<-time.After(50 * time.Millisecond)
	}
}

func (p *kubePod) container(ctx context.Context, c *core.Container) (string, error) {
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: c.Name}, Image: &cri.ImageSpec{Image: c.Image}, Command: c.Command, Args: c.Args,
		LogPath: c.Name + ".log", Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
			NamespaceOptions: p.config.GetLinux().GetSecurityContext().GetNamespaceOptions(),
		}},
	}
	if s := c.SecurityContext; s != nil && s.Privileged != nil {
		config.Linux.SecurityContext.Privileged = *s.Privileged
	}
	for _, e := range c.Env {
		value, err := p.value(e)
		if err != nil {
			return "", err
		}
		config.Envs = append(config.Envs, &cri.KeyValue{Key: e.Name, Value: value})
	}
	for _, m := range c.VolumeMounts {
		mount, err := p.mount(m)
		if err != nil {
			return "", fmt.Errorf("mount %s: %w", m.Name, err)
		}
		config.Mounts = append(config.Mounts, mount)
	}
	made, err := p.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.sandbox, SandboxConfig: p.config, Config: config})
	if err != nil {
		return "", err
	}
	_, err = p.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: made.GetContainerId()})
	return made.GetContainerId(), err
}

func (p *kubePod) value(e core.EnvVar) (string, error) {
	from := e.ValueFrom
	switch {
	case from == nil:
		return e.Value, nil
	case from.FieldRef != nil && from.FieldRef.FieldPath == "spec.nodeName":
		return p.node, nil
	case from.FieldRef != nil && from.FieldRef.FieldPath == "status.hostIP":
		return p.address, nil
	case from.ConfigMapKeyRef != nil:
		if v, ok := p.maps[from.ConfigMapKeyRef.Name][from.ConfigMapKeyRef.Key]; ok {
			return v, nil
		}
	}
	return "", fmt.Errorf("the variable %s comes from nowhere", e.Name)
}

func (p *kubePod) mount(m core.VolumeMount) (*cri.Mount, error) {
	out := &cri.Mount{ContainerPath: m.MountPath, Readonly: m.ReadOnly}
	if m.MountPropagation != nil {
		out.Propagation = map[core.MountPropagationMode]cri.MountPropagation{
			core.MountPropagationHostToContainer: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER,
			core.MountPropagationBidirectional:   cri.MountPropagation_PROPAGATION_BIDIRECTIONAL,
		}[*m.MountPropagation]
	}
	for _, v := range p.spec.Volumes {
		if v.Name != m.Name {
			continue
		}
		var err error
		out.HostPath, err = p.volume(v)
		return out, err
	}
	return nil, errors.New("no such volume")
}

// volume makes what is mounted, and gives its path.
func (p *kubePod) volume(v core.Volume) (string, error) {
	switch {
	case v.HostPath != nil:
		if v.HostPath.Type != nil && *v.HostPath.Type == core.HostPathDirectoryOrCreate {
			return v.HostPath.Path, os.MkdirAll(v.HostPath.Path, 0o755)
		}
		return v.HostPath.Path, nil
	case v.ConfigMap != nil:
		data, ok := p.maps[v.ConfigMap.Name]
		if !ok {
			return "", fmt.Errorf("no ConfigMap %s", v.ConfigMap.Name)
		}
		dir := filepath.Join("/run/kube/maps", v.ConfigMap.Name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
		for name, text := range data {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				return "", err
			}
		}
		return dir, nil
	case v.Secret != nil:
		dir := filepath.Join("/run/kube/secrets", v.Secret.SecretName)
		if v.Secret.Optional == nil || !*v.Secret.Optional {
			_, err := os.Stat(dir)
			return dir, err
		}
		return dir, os.MkdirAll(dir, 0o755)
	}
	return "", errors.New("what kind of volume is that?")
}

package cli

import (
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// specFlags are the flags of run and create.
type specFlags struct {
	spec api.ContainerSpec

	env, envFiles          []string
	volumes, mounts, tmpfs []string
	entrypoint             string
	ulimits, sysctls       []string
	security               []string
	restart                string
	stopTimeout            int
	labels, annotations    []string
	network                networkFlags
	ports                  publishFlags
	hosts                  []string
	pull                   string
	cidFile                string
}

// The values of --pull.
const (
	pullAlways  = "always"
	pullMissing = "missing"
	pullNever   = "never"
)

func (f *specFlags) add(a *app, cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.SetInterspersed(false)                // what follows IMAGE belongs to the container
	flags.Bool("help", false, "show this help") // -h is the hostname, as with other tools
	s := &f.spec
	flags.StringVar(&s.Name, "name", "", "name of the container, also in DNS; one is made up without it")
	flags.BoolVarP(&s.OpenStdin, "interactive", "i", false, "keep the container's input open")
	flags.BoolVarP(&s.TTY, "tty", "t", false, "give the container a terminal")
	flags.BoolVar(&s.AutoRemove, "rm", false, "remove the container when it ends")
	flags.StringArrayVarP(&f.env, "env", "e", nil, "set a variable NAME=VALUE; NAME alone takes the value from here")
	flags.StringArrayVar(&f.envFiles, "env-file", nil, "read variables from a file of NAME=VALUE lines")
	flags.StringVarP(&s.User, "user", "u", "", "run as USER[:GROUP], names or numbers")
	flags.StringVarP(&s.WorkingDir, "workdir", "w", "", "directory to start in")
	flags.StringVar(&f.entrypoint, "entrypoint", "", "program to start instead of the image's")
	flags.StringVarP(&s.Hostname, "hostname", "h", "", "host name in the container")
	flags.StringVar(&s.Isolation, "isolation", "", "what keeps the container apart: process (the default), or vm for a kernel of its own")
	flags.StringVar(&s.GuestKernel, "guest-kernel", "", "image of the kernel that a container with VM isolation is to have (default the one that is installed, or one among the images that is what the container's image demands)")
	flags.StringVar(&f.pull, "pull", pullMissing, "when to pull the image: always, missing or never")
	flags.StringVar(&f.cidFile, "cidfile", "", "write the container's ID to a new file")
	flags.StringVar(&f.restart, "restart", "no", "restart the container when it ends: no, on-failure[:N], always or unless-stopped")
	flags.StringVar(&s.StopSignal, "stop-signal", "", "signal that asks the container to stop")
	flags.IntVar(&f.stopTimeout, "stop-timeout", 10, "seconds between that signal and SIGKILL")
	flags.StringArrayVarP(&f.labels, "label", "l", nil, "label KEY[=VALUE]")
	flags.StringArrayVar(&f.annotations, "annotation", nil, "annotation KEY=VALUE for the runtime")
	f.addFiles(cmd)
	f.addLimits(cmd)
	f.addNetwork(a, cmd)
	complete(cmd, "pull", pullAlways, pullMissing, pullNever)
	complete(cmd, "restart", "no", "on-failure", "always", "unless-stopped")
	complete(cmd, "isolation", "process", "vm")
	completeFlag(cmd, "guest-kernel", a.completeKernels)
}

func (f *specFlags) addFiles(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringArrayVarP(&f.volumes, "volume", "v", nil, "mount SOURCE:TARGET[:ro]; a source without / is the name of a volume")
	flags.StringArrayVar(&f.mounts, "mount", nil, "mount type=bind|volume|tmpfs,source=…,target=…[,readonly]")
	flags.StringArrayVar(&f.tmpfs, "tmpfs", nil, "mount a file system in memory at TARGET[:OPTIONS]")
	flags.BoolVar(&f.spec.ReadOnly, "read-only", false, "let nothing write to the root file system")
}

func (f *specFlags) addLimits(cmd *cobra.Command) {
	flags, r, s := cmd.Flags(), &f.spec.Resources, &f.spec
	flags.VarP(bytesValue{n: &r.Memory}, "memory", "m", "limit of memory, like 512m")
	flags.Var(bytesValue{n: &r.MemorySwap, unlimited: true}, "memory-swap", "limit of memory and swap together; -1 for no limit")
	flags.Float64Var(&r.CPUs, "cpus", 0, "limit of processors, like 1.5")
	flags.Uint64Var(&r.CPUShares, "cpu-shares", 0, "weight among containers when processors are short; 1024 is usual")
	flags.StringVar(&r.CPUSet, "cpuset-cpus", "", "processors to run on, like 0-2,4")
	flags.Int64Var(&r.Pids, "pids-limit", 0, "limit of processes and threads; 0 for none")
	flags.StringArrayVar(&f.ulimits, "ulimit", nil, "limit of the first process, NAME=SOFT[:HARD]")
	flags.StringArrayVar(&f.sysctls, "sysctl", nil, "kernel setting of the compartment, NAME=VALUE")
	flags.StringSliceVar(&s.CapAdd, "cap-add", nil, "add a capability, or ALL")
	flags.StringSliceVar(&s.CapDrop, "cap-drop", nil, "drop a capability, or ALL")
	flags.BoolVar(&s.Privileged, "privileged", false, "give the container every right on this host")
	flags.StringArrayVar(&f.security, "security-opt", nil, "seccomp=FILE, seccomp=unconfined or no-new-privileges")
}

func (f *specFlags) addNetwork(a *app, cmd *cobra.Command) {
	flags, n := cmd.Flags(), &f.network
	flags.StringArrayVar(&n.networks, "network", nil,
		"join NAME[:ip=…,ip6=…,mac=…,alias=…,interface=…,gw-priority=N,isolated=true,dns-first=true,rate-out=10mbit,rate-in=10mbit]; none; container:NAME to share its compartment; or namespace:NAME for a VM whose compartment that is")
	flags.StringVar(&n.ip, "ip", "", "IPv4 address on the only network")
	flags.StringVar(&n.ip6, "ip6", "", "IPv6 address on the only network")
	flags.StringVar(&n.mac, "mac-address", "", "MAC on the only network")
	flags.StringArrayVar(&n.aliases, "network-alias", nil, "further DNS name on the only network")
	addPublishFlags(cmd, &f.ports)
	flags.StringArrayVar(&f.hosts, "add-host", nil, "line of /etc/hosts, NAME:ADDRESS; host-gateway stands for this host")
	flags.StringArrayVar(&f.spec.DNS.ServerList, "dns", nil, "server for names that are not ours; the networks' resolvers ask it for this container")
	flags.StringArrayVar(&f.spec.DNS.Search, "dns-search", nil, "domain to search names in")
	flags.StringArrayVar(&f.spec.DNS.Options, "dns-option", nil, "option of the resolver, like ndots:1")
	completeFlag(cmd, "network", a.completeNetworks)
}

func addPublishFlags(cmd *cobra.Command, p *publishFlags) {
	flags := cmd.Flags()
	flags.StringArrayVarP(&p.publish, "publish", "p", nil,
		"publish [ADDRESS:]HOST[-LAST]:CONTAINER[-LAST][/udp]; without HOST: a free port")
	addExposeFlag(cmd, &p.expose)
}

func addExposeFlag(cmd *cobra.Command, expose *string) {
	cmd.Flags().StringVar(expose, "expose", "", "who may reach published ports: loopback (the default), lan, all, or an ADDRESS of this host")
	complete(cmd, "expose", exposeLoopback, exposeLAN, exposeAll)
}

// build makes the spec of the flags and of the arguments IMAGE [ARG…].
func (f *specFlags) build(a *app, cmd *cobra.Command, args []string) (api.ContainerSpec, error) {
	spec := f.spec
	spec.Image, spec.Args = args[0], slices.Clone(args[1:])
	if cmd.Flags().Changed("entrypoint") {
		spec.Entrypoint = []string{f.entrypoint}
	}
	if cmd.Flags().Changed("stop-timeout") {
		spec.StopTimeout = &f.stopTimeout
	}
	for _, part := range []func(*app, *api.ContainerSpec) error{f.buildEnv, f.buildMounts, f.buildRest, f.buildNetwork} {
		if err := part(a, &spec); err != nil {
			return api.ContainerSpec{}, err
		}
	}
	return spec, f.check(spec)
}

// check finds what contradicts itself before anything is done.
func (f *specFlags) check(spec api.ContainerSpec) error {
	switch {
	case !slices.Contains([]string{pullAlways, pullMissing, pullNever}, f.pull):
		return api.Errorf(api.KindInvalid, "--pull %q is not known", f.pull).Hint("use always, missing or never")
	case spec.AutoRemove && spec.Restart.Name != "" && spec.Restart.Name != "no":
		return api.Errorf(api.KindInvalid, "--rm and --restart %s contradict each other", f.restart).Hint("drop one of them")
	case !slices.Contains([]string{"", "process", "vm"}, spec.Isolation):
		return api.Errorf(api.KindUnsupported, "--isolation %q is not known", spec.Isolation).Hint("use --isolation process or --isolation vm")
	case spec.GuestKernel != "" && spec.Isolation != "vm":
		return api.Errorf(api.KindInvalid, "--guest-kernel is for containers with a kernel of their own").Hint("add --isolation vm, or drop it")
	case spec.NetworkMode != "" && len(spec.Publish) > 0:
		return api.Errorf(api.KindInvalid, "--network %s has no ports of its own to publish", spec.NetworkMode).
			Hint("publish at the container whose compartment it is, or drop -p")
	case spec.Resources.CPUs < 0 || spec.Resources.Pids < 0:
		return api.Errorf(api.KindInvalid, "a limit is negative").Hint("leave the flag out for no limit")
	case f.stopTimeout < 0:
		return api.Errorf(api.KindInvalid, "--stop-timeout %d is negative", f.stopTimeout).Hint("use 0 to kill at once")
	}
	return nil
}

func (f *specFlags) buildEnv(a *app, spec *api.ContainerSpec) error {
	var list []string
	for _, path := range f.envFiles {
		own, err := readEnvFile(path)
		if err != nil {
			return err
		}
		list = append(list, own...)
	}
	var err error
	spec.Env, err = parseEnv(append(list, f.env...), a.Env)
	return err
}

func (f *specFlags) buildMounts(_ *app, spec *api.ContainerSpec) error {
	dir, err := os.Getwd()
	if err != nil {
		dir = "/"
	}
	for _, kind := range []struct {
		list  []string
		parse func(string) (api.Mount, error)
	}{
		{f.volumes, func(s string) (api.Mount, error) { return parseVolume(s, dir) }},
		{f.mounts, func(s string) (api.Mount, error) { return parseMount(s, dir) }},
		{f.tmpfs, parseTmpfs},
	} {
		for _, s := range kind.list {
			m, err := kind.parse(s)
			if err != nil {
				return err
			}
			spec.Mounts = append(spec.Mounts, m)
		}
	}
	return nil
}

func (f *specFlags) buildRest(_ *app, spec *api.ContainerSpec) (err error) {
	if spec.Restart, err = parseRestart(f.restart); err != nil {
		return err
	}
	for _, s := range f.ulimits {
		u, err := parseUlimit(s)
		if err != nil {
			return err
		}
		spec.Ulimits = append(spec.Ulimits, u)
	}
	if spec.Sysctls, err = parsePairs("sysctl", f.sysctls, true); err != nil {
		return err
	}
	if spec.Labels, err = parsePairs("label", f.labels, false); err != nil {
		return err
	}
	if spec.Annotations, err = parsePairs("annotation", f.annotations, true); err != nil {
		return err
	}
	return securityOptions(spec, f.security)
}

func (f *specFlags) buildNetwork(_ *app, spec *api.ContainerSpec) (err error) {
	if spec.NetworkMode, spec.Networks, err = f.network.parse(); err != nil {
		return err
	}
	if spec.Publish, _, err = f.ports.parse(); err != nil {
		return err
	}
	for _, s := range f.hosts {
		h, err := parseHost(s)
		if err != nil {
			return err
		}
		spec.ExtraHosts = append(spec.ExtraHosts, h)
	}
	for _, s := range spec.DNS.ServerList {
		if _, err := parseAddress(s); err != nil {
			return api.Errorf(api.KindInvalid, "--dns: %w", err).Hint("give the address of a resolver")
		}
	}
	if strings.HasPrefix(spec.NetworkMode, "container:") && (spec.Hostname != "" || !isZeroDNS(spec.DNS)) {
		return api.Errorf(api.KindInvalid, "--hostname and --dns belong to the compartment, which is another container's").
			Hint("set them on that container")
	}
	return nil
}

func isZeroDNS(d hcn.Dns) bool {
	return d.Domain == "" && len(d.Search)+len(d.ServerList)+len(d.Options) == 0
}

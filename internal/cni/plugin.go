package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// The error codes beyond those of the specification's table: 100 and above are a plugin's own. notAvailable is STATUS's.
const (
	codeConflict    uint = 100
	codeUnsupported uint = 101
	notAvailable    uint = 50
)

// patience is how long an operation may take in all: kubelet and Podman wait for longer.
const patience = 45 * time.Second

// Versions of the specification that the plugin speaks.
func Versions() version.PluginInfo { return version.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0") }

// Funcs are the plugin's verbs.
func Funcs() skel.CNIFuncs {
	return skel.CNIFuncs{Add: add, Del: del, Check: check, GC: gc, Status: status}
}

// session is one call.
type session struct {
	*config
	daemon *client.Client
	ctx    context.Context //nolint:containedctx // a call lives as long as its process
	stop   context.CancelFunc
}

func open(stdin []byte) (*session, error) {
	c, err := readConfig(stdin)
	if err != nil {
		return nil, err
	}
	cl, err := client.New(c.Socket)
	if err != nil {
		return nil, invalid("socket: %v", err)
	}
	s := &session{config: c, daemon: cl}
	s.ctx, s.stop = context.WithTimeout(context.Background(), patience)
	return s, nil
}

func (s *session) close() {
	s.stop()
	s.daemon.Close()
}

// add attaches a container.
func add(args *skel.CmdArgs) error {
	s, err := open(args.StdinData)
	if err != nil {
		return err
	}
	defer s.close()
	result, err := s.prevResult()
	if err != nil {
		return err
	}
	spec, err := s.spec(args.ContainerID, args.Netns, args.IfName, args.Args)
	if err != nil {
		return err
	}
	id := api.AttachmentKey{Container: spec.Container, Interface: spec.Interface}.ID(spec.Owner)
	if err := s.forget(id); err != nil {
		return failure(err)
	}
	a, err := s.daemon.Attach(s.ctx, spec)
	if err != nil {
		return failure(err)
	}
	if result == nil {
		result = &current.Result{}
	}
	if err := addTo(result, a, args.Netns); err != nil {
		return failure(err)
	}
	return types.PrintResult(result, s.CNIVersion)
}

// addTo puts an attachment into a result, after what is there.
func addTo(r *current.Result, a *api.Attachment, netns string) error {
	r.CNIVersion = current.ImplementedSpecVersion
	container := len(r.Interfaces)
	r.Interfaces = append(r.Interfaces, &current.Interface{Name: a.Endpoint.Interface, Mac: a.Endpoint.MAC, Mtu: a.MTU, Sandbox: netns})
	if a.HostInterface != "" {
		r.Interfaces = append(r.Interfaces, &current.Interface{Name: a.HostInterface, Mtu: a.MTU})
	}
	for _, text := range a.Endpoint.Addresses {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return fmt.Errorf("the daemon gave the address %q: %w", text, err)
		}
		r.IPs = append(r.IPs, &current.IPConfig{Interface: &container, Address: ipNet(p), Gateway: gatewayOf(p, a.Endpoint.Gateways)})
	}
	for _, rt := range a.Routes {
		dst, err := netip.ParsePrefix(rt.Destination)
		if err != nil {
			return fmt.Errorf("the daemon gave a route to %q: %w", rt.Destination, err)
		}
		route := &types.Route{Dst: ipNet(dst)}
		if via, err := netip.ParseAddr(rt.Gateway); err == nil {
			route.GW = via.AsSlice()
		}
		r.Routes = append(r.Routes, route)
	}
	if d := a.DNS; len(r.DNS.Nameservers) == 0 {
		r.DNS = types.DNS{Nameservers: d.ServerList, Domain: d.Domain, Search: d.Search, Options: d.Options}
	}
	return nil
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func gatewayOf(p netip.Prefix, gateways []string) net.IP {
	for _, g := range gateways {
		if a, err := netip.ParseAddr(g); err == nil && a.Is4() == p.Addr().Is4() {
			return a.AsSlice()
		}
	}
	return nil
}

// del detaches a container. One that is not attached is a success, and so is an absent daemon: a node must be drained
// without it, so it is noted down and done when the daemon is there again. Until then the switch goes on as it is, with
// nobody left at the container's end.
func del(args *skel.CmdArgs) error {
	s, err := open(args.StdinData)
	if err != nil {
		return err
	}
	defer s.close()
	id := api.AttachmentKey{Container: args.ContainerID, Interface: args.IfName}.ID(s.owner())
	err = s.detach(id)
	if !api.IsKind(err, api.KindUnavailable) {
		return failure(err)
	}
	if later := s.note(id); later != nil {
		return failure(errors.Join(err, later))
	}
	// It may have started, and looked, in between.
	if err = s.detach(id); err == nil {
		err = s.forget(id)
	}
	if api.IsKind(err, api.KindUnavailable) {
		return nil
	}
	return failure(err)
}

func (s *session) detach(id hcn.GUID) error {
	if err := s.daemon.Detach(s.ctx, id); err != nil && !api.IsKind(err, api.KindNotFound) {
		return err
	}
	return nil
}

// later is the directory, beside the daemon's socket, of notes for it: a file for each attachment that is to go, by its ID.
func (c *config) later() string {
	return filepath.Join(filepath.Dir(strings.TrimPrefix(c.Socket, "unix://")), "detach")
}

// note writes down that an attachment is to go.
func (c *config) note(id hcn.GUID) error {
	// The directory above is the socket's, which everybody may look for.
	if err := os.MkdirAll(filepath.Dir(c.later()), 0o755); err != nil {
		return fmt.Errorf("note that %s is to be detached: %w", id, err)
	}
	if err := os.Mkdir(c.later(), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("note that %s is to be detached: %w", id, err)
	}
	if err := os.WriteFile(filepath.Join(c.later(), string(id)), nil, 0o600); err != nil {
		return fmt.Errorf("note that %s is to be detached: %w", id, err)
	}
	return nil
}

// forget takes a note back.
func (c *config) forget(id hcn.GUID) error {
	if err := os.Remove(filepath.Join(c.later(), string(id))); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("take back the note that %s is to be detached: %w", id, err)
	}
	return nil
}

// check looks whether a container is attached as it was told.
func check(args *skel.CmdArgs) error {
	s, err := open(args.StdinData)
	if err != nil {
		return err
	}
	defer s.close()
	prev, err := s.prevResult()
	if err != nil {
		return err
	}
	if prev == nil {
		return invalid("prevResult: it is missing: CHECK compares with it")
	}
	a, err := s.daemon.CheckAttachment(s.ctx, api.AttachmentKey{Container: args.ContainerID, Interface: args.IfName}.ID(s.owner()))
	if api.IsKind(err, api.KindNotFound) {
		return types.NewError(types.ErrUnknownContainer, fmt.Sprintf("container %s has no interface %s on %s", args.ContainerID, args.IfName, s.Network), err.Error())
	}
	if err != nil {
		return failure(err)
	}
	if a.Netns != args.Netns && args.Netns != "" {
		return types.NewError(codeConflict, fmt.Sprintf("container %s is attached in %s and not in %s", args.ContainerID, a.Netns, args.Netns), "")
	}
	return compare(a, prev)
}

// compare tells what of a result is not so any more.
func compare(a *api.Attachment, prev *current.Result) error {
	at := slices.IndexFunc(prev.Interfaces, func(i *current.Interface) bool { return i.Sandbox != "" && i.Name == a.Endpoint.Interface })
	if at < 0 {
		return types.NewError(codeConflict, fmt.Sprintf("prevResult has no interface %s", a.Endpoint.Interface), "")
	}
	if mac := prev.Interfaces[at].Mac; mac != "" && mac != a.Endpoint.MAC {
		return types.NewError(codeConflict, fmt.Sprintf("interface %s has the MAC %s and not %s", a.Endpoint.Interface, a.Endpoint.MAC, mac), "")
	}
	for _, ip := range prev.IPs {
		if ip.Interface != nil && *ip.Interface == at && !slices.Contains(a.Endpoint.Addresses, ip.Address.String()) {
			return types.NewError(codeConflict, fmt.Sprintf("interface %s has the addresses %v and not %s", a.Endpoint.Interface, a.Endpoint.Addresses, &ip.Address), "")
		}
	}
	return nil
}

// gc detaches what the runtime does not know any more.
func gc(args *skel.CmdArgs) error {
	s, err := open(args.StdinData)
	if err != nil {
		return err
	}
	defer s.close()
	keep := api.AttachmentGC{Owner: s.owner(), Keep: []api.AttachmentKey{}}
	for _, a := range s.ValidAttachments {
		keep.Keep = append(keep.Keep, api.AttachmentKey{Container: a.ContainerID, Interface: a.IfName})
	}
	_, err = s.daemon.CollectAttachments(s.ctx, keep)
	return failure(err)
}

// status tells whether an ADD could work.
func status(args *skel.CmdArgs) error {
	s, err := open(args.StdinData)
	if err != nil {
		return err
	}
	defer s.close()
	networks, err := s.daemon.Networks(s.ctx)
	if err != nil {
		return types.NewError(notAvailable, "the daemon cannot be asked", withNext(err))
	}
	id, _ := hcn.ParseGUID(s.Network)
	if !slices.ContainsFunc(networks, func(n hcn.HostComputeNetwork) bool { return n.Name == s.Network || n.ID == id }) {
		return types.NewError(notAvailable, fmt.Sprintf("network %.80q does not exist", s.Network), fmt.Sprintf("make it: bulkhead network create %.80s", s.Network))
	}
	return nil
}

// failure puts an error of the daemon into CNI's form.
func failure(err error) error {
	if err == nil {
		return nil
	}
	code := types.ErrInternal
	switch {
	case api.IsKind(err, api.KindInvalid), api.IsKind(err, api.KindNotFound):
		code = types.ErrInvalidNetworkConfig
	case api.IsKind(err, api.KindUnavailable):
		code = types.ErrTryAgainLater
	case api.IsKind(err, api.KindConflict):
		code = codeConflict
	case api.IsKind(err, api.KindUnsupported):
		code = codeUnsupported
	case errors.Is(err, context.DeadlineExceeded):
		code = types.ErrTryAgainLater
	}
	return types.NewError(code, err.Error(), next(err))
}

func next(err error) string {
	if e, ok := errors.AsType[*api.Error](err); ok {
		return e.Next
	}
	return ""
}

func withNext(err error) string {
	if n := next(err); n != "" {
		return err.Error() + ": " + n
	}
	return err.Error()
}

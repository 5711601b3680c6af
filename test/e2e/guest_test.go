package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/Microsoft/go-winio/pkg/guid"

	"github.com/bulkhead-net/bulkhead/client"
	document "github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/hcsshim/hcn"
)

// guestName is the program that does with a VM what programs for the Windows client do with one:
//
//	guest-client plug NETWORK VM	makes an endpoint and a port of the VM for it; tells the endpoint
//	guest-client unplug ENDPOINT VM	takes it out of the VM's namespace, and deletes it
//
// It says nothing else when the VM has, each time, what the namespace says, and the service in it is told to be so.
const guestName = "guest-client"

func guestMain(args []string) error {
	if len(args) != 3 {
		return errors.New("usage: guest-client plug NETWORK VM, or unplug ENDPOINT VM")
	}
	vm, err := guid.FromString(args[2])
	if err != nil {
		return err
	}
	if args[0] == "plug" {
		return guestPlug(args[1], vm)
	}
	return guestUnplug(args[1], vm)
}

func guestPlug(network string, vm guid.GUID) error {
	n, err := hcn.GetNetworkByName(network)
	if err != nil {
		return err
	}
	ep, err := n.CreateEndpoint(&hcn.HostComputeEndpoint{Name: "plugged", SchemaVersion: hcn.V2SchemaVersion()})
	if err != nil {
		return err
	}
	port, err := guid.NewV4()
	if err != nil {
		return err
	}
	settings, err := json.Marshal(hcn.VmEndpointRequest{PortId: port, VirtualMachineId: vm, VirtualNicName: "nic--" + port.String()})
	if err != nil {
		return err
	}
	err = hcn.ModifyEndpointSettings(ep.Id, &hcn.ModifyEndpointSettingRequest{ResourceType: hcn.EndpointResourceTypePort, RequestType: hcn.RequestTypeAdd, Settings: settings})
	if err != nil {
		return fmt.Errorf("plug in: %w", err)
	}
	if ep, err = hcn.GetEndpointByID(ep.Id); err != nil {
		return err
	}
	if err := syncTwice(ep.HostComputeNamespace); err != nil {
		return err
	}
	mac := strings.ToLower(strings.ReplaceAll(ep.MacAddress, "-", ":"))
	err = withGuest(func(ctx context.Context, c *client.Client) error {
		g, err := c.CreateGuestNetworkService(ctx, &document.GuestNetworkService{VirtualMachineId: document.GUID(strings.ToUpper(vm.String()))})
		if err != nil {
			return err
		}
		if g, err = c.GuestNetworkService(ctx, g.ID); err != nil || g.State != document.GuestServiceSynchronized || !strings.Contains(string(g.Health.Data), mac) {
			return fmt.Errorf("the service in the VM is %+v, %w", g, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(os.Stdout, ep.Id)
	return err
}

func guestUnplug(endpoint string, vm guid.GUID) error {
	ep, err := hcn.GetEndpointByID(endpoint)
	if err != nil {
		return err
	}
	if err := hcn.RemoveNamespaceEndpoint(ep.HostComputeNamespace, ep.Id); err != nil {
		return err
	}
	if err := syncTwice(ep.HostComputeNamespace); err != nil {
		return err
	}
	err = withGuest(func(ctx context.Context, c *client.Client) error {
		all, err := c.GuestNetworkServices(ctx)
		if err != nil || len(all) != 1 || !strings.EqualFold(string(all[0].VirtualMachineId), vm.String()) {
			return fmt.Errorf("the services are %+v, %w", all, err)
		}
		if g := all[0]; g.State != document.GuestServiceSynchronized || strings.Contains(strings.ToUpper(string(g.Health.Data)), strings.ReplaceAll(ep.MacAddress, "-", ":")) {
			return fmt.Errorf("the service in the VM is %+v", g)
		}
		return c.DeleteGuestNetworkService(ctx, all[0].ID)
	})
	if err != nil {
		return err
	}
	return ep.Delete()
}

// syncTwice: the second time finds nothing to do.
func syncTwice(namespace string) error {
	ns, err := hcn.GetNamespaceByID(namespace)
	if err != nil {
		return err
	}
	if ns.Type != hcn.NamespaceTypeGuest {
		return fmt.Errorf("the compartment of a VM is of type %s", ns.Type)
	}
	return errors.Join(ns.Sync(), ns.Sync())
}

func withGuest(do func(ctx context.Context, c *client.Client) error) error {
	c, err := client.New(client.DefaultSocket)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return do(ctx, c)
}

package process

import (
	"context"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm"
	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
)

// GuestNICs tells what NICs a container's VM has been given.
func (r *Runtime) GuestNICs(ctx context.Context, id string, ask api.GuestNICsRequest) (api.GuestNICs, error) {
	var out api.GuestNICs
	dir, err := r.shimOf(id)
	if err != nil {
		return out, err
	}
	got, err := vm.Look(ctx, dir, proto.Look{Sync: ask.Sync, Wait: ask.Wait, After: ask.After})
	if err != nil {
		return out, err
	}
	out.Seq, out.Error = got.Seq, got.Error
	for _, n := range got.NICs {
		out.NICs = append(out.NICs, api.GuestNIC{Name: n.Name, MAC: n.MAC})
	}
	return out, nil
}

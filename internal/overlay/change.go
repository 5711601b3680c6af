package overlay

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// ChangeNetwork changes a network for all hosts. change gives the document anew, and is called again when another host has changed it
// meanwhile. The revision is that of the change. What hosts rely on stays: blocks are parts of the subnets, and tunnels find each other by VNI and port.
func (a *Agent) ChangeNetwork(ctx context.Context, id hcn.GUID, change func(doc *hcn.HostComputeNetwork) (*hcn.HostComputeNetwork, error)) (hcn.HostComputeNetwork, int64, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*opTimeout)
	defer cancel()
	key := a.keys.network(id)
	for range 20 {
		res, err := a.cli.Get(ctx, key)
		if err != nil {
			return hcn.HostComputeNetwork{}, 0, a.away("read network "+string(id), err)
		}
		if len(res.Kvs) == 0 {
			return hcn.HostComputeNetwork{}, 0, fmt.Errorf("network %s of the cluster: %w", id, ErrNotFound)
		}
		kv := res.Kvs[0]
		n, err := decode[Network](kindNetwork, kv.Value)
		if err == nil {
			err = matches(n.ID, id, n.check)
		}
		if err != nil {
			return hcn.HostComputeNetwork{}, 0, fmt.Errorf("read %s: %w", key, err)
		}
		value, next, err := changed(&n, change)
		if err != nil {
			return hcn.HostComputeNetwork{}, 0, err
		}
		put, err := a.cli.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", kv.ModRevision)).Then(clientv3.OpPut(key, value)).Commit()
		if err != nil {
			return hcn.HostComputeNetwork{}, 0, a.away("write network "+n.Name, err)
		}
		if put.Succeeded {
			return next.Doc, put.Header.Revision, a.settle(ctx, put.Header.Revision)
		}
		if !sleep(ctx, jitter(20*time.Millisecond)) { // many hosts that change it at once
			return hcn.HostComputeNetwork{}, 0, ctx.Err()
		}
	}
	return hcn.HostComputeNetwork{}, 0, fmt.Errorf("change network %s: others change it without a pause: %w", id, ErrAway)
}

// changed is a network after a change, as it is written and as the others will read it.
func changed(n *Network, change func(*hcn.HostComputeNetwork) (*hcn.HostComputeNetwork, error)) (value string, next Network, err error) {
	doc, err := change(n.Doc.Clone())
	if err != nil {
		return "", next, err
	}
	next = *n
	next.Doc = *doc
	if encode(n.Doc.Ipams) != encode(doc.Ipams) || plan.VXLANPort(&n.Doc) != plan.VXLANPort(doc) {
		return "", next, fmt.Errorf("network %q: its subnets, VNI and VxlanPort stay as they are, for other hosts have parts of them in use: make another network", n.Name)
	}
	if err := next.check(); err != nil {
		return "", next, fmt.Errorf("network %q: %w", n.Name, err)
	}
	value = encode(&next)
	if next, err = decode[Network](kindNetwork, []byte(value)); err != nil {
		return "", next, fmt.Errorf("network %q: its document: %w: take policies out of it", n.Name, err)
	}
	return value, next, nil
}

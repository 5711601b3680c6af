// Package kube makes Services of Kubernetes load balancers of the daemon, as kube-proxy does on Windows: one for each port of a Service,
// family and way to reach it (its cluster address, the node's own addresses, addresses that lead to nodes). It watches Services,
// EndpointSlices and its Node, works out what is wanted (services.go), and writes the difference (host.go).
package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/bulkhead-net/bulkhead/client"
)

// Options are what a proxy needs to know.
type Options struct {
	API     *rest.Config
	Client  *client.Client
	Network string // the pods' network
	Node    string // this node's name
	// SyncPeriod is how often it is looked whether all is as it should be, without any event.
	SyncPeriod time.Duration
	// MinSyncPeriod is the least time between two rounds.
	MinSyncPeriod time.Duration
	// Health and Metrics are listened on if they are not nil.
	Health, Metrics net.Listener
	Log             *slog.Logger
}

// firstPause and longestPause bound the time after which a round that failed is tried again.
const firstPause, longestPause = 500 * time.Millisecond, time.Minute

// missingPause is when it is looked again for back ends that the network did not have: the cluster tells of pods of other nodes later than
// the API server may.
const missingPause = time.Second

type proxy struct {
	opt                     Options
	services, slices, nodes cache.SharedIndexInformer
	host                    *host
	meter                   *meter
	health                  *health
	checks                  *checks
	kicked                  chan struct{}
	problems                map[string]bool
	failure                 string
}

// Run keeps load balancers until the context ends. They stay when it does.
func Run(ctx context.Context, opt Options) error {
	p := &proxy{opt: opt, kicked: make(chan struct{}, 1), problems: map[string]bool{}, meter: newMeter()}
	p.host = newHost(opt.Client, opt.Network, p.meter.wrote)
	p.health = &health{tooLate: 2 * opt.SyncPeriod, now: time.Now}
	p.checks = &checks{log: opt.Log, healthy: p.health.healthy, open: map[uint16]*check{}}
	defer p.checks.set(nil)
	if err := p.watch(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 2)
	p.health.serve(ctx, opt.Health, failed)
	p.meter.serve(ctx, opt.Metrics, failed)
	for _, i := range []cache.SharedIndexInformer{p.services, p.slices, p.nodes} {
		go i.RunWithContext(ctx)
	}
	go p.listen(ctx)
	if !cache.WaitForCacheSync(ctx.Done(), p.services.HasSynced, p.slices.HasSynced, p.nodes.HasSynced) {
		return nil
	}
	return p.loop(ctx, failed)
}

// loop does a round when something has changed, when the last one failed or found something missing, and when it is time.
func (p *proxy) loop(ctx context.Context, failed <-chan error) error {
	pause := firstPause
	for {
		next := p.opt.SyncPeriod
		if err := p.round(ctx); err != nil {
			next, pause = min(pause, next), min(2*pause, longestPause)
		} else {
			pause = firstPause
			if p.host.missing > 0 {
				next = min(missingPause, next)
			}
		}
		timer := time.NewTimer(next)
		rest := time.NewTimer(p.opt.MinSyncPeriod)
		select {
		case <-ctx.Done():
		case err := <-failed:
			return err
		case <-p.kicked:
		case <-timer.C:
			if next == p.opt.SyncPeriod {
				p.host.forget(false)
			}
		}
		timer.Stop()
		select {
		case <-ctx.Done():
			return nil
		case <-rest.C:
		}
	}
}

func (p *proxy) kick() {
	p.health.queued()
	select {
	case p.kicked <- struct{}{}:
	default:
	}
}

// round works out what is wanted and makes it so.
func (p *proxy) round(ctx context.Context) error {
	begin := time.Now()
	p.health.begin()
	s := p.state()
	w := compile(s)
	p.report(w.problems)
	err := p.host.sync(ctx, w.balancers)
	if ctx.Err() != nil {
		return nil
	}
	p.checks.set(w.checks)
	p.meter.round(time.Since(begin), err, len(s.services), len(p.host.have), p.host.missing, len(w.problems))
	if err != nil {
		if text := err.Error(); text != p.failure {
			p.opt.Log.Error("load balancers are not all as they should be", "error", text)
			p.failure = text
		}
		return err
	}
	if p.failure != "" {
		p.opt.Log.Info("load balancers are as they should be again")
		p.failure = ""
	}
	p.health.done()
	return nil
}

// report logs what cannot be, once.
func (p *proxy) report(problems []string) {
	now := map[string]bool{}
	for _, text := range problems {
		if now[text] = true; !p.problems[text] {
			p.opt.Log.Warn("a Service is not served as it asks", "reason", text)
		}
	}
	p.problems = now
}

// state is what the informers have.
func (p *proxy) state() state {
	s := state{node: p.opt.Node, slices: map[types.NamespacedName][]*discovery.EndpointSlice{}}
	for _, o := range p.services.GetStore().List() {
		if svc, ok := o.(*core.Service); ok {
			s.services = append(s.services, svc)
		}
	}
	for _, o := range p.slices.GetStore().List() {
		if slice, ok := o.(*discovery.EndpointSlice); ok {
			key := types.NamespacedName{Namespace: slice.Namespace, Name: slice.Labels[discovery.LabelServiceName]}
			s.slices[key] = append(s.slices[key], slice)
		}
	}
	for _, list := range maps.All(s.slices) {
		slices.SortFunc(list, func(a, b *discovery.EndpointSlice) int { return strings.Compare(a.Name, b.Name) })
	}
	for _, o := range p.nodes.GetStore().List() {
		if node, ok := o.(*core.Node); ok {
			s.zone = node.Labels[core.LabelTopologyZone]
			p.health.eligible(!leaving(node))
		}
	}
	return s
}

// leaving tells that a node is about to go: load balancers outside are to send nothing new.
func leaving(n *core.Node) bool {
	return n.DeletionTimestamp != nil || slices.ContainsFunc(n.Spec.Taints, func(t core.Taint) bool { return t.Key == "ToBeDeletedByClusterAutoscaler" })
}

// watch makes the informers. Services that are not proxied are not even sent.
func (p *proxy) watch() error {
	scheme := runtime.NewScheme()
	if err := errors.Join(core.AddToScheme(scheme), discovery.AddToScheme(scheme)); err != nil {
		return err
	}
	meta.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	codecs := serializer.NewCodecFactory(scheme)
	informer := func(gv schema.GroupVersion, path, resource string, example runtime.Object, narrow func(*meta.ListOptions)) (cache.SharedIndexInformer, error) {
		conf := rest.CopyConfig(p.opt.API)
		conf.GroupVersion, conf.APIPath, conf.NegotiatedSerializer = &gv, path, codecs.WithoutConversion()
		if conf.UserAgent == "" {
			conf.UserAgent = owner
		}
		c, err := rest.RESTClientFor(conf)
		if err != nil {
			return nil, fmt.Errorf("connect to the API server at %s: %w", conf.Host, err)
		}
		i := cache.NewSharedIndexInformer(cache.NewFilteredListWatchFromClient(c, resource, meta.NamespaceAll, narrow), example, 0, cache.Indexers{})
		err = errors.Join(
			i.SetTransform(lean),
			i.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
				p.opt.Log.Warn("the API server does not answer, what it has told before counts", "resource", resource, "error", err)
			}),
		)
		if err != nil {
			return nil, err
		}
		_, err = i.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { p.kick() }, UpdateFunc: func(any, any) { p.kick() }, DeleteFunc: func(any) { p.kick() },
		})
		return i, err
	}
	const ours = "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name"
	var err1, err2, err3 error
	p.services, err1 = informer(core.SchemeGroupVersion, "/api", "services", &core.Service{}, func(o *meta.ListOptions) { o.LabelSelector = ours })
	p.slices, err2 = informer(discovery.SchemeGroupVersion, "/apis", "endpointslices", &discovery.EndpointSlice{}, func(o *meta.ListOptions) { o.LabelSelector = ours })
	p.nodes, err3 = informer(core.SchemeGroupVersion, "/api", "nodes", &core.Node{}, func(o *meta.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("metadata.name", p.opt.Node).String()
	})
	return errors.Join(err1, err2, err3)
}

// lean leaves out what nobody here reads.
func lean(o any) (any, error) {
	if m, ok := o.(meta.ObjectMetaAccessor); ok {
		om, _ := m.GetObjectMeta().(*meta.ObjectMeta)
		if om != nil {
			om.ManagedFields, om.Annotations = nil, nil
		}
	}
	if n, ok := o.(*core.Node); ok { // kubelet writes its status all the time
		n.Status = core.NodeStatus{}
	}
	return o, nil
}

// listen follows the daemon's events. While there are none it may have been restarted, or made anew.
func (p *proxy) listen(ctx context.Context) {
	for pause := firstPause; ctx.Err() == nil; {
		stream, err := p.opt.Client.WatchEvents(ctx, client.EventOptions{})
		if err == nil {
			p.host.forget(true)
			p.kick()
			pause = firstPause
			for {
				ev, err := stream.Next()
				if err != nil {
					break
				}
				if p.host.told(ev) {
					p.kick()
				}
			}
			_ = stream.Close()
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
			pause = min(2*pause, 10*time.Second)
		}
	}
}

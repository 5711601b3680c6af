// Command bulkhead-kube-proxy runs on each node of a Kubernetes cluster in kube-proxy's place: it keeps load balancers of the node's
// daemon for the cluster's Services. It is a program of its own because the client of the API server takes more to start than the rest.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/bulkhead-net/bulkhead/client"
	"github.com/bulkhead-net/bulkhead/internal/kube"
)

// Set by the linker.
var version = "dev"

func main() {
	if err := run(os.Args[1:]); err != nil && !errors.Is(err, pflag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bulkhead-kube-proxy:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	var kubeconfig, socket, health, metrics string
	var shown, debug bool
	opt := kube.Options{}
	flags := pflag.NewFlagSet("bulkhead-kube-proxy", pflag.ContinueOnError)
	flags.StringVar(&kubeconfig, "kubeconfig", "", "file that says where the API server is and who we are; without it the pod's service account is used")
	flags.StringVar(&opt.Network, "network", "pods", "network of the pods")
	flags.StringVar(&opt.Node, "node-name", os.Getenv("NODE_NAME"), "name of this node; the environment's NODE_NAME is the default, then the host's name")
	flags.StringVar(&socket, "host", cmp.Or(os.Getenv("BULKHEAD_HOST"), "unix://"+client.DefaultSocket), "socket of the daemon")
	flags.DurationVar(&opt.SyncPeriod, "sync-period", time.Minute, "how often to look whether all is as it should be, without any change")
	flags.DurationVar(&opt.MinSyncPeriod, "min-sync-period", 250*time.Millisecond, "least time from one change of load balancers to the next")
	flags.StringVar(&health, "healthz-bind-address", ":10256", "where to tell whether changes are followed (/healthz, /livez); empty: nowhere")
	flags.StringVar(&metrics, "metrics-bind-address", "127.0.0.1:10249", "where to give metrics (/metrics); empty: nowhere")
	flags.BoolVar(&debug, "debug", false, "log more")
	flags.BoolVar(&shown, "version", false, "print the version")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if shown {
		_, err := fmt.Fprintln(os.Stdout, "bulkhead-kube-proxy", version)
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("what is %q? It takes flags only", flags.Arg(0))
	}
	if opt.SyncPeriod < time.Second || opt.MinSyncPeriod < 0 || opt.MinSyncPeriod > opt.SyncPeriod {
		return fmt.Errorf("--sync-period %s and --min-sync-period %s: give a second or more, and not more than that", opt.SyncPeriod, opt.MinSyncPeriod)
	}
	level := slog.LevelInfo
	if debug {
		level = slog.LevelDebug
	}
	opt.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	klog.SetLogger(logr.FromSlogHandler(opt.Log.Handler()))
	return start(opt, kubeconfig, socket, health, metrics)
}

func start(opt kube.Options, kubeconfig, socket, health, metrics string) (err error) {
	if opt.Node == "" {
		if opt.Node, err = os.Hostname(); err != nil {
			return err
		}
	}
	if kubeconfig == "" {
		opt.API, err = rest.InClusterConfig()
	} else {
		opt.API, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return fmt.Errorf("find the API server: %w: name a --kubeconfig, or run it in a pod with a service account", err)
	}
	if opt.Client, err = client.New(socket); err != nil {
		return err
	}
	defer opt.Client.Close()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	for _, on := range []struct {
		at string
		l  *net.Listener
	}{{health, &opt.Health}, {metrics, &opt.Metrics}} {
		if on.at == "" {
			continue
		}
		if *on.l, err = (&net.ListenConfig{}).Listen(ctx, "tcp", on.at); err != nil {
			return err
		}
	}
	opt.Log.Info("bulkhead-kube-proxy is up", "version", version, "node", opt.Node, "network", opt.Network, "api_server", opt.API.Host)
	return kube.Run(ctx, opt)
}

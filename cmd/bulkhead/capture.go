package main

import (
	"context"

	"github.com/bulkhead-net/bulkhead/internal/dataplane/capture"
	"github.com/bulkhead-net/bulkhead/internal/dataplane/netdev"
	"github.com/bulkhead-net/bulkhead/internal/engine"
)

// capturer captures what the engine has found.
func capturer(dev *netdev.Netdev) func(context.Context, engine.CaptureRequest, engine.CaptureOutput) error {
	c := &capture.Capturer{Enter: dev.Enter}
	return func(ctx context.Context, r engine.CaptureRequest, out engine.CaptureOutput) error {
		o := capture.Options{
			Filter:  capture.Filter{Protocol: r.Protocol, Hosts: r.Hosts, Port: r.Port},
			Snaplen: r.Snaplen, Packets: r.Packets, Duration: r.Duration, Version: version,
		}
		for _, s := range r.Sources {
			o.Sources = append(o.Sources, capture.Source(s))
		}
		return c.Run(ctx, o, out)
	}
}

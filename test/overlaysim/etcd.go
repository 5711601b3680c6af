package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"net/http"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/overlay"
)

// begin starts etcd as `bulkhead cluster init` does.
func begin(ctx context.Context, dir string) (overlay.Etcd, func(), error) {
	opt := overlay.Options{Dir: filepath.Join(dir, "cluster"), RunDir: dir, Version: "sim", Boot: "sim"}
	c, err := overlay.Open(opt)
	if err != nil {
		return overlay.Etcd{}, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { c.Run(ctx); close(done) }()
	end := func() {
		cancel()
		<-done
		overlay.EndMember(opt.Dir, opt.RunDir)
	}
	for {
		_, err = c.Init(ctx, overlay.Request{Name: "sim", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}, "")
		if err == nil || !strings.Contains(err.Error(), "is starting") {
			break
		}
		pause(ctx, 10*time.Millisecond)
	}
	if err != nil {
		end()
		return overlay.Etcd{}, nil, err
	}
	return c.Status(ctx).Etcd, end, nil
}

// scrape reads etcd's metrics.
func scrape(ctx context.Context, etcd overlay.Etcd) (map[string]float64, error) {
	pair, err := tls.LoadX509KeyPair(etcd.Cert, etcd.Key)
	if err != nil {
		return nil, err
	}
	// It is our own, on loopback: who it is does not matter here.
	tr := &http.Transport{TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, etcd.Endpoints[0]+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	res, err := (&http.Client{Transport: tr, Timeout: 20 * time.Second}).Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	out := map[string]float64{}
	for s := bufio.NewScanner(res.Body); s.Scan(); {
		if name, value, ok := strings.Cut(s.Text(), " "); ok {
			if f, err := strconv.ParseFloat(value, 64); err == nil {
				out[name] = f
			}
		}
	}
	return out, nil
}

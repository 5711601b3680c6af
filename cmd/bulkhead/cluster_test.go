package main

import (
	"errors"
	"fmt"
	"testing"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/overlay"
)

// TestNetworkProblems: a network has the problem that the engine told of it, and no other one that only mentions it.
func TestNetworkProblems(t *testing.T) {
	red, blue := hcn.NewGUID(), hcn.NewGUID()
	nets := map[hcn.GUID]*overlay.Network{red: {ID: red, Name: "red"}, blue: {ID: blue, Name: "blue"}}
	if p := problemsOf(nil, nets); p.any() {
		t.Errorf("without an error: %+v", p)
	}
	clash := errors.New(`network "red" of the cluster: its prefix is that of network "blue"`)
	p := problemsOf(errors.Join(fmt.Errorf("remove network %s: it is in use", hcn.NewGUID()), clash), nets)
	if len(p.of) != 1 || p.of[red] != clash.Error() || len(p.rest) != 1 {
		t.Errorf("%+v", p)
	}
	if p := problemsOf(clash, nets); len(p.of) != 1 || p.of[red] == "" {
		t.Errorf("one alone: %+v", p)
	}
}

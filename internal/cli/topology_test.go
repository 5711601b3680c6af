package cli

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// TestTopology keeps the pictures.
func TestTopology(t *testing.T) {
	d := newDaemon(t)
	for _, columns := range []string{"100", "72", "48"} {
		out, errs, code := call(t, d.socket, "topology", "--width", columns)
		if errs != "" || code != 0 {
			t.Fatalf("exit code %d: %s", code, errs)
		}
		golden(t, "topology-"+columns+".txt", out)
		checkPicture(t, out, columns)
	}
	out, _, _ := callWith(t, d.socket, nil, map[string]string{"LC_ALL": "C", "LANG": "C.UTF-8"}, "topology")
	for _, r := range out {
		if r > 126 {
			t.Fatalf("%q in a picture for a locale without UTF-8:\n%s", r, out)
		}
	}
	golden(t, "topology-ascii.txt", out)
}

// checkPicture looks for what must hold of any picture: a frame that is closed, and
// nothing outside it.
func checkPicture(t *testing.T, picture, columns string) {
	t.Helper()
	for i, line := range strings.Split(strings.TrimSuffix(picture, "\n"), "\n") {
		if got := fmt.Sprint(width(line)); got != columns {
			t.Errorf("line %d is %s columns wide, not %s: %s", i+1, got, columns, line)
		}
	}
}

func TestTopologyOfNothing(t *testing.T) {
	d := newDaemon(t)
	d.Info, d.Networks, d.Endpoints, d.Namespaces, d.Containers, d.Published = api.Info{}, nil, nil, nil, nil, nil
	out, _, code := call(t, d.socket, "topology", "--width", "60")
	if code != 0 || !strings.Contains(out, "no uplink") {
		t.Errorf("exit code %d\n%s", code, out)
	}
	checkPicture(t, out, "60")
}

// TestTopologyOfMany draws more containers than fit beside each other, with names
// that are too wide and with wide characters.
func TestTopologyOfMany(t *testing.T) {
	d := newDaemon(t)
	for i := range 7 {
		e := d.Endpoints[4]
		e.ID = hcn.GUID(fmt.Sprintf("BBBB%04d%s", i, e.ID[8:]))
		e.Name = fmt.Sprintf("箱%d%s", i, strings.Repeat("x", 12*i))
		e.HostComputeNetwork = d.Networks[2].ID
		d.Endpoints = append(d.Endpoints, e)
	}
	out, _, code := call(t, d.socket, "topology", "--width", "80")
	if code != 0 {
		t.Fatalf("exit code %d", code)
	}
	checkPicture(t, out, "80")
	for i := range 7 {
		if !strings.Contains(out, fmt.Sprintf("箱%d", i)) {
			t.Errorf("endpoint %d is not in the picture", i)
		}
	}
	golden(t, "topology-many.txt", out)
}

// TestTopologyDocuments: -o json gives programs what the picture is drawn from.
func TestTopologyDocuments(t *testing.T) {
	d := newDaemon(t)
	out, errs, code := call(t, d.socket, "topology", "-o", "json")
	if code != 0 {
		t.Fatal(errs)
	}
	var got map[string]json.RawMessage
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"host", "networks", "endpoints", "namespaces", "containers", "published"} {
		if len(got[name]) < 10 {
			t.Errorf("%s: %s", name, got[name])
		}
	}
}
